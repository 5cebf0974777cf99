"""What a search found, as a file that a run's policy can start from."""

from __future__ import annotations

import json
from pathlib import Path

from mixloop.common.files import write_atomic
from mixloop.common.types import Json
from mixloop.controller.config import SearchPlan
from mixloop.policies.surrogates import Point, ProxyRun, Score, points_of, recommend

SCHEMA = "mixloop/prior/1"
FILE_NAME = "prior.json"
MIN_ERROR = 1e-4  # bits per byte


def conclude(run: str, plan: SearchPlan, runs: list[ProxyRun]) -> Json:
    """The prior that these proxies give.

    ``points`` are the proxies' mixtures with the objective (``value``, a loss) and every
    benchmark in bits per byte, at a proxy's full length; ``measured`` is false where halving
    stopped a proxy and its end is inferred. ``best`` is the mixture by posterior mean,
    ``uncertainty`` its shares' standard deviations; ``weights``, what to start with, is ``best``
    or, where it isn't clearly better, the configured start.

    Raises:
        ValueError: too few proxies for a surrogate.
    """
    points = points_of(runs, len(plan.rungs) - 1)
    recommended = recommend(points, plan.importance, plan.most, plan.start, plan.seed)
    return {
        "schema": SCHEMA,
        "run": run,
        "tokens": plan.tokens,
        "target": plan.target,
        "from": str(plan.checkpoint) if plan.checkpoint is not None else None,
        "objective": dict(plan.importance),
        "points": [_point(point, plan) for point in points],
        "start": dict(plan.start),
        "weights": recommended.weights,
        "best": recommended.best,
        "uncertainty": recommended.uncertainty,
        "predicted": _score(recommended.predicted),
        "gain": _score(recommended.gain),
        "verdict": recommended.verdict,
        "surrogate": recommended.surrogate,
        "errors": recommended.errors,
    }


def _point(point: Point, plan: SearchPlan) -> Json:
    return {
        "weights": dict(point.weights),
        **_score(point.value(plan.importance)),
        "benchmarks": {name: _score(score) for name, score in point.benchmarks.items()},
        "trial": point.number,
        "measured": point.measured,
    }


def _score(score: Score) -> Json:
    # one item alone gives no standard error; nothing is known exactly
    return {"value": score.value, "stderr": max(score.stderr, MIN_ERROR)}


def write_prior(plan: SearchPlan, prior: Json) -> Path:
    """Write the prior into the search's folder and return its path."""
    path = plan.folder / FILE_NAME
    write_atomic(path, json.dumps(prior, indent=1).encode())
    return path
