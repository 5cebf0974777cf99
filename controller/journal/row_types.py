"""What the journal's tables hold, as typed records. SQLite's rows are made into them here alone."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal, TypeVar, get_args, get_type_hints

from mixloop.common.types import Json
from mixloop.controller.core import AskedBy, Plan, Weights
from mixloop.policies.guards import GuardNote
from mixloop.policies.interface import Phase

from .packing import unpack

Counts = Mapping[str, int]
Guards = tuple[GuardNote, ...]
EvaluationState = Literal["running", "scored", "failed", "skipped"]
ApprovalState = Literal["waiting", "approved", "rejected", "superseded", "expired"]


@dataclass(frozen=True, slots=True)
class TableRow:
    """A row of :attr:`TABLE`, which may be a join; each field is a column."""

    TABLE: ClassVar[str]

    def to_json(self, *, but: Container[str] = ()) -> Json:
        """Plain JSON values, without those of the columns in ``but``."""
        names = (name for name in _READERS[type(self)] if name not in but)
        return {name: _plain(getattr(self, name)) for name in names}


@dataclass(frozen=True, slots=True)
class LeaseRow(TableRow):
    """Who holds the run. ``counter``: its liveness, which only ever moves."""

    TABLE: ClassVar[str] = "lease"
    fence: int
    holder: str
    counter: int
    started_at: str


@dataclass(frozen=True, slots=True)
class CheckpointRow(TableRow):
    """A complete checkpoint. ``drawn``: tokens by source; ``losses``: by source, around it."""

    TABLE: ClassVar[str] = "checkpoints"
    step: int
    tokens: int
    sample: int
    path: str
    phase: Phase | None
    generation: int
    weights: Weights
    seen_at: str
    drawn: Counts
    losses: Weights
    incarnation: int


@dataclass(frozen=True, slots=True)
class EvaluationRow(TableRow):
    """What became of scoring a checkpoint; ``scorecard`` is that of ``mixloop eval --out``."""

    TABLE: ClassVar[str] = "evaluations"
    step: int
    state: EvaluationState
    attempts: int
    reason: str | None
    scorecard: Json | None
    started_at: str
    finished_at: str | None


@dataclass(frozen=True, slots=True)
class ScoredCheckpoint(CheckpointRow):
    """A checkpoint with its scorecard."""

    TABLE: ClassVar[str] = "checkpoints JOIN evaluations USING (step)"
    scorecard: Json
    finished_at: str


@dataclass(frozen=True, slots=True)
class CheckpointState(TableRow):
    """A checkpoint, and what became of scoring it; None: it was not begun."""

    TABLE: ClassVar[str] = "checkpoints LEFT JOIN evaluations USING (step)"
    step: int
    tokens: int
    sample: int
    incarnation: int
    state: EvaluationState | None
    reason: str | None
    finished_at: str | None


@dataclass(frozen=True, slots=True)
class DecisionRow(TableRow):
    """A :class:`~mixloop.controller.core.DecisionRecord` as it was journaled.

    ``generation``: of its order; ``abandoned_by``: the incarnation of the trainer that left the
    branch it was made on.
    """

    TABLE: ClassVar[str] = "decisions"
    seq: int
    id: str
    asked_by: AskedBy
    step: int
    tokens: int
    verdict: str
    policy: str
    reason: str
    evidence: Json
    weights_before: Weights
    weights_proposed: Weights | None
    weights_after: Weights
    plan: Plan
    guards: Guards
    against_generation: int
    generation: int | None
    observation_digest: str | None
    policy_digest: str | None
    fence: int
    scored_at: str | None
    decided_at: str
    abandoned_by: int | None


@dataclass(frozen=True, slots=True)
class OrderRow(TableRow):
    """An order. ``published_*``: when it lay in ``mixture.json``; ``applied_*``: where it came into
    force; ``rejected``: why it never will; each None before it is so."""

    TABLE: ClassVar[str] = "orders"
    generation: int
    decision: str
    policy: str
    reason: str
    weights: Weights
    plan: Plan
    issued_at: str
    published_fence: int | None
    published_at: str | None
    applied_sample: int | None
    applied_step: int | None
    applied_tokens: int | None
    applied_at: str | None
    rejected: str | None


@dataclass(frozen=True, slots=True)
class EventRow(TableRow):
    """Something a person may later ask about."""

    TABLE: ClassVar[str] = "events"
    seq: int
    at: str
    fence: int
    kind: str
    detail: Json


@dataclass(frozen=True, slots=True)
class OutboxRow(TableRow):
    """An entry for MLflow; ``done_at`` None: it has not arrived."""

    TABLE: ClassVar[str] = "outbox"
    seq: int
    key: str
    kind: str
    payload: Json
    created_ms: int
    done_at: str | None


@dataclass(frozen=True, slots=True)
class RequestRow(TableRow):
    """An operator's request, and its ``answer``: ``text``, and ``nearest`` of a refused mixture."""

    TABLE: ClassVar[str] = "requests"
    id: str
    verb: str
    asked: Json
    by: str
    asked_at: str
    taken_at: str
    state: Literal["done", "refused"]
    answer: Json
    decision: str | None


