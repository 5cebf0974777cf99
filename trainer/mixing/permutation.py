"""Pseudo-random order of the samples within a source: position to sample, without memory.

Each epoch of each source is a permutation keyed by seed, source name and epoch, so that adding or
retiring a source moves nobody else. It is a Feistel network over rows and columns (Black and
Rogaway 2002, "Ciphers with arbitrary finite domains"): the columns are a power of two, about the
root of the source's size, and the rows as many as hold the source. A round adds a hash of the
column to the row, modulo the rows, or xors one of the row into the column. The hash is a
multiplication whose upper half is kept (Dietzfelbinger et al. 1997); its key is new in every
round, source and epoch. Few values lie outside the source; they are walked on until they fall
inside. Sources of up to 2^32 samples are permuted in words of 32 bits, larger ones of 64.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
_Words = npt.NDArray[Any]  # uint32 or uint64

_ROUNDS = 10  # with 8, sources of some thousand samples are told from chance
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))


def _mix(words: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Finaliser of SplitMix64 (Steele, Lea and Flood 2014): every bit depends on every bit."""
    words = (words ^ (words >> np.uint64(30))) * _MIX[0]
    words = (words ^ (words >> np.uint64(27))) * _MIX[1]
    return np.asarray(words ^ (words >> np.uint64(31)), np.uint64)


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
        self._sizes = np.array(list(sizes.values()), np.int64)
        self._keys = np.array([_key(seed, name) for name in sizes], np.uint64)
        self._wide = np.array([k > 32 for k in bits], np.bool_)
        columns = np.array([k // 2 for k in bits], np.uint64)
        last, unit = (self._sizes - 1).astype(np.uint64), np.uint64(1)
        # by source: the last sample (the size may need a bit more); rows; columns' bits and mask
        self._shape = np.stack((last, (last >> columns) + unit, columns, (unit << columns) - unit))

    def __call__(self, source: Ints, position: Ints) -> Ints:
        """Samples at `position` (draws of a source since the run's start), element by element."""
        epoch, value = np.divmod(position, self._sizes[source])
        new = np.ones(source.size, np.bool_)
        new[1:] = (source[1:] != source[:-1]) | (epoch[1:] != epoch[:-1])
        first = np.flatnonzero(new)
        lengths = np.diff(first, append=source.size)
        return self._permute(value.astype(np.uint64), source[first], epoch[first], lengths)

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
        word = np.uint64 if self._wide.any() else np.uint32
        values = np.repeat(at.astype(word), lengths)
        values += np.arange(total, dtype=word)
        return self._permute(values, source, np.repeat(epoch, epochs) + later, lengths)

    def _permute(self, value: _Words, source: Ints, epoch: Ints, lengths: Ints) -> Ints:
        """Permute runs of values, each of one source and epoch."""
        wide = self._wide[source]
        if not wide.any() or wide.all():
            return self._walk(value, source, epoch, lengths).astype(np.int64)
        result = np.empty(value.size, np.int64)
        for runs in (wide, ~wide):
            here = np.repeat(runs, lengths)
            result[here] = self._walk(value[here], source[runs], epoch[runs], lengths[runs])
        return result

    def _walk(self, value: _Words, source: Ints, epoch: Ints, lengths: Ints) -> _Words:
        """Permute runs of sources that are all wide, or all not."""
        word = np.uint64 if self._wide[source].any() else np.uint32
        last, *shape = self._shape[:, source].astype(word)
        keys = self._round_keys(source, epoch).astype(word)
        every = [np.repeat(part, lengths) for part in shape]
        each = (np.repeat(key, lengths) for key in keys)  # one after the other: they are long
        value = _encipher(value.astype(word, copy=False), every, each)
        outside = np.flatnonzero(value > np.repeat(last, lengths))
        beyond, run = value[outside], np.searchsorted(np.cumsum(lengths), outside, "right")
        while outside.size:
            few = [part.take(run) for part in shape]
            value[outside] = beyond = _encipher(beyond, few, iter(keys.take(run, axis=1)))
            still = np.flatnonzero(beyond > last.take(run))
            outside, beyond, run = outside[still], beyond[still], run[still]
        return value

    def _round_keys(self, source: Ints, epoch: Ints) -> _Words:
        """A key for every round of every run, shape [rounds, runs]."""
        state = _mix(self._keys[source] + epoch.astype(np.uint64) * _GOLDEN)
        steps = np.arange(1, _ROUNDS + 1, dtype=np.uint64)[:, None] * _GOLDEN
        return _mix(state + steps)


def _encipher(value: _Words, shape: list[_Words], keys: Iterator[_Words]) -> _Words:
    """The rounds.

    `shape` is each value's rows, columns' bits and mask, `keys` has its key for every round.
    """
    rows, bits, mask = shape
    word, width = value.dtype.type, value.dtype.itemsize * 8
    half, odd = word(width // 2), word(int(_GOLDEN) >> (64 - width) | 1)
    row, column = value >> bits, value & mask
    spare = np.empty_like(value)
    for _ in range(0, _ROUNDS, 2):
        np.bitwise_xor(row, next(keys), out=spare)
        spare *= odd
        spare >>= half
        spare &= mask
        column ^= spare
        np.bitwise_xor(column, next(keys), out=spare)
        spare *= odd
        spare >>= half
        spare *= rows
        spare >>= half
        row += spare
        np.subtract(row, rows, out=spare)
        np.minimum(row, spare, out=row)  # one too many rows; where not, the other is huge
    np.left_shift(row, bits, out=spare)
    spare |= column
    return spare
