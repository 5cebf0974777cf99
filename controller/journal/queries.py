"""What is asked of a journal: typed rows and counts. Every SELECT of the controller is here."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from mixloop.common.types import Json
from mixloop.controller.core import (
    ApprovalRow,
    AssessmentRow,
    CheckpointRow,
    CheckpointState,
    DecisionRow,
    EvaluationRow,
    EvaluationState,
    EventRow,
    ExperimentOutcome,
    ExperimentRow,
    LeaseRow,
    OrderRow,
    OutboxRow,
    RequestRow,
    ScoredCheckpoint,
    Steering,
)

from .journal import Journal

EXPERIMENTS_SINCE = 2  # version of the journal
ALL = 2**62  # above every step, number, generation and count

# -- the run and its operators ---------------------------------------------------------------------


def lease(journal: Journal) -> LeaseRow | None:
    """Who holds the run; None before the first controller."""
    return journal.first(LeaseRow)


def run_id(journal: Journal) -> str | None:
    """The run's id, as run.yaml has it."""
    value = journal.value("SELECT value FROM meta WHERE key = 'run'")
    return None if value is None else str(value)


def uid(journal: Journal) -> str | None:
    """What tells this journal from others of its run; None until it was needed."""
    value = journal.value("SELECT value FROM meta WHERE key = 'uid'")
    return None if value is None else str(value)


def requests_since(journal: Journal) -> int:
    """The fence from which on this journal knows all requests that were taken."""
    return int(_meta(journal, "requests-since") or 0)


def orders_since(journal: Journal) -> int:
    """Orders up to this generation may be anybody's; 0 where all are a controller's."""
    return int(_meta(journal, "orders-since") or 0)


def _meta(journal: Journal, key: str) -> Any:
    value = journal.value("SELECT value FROM meta WHERE key = ?", key)
    return None if value is None else json.loads(value)


def initial_mixture(journal: Journal) -> dict[str, float] | None:
    """The mixture before any order; None before the first start."""
    return _meta(journal, "initial")  # type: ignore[no-any-return]


def paused(journal: Journal) -> bool:
    """Whether an operator has paused decisions."""
    return bool(_meta(journal, "paused"))


def pins(journal: Journal) -> dict[str, float]:
    """Shares that operators hold fixed."""
    return dict(_meta(journal, "pins") or {})


def noted_incarnation(journal: Journal) -> int:
    """The newest incarnation of the trainer that the journal knows of; 0: none."""
    return int(_meta(journal, "incarnation") or 0)


def unreadable_names(journal: Journal) -> list[str]:
    """Files that the controller can't read, as it told last: relative to the run folder."""
    return [str(name) for name in _meta(journal, "unread") or ()]


@dataclass(frozen=True, slots=True)
class TrainerSilence:
    """The trainer's heartbeat as the controller saw it last.

    Attributes:
        silent: seconds for which it had stood still; above ``limit`` the trainer has stalled.
    """

    incarnation: int
    heartbeat: int
    silent: float
    limit: float


def trainer_silence(journal: Journal) -> TrainerSilence | None:
    """What the controller keeps of the trainer's heartbeat."""
    kept = _meta(journal, "pulse")
    return None if kept is None else TrainerSilence(**kept)


@dataclass(frozen=True, slots=True)
class UnscoredStretch:
    """The newest evaluated checkpoints, none of which gave the policy a score, and the last's why.

    Told when there were so many that it is no accident, until a score comes.
    """

    steps: Sequence[int]
    why: str

    @property
    def in_words(self) -> str:
        """``no score at steps 10, 20, 30, so the policy sees nothing: gsm8k: …``."""
        steps = ", ".join(map(str, self.steps))
        return f"no score at steps {steps}, so the policy sees nothing: {self.why}"


def unscored(journal: Journal) -> UnscoredStretch | None:
    """The stretch that was told last; None: scores came since, or none was."""
    told = newest_event(journal, "unscored", "scored-again")
    if told is None or told.kind == "scored-again":
        return None
    return UnscoredStretch(told.detail["steps"], told.detail["reason"])


def request(journal: Journal, request_id: str) -> RequestRow | None:
    """A request that was dealt with."""
    return journal.first(RequestRow, "WHERE id = ?", request_id)


def approval(journal: Journal, decision_id: str) -> ApprovalRow | None:
    """The approval that a decision asked for."""
    return journal.first(ApprovalRow, "WHERE decision = ?", decision_id)


