"""The `evals:` section of run.yaml. Light: pydantic only, no torch, no lm-eval."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    field_validator,
    model_validator,
)

from mixloop.common.errors import shown
from mixloop.common.tokenizing import TokenProbe

BENCHMARKS = ("mmlu", "gsm8k", "math", "humaneval")

# any further name is one of lm-eval's tasks; whether there is such a task is asked elsewhere
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")

SandboxMode = Literal["auto", "landlock", "bwrap", "off"]
DataKind = Literal["auto", "hub", "packages"]


def _as_files(value: Any) -> Any:
    """A lone path becomes a list of one; the three words stay words."""
    if isinstance(value, Path | str) and value not in get_args(DataKind):
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


def _positive_share(value: float) -> float:
    if not 0 < value <= 1:
        raise ValueError("must be above 0 and at most all training time: write 2% or 0.02")
    return value


Share = Annotated[float, BeforeValidator(_as_share), AfterValidator(_positive_share)]
Data = Annotated[DataKind | tuple[Path, ...], BeforeValidator(_as_files)]


# stands for the worker's own command line in a launcher's
COMMAND = "{command}"


def _as_launcher(value: Any) -> Any:
    """`local`, `ray`, or a command template as a tuple."""
    if isinstance(value, str):
        if value not in ("local", "ray"):
            raise ValueError(
                "must be local, ray, or a list of arguments with the worker's command in it, "
                f"such as [srun, -G1, '{COMMAND}']"
            )
        return value
    if not isinstance(value, list | tuple):
        return value
    if any(isinstance(part, bool) or not isinstance(part, str | int | float) for part in value):
        raise ValueError("every argument must be a text or a number")
    arguments = tuple(str(part) for part in value)
    if arguments.count(COMMAND) != 1:
        raise ValueError(
            f"exactly one argument must be '{COMMAND}', where the worker's own arguments go; "
            f"there are {arguments.count(COMMAND)}"
        )
    return arguments


Launcher = Annotated[Literal["local", "ray"] | tuple[str, ...], BeforeValidator(_as_launcher)]

# as torch names them; a plugin's that is not here goes by the last
_DEVICES = ("cpu", "cuda", "hpu", "mps", "mtia", "npu", "xla", "xpu", "privateuseone")
_DEVICE = re.compile(rf"({'|'.join(_DEVICES)})(:(0|[1-9][0-9]?))?")


def _as_device(value: str) -> str:
    """What can't be torch's name of a device anywhere is refused, without asking torch."""
    if not _DEVICE.fullmatch(value):
        others = ", ".join(_DEVICES[2:])
        raise ValueError(
            f"{shown(value)} is no device: write cpu, cuda or cuda:1 (torch may also have {others})"
        )
    return value


Device = Annotated[str, AfterValidator(_as_device)]


class BenchmarkSettings(BaseModel):
    """How one benchmark is asked.

    `items` bounds the fixed, seeded subset (None: every item there is), `generate_items` how many
    of those are also generated for exact_match or pass@1 (None: all). `shots` and `max_new_tokens`
    default to lm-eval's own; both are lowered to what the model's context holds. Of the four no
    more shots are shown than lm-eval's own number.
    `data` is `auto` (hub when reachable, else packages), `hub`, `packages`, or local files (jsonl,
    json, parquet) and folders of them by split: `test`, and the few-shot pool as `dev` (MMLU) or
    `train` (GSM8K).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    items: Annotated[int, Field(ge=1)] | None = None
    generate_items: Annotated[int, Field(ge=0)] | None = None
    shots: Annotated[int, Field(ge=0)] | None = None
    max_new_tokens: Annotated[int, Field(ge=1)] | None = None
    data: Data = "auto"


def _as_mapping(value: Any) -> Any:
    """A list of names is those names, each asked in lm-eval's own way."""
    if isinstance(value, list | tuple) and all(isinstance(name, str) for name in value):
        return {name: {} for name in value}
    return value


_RAY_ONLY = ("workers", "worker_cpus", "worker_gpus", "ray_address", "unit_timeout")


