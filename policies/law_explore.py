"""Exploring mixtures: balanced about a centre, so that looking around costs no drift."""

from __future__ import annotations

import numpy as np

from .law_data import Array

LEAST = 0.02  # share, of all sources together, that a tilt starts from where the centre has none


def contrast(turn: int, live: Array, seed: int) -> Array:
    """The turn's contrast between the live sources, +1 or -1, and 0 for the others, (k,).

    Rows of a Hadamard matrix, two by two, each then with its opposite: h1, h2, -h1, -h2, h3, …
    Neighbours are orthogonal, so that a step between them is no longer than one from the centre,
    and every four of them cancel (a fold-over screening design, Plackett & Burman 1946).
    """
    from scipy.linalg import hadamard

    many = int(live.sum())
    size = 4
    while size <= many:
        size *= 2
    drawing = np.random.default_rng([seed % 2**32, many])
    columns = drawing.permutation(size)[:many]
    rows = 1 + drawing.permutation(size - 1)
    row = rows[(2 * (turn // 4) + turn % 2) % len(rows)]
    found = np.zeros(len(live))
    found[live] = hadamard(size)[row][columns] * (1 if turn % 4 < 2 else -1)
    return found


def tilted(centre: Array, live: Array, direction: Array, reach: float) -> Array:
    """``centre`` tilted along a contrast, in logarithms, by ``reach`` in total variation."""
    base = np.where(live, np.maximum(centre, LEAST / max(live.sum(), 1)), 0.0)
    low, high = 0.0, 8.0
    for _ in range(40):
        middle = (low + high) / 2
        away = np.abs(_tilt(base, direction, middle) - centre).sum() / 2
        low, high = (middle, high) if away < reach else (low, middle)
    return _tilt(base, direction, low)


def _tilt(base: Array, direction: Array, much: float) -> Array:
    found = base * np.exp(much * direction)
    return np.asarray(found / found.sum())