def approvals(journal: Journal) -> list[ApprovalRow]:
    """All of them, by decision."""
    return journal.select(ApprovalRow, "ORDER BY decision")


def waiting_approvals(journal: Journal) -> list[tuple[DecisionRow, ApprovalRow]]:
    """Decisions that wait for a person, oldest first."""
    waiting = journal.select(ApprovalRow, "WHERE state = 'waiting' ORDER BY decision")
    pairs = ((decision(journal, row.decision), row) for row in waiting)
    return [(of, row) for of, row in pairs if of is not None]


def waiting_before(journal: Journal, of: DecisionRow) -> DecisionRow | None:
    """The decision that waited for a person when another was made; None without one."""
    for row in reversed(approvals(journal)):
        earlier = decision(journal, row.decision)
        if earlier is not None and earlier.seq < of.seq:
            ended = row.at is not None and row.made != of.id and row.at <= of.decided_at
            return None if ended else earlier
    return None


def assessments(journal: Journal) -> list[AssessmentRow]:
    """What people said of decisions in MLflow, oldest first."""
    return journal.select(AssessmentRow, "ORDER BY at")


# -- checkpoints and their scores ------------------------------------------------------------------


def checkpoint(journal: Journal, step: int) -> CheckpointRow | None:
    """The checkpoint of a step."""
    return journal.first(CheckpointRow, "WHERE step = ?", step)


def checkpoints(journal: Journal) -> list[CheckpointRow]:
    """Every checkpoint, oldest first."""
    return journal.select(CheckpointRow, "ORDER BY step")


def checkpoint_states(journal: Journal, *, after: int = -1) -> list[CheckpointState]:
    """Every checkpoint of a step above ``after``, oldest first, and what became of scoring it."""
    return journal.select(CheckpointState, "WHERE step > ? ORDER BY step", after)


def checkpoints_in(
    journal: Journal, state: EvaluationState | None, *, newest: int = ALL
) -> list[CheckpointState]:
    """The ``newest`` checkpoints in a state, oldest first; None: scoring was not begun."""
    wanted = "state IS NULL" if state is None else f"state = '{state}'"  # that by its index
    clause = f"WHERE {wanted} ORDER BY step DESC LIMIT ?"
    return journal.select(CheckpointState, clause, newest)[::-1]


def checkpoints_before(journal: Journal, step: int, number: int) -> list[CheckpointRow]:
    """The newest checkpoints below a step, newest first."""
    return journal.select(CheckpointRow, "WHERE step < ? ORDER BY step DESC LIMIT ?", step, number)


def last_checkpoints(journal: Journal, number: int) -> list[CheckpointRow]:
    """The newest ones, newest first."""
    return journal.select(CheckpointRow, "ORDER BY step DESC LIMIT ?", number)


def evaluation(journal: Journal, step: int) -> EvaluationRow | None:
    """What became of scoring the checkpoint of a step; None: it was not begun."""
    return journal.first(EvaluationRow, "WHERE step = ?", step)


def evaluation_counts(journal: Journal) -> dict[str, int]:
    """Checkpoints by what became of scoring them."""
    return dict(journal.cells("SELECT state, COUNT(*) FROM evaluations GROUP BY state"))


def scored(
    journal: Journal, *, since: int = 0, until: int = ALL, newest: int = ALL
) -> Iterator[ScoredCheckpoint]:
    """Scored checkpoints of the steps from ``since`` to ``until``, oldest first.

    With ``newest``, so many at most, the last ones.
    """
    if newest < ALL:
        first = journal.value(
            "SELECT MIN(step) FROM (SELECT step FROM evaluations WHERE state = 'scored' "
            "AND step BETWEEN ? AND ? ORDER BY step DESC LIMIT ?)",
            *(since, until, newest),
        )
        since = ALL if first is None else first
    clause = "WHERE state = 'scored' AND step BETWEEN ? AND ? ORDER BY step"
    return journal.stream(ScoredCheckpoint, clause, since, until)


def newest_scored_step(journal: Journal) -> int | None:
    """The greatest step that was scored."""
    return _number(journal, "SELECT MAX(step) FROM evaluations WHERE state = 'scored'")


def scored_places(journal: Journal) -> list[tuple[int, int]]:
    """Step and tokens of every scored checkpoint, oldest first."""
    scored = "SELECT step, tokens FROM checkpoints JOIN evaluations USING (step) "
    return journal.cells(f"{scored} WHERE state = 'scored' ORDER BY step")


