"""Proxy runs of an analytic world, for policies that decide before the run starts.

What they cost is not in a policy's score: ``3 (k + 1)`` runs at a tenth of the budget are 1.8 whole
budgets of tokens at five sources and 3.9 at twelve, though a real proxy's model is far smaller.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .families import Dilution, Exponential, Power

SEGMENTS = 40
SHARE = 0.1


def swarm(k: int) -> int:
    """How many proxy runs Olmix's rule of thumb asks for: three for each coefficient."""
    return 3 * (k + 1)


def proxies(
    world: Power | Exponential | Dilution, n: int, seed: int, share: float = SHARE
) -> list[dict[str, Any]]:
    """``n`` runs on constant mixtures, each scored once at its end with the world's noise.

    Mixtures are drawn from a flat Dirichlet distribution, the first one uniform. Budget and sources
    are shrunk alike (``share``), so repetition is the whole run's. As an ``olmix`` policy's
    ``points``.
    """
    drawing = np.random.default_rng([seed, n])
    names = list(world.sources)
    even = np.full(len(names), 1 / len(names))
    mixtures = [even, *drawing.dirichlet(np.ones(len(names)), n - 1)]
    points = []
    for index, mixture in enumerate(mixtures):
        weights = dict(zip(names, map(float, mixture), strict=True))
        small = world.shrunk(share, seed * n + index)
        for _ in range(SEGMENTS):
            small.advance(weights, round(world.budget * share / SEGMENTS))
        scored = {
            name: {"value": value, "stderr": stderr}
            for name, (value, stderr) in small.evaluate().items()
        }
        points.append({"weights": weights, "benchmarks": scored})
    return points
