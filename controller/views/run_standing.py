"""How a run stands: each fact once, from the trainer's files and the journal. Reads only.

Status, live screen, metrics and report show what is found here; MLflow is not needed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mixloop.common.types import Json
from mixloop.contract import RunPaths, Status, waiting
from mixloop.controller.core import (
    ApprovalRow,
    CheckpointState,
    DecisionRow,
    OrderRow,
    ScoredCheckpoint,
    Steering,
    Weights,
)
from mixloop.controller.journal import Journal, UnreadableFile, queries
from mixloop.evals import BenchmarkScore

from .experiment_history import ExperimentsStanding, experiments_standing
from .liveness import ControllerStanding, TrainerStanding, controller, trainer

DECISIONS = 20  # of a standing, at most


@dataclass(frozen=True, slots=True)
class AskedMixture:
    """The mixture last asked for; without ``decision``: the one before any order."""

    generation: int
    weights: Weights
    decision: str | None = None


@dataclass(frozen=True, slots=True)
class SourceStanding:
    """One source, now and as it goes on under the mixture applied.

    Attributes:
        asked: its share as asked for; None: nothing was. ``applied``: as the trainer draws it.
        tokens: drawn so far; ``epochs`` likewise.
        loss: of training on it, where the trainer tells.
        at_the_end: epochs when the budget is spent.
        cap_at: tokens of the run at which it reaches ``max_epochs``; None: not within the budget.
    """

    name: str
    asked: float | None
    applied: float
    tokens: int
    epochs: float
    unique_tokens: int
    loss: float | None
    at_the_end: float
    cap_at: int | None


@dataclass(frozen=True, slots=True)
class CheckpointScores:
    """The scorecard of a checkpoint, without its items; ``seconds``: what scoring it took."""

    step: int
    tokens: int
    seconds: float | None
    benchmarks: Mapping[str, BenchmarkScore]


@dataclass(frozen=True, slots=True)
class OperatorStanding:
    """What people asked for.

    Attributes:
        pins: shares that are held fixed.
        awaiting: decisions that wait for a person, oldest first.
        requests: how many no controller has taken yet.
    """

    paused: bool = False
    pins: Weights = field(default_factory=dict)
    awaiting: Sequence[tuple[DecisionRow, ApprovalRow]] = ()
    requests: int = 0


@dataclass(frozen=True, slots=True)
class TrackingStanding:
    """Entries for MLflow, and what failed last; None where it has worked since.

    ``refused``: entries let go because MLflow called them invalid again and again, and why the
    last was. ``failing_since``: when the present trouble began, by the journal's clock.
    """

    waiting: int = 0
    sent: int = 0
    refused: int = 0
    last_refusal: Json | None = None
    last_error: Json | None = None
    failing_since: str | None = None


@dataclass(frozen=True, slots=True)
class RunStanding:
    """How a run stands.

    Attributes:
        run: its id; None before the trainer's first heartbeat.
        asked: None before the first controller.
        params: what the newest start of a controller told of the run.
        scores: of scored checkpoints, oldest first; no more than were asked for.
        steering: what steers each benchmark; empty before the first decision.
        skipped: checkpoints that were passed over, oldest first.
        unscored: why the policy has seen no score for several checkpoints; None: it sees them.
        waiting: checkpoints that are complete and not scored; ``scoring``: the steps of those that
            are being scored.
        checkpoints: tokens of the newest two, newest first.
        orders: those that are neither in force nor rejected.
        decisions: the newest ones, newest first, each with the approval it asked for.
        verdicts: decisions by verdict; ``evaluations``: by what became of them.
        unreadable: files that can't be read.
        experiments: how those that policies asked for stand.
    """

    run: str | None
    trainer: TrainerStanding
    controller: ControllerStanding | None = None
    asked: AskedMixture | None = None
    params: Mapping[str, Any] = field(default_factory=dict)
    scores: Sequence[CheckpointScores] = ()
    steering: Mapping[str, Steering] = field(default_factory=dict)
    skipped: Sequence[CheckpointState] = ()
    unscored: queries.UnscoredStretch | None = None
    waiting: int = 0
    scoring: Sequence[int] = ()
    checkpoints: Sequence[int] = ()
    orders: Sequence[OrderRow] = ()
    decisions: Sequence[tuple[DecisionRow, ApprovalRow | None]] = ()
    verdicts: Mapping[str, int] = field(default_factory=dict)
    evaluations: Mapping[str, int] = field(default_factory=dict)
    operators: OperatorStanding = OperatorStanding()
    tracking: TrackingStanding = TrackingStanding()
    unreadable: Sequence[UnreadableFile] = ()
    experiments: ExperimentsStanding = field(default_factory=ExperimentsStanding)

    @property
    def status(self) -> Status | None:
        """The trainer's newest heartbeat."""
        return self.trainer.status

    @property
    def max_epochs(self) -> float | None:
        """The cap on every source's epochs (``guards.max_epochs``)."""
        cap = json.loads(self.params.get("guards", "{}")).get("max_epochs")
        return None if cap is None else float(cap)

    @property
    def evaluate_every(self) -> int | None:
        """Tokens between two evaluations."""
        return self.params.get("evaluate_every")

    @property
    def approval_timeout(self) -> int | None:
        """Tokens after which a decision that nobody approved expires."""
        return self.params.get("approval_timeout")

    @property
    def sources(self) -> list[SourceStanding]:
        """The ledger; empty before the first heartbeat."""
        status = self.status
        return [] if status is None else [self._source(name, status) for name in status.sources]

    def _source(self, name: str, status: Status) -> SourceStanding:
        source, cap = status.sources[name], self.max_epochs
        applied = status.in_force.weights.get(name, 0.0)
        left = max(0, status.budget - status.tokens)
        cap_at = None
        if cap is not None and applied > 0:
            reach = int(max(0.0, cap - source.epochs) * source.unique_tokens / applied)
            cap_at = status.tokens + reach if reach <= left else None
        return SourceStanding(
            name=name,
            asked=None if self.asked is None else self.asked.weights.get(name),
            applied=applied,
            tokens=source.tokens,
            epochs=source.epochs,
            unique_tokens=source.unique_tokens,
            loss=source.loss,
            at_the_end=source.epochs + applied * left / source.unique_tokens,
            cap_at=cap_at,
        )


