"""``run.yaml``: the one file that configures a run, and the errors it can contain.

Every section belongs to the room it configures and is validated by that room's own model; what is
here is their sum, the paths, and error messages that a person can act on.


Policy options that lie in a file: ``prior: {from: search/prior.json}``.

Policies do no I/O, so the controller reads the file when it reads run.yaml, and the policy gets
what is in it.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from mixloop.common.errors import BadInput
from mixloop.common.units import Tokens
from mixloop.common.yaml import read_sections
from mixloop.contract import KeyFileError, key_for
from mixloop.evals import BenchmarkSettings, EvalSettings, Launcher
from mixloop.policies.guards import GuardSettings
from mixloop.policies.interface import Goal
from mixloop.trainer.config import JobSource, LimitSettings, TrainerSettings, start_weights

from .checkpoint_layouts import CheckpointsSection
from .sections import ApprovalSection, SearchSection
from .validation_errors import explain_error

NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"  # safe as a path, a metric name and a tag


class Section(BaseModel):
    """A part of run.yaml: unknown keys are refused, values never change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


class RunSection(Section):
    """Which run this is, where its files lie, and the seed of everything random in it."""

    id: str = Field(pattern=NAME, description="name of the run; also its name in MLflow")
    dir: Path = Field(description="the run folder; relative to this file")
    seed: int = Field(0, ge=0, description="seed of the data order, the model and the policy")


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

    def at(self, base: Path) -> PolicySection:
        """The same with the files its options name read in, seen from ``base``.

        Raises:
            BadInput: a file that can't be read.
        """
        return self.model_copy(update={"options": resolve(self.options, base)})


class EvalsSection(EvalSettings):
    """The evals room's settings, with ``every`` as people write tokens."""

    every: Tokens | None = Field(None, description="tokens between scored checkpoints")


class TrainerSection(TrainerSettings):
    """The reference trainer's settings; ``limits`` binds any trainer."""

    limits: LimitSettings = Field(default_factory=LimitSettings)
    tokenizer: Path | None = Field(None, description="HF tokenizer folder; relative to this file")


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


class SimulateSection(Section):
    """What ``mixloop simulate`` runs this configuration in."""

    world: str = Field("power", description="a world's name, module:Class or ./file.py:Class")


class RunConfig(Section):
    """A whole run. :func:`load_config` makes one from a file."""

    run: RunSection
    budget: Tokens = Field(description="tokens of the whole run")
    sources: dict[Annotated[str, Field(pattern=NAME)], SourceSection] = Field(min_length=1)
    evals: EvalsSection = Field(default_factory=EvalsSection)
    policy: PolicySection = Field(default_factory=PolicySection)
    objective: dict[str, Goal] = Field(
        default_factory=dict, description="per benchmark: weight, target, max_drop"
    )
    guards: GuardSettings = Field(default_factory=GuardSettings)
    checkpoints: CheckpointsSection = Field(default_factory=CheckpointsSection)
    approval: ApprovalSection = Field(default_factory=ApprovalSection)
    tracking: TrackingSection = Field(default_factory=TrackingSection)
    trainer: TrainerSection = Field(default_factory=TrainerSection)
    controller: ControllerSection = Field(default_factory=ControllerSection)
    search: SearchSection = Field(default_factory=SearchSection)
    simulate: SimulateSection = Field(default_factory=SimulateSection)
    schema_version: Literal[1] = Field(1, alias="schema")

    @field_validator("budget")
    @classmethod
    def _some_budget(cls, budget: int) -> int:
        if budget <= 0:
            raise ValueError("must be above 0 tokens")
        return budget

    @model_validator(mode="after")
    def _weights(self) -> RunConfig:
        self.start_weights(dict.fromkeys(self.sources, 1))
        return self

    @model_validator(mode="after")
    def _approval_known(self) -> RunConfig:
        for name in self.approval.sources:
            if name not in self.sources:
                close = difflib.get_close_matches(name, self.sources, n=1)
                mend = f"did you mean '{close[0]}'?" if close else "name one of the sources"
                raise ValueError(f"approval.sources.{name}: no such source; {mend}")
        return self

    @model_validator(mode="after")
    def _objective_known(self) -> RunConfig:
        known = list(self.evals.benchmarks)
        for name, goal in self.objective.items():
            if name in self.evals.watch and goal.max_drop is None:
                raise ValueError(
                    f"objective.{name}: a watch benchmark never steers; give it a max_drop, "
                    "or move it to evals.benchmarks"
                )
            if name not in [*known, *self.evals.watch]:
                close = difflib.get_close_matches(name, known, n=1)
                mend = f"did you mean '{close[0]}'?" if close else f"known: {', '.join(known)}"
                raise ValueError(f"objective.{name}: no such benchmark under evals; {mend}")
        if self.objective and not any(
            self.objective.get(name, Goal()).weight > 0 for name in known
        ):
            raise ValueError("objective: every weight is 0, nothing is left to steer by")
        return self

    def start_weights(self, sizes: Mapping[str, int]) -> dict[str, float]:
        """The first mixture (generation 0); ``sizes``: unique tokens, used when none is given.

        Raises:
            ValueError: weights that are no mixture.
        """
        return start_weights(self.sources, sizes)

    def key(self) -> bytes | None:
        """What orders and requests are signed with, from `trainer.key_file` or the environment.

        Raises:
            BadInput: a key file that is none, or that others may read.
        """
        try:
            return key_for(self.trainer.key_file)
        except KeyFileError as error:
            raise BadInput(f"trainer.{error}") from None

    def at(self, base: Path) -> RunConfig:
        """The same configuration with every path absolute, seen from folder ``base``."""
        base = base.resolve()
        sources = {
            name: source.model_copy(update={"path": base / source.path})
            for name, source in self.sources.items()
        }
        trainer = self.trainer
        places = {
            "tokenizer": trainer.tokenizer,
            "init_from": trainer.init_from,
            "key_file": trainer.key_file,
        }
        run_dir = base / self.run.dir
        return self.model_copy(
            update={
                "run": self.run.model_copy(update={"dir": run_dir}),
                "sources": sources,
                "evals": _evals_at(self.evals, base),
                "search": self.search.at(base),
                "checkpoints": self.checkpoints.model_copy(
                    update={"dir": base / self.checkpoints.dir if self.checkpoints.dir else None}
                ),
                "policy": self.policy.at(base),
                "trainer": trainer.model_copy(
                    update={key: base / path if path else None for key, path in places.items()}
                ),
                "tracking": self.tracking.model_copy(
                    update={"uri": _tracking_uri(self.tracking.uri, base, run_dir)}
                ),
            }
        )


