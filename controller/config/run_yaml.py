"""``run.yaml``: the one file that configures a run, with every section and every path in it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, Field, ValidationError, model_validator

from mixloop.common.errors import BadInput, explain_error, suggest
from mixloop.common.files import LARGEST_JSON, read_whole
from mixloop.common.yaml import read_sections
from mixloop.contract import KeyFileError, key_for
from mixloop.policies.guards import GuardSettings
from mixloop.policies.interface import Goal
from mixloop.trainer.config import Budget, start_weights

from .sections import (
    NAME,
    ApprovalSection,
    CheckpointsSection,
    ControllerSection,
    EvalsSection,
    ExperimentsSection,
    PolicySection,
    RunSection,
    SearchSection,
    Section,
    SimulateSection,
    SourceSection,
    TrackingSection,
    TrainerSection,
)


class RunConfig(Section):
    """A whole run. :func:`load_config` makes one from a file."""

    run: RunSection
    budget: Budget = Field(description="tokens of the whole run")
    sources: dict[Annotated[str, Field(pattern=NAME)], SourceSection] = Field(min_length=1)
    evals: EvalsSection = Field(default_factory=EvalsSection)
    policy: PolicySection = Field(default_factory=PolicySection)
    objective: dict[str, Goal] = Field(
        default_factory=dict, description="per benchmark: weight, target, max_drop"
    )
    guards: GuardSettings = Field(default_factory=GuardSettings)
    checkpoints: CheckpointsSection = Field(default_factory=CheckpointsSection)
    experiments: ExperimentsSection = Field(default_factory=ExperimentsSection)
    approval: ApprovalSection = Field(default_factory=ApprovalSection)
    tracking: TrackingSection = Field(default_factory=TrackingSection)
    trainer: TrainerSection = Field(default_factory=TrainerSection)
    controller: ControllerSection = Field(default_factory=ControllerSection)
    search: SearchSection = Field(default_factory=SearchSection)
    simulate: SimulateSection = Field(default_factory=SimulateSection)
    schema_version: Literal[1] = Field(1, alias="schema")

    @model_validator(mode="after")
    def _weights(self) -> RunConfig:
        self.start_weights(dict.fromkeys(self.sources, 1))
        return self

    @model_validator(mode="after")
    def _approval_known(self) -> RunConfig:
        for name in self.approval.sources:
            if name not in self.sources:
                mend = suggest(name, self.sources)
                raise ValueError(f"approval.sources.{name}: no such source{mend}")
        return self

    @model_validator(mode="after")
    def _objective_known(self) -> RunConfig:
        benchmarks = list(self.evals.benchmarks)
        for name, goal in self.objective.items():
            if name in self.evals.watch and goal.max_drop is None:
                raise ValueError(
                    f"objective.{name}: a watch benchmark never steers; give it a max_drop, "
                    "or move it to evals.benchmarks"
                )
            if name not in [*benchmarks, *self.evals.watch]:
                mend = suggest(name, benchmarks)
                raise ValueError(f"objective.{name}: no such benchmark under evals{mend}")
        if self.objective and not any(
            self.objective.get(name, Goal()).weight > 0 for name in benchmarks
        ):
            raise ValueError("objective: every weight is 0, nothing is left to steer by")
        if self.experiments.receipts and not self.experiment_tokens:
            raise ValueError("experiments.receipts: there is no budget for them; add budget: 2%")
        if self.experiments.receipts and self.evals.average > 1:
            raise ValueError(
                "experiments.receipts: a twin's one checkpoint can't be compared with a mean of "
                f"{self.evals.average}; set evals.average to 1"
            )
        return self

    @property
    def decay(self) -> int | None:
        """Tokens at the end in which the learning rate decays, as `trainer` says; None: unknown."""
        trainer = self.trainer
        if trainer.phases is not None:
            return self.budget - min(trainer.phases.get("decay", self.budget), self.budget)
        known = trainer.lr_schedule == "wsd" and (trainer.warmup or trainer.decay)
        return min(trainer.decay, self.budget) if known else None

    @property
    def experiment_tokens(self) -> int:
        """Training tokens that all experiments of the run may take; 0: none may be asked for."""
        budget = self.experiments.budget
        return int(budget * self.budget) if isinstance(budget, float) else budget

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
        """The same configuration with every path absolute, seen from folder ``base``.

        Raises:
            BadInput: a file that the policy's options name and that can't be read.
        """
        base = base.resolve()
        placed: RunConfig = _absolute(self, base)
        options = _with_files(self.policy.options, base, "policy.with")
        uri = _tracking_uri(self.tracking.uri, base, placed.run.dir)
        evals, experiments = placed.evals, placed.experiments
        return placed.model_copy(
            update={
                "policy": placed.policy.model_copy(update={"options": options}),
                "tracking": placed.tracking.model_copy(update={"uri": uri}),
                "evals": evals.model_copy(update={"launcher": _placed(evals.launcher, base)}),
                "experiments": experiments.model_copy(
                    update={
                        "launcher": _placed(experiments.launcher, base),
                        "trainer": _placed(experiments.trainer, base),
                    }
                ),
            }
        )


Command = TypeVar("Command", bound=str | tuple[str, ...] | None)


def _placed(command: Command, base: Path) -> Command:
    """A command with its program's path seen from ``base``; one on the PATH stays."""
    if not isinstance(command, tuple) or "/" not in command[0]:
        return command
    return (str(base / command[0]), *command[1:])  # type: ignore[return-value]


