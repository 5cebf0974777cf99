"""Every section of run.yaml, in the order of the file.

A section that another room is configured by is that room's own model with what the file adds to it.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator

from mixloop.common.errors import suggest
from mixloop.common.units import Tokens, parse_tokens
from mixloop.evals import COMMAND, Device, EvalSettings, Launcher
from mixloop.trainer.config import JobSource, LimitSettings, ModelSettings, TrainerSettings

from .checkpoint_layouts import LayoutName

NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"  # safe as a path, a metric name and a tag

Share = Annotated[float, Field(ge=0, le=1)]


class Section(BaseModel):
    """A part of run.yaml: unknown keys are refused, values never change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


class RunSection(Section):
    """Which run this is, where its files lie, and the seed of everything random in it."""

    id: str = Field(pattern=NAME, description="name of the run; also its name in MLflow")
    dir: Path = Field(description="the run folder; relative to this file")
    seed: int = Field(
        0, ge=0, lt=2**63, description="seed of the data order, the model and the policy"
    )


class SourceSection(JobSource):
    """A named corpus, prepared by ``mixloop prepare``, and what policies may call it by."""

    tags: tuple[str, ...] = Field((), description="what it is: web, code, math, …")
    tokens: Tokens | None = Field(
        None, description="unique tokens, to plan with before the store is prepared"
    )


class PolicySection(Section):
    """Who proposes new weights."""

    use: str = Field("static", description="name, entry point, module:Class or ./file.py:Class")
    options: dict[str, Any] = Field(
        default_factory=dict, alias="with", description="the policy's own options"
    )
    timeout: float = Field(120.0, gt=0, description="seconds one decision may take")
    memory: int = Field(4096, ge=256, description="MiB of address space one decision may take")


class EvalsSection(EvalSettings):
    """The evals room's settings, with ``every`` as people write tokens."""

    every: Tokens | None = Field(None, description="tokens between scored checkpoints")


class TrainerSection(TrainerSettings):
    """The reference trainer's settings; ``limits`` binds any trainer."""

    limits: LimitSettings = Field(default_factory=LimitSettings)
    tokenizer: Path | None = Field(None, description="HF tokenizer folder; relative to this file")


class CheckpointsSection(Section):
    """Where the trainer leaves its checkpoints. The reference trainer's need no section."""

    layout: LayoutName = Field(
        "mixloop", description="mixloop, hf-trainer (checkpoint-N) or torchtitan (step-N)"
    )
    dir: Path | None = Field(
        None, description="their folder; relative to this file; default: checkpoints in the run"
    )


def _as_share_or_tokens(value: Any) -> float | int:
    """A share of the run's budget (``2%``, 0.02) below 1, or a number of tokens."""
    if isinstance(value, str) and value.strip().endswith("%"):
        try:
            value = float(value.strip().removesuffix("%")) / 100
        except ValueError:
            raise ValueError(_BUDGET_FORMS) from None
        if not 0 <= value <= 1:
            raise ValueError(_BUDGET_FORMS)
        return value if value < 1 else 1 - 2**-53  # all of it, and still a share
    try:
        number = float(value) if isinstance(value, str) else value
    except ValueError:
        number = value
    if isinstance(number, float) and 0 < number < 1:
        return number
    try:
        return parse_tokens(value)
    except ValueError:
        raise ValueError(_BUDGET_FORMS) from None


_BUDGET_FORMS = (
    "must be a share of the run's budget, as in 2% or 0.02, or a token count, as in 200M; 0: none"
)
TRAINER_WORDS = ("{checkpoint}", "{mixture}", "{tokens}", "{out}")
"""What a command that trains a branch must be told; ``{learning_rate}`` is optional."""


