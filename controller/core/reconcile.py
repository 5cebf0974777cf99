"""The controller's core: look at the world, name the single next action. Pure.

Level-triggered: the same look serves start-up, recovery, and every ordinary moment; there are no
missed events because there are no events. The shell in `controller.loop` builds a
:class:`RunState` from files and journal, performs the action named here, and looks again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum


class FileState(Enum):
    """What ``mixture.json`` holds, compared with the newest order in the journal."""

    ABSENT = "absent"
    CURRENT = "current"  # ours, under our fence
    STALE = "stale"  # our order, under an earlier fence or an earlier generation of ours
    STRANGER = "stranger"  # not written by any controller of this journal


@dataclass(frozen=True)
class Applied:
    """Where an order came into force, as the trainer's schedule and status say it."""

    generation: int
    sample: int
    step: int


@dataclass(frozen=True)
class RunState:
    """Everything the next action depends on. Tokens, steps and samples are counts."""

    # the shared state file and the newest order asked for (None: no order yet)
    file: FileState = FileState.ABSENT
    asked: int | None = None
    # orders the trainer has begun to consume, or refused, that the journal does not know of
    newly_applied: tuple[Applied, ...] = ()
    newly_rejected: Mapping[int, str] = field(default_factory=dict)
    # operators
    requested: bool = False  # a request waits to be taken
    overdue: bool = False  # a proposal waits for an approval that came too late
    # checkpoints
    unrecorded: tuple[str, ...] = ()  # folder names, oldest first
    to_score: int | None = None  # step of the next checkpoint to score
    to_skip: Mapping[int, str] = field(default_factory=dict)  # steps not to be scored, and why
    unplanned: bool = False  # how many items to score is still to be found out
    to_decide: int | None = None  # step of the newest scored checkpoint without a decision
    # children
    scoring: bool = False
    scored: bool = False  # a result waits to be taken
    trying: bool = False  # a trial evaluation, which the plan is made from
    tried: bool = False  # its result waits to be taken
    deciding: bool = False
    decided: bool = False
    # the trainer
    began: bool = False  # a new incarnation of it, which the journal does not know of
    finished: bool = False  # reached the end of its budget
    status_changed: bool = False  # newer curves than the ones recorded
    # MLflow
    outbox: int = 0
    draining: bool = False
    drain_due: bool = False
    drain_failed: bool = False  # the last attempt got nothing through
    closed: bool = False  # the run's end is in the outbox


class Action(Enum):
    """The single next thing to do; what it works on is in the :class:`World`."""

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
    TAKE_TRIAL = "take-trial"
    TAKE_DECISION = "take-decision"
    START_TRIAL = "start-trial"
    START_SCORING = "start-scoring"
    START_DECIDING = "start-deciding"
    RECORD_CURVES = "record-curves"
    DRAIN = "drain"
    CLOSE = "close"
    END = "end"
    WAIT = "wait"


def next_action(world: RunState) -> Action:  # noqa: PLR0911 - a priority list reads best as one
    """The most urgent thing to do.

    The order is the order of harm: a wrong shared file first, then facts that must not be lost,
    then what a person asked for, then work, then the view in MLflow, which must never delay any
    of it.
    """
    if (urgent := _shared_file(world)) is not None:
        return urgent
    if (news := _from_the_trainer(world)) is not None:
        return news
    if world.requested:
        return Action.TAKE_REQUEST
    if world.overdue:
        return Action.EXPIRE
    if world.unrecorded:
        return Action.RECORD_CHECKPOINT
    if world.scored:
        return Action.TAKE_SCORES
    if world.tried:
        return Action.TAKE_TRIAL
    if world.decided:
        return Action.TAKE_DECISION
    if world.to_skip:
        return Action.SKIP_CHECKPOINTS
    if world.to_decide is not None and not world.deciding:
        return Action.START_DECIDING
    if (scoring := _scoring(world)) is not None:
        return scoring
    if world.status_changed:
        return Action.RECORD_CURVES
    return _tracking_or_rest(world)


def _shared_file(world: RunState) -> Action | None:
    if world.file is FileState.STRANGER:
        return Action.RESTORE
    if world.asked is not None and world.file in (FileState.ABSENT, FileState.STALE):
        return Action.PUBLISH
    return None


def _from_the_trainer(world: RunState) -> Action | None:
    if world.began:  # before anything that is told of the branch it left
        return Action.NOTE_INCARNATION
    if world.newly_applied:
        return Action.ACKNOWLEDGE
    return Action.NOTE_REJECTION if world.newly_rejected else None


def _scoring(world: RunState) -> Action | None:
    """The next checkpoint is scored; before the first of all, trials find out on how many items."""
    if world.to_score is None or world.scoring or world.trying:
        return None
    return Action.START_TRIAL if world.unplanned else Action.START_SCORING


def _tracking_or_rest(world: RunState) -> Action:
    idle = not (world.scoring or world.trying or world.deciding)
    if world.finished and idle and not world.closed:
        return Action.CLOSE
    told = not world.outbox or world.drain_failed
    if world.finished and world.closed and idle and not world.draining and told:
        return Action.END
    if world.outbox and not world.draining and world.drain_due:
        return Action.DRAIN
    return Action.WAIT