def _absolute(value: Any, base: Path) -> Any:
    """A setting, or a section of them, with the paths in it seen from ``base``."""
    if isinstance(value, Path):
        return base / value
    if isinstance(value, BaseModel):
        return value.model_copy(update={name: _absolute(field, base) for name, field in value})
    if isinstance(value, dict):
        return {name: _absolute(entry, base) for name, entry in value.items()}
    return tuple(_absolute(e, base) for e in value) if isinstance(value, tuple) else value


def _tracking_uri(uri: str | None, base: Path, run_dir: Path) -> str:
    """An absolute tracking URI: MLflow would resolve a relative one against the caller's folder."""
    if uri is None:
        return f"sqlite:///{run_dir / 'mlflow.db'}"
    prefix = "sqlite:///"
    if uri.startswith(prefix) and not uri.startswith(prefix + "/"):
        return f"{prefix}{base / uri.removeprefix(prefix)}"
    return uri


def _with_files(value: Any, base: Path, key: str) -> Any:
    """A policy's options with every ``{from: FILE.json}`` replaced by that file's content.

    Policies do no I/O, so the file is read when run.yaml is. Only a mapping of that single key,
    whose value ends in ``.json``, is such a reference.
    """
    if isinstance(value, list):
        return [_with_files(entry, base, f"{key}.{n}") for n, entry in enumerate(value)]
    if not isinstance(value, dict):
        return value
    file = value.get("from")
    if len(value) > 1 or not isinstance(file, str) or not file.endswith(".json"):
        return {name: _with_files(entry, base, f"{key}.{name}") for name, entry in value.items()}
    path = base / Path(file).expanduser()
    try:
        return json.loads(read_whole(path, LARGEST_JSON, follow=True))
    except OSError as error:
        raise BadInput(
            f"{key}.from: {path}: cannot be read ({error.strerror}); give a JSON file, such as "
            "the prior.json of a `mixloop search`"
        ) from None
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{key}.from: {path}: not JSON: {error}") from None


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


def named_in(path: Path) -> tuple[Path | None, Path | None]:
    """The run folder and the key file that a run file names, whatever else is wrong in it.

    Somebody may be editing it while another looks at the run, or has to pause it.
    """
    try:
        sections = read_sections(path)
    except BadInput:
        return None, None
    run, trainer = (sections.get(name) for name in ("run", "trainer"))
    folder = run.get("dir") if isinstance(run, dict) else None
    key = trainer.get("key_file") if isinstance(trainer, dict) else None
    base = path.parent.resolve()
    return (
        base / folder if isinstance(folder, str) else None,
        base / key if isinstance(key, str) else None,
    )
