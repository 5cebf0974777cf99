"""Generation over a shared prefix: rows are decoded together, retired when done, and replaced.

The prefix's keys and values are computed once and never copied; a row keeps only its own. As soon
as a row has stopped, the next prompt takes its place, so passes stay full until prompts run out.
Greedy rows are given guesses (`speculation`) to confirm, several tokens a pass where they hold.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from .attention import KeyValue, Pass
from .checkpoint_lm import Stopped, Tokens
from .kv_cache import RowCaches
from .passes import PackedModel
from .sampling import Sampling
from .speculation import NgramIndex, NgramSpeculator

# how many tokens' worth of time reading the weights takes, on a CPU and elsewhere
_READING_CPU, _READING_DEVICE = 32, 256
# one token is a product of a matrix and a vector, which costs half of one of two matrices
_MIN_ACCEPTED_ALONE = 1.3


@dataclass
class Continuation:
    """One text in the making: its prompt behind the prefix, and the tokens so far.

    `guessed` are the tokens that the coming pass may confirm.
    """

    suffix: Tokens
    generator: torch.Generator
    tokens: list[int] = field(default_factory=list)
    guessed: list[int] = field(default_factory=list)
    speculator: NgramSpeculator | None = None


class Decoder:
    """Continues many prompts that begin with one prefix.

    Args:
        model: What computes the passes.
        prefix: Keys and values of the shared tokens, None where there are none.
        shared: The shared tokens.
        sampling: How tokens are chosen.
        max_new_tokens: The most tokens of a continuation.
        max_rows: The most rows decoded at a time.
        stopped: Says of the tokens so far whether they are the last.
    """

    def __init__(
        self,
        model: PackedModel,
        prefix: Sequence[KeyValue] | None,
        shared: Tokens,
        *,
        sampling: Sampling,
        max_new_tokens: int,
        max_rows: int,
        stopped: Stopped,
    ) -> None:
        self._model = model
        self._on_cpu = model.device.type == "cpu"
        self._prefix, self._depth = prefix, len(shared)
        self._prefix_index = NgramIndex(shared)
        self._sampling, self._max_new_tokens, self._stopped = sampling, max_new_tokens, stopped
        self._caches = RowCaches(max_rows, padded=not self._on_cpu)
        self._rows: list[Continuation] = []

    def run(self, continuations: Sequence[Continuation]) -> None:
        """Fills every one's `tokens`. Long prompts come first, as they take longest."""
        queue = deque(sorted(continuations, key=lambda row: -len(row.suffix)))
        while queue or self._rows:
            if queue and len(self._rows) < self._caches.places:
                self._admit(queue)
            else:
                self._step()

    def _admit(self, queue: deque[Continuation]) -> None:
        """Computes as many waiting prompts as there are places and tokens for, in one pass."""
        batch: list[Continuation] = []
        size = 0
        free = self._caches.places - len(self._rows)
        while queue and len(batch) < free:
            if batch and size + len(queue[0].suffix) > self._model.pass_tokens:
                break
            batch.append(queue.popleft())
            size += len(batch[-1].suffix)
        logits, kept, spans = self._model.read_prompts(
            [row.suffix for row in batch], self._prefix, self._depth
        )
        first = len(self._rows)
        self._caches.add(kept, spans)
        self._rows += batch
        for row in batch:
            if self._sampling.temperature == 0.0:
                row.speculator = NgramSpeculator(self._prefix_index, row.suffix)
        self._append_chosen(range(first, len(self._rows)), logits, [1] * len(batch))

    def _step(self) -> None:
        """At least one more token for every row."""
        self._guess()
        counts = [1 + len(row.guessed) for row in self._rows]
        self._caches.advance(counts)
        tokens = [token for row in self._rows for token in (row.tokens[-1], *row.guessed)]
        positions = [
            self._depth + length - count + i
            for length, count in zip(self._caches.lengths, counts, strict=True)
            for i in range(count)
        ]
        step = Pass(self._caches, self._prefix)
        logits = self._model.forward(tokens, positions, step, range(len(tokens)))
        self._append_chosen(range(len(self._rows)), logits, counts)

    def _guess(self) -> None:
        rows = len(self._rows)
        cost = rows / (rows + (_READING_CPU if self._on_cpu else _READING_DEVICE))
        min_accepted = _MIN_ACCEPTED_ALONE if self._on_cpu and rows == 1 else 0.0
        for row in self._rows:
            if row.speculator is not None:
                limit = self._max_new_tokens - len(row.tokens) - 1
                row.guessed = row.speculator.guess(cost, limit, min_accepted)

    def _append_chosen(
        self, places: Sequence[int], logits: torch.Tensor, counts: Sequence[int]
    ) -> None:
        """Appends what the pass says of each row and retires the rows that are done."""
        rows = [self._rows[place] for place in places]
        generators = [row.generator for row, n in zip(rows, counts, strict=True) for _ in range(n)]
        chosen = iter(self._sampling.choose(logits, generators))
        done: list[int] = []
        for place, row, count in zip(places, rows, counts, strict=True):
            following = [next(chosen) for _ in range(count)]
            accepted = _accepted(row.guessed, following)
            if row.speculator is not None and row.guessed:
                row.speculator.learn(len(row.guessed), accepted)
            self._caches.take_back(place, len(row.guessed) - accepted)
            if self._append(row, following[: accepted + 1]):
                done.append(place)
            row.guessed = []
        for place in reversed(done):
            self._caches.remove(place)
            last = self._rows.pop()
            if place < len(self._rows):
                self._rows[place] = last

    def _append(self, row: Continuation, tokens: Sequence[int]) -> bool:
        """Whether the text is done with one of these tokens; those after it are left out."""
        for token in tokens:
            row.tokens.append(token)
            if row.speculator is not None:
                row.speculator.append(token)
            if len(row.tokens) >= self._max_new_tokens or self._stopped(row.tokens):
                return True
        return False


def _accepted(guessed: Sequence[int], following: Sequence[int]) -> int:
    """How many of the first guesses are what the model says itself."""
    pairs = enumerate(zip(guessed, following, strict=False))
    return next((i for i, (guess, token) in pairs if guess != token), len(guessed))