class ExperimentsSection(Section):
    """Branches from checkpoints of the run that a policy may ask for before it decides.

    They run beside the run, never on its device unless told.
    """

    budget: Annotated[float | int, BeforeValidator(_as_share_or_tokens)] = Field(
        0, description="training tokens of all branches: a share of the run's (2%), or a number"
    )
    receipts: bool = Field(
        False,
        description="for each change that the policy proposed or a person ordered, a twin that "
        "goes on without it for two evaluations; of the same budget",
    )
    launcher: Launcher = Field(
        "local", description="how branches are started: local, or [srun, -G1, '{command}']"
    )
    device: Device = Field("cpu", description="of branches and of their scoring")
    threads: int | None = Field(None, gt=0, description="of one branch on a CPU; default: one")
    trainer: tuple[str, ...] | None = Field(
        None,
        description="another trainer's command, with {checkpoint} {mixture} {tokens} {out} "
        "(and {learning_rate}) in it; default: the reference trainer",
    )
    timeout: float = Field(
        24 * 3600.0,
        gt=0,
        allow_inf_nan=False,
        description="seconds that command may take for one branch, a queue's included",
    )

    @field_validator("launcher")
    @classmethod
    def _no_actors(cls, value: Launcher) -> Launcher:
        if value == "ray":
            raise ValueError(f"ray is not for experiments: local, or [srun, -G1, '{COMMAND}']")
        return value

    @field_validator("trainer")
    @classmethod
    def _told_everything(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        missing = [word for word in TRAINER_WORDS if not any(word in part for part in value or ())]
        if value is not None and missing:
            raise ValueError(f"'{missing[0]}' is missing: the command must be told where that is")
        known = (*TRAINER_WORDS, "{learning_rate}")
        for part in value or ():
            if re.fullmatch(r"\{\w+\}", part) and part not in known:
                raise ValueError(f"nothing is put in for '{part}'{suggest(part, known)}")
        return value


class ApprovalSection(Section):
    """Which proposals a person has to approve first; nothing given: none.

    What counts is the change that was *asked* for, before the trust region trims it: ten small
    steps towards a mixture that nobody wants are asked for once.
    """

    above: Share | None = Field(
        None, description="total variation of the requested change above which a person decides"
    )
    sources: dict[str, Share] = Field(
        default_factory=dict,
        description="per source, the change of its share above which a person decides",
    )
    timeout: Tokens | None = Field(
        None,
        description="training tokens a proposal waits before it expires and the mixture is held; "
        "default: until a person answers; a proposal that differs from it by more than "
        "guards.dead_band takes its place either way",
    )


class TrackingSection(Section):
    """The view in MLflow. None of it can delay or stop the run."""

    uri: str | None = Field(
        None, description="MLflow tracking URI; unset: a file in the run folder"
    )
    experiment: str = Field("mixloop", min_length=1)
    enabled: bool = True


class MetricsSection(Section):
    """Prometheus' view of a run, served by the controller."""

    port: int | None = Field(None, ge=1, le=65535, description="port of /metrics; unset: none")
    host: str = Field("127.0.0.1", min_length=1, description="address it is served at")


class ControllerSection(Section):
    """The daemon itself."""

    poll: float = Field(5.0, gt=0, le=3600, description="seconds between two looks when idle")
    patience: float = Field(
        30.0, ge=0, description="seconds it keeps trying to reach MLflow after the run has ended"
    )
    metrics: MetricsSection = Field(default_factory=MetricsSection)


class SearchSection(Section):
    """Proxy runs of the reference trainer that look for a starting mixture."""

    model_config = ConfigDict(protected_namespaces=())

    dir: Path | None = Field(None, description="its folder; default: search in the run folder")
    tokens: Tokens | None = Field(None, description="training tokens of one proxy")
    trials: int | None = Field(None, ge=3, description="proxies; default: 3 (sources + 1)")
    workers: int = Field(1, ge=1, description="proxies that train side by side")
    rungs: int = Field(2, ge=1, le=6, description="times a proxy is scored, its end included")
    reduction: int = Field(2, ge=2, description="of proxies at a rung, one in this many goes on")
    model: ModelSettings | None = Field(None, description="the proxies' model; default: the run's")
    learning_rate: float | None = Field(None, gt=0, description="default: the run's")
    micro_batch: int | None = Field(None, gt=0, description="default: the run's")
    threads: int | None = Field(None, gt=0, description="of one proxy; default: the run's")


class SimulateSection(Section):
    """What ``mixloop simulate`` runs this configuration in."""

    world: str = Field("power", description="a world's name, module:Class or ./file.py:Class")
