"""Train one branch from a checkpoint: the run's own next steps, on another mixture and rate."""

from __future__ import annotations

import math
import os
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mixloop.common.files import fsync_folder, open_regular, read_json, write_json
from mixloop.common.json_records import decode, encode
from mixloop.trainer.batches import BatchLayout, RankBatches, document_end
from mixloop.trainer.config import Job, JobError
from mixloop.trainer.reference import Trainer
from mixloop.trainer.run import SingleProcess, checkpoint_store
from mixloop.trainer.sources import (
    copy_tokenizer,
    inspect_tokenizer,
    open_stores,
    tokenizer_folder,
)

from .branch_start import BranchSchedule, BranchStart, manifest_of, rate_of, start_of

REPORT = "branch.json"
SCHEMA = "mixloop/branch/1"
HALF = "half"
"""Folder within a branch's: its weights at half of its tokens."""


@dataclass(frozen=True)
class Branch:
    """What is trained.

    Attributes:
        job: the run's.
        checkpoint: a folder of the run's checkpoints.
        weights: the mixture, by source.
        tokens: how long; the step in which they are reached is the last.
        schedule: of the learning rate.
        halfway: whether the weights at half of the tokens are kept too.
        device, threads: as torch has them.
    """

    job: Job
    checkpoint: Path
    weights: Mapping[str, float]
    tokens: int
    schedule: BranchSchedule = "to zero"
    halfway: bool = False
    device: str = "cpu"
    threads: int = 1


@dataclass(frozen=True)
class BranchReport:
    """What training a branch came to, ``branch.json`` in its folder.

    Attributes:
        steps, tokens: trained.
        loss: mean nats per token over the last tenth of the steps.
        seconds: wall time, loading and saving included.
        early: part of the learning rates' sum that was spent by the half-way weights; 0 without.
        fresh: the checkpoint had no optimizer state.
    """

    steps: int
    tokens: int
    loss: float
    seconds: float
    early: float
    fresh: bool


def read_report(folder: Path) -> BranchReport:
    """The report of a trained branch.

    Raises:
        OSError, ValueError: there is none that can be read.
    """
    value = read_json(folder / REPORT)
    return decode(BranchReport, {k: v for k, v in value.items() if k != "schema"})


def train_branch(
    branch: Branch, out: Path, say: Callable[[str], None] = lambda text: None
) -> BranchReport:
    """Train a branch into a folder that appears when it is whole, in Hugging Face format.

    Weights, optimizer state and random state are the checkpoint's. One without optimizer state (of
    another trainer) begins with a fresh AdamW whose rate rises over the first tenth, which is said;
    one whose state is there and can't be read is refused, because its branches would be of a run
    that nobody trains. The run's folder is only read.

    Raises:
        JobError: the branch can't be trained as asked, or diverged; one line.
        OSError: the disk did not take it.
    """
    import torch

    began = time.monotonic()
    torch.set_num_threads(branch.threads)
    work = out.parent / f"{checkpoint_store.SCRATCH}{out.name}-{os.getpid()}"
    shutil.rmtree(work, ignore_errors=True)
    try:
        report = _Training(branch, say).into(work, began)
        write_json(work / REPORT, {"schema": SCHEMA, **encode(report)})
        for path in work.rglob("*"):
            _sync(path)
        fsync_folder(work)
        shutil.rmtree(out, ignore_errors=True)
        work.rename(out)
        fsync_folder(out.parent)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return report


def _sync(path: Path) -> None:
    if path.is_dir():
        fsync_folder(path)
        return
    handle = open_regular(path, follow=True)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class _Training:
    def __init__(self, branch: Branch, say: Callable[[str], None]) -> None:
        self.branch = branch
        self.fresh = not (branch.checkpoint / checkpoint_store.STATE_FILE).is_file()
        job = self.job = _alone(branch, self.fresh)
        stores = open_stores(job)
        manifest = manifest_of(branch.checkpoint)
        self.start: BranchStart = start_of(job, manifest, branch.weights)
        self.tokenizer = tokenizer_folder(job, stores)
        self.trainer = Trainer(
            job,
            inspect_tokenizer(self.tokenizer),
            len(stores),
            SingleProcess(),
            document_end(job, stores),
        )
        if self.fresh:
            say(f"{branch.checkpoint.name} has no optimizer state: branches begin with a fresh one")
        else:
            _load(self.trainer, branch.checkpoint)
        self.trainer.schedule = rate_of(
            job, manifest, branch.tokens, branch.schedule, fresh=self.fresh
        )
        layout = BatchLayout(job.settings.micro_batch, 0, 1, job.sequence_length)
        sample = self.start.sample
        self.batches = RankBatches(
            stores, self.start.order, layout, self.start.steps, job.settings.prefetch, sample
        )

    def into(self, folder: Path, began: float) -> BranchReport:
        try:
            spent, early, steps, tokens = self._train(folder)
        finally:
            self.batches.close()
        self._save(folder)
        copy_tokenizer(self.tokenizer, folder)
        return BranchReport(
            steps=steps,
            tokens=tokens,
            loss=self._loss(),
            seconds=round(time.monotonic() - began, 3),
            early=early / spent if spent else 0.0,
            fresh=self.fresh,
        )

    def _train(self, folder: Path) -> tuple[float, float, int, int]:
        """All steps: the rates' sum, that until half-way, steps and tokens."""
        branch, length = self.branch, self.job.sequence_length
        sample, steps, spent, early = self.start.sample, 0, 0.0, 0.0
        while (done := (sample - self.start.sample) * length) < branch.tokens:
            if branch.halfway and not early and 2 * done >= branch.tokens:
                self._save(folder / HALF)
                early = spent
            batch = self.batches.batch(sample)
            tokens = sample * length, (sample + batch.samples) * length
            self.trainer.step(batch, *tokens)
            spent += self.trainer.schedule.rate(*tokens)
            sample, steps = sample + batch.samples, steps + 1
        return spent, early, steps, done

    def _loss(self) -> float:
        """Of the last tenth of the steps.

        Raises:
            JobError: a gradient was not finite.
        """
        steps = self.trainer.recent()
        bad = int(steps[:, 1].sum())
        loss = float(steps[-max(1, len(steps) // 10) :, 0].mean())
        if bad or not math.isfinite(loss):
            raise JobError(f"the branch diverged: {bad} of {len(steps)} gradients were not finite")
        return loss

    def _save(self, folder: Path) -> None:
        from transformers.utils import logging

        logging.disable_progress_bar()
        self.trainer.model.save_pretrained(folder, max_shard_size="100TB")


def _alone(branch: Branch, fresh: bool) -> Job:
    """The run's job for one process; a model of another trainer's is as its checkpoint has it."""
    settings: dict[str, Any] = {
        "device": branch.device,
        "threads": branch.threads,
        "processes": 1,
        "parallel": "ddp",
        "checkpoint_format": "single",
        "compile": False,  # a branch is shorter than compiling takes
        "prefetch": 0,
    }
    if fresh:
        settings |= {"init_from": branch.checkpoint, "model": None}
    return branch.job.model_copy(
        update={"settings": branch.job.settings.model_copy(update=settings)}
    )


def _load(trainer: Trainer, checkpoint: Path) -> None:
    try:
        trainer.load(checkpoint)
    except JobError:
        raise
    # torch, pickle and zip files fail in their own ways
    except Exception as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise JobError(
            f"{checkpoint}: its {checkpoint_store.STATE_FILE} can't be read: {first}"
        ) from error
