"""Where a run stands, and the beginning of a trainer incarnation.

Light (no torch): the checks of a job and of a resume are made before anything heavy starts.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from mixloop.trainer import checkpoint
from mixloop.trainer.batches import document_end
from mixloop.trainer.contract import (
    Manifest,
    OpenLine,
    RunPaths,
    Schedule,
    ScheduleError,
    ScheduleWriter,
    SegmentLine,
    SourceEntry,
    VoidLine,
    read_schedule,
    writable_by_others,
)
from mixloop.trainer.hotreload import Switch
from mixloop.trainer.job import Job, JobError
from mixloop.trainer.keys import KeyFileError, key_for
from mixloop.trainer.lr import learning_rate_of
from mixloop.trainer.order import Segment, quantise
from mixloop.trainer.store import Store, open_stores, tokenizer_folder


@dataclass(frozen=True)
class Plan:
    """A start that has been checked and not yet begun."""

    job: Job
    sources: tuple[SourceEntry, ...]
    start: Mapping[str, float]
    schedule: Schedule
    parent: Path | None
    manifest: Manifest | None
    quantum: int
    world: int
    rewind: bool

    @property
    def step(self) -> int:
        """Optimizer steps already done."""
        return self.manifest.step if self.manifest else 0

    @property
    def sample(self) -> int:
        """Samples already consumed."""
        return self.manifest.sample if self.manifest else 0

    @property
    def finished(self) -> bool:
        """Whether the budget is spent."""
        return self.sample * self.job.sequence_length >= self.job.budget


@dataclass(frozen=True)
class Start:
    """A begun incarnation, as every rank needs it."""

    incarnation: int
    segments: tuple[Segment, ...]
    switches: tuple[Switch, ...]


def locate(
    job: Job,
    stores: Mapping[str, Store],
    world: int,
    rewind: bool,
    say: Callable[[str], None] = lambda text: None,
) -> Plan:
    """Find the newest complete checkpoint and check that the run can go on from it as asked.

    Raises:
        JobError: one line naming what is in the way.
    """
    paths = RunPaths(job.dir)
    try:
        found = checkpoint.newest(paths.checkpoints, say)
    except OSError as error:
        raise JobError(
            f"{paths.checkpoints}: unreadable ({error.strerror or error}); make it a readable "
            "folder, or start in another run folder"
        ) from error
    plan = continue_from(job, stores, world, rewind, found)
    _begins(plan)
    warn(plan, say)
    return plan


def continue_from(
    job: Job,
    stores: Mapping[str, Store],
    world: int,
    rewind: bool,
    found: tuple[Path, Manifest] | None,
) -> Plan:
    """Check that the run can go on as asked from a checkpoint, or begin (None).

    Raises:
        JobError: one line naming what is in the way.
    """
    try:
        key_for(job.settings.key_file)  # here, where every rank hears of it
    except KeyFileError as error:
        raise JobError(f"trainer.{error}") from error
    sizes = {name: store.samples(job.sequence_length) for name, store in stores.items()}
    entries = tuple(SourceEntry(n, sizes[n], stores[n].info.fingerprint) for n in stores)
    try:
        schedule = read_schedule(RunPaths(job.dir).schedule)
    except (ScheduleError, OSError) as error:
        raise JobError(str(error)) from error
    plan = Plan(
        job=job,
        sources=entries,
        start=job.start_weights(sizes),
        schedule=schedule,
        parent=found[0] if found else None,
        manifest=found[1] if found else None,
        quantum=job.settings.micro_batch * job.settings.accumulation * world,
        world=world,
        rewind=rewind,
    )
    _continues(plan)
    return plan


def warn(plan: Plan, say: Callable[[str], None]) -> None:
    """Say what is odd and no reason to stop."""
    if writable_by_others(plan.job.dir):
        say(f"{plan.job.dir} is writable by others than its owner: anyone there can steer the run")
    begun = next((dict(s.weights) for s in plan.schedule.segments if s.sample == 0), None)
    if begun is not None and begun != quantise(plan.start):
        say(
            "sources: the job's weights are not those this run was begun with; they are not "
            "applied (the schedule goes on as recorded, orders change it)"
        )


def _continues(plan: Plan) -> None:
    """Refuse a resume that would not continue the recorded order."""
    job, opened = plan.job, plan.schedule.latest_open
    if plan.manifest is not None and plan.manifest.run != job.run:
        raise JobError(f"{plan.parent}: a checkpoint of run {plan.manifest.run!r}, not {job.run!r}")
    if opened is None:
        if plan.manifest is not None:
            raise JobError(
                f"{RunPaths(job.dir).schedule}: missing, though {plan.parent} is there; "
                "restore it, or start in another folder"
            )
        return
    for key, recorded, asked in (
        ("seed", opened.seed, job.seed),
        ("settings.sequence_length", opened.sequence_length, job.sequence_length),
    ):
        if recorded != asked:
            raise JobError(f"{key}: {asked} in the job, but this run was begun with {recorded}")
    _same_sources(opened.sources, plan.sources)
    other = [q for q in _quanta(plan.schedule, plan.sample) if q != plan.quantum]
    if other and not plan.rewind:
        raise JobError(
            f"a step takes {plan.quantum} samples now (micro_batch x accumulation x processes), "
            f"but this run was recorded with {other[-1]}; restore that, or pass --rewind to cut "
            f"what is recorded beyond sample {plan.sample}"
        )


def _begins(plan: Plan) -> None:
    """Refuse to begin a run from scratch, unasked, when its checkpoints were lost."""
    if plan.manifest is not None or plan.rewind:
        return
    folder, opened = RunPaths(plan.job.dir).checkpoints, plan.schedule.latest_open
    if folder.is_symlink() and not folder.exists():
        trouble = "a link to nothing"
    elif steps := checkpoint.list_steps(folder):
        trouble = f"none of its {len(steps)} checkpoints is complete"
    elif opened is not None and opened.parent is not None:
        trouble = f"no checkpoint there, though this run went on from {opened.parent}"
    else:
        return
    raise JobError(f"{folder}: {trouble}; restore it, or pass --rewind to begin again at step 0")


def _quanta(schedule: Schedule, sample: int) -> list[int]:
    """Samples of a step, as recorded for `sample` and what lies beyond."""
    reached = max((seg.sample for seg in schedule.mixture if seg.sample <= sample), default=0)
    return [segment.quantum for segment in schedule.mixture if segment.sample >= reached]


def _same_sources(recorded: tuple[SourceEntry, ...], asked: tuple[SourceEntry, ...]) -> None:
    before = {entry.name: entry for entry in recorded}
    if list(before) != [entry.name for entry in asked]:
        raise JobError(
            f"sources: {', '.join(entry.name for entry in asked)} in the job, but this run was "
            f"begun with {', '.join(before)}, in that order"
        )
    for entry in asked:
        if entry != before[entry.name]:
            raise JobError(
                f"sources.{entry.name}: the store has changed since this run was begun "
                f"({before[entry.name].samples} samples then, {entry.samples} now); restore it"
            )


def switches(schedule: Schedule, sources: tuple[SourceEntry, ...]) -> tuple[Switch, ...]:
    """The effective segments as switches, weights in the sources' order."""
    return tuple(
        Switch(
            sample=line.sample,
            fence=line.fence,
            generation=line.generation,
            weights=tuple(line.weights.get(entry.name, 0) for entry in sources),
            step=line.step,
        )
        for line in schedule.segments
    )


