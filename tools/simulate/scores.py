"""How policies did on worlds: regret, gap closed, and how sure that is. Pure.

The gap closed of one run is ``(control - policy) / (control - optimum)``, losses without noise at
the end: 0 is the mixture left as it started, 1 the best constant mixture under the cap on epochs
(the best schedule may do better). Regret is ``policy - optimum``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mixloop.common.types import Json

RESAMPLES = 1000
TOLERANCE = 1e-9  # losses this close are one
LEVEL = 0.95


def score(control: float, optimum: float | None, final: float) -> Json:
    """One run's ``gain`` over the control, ``regret`` and ``gap``; None where unknown.

    Where the control is already the optimum (nothing is to be gained) there is no gap.
    """
    regret = None if optimum is None else final - optimum
    wide = optimum is not None and control - optimum > TOLERANCE
    gap = (control - final) / (control - optimum) if wide and optimum is not None else None
    return {"gain": control - final, "regret": regret, "gap": gap}


def summary(runs: Sequence[Mapping[str, Any]]) -> Json:
    """Over the seeds of one policy on one world.

    Returns:
        ``seeds``; ``gap``, ``regret`` and ``gain`` (each of :func:`spread`, None where no run has
        it); ``below``: runs that ended worse than the control; ``slowest`` decision and median
        ``seconds`` of a run; ``failed`` decisions.
    """
    seconds = sorted(run["seconds"] for run in runs)
    return {
        "seeds": len(runs),
        "gap": spread([run["gap"] for run in runs if run["gap"] is not None]),
        "regret": spread([run["regret"] for run in runs if run["regret"] is not None], high=True),
        "gain": spread([run["gain"] for run in runs]),
        "below": sum(run["gain"] < -TOLERANCE for run in runs),
        "slowest": max(run["slowest"] for run in runs),
        "seconds": quantile(seconds, 0.5),
        "failed": sum(run["failed"] for run in runs),
    }


def spread(values: Sequence[float], *, high: bool = False) -> Json | None:
    """Median with its confidence interval, mean with its, 10th percentile towards the worse, worst.

    ``high``: larger is worse. Intervals are percentile bootstraps over the values (Efron 1979).
    """
    if not values:
        return None
    ranked = sorted(values, reverse=high)
    return {
        "median": quantile(ranked, 0.5),
        "median_interval": bootstrap(values, lambda drawn: quantile(sorted(drawn), 0.5)),
        "mean": math.fsum(values) / len(values),
        "mean_interval": bootstrap(values, lambda drawn: math.fsum(drawn) / len(drawn)),
        "tenth": quantile(ranked, 0.1),
        "worst": ranked[0],
    }


def quantile(ranked: Sequence[float], share: float) -> float:
    """The quantile of sorted values, interpolated between neighbours."""
    place = share * (len(ranked) - 1)
    below = math.floor(place)
    above = min(below + 1, len(ranked) - 1)
    return ranked[below] + (place - below) * (ranked[above] - ranked[below])


def bootstrap(
    values: Sequence[float], statistic: Callable[[Sequence[float]], float]
) -> tuple[float, float] | None:
    """The 95% interval of a statistic under resampling; None for a single value."""
    from random import Random

    if len(values) < 2:
        return None
    drawing = Random(len(values))
    statistics = sorted(statistic(drawing.choices(values, k=len(values))) for _ in range(RESAMPLES))
    return quantile(statistics, (1 - LEVEL) / 2), quantile(statistics, (1 + LEVEL) / 2)