@dataclass(frozen=True, slots=True)
class ApprovalRow(TableRow):
    """What became of a decision that waited for a person; ``made``: the decision that ended it."""

    TABLE: ClassVar[str] = "approvals"
    decision: str
    state: ApprovalState
    why: str
    by: str | None
    reason: str | None
    at: str | None
    made: str | None


@dataclass(frozen=True, slots=True)
class AssessmentRow(TableRow):
    """What a person said of a decision in MLflow."""

    TABLE: ClassVar[str] = "assessments"
    id: str
    decision: str
    name: str
    value: object
    rationale: str | None
    by: str | None
    at: str | None


R = TypeVar("R", bound=TableRow)

TABLE_ROWS: tuple[type[TableRow], ...] = (
    *(LeaseRow, CheckpointRow, EvaluationRow, DecisionRow, OrderRow, EventRow, OutboxRow),
    *(RequestRow, ApprovalRow, AssessmentRow),
)


def _plan(stored: str | bytes) -> Plan:
    return tuple((until, weights) for until, weights in unpack(stored))


def _guards(stored: str | bytes) -> Guards:
    return tuple(GuardNote(**note) for note in unpack(stored))


_JSON: dict[Any, Callable[[str | bytes], Any]] = {
    **dict.fromkeys((Json, Weights, Counts, object), unpack),
    Plan: _plan,
    Guards: _guards,
}


def _readers(kind: type[Any]) -> dict[str, Callable[[str | bytes], Any] | None]:
    hints = get_type_hints(kind)
    types = {field.name: hints[field.name] for field in fields(kind)}
    return {
        name: next((_JSON[part] for part in (hint, *get_args(hint)) if part in _JSON), None)
        for name, hint in types.items()
    }


# the columns of each kind of row; for those of JSON, what reads them
_READERS = {kind: _readers(kind) for kind in (*TABLE_ROWS, ScoredCheckpoint, CheckpointState)}

# without `value`, which is JSON in assessments alone: it comes as such from MLflow
JSON_COLUMNS = frozenset(
    name for row in _READERS.values() for name, read in row.items() if read and name != "value"
)


def _plain(value: Any) -> Any:
    """Of a plan its stretches, of guards their notes, as JSON has them."""
    if not isinstance(value, tuple):
        return value
    return [part.to_json() if isinstance(part, GuardNote) else list(part) for part in value]


def query(kind: type[TableRow], clause: str) -> str:
    """The SELECT of all its columns; ``clause``: all that follows the table."""
    return f"SELECT {', '.join(_READERS[kind])} FROM {kind.TABLE} {clause}"


def build(kind: type[R], cells: Iterable[Any]) -> R:
    """A row of :func:`query` as a record.

    Raises:
        ValueError, TypeError, RecursionError: a value that is damaged.
    """
    shaped = zip(_READERS[kind].values(), cells, strict=True)
    return kind(*(cell if read is None or cell is None else read(cell) for read, cell in shaped))


def missing_column(db: sqlite3.Connection) -> str | None:
    """``table.column`` of the first that a file lacks, or None."""
    for kind in TABLE_ROWS:
        columns = {row[1] for row in db.execute(f"PRAGMA table_info({kind.TABLE})")}
        for name in _READERS[kind]:
            if name not in columns:
                return f"{kind.TABLE}.{name}"
    return None
