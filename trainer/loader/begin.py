"""The beginning of an incarnation in a loop that is not ours."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from mixloop.common.log import say
from mixloop.contract import RunPaths, ScheduleError, ScheduleTaken, ScheduleWriter, read_status
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

from .loader_state import LoaderState


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
        peers = GlooCollectives() if _distributed() else SingleProcess()
    return RankPlace(rank, world, peers)


def find_rank(rank: int | None, world: int | None, peers: Collectives | None) -> tuple[int, int]:
    """Rank and world among those that share out the data; talks to nobody.

    Raises:
        JobError: what was given can't work.
    """
    if peers is None and not _distributed():
        asked = world if world is not None else int(os.environ.get("WORLD_SIZE", "1"))
        if asked > 1 and not _initialised():
            given = f"rank {rank} of {world}" if world is not None else f"WORLD_SIZE={asked}"
            raise JobError(
                f"{given}, but torch.distributed is not initialised, so ranks can't hear of a new "
                "mixture; call torch.distributed.init_process_group first, or give peers="
            )
    here = leader_and_world(peers)
    rank = here[0] if rank is None else rank
    world = here[1] if world is None else world
    if not 0 <= rank < world:
        raise JobError(f"rank: {rank} is not below the world of {world}")
    return rank, world


def leader_and_world(peers: Collectives | None) -> tuple[int, int]:
    """Number of this process among all (0 leads), and how many there are; talks to nobody."""
    if peers is not None:
        return peers.rank, peers.world
    if not _distributed():
        return 0, 1
    import torch.distributed as dist

    return dist.get_rank(), dist.get_world_size()


def _initialised() -> bool:
    import torch.distributed as dist

    return bool(dist.is_available() and dist.is_initialized())


def _distributed() -> bool:
    """Whether there are other processes to talk to through `torch.distributed`."""
    if not _initialised():
        return False
    import torch.distributed as dist

    return bool(dist.get_world_size() > 1)


@dataclass(frozen=True)
class BegunIncarnation:
    """A begun incarnation; `micro` micro-batches of its first step are consumed already."""

    plan: ResumePlan
    start: Incarnation
    micro: int
    steering: LiveMixture


def begin_in_loop(
    job: Job,
    stores: Mapping[str, Any],
    place: RankPlace,
    state: LoaderState | None,
    rewind: bool,
) -> BegunIncarnation | None:
    """Begin an incarnation at a state, or from the start; None when the budget is spent.

    Collective. Rank 0's state decides.

    Raises:
        JobError: on every rank, one line naming what is in the way.
    """
    peers = place.peers
    plan, micro, known = on_first(peers, _told(lambda: _plan(job, stores, place, state, rewind)))
    asked = (place.world, job.seed, *_steps(job))
    theirs = (plan.world, plan.job.seed, *_steps(plan.job))
    if peers.any(asked != theirs or list(job.sources) != list(plan.job.sources)):
        raise JobError(
            "ranks: they don't agree on world, micro_batch, batch, seed or sources; give "
            "the same on every rank"
        )
    if plan.finished:
        return None
    writers: list[ScheduleWriter] = []

    def begin_here() -> Incarnation:
        writer, begun = begin(plan, known)
        writers.append(writer)
        return begun

    start: Incarnation = on_first(peers, _told(begin_here))
    steering = LiveMixture(plan, start, peers)
    if writers:
        steering.take_lead(plan, start, writers[0], stores)
        if plan.parent is not None:
            say(f"goes on at step {plan.step}, sample {plan.sample}", "mixloop")
    return BegunIncarnation(plan, start, micro, steering)


def _steps(job: Job) -> tuple[object, ...]:
    """The settings that say how steps are made."""
    settings = job.settings
    return settings.micro_batch, settings.accumulation, settings.batch, settings.batch_schedule


def _told(make: Callable[[], Any]) -> Callable[[], Any]:
    """The same with whatever a disk or a rival can do told in one line, on every rank."""

    def made() -> Any:
        try:
            return make()
        except (OSError, ScheduleTaken, ScheduleError) as error:
            raise JobError(str(error)) from error

    return made


def _plan(
    job: Job, stores: Mapping[str, Any], place: RankPlace, state: LoaderState | None, rewind: bool
) -> tuple[ResumePlan, int, frozenset[tuple[int, int]] | None]:
    try:
        plan = continue_from(
            job, stores, place.world, rewind, state.as_checkpoint() if state else None
        )
    except JobError as error:
        raise JobError(str(error).replace("--rewind", "rewind=True")) from error
    warn(plan, lambda text: say(text, "mixloop"))
    if state is None:
        _begins(plan)
        return plan, 0, None
    micro = state.micro_at(job.settings.micro_batch, place.world)
    return plan, micro, state.known(plan.schedule)


def _begins(plan: ResumePlan) -> None:
    """Refuse to begin again, unasked, a run that had gone on from a state."""
    opened = plan.schedule.latest_open
    if opened is None or plan.rewind:
        return
    if opened.parent is not None:
        raise JobError(
            f"{plan.job.dir}: this run went on from {opened.parent}, and no state was loaded; "
            "load_state_dict first, or pass rewind=True to begin again at step 0"
        )
    status = read_status(RunPaths(plan.job.dir).status).value
    if status is not None and status.step:
        say(
            f"{plan.job.dir}: this run was at step {status.step} and no state was loaded: it "
            "begins again at step 0, on the recorded schedule",
            "mixloop",
        )