def steering(journal: Journal) -> dict[str, Steering]:
    """What steers each benchmark now; empty before the first decision."""
    event = newest_event(journal, "steering")
    chosen = {} if event is None else event.detail["benchmarks"]
    return {name: Steering(**steering) for name, steering in chosen.items()}


# -- orders ----------------------------------------------------------------------------------------


def order(journal: Journal, generation: int) -> OrderRow | None:
    """The order of a generation."""
    return journal.first(OrderRow, "WHERE generation = ?", generation)


def orders(journal: Journal) -> list[OrderRow]:
    """Every order, oldest first."""
    return journal.select(OrderRow, "ORDER BY generation")


def newest_order(journal: Journal) -> OrderRow | None:
    """The mixture asked for: the newest order that was not rejected."""
    clause = "WHERE rejected IS NULL ORDER BY generation DESC LIMIT 1"
    return journal.first(OrderRow, clause)


def newest_generation(journal: Journal, *, before: int = ALL) -> int:
    """The generation of :func:`newest_order`, 0 without one.

    With ``before``, only orders of decisions of a lower number count.
    """
    query = "SELECT MAX(generation) FROM orders WHERE rejected IS NULL"
    if before == ALL:
        return _number(journal, query) or 0
    return _number(journal, query + _BEFORE, before) or 0


def highest_generation(journal: Journal) -> int:
    """The highest generation ever given, whatever became of it; 0 without one."""
    return _number(journal, "SELECT MAX(generation) FROM orders") or 0


def order_before(journal: Journal, generation: int) -> OrderRow | None:
    """The last order in force before one of this generation."""
    clause = "WHERE generation < ? AND applied_step IS NOT NULL ORDER BY generation DESC LIMIT 1"
    return journal.first(OrderRow, clause, generation)


def applied_places(journal: Journal) -> list[tuple[str, int]]:
    """Of every order in force by now its decision, and the tokens from which on it was."""
    query = "SELECT decision, applied_tokens FROM orders WHERE applied_tokens IS NOT NULL "
    return journal.cells(f"{query} ORDER BY generation")


def pending_orders(journal: Journal) -> list[OrderRow]:
    """Orders that are neither in force nor rejected, oldest first."""
    clause = "WHERE applied_step IS NULL AND rejected IS NULL ORDER BY generation"
    return journal.select(OrderRow, clause)


def unapplied_orders(journal: Journal, until: int) -> list[OrderRow]:
    """Orders that came not into force, rejected ones too, up to a generation, oldest first."""
    clause = "WHERE applied_step IS NULL AND generation <= ? ORDER BY generation"
    return journal.select(OrderRow, clause, until)


def orders_applied_after(journal: Journal, sample: int) -> list[OrderRow]:
    """Orders that came into force beyond a sample, oldest first."""
    return journal.select(OrderRow, "WHERE applied_sample > ? ORDER BY generation", sample)


def last_applied_tokens(journal: Journal, *, before: int = ALL, until: int = ALL) -> int | None:
    """Tokens at which the last order came into force, up to ``until``.

    With ``before``, only orders of decisions of a lower number count.
    """
    query = "SELECT MAX(applied_tokens) FROM orders WHERE applied_tokens <= ?" + _BEFORE
    return _number(journal, query, until, before)


_BEFORE = " AND decision IN (SELECT id FROM decisions WHERE seq < ?)"


# -- decisions -------------------------------------------------------------------------------------


def decision(journal: Journal, decision_id: str) -> DecisionRow | None:
    """The decision of an id."""
    return journal.first(DecisionRow, "WHERE id = ?", decision_id)


def decisions(journal: Journal) -> list[DecisionRow]:
    """Every decision, oldest first."""
    return journal.select(DecisionRow, "ORDER BY seq")


def last_decisions(
    journal: Journal, number: int, *, verdict: str | None = None
) -> list[DecisionRow]:
    """The newest ones, of a verdict or of any, newest first."""
    if verdict is None:
        return journal.select(DecisionRow, "ORDER BY seq DESC LIMIT ?", number)
    clause = "WHERE verdict = ? ORDER BY seq DESC LIMIT ?"
    return journal.select(DecisionRow, clause, verdict, number)


def decisions_on_branch(journal: Journal, *, before: int = ALL) -> Iterator[DecisionRow]:
    """Those of a lower number, oldest first, but for those on a branch that the trainer left."""
    clause = "WHERE seq < ? AND abandoned_by IS NULL ORDER BY seq"
    return journal.stream(DecisionRow, clause, before)


