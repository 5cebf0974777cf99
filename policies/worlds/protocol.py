"""What a world has to offer, and what it may."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable


@dataclass(frozen=True)
class WorldSource:
    """A source of a world: its unique tokens and its tags."""

    unique_tokens: int
    tags: tuple[str, ...] = ()
    standby: bool = False


@runtime_checkable
class World(Protocol):
    """A run that can be simulated: it takes tokens of a mixture and answers with scores.

    ``sources`` are known from construction, by name; ``benchmarks`` the names that are scored. A
    score is a loss (lower is better), in bits per byte unless the world says otherwise.

    A world may also have: ``truth() -> {benchmark: value}``, the scores without noise, by which a
    policy is then judged; ``optimum() -> {source: share}``, the best constant mixture that respects
    ``max_epochs``, or its mean loss at the end as a number; ``budget`` (tokens of the whole run)
    and ``segments`` (evaluations in it); ``max_epochs``; ``phase() -> "warmup" | "stable" |
    "decay"``; ``losses() -> {source: training loss}``; ``delay``, the segments that a score comes
    late; ``higher_is_better``, the names of the benchmarks that are no losses.
    """

    sources: Mapping[str, WorldSource]
    benchmarks: Sequence[str]

    def reset(self, seed: int) -> None:
        """Begin again: everything random is drawn from the seed, noise included."""
        ...

    def advance(self, weights: Mapping[str, float], tokens: int) -> None:
        """Train on so many tokens of this mixture."""
        ...

    def evaluate(self) -> Mapping[str, tuple[float, float]]:
        """Benchmark to (value, standard error) now. One that is missing is absent."""
        ...
