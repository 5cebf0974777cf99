"""The controller's core: from what is the case to the single next action. Pure.

Level-triggered: the same look serves start-up, recovery, and every ordinary moment; there are no
missed events because there are no events. The shell in `controller.loop` builds a
:class:`RunState` from files, journal and children, performs the action named here, and looks again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from mixloop.common.json_records import Problem
from mixloop.contract import Manifest, OpenLine, Schedule, Status


class FileState(Enum):
    """What ``mixture.json`` holds, compared with the newest order in the journal."""

    ABSENT = "absent"
    CURRENT = "current"  # ours, under our fence
    STALE = "stale"  # to be replaced by our order as it was
    FOREIGN = "foreign"  # not written by any controller of this journal, and the trainer follows it


@dataclass(frozen=True)
class Applied:
    """Where an order came into force, as the trainer's schedule and status say it."""

    generation: int
    sample: int
    step: int


@dataclass(frozen=True)
class JobState:
    """How far the controller's own jobs are."""

    scoring: bool = False
    scored: bool = False  # its result waits to be taken
    writing: bool = False  # samples of a checkpoint that is scored
    unplanned: bool = False  # how many items to score is still to be found out
    piloting: bool = False  # a trial evaluation, which the plan is made from
    piloted: bool = False  # its result waits to be taken
    deciding: bool = False
    decided: bool = False  # the answer waits to be taken
    experimenting: str = ""  # id of the experiment under way, or whose result waits
    experimented: bool = False  # its result waits to be taken
    draining: bool = False
    drain_due: bool = False
    drain_failed: bool = False  # the last attempt got nothing through
    curves_at: int = -1  # tokens of the heartbeat whose curves were recorded last

    @property
    def working(self) -> bool:
        """Whether a child scores or decides."""
        return self.scoring or self.piloting or self.deciding


@dataclass(frozen=True)
class Rewind:
    """Where an incarnation left the branch of those before it.

    A trainer that resumes at another batch size, or is asked to rewind, cuts the recorded future:
    what earlier incarnations made beyond that sample belongs to a branch that nobody trains on any
    more. A plain resume cuts nothing: it sees the same batches again.
    """

    incarnation: int
    sample: int
    step: int
    tokens: int

    def __str__(self) -> str:
        return f"the trainer rewound to step {self.step} (incarnation {self.incarnation})"


@dataclass(frozen=True)
class RunState:
    """Everything the next action depends on or works with. Tokens, steps and samples are counts."""

    # the trainer
    status: Status | None = None  # its newest heartbeat that could be read
    training_ended: bool = False  # it has spent this budget
    unknown_sources: tuple[str, ...] = ()  # of run.yaml, which it was not started with
    began: tuple[OpenLine, ...] = ()  # incarnations the journal does not know of, oldest first
    rewinds: tuple[Rewind, ...] = ()
    # the shared state file, and the generation of the order asked for (None: no order yet)
    file: FileState = FileState.ABSENT
    foreign_order: str = ""  # what lies there, or is followed, that this journal does not have
    asked: int | None = None
    # orders the trainer has begun to consume, or refused, that the journal does not know of
    newly_applied: tuple[Applied, ...] = ()
    newly_rejected: Mapping[int, str] = field(default_factory=dict)
    # operators
    paused: bool = False
    request: Path | None = None  # the next file to be dealt with
    expired: str = ""  # id of a decision whose approval was waited for in vain
    # checkpoints
    unrecorded: Mapping[Path, Manifest] = field(default_factory=dict)  # by folder, oldest first
    waiting: tuple[int, ...] = ()  # steps still to be scored, the next one first
    to_skip: Mapping[int, str] = field(default_factory=dict)  # steps not to be scored, and why
    to_decide: int | None = None  # step of the newest scored checkpoint without a decision
    # experiments
    experiment: str = ""  # id of the one to be made now, begun or not
    experiment_over: str = ""  # why it is to be given up
    # MLflow
    curves_due: bool = False  # newer curves than the ones recorded
    outbox: int = 0  # entries it has not got yet
    closed: bool = False  # the run's end is in the outbox
    # files that could not be read, each with what is wrong with it
    problems: Mapping[Path, Problem] = field(default_factory=dict)
    jobs: JobState = JobState()

    @property
    def finished(self) -> bool:
        """Whether the trainer has spent this budget and no checkpoint waits any more."""
        return self.training_ended and not self.unrecorded and not self.waiting