class EvalSettings(BaseModel):
    """run.yaml's `evals:` section.

    `every` is a token count (units are parsed before), `timeout` seconds per checkpoint,
    `memory` bytes of resident memory the worker may hold, `max_length` the
    longest sequence in tokens (None: the model's own), `batch_tokens` tokens per forward pass
    (None: what suits the device), `unit_items` how many items of a benchmark are scored by
    themselves, wherever that is.
    `benchmarks` and `watch` (a list, or as `benchmarks` are) name the four benchmarks or any task
    of lm-eval's; watched ones are reported and never steer.
    `budget` is the share of training time that evaluation may take (`2%`, 0.02), whichever device
    it runs on: it chooses the numbers of items, once and for the whole run, and the `items` and
    `generate_items` of a benchmark are then upper bounds. `steering` is the controller's: which
    metric of a benchmark policies look at. So is `backlog`: with `latest`, once more than two
    checkpoints wait to be scored while training goes on, the newest is next and the older ones are
    skipped; with `all` none is. A checkpoint's score is that of the mean of its weights and those
    of the `average - 1` checkpoints before it (2505.12082), meant to damp the jitter that an
    optimiser gives single ones. `samples` says whether texts of up to `samples_tokens`
    tokens are written for a person beside each scorecard. `data_pins` is what `auto` found earlier
    in the run, see :meth:`pinned`. `add_bos` puts the tokenizer's beginning-of-text token in front
    of every text, for a model that was trained so (`add_bos_token` of lm-eval's `hf` model); None:
    where documents of the training data have it, and else nothing is put into a text.
    `trained_probe` is the controller's: the token ids of a fixed text by the tokenizer of the run's
    sources; a checkpoint whose tokenizer gives others is not scored. So is `trained_tokenizer`: the
    folder of that tokenizer, for a checkpoint that carries none.
    `launcher` is `local`, a command template, or `ray`: then `workers` actors of `worker_cpus`
    processors and `worker_gpus` GPUs each, in the cluster at `ray_address` (None: one of this
    machine's own), share the units of a checkpoint; `memory` bounds each, and one that is silent
    about a unit for `unit_timeout` seconds (None: a quarter of `timeout`) is replaced.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    every: Annotated[int, Field(ge=1)] | None = None
    budget: Share | None = None
    benchmarks: dict[str, BenchmarkSettings] = Field(
        default_factory=lambda: {name: BenchmarkSettings() for name in BENCHMARKS}
    )
    watch: Annotated[dict[str, BenchmarkSettings], BeforeValidator(_as_mapping)] = Field(
        default_factory=dict
    )
    steering: Literal["auto", "bits_per_byte"] = "auto"
    backlog: Literal["latest", "all"] = "latest"
    average: Annotated[int, Field(ge=1)] = 1
    data_pins: dict[str, Literal["hub", "packages"]] = Field(default_factory=dict)
    seed: int = 0
    device: Device = "cpu"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    threads: Annotated[int, Field(ge=1)] | None = None
    batch_tokens: Annotated[int, Field(ge=1)] | None = None
    unit_items: Annotated[int, Field(ge=1)] = 128
    max_length: Annotated[int, Field(ge=8)] | None = None
    add_bos: bool | None = None
    trained_probe: TokenProbe | None = None
    trained_tokenizer: Path | None = None
    timeout: Annotated[float, Field(gt=0)] = 3600.0
    memory: Annotated[int, Field(ge=1)] | None = None
    sandbox: SandboxMode = "auto"
    program_timeout: Annotated[float, Field(gt=0)] = 3.0
    idle_seconds: Annotated[float, Field(gt=0)] = 60.0
    samples: bool = True
    samples_tokens: Annotated[int, Field(ge=1)] = 64
    launcher: Launcher = "local"
    workers: Annotated[int, Field(ge=1)] = 1
    worker_cpus: Annotated[float, Field(ge=0)] = 1.0
    worker_gpus: Annotated[float, Field(ge=0)] = 0.0
    ray_address: str | None = None
    unit_timeout: Annotated[float, Field(gt=0)] | None = None

    @field_validator("benchmarks", "watch")
    @classmethod
    def _named(cls, value: dict[str, BenchmarkSettings]) -> dict[str, BenchmarkSettings]:
        for name in value:
            if not _NAME.fullmatch(name):
                raise ValueError(
                    f"{name!r} can't be a benchmark: choose from {', '.join(BENCHMARKS)}, "
                    "or name a task of lm-eval"
                )
        return value

    @model_validator(mode="after")
    def _workers_of_ray(self) -> EvalSettings:
        for name in _RAY_ONLY if self.launcher != "ray" else ():
            if getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{name} is for launcher: ray; add that or remove {name}")
        # Ray hides the GPUs that a worker has not asked for
        if self.launcher == "ray" and self.device.startswith("cuda") and not self.worker_gpus:
            raise ValueError(f"device {self.device} under launcher: ray needs worker_gpus above 0")
        return self

    @property
    def asked(self) -> dict[str, BenchmarkSettings]:
        """Every benchmark to run: the four in their order, then others as they are named.

        A name in both `benchmarks` and `watch` is asked as `benchmarks` has it.
        """
        named = {**self.benchmarks, **self.watch} | self.benchmarks
        order = [name for name in BENCHMARKS if name in named]
        order += [name for name in named if name not in BENCHMARKS]
        return {name: self._with_pin(name, named[name]) for name in order}

    def of(self, name: str) -> BenchmarkSettings:
        """One benchmark as run.yaml has it, watched ones included."""
        return self.benchmarks[name] if name in self.benchmarks else self.watch[name]

    def asking(self, chosen: dict[str, BenchmarkSettings]) -> EvalSettings:
        """These settings with the chosen benchmarks alone, each asked or watched as before."""
        watched = {
            name: settings for name, settings in chosen.items() if name not in self.benchmarks
        }
        asked = {name: settings for name, settings in chosen.items() if name in self.benchmarks}
        return self.model_copy(update={"benchmarks": asked, "watch": watched})

    def _with_pin(self, name: str, settings: BenchmarkSettings) -> BenchmarkSettings:
        pin = self.data_pins.get(name)
        if settings.data == "auto" and pin:
            return settings.model_copy(update={"data": pin})
        return settings

    def digest(self) -> str:
        """Identity of what is measured; two scorecards compare only under the same digest."""
        measured = self.model_dump(
            mode="json", include={"benchmarks", "watch", "seed", "dtype", "max_length"}
        )
        # left out where it is not set: scorecards of before it was there compare still
        if self.add_bos:
            measured["add_bos"] = True
        if self.average > 1:
            measured["average"] = self.average
        text = repr(sorted(measured.items()))
        return "sha256:" + hashlib.sha256(text.encode()).hexdigest()

    def pinned(self, kinds: dict[str, str]) -> EvalSettings:
        """These settings with every `data: auto` that `kinds` names fixed to its kind.

        `auto` may find the hub one day and not the next; a run keeps to what it began with, or
        its checkpoints would be scored on different items.
        """
        pins = {name: kind for name, kind in kinds.items() if kind in ("hub", "packages")}
        return self.model_copy(update={"data_pins": {**self.data_pins, **pins}})
