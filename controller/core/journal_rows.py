"""What the journal's tables hold, as typed records. Pure."""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal

from mixloop.common.types import Json
from mixloop.policies.guards import GuardNote
from mixloop.policies.interface import Experiment, Phase

from .decision_record import AskedBy, Plan, Weights

Counts = Mapping[str, int]
Guards = tuple[GuardNote, ...]
EvaluationState = Literal["running", "scored", "failed", "skipped"]
ExperimentRowState = Literal["planned", "running", "done", "failed", "refused", "abandoned"]
ApprovalState = Literal["waiting", "approved", "rejected", "superseded", "expired"]


@dataclass(frozen=True, slots=True)
class TableRow:
    """A row of :attr:`TABLE`, which may be a join; each field is a column."""

    TABLE: ClassVar[str]

    def to_json(self, *, but: Container[str] = ()) -> Json:
        """Plain JSON values, without those of the columns in ``but``."""
        names = (field.name for field in fields(self) if field.name not in but)
        return {name: _plain(getattr(self, name)) for name in names}


def _plain(value: Any) -> Any:
    """Of a plan its stretches, of guards their notes, as JSON has them."""
    if not isinstance(value, tuple):
        return value
    return [part.to_json() if isinstance(part, GuardNote) else list(part) for part in value]


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


# beside what was asked for: of the run, and whether it is a receipt
_AT_IT = ("weights", "phase", "learning_rate", "receipt")


@dataclass(frozen=True, slots=True)
class ExperimentRow(TableRow):
    """An experiment that a policy asked for, or a receipt, without its scores.

    Attributes:
        step, tokens: of the checkpoint that its branches start from.
        asked: see :attr:`request`, :attr:`weights`, :attr:`phase` and :attr:`learning_rate`.
        planned: training tokens of all branches; ``cost``: those that were spent.
        attempts: how often it was started.
        reason: why it was refused, given up or has failed.
        effects: what came of it, in figures; None before it is done.
        ended: it was so many-th to end; None before, and of one that never began.
        abandoned_by: the incarnation of the trainer that left the branch it started from.
    """

    TABLE: ClassVar[str] = "experiments"
    id: str
    decision: str
    step: int
    tokens: int
    asked: Json
    planned: int
    state: ExperimentRowState
    attempts: int
    reason: str | None
    effects: Json | None
    cost: int
    ended: int | None
    asked_at: str
    started_at: str | None
    finished_at: str | None
    abandoned_by: int | None

    @property
    def request(self) -> Experiment:
        """What the policy asked for, as the guard left it."""
        return Experiment(**{name: self.asked[name] for name in self.asked if name not in _AT_IT})

    @property
    def weights(self) -> Weights:
        """The control's mixture: the one in force then."""
        return dict(self.asked["weights"])

    @property
    def phase(self) -> Phase | None:
        """Of the checkpoint."""
        phase: Phase | None = self.asked["phase"]
        return phase

    @property
    def learning_rate(self) -> float | None:
        """The trainer's then; None: it doesn't say."""
        rate: float | None = self.asked["learning_rate"]
        return rate

    @property
    def receipt(self) -> bool:
        """Whether it is the twin of its decision's change, which goes on without it."""
        return bool(self.asked.get("receipt"))

    @property
    def open(self) -> bool:
        """Whether it is still to be made."""
        return self.state in ("planned", "running")

    @property
    def charged(self) -> int:
        """Tokens that count against the budget: what is planned, until less is known to be so."""
        if self.state == "refused" or (not self.open and not self.attempts):
            return 0
        if self.state == "failed" and self.cost:
            return self.cost
        return max(self.planned, self.cost)


@dataclass(frozen=True, slots=True)
class ExperimentOutcome(ExperimentRow):
    """An experiment, and what came of it.

    ``result`` is an :class:`~mixloop.policies.interface.ExperimentResult`; None before it is done.
    """

    result: Json | None


@dataclass(frozen=True, slots=True)
class OrderRow(TableRow):
    """An order.

    ``published_*`` say when it lay in ``mixture.json``, ``applied_*`` where it came into force,
    ``rejected`` why it never will; each is None before it is so.
    """

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
