"""A new run that begins as another one did: the schedule's prefix, and the ledger it amounts to."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mixloop.common.files import read_json, write_atomic, write_json
from mixloop.contract import (
    SCALE,
    AcceptedOrder,
    BatchSchedule,
    OpenLine,
    OrderInForce,
    RunPaths,
    Schedule,
    ScheduleError,
    Status,
    encode_line,
    read_manifest,
    read_schedule,
    read_status,
    with_accumulation,
    write_manifest,
    write_status,
)
from mixloop.trainer.config import JobError
from mixloop.trainer.mixing import MixtureOrder

from . import checkpoint_store
from .status_writer import ledger, now_utc

FORK_FILE = "fork.json"
FORK_SCHEMA = "mixloop/fork/1"


@dataclass(frozen=True)
class Fork:
    """Where a run was forked: `checkpoint` is the copied one's name, if the old run had it."""

    run: str
    parent: str
    folder: str
    step: int
    sample: int
    tokens: int
    checkpoint: str | None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, `schema` first."""
        return {"schema": FORK_SCHEMA, **self.__dict__}


def fork_run(
    old: Path, new: Path, run: str, *, step: int | None = None, sample: int | None = None
) -> Fork:
    """Make the run folder `new`, whose past up to a step is `old`'s and whose future is its own.

    It gets the lines of `schedule.jsonl` up to there, a `status.json` with the ledger, the
    checkpoint of that step if the old run has one, and `fork.json`, by which a loop may load the
    old run's state. The order that was in force stays in force; its `then` is not carried on.

    Args:
        old: a run folder; it is not changed.
        new: the folder to make.
        run: name of the new run.
        step: where; or
        sample: where, by a step's first sample.

    Raises:
        JobError: there is no such place in the old run, or a run in the new folder already.
        OSError: the disk does not let us.
    """
    if (step is None) == (sample is None):
        raise JobError("fork: give a step or a sample, one of the two")
    paths, target = RunPaths(old), RunPaths(new)
    if target.schedule.exists() or target.status.exists():
        raise JobError(f"{new}: a run lies there already; give another folder")
    try:
        schedule = read_schedule(paths.schedule)
    except (ScheduleError, OSError) as error:
        raise JobError(str(error)) from error
    if not schedule.mixture:
        raise JobError(f"{paths.schedule}: no schedule there; give the folder of a run")
    status = read_status(paths.status).value
    step, sample = _place(schedule, step, sample)
    if status is not None and sample > status.sample:
        raise JobError(
            f"fork: {old} has come to step {status.step} (sample {status.sample}), not to step "
            f"{step} (sample {sample})"
        )
    lines = [line for line in schedule.lines if line.sample < max(1, sample)]
    opened = next(line for line in reversed(lines) if isinstance(line, OpenLine))
    prefix = Schedule(tuple(lines))
    lines.append(_opened_at(prefix, opened, step, sample))
    new.mkdir(parents=True, exist_ok=True)
    fork = Fork(
        run=run,
        parent=status.run if status is not None else "",
        folder=str(old.resolve()),
        step=step,
        sample=sample,
        tokens=sample * opened.sequence_length,
        checkpoint=_copy_checkpoint(paths, target, step, run),
    )
    write_json(new / FORK_FILE, fork.to_json())
    write_status(target.status, _ledger(fork, prefix, opened, status))
    write_atomic(target.schedule, b"".join(encode_line(line) for line in lines))
    return fork


def _opened_at(prefix: Schedule, last: OpenLine, step: int, sample: int) -> OpenLine:
    """The line with which the new run goes on at a step, in the steps of the old one."""
    stages = BatchSchedule(prefix.batch_stages).since(sample).stages
    each = last.micro_batch * last.world_size
    return replace(
        last,
        incarnation=prefix.incarnation + 1,
        parent=checkpoint_store.folder_name(step) if sample else None,
        sample=sample,
        step=step,
        quantum=stages[0][1],
        accumulation=stages[0][1] // each,
        quanta=with_accumulation(stages, each),
        uid=secrets.token_hex(16) if last.uid else "",
        rewind=False,
    )


def _place(schedule: Schedule, step: int | None, sample: int | None) -> tuple[int, int]:
    """Step and first sample of the place asked for, by the effective schedule."""
    stretches = schedule.mixture
    before = 0
    for number, stretch in enumerate(stretches):
        later = stretches[number + 1].sample if number + 1 < len(stretches) else None
        steps = None if later is None else -(-(later - stretch.sample) // stretch.step_samples)
        if step is not None and step >= 0 and (steps is None or step < before + steps):
            return step, stretch.sample + (step - before) * stretch.step_samples
        if sample is not None and sample >= 0 and (later is None or sample < later):
            whole, rest = divmod(sample - stretch.sample, stretch.step_samples)
            if rest:
                raise JobError(
                    f"fork: sample {sample} is inside step {before + whole}; fork at a step"
                )
            return before + whole, sample
        before += steps or 0
    raise JobError(f"fork: no step {step} and no sample {sample}: they count from 0")


def _copy_checkpoint(paths: RunPaths, target: RunPaths, step: int, run: str) -> str | None:
    """Copy the checkpoint of that step, if there is a sound one, and give it the new run's name."""
    name = checkpoint_store.folder_name(step)
    folder = paths.checkpoints / name
    manifest = read_manifest(folder).value
    if manifest is None or checkpoint_store.fault(folder) is not None:
        return None
    target.checkpoints.mkdir(parents=True, exist_ok=True)
    work = target.checkpoints / f"{checkpoint_store.SCRATCH}{name}-{os.getpid()}"
    try:
        shutil.copytree(folder, work)
        write_manifest(work, replace(manifest, run=run))
        work.rename(target.checkpoints / name)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return name


def _ledger(fork: Fork, prefix: Schedule, opened: OpenLine, status: Status | None) -> Status:
    """The status of the new run before its first step."""
    order = MixtureOrder(prefix.sizes, opened.seed, prefix.mixture)
    force = prefix.segments[-1]
    return Status(
        run=fork.run,
        incarnation=prefix.incarnation + 1,
        pid=os.getpid(),
        host=socket.gethostname(),
        step=fork.step,
        sample=fork.sample,
        tokens=fork.tokens,
        budget=status.budget if status is not None else fork.tokens,
        lr=None,
        phase=None,
        loss=None,
        grad_norm=None,
        tokens_per_second=None,
        sources=ledger(order.drawn(fork.sample), order.versions, opened.sequence_length, losses={}),
        accepted=AcceptedOrder(*prefix.accepted),
        in_force=OrderInForce(
            fence=force.fence,
            generation=force.generation,
            sample=force.sample,
            step=force.step,
            weights={name: units / SCALE for name, units in force.weights.items()},
        ),
        world_size=opened.world_size,
        updated_at=now_utc(),
    )


def forked_from(folder: Path) -> tuple[str, int] | None:
    """Name of the run that a run folder was forked from, and at which sample."""
    try:
        value = read_json(folder / FORK_FILE)
        if value["schema"] != FORK_SCHEMA:
            return None
        return str(value["parent"]), int(value["sample"])
    except (OSError, ValueError, RecursionError, KeyError, TypeError):
        return None