def begin(plan: Plan, known: frozenset[tuple[int, int]] | None) -> tuple[ScheduleWriter, Start]:
    """Write the incarnation's `open` line and what else the schedule needs; rank 0 only.

    Args:
        known: (sample, generation) of the switches that were in the order when the checkpoint was
            made. A recorded segment before the checkpoint that is not among them never came into
            force (the trainer died before it could say so) and is voided.

    Raises:
        ScheduleTaken: a newer incarnation began at the same time.
    """
    job = plan.job
    incarnation = plan.schedule.incarnation + 1
    path = RunPaths(job.dir).schedule
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = ScheduleWriter(path)
    writer.append(
        OpenLine(
            incarnation=incarnation,
            parent=plan.parent.name if plan.parent else None,
            sample=plan.sample,
            step=plan.step,
            seed=job.seed,
            sources=plan.sources,
            sequence_length=job.sequence_length,
            quantum=plan.quantum,
            world_size=plan.world,
            micro_batch=job.settings.micro_batch,
            accumulation=job.settings.accumulation,
            rewind=plan.rewind,
        )
    )
    for line in read_schedule(path).segments:
        lost = known is not None and (line.sample, line.generation) not in known
        if lost and line.sample < plan.sample:
            reason = "the trainer ended before it came into force"
            writer.append(VoidLine(incarnation, line.sample, line.fence, line.generation, reason))
    if not any(line.sample == 0 for line in read_schedule(path).segments):
        weights = quantise(plan.start)
        writer.append(SegmentLine(incarnation, 0, 0, weights, fence=0, generation=0))
    schedule = read_schedule(path)
    return writer, Start(incarnation, schedule.mixture, switches(schedule, plan.sources))


def world_of(job: Job) -> int:
    """Ranks the job runs on: what torchrun says, else what the settings ask for."""
    return int(os.environ.get("WORLD_SIZE", job.settings.processes))


def check_vocabulary(job: Job, stores: Mapping[str, Store]) -> None:
    """That the run's tokenizer is the one its sources were made with, as far as they tell.

    Raises:
        JobError: no tokenizer, another one, or ids beyond its vocabulary.
    """
    folder = tokenizer_folder(job, stores)
    silent = [name for name, store in stores.items() if not store.info.tokenizer]
    if job.tokenizer is None and not silent:
        return
    from mixloop.trainer.foreign import id_range
    from mixloop.trainer.tokenizer import inspect_tokenizer

    facts = inspect_tokenizer(folder)
    for name, store in stores.items():
        if store.info.tokenizer and store.info.tokenizer != facts.fingerprint:
            raise JobError(
                f"tokenizer: {folder} is not the tokenizer sources.{name} was prepared with"
            )
    for name in silent:
        lowest, highest = id_range(stores[name].stream)
        if lowest < 0 or highest >= facts.vocab_size:
            raise JobError(
                f"sources.{name}: holds the id {lowest if lowest < 0 else highest}, the tokenizer "
                f"{folder} has {facts.vocab_size}; name the one it was made with "
                "(trainer.tokenizer)"
            )


def check_job(job: Job, rewind: bool = False) -> Plan:
    """Everything that can be wrong with a job before it starts, without importing torch.

    Raises:
        JobError: one line naming the key and the mend.
    """
    stores = open_stores(job)
    learning_rate_of(job)
    check_vocabulary(job, stores)
    document_end(job, stores)
    return locate(job, stores, world_of(job), rewind)
