"""Pseudo-random order of the samples within a source: position to sample, without memory.

Each epoch of each source is a permutation keyed by seed, source name and epoch, so that adding or
retiring a source moves nobody else. It is a Feistel network over the product of two residue rings
(Black and Rogaway 2002, "Ciphers with arbitrary finite domains"), whose size is just above the
source's; values outside the source are walked on until they fall inside.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
_Words = npt.NDArray[np.uint64]

_ROUNDS = 8
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))
_HALF = np.uint64(32)


def _mix(words: _Words) -> _Words:
    """Finaliser of SplitMix64 (Steele, Lea and Flood 2014): every bit depends on every bit."""
    words = (words ^ (words >> np.uint64(30))) * _MIX[0]
    words = (words ^ (words >> np.uint64(27))) * _MIX[1]
    return words ^ (words >> np.uint64(31))


def _key(seed: int, name: str) -> int:
    text = f"mixloop/permutation/1\0{seed}\0{name}".encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")


def _advance(half: _Words, other: _Words, modulus: _Words, key: _Words) -> _Words:
    """One round: add a hash of the other half to this one, modulo its ring's size."""
    hashed = _mix(other + key) >> _HALF
    total = half + ((hashed * modulus) >> _HALF)
    return np.where(total >= modulus, total - modulus, total)


class Permutations:
    """The permutations of all sources of a run.

    Args:
        sizes: samples of each source, at least 1 and below 2^62.
        seed: the run's seed.
    """

    def __init__(self, sizes: Mapping[str, int], seed: int) -> None:
        rows = [math.isqrt(size - 1) + 1 for size in sizes.values()]
        columns = [-(-size // row) for size, row in zip(sizes.values(), rows, strict=True)]
        self._sizes = np.array(list(sizes.values()), np.uint64)
        self._rows = np.array(rows, np.uint64)
        self._columns = np.array(columns, np.uint64)
        self._keys = np.array([_key(seed, name) for name in sizes], np.uint64)

    def __call__(self, source: Ints, position: Ints) -> Ints:
        """Samples at `position` (draws of a source since the run's start), element by element."""
        size = self._sizes[source]
        epoch, value = (part.astype(np.uint64) for part in divmod(position, size))
        key = _mix(self._keys[source] + epoch * _GOLDEN)
        rows, columns = self._rows[source], self._columns[source]
        value = _encipher(value, rows, columns, key)
        outside = np.flatnonzero(value >= size)
        while outside.size:
            value[outside] = _encipher(
                value[outside], rows[outside], columns[outside], key[outside]
            )
            outside = outside[value[outside] >= size[outside]]
        return value.astype(np.int64)


def _encipher(value: _Words, rows: _Words, columns: _Words, key: _Words) -> _Words:
    """A permutation of range(rows * columns), element by element."""
    high, low = np.divmod(value, columns)
    for _ in range(_ROUNDS // 2):
        key = key + _GOLDEN
        high = _advance(high, low, rows, key)
        key = key + _GOLDEN
        low = _advance(low, high, columns, key)
    return high * columns + low
