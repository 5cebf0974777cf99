"""Epochs of a source that may grow while it is trained on.

A source's draws are numbered from 0 over the whole run. An epoch is one pass over its samples, in
a pseudo-random order of its own (:mod:`permutation`). A source that was extended from some sample
of the run on keeps its old size until the epoch that is running by then ends, so that no sample is
lost or repeated within an epoch; every later epoch has the new size. The stretches of equal size
are its *eras*: a handful, so that a draw finds its epoch in closed form.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from .permutation import Permutations

Ints = npt.NDArray[np.int64]

History = tuple[tuple[int, int], ...]
"""(sample of the run from which, size in samples); the first holds from the beginning."""

_LIMIT = 2**62


@dataclass(frozen=True)
class SourceVersion:
    """From draw `first` on, which begins epoch `epoch`, an epoch has `size` draws."""

    first: int
    epoch: int
    size: int


SourceVersions = tuple[SourceVersion, ...]


def histories_of(sizes: Mapping[str, int | Sequence[tuple[int, int]]]) -> dict[str, History]:
    """Sizes as histories, checked.

    Raises:
        ValueError: a source without a sample, too large, or whose history goes back.
    """
    found: dict[str, History] = {}
    for name, given in sizes.items():
        history = ((0, given),) if isinstance(given, int) else tuple((a, b) for a, b in given)
        if not history:
            raise ValueError(f"source {name!r} has no size")
        for _, size in history:
            if not 0 < size < _LIMIT:
                raise ValueError(f"source {name!r} has {size} samples: it needs at least 1")
        for (before, small), (after, large) in pairwise(history):
            if after < before or large < small:
                raise ValueError(
                    f"source {name!r} goes from {small} samples (from sample {before}) to {large} "
                    f"(from sample {after}): a source only grows"
                )
        found[name] = history
    return found


def versions_of(history: History, drawn: Mapping[int, int]) -> SourceVersions:
    """The eras of a source.

    Args:
        history: its sizes.
        drawn: its draws before each of the history's later samples.
    """
    eras = [SourceVersion(0, 0, history[0][1])]
    for sample, size in history[1:]:
        last = eras[-1]
        epochs = max(0, -(-(drawn[sample] - last.first) // last.size))  # begun by then: they end
        era = SourceVersion(last.first + epochs * last.size, last.epoch + epochs, size)
        if era.first == last.first:
            eras.pop()  # no epoch of that size has begun
        if era.epoch * era.size >= _LIMIT:
            raise ValueError(f"a source grown to {size} samples after {era.epoch} epochs: too many")
        eras.append(era)
    return tuple(eras)


def passes(eras: SourceVersions, drawn: int) -> float:
    """Epochs after so many draws: whole ones at their own sizes, and part of the running one."""
    era = eras[max(0, bisect_right(eras, drawn, key=lambda one: one.first) - 1)]
    return era.epoch + (drawn - era.first) / era.size


def epochs_of(eras: SourceVersions, draws: Ints) -> Ints:
    """The epoch that each draw of a source is of."""
    firsts = np.array([era.first for era in eras], np.int64)
    era = np.searchsorted(firsts, draws, side="right") - 1
    sizes = np.array([era.size for era in eras], np.int64)
    before = np.array([era.epoch for era in eras], np.int64)
    return np.asarray(before[era] + (draws - firsts[era]) // sizes[era], np.int64)


class GrowingSource:
    """Samples by draw number where some sources have grown; called as `Permutations` are.

    Args:
        eras: of every source by name, in the order that `source` numbers them.
        seed: the run's seed.
    """

    def __init__(self, eras: Mapping[str, SourceVersions], seed: int) -> None:
        self._plain = Permutations({name: own[0].size for name, own in eras.items()}, seed)
        self._later: list[tuple[int, Ints, list[tuple[Permutations, int]]]] = []
        for index, (name, own) in enumerate(eras.items()):
            if len(own) > 1:
                firsts = np.array([era.first for era in own[1:]], np.int64)
                # draw d of an era stands where a source of that size would have it in that epoch
                moved = [
                    (Permutations({name: era.size}, seed), era.epoch * era.size - era.first)
                    for era in own[1:]
                ]
                self._later.append((index, firsts, moved))

    def __call__(self, source: Ints, draw: Ints) -> Ints:
        """Samples at these draws of these sources, element by element."""
        found = self._plain(source, draw)
        for index, firsts, moved in self._later:
            here = np.flatnonzero(source == index)
            era = np.searchsorted(firsts, draw[here], side="right")
            for number in np.unique(era[era > 0]):
                permute, shift = moved[number - 1]
                mine = here[era == number]
                found[mine] = permute(np.zeros_like(mine), draw[mine] + shift)
        return found

    def consecutive(self, first: Ints, counts: Ints) -> Ints:
        """See :meth:`Permutations.consecutive`."""
        source = np.repeat(np.arange(counts.size), counts)
        shift = np.repeat(first - (np.cumsum(counts) - counts), counts)
        return self(source, np.arange(source.size) + shift)
