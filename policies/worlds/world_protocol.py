"""What a world has to offer, and what it may."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from mixloop.policies.interface import PolicyError

INFINITE = 10**15
"""Unique tokens of a source that no run exhausts."""


@dataclass(frozen=True)
class WorldSource:
    """A source of a world: its unique tokens and its tags."""

    unique_tokens: int
    tags: tuple[str, ...] = ()
    standby: bool = False


@runtime_checkable
class World(Protocol):
    """A run that can be simulated: it takes tokens of a mixture and answers with scores.

    ``sources`` are known from construction, by name: each a ``WorldSource``, its unique tokens as a
    number (None or infinity: more than any run reads), or ``{"unique_tokens": …, "tags": …}``.
    ``benchmarks`` are the names that are scored. A score is a loss (lower is better), in bits per
    byte unless the world says otherwise.

    A world may also have: ``truth() -> {benchmark: value}``, the scores without noise, by which a
    policy is then judged; ``optimum() -> {source: share}``, the best constant mixture that respects
    ``max_epochs``, or its mean loss at the end as a number; ``budget`` (tokens of the whole run)
    and ``segments`` (evaluations in it); ``max_epochs``; ``phase() -> "warmup" | "stable" |
    "decay"``; ``losses() -> {source: training loss}``; ``delay``, the segments that a score comes
    late; ``higher_is_better``, the names of the benchmarks that are no losses.

    One that can be experimented in has ``branch(weights, tokens, schedule) -> {benchmark: (value,
    standard error)}``, the scores of a copy that goes on from here for so many tokens (``schedule``
    as in an ``Experiment``), and may have ``merge(weights, tokens, part)``, those of the linear
    merge of one expert per source, trained on all their data (``"whole"``) or on its ``"first"`` or
    ``"second"`` half. Neither moves the world, and the same question has the same answer.
    """

    @property
    def sources(self) -> Mapping[str, Any]:
        """Name to size and tags."""
        ...

    @property
    def benchmarks(self) -> Sequence[str]:
        """The names that are scored."""
        ...

    def reset(self, seed: int) -> None:
        """Begin again: everything random is drawn from the seed, noise included."""
        ...

    def advance(self, weights: Mapping[str, float], tokens: int) -> None:
        """Train on so many tokens of this mixture."""
        ...

    def evaluate(self) -> Mapping[str, tuple[float, float]]:
        """Benchmark to (value, standard error) now. One that is missing is absent."""
        ...


def world_sources(world: Any) -> dict[str, WorldSource]:
    """The sources of a world, in whatever form it lists them.

    Raises:
        PolicyError: for one that says nothing about its size, or a size that is none.
    """
    listed = getattr(world, "sources", None)
    if not isinstance(listed, Mapping) or not listed:
        raise PolicyError(f"world {_name(world)}: sources must be a mapping of names; list some")
    return {str(name): _source(str(name), entry, world) for name, entry in listed.items()}


def _source(name: str, entry: Any, world: Any) -> WorldSource:
    if isinstance(entry, WorldSource):
        return entry
    if entry is None or isinstance(entry, int | float):
        return WorldSource(_size(name, entry, world))
    keys = ("unique_tokens", "tags", "standby")
    if not isinstance(entry, Mapping):
        entry = {key: getattr(entry, key) for key in keys if hasattr(entry, key)}
    if "unique_tokens" not in entry:
        raise PolicyError(f"world {_name(world)}: source {name!r} has no unique_tokens; add them")
    tags = entry.get("tags") or ()
    tags = (tags,) if isinstance(tags, str) else tuple(map(str, tags))
    size = _size(name, entry["unique_tokens"], world)
    return WorldSource(size, tags, bool(entry.get("standby", False)))


def _size(name: str, size: Any, world: Any) -> int:
    if size is None or size == math.inf:
        return INFINITE
    if isinstance(size, bool) or not isinstance(size, int | float) or not size >= 1:
        problem = f"source {name!r} has {size!r} unique tokens"
        raise PolicyError(f"world {_name(world)}: {problem}; give a number above 0, or None")
    return int(size)


def _name(world: Any) -> str:
    return type(world).__name__