def newest_decision_number(journal: Journal) -> int:
    """The number of the newest decision, which is how many there are; 0: none."""
    return _number(journal, "SELECT MAX(seq) FROM decisions") or 0


def newest_decided_step(journal: Journal) -> int | None:
    """The step of the newest checkpoint that a policy decided on, on the branch that goes on."""
    query = "SELECT MAX(step) FROM decisions WHERE asked_by = 'policy' AND abandoned_by IS NULL"
    return _number(journal, query)


def decision_counts(journal: Journal) -> dict[str, int]:
    """Decisions by verdict."""
    return dict(journal.cells("SELECT verdict, COUNT(*) FROM decisions GROUP BY verdict"))


def untold_interventions(journal: Journal) -> list[DecisionRow]:
    """Interventions in force whose outcome MLflow has not been told, oldest first."""
    return journal.select(
        DecisionRow,
        "WHERE verdict = 'intervene' AND generation IN "
        "(SELECT generation FROM orders WHERE applied_step IS NOT NULL) "
        "AND NOT EXISTS (SELECT 1 FROM outbox WHERE key = 'outcome:' || decisions.id) "
        "ORDER BY seq",
    )


def untold_receipts(journal: Journal) -> list[ExperimentRow]:
    """Receipts that are done and whose last point MLflow has not been told, oldest first."""
    if journal.version < EXPERIMENTS_SINCE:
        return []
    rows = journal.select(
        ExperimentRow,
        "WHERE state = 'done' AND abandoned_by IS NULL AND NOT EXISTS "
        "(SELECT 1 FROM outbox WHERE key = 'receipt:' || experiments.decision || ':2') ORDER BY id",
    )
    return [row for row in rows if row.receipt]


# -- experiments -----------------------------------------------------------------------------------


def experiment(journal: Journal, experiment_id: str) -> ExperimentOutcome | None:
    """The experiment of an id, with its scores."""
    if journal.version < EXPERIMENTS_SINCE:
        return None
    return journal.first(ExperimentOutcome, "WHERE id = ?", experiment_id)


def experiments(journal: Journal) -> list[ExperimentRow]:
    """Every experiment, oldest first, without scores."""
    if journal.version < EXPERIMENTS_SINCE:
        return []
    return journal.select(ExperimentRow, "ORDER BY id")


def experiments_on_branch(journal: Journal, *, before: int = ALL) -> Iterator[ExperimentOutcome]:
    """Those of decisions of a lower number, oldest first, with their scores.

    But for those that were given up, or that began on a branch which the trainer left.
    """
    if journal.version < EXPERIMENTS_SINCE:
        return iter(())
    clause = f"WHERE state <> 'abandoned' AND abandoned_by IS NULL{_BEFORE} ORDER BY id"
    return journal.stream(ExperimentOutcome, clause, before)


def open_experiments(journal: Journal) -> list[ExperimentRow]:
    """Those still to be made: a policy's own before a receipt, which yields to it."""
    if journal.version < EXPERIMENTS_SINCE:
        return []
    rows = journal.select(ExperimentRow, "WHERE state IN ('planned', 'running') ORDER BY id")
    return sorted(rows, key=lambda row: row.receipt)


def experiments_charged(journal: Journal, *, before: int = ALL) -> int:
    """Tokens that experiments have taken, or may yet take, of their budget.

    Those of decisions of a lower number, whatever branch they began on.
    """
    if journal.version < EXPERIMENTS_SINCE:
        return 0
    clause = f"WHERE state <> 'refused'{_BEFORE}"
    return sum(row.charged for row in journal.stream(ExperimentRow, clause, before))


def experiments_ended(journal: Journal) -> int:
    """The number of the last experiment to end on the branch that goes on; 0: none has."""
    if journal.version < EXPERIMENTS_SINCE:
        return 0
    query = "SELECT MAX(ended) FROM experiments WHERE abandoned_by IS NULL"
    return _number(journal, query) or 0


def experiment_news(journal: Journal, known: int) -> bool:
    """Whether more than the first ``known`` have ended, receipts aside, on the branch that goes on.

    A receipt is judged beside the run's scores, and heard with the next.
    """
    if journal.version < EXPERIMENTS_SINCE:
        return False
    clause = "WHERE abandoned_by IS NULL AND ended > ?"
    return any(not row.receipt for row in journal.select(ExperimentRow, clause, known))


