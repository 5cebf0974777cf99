"""Did it help: what the benchmarks did over the window of an order.

One window, whoever tells of it: history, explain, report, MLflow. It begins at the last scored
checkpoint before the order came into force and ends at the first one that has spent at least half
of the tokens between the two under it; a checkpoint taken right after a change says nothing of it.
"""

from __future__ import annotations

import json
import math
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, lru_cache

from mixloop.common.paired import Difference
from mixloop.common.types import Json
from mixloop.controller.core import OrderRow
from mixloop.controller.journal import Journal, queries
from mixloop.policies.evidence import RECENT, honest_difference, receipts_of
from mixloop.policies.interface import (
    BITS_PER_BYTE,
    Evaluation,
    ExperimentResult,
    MissingScore,
    Observation,
    PastDecision,
)

from . import experiment_evidence, observation_builder

CACHED = 12  # evaluations of neighbouring windows
WITH_ITEMS = 4  # newest evaluations of a course whose items say how much of its noise is theirs
LIKE = 0.1  # part by which two windows of one length may differ


@dataclass(frozen=True, slots=True)
class OutcomeWindow:
    """The steps of the scored checkpoints that tell what an order did.

    Attributes:
        start: of the last one before it came into force.
        end: of the first one that has spent half of the tokens since ``start`` under it.
        earlier: of the one that lies as many tokens before ``start`` as ``end`` lies after it; None
            where none does, to within a tenth.
        shared: other decisions whose windows overlap with this one, so that both tell of one gain.
    """

    start: int
    end: int
    earlier: int | None
    shared: tuple[str, ...]


def outcome_window(
    order: OrderRow, scored: Sequence[tuple[int, int]], applied: Sequence[tuple[str, int]]
) -> OutcomeWindow | None:
    """The window of an order; None before it is in force and scored on either side.

    Args:
        order: The order.
        scored: Step and tokens of the scored checkpoints, oldest first.
        applied: Decision and first tokens of every order that came into force.
    """
    change = order.applied_tokens
    ends = None if change is None else _ends(change, scored)
    if change is None or ends is None or ends[1] == len(scored):
        return None
    start, begun = scored[ends[0]]
    end, ended = scored[ends[1]]
    length = ended - begun
    near = bisect_left(scored, begun - length, key=_tokens)
    like = [place for place in scored[max(near - 1, 0) : near + 1] if place[0] < start]
    off, earlier = min(
        ((abs(begun - at - length), step) for step, at in like), default=(length, None)
    )
    return OutcomeWindow(
        start,
        end,
        earlier if off <= LIKE * length else None,
        tuple(
            name
            for name, at in applied
            if name != order.decision and (begun <= at < ended or _holds(at, change, scored))
        ),
    )


def _ends(change: int, scored: Sequence[tuple[int, int]]) -> tuple[int, int] | None:
    """Indices of the ends of the window of an order that came into force at these tokens.

    None where nothing was scored before; the second is ``len(scored)`` while it has no end.
    """
    first = bisect_right(scored, change, key=_tokens) - 1
    if first < 0:
        return None
    half = max(change + 1, 2 * change - scored[first][1])
    return first, bisect_left(scored, half, key=_tokens)


def _holds(change: int, tokens: int, scored: Sequence[tuple[int, int]]) -> bool:
    """Whether the window of an order that came into force at `change` holds these tokens."""
    ends = _ends(change, scored)
    if ends is None or tokens < scored[ends[0]][1]:
        return False
    return ends[1] == len(scored) or tokens < scored[ends[1]][1]


def _tokens(place: tuple[int, int]) -> int:
    return place[1]


