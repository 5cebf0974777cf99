"""The scorecard of one checkpoint. Light: pydantic only."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, computed_field, model_validator

from mixloop.common.files import read_json, read_whole, write_atomic

SCHEMA: Final = "mixloop/scorecard/1"
MAX_BYTES = 2**28
"""What no scorecard file exceeds: some hundred bytes an item."""

Outcomes = dict[str, dict[str, float]]
"""Per item id, every number measured on it by its metric's name."""


class FrozenModel(BaseModel):
    """A record that isn't changed and takes no key it doesn't know."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Metric(FrozenModel):
    """One number with its standard error (None where one item gives none).

    The standard error is cluster-robust over MMLU's subjects. `interval` is the 95% one: exact
    where all outcomes are 0 or 1 (see `estimates.proportion_interval`), else Student's. `n` items
    were scored, `excluded` did not fit the model's context, `asked` is their sum.
    """

    value: float
    stderr: float | None
    interval: tuple[float, float] | None = None
    n: int
    higher_is_better: bool
    asked: int
    excluded: int


class BenchmarkScore(FrozenModel):
    """One benchmark: `missing` (with the reason) when nothing at all could be measured.

    `items` holds per item every metric measured on it, and `bytes`, the weight of its
    bits_per_byte. `shots` is what the run uses, `max_new_tokens` what a generation may take.
    `data` says where the items come from and how many; `data_kind` is its first word. A metric
    that could not be measured is absent and `reason` says why.
    """

    status: Literal["ok", "missing"]
    reason: str | None = None
    metrics: dict[str, Metric] = Field(default_factory=dict)
    items: Outcomes = Field(default_factory=dict)
    shots: int = 0
    max_new_tokens: int | None = None
    asked: int = 0
    excluded: int = 0
    data: str = ""
    data_kind: str = ""


class Cost(FrozenModel):
    """What one benchmark cost: wall and processor seconds, and tokens run through the model.

    `tokens` were computed, `asked_tokens` is what computing every request on its own would take.
    """

    seconds: float
    cpu_seconds: float
    items: int
    tokens: int
    asked_tokens: int

    @computed_field  # type: ignore[prop-decorator]  # mypy knows no decorated property
    @property
    def items_per_second(self) -> float:
        """Items scored per wall second; 0 where nothing was."""
        return round(self.items / self.seconds, 3) if self.seconds > 0 else 0.0

    @model_validator(mode="before")
    @classmethod
    def _without_computed(cls, value: Any) -> Any:
        """A file says it, for whoever reads it without us; here it follows from the others."""
        if isinstance(value, dict):
            return {key: number for key, number in value.items() if key != "items_per_second"}
        return value


class Scorecard(FrozenModel):
    """All metrics of one checkpoint. `engine` names the versions that ran.

    `averaged` are the folders of the checkpoints whose mean was scored, oldest first, its own
    included: fewer than the `average` that was asked for where there were no more. It is empty
    where a checkpoint is scored as it is. `seconds` (wall) and `cost` (per benchmark) differ from
    one run to the next; everything else is the same whenever, and on however many workers, the same
    checkpoint is scored.
    """

    schema_: Literal["mixloop/scorecard/1"] = Field(default=SCHEMA, alias="schema")
    checkpoint: str
    step: int | None = None
    tokens: int | None = None
    average: int = 1
    averaged: tuple[str, ...] = ()
    benchmarks: dict[str, BenchmarkScore]
    seconds: float
    cost: dict[str, Cost] = Field(default_factory=dict)
    settings_digest: str
    engine: dict[str, str] = Field(default_factory=dict)

    def to_json(self) -> str:
        """The scorecard as the text of its file."""
        return self.model_dump_json(by_alias=True)

    def measured(self) -> str:
        """The same text without what it cost: equal for equal checkpoints and settings."""
        return self.model_dump_json(by_alias=True, exclude={"seconds", "cost"})

    @classmethod
    def read(cls, path: Path) -> Scorecard:
        """Reads a scorecard file; no link is followed, no FIFO waited for.

        Raises:
            OSError: it is missing, can't be read, or is no regular file.
            ValueError: it is no scorecard; names the file.
        """
        try:
            return cls.model_validate_json(read_whole(path, MAX_BYTES))
        except ValueError as error:
            raise ValueError(f"{path}: not a scorecard: {error}") from error

    def write(self, path: Path) -> None:
        """Writes the file atomically: a reader sees all of it or nothing."""
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, self.to_json().encode())

    def data_kinds(self) -> dict[str, str]:
        """Where each benchmark's items came from: what `EvalSettings.pinned` takes."""
        return {name: score.data_kind for name, score in self.benchmarks.items() if score.data_kind}


def training_state(checkpoint: Path) -> tuple[int | None, int | None]:
    """(step, tokens) from the checkpoint's own manifest; None where it has none."""
    try:
        manifest = read_json(checkpoint / "manifest.json", MAX_BYTES, follow=True)
        step, tokens = manifest.get("step"), manifest.get("tokens")
    except (OSError, ValueError, AttributeError, RecursionError):
        return None, None
    return (
        step if isinstance(step, int) else None,
        tokens if isinstance(tokens, int) else None,
    )
