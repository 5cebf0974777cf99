"""A pseudo-random permutation of ``range(size)`` that is evaluated at an index, without a table.

A Feistel network is a permutation of pairs of half-words whatever its round function (Luby and
Rackoff 1988); indices that land outside the range walk on along their cycle until they are inside
(Black and Rogaway 2002, "Ciphers with arbitrary finite domains"). Light: numpy only.
"""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt

ROUNDS = 6

_Words = npt.NDArray[np.uint64]
_MIX = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))
_SHIFTS = (np.uint64(30), np.uint64(27), np.uint64(31))


def round_keys(seed: int, name: str, epoch: int) -> _Words:
    """The round keys of one source's epoch, shape [ROUNDS]: a hash of seed, name and epoch."""
    text = f"mixloop/permutation/1\0{seed}\0{epoch}\0{name}".encode()
    digest = hashlib.blake2b(text, digest_size=8 * ROUNDS).digest()
    return np.frombuffer(digest, dtype="<u8").astype(np.uint64)


def half_bits(size: int) -> int:
    """Bits of a half-word, so that two of them hold every index below ``size``."""
    return max(1, -(-max(1, size - 1).bit_length() // 2))


def permute(index: _Words, size: _Words, bits: _Words, keys: _Words) -> _Words:
    """Where each index goes.

    Args:
        index: shape [n], each below its ``size``.
        size: shape [n], the length of the permuted range of each.
        bits: shape [n], :func:`half_bits` of each size.
        keys: shape [ROUNDS, n], :func:`round_keys` of each.

    Returns:
        Shape [n]; for equal size and keys, distinct indices go to distinct places below size.
    """
    mask = (np.uint64(1) << bits) - np.uint64(1)
    moved = _feistel(index, bits, mask, keys)
    outside = np.flatnonzero(moved >= size)
    while outside.size:
        walked = _feistel(moved[outside], bits[outside], mask[outside], keys[:, outside])
        moved[outside] = walked
        outside = outside[walked >= size[outside]]
    return moved


def _feistel(value: _Words, bits: _Words, mask: _Words, keys: _Words) -> _Words:
    left, right = value >> bits, value & mask
    for key in keys:
        left, right = right, left ^ (_mix(right ^ key) & mask)
    return (left << bits) | right


def _mix(word: _Words) -> _Words:
    """The finaliser of SplitMix64 (Steele, Lea and Flood 2014): every bit moves every other."""
    word = (word ^ (word >> _SHIFTS[0])) * _MIX[0]
    word = (word ^ (word >> _SHIFTS[1])) * _MIX[1]
    return word ^ (word >> _SHIFTS[2])
