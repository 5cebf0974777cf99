"""What the fits of merges say by themselves, where merges bend: their short horizon's optimum.

Where the merge's loss is as good as linear in the mixture, its optimum is a corner that only the
pull to the prior holds back, and the slopes say all there is. Where it bends (the gain at the
optimum is half of what the slopes promise, as of a parabola), the optimum itself is evidence.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from mixloop.policies.interface import ExperimentResult, MergeFit
from mixloop.policies.mixture import Array

LEAST_SHARE = 1e-3  # of a source in a fit, in parts of its prior: nothing is surer than that
AGING = 4.0  # by how much less an experiment counts that is a budget old


def bend(result: ExperimentResult, worth: Mapping[str, float]) -> float:
    """0 where the merge's gain is what the slopes promise, 1 where it is half of it or less."""
    fit = result.fit("whole")
    if fit is None or not all(name in fit.gains and name in fit.slopes for name in worth):
        return 0.0
    moved = {n: w - result.weights.get(n, 0.0) for n, w in fit.weights.items()}
    promised = -sum(
        part * slope * moved.get(source, 0.0)
        for name, part in worth.items()
        for source, slope in fit.slopes[name].items()
    )
    gain = sum(part * fit.gains[name][0] for name, part in worth.items())
    error = math.sqrt(sum((part * fit.gains[name][1]) ** 2 for name, part in worth.items()))
    if promised <= 2 * error or promised <= 0:
        return 0.0
    return min(1.0, max(0.0, 2 * (1 - gain / promised)))


def merge_vote(
    results: Sequence[ExperimentResult], prior: Array, names: Sequence[str]
) -> Array | None:
    """The fitted mixture (k,), drawn to the prior by how far the halves disagree; None without.

    Log ratios to the prior are shrunk by the halves' agreement, stepped up to twice the data
    (Spearman and Brown 1910), and averaged over time, later ones counting more.
    """
    total, weights = np.zeros(len(names)), 0.0
    for result in results:
        favoured = _favoured(result, prior, names)
        if favoured is None:
            continue
        age = (results[-1].tokens - result.tokens) / max(1, results[-1].tokens)
        weight = 1 / (1 + AGING * age)
        total, weights = total + weight * favoured, weights + weight
    if not weights:
        return None
    shares = prior * np.exp(total / weights)
    return np.asarray(shares / shares.sum())


def _favoured(result: ExperimentResult, prior: Array, names: Sequence[str]) -> Array | None:
    whole, first, second = (result.fit(part) for part in ("whole", "first", "second"))
    if whole is None:
        return None
    found = _ratios(whole, prior, names)
    if first is None or second is None:
        return found / 2
    one, two = (_ratios(half, prior, names) for half in (first, second))
    alike = float(prior @ (one * two))
    size = float(prior @ (one**2 + two**2)) / 2
    agreement = max(0.0, alike / size) if size > 0 else 0.0
    return found * (2 * agreement / (1 + agreement))


def _ratios(fit: MergeFit, prior: Array, names: Sequence[str]) -> Array:
    """(k,): logarithms of shares over the prior's, centred by the prior."""
    shares = np.array([fit.weights.get(name, 0.0) for name in names])
    logs = np.log(np.maximum(shares / np.maximum(prior, 1e-12), LEAST_SHARE))
    logs = np.where(prior > 0, logs, 0.0)
    return np.asarray(logs - prior @ logs)
