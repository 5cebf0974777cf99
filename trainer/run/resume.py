"""Where a run stands, and the beginning of a trainer incarnation.

Light (no torch): the checks of a job and of a resume are made before anything heavy starts.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mixloop.common.files import writable_by_others
from mixloop.contract import (
    BatchSchedule,
    KeyFileError,
    Manifest,
    OpenLine,
    RunPaths,
    Schedule,
    ScheduleError,
    ScheduleWriter,
    Segment,
    SegmentLine,
    SourceEntry,
    Stages,
    VoidLine,
    key_for,
    quantise,
    read_schedule,
    with_accumulation,
)
from mixloop.trainer.batches import document_end
from mixloop.trainer.config import Job, JobError, batch_schedule_of, learning_rate, start_weights
from mixloop.trainer.mixing import MixtureOrder
from mixloop.trainer.sources import Store, check_vocabulary, open_stores

from . import checkpoint_store
from .order_inbox import Switch
from .source_changes import Versions, check_retired, check_sources, earlier


@dataclass(frozen=True)
class ResumePlan:
    """A start that has been checked and not yet begun.

    Attributes:
        sources: the job's, as their stores are now.
        start: the job's first mixture.
        schedule: what is recorded so far.
        parent: the checkpoint it goes on from; None: from scratch.
        manifest: that checkpoint's.
        batch_schedule: the samples of all steps from `sample` on.
        world: ranks that share out the samples.
        rewind: whether what is recorded beyond `sample` is cut.
        versions: what each source was before it was extended.
    """

    job: Job
    sources: tuple[SourceEntry, ...]
    start: Mapping[str, float]
    schedule: Schedule
    parent: Path | None
    manifest: Manifest | None
    batch_schedule: BatchSchedule
    world: int
    rewind: bool
    versions: Mapping[str, Versions] = field(default_factory=dict)

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
class Incarnation:
    """A begun incarnation, as every rank needs it.

    `sizes` are the samples of every source the run ever had, as the data order numbers and takes
    them; `batch_schedule` has the samples of every step of the run; signed orders must name `uid`.
    """

    incarnation: int
    segments: tuple[Segment, ...]
    switches: tuple[Switch, ...]
    sizes: Mapping[str, tuple[tuple[int, int], ...]]
    batch_schedule: BatchSchedule
    uid: str = ""

    def order(self, seed: int) -> MixtureOrder:
        """The global order of samples."""
        return MixtureOrder(self.sizes, seed, self.segments)


def plan_resume(
    job: Job,
    stores: Mapping[str, Store],
    world: int,
    rewind: bool,
    say: Callable[[str], None] = lambda text: None,
) -> ResumePlan:
    """Find the newest complete checkpoint and check that the run can go on from it as asked.

    Raises:
        JobError: one line naming what is in the way.
    """
    paths = RunPaths(job.dir)
    try:
        newest = checkpoint_store.newest(paths.checkpoints, say)
    except OSError as error:
        raise JobError(
            f"{paths.checkpoints}: unreadable ({error.strerror or error}); make it a readable "
            "folder, or start in another run folder"
        ) from error
    plan = continue_from(job, stores, world, rewind, newest)
    _check_begun(plan)
    warn(plan, say)
    return plan


def continue_from(
    job: Job,
    stores: Mapping[str, Store],
    world: int,
    rewind: bool,
    checkpoint: tuple[Path, Manifest] | None,
) -> ResumePlan:
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
    parent, manifest = checkpoint or (None, None)
    try:
        schedule = read_schedule(RunPaths(job.dir).schedule)
    except (ScheduleError, OSError) as error:
        raise JobError(str(error)) from error
    plan = ResumePlan(
        job=job,
        sources=entries,
        start=start_weights(job.sources, sizes),
        schedule=schedule,
        parent=parent,
        manifest=manifest,
        batch_schedule=batch_schedule_of(job.settings, world, manifest.sample if manifest else 0),
        world=world,
        rewind=rewind,
        versions={name: earlier(stores[name].info.history, job.sequence_length) for name in stores},
    )
    _check_continued(plan)
    return plan


def warn(plan: ResumePlan, say: Callable[[str], None]) -> None:
    """Say what is odd and no reason to stop."""
    if writable_by_others(plan.job.dir):
        say(f"{plan.job.dir} is writable by others than its owner: anyone there can steer the run")
    for word in _source_changes(plan, plan.schedule.segments):
        say(word)
    weights = next((s.weights for s in plan.schedule.segments if s.sample == 0), None)
    if weights is not None and _drawn_from(weights) != _drawn_from(quantise(plan.start)):
        say(
            "sources: the job's weights are not those this run was begun with; they are not "
            "applied (the schedule goes on as recorded, orders change it)"
        )


def _drawn_from(weights: Mapping[str, int]) -> dict[str, int]:
    return {name: units for name, units in weights.items() if units}


def _check_continued(plan: ResumePlan) -> None:
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
    manifest = plan.manifest
    since = manifest.in_force.sample if manifest is not None else 0
    held = [s for s in plan.schedule.segments if not since < s.sample < plan.sample]
    _source_changes(plan, held)  # it raises; the words are `warn`'s
    if not plan.rewind:
        _check_steps(plan)


def _check_steps(plan: ResumePlan) -> None:
    """Refuse steps that lie otherwise than recorded, from the resume point on."""
    stages = plan.batch_schedule.stages
    recorded = BatchSchedule(plan.schedule.batch_stages or stages).since(plan.sample).stages
    if recorded == stages:
        return
    cut = f"restore that, or pass --rewind to cut what is recorded beyond sample {plan.sample}"
    if len(recorded) == len(stages) == 1:
        raise JobError(
            f"a step takes {stages[0][1]} samples now (micro_batch x accumulation x processes), "
            f"but this run was recorded with {recorded[0][1]}; {cut}"
        )
    raise JobError(
        f"steps take {_worded(stages)} now, but this run was recorded with {_worded(recorded)}; "
        f"{cut}"
    )


def _worded(stages: Stages) -> str:
    (_, first), *later = stages
    words = [f"{first} samples", *(f"{size} from sample {at}" for at, size in later)]
    return ", then ".join(words)


def _source_changes(plan: ResumePlan, segments: Sequence[SegmentLine]) -> list[str]:
    """Words on sources that changed; `segments` hold before a rewind cuts what lies beyond.

    Raises:
        JobError: the run can't go on with the sources as they are.
    """
    if plan.rewind:
        segments = [line for line in segments if line.sample <= plan.sample]
    names = {entry.name for entry in plan.sources}
    retired = [name for name in plan.schedule.sources if name not in names]
    words = check_sources(plan.schedule, plan.sources, plan.versions, plan.sample, plan.rewind)
    return [*words, *check_retired(segments, retired, plan.sample, plan.rewind)]


def _check_begun(plan: ResumePlan) -> None:
    """Refuse to begin a run from scratch, unasked, when its checkpoints were lost."""
    if plan.manifest is not None or plan.rewind:
        return
    folder, opened = RunPaths(plan.job.dir).checkpoints, plan.schedule.latest_open
    if folder.is_symlink() and not folder.exists():
        trouble = "a link to nothing"
    elif steps := checkpoint_store.list_steps(folder):
        trouble = f"none of its {len(steps)} checkpoints is complete"
    elif opened is not None and opened.parent is not None:
        trouble = f"no checkpoint there, though this run went on from {opened.parent}"
    else:
        return
    raise JobError(f"{folder}: {trouble}; restore it, or pass --rewind to begin again at step 0")


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


def begin(
    plan: ResumePlan, announced: frozenset[tuple[int, int]] | None
) -> tuple[ScheduleWriter, Incarnation]:
    """Write the incarnation's `open` line and what else the schedule needs; rank 0 only.

    Args:
        plan: the checked start.
        announced: (sample, generation) of the switches that were in the order when the checkpoint
            was made. A recorded segment before the checkpoint that is not among them never came
            into force (the trainer died before it could say so) and is voided. None: no checkpoint.

    Raises:
        ScheduleTaken: a newer incarnation began at the same time.
        JobError: what came into force draws from a source that the job no longer has.
    """
    job = plan.job
    if announced is not None:
        held = plan.schedule.segments
        _source_changes(plan, [s for s in held if not _is_lost(s, plan, announced)])
    incarnation = plan.schedule.incarnation + 1
    path = RunPaths(job.dir).schedule
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = ScheduleWriter(path)
    uid = plan.schedule.uid
    if not uid and key_for(job.settings.key_file) is not None:
        uid = secrets.token_hex(16)
    stages, each = plan.batch_schedule.stages, job.settings.micro_batch * plan.world
    writer.append(
        OpenLine(
            incarnation=incarnation,
            parent=plan.parent.name if plan.parent else None,
            sample=plan.sample,
            step=plan.step,
            seed=job.seed,
            sources=plan.sources,
            sequence_length=job.sequence_length,
            quantum=stages[0][1],
            world_size=plan.world,
            micro_batch=job.settings.micro_batch,
            accumulation=stages[0][1] // each,
            rewind=plan.rewind,
            quanta=with_accumulation(stages, each),
            uid=uid,
        )
    )
    for line in read_schedule(path).segments:
        if announced is not None and _is_lost(line, plan, announced):
            reason = "the trainer ended before it came into force"
            writer.append(VoidLine(incarnation, line.sample, line.fence, line.generation, reason))
    if not any(line.sample == 0 for line in read_schedule(path).segments):
        weights = quantise(plan.start)
        writer.append(SegmentLine(incarnation, 0, 0, weights, fence=0, generation=0))
    schedule = read_schedule(path)
    return writer, Incarnation(
        incarnation,
        schedule.mixture,
        switches(schedule, plan.sources),
        schedule.sizes,
        BatchSchedule(schedule.batch_stages),
        uid,
    )


def _is_lost(line: SegmentLine, plan: ResumePlan, announced: frozenset[tuple[int, int]]) -> bool:
    """Whether a recorded segment never came into force before the checkpoint."""
    return line.sample < plan.sample and (line.sample, line.generation) not in announced


def world_of(job: Job) -> int:
    """Ranks the job runs on: what torchrun says, else what the settings ask for."""
    return int(os.environ.get("WORLD_SIZE", job.settings.processes))


def check_job(job: Job, rewind: bool = False) -> ResumePlan:
    """Everything that can be wrong with a job before it starts, without importing torch.

    Raises:
        JobError: one line naming the key and the mend.
    """
    stores = open_stores(job)
    learning_rate(job.settings, job.budget)
    check_vocabulary(job, stores)
    document_end(job, stores)
    return plan_resume(job, stores, world_of(job), rewind)