class Outcomes:
    """What the benchmarks did after the orders of a journal, as it is now."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._places = queries.scored_places(journal), queries.applied_places(journal)
        self._scored = lru_cache(CACHED)(self._read)
        self._without_items: dict[int, Evaluation] = {}

    def _read(self, step: int) -> Evaluation:
        (evaluation,) = observation_builder.evaluations(self._journal, since=step, until=step)
        self._without_items[step] = without_items(evaluation)
        return evaluation

    def _course(self, until: int) -> list[Evaluation]:
        """The run up to a step, as far back as its jitter is told from; items of the newest."""
        scored, _ = self._places
        last = bisect_right(scored, until, key=lambda place: place[0])
        steps = [step for step, _ in scored[max(0, last - RECENT) : last]]
        for step in steps[:-WITH_ITEMS]:
            if step not in self._without_items:
                self._read(step)
        early = [self._without_items[step] for step in steps[:-WITH_ITEMS]]
        return early + [self._scored(step) for step in steps[-WITH_ITEMS:]]

    def of(self, order: OrderRow) -> Json | None:
        """What followed an order; None until its window has both ends.

        Returns:
            ``from_step`` and ``step``, the ends; ``shared_with``, other decisions whose windows
            overlap with it, so that the gain is not of one alone; and ``benchmarks``, see
            :func:`effects`, whose ``gain_before`` is over a window of the same length before.
            Where twins of the run went on without the order, also ``receipt``: the objective's
            ``effect`` against them, ``low`` and ``high`` at any time, over ``n`` points, and
            ``shared_with``, other decisions that came into force on the run's side meanwhile.
        """
        window = outcome_window(order, *self._places)
        if window is None:
            return None
        earlier = None if window.earlier is None else self._scored(window.earlier)
        return {
            "from_step": window.start,
            "step": window.end,
            "shared_with": list(window.shared),
            "benchmarks": effects(
                self._scored(window.start),
                self._scored(window.end),
                earlier,
                course=self._course(window.end),
            ),
        } | ({} if (told := self.receipt(order)) is None else {"receipt": told})

    def receipt(self, order: OrderRow) -> Json | None:
        """What twins that went on without an order say; None without one, or while nobody knows."""
        row = queries.decision(self._journal, order.decision)
        made = self._experiments
        twins = [e for e in made if row and (e.tokens == row.tokens or e.decision == row.id)]
        if row is None or not twins:
            return None
        decision = PastDecision(
            id=row.id,
            step=row.step,
            tokens=row.tokens,
            verdict=row.verdict,
            generation=row.generation,
            weights_before=dict(row.weights_before),
        )
        run = Observation(
            sources={},
            weights={},
            evaluations=observation_builder.evaluations(self._journal),
            experiments=made,
            steering=dict.fromkeys(queries.steering(self._journal), BITS_PER_BYTE),
            objective=json.loads(queries.start_params(self._journal).get("objective", "{}")),
        )
        told = receipts_of(run, decision)
        if not told or not math.isfinite(told[-1].low):
            return None
        spans = [(e.tokens, e.tokens + e.branch_tokens) for e in twins]
        others = [
            name
            for name, at in self._places[1]
            if name != row.id and any(begin < at < end for begin, end in spans)
        ]
        return asdict(told[-1]) | {"shared_with": others}

    @cached_property
    def _experiments(self) -> tuple[ExperimentResult, ...]:
        return experiment_evidence.experiments(self._journal, before=queries.ALL, known=queries.ALL)


def effects(
    older: Evaluation,
    newer: Evaluation,
    earlier: Evaluation | None = None,
    *,
    course: Sequence[Evaluation] = (),
) -> dict[str, Json]:
    """Per benchmark the paired gain from one evaluation to another.

    Positive is better, in bits per byte, with its standard error and z (None: infinite, as all
    items moved alike). The error's parts are ``stderr_items``, and ``stderr_trajectory``, which
    ``course``, the run's evaluations so far, tells. ``gain_before`` is the gain from ``earlier`` to
    ``older``, the pace it had, None where there is no such evaluation.
    """
    lens = Observation(sources={}, weights={}, evaluations=tuple(course))
    gains = {name: _effect(lens, name, older, newer, earlier) for name in newer.benchmarks}
    return {name: gain for name, gain in gains.items() if gain is not None}


def without_items(evaluation: Evaluation) -> Evaluation:
    """The evaluation with its metrics alone."""
    scores = evaluation.benchmarks.items()
    bare = {name: score.model_copy(update={"items": {}}) for name, score in scores}
    return evaluation.model_copy(update={"benchmarks": bare})


def _effect(
    lens: Observation,
    benchmark: str,
    older: Evaluation,
    newer: Evaluation,
    earlier: Evaluation | None,
) -> Json | None:
    difference = _difference(lens, benchmark, older, newer)
    if difference is None:
        return None
    pace = None if earlier is None else _difference(lens, benchmark, earlier, older)
    return {
        "metric": difference.metric,
        "gain": difference.gain,
        "stderr": difference.stderr,
        "stderr_items": difference.items,
        "stderr_trajectory": difference.trajectory,
        "z": difference.z if math.isfinite(difference.z) else None,
        "n": difference.n,
        "from_step": older.step,
        "to_step": newer.step,
        "gain_before": pace and pace.gain,
        "stderr_before": pace and pace.stderr,
        "steps_before": older.step - earlier.step if pace and earlier else None,
    }


def _difference(
    lens: Observation, benchmark: str, older: Evaluation, newer: Evaluation
) -> Difference | None:
    """None where it can't be told: one item in common says nothing of its own noise."""
    try:
        difference = honest_difference(lens, benchmark, older, newer)
    except MissingScore:
        return None
    return difference if math.isfinite(difference.stderr) else None
