"""Generation over a shared prefix: rows are decoded together, retired when done, and replaced.

The prefix's keys and values are computed once and never copied; a row keeps only its own. As soon
as a row has stopped, the next prompt takes its place, so passes stay full until prompts run out.
Greedy rows are given guesses (`drafting`) to confirm, several tokens a pass where they hold.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch

from .attention import KeyValue, Pass
from .kv_cache import RowCaches
from .sampling import Sampling
from .speculation import NgramIndex, NgramSpeculator

Tokens = tuple[int, ...]


# how many tokens' worth of time reading the weights takes, on a CPU and elsewhere
_READING, _READING_ELSEWHERE = 32, 256
# one token is a product of a matrix and a vector, which costs half of one of two matrices
_ALONE = 1.3


@dataclass
class Text:
    """One continuation in the making: its prompt behind the prefix, and the tokens so far.

    `guessed` are the tokens that the coming pass may confirm.
    """

    suffix: Tokens
    generator: torch.Generator
    made: list[int] = field(default_factory=list)
    guessed: list[int] = field(default_factory=list)
    draft: NgramSpeculator | None = None


class Forward(Protocol):
    """What a decoder asks of the model; see :class:`.SharedPrefixLM`."""

    pass_tokens: int

    @property
    def device(self) -> torch.device: ...

    def read_prompts(
        self, prompts: Sequence[Sequence[int]], prefix: Sequence[KeyValue] | None, depth: int
    ) -> tuple[torch.Tensor, list[KeyValue], list[tuple[int, int]]]: ...

    def forward(
        self, tokens: Sequence[int], positions: Sequence[int], one: Pass, wanted: Sequence[int]
    ) -> torch.Tensor: ...


class Decoder:
    """Continues many prompts that begin with one prefix.

    `shared` are that prefix's tokens, `room` is the most new tokens, `places` how many rows are
    decoded at a time, `stopped` says of the tokens so far whether they are the last.
    """

    def __init__(
        self,
        lm: Forward,
        prefix: Sequence[KeyValue] | None,
        shared: Tokens,
        *,
        sampling: Sampling,
        room: int,
        places: int,
        stopped: Callable[[list[int]], bool],
    ) -> None:
        self._lm = lm
        self._prefix, self._depth = prefix, len(shared)
        self._seen = NgramIndex(shared)
        self._sampling, self._room, self._stopped = sampling, room, stopped
        self._caches = RowCaches(places, together=lm.device.type != "cpu")
        self._rows: list[Text] = []

    def run(self, texts: Sequence[Text]) -> None:
        """Fills every text's `made`. Long prompts come first, as they take longest."""
        queue = deque(sorted(texts, key=lambda text: -len(text.suffix)))
        while queue or self._rows:
            if queue and len(self._rows) < self._caches.places:
                self._admit(queue)
            elif self._rows:
                self._step()

    def _admit(self, queue: deque[Text]) -> None:
        """Computes as many waiting prompts as there are places and tokens for, in one pass."""
        batch: list[Text] = []
        size = 0
        free = self._caches.places - len(self._rows)
        while queue and len(batch) < free:
            if batch and size + len(queue[0].suffix) > self._lm.pass_tokens:
                break
            batch.append(queue.popleft())
            size += len(batch[-1].suffix)
        logits, kept, spans = self._lm.read_prompts(
            [text.suffix for text in batch], self._prefix, self._depth
        )
        first = len(self._rows)
        self._caches.add(kept, spans)
        self._rows += batch
        for text in batch:
            if self._sampling.temperature == 0.0:
                text.draft = NgramSpeculator(self._seen, text.suffix)
        self._take(range(first, len(self._rows)), logits, [1] * len(batch))

    def _step(self) -> None:
        """At least one more token for every row."""
        self._guess()
        counts = [1 + len(row.guessed) for row in self._rows]
        self._caches.advance(counts)
        tokens = [token for row in self._rows for token in (row.made[-1], *row.guessed)]
        positions = [
            self._depth + length - count + i
            for length, count in zip(self._caches.lengths, counts, strict=True)
            for i in range(count)
        ]
        one = Pass(self._caches, self._prefix)
        logits = self._lm.forward(tokens, positions, one, list(range(len(tokens))))
        self._take(range(len(self._rows)), logits, counts)

    def _guess(self) -> None:
        on_cpu = self._lm.device.type == "cpu"
        rows = len(self._rows)
        cost = rows / (rows + (_READING if on_cpu else _READING_ELSEWHERE))
        least = _ALONE if on_cpu and rows == 1 else 0.0
        for row in self._rows:
            room = self._room - len(row.made) - 1
            row.guessed = row.draft.guess(cost, room, least) if row.draft is not None else []

    def _take(self, places: Sequence[int], logits: torch.Tensor, counts: Sequence[int]) -> None:
        """Appends what the pass says of each row and retires the rows that are done."""
        rows = [self._rows[place] for place in places]
        generators = [row.generator for row, n in zip(rows, counts, strict=True) for _ in range(n)]
        said = iter(self._sampling.choose(logits, generators))
        done: list[int] = []
        for place, row, count in zip(places, rows, counts, strict=True):
            following = [next(said) for _ in range(count)]
            held = _held(row.guessed, following)
            if row.draft is not None and row.guessed:
                row.draft.judge(len(row.guessed), held)
            self._caches.forget(place, len(row.guessed) - held)
            if self._append(row, following[: held + 1]):
                done.append(place)
            row.guessed = []
        for place in reversed(done):
            self._caches.remove(place)
            last = self._rows.pop()
            if place < len(self._rows):
                self._rows[place] = last

    def _append(self, row: Text, tokens: Sequence[int]) -> bool:
        """Whether the text is done with one of these tokens; those after it are left out."""
        for token in tokens:
            row.made.append(token)
            if row.draft is not None:
                row.draft.append(token)
            if len(row.made) >= self._room or self._stopped(row.made):
                return True
        return False


def _held(guessed: Sequence[int], following: Sequence[int]) -> int:
    """How many of the first guesses are what the model says itself."""
    pairs = enumerate(zip(guessed, following, strict=False))
    return next((i for i, (guess, own) in pairs if guess != own), len(guessed))
