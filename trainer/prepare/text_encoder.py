"""A tokenizer as `prepare` uses it: text is text, and what the vocabulary lacks is counted.

What a tokenizer adds of its own (templates with BOS or EOS) is left out: `prepare` puts ids around
documents itself, as it is told to.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from mixloop.common.tokenizing import (
    special_as_text,
    special_tokens,
    unknown_id,
    without_surrogates,
)
from mixloop.trainer.sources import load_raw

if TYPE_CHECKING:
    from tokenizers import Encoding

_MARK = re.compile(r"<.+>|\[.+\]")
_SHOWN = 10  # unknown characters that are named


@dataclass
class Changes:
    """What of some texts their tokens don't say, in characters, and marks that became ids."""

    surrogates: int = 0
    unknown: int = 0
    which: set[str] = field(default_factory=set)
    marks: int = 0
    which_marks: set[str] = field(default_factory=set)


class Spans(NamedTuple):
    """Tokens with their places in the text: ids, first character, and the one behind the last."""

    ids: npt.NDArray[np.int64]
    starts: npt.NDArray[np.int64]
    ends: npt.NDArray[np.int64]

    def within(self, begin: int, end: int) -> Spans:
        """Those that begin at a character from `begin` on and before `end`."""
        here = (self.starts >= begin) & (self.starts < end)
        return Spans(self.ids[here], self.starts[here], self.ends[here])


class TextEncoder:
    """Text to ids, the same in every process.

    Args:
        folder: of the tokenizer.
        parse_special: special tokens that are written in a text become their ids. Without it they
            are text like any other: a page about tokenizers ends no document.
    """

    def __init__(self, folder: Path, parse_special: bool = False) -> None:
        tokenizer = load_raw(folder)
        tokenizer.post_processor = None  # it would trim the places of tokens
        named = set(special_tokens(folder, tokenizer).values())
        added = tokenizer.get_added_tokens_decoder().items()
        if not parse_special:
            tokenizer = special_as_text(tokenizer, named)
        self._tokenizer = tokenizer
        facts = json.loads(tokenizer.to_str())
        self._unknown = unknown_id(facts["model"], tokenizer)
        self._byte_level = _is_byte_level(facts)
        self._words = _words(facts)
        self.complete = _has_every_byte(facts)
        """Whether it has ids for any text whatever."""
        self._known: dict[str, bool] = {}
        self._marks = {
            at: token.content
            for at, token in added
            if not (parse_special or token.special or token.content in named)
            and _MARK.fullmatch(token.content)
        }

    def count_marks(self, ids: npt.NDArray[Any], changes: Changes) -> None:
        """Count marks that the tokenizer doesn't call special, such as `<think>` for many."""
        if not self._marks:
            return
        found = ids[np.isin(ids, list(self._marks))]
        changes.marks += len(found)
        changes.which_marks |= {self._marks[int(at)] for at in np.unique(found)[:_SHOWN]}

    def encode(self, texts: Sequence[str], changes: Changes) -> list[list[int]]:
        """Ids of whole texts."""
        counted = [without_surrogates(text) for text in texts]
        changes.surrogates += sum(count for _, count in counted)
        clean = [text for text, _ in counted]
        if self.complete:
            encoded = self._tokenizer.encode_batch_fast(clean, add_special_tokens=False)
            return [one.ids for one in encoded]
        encoded = self._tokenizer.encode_batch(clean, add_special_tokens=False)
        for text, one in zip(clean, encoded, strict=True):
            self._count_unknown(text, _spans(one), changes)
        return [one.ids for one in encoded]

    def encode_window(self, text: str, changes: Changes, counted: slice) -> Spans:
        """Ids of a stretch of a text with their places; changes are counted within `counted`."""
        clean, _ = without_surrogates(text)
        found = _spans(self._tokenizer.encode(clean, add_special_tokens=False))
        changes.surrogates += without_surrogates(text[counted])[1]
        if not self.complete:
            begin, end, _ = counted.indices(len(text))
            part = found.within(begin, end)
            moved = Spans(part.ids, part.starts - begin, part.ends - begin)
            self._count_unknown(clean[counted], moved, changes)
        return found

    def _count_unknown(self, text: str, found: Spans, changes: Changes) -> None:
        """Count characters that no token stands for; white space may go without."""
        if self._unknown >= 0:
            covered = np.zeros(len(text) + 1, np.int64)
            known = found.ids != self._unknown
            np.add.at(covered, np.minimum(found.starts[known], len(text)), 1)
            np.add.at(covered, np.minimum(found.ends[known], len(text)), -1)
            lost = Counter(text[place] for place in np.flatnonzero(np.cumsum(covered)[:-1] == 0))
        else:
            # what vanishes moves the places of what follows, so places tell nothing
            lost = Counter(text)
        for character, count in lost.items():
            if character.isspace() or (self._unknown < 0 and self._is_known(character)):
                continue
            changes.unknown += count
            if len(changes.which) < _SHOWN:
                changes.which.add(character)

    def _is_known(self, character: str) -> bool:
        """Whether a character by itself has tokens for all of it."""
        known = self._known.get(character)
        if known is None:
            if self._byte_level:
                known = self._words.issuperset(_byte_symbols(character))
            else:
                known = bool(self._tokenizer.encode(character, add_special_tokens=False).ids)
            self._known[character] = known
        return known


def _spans(encoding: Encoding) -> Spans:
    offsets = encoding.offsets
    places = np.fromiter(chain.from_iterable(offsets), np.int64, 2 * len(offsets)).reshape(-1, 2)
    return Spans(np.asarray(encoding.ids, np.int64), places[:, 0], places[:, 1])


def _words(content: dict[str, Any]) -> set[str]:
    vocab = content["model"].get("vocab", ())
    return set(vocab) if isinstance(vocab, dict) else {entry[0] for entry in vocab}


def _is_byte_level(content: dict[str, Any]) -> bool:
    parts = json.dumps([content.get("pre_tokenizer"), content.get("normalizer")])
    return '"ByteLevel"' in parts


def _byte_symbols(text: str) -> str:
    """What byte-level vocabularies write for the bytes of a text."""
    from tokenizers import pre_tokenizers

    plain = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return "".join(part for part, _ in plain.pre_tokenize_str(text))


def _has_every_byte(content: dict[str, Any]) -> bool:
    """Whether a tokenizer has a token for each byte, so that no character is lost."""
    from tokenizers import pre_tokenizers

    words = _words(content)
    if content["model"].get("byte_fallback"):
        return all(f"<0x{byte:02X}>" in words for byte in range(256))
    return _is_byte_level(content) and words.issuperset(pre_tokenizers.ByteLevel.alphabet())
