"""The `evals:` section of run.yaml. Light: pydantic only, no torch, no lm-eval."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator

BENCHMARKS = ("mmlu", "gsm8k", "math", "humaneval")

SandboxMode = Literal["auto", "landlock", "bwrap", "off"]
DataKind = Literal["auto", "hub", "packages"]


def _as_files(value: Any) -> Any:
    """A lone path becomes a list of one; the three words stay words."""
    if isinstance(value, Path) or (
        isinstance(value, str) and value not in ("auto", "hub", "packages")
    ):
        return (value,)
    return tuple(value) if isinstance(value, list) else value


Data = Annotated[DataKind | tuple[Path, ...], BeforeValidator(_as_files)]


class BenchmarkSettings(BaseModel):
    """How one benchmark is asked.

    `items` bounds the fixed, seeded subset (None: every item there is), `generate_items` how many
    of those are also generated for exact_match or pass@1 (None: all). `shots` and `max_new_tokens`
    default to lm-eval's own; both are lowered to what the model's context holds, never raised.
    `data` is `auto` (hub when reachable, else packages), `hub`, `packages`, or jsonl files or
    folders holding `test.jsonl` (and `dev.jsonl`: MMLU's few-shot pool).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    items: Annotated[int, Field(ge=1)] | None = None
    generate_items: Annotated[int, Field(ge=0)] | None = None
    shots: Annotated[int, Field(ge=0)] | None = None
    max_new_tokens: Annotated[int, Field(ge=1)] | None = None
    data: Data = "auto"


class EvalSettings(BaseModel):
    """run.yaml's `evals:` section.

    `every` is a token count (units are parsed before), `timeout` seconds per checkpoint,
    `memory` bytes of resident memory the worker may hold, `max_length` the
    longest sequence in tokens (None: the model's own), `batch_tokens` padded tokens per forward.
    `samples` says whether texts of up to `samples_tokens` tokens are written for a person beside
    each scorecard. `data_pins` is what `auto` found earlier in the run, see :meth:`pinned`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    every: Annotated[int, Field(ge=1)] | None = None
    benchmarks: dict[str, BenchmarkSettings] = Field(
        default_factory=lambda: {name: BenchmarkSettings() for name in BENCHMARKS}
    )
    watch: tuple[str, ...] = ()
    data_pins: dict[str, Literal["hub", "packages"]] = Field(default_factory=dict)
    seed: int = 0
    device: str = "cpu"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    threads: Annotated[int, Field(ge=1)] | None = None
    batch_tokens: Annotated[int, Field(ge=1)] = 2048
    max_length: Annotated[int, Field(ge=8)] | None = None
    timeout: Annotated[float, Field(gt=0)] = 3600.0
    memory: Annotated[int, Field(ge=1)] | None = None
    sandbox: SandboxMode = "auto"
    program_timeout: Annotated[float, Field(gt=0)] = 3.0
    idle_seconds: Annotated[float, Field(gt=0)] = 60.0
    samples: bool = True
    samples_tokens: Annotated[int, Field(ge=1)] = 64

    @field_validator("benchmarks")
    @classmethod
    def _known(cls, value: dict[str, BenchmarkSettings]) -> dict[str, BenchmarkSettings]:
        for name in value:
            if name not in BENCHMARKS:
                known = ", ".join(BENCHMARKS)
                raise ValueError(f"unknown benchmark {name!r}: choose from {known}")
        return value

    @field_validator("watch")
    @classmethod
    def _nothing_to_watch(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        unknown = [name for name in value if name not in BENCHMARKS]
        if unknown:
            raise ValueError(
                f"watch: {unknown[0]!r} is not available: choose from {', '.join(BENCHMARKS)}"
            )
        return value

    @property
    def asked(self) -> dict[str, BenchmarkSettings]:
        """Every benchmark to run, in a fixed order, watched ones included."""
        return {
            name: self._with_pin(name, self.benchmarks.get(name, BenchmarkSettings()))
            for name in BENCHMARKS
            if name in self.benchmarks or name in self.watch
        }

    def _with_pin(self, name: str, one: BenchmarkSettings) -> BenchmarkSettings:
        pin = self.data_pins.get(name)
        return one.model_copy(update={"data": pin}) if one.data == "auto" and pin else one

    def digest(self) -> str:
        """Identity of what is measured; two scorecards compare only under the same digest."""
        measured = self.model_dump(
            mode="json", include={"benchmarks", "watch", "seed", "dtype", "max_length"}
        )
        text = repr(sorted(measured.items()))
        return "sha256:" + hashlib.sha256(text.encode()).hexdigest()

    def pinned(self, kinds: dict[str, str]) -> EvalSettings:
        """These settings with every `data: auto` that `kinds` names fixed to its kind.

        `auto` may find the hub one day and not the next; a run keeps to what it began with, or
        its checkpoints would be scored on different items.
        """
        pins = {name: kind for name, kind in kinds.items() if kind in ("hub", "packages")}
        return self.model_copy(update={"data_pins": {**self.data_pins, **pins}})
