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

NGRAM = 3  # tokens that have to recur for a guess
LONG_MATCH = 8  # as many recurring tokens make a guess likely
MAX_GUESSES = 16  # tokens a pass
_FADE = 0.8  # weight of the guesses before, at each new one


class NgramIndex:
    """Where each run of `NGRAM` tokens last occurred in a growing text."""

    def __init__(self, tokens: Sequence[int] = ()) -> None:
        self.tokens: list[int] = []
        self._last: dict[tuple[int, ...], int] = {}
        for token in tokens:
            self.append(token)

    def append(self, token: int) -> None:
        """Adds a token; the run that ends before it can now be continued by it."""
        if len(self.tokens) >= NGRAM:
            self._last[tuple(self.tokens[-NGRAM:])] = len(self.tokens)
        self.tokens.append(token)

    def find(self, ending: Sequence[int]) -> int | None:
        """The index that followed the newest occurrence of these `NGRAM` tokens."""
        return self._last.get(tuple(ending))


class NgramSpeculator:
    """Guesses for one text: its shared prefix, then its own tokens.

    How many to guess follows from how often guesses held: guessing k tokens pays while the chance
    that the k-th holds is above what a token more costs.
    """

    def __init__(self, prefix: NgramIndex, suffix: Sequence[int]) -> None:
        self._prefix = prefix
        self._text = NgramIndex((*prefix.tokens[-NGRAM:], *suffix))
        self._accepted = self._tried = 0.0

    def append(self, token: int) -> None:
        """Adds a token of the text."""
        self._text.append(token)

    def learn(self, guessed: int, accepted: int) -> None:
        """Learns that of this many guesses the first `accepted` were right."""
        self._accepted = _FADE * self._accepted + accepted
        self._tried = _FADE * self._tried + min(guessed, accepted + 1)

    def guess(self, cost: float, limit: int, min_accepted: float = 0.0) -> list[int]:
        """What may come next; nothing when nothing recurs.

        Args:
            cost: What one more token in a pass costs, as a share of what a pass costs a row.
            limit: The most tokens.
            min_accepted: Fewer that hold, on average, are not worth guessing at all.
        """
        ending = self._text.tokens[-NGRAM:]
        for index in (self._text, self._prefix):
            at = index.find(ending)
            if at is not None:
                chance = self._chance(self._match_length(index.tokens, at))
                count = min(limit, MAX_GUESSES, int(math.log(cost) / math.log(chance)))
                accepted = sum(chance**k for k in range(1, count + 1))
                return index.tokens[at : at + count] if accepted >= min_accepted else []
        return []

    def _match_length(self, tokens: Sequence[int], at: int) -> int:
        """How many tokens before `at` are those at the end of the text, up to `LONG_MATCH`."""
        text = self._text.tokens
        most = min(at, len(text), LONG_MATCH)
        return next((n for n in range(most) if tokens[at - 1 - n] != text[-1 - n]), most)

    def _chance(self, match_length: int) -> float:
        """That a guessed token holds when those before it do."""
        chance = (self._accepted + 1) / (self._tried + 2)
        return max(chance, 0.9) if match_length >= LONG_MATCH else chance
