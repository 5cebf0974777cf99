"""What the experiment's process is told: everything, so that it needs neither journal nor run.yaml.

``mixloop/experiment/1``, ``spec.json`` in the experiment's folder. Light: no torch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from mixloop.common.files import canonical
from mixloop.controller.config import RunConfig, job_of
from mixloop.controller.core import CheckpointRow
from mixloop.evals import EvalSettings
from mixloop.policies.interface import BranchSchedule, Experiment, Goal, MergeDesign, Phase
from mixloop.trainer.config import Job

SCHEMA: Final = "mixloop/experiment/1"
DAY = 24 * 3600.0
WEEK = 7 * DAY
CAN_DIFFER = {"threads", "device", "timeout", "command_timeout"}
CAN_DIFFER |= {"reason", "out", "decision", "learning_rate"}
"""What another attempt at the same experiment may have otherwise."""


class ExperimentSpec(BaseModel):
    """One experiment, ready to be carried out. All paths are absolute.

    Attributes:
        id, decision, run: which it is, what asked for it, and the run it is of.
        reason: why it was asked for.
        checkpoint: the folder that all branches start from; it must stay until the end.
        step, run_tokens, phase: of that checkpoint.
        weights: the control's mixture, by source.
        branches: one mixture each.
        tokens: training tokens of each branch, the control among them.
        schedule: of the branches' learning rate.
        merge: what to fit on their merges; None: nothing.
        receipt: its one branch is a twin of the run, which is its control: it is scored half-way
            and at its end, and nothing else is trained.
        objective: weight by benchmark; those of 0 are scored and not fitted to.
        evals: what is measured and on what: the items that steer, as the run's worker has them.
        job: the run's training job: data, model, optimizer and learning rate.
        command: another trainer's command for one branch; None: the reference trainer.
        command_timeout: seconds that such a command may take.
        learning_rate: at the checkpoint, for such a command; None: as the job says.
        device, threads: of training and scoring, as torch has them.
        timeout: seconds that all of it may take.
        out: the experiment's own folder.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    schema_: Literal["mixloop/experiment/1"] = Field(default=SCHEMA, alias="schema")
    id: str = Field(min_length=1)
    decision: str = ""
    run: str
    reason: str = ""
    checkpoint: Path
    step: int = Field(ge=0)
    run_tokens: int = Field(ge=0)
    phase: Phase | None = None
    weights: dict[str, float]
    branches: tuple[dict[str, float], ...] = Field(min_length=1)
    tokens: int = Field(gt=0)
    schedule: BranchSchedule = "to zero"
    merge: MergeDesign | None = None
    receipt: bool = False
    objective: dict[str, float] = {}
    evals: EvalSettings
    job: Job
    command: tuple[str, ...] | None = None
    command_timeout: float = Field(DAY, gt=0)
    learning_rate: float | None = None
    device: str = "cpu"
    threads: int = Field(1, ge=1)
    timeout: float = Field(WEEK, gt=0)
    out: Path

    def identity(self) -> str:
        """Equal for two attempts at the same experiment: what lies on the disk serves both."""
        asked = self.model_dump(mode="json", by_alias=True, exclude=CAN_DIFFER)
        for name in ("device", "threads", "timeout", "memory", "idle_seconds"):
            del asked["evals"][name]
        return "sha256:" + hashlib.sha256(canonical(asked)).hexdigest()

    @property
    def cost(self) -> int:
        """Training tokens of all branches, the control among them."""
        return self.tokens * len(self.mixtures)

    @property
    def mixtures(self) -> dict[int, dict[str, float]]:
        """What is trained, by number, in order; 0 is the control, which a receipt has none of."""
        branches = dict(enumerate(self.branches, start=1))
        return branches if self.receipt else {0: self.weights, **branches}


def spec_of(
    config: RunConfig,
    asked: Experiment,
    checkpoint: CheckpointRow,
    evals: EvalSettings,
    *,
    id: str,  # noqa: A002 - what it is called everywhere
    decision: str = "",
    weights: Mapping[str, float] | None = None,
    shots: Mapping[str, int] | None = None,
    learning_rate: float | None = None,
    receipt: bool = False,
) -> ExperimentSpec:
    """The experiment that a policy asked for, on a checkpoint of the journal.

    Args:
        config: the run's, paths absolute.
        asked: the policy's answer, as the guard left it.
        checkpoint: where the branches start.
        evals: the settings that the run's checkpoints are scored with (pinned data, planned
            numbers of items); watched benchmarks are left out here.
        id: of the experiment; names its folder below ``experiments/`` in the run's.
        decision: what asked for it.
        weights: the control's mixture; None: the one in force at the checkpoint.
        shots: by benchmark as in the checkpoint's scorecard, so that prompts are the same.
        learning_rate: the trainer's at the checkpoint, for another trainer's command.
        receipt: whether it is one.
    """
    section = config.experiments
    return ExperimentSpec(
        id=id,
        decision=decision,
        run=config.run.id,
        reason=asked.reason,
        checkpoint=Path(checkpoint.path),
        step=checkpoint.step,
        run_tokens=checkpoint.tokens,
        phase=checkpoint.phase,
        weights=dict(checkpoint.weights if weights is None else weights),
        branches=asked.branches,
        tokens=asked.tokens,
        schedule=asked.schedule,
        merge=asked.merge,
        receipt=receipt,
        objective={
            name: config.objective.get(name, Goal()).weight for name in config.evals.benchmarks
        },
        evals=steering_only(evals, section.device, section.threads or 1, shots or {}),
        job=job_of(config),
        command=section.trainer,
        command_timeout=section.timeout,
        learning_rate=learning_rate,
        device=section.device,
        threads=section.threads or 1,
        out=config.run.dir / "experiments" / id,
    )


def steering_only(
    evals: EvalSettings, device: str, threads: int, shots: Mapping[str, int]
) -> EvalSettings:
    """The settings for the benchmarks that steer, bits per byte alone: nothing is generated."""
    benchmarks = {
        name: settings.model_copy(
            update={"generate_items": 0, "shots": shots.get(name, settings.shots)}
        )
        for name, settings in evals.benchmarks.items()
    }
    asked = EvalSettings.model_validate(evals.asking(benchmarks).model_dump())
    return asked.model_copy(
        update={
            "watch": {},
            "memory": None,
            "average": 1,
            "device": device,
            "threads": threads,
            "samples": False,
            "sandbox": "off",
            "launcher": "local",
            **{name: EvalSettings.model_fields[name].default for name in _RAY_ONLY},
        }
    )


_RAY_ONLY = ("workers", "worker_cpus", "worker_gpus", "ray_address", "unit_timeout")