def run_standing(
    paths: RunPaths,
    journal: Journal | None,
    status: Status | None,
    *,
    watched: tuple[float, float] | None = None,
    unreadable: Sequence[UnreadableFile] = (),
    scores: Sequence[CheckpointScores] = (),
) -> RunStanding:
    """How a run stands now.

    Args:
        paths: of the run.
        journal: None before the first controller, or while it can't be read.
        status: the trainer's newest heartbeat that could be read.
        watched: seconds for which the caller saw that heartbeat stand still, and from when on that
            is a stall; otherwise what the controller saw counts.
        unreadable: files that can't be read.
        scores: of the checkpoints that the caller wants; :func:`scores_of` makes them.
    """
    readable = all(file.file != paths.status.name for file in unreadable)
    run = status.run if status is not None else None
    now = trainer(paths, status, journal, watched, readable=readable)
    requests = len(waiting(paths.requests))
    if journal is None:
        people = OperatorStanding(requests=requests)
        return RunStanding(run, now, operators=people, unreadable=unreadable)
    scoring = [row.step for row in queries.checkpoints_in(journal, "running")]
    approvals = {row.decision: row for row in queries.approvals(journal)}
    params = queries.start_params(journal)
    return RunStanding(
        run=run,
        trainer=now,
        controller=controller(journal),
        asked=_asked(journal),
        params=params,
        scores=scores,
        steering=queries.steering(journal),
        skipped=queries.checkpoints_in(journal, "skipped"),
        unscored=queries.unscored(journal),
        waiting=len(scoring) + len(queries.checkpoints_in(journal, None)),
        scoring=scoring,
        checkpoints=[row.tokens for row in queries.last_checkpoints(journal, 2)],
        orders=queries.pending_orders(journal),
        decisions=[
            (decision, approvals.get(decision.id))
            for decision in queries.last_decisions(journal, DECISIONS)
        ],
        verdicts=queries.decision_counts(journal),
        evaluations=queries.evaluation_counts(journal),
        operators=OperatorStanding(
            paused=queries.paused(journal),
            pins=queries.pins(journal),
            awaiting=queries.waiting_approvals(journal),
            requests=requests,
        ),
        tracking=_tracking(journal),
        unreadable=unreadable,
        experiments=experiments_standing(paths, journal, params.get("experiment_tokens", 0)),
    )


def scores_of(row: ScoredCheckpoint) -> CheckpointScores:
    """A scored checkpoint without the items."""
    card = row.scorecard
    benchmarks = {
        name: BenchmarkScore.model_validate({**score, "items": {}})
        for name, score in card["benchmarks"].items()
    }
    return CheckpointScores(row.step, row.tokens, card.get("seconds"), benchmarks)


def _asked(journal: Journal) -> AskedMixture | None:
    order = queries.newest_order(journal)
    if order is not None:
        return AskedMixture(order.generation, order.weights, order.decision)
    initial = queries.initial_mixture(journal)
    return None if initial is None else AskedMixture(0, initial)


def _tracking(journal: Journal) -> TrackingStanding:
    counts = queries.waiting_entries(journal), queries.sent_entries(journal)
    refused = queries.refused_entries(journal)
    refusal = queries.newest_event(journal, "tracking-refused") if refused else None
    told = (refused, None if refusal is None else {"at": refusal.at, **refusal.detail})
    last = queries.newest_event(journal, "tracking-failed")
    if last is None:
        return TrackingStanding(*counts, *told)
    sent = queries.event_before_sent(journal)
    failures = queries.events(journal, "tracking-failed", after=sent)
    entry = last.detail.get("entry")  # others may have arrived since
    if not failures and (entry is None or not queries.is_waiting(journal, entry)):
        return TrackingStanding(*counts, *told)
    since = failures[0].at if failures else last.at
    return TrackingStanding(*counts, *told, {"at": last.at, **last.detail}, since)
