"""What repeated tokens are worth (Muennighoff et al. 2305.16264, equation 5)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

R_STAR = 15.39
"""Repetition's half-life in epochs (Muennighoff et al. 2023, arXiv 2305.16264, eq. 5)."""


def effective(drawn: Array, unique: Array) -> Array:
    """Worth of ``drawn`` tokens in unique ones (Muennighoff et al. 2023, eq. 5)."""
    repeats = np.maximum(drawn / unique - 1, 0)
    return np.where(drawn <= unique, drawn, unique * (1 + R_STAR * -np.expm1(-repeats / R_STAR)))


def effective_slope(drawn: Array, unique: Array) -> Array:
    """The derivative of ``effective`` by ``drawn``."""
    return np.asarray(np.exp(-np.maximum(drawn / unique - 1, 0) / R_STAR))
