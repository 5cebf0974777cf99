"""One proxy run: the reference trainer in a process of its own, and the checkpoints it reaches."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path

from mixloop.common.children import child_environment
from mixloop.common.errors import BadInput
from mixloop.common.files import write_atomic
from mixloop.common.process import PARENT
from mixloop.contract import RunPaths, read_manifest, read_status
from mixloop.controller.config import RunConfig, SearchPlan
from mixloop.controller.service import last_line, opened, trainer_command, trim
from mixloop.trainer.config import (
    Job,
    JobError,
    JobSource,
    LimitSettings,
    TrainerSettings,
    batch_schedule_of,
)
from mixloop.trainer.run import list_steps


def proxy_job(
    config: RunConfig, plan: SearchPlan, number: int, weights: Mapping[str, float]
) -> Job:
    """The training job of one proxy.

    The learning rate's warm-up and decay keep their share of the length; a micro-anneal from a
    checkpoint decays from the first token to the last, so that all mixtures get equal credit.
    """
    search, scale = config.search, plan.tokens / config.budget
    anneal = plan.checkpoint is not None
    changes: dict[str, object] = {
        "model": None if anneal else search.model or config.trainer.model,
        "init_from": plan.checkpoint,
        "warmup": 0 if anneal else int(config.trainer.warmup * scale),
        "decay": plan.tokens if anneal else int(config.trainer.decay * scale),
        "checkpoint_every": plan.rungs[0],
        "keep": None,
        "processes": 1,
        # a step of the run's first, on one process: what one of its ranks does
        "batch": None,
        "batch_schedule": (),
        "accumulation": accumulation_of(config),
    }
    if anneal:
        changes["lr_schedule"] = "wsd"
    for key in ("learning_rate", "micro_batch", "threads"):
        if getattr(search, key) is not None:
            changes[key] = getattr(search, key)
    trainer = config.trainer.model_dump(exclude={"limits", "tokenizer"})
    return Job(
        run=f"{config.run.id}-search-{number:04d}",
        dir=plan.folder / f"trial-{number:04d}",
        seed=config.run.seed,
        budget=plan.tokens,
        sources={
            name: JobSource(path=plan.folder / "stores" / name, weight=weights.get(name, 0.0))
            for name in plan.unique
        },
        limits=LimitSettings(),
        tokenizer=config.trainer.tokenizer,
        settings=TrainerSettings.model_validate(trainer | changes),
    )


def accumulation_of(config: RunConfig) -> int:
    """Micro-batches of the run's first step on each of its processes.

    Raises:
        BadInput: its batch can't be dealt to them.
    """
    trainer = config.trainer
    try:
        samples = batch_schedule_of(trainer, trainer.processes).at(0)
    except JobError as error:
        raise BadInput(str(error).replace("settings.", "trainer.")) from None
    return samples // (trainer.micro_batch * trainer.processes)


class Proxy:
    """A proxy under way. Its trainer resumes from its last checkpoint when started again."""

    def __init__(self, job: Job, rungs: tuple[int, ...]) -> None:
        self.job, self.rungs = job, rungs
        self.paths = RunPaths(job.dir)
        self.log = job.dir / "trainer.log"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the trainer.

        Raises:
            OSError: no process, or no place for its files.
        """
        self.job.dir.mkdir(parents=True, exist_ok=True)
        write_atomic(self.paths.job, self.job.model_dump_json(indent=1).encode())
        trim(self.log)
        with opened(self.log) as stream:
            self._process = subprocess.Popen(
                trainer_command(self.paths.job),
                stdout=stream,
                stderr=stream,
                env=_environment(self.job.settings.threads),
                start_new_session=True,
            )

    def failure(self) -> str | None:
        """Why its trainer ended without finishing; None while it runs and when it finished."""
        code = self._process.poll() if self._process is not None else None
        if not code:
            return None
        return f"its trainer ended with status {code}: {last_line(self.log)}"

    def checkpoint(self, rung: int) -> Path | None:
        """The checkpoint of a rung: the first that has consumed its tokens; None before that."""
        for folder in list_steps(self.paths.checkpoints).values():
            manifest = read_manifest(folder).value
            if manifest is not None and manifest.tokens >= self.rungs[rung]:
                return folder
        return None

    def progress(self) -> float:
        """Share of its tokens that are trained."""
        status = read_status(self.paths.status).value
        return min(1.0, status.tokens / self.job.budget) if status is not None else 0.0

    def stop(self) -> None:
        """Ask the trainer to end; it saves a checkpoint first, to go on from."""
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()

    def close(self, grace: float = 60.0) -> None:
        """Wait for a trainer that was asked to end; kill one that doesn't."""
        if self._process is None:
            return
        try:
            self._process.wait(grace)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def tidy(self) -> None:
        """Remove its checkpoints; scores, log and schedule stay."""
        shutil.rmtree(self.paths.checkpoints, ignore_errors=True)


def _environment(threads: int | None) -> dict[str, str]:
    # `threads` unset means the machine's: several proxies side by side would fight over it
    environment = child_environment() | {PARENT: str(os.getpid())}
    return environment if threads is None else environment | {"OMP_NUM_THREADS": str(threads)}
