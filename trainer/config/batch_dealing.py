"""Samples of a step from a job's settings, and how ranks share them out."""

from __future__ import annotations

from mixloop.contract import BatchSchedule, Stages, stages_from

from .job import Job, JobError
from .trainer_settings import TrainerSettings

_LISTED = 12


def batch_schedule_of(settings: TrainerSettings, world: int, sample: int = 0) -> BatchSchedule:
    """The samples of a step that settings ask for, from a step's first sample on.

    Args:
        settings: the job's.
        world: ranks that share the samples of a step out.
        sample: the step's first.

    Raises:
        JobError: a batch can't be dealt to so many ranks; one line naming the key and what can.
    """
    return BatchSchedule(stages_from(_wanted(settings, world), sample))


def micro_batches(schedule: BatchSchedule, job: Job, world: int) -> int:
    """Micro-batches of a job's whole budget on one rank."""
    samples, each = -(-job.budget // job.sequence_length), job.settings.micro_batch * world
    ends = [first for first, _ in schedule.stages[1:] if first < samples] + [samples]
    stages = zip(schedule.stages, ends, strict=False)
    return sum(-(-(end - first) // size) * (size // each) for (first, size), end in stages)


def steady_accumulation(job: Job, world: int, who: str) -> int:
    """Micro-batches of every step on each rank, for a framework that has one number for them.

    Args:
        job: what is trained.
        world: ranks.
        who: the framework, for the message.

    Raises:
        JobError: the job changes its batch on the way.
    """
    stages = batch_schedule_of(job.settings, world).stages
    if len(stages) > 1:
        raise JobError(
            f"settings.batch_schedule: steps grow from {stages[0][1]} samples to {stages[-1][1]}, "
            f"and {who} accumulates as many micro-batches in every step; leave it out, or write a "
            "loop with MixtureLoader (its step_ends says when a step is whole)"
        )
    return stages[0][1] // (job.settings.micro_batch * world)


def _wanted(settings: TrainerSettings, world: int) -> Stages:
    """(sample from which, quantum) as configured, the first from 0."""
    length = settings.sequence_length
    each = settings.micro_batch * world
    if settings.batch is None:
        size = settings.accumulation * each
    else:
        size = _dealt(settings, settings.batch, world, "batch")
    stages = {0: size}
    for number, stage in enumerate(settings.batch_schedule):
        if stage.batch is None:
            size = (stage.accumulation or 1) * each
        else:
            size = _dealt(settings, stage.batch, world, f"batch_schedule.{number}.batch")
        stages[-(-stage.from_tokens // length)] = size  # the later of two inside one sample
    return tuple(stages.items())


def _dealt(settings: TrainerSettings, batch: int | str, world: int, key: str) -> int:
    """A batch in samples, if so many ranks can share it out."""
    size = _samples(batch, settings.sequence_length, key)
    rows = settings.micro_batch
    if size % rows:
        fitting = ", ".join(map(str, _divisors(size)[:_LISTED]))
        raise JobError(
            f"settings.{key}: {size} samples can't be cut into micro-batches of {rows}; give a "
            f"micro_batch that divides them ({fitting}) or another batch"
        )
    if size % (rows * world):
        worlds = ", ".join(map(str, _near(_divisors(size // rows), world)))
        raise JobError(
            f"settings.{key}: {size} samples can't be shared out to {world} ranks in micro-batches "
            f"of {rows}; worlds that can: {worlds} (or give another micro_batch)"
        )
    return size


def _samples(batch: int | str, length: int, key: str) -> int:
    if isinstance(batch, int):
        return batch
    tokens = int(batch.split()[0])
    if tokens % length:
        least = max(1, tokens // length) * length
        raise JobError(
            f"settings.{key}: {tokens} tokens are no whole number of samples of {length}; give a "
            f"multiple, as {least}"
        )
    return tokens // length


def _divisors(number: int) -> list[int]:
    small = [n for n in range(1, int(number**0.5) + 1) if number % n == 0]
    return sorted({*small, *(number // n for n in small)})


def _near(values: list[int], wanted: int) -> list[int]:
    """Those of ascending values that lie closest."""
    return sorted(sorted(values, key=lambda value: abs(value - wanted))[:_LISTED])
