"""Where a branch begins: its data order, its steps and its learning rate, from the run's files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mixloop.contract import (
    BatchSchedule,
    Manifest,
    RunPaths,
    Schedule,
    ScheduleError,
    quantise,
    read_manifest,
    read_schedule,
)
from mixloop.trainer.config import Job, JobError, LearningRate, learning_rate
from mixloop.trainer.loader import read_saved_manifest
from mixloop.trainer.mixing import MixtureOrder

BranchSchedule = Literal["as the run", "to zero"]


@dataclass(frozen=True)
class BranchStart:
    """The samples a branch takes, from the run's sample on, and the steps they come in."""

    sample: int
    order: MixtureOrder
    steps: BatchSchedule


@dataclass(frozen=True)
class BranchRate(LearningRate):
    """A branch's learning rate: rising from 0 over its first ``rise`` tokens after ``begin``."""

    begin: int = 0
    rise: int = 0

    def rate(self, start: int, end: int) -> float:
        """Learning rate of a step between two token counts of the run."""
        done = (start + end) / 2 - self.begin
        return super().rate(start, end) * (min(1.0, done / self.rise) if self.rise else 1.0)


def manifest_of(checkpoint: Path) -> Manifest:
    """Where the run stood at a checkpoint, of our trainer or of another loop.

    Raises:
        JobError: the folder does not say.
    """
    manifest = read_manifest(checkpoint).value or read_saved_manifest(checkpoint).value
    if manifest is None:
        raise JobError(f"{checkpoint}: neither manifest.json nor mixloop.json says where it stands")
    return manifest


def start_of(job: Job, manifest: Manifest, weights: Mapping[str, float]) -> BranchStart:
    """The windows that the run would see next, drawn by a branch's weights.

    Every source goes on where the run's own draws left it, so branches that draw from a source see
    the same windows of it in the same order. A branch on the mixture in force has the run's own
    next batches. What was recorded beyond the checkpoint plays no part: a branch that is trained
    again later is the same.

    Raises:
        JobError: the run's schedule is missing or is not that of this checkpoint, or the weights
            are no mixture of its sources.
    """
    path = RunPaths(job.dir).schedule
    try:
        recorded = read_schedule(path)
        held = Schedule(tuple(line for line in recorded.lines if line.sample <= manifest.sample))
        if not held.mixture:
            raise JobError(f"{path}: no schedule there, so nothing tells what the run sees next")
        order = MixtureOrder(held.sizes, job.seed, held.mixture)
        asked = {name: units for name, units in quantise(weights).items() if units}
        if asked != {name: units for name, units in held.segments[-1].weights.items() if units}:
            order = order.with_weights(manifest.sample, asked)
    except (ScheduleError, OSError, ValueError) as error:
        raise error if isinstance(error, JobError) else JobError(f"branch: {error}") from error
    _check_ledger(path, order, manifest)
    steps = BatchSchedule(held.batch_stages)
    rows = job.settings.micro_batch
    for _, size in steps.since(manifest.sample).stages:
        if size % rows:
            raise JobError(
                f"settings.micro_batch: steps of {size} samples can't be cut into {rows}"
            )
    return BranchStart(manifest.sample, order, steps)


def _check_ledger(path: Path, order: MixtureOrder, manifest: Manifest) -> None:
    """That the run drew what its manifest says: else the schedule is another branch's."""
    drawn = order.drawn(manifest.sample)
    for name, ledger in manifest.sources.items():
        tokens = drawn.get(name, 0) * manifest.sequence_length
        if tokens != ledger.tokens:
            raise JobError(
                f"{path}: by it, step {manifest.step} had {tokens:,} tokens of {name}, its "
                f"checkpoint says {ledger.tokens:,}: it is of a branch that the run has left"
            )


def rate_of(
    job: Job, manifest: Manifest, tokens: int, schedule: BranchSchedule, *, fresh: bool
) -> LearningRate:
    """A branch's learning rate at the run's token counts.

    Args:
        job: the run's.
        manifest: of the checkpoint.
        tokens: the branch's length.
        schedule: ``as the run``: the run's own goes on. ``to zero``: linear from the run's next
            step's to 0 at the branch's end.
        fresh: the optimizer starts without moments, whose first steps are as large as the rate
            allows whatever the gradients say: the rate rises over the first tenth.
    """
    run = learning_rate(job.settings, job.budget)
    begin = manifest.tokens
    rise = tokens // 10 if fresh else 0
    if schedule == "as the run":
        fields = (run.peak, run.floor, run.budget, run.warmup, run.decay, run.shape)
        return BranchRate(*fields, begin, rise) if fresh else run
    top = run.rate(begin, begin + manifest.quantum * manifest.sequence_length)
    return BranchRate(top, 0.0, begin + tokens, 0, tokens, "linear", begin, rise)
