"""Guesses of what a text says next, taken from what it said before. Pure.

Greedy decoding reads the weights once a token; guessed tokens that a pass confirms cost a share of
one. The guess continues the last earlier place where the text's newest tokens occurred (prompt
lookup decoding, Saxena 2023; the check that keeps the text unchanged is that of Leviathan et al.
2023, arXiv 2211.17192, for greedy decoding). Small models repeat themselves and their prompts, so
many guesses hold.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

GRAM = 3  # tokens that have to recur for a guess
LONG = 8  # as many recurring tokens make a guess likely
MOST = 16  # guessed tokens a pass
_FADE = 0.8


class NgramIndex:
    """Where each run of `GRAM` tokens last occurred in a growing text."""

    def __init__(self, tokens: Sequence[int] = ()) -> None:
        self.tokens: list[int] = []
        self._last: dict[tuple[int, ...], int] = {}
        for token in tokens:
            self.append(token)

    def append(self, token: int) -> None:
        """Adds a token; the run that ends before it can now be continued by it."""
        if len(self.tokens) >= GRAM:
            self._last[tuple(self.tokens[-GRAM:])] = len(self.tokens)
        self.tokens.append(token)

    def find(self, ending: Sequence[int]) -> int | None:
        """The index that followed the newest occurrence of these `GRAM` tokens."""
        return self._last.get(tuple(ending))


class NgramSpeculator:
    """Guesses for one text: its shared prefix, then its own tokens.

    How many to guess follows from how often guesses held: guessing k tokens pays while the chance
    that the k-th holds is above what a token more costs.
    """

    def __init__(self, prefix: NgramIndex, suffix: Sequence[int]) -> None:
        self._prefix = prefix
        self._own = NgramIndex((*prefix.tokens[-GRAM:], *suffix))
        self._held = self._tried = 0.0

    def append(self, token: int) -> None:
        """Adds a token of the text."""
        self._own.append(token)

    def judge(self, guessed: int, held: int) -> None:
        """Learns that of this many guesses the first `held` were right."""
        self._held = _FADE * self._held + held
        self._tried = _FADE * self._tried + min(guessed, held + 1)

    def guess(self, cost: float, room: int, least: float = 0.0) -> list[int]:
        """What may come next: at most `room` tokens, none when nothing recurs.

        `cost` is what one more token in a pass costs, as a share of what a pass costs a row;
        fewer than `least` tokens that hold, on average, are not worth guessing at all.
        """
        ending = self._own.tokens[-GRAM:]
        for text in (self._own, self._prefix):
            at = text.find(ending)
            if at is not None:
                chance = self._chance(self._agrees(text.tokens, at))
                count = min(room, MOST, int(math.log(cost) / math.log(chance)))
                hold = sum(chance**k for k in range(1, count + 1))
                return text.tokens[at : at + count] if hold >= least else []
        return []

    def _agrees(self, tokens: Sequence[int], at: int) -> int:
        """How many tokens before `at` are those at the end of the text, up to `LONG`."""
        own = self._own.tokens
        most = min(at, len(own), LONG)
        return next((n for n in range(most) if tokens[at - 1 - n] != own[-1 - n]), most)

    def _chance(self, agrees: int) -> float:
        """That a guessed token holds when those before it do."""
        chance = (self._held + 1) / (self._tried + 2)
        return max(chance, 0.9) if agrees >= LONG else chance
