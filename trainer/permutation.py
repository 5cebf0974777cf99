"""Pseudo-random order of the samples within a source: position to sample, without memory.

Each epoch of each source is a permutation keyed by seed, source name and epoch, so that adding or
retiring a source moves nobody else. Over the smallest power of two that holds the source, 2^k, a
round is ``x = (m x + a) mod 2^k`` with an odd m, then ``x ^= x >> ceil(k / 2)``: both can be
undone, so any number of rounds permutes. m and a are new in every round, source and epoch. Values
outside the source are walked on until they fall inside (Black and Rogaway 2002, "Ciphers with
arbitrary finite domains"): less than once more on average. Only the low k bits count, so words of
32 bits give the same order as words of 64.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
_Words = npt.NDArray[Any]  # uint32 or uint64

_ROUNDS = 6
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))


def _mix(words: _Words) -> _Words:
    """Finaliser of SplitMix64 (Steele, Lea and Flood 2014): every bit depends on every bit."""
    words = (words ^ (words >> np.uint64(30))) * _MIX[0]
    words = (words ^ (words >> np.uint64(27))) * _MIX[1]
    return words ^ (words >> np.uint64(31))


def _key(seed: int, name: str) -> int:
    text = f"mixloop/permutation/2\0{seed}\0{name}".encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")


class Permutations:
    """The permutations of all sources of a run.

    Args:
        sizes: samples of each source, at least 1 and below 2^62.
        seed: the run's seed.
    """

    def __init__(self, sizes: Mapping[str, int], seed: int) -> None:
        bits = [(size - 1).bit_length() for size in sizes.values()]
        self._word: npt.DTypeLike = np.uint32 if max(bits, default=0) <= 32 else np.uint64
        self._sizes = np.array(list(sizes.values()), np.int64)
        self._keys = np.array([_key(seed, name) for name in sizes], np.uint64)
        masks = np.array([(1 << k) - 1 for k in bits], np.uint64)
        shifts = np.array([max(1, (k + 1) // 2) for k in bits], np.uint64)
        last = (self._sizes - 1).astype(np.uint64)
        # by source: the last sample (the size itself may need one bit more), mask, shift
        self._shape = np.stack((last, masks, shifts)).astype(self._word)

    def __call__(self, source: Ints, position: Ints) -> Ints:
        """Samples at `position` (draws of a source since the run's start), element by element."""
        epoch, value = np.divmod(position, self._sizes[source])
        new = np.ones(source.size, np.bool_)
        new[1:] = (source[1:] != source[:-1]) | (epoch[1:] != epoch[:-1])
        first = np.flatnonzero(new)
        lengths = np.diff(first, append=source.size)
        return self._permute(value.astype(self._word), source[first], epoch[first], lengths)

    def consecutive(self, first: Ints, counts: Ints) -> Ints:
        """Samples at `counts` draws of each source from draw `first` on, source after source.

        Args:
            first: draw of each source to begin with, shape [sources].
            counts: how many draws of each, shape [sources].

        Returns:
            Shape [sum of `counts`], the same as for every draw by itself, but quicker.
        """
        source = np.flatnonzero(counts)
        epoch, value = np.divmod(first[source], self._sizes[source])
        epochs = (value + counts[source] - 1) // self._sizes[source] + 1
        source, value = np.repeat(source, epochs), np.repeat(value, epochs)
        later = np.arange(source.size) - np.repeat(np.cumsum(epochs) - epochs, epochs)
        size = self._sizes[source]
        begin = np.maximum(later * size - value, 0)  # draws of this source before this run of it
        lengths = np.minimum(later * size + (size - value), counts[source]) - begin
        total = int(lengths.sum())
        at = np.where(later > 0, 0, value) - (np.cumsum(lengths) - lengths)
        values = np.repeat(at.astype(self._word), lengths)
        values += np.arange(total, dtype=self._word)
        return self._permute(values, source, np.repeat(epoch, epochs) + later, lengths)

    def _permute(self, value: _Words, source: Ints, epoch: Ints, lengths: Ints) -> Ints:
        """Permute runs of values, each of one source and epoch, in place."""
        shape = self._shape[:, source]
        rounds = self._rounds(source, epoch)
        last, mask, shift = (np.repeat(part, lengths) for part in shape)
        _encipher(value, mask, shift, rounds, lengths)
        outside = np.flatnonzero(value > last)
        if outside.size:
            run = np.repeat(np.arange(source.size), lengths)[outside]
            beyond = value[outside]
            while outside.size:
                last, mask, shift = shape[:, run]
                _encipher(beyond, mask, shift, rounds[:, run], None)
                value[outside] = beyond
                still = np.flatnonzero(beyond > last)
                outside, run, beyond = outside[still], run[still], beyond[still]
        return value.astype(np.int64)

    def _rounds(self, source: Ints, epoch: Ints) -> _Words:
        """Multiplier and summand of every round, shape [2 rounds, runs]."""
        state = _mix(self._keys[source] + epoch.astype(np.uint64) * _GOLDEN)
        steps = np.arange(1, 2 * _ROUNDS + 1, dtype=np.uint64)[:, None] * _GOLDEN
        words = _mix(state + steps)
        words[::2] |= np.uint64(1)
        return words.astype(self._word)


def _encipher(
    value: _Words, mask: _Words, shift: _Words, rounds: _Words, lengths: Ints | None
) -> None:
    """The rounds, in place; `rounds` [2 rounds, elements], or runs of these `lengths`."""
    spare = np.empty_like(value)
    for number in range(0, 2 * _ROUNDS, 2):
        times, plus = rounds[number], rounds[number + 1]
        if lengths is not None:
            times, plus = np.repeat(times, lengths), np.repeat(plus, lengths)
        value *= times
        value += plus
        value &= mask
        np.right_shift(value, shift, out=spare)
        value ^= spare
