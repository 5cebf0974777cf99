"""The beginning of an incarnation in a loop that is not ours."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

from mixloop.common.log import say
from mixloop.contract import (
    RunPaths,
    ScheduleError,
    ScheduleTaken,
    ScheduleWriter,
    read_status,
    write_status,
)
from mixloop.trainer.config import Job, JobError
from mixloop.trainer.run import (
    Collectives,
    GlooCollectives,
    Incarnation,
    LiveMixture,
    ResumePlan,
    SingleProcess,
    begin,
    continue_from,
    on_first,
    warn,
)
from mixloop.trainer.sources import Store

from .loader_state import LoaderState

T = TypeVar("T")


@dataclass(frozen=True)
class RankPlace:
    """Which part of the data is this process's, and whom it hears of switches from.

    `rank` and `world` deal the samples; with tensor or pipeline parallelism several processes have
    the same rank, and `peers` is still all of them.
    """

    rank: int
    world: int
    peers: Collectives


def find_place(rank: int | None, world: int | None, peers: Collectives | None) -> RankPlace:
    """The place as given, else as `torch.distributed` has it. Collective when that is initialised.

    Raises:
        JobError: what was given can't work.
    """
    rank, world = find_rank(rank, world, peers)
    if peers is None:
        _, processes = _distributed_rank() or (0, 1)
        peers = GlooCollectives() if processes > 1 else SingleProcess()
    return RankPlace(rank, world, peers)


def find_rank(rank: int | None, world: int | None, peers: Collectives | None) -> tuple[int, int]:
    """Rank and world among those that share out the data; talks to nobody.

    Raises:
        JobError: what was given can't work.
    """
    here = _distributed_rank() if peers is None else (peers.rank, peers.world)
    if here is None:
        here = (0, 1)
        processes = world if world is not None else int(os.environ.get("WORLD_SIZE", "1"))
        if processes > 1:
            asked = f"rank {rank} of {world}" if world is not None else f"WORLD_SIZE={processes}"
            raise JobError(
                f"{asked}, but torch.distributed is not initialised, so ranks can't hear of a new "
                "mixture; call torch.distributed.init_process_group first, or give peers="
            )
    rank = here[0] if rank is None else rank
    world = here[1] if world is None else world
    if not 0 <= rank < world:
        raise JobError(f"rank: {rank} is not below the world of {world}")
    return rank, world


def _distributed_rank() -> tuple[int, int] | None:
    """Rank and world of `torch.distributed`, if it is initialised."""
    import torch.distributed as dist

    if not (dist.is_available() and dist.is_initialized()):
        return None
    return dist.get_rank(), dist.get_world_size()


@dataclass(frozen=True)
class BegunIncarnation:
    """A begun incarnation; `micro` micro-batches of its first step are consumed already."""

    plan: ResumePlan
    start: Incarnation
    micro: int
    live: LiveMixture


@dataclass(frozen=True)
class BeginOptions:
    """What of the record is given up.

    `rewind` drops what is recorded beyond the place to go on from; `from_scratch`, where no state
    was loaded, begins again a run that has such a place.
    """

    rewind: bool = False
    from_scratch: bool = False


def begin_in_loop(
    job: Job,
    stores: Mapping[str, Store],
    place: RankPlace,
    state: LoaderState | None,
    asked: BeginOptions,
) -> BegunIncarnation | None:
    """Begin an incarnation at a state, or from the start; None when the budget is spent.

    Collective. Rank 0's state and options decide.

    Raises:
        JobError: on every rank, one line naming what is in the way.
    """
    peers = place.peers
    make_plan = partial(_plan, job, stores, place, state, asked)
    plan, micro, valid = on_first(peers, partial(_in_one_line, make_plan))
    here = (place.world, job.seed, *_step_settings(job), list(job.sources))
    first = (plan.world, plan.job.seed, *_step_settings(plan.job), list(plan.job.sources))
    if peers.any(here != first):
        raise JobError(
            "ranks: they don't agree on world, micro_batch, batch, seed or sources; give "
            "the same on every rank"
        )
    if plan.finished:
        if peers.rank == 0:
            _finish_status(job)
        return None
    writers: list[ScheduleWriter] = []

    def begin_here() -> Incarnation:
        writer, start = begin(plan, valid)
        writers.append(writer)
        return start

    start: Incarnation = on_first(peers, partial(_in_one_line, begin_here))
    live = LiveMixture(plan, start, peers)
    if writers:
        live.take_lead(plan, start, writers[0])
        if plan.parent is not None:
            say(f"goes on at step {plan.step}, sample {plan.sample}", "mixloop")
    return BegunIncarnation(plan, start, micro, live)


def _step_settings(job: Job) -> tuple[object, ...]:
    """The settings that say how steps are made."""
    settings = job.settings
    return settings.micro_batch, settings.accumulation, settings.batch, settings.batch_schedule


def _in_one_line(action: Callable[[], T]) -> T:
    """What an action gives; whatever a disk or a rival can do is told in one line, on every rank.

    Raises:
        JobError: the line.
    """
    try:
        return action()
    except (OSError, ScheduleTaken, ScheduleError) as error:
        raise JobError(str(error)) from error


def _plan(
    job: Job,
    stores: Mapping[str, Store],
    place: RankPlace,
    state: LoaderState | None,
    asked: BeginOptions,
) -> tuple[ResumePlan, int, frozenset[tuple[int, int]] | None]:
    """The plan, the micro-batches of its first step that are consumed, and the valid segments."""
    try:
        plan = continue_from(
            job, stores, place.world, asked.rewind, state.as_checkpoint() if state else None
        )
    except JobError as error:
        raise JobError(str(error).replace("--rewind", "rewind=True")) from error
    warn(plan, lambda text: say(text, "mixloop"))
    if state is None:
        _check_fresh_start(plan, asked.from_scratch)
        return plan, 0, None
    micro = state.micro_at(job.settings.micro_batch, place.world)
    return plan, micro, state.valid_segments(plan.schedule)


def _check_fresh_start(plan: ResumePlan, from_scratch: bool) -> None:
    """Refuse to begin again, unasked, a run that has a place to go on from.

    One whose loop ended before it saved anything may: it could do nothing else.
    """
    opened = plan.schedule.latest_open
    if opened is None or plan.rewind:
        return
    status = read_status(RunPaths(plan.job.dir).status).value
    step = status.step if status is not None else opened.step
    resumable = status is not None and (status.resumable or status.finished)
    if (resumable or opened.parent is not None) and not from_scratch:
        stood = f"went on from {opened.parent}" if opened.parent else f"was at step {step}"
        raise JobError(
            f"{plan.job.dir}: this run {stood}, and no state was loaded; load its newest "
            "checkpoint's first (load_state_dict, restore, your trainer's own resume), or pass "
            "from_scratch=True to begin again at step 0"
        )
    if step:
        say(
            f"{plan.job.dir}: this run was at step {step} and no state was loaded: it begins again "
            "at step 0, on the recorded schedule",
            "mixloop",
        )


def _finish_status(job: Job) -> None:
    """Say in the status that the budget is spent, if the last trainer did not come to it."""
    path = RunPaths(job.dir).status
    try:
        status = read_status(path).value
        if status is not None and not status.finished:
            write_status(path, replace(status, finished=True, heartbeat=status.heartbeat + 1))
    except OSError as error:
        say(f"{path}: not written: {error}", "mixloop")
