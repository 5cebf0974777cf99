"""Documents of any length in bounded memory, with the ids that they have as a whole.

A long document is tokenised in windows that overlap. Far from its ends a window has the tokens of
the whole text: what a tokenizer does at one place depends on its surroundings alone. So two
windows are joined where they agree on every token, id and place, over the middle of what they
share; where they don't, they are tokenised again as one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mixloop.trainer.corpora import Piece

from .text_encoder import Spans

WINDOW = 500_000
"""Characters tokenised at once: about 60 MB of memory and 0.1 s. Shorter documents go whole."""
OVERLAP = 8_192
"""Characters that two windows share."""
_LONGEST = 8  # windows that are tokenised as one at most
_PERIOD = 32  # characters; tokens are seldom longer


@dataclass(frozen=True)
class Window:
    """A stretch of a document from the character `begin` on, the first or last one or both."""

    text: str
    begin: int = 0
    last: bool = True

    @property
    def whole(self) -> bool:
        """Whether it is all of its document."""
        return self.last and not self.begin


def windows(pieces: Iterable[Piece]) -> Iterator[Window]:
    """Documents as windows; blank ones are none."""
    text, at, begin = "", 0, 0  # `text` from `at` on is the document's from `begin` on
    for piece in pieces:
        text, at = (text[at:] + piece.text if at < len(text) else piece.text), 0
        while len(text) - at > WINDOW:
            yield Window(text[at : at + WINDOW], begin, last=False)
            at += WINDOW - OVERLAP
            begin += WINDOW - OVERLAP
        if piece.ends:
            rest = text[at:]
            if begin or rest.strip():
                yield Window(rest, begin)
            text, at, begin = "", 0, 0


class Joiner:
    """Puts the windows of one document after another back together, in their order.

    Args:
        encode: a text's tokens, for windows that don't agree.
    """

    def __init__(self, encode: Callable[[str], Spans]) -> None:
        self._encode = encode
        self._held: tuple[Window, Spans] | None = None
        self._from = 0  # of the document: what is before it is written
        self.unsure = 0
        """Joints at which no agreement was found."""

    def add(self, window: Window, tokens: Spans) -> Iterator[npt.NDArray[np.int64]]:
        """Ids that are certain now, shape [n] each.

        Args:
            window: the next one.
            tokens: its tokens, with places in the window.
        """
        if window.begin and self._held is not None:
            before, earlier = self._held
            place = _joint(before, earlier, window, tokens)
            if place is None and len(before.text) < _LONGEST * WINDOW:
                # once more, as one
                text = before.text + window.text[before.begin + len(before.text) - window.begin :]
                window = Window(text, before.begin, window.last)
                tokens = self._encode(text)
            else:
                if place is None:
                    self.unsure += 1
                    # the later one begins anew, so that no character is lost or there twice
                    place = _cut(before, earlier, window)
                    window = Window(window.text[place - window.begin :], place, window.last)
                    tokens = self._encode(window.text)
                yield earlier.within(self._from - before.begin, place - before.begin).ids
                self._from = place
        else:
            self._from = 0
        self._held = (window, tokens)
        if window.last:
            self._held = None
            yield tokens.within(self._from - window.begin, len(window.text) + 1).ids


def _joint(before: Window, earlier: Spans, window: Window, tokens: Spans) -> int | None:
    """A place of the document where a token begins in two windows that agree around it."""
    end = before.begin + len(before.text)
    quarter = (end - window.begin) // 4
    low, high = window.begin + quarter, end - quarter
    ours = earlier.within(low - before.begin, high - before.begin)
    theirs = tokens.within(low - window.begin, high - window.begin)
    shift = window.begin - before.begin
    if not (
        np.array_equal(ours.ids, theirs.ids)
        and np.array_equal(ours.starts, theirs.starts + shift)
        and np.array_equal(ours.ends, theirs.ends + shift)
    ):
        return None
    if _repeats(window.text[low - window.begin : high - window.begin]):
        return None  # the windows agree, and the whole may still be cut at another step
    middle = window.begin + 2 * quarter
    later = theirs.starts[theirs.starts + window.begin >= middle]
    place = int(later[0]) + window.begin if len(later) else middle
    for spans, begin in ((earlier, before.begin), (tokens, window.begin)):
        if np.any((spans.starts + begin < place) & (spans.ends + begin > place)):
            return None  # a token longer than all that
    return place


def _cut(before: Window, earlier: Spans, window: Window) -> int:
    """The beginning of the earlier window's token next to the middle of what two share."""
    starts = earlier.starts + before.begin
    middle = window.begin + OVERLAP // 2
    return int(starts[np.argmin(np.abs(starts - middle))]) if len(starts) else middle


def _repeats(text: str) -> bool:
    """Whether a text is one short string over and over, such as a line of dashes."""
    return any(text[period:] == text[:-period] for period in range(1, min(_PERIOD, len(text))))