def experiments_known(journal: Journal, number: int) -> int:
    """How many experiments had ended when the decision of this number was asked for."""
    if journal.version < EXPERIMENTS_SINCE:
        return 0
    query = "SELECT experiments_known FROM decisions WHERE seq = ?"
    return _number(journal, query, number) or 0


def experiments_known_at(journal: Journal, step: int) -> int:
    """The same of the last policy's decision at a step, on the branch that goes on."""
    query = (
        "SELECT MAX(experiments_known) FROM decisions "
        "WHERE step = ? AND asked_by = 'policy' AND abandoned_by IS NULL"
    )
    return _number(journal, query, step) or 0


# -- events and the outbox -------------------------------------------------------------------------


def events(journal: Journal, *kinds: str, after: int = 0) -> list[EventRow]:
    """Every event of these kinds, oldest first; with ``after`` those of higher numbers."""
    marks = ", ".join("?" * len(kinds))
    clause = f"WHERE kind IN ({marks}) AND seq > ? ORDER BY seq"
    return journal.select(EventRow, clause, *kinds, after)


def newest_event_number(journal: Journal) -> int:
    """The number of the newest event of any kind; 0 for none."""
    return _number(journal, "SELECT MAX(seq) FROM events") or 0


def newest_event(journal: Journal, *kinds: str) -> EventRow | None:
    """The newest event of these kinds."""
    marks = ", ".join("?" * len(kinds))
    clause = f"WHERE kind IN ({marks}) ORDER BY seq DESC LIMIT 1"
    return journal.first(EventRow, clause, *kinds)


def start_params(journal: Journal) -> Json:
    """What the newest start of a controller told of the run; empty without one."""
    started = newest_event(journal, "started")
    return {} if started is None else dict(started.detail.get("params", {}))


def entry(journal: Journal, key: str) -> OutboxRow | None:
    """An entry for MLflow, sent or not."""
    return journal.first(OutboxRow, "WHERE key = ?", key)


def has_entry(journal: Journal, key: str) -> bool:
    """Whether there is an entry of this key, or of one that it begins, up to a colon."""
    query = "SELECT 1 FROM outbox WHERE key = ? OR key LIKE ?"
    return journal.value(query, key, f"{key}:%") is not None


def numbered_entry(journal: Journal, seq: int) -> OutboxRow | None:
    """An entry for MLflow by its number."""
    return journal.first(OutboxRow, "WHERE seq = ?", seq)


def newest_description(journal: Journal) -> OutboxRow | None:
    """The newest entry that describes the run."""
    clause = "WHERE kind IN ('note', 'end') ORDER BY seq DESC LIMIT 1"
    return journal.first(OutboxRow, clause)


def next_waiting(journal: Journal, *, after: int) -> int | None:
    """The number of the first entry above a number that MLflow has not got."""
    query = "SELECT seq FROM outbox WHERE done_at IS NULL AND seq > ? ORDER BY seq LIMIT 1"
    return _number(journal, query, after)


def waiting_entries(journal: Journal, *, until: int = ALL) -> int:
    """How many entries MLflow has not got; of those up to a number, or of all."""
    query = "SELECT COUNT(*) FROM outbox WHERE done_at IS NULL AND seq <= ?"
    return _number(journal, query, until) or 0


def sent_entries(journal: Journal) -> int:
    """How many entries MLflow has got."""
    ended = _number(journal, "SELECT COUNT(*) FROM outbox WHERE done_at IS NOT NULL") or 0
    return max(ended - refused_entries(journal), 0)


def refused_entries(journal: Journal) -> int:
    """How many entries were let go because MLflow would not take them."""
    return _number(journal, "SELECT COUNT(*) FROM events WHERE kind = 'tracking-refused'") or 0


def is_waiting(journal: Journal, key: str) -> bool:
    """Whether MLflow has not got an entry yet."""
    query = "SELECT 1 FROM outbox WHERE key = ? AND done_at IS NULL"
    return journal.value(query, key) is not None


def newest_entry_number(journal: Journal) -> int:
    """The number of the newest entry; 0 without one."""
    return _number(journal, "SELECT MAX(seq) FROM outbox") or 0


def event_before_sent(journal: Journal) -> int:
    """The number of the event after which an entry last arrived in MLflow; 0: none ever did.

    Not by the clock, which may step.
    """
    return int(_meta(journal, "sent-after-event") or 0)


def _number(journal: Journal, query: str, *values: int) -> int | None:
    value = journal.value(query, *values)
    return None if value is None else int(value)
