"""What repeated tokens are worth (Muennighoff et al. 2023, arXiv 2305.16264, equation 5)."""

from __future__ import annotations

import numpy as np

from .arrays import Array

R_STAR = 15.39
"""Repetition's half-life in epochs."""


def effective(drawn: Array, unique: Array) -> Array:
    """Worth of ``drawn`` tokens in unique ones.

    ``U + U R* (1 - exp(-(D/U - 1)/R*))`` past an epoch.
    """
    repeats = np.maximum(drawn / unique - 1, 0)
    return np.where(drawn <= unique, drawn, unique * (1 + R_STAR * -np.expm1(-repeats / R_STAR)))


def effective_slope(drawn: Array, unique: Array) -> Array:
    """What one more token is worth after ``drawn``: the derivative of ``effective``."""
    return np.asarray(np.exp(-np.maximum(drawn / unique - 1, 0) / R_STAR))