def _evals_at(evals: EvalsSection, base: Path) -> EvalsSection:
    """What the evals section names by a path, seen from run.yaml's folder."""

    def placed(named: Mapping[str, BenchmarkSettings]) -> dict[str, BenchmarkSettings]:
        return {
            name: one
            if isinstance(one.data, str)
            else one.model_copy(update={"data": tuple(base / path for path in one.data)})
            for name, one in named.items()
        }

    return evals.model_copy(
        update={
            "benchmarks": placed(evals.benchmarks),
            "watch": placed(evals.watch),
            "launcher": _launcher_at(evals.launcher, base),
        }
    )


def _launcher_at(launcher: Launcher, base: Path) -> Launcher:
    """A launcher's program named by a relative path, seen from run.yaml's folder."""
    if isinstance(launcher, str) or "/" not in launcher[0]:
        return launcher
    return (str(base / launcher[0]), *launcher[1:])


def _tracking_uri(uri: str | None, base: Path, run_dir: Path) -> str:
    """An absolute tracking URI: MLflow would resolve a relative one against the caller's folder."""
    if uri is None:
        return f"sqlite:///{run_dir / 'mlflow.db'}"
    prefix = "sqlite:///"
    if uri.startswith(prefix) and not uri.startswith(prefix + "/"):
        return f"{prefix}{base / uri.removeprefix(prefix)}"
    return uri


def load_config(path: Path) -> RunConfig:
    """Read and validate a run file; every path in the result is absolute.

    Raises:
        BadInput: one line naming the file, the key, the value and the mend.
    """
    sections = read_sections(path)
    try:
        return RunConfig.model_validate(sections).at(path.parent)
    except ValidationError as error:
        raise BadInput(f"{path}: {explain_error(error, RunConfig)}") from None


def resolve(options: Mapping[str, Any], base: Path, where: str = "policy.with") -> dict[str, Any]:
    """The options with every ``{from: FILE.json}`` replaced by that file's content.

    Only a mapping of that single key, whose value ends in ``.json``, is such a reference.

    Raises:
        BadInput: a file that can't be read or is no JSON.
    """
    return {key: _resolved(value, base, f"{where}.{key}") for key, value in options.items()}


def _resolved(value: Any, base: Path, where: str) -> Any:
    if isinstance(value, list):
        return [_resolved(one, base, f"{where}.{i}") for i, one in enumerate(value)]
    if not isinstance(value, dict):
        return value
    file = value.get("from")
    if len(value) == 1 and isinstance(file, str) and file.endswith(".json"):
        return _read(base / Path(file).expanduser(), where)
    return resolve(value, base, where)


def _read(path: Path, where: str) -> Any:
    try:
        return json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise BadInput(
            f"{where}.from: {path}: cannot be read ({error.strerror}); give a JSON file, such as "
            "the prior.json of a `mixloop search`"
        ) from None
    except ValueError as error:
        raise BadInput(f"{where}.from: {path}: not JSON: {error}") from None
