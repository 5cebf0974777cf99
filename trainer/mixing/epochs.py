"""Epochs of a source that may grow while it is trained on.

A source's draws are numbered from 0 over the whole run. An epoch is one pass over its samples, in
a pseudo-random order of its own (:mod:`permutation`). A source that was extended from some sample
of the run on keeps its old size until the epoch that is running by then ends, so that no sample is
lost or repeated within an epoch; every later epoch has the new size. The stretches of equal size
are its *versions*: a handful, so that a draw finds its epoch in closed form.
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
    histories: dict[str, History] = {}
    for name, size in sizes.items():
        history = ((0, size),) if isinstance(size, int) else tuple((a, b) for a, b in size)
        if not history:
            raise ValueError(f"source {name!r} has no size")
        for _, samples in history:
            if not 0 < samples < _LIMIT:
                raise ValueError(f"source {name!r} has {samples} samples: it needs at least 1")
        for (before, small), (after, large) in pairwise(history):
            if after < before or large < small:
                raise ValueError(
                    f"source {name!r} goes from {small} samples (from sample {before}) to {large} "
                    f"(from sample {after}): a source only grows"
                )
        histories[name] = history
    return histories


def versions_of(history: History, drawn: Mapping[int, int]) -> SourceVersions:
    """The versions of a source.

    Args:
        history: its sizes.
        drawn: its draws before each of the history's later samples.
    """
    versions = [SourceVersion(0, 0, history[0][1])]
    for sample, size in history[1:]:
        last = versions[-1]
        epochs = max(0, -(-(drawn[sample] - last.first) // last.size))  # begun by then: they end
        version = SourceVersion(last.first + epochs * last.size, last.epoch + epochs, size)
        if version.first == last.first:
            versions.pop()  # no epoch of that size has begun
        if version.epoch * version.size >= _LIMIT:
            raise ValueError(
                f"a source grown to {size} samples after {version.epoch} epochs: too many"
            )
        versions.append(version)
    return tuple(versions)


def passes(versions: SourceVersions, drawn: int) -> float:
    """Epochs after so many draws: whole ones at their own sizes, and part of the running one."""
    version = versions[max(0, bisect_right(versions, drawn, key=lambda v: v.first) - 1)]
    return version.epoch + (drawn - version.first) / version.size


def epochs_of(versions: SourceVersions, draws: Ints) -> Ints:
    """The epoch that each draw of a source is of."""
    firsts = np.array([version.first for version in versions], np.int64)
    index = np.searchsorted(firsts, draws, side="right") - 1
    sizes = np.array([version.size for version in versions], np.int64)
    before = np.array([version.epoch for version in versions], np.int64)
    return np.asarray(before[index] + (draws - firsts[index]) // sizes[index], np.int64)


class GrowingSource:
    """Samples by draw number where some sources have grown; called as `Permutations` are.

    Args:
        versions: of every source by name, in the order that `source` numbers them.
        seed: the run's seed.
    """

    def __init__(self, versions: Mapping[str, SourceVersions], seed: int) -> None:
        first = {name: stretches[0].size for name, stretches in versions.items()}
        self._plain = Permutations(first, seed)
        self._later: list[tuple[int, Ints, list[tuple[Permutations, int]]]] = []
        for index, (name, (_, *later)) in enumerate(versions.items()):
            if later:
                firsts = np.array([version.first for version in later], np.int64)
                # a draw stands where a source of the version's size would have it in that epoch
                shifts = [version.epoch * version.size - version.first for version in later]
                permutations = [Permutations({name: version.size}, seed) for version in later]
                self._later.append((index, firsts, list(zip(permutations, shifts, strict=True))))

    def __call__(self, source: Ints, draw: Ints) -> Ints:
        """Samples at these draws of these sources, element by element."""
        samples = self._plain(source, draw)
        for index, firsts, permutations in self._later:
            here = np.flatnonzero(source == index)
            version = np.searchsorted(firsts, draw[here], side="right")
            for number in np.unique(version[version > 0]):
                permute, shift = permutations[number - 1]
                places = here[version == number]
                samples[places] = permute(np.zeros_like(places), draw[places] + shift)
        return samples

    def consecutive(self, first: Ints, counts: Ints) -> Ints:
        """See :meth:`Permutations.consecutive`."""
        source = np.repeat(np.arange(counts.size), counts)
        shift = np.repeat(first - (np.cumsum(counts) - counts), counts)
        return self(source, np.arange(source.size) + shift)
