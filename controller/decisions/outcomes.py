"""Did it help: what the benchmarks did over the window of an order.

One window, whoever tells of it: history, explain, report, MLflow. It begins at the last scored
checkpoint before the order came into force and ends at the first one that has spent at least half
of the tokens between the two under it; a checkpoint taken right after a change says nothing of it.
"""

from __future__ import annotations

import math
from functools import lru_cache

from mixloop.common.paired import Difference
from mixloop.common.types import Json
from mixloop.controller.core import OrderRow
from mixloop.controller.journal import Journal, queries
from mixloop.policies.interface import Evaluation, MissingScore, Observation

from . import observation_builder

CACHED = 8  # evaluations of neighbouring windows


class Outcomes:
    """What the benchmarks did after the orders of a journal."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._scored = lru_cache(CACHED)(self._read)

    def _read(self, step: int) -> Evaluation:
        (evaluation,) = observation_builder.evaluations(self._journal, since=step, until=step)
        return evaluation

    def of(self, order: OrderRow) -> Json | None:
        """What followed an order; None until its window has both ends.

        Returns:
            ``from_step`` and ``step``, the ends; ``shared_with``, other decisions whose orders came
            into force within it, so that the gain is not of one alone; and ``benchmarks``, see
            :func:`effects`, whose ``gain_before`` is over a window of the same length before.
        """
        window = queries.outcome_window(self._journal, order)
        if window is None:
            return None
        earlier = None if window.earlier is None else self._scored(window.earlier)
        return {
            "from_step": window.start,
            "step": window.end,
            "shared_with": list(window.shared),
            "benchmarks": effects(self._scored(window.start), self._scored(window.end), earlier),
        }


def effects(
    older: Evaluation, newer: Evaluation, earlier: Evaluation | None = None
) -> dict[str, Json]:
    """Per benchmark the paired gain from one evaluation to another.

    Positive is better, in bits per byte, with its standard error and z (None: infinite, as all
    items moved alike); ``gain_before`` is that from ``earlier`` to ``older``, the pace it had, None
    where there is no such evaluation.
    """
    gains = {name: _effect(name, older, newer, earlier) for name in newer.benchmarks}
    return {name: gain for name, gain in gains.items() if gain is not None}


def _effect(
    benchmark: str, older: Evaluation, newer: Evaluation, earlier: Evaluation | None
) -> Json | None:
    difference = _difference(benchmark, older, newer)
    if difference is None:
        return None
    pace = None if earlier is None else _difference(benchmark, earlier, older)
    return {
        "metric": difference.metric,
        "gain": difference.gain,
        "stderr": difference.stderr,
        "z": difference.z if math.isfinite(difference.z) else None,
        "n": difference.n,
        "from_step": older.step,
        "to_step": newer.step,
        "gain_before": pace and pace.gain,
        "stderr_before": pace and pace.stderr,
        "steps_before": older.step - earlier.step if pace and earlier else None,
    }


def _difference(benchmark: str, older: Evaluation, newer: Evaluation) -> Difference | None:
    """None where it can't be told: one item in common says nothing of its own noise."""
    lens = Observation(sources={}, weights={})
    try:
        difference = lens.difference(benchmark, older, newer)
    except MissingScore:
        return None
    return difference if math.isfinite(difference.stderr) else None