class Action(Enum):
    """The single next thing to do; what it works on is in the :class:`RunState`."""

    RESTORE = "restore"
    PUBLISH = "publish"
    ACKNOWLEDGE = "acknowledge"
    NOTE_REJECTION = "note-rejection"
    NOTE_INCARNATION = "note-incarnation"
    TAKE_REQUEST = "take-request"
    EXPIRE = "expire"
    RECORD_CHECKPOINT = "record-checkpoint"
    SKIP_CHECKPOINTS = "skip-checkpoints"
    TAKE_SCORES = "take-scores"
    TAKE_PILOT = "take-pilot"
    TAKE_DECISION = "take-decision"
    TAKE_EXPERIMENT = "take-experiment"
    ABANDON_EXPERIMENT = "abandon-experiment"
    START_PILOT = "start-pilot"
    START_SCORING = "start-scoring"
    START_DECIDING = "start-deciding"
    START_EXPERIMENT = "start-experiment"
    RECORD_CURVES = "record-curves"
    DRAIN = "drain"
    CLOSE = "close"
    END = "end"
    WAIT = "wait"


def next_action(state: RunState) -> Action:
    """The most urgent thing to do.

    The order is the order of harm: a wrong shared file first, then facts that must not be lost,
    then what a person asked for, then work, then the view in MLflow, which must never delay any
    of it.
    """
    jobs = state.jobs
    due = (
        (state.file is FileState.FOREIGN, Action.RESTORE),
        (state.asked and state.file is not FileState.CURRENT, Action.PUBLISH),
        (state.began, Action.NOTE_INCARNATION),  # before anything told of the branch it left
        (state.newly_applied, Action.ACKNOWLEDGE),
        (state.newly_rejected, Action.NOTE_REJECTION),
        (state.request, Action.TAKE_REQUEST),
        (state.expired, Action.EXPIRE),
        (state.unrecorded, Action.RECORD_CHECKPOINT),
        (jobs.scored, Action.TAKE_SCORES),
        (jobs.piloted, Action.TAKE_PILOT),
        (jobs.decided, Action.TAKE_DECISION),
        (jobs.experimented, Action.TAKE_EXPERIMENT),
        (state.experiment and state.experiment_over, Action.ABANDON_EXPERIMENT),
        (state.to_skip, Action.SKIP_CHECKPOINTS),
        (state.to_decide is not None and not jobs.deciding, Action.START_DECIDING),
        (state.waiting and not jobs.scoring and not jobs.piloting, _scoring(jobs)),
        (_experiment_due(state), Action.START_EXPERIMENT),
        (state.curves_due, Action.RECORD_CURVES),
    )
    return next((action for is_due, action in due if is_due), _tracking_or_rest(state))


def _experiment_due(state: RunState) -> bool:
    """One that an earlier controller had begun goes on; a receipt under way yields to another."""
    due = state.experiment and state.experiment != state.jobs.experimenting
    return bool(due) and not state.paused


def _scoring(jobs: JobState) -> Action:
    """Before the first checkpoint is scored, pilots find out on how many items."""
    return Action.START_PILOT if jobs.unplanned else Action.START_SCORING


def _tracking_or_rest(state: RunState) -> Action:
    jobs = state.jobs
    ended = state.finished and not (jobs.working or jobs.writing)
    if ended and not state.closed:
        return Action.CLOSE
    if ended and not jobs.draining and (not state.outbox or jobs.drain_failed):
        return Action.END
    if state.outbox and not jobs.draining and jobs.drain_due:
        return Action.DRAIN
    return Action.WAIT


def find_rewinds(schedule: Schedule) -> tuple[Rewind, ...]:
    """Every rewind, oldest first; the rule is that of the schedule itself."""
    return tuple(
        Rewind(line.incarnation, line.sample, line.step, line.sample * line.sequence_length)
        for line in schedule.cuts
    )


def left_by(rewinds: Iterable[Rewind], sample: int, incarnation: int) -> Rewind | None:
    """The rewind that left a checkpoint behind, or None.

    Args:
        rewinds: Those of the run, oldest first.
        sample: Where the checkpoint was made.
        incarnation: The one that made it; of an unknown one (0) nothing is left behind.
    """
    for rewind in rewinds:
        if 0 < incarnation < rewind.incarnation and sample > rewind.sample:
            return rewind
    return None
