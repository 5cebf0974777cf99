"""The `evals:` section of run.yaml. Light: pydantic only, no torch, no lm-eval."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, field_validator

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


def _as_share(value: Any) -> Any:
    """`2%` as people write it; a number is a share already."""
    if not isinstance(value, str):
        return value
    try:
        number = float(value.strip().removesuffix("%"))
    except ValueError:
        raise ValueError("not a share of training time: write 2% or 0.02") from None
    return number / 100 if value.strip().endswith("%") else number


def _some_share(value: float) -> float:
    if not 0 < value <= 1:
        raise ValueError("must be above 0 and at most all training time: write 2% or 0.02")
    return value


Share = Annotated[float, BeforeValidator(_as_share), AfterValidator(_some_share)]
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
    `budget` is the share of training time that evaluation may take (`2%`, 0.02), whichever device
    it runs on: it chooses the numbers of items, once and for the whole run, and the `items` and
    `generate_items` of a benchmark are then upper bounds. `data_pins` is what `auto` found earlier
    in the run, see :meth:`pinned`. `steering` is the controller's: which metric of a benchmark
    policies look at.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    every: Annotated[int, Field(ge=1)] | None = None
    budget: Share | None = None
    benchmarks: dict[str, BenchmarkSettings] = Field(
        default_factory=lambda: {name: BenchmarkSettings() for name in BENCHMARKS}
    )
    watch: tuple[str, ...] = ()
    steering: Literal["auto", "bits_per_byte"] = "auto"
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
            name: self._with_pin(name, self.of(name))
            for name in BENCHMARKS
            if name in self.benchmarks or name in self.watch
        }

    def of(self, name: str) -> BenchmarkSettings:
        """One benchmark as run.yaml has it, watched ones included."""
        return self.benchmarks.get(name, BenchmarkSettings())

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
