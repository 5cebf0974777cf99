"""The simplex as a box, for optimisers that know only boxes: three parametrisations.

A point of the box [0, 1]^d becomes a mixture of k sources; ``encode`` goes back. ``bench/simplex``
compares them.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Kind = Literal["gammas", "sticks", "ratios"]

LEAST = 1e-9
WIDTH = 5.0  # log-ratios reach from -5 to 5


def dimensions(kind: Kind, k: int) -> int:
    """How many coordinates a mixture of k sources has."""
    return k if kind == "gammas" else k - 1


def decode(kind: Kind, box: Array) -> Array:
    """The mixture (k,) at a point of the box (d,).

    ``gammas``: independent exponentials ``-log u``, normalised (uniform over the simplex; Devroye
    1986, ch. XI.4). ``sticks``: each source takes a beta-distributed part of what the ones before
    left (uniform as well; Sethuraman 1994). ``ratios``: logarithms of the shares' ratios to the
    last source's (Aitchison 1982); the boundary is out of reach.
    """
    if kind == "gammas":
        drawn = -np.log(np.clip(box, LEAST, 1.0))
        total = drawn.sum()
        return np.asarray(drawn / total) if total > 0 else np.full(len(box), 1 / len(box))
    if kind == "sticks":
        after = np.arange(len(box), 0, -1)
        parts = 1 - np.clip(1 - box, 0, 1) ** (1 / after)
        left = np.concatenate([[1.0], np.cumprod(1 - parts)])
        return np.asarray(np.append(left[:-1] * parts, left[-1]))
    ratios = np.append((2 * box - 1) * WIDTH, 0.0)
    shares = np.exp(ratios - ratios.max())
    return np.asarray(shares / shares.sum())


def encode(kind: Kind, mixture: Array) -> Array:
    """A point of the box (d,) for a mixture (k,); shares out of reach at the nearest edge."""
    if kind == "gammas":
        return np.asarray(np.exp(-mixture * len(mixture)))
    if kind == "sticks":
        left = 1 - np.concatenate([[0.0], np.cumsum(mixture[:-2])])
        parts = np.clip(mixture[:-1] / np.maximum(left, LEAST), 0, 1)
        return np.asarray(1 - (1 - parts) ** np.arange(len(parts), 0, -1))
    shares = np.maximum(mixture, LEAST)
    return np.asarray(np.clip(np.log(shares[:-1] / shares[-1]) / WIDTH / 2 + 0.5, 0, 1))
