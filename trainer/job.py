"""What a training job is: the reference trainer's settings and `job.json`.

Light on purpose (pydantic only): the controller embeds :class:`TrainerSettings` in `run.yaml` and
writes the :class:`Job` that ``python -m mixloop.trainer.train JOB.json`` carries out.
"""

from __future__ import annotations

import json
import math
import re
import reprlib
from collections.abc import Mapping
from decimal import Decimal
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AliasChoices,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

_UNITS = {"": 1, "k": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}
_TOKENS = re.compile(r"\s*(\d+(?:_\d+)*(?:\.\d+)?)\s*([kKMBT]?)\s*")
_SHOWN = reprlib.Repr()  # a few anchors of YAML can stand for more text than memory holds
_SHOWN.maxstring = _SHOWN.maxother = _SHOWN.maxlong = 200
_LEGAL = "a whole number, or one with a unit as in 400k, 1.5M, 250B, 11T"

SUM_TOLERANCE = 1e-6
"""How far from 1 the weights of a mixture may sum."""


class JobError(ValueError):
    """A job that cannot start; the message is one line for a person (exit code 2)."""


def parse_tokens(value: str | int | float) -> int:
    """Count of tokens from ``11T``, ``250B``, ``2M``, ``400k``, ``1.5M`` or a whole number.

    Raises:
        ValueError: naming the value and the legal forms.
    """
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise ValueError(f"{_SHOWN.repr(value)} is not a token count: write {_LEGAL}")
    if isinstance(value, float):
        if not (math.isfinite(value) and value.is_integer() and value >= 0):
            raise ValueError(f"{_SHOWN.repr(value)} is not a token count: write {_LEGAL}")
        return int(value)
    if isinstance(value, int):
        if value < 0:
            raise ValueError(f"{_SHOWN.repr(value)} is not a token count: write {_LEGAL}")
        return value
    match = _TOKENS.fullmatch(value)
    unit = match[2] if match else ""
    count = Decimal(match[1]) * _UNITS["k" if unit == "K" else unit] if match else Decimal(-1)
    if count < 0 or count != count.to_integral_value():
        raise ValueError(f"{_SHOWN.repr(value)} is not a token count: write {_LEGAL}")
    return int(count)


Tokens = Annotated[int, BeforeValidator(parse_tokens), Field(ge=0)]
"""A number of tokens; strings may carry a unit (`11T`)."""


_BATCH = re.compile(r"\s*(.*?)\s*(samples|tokens)?\s*")


def parse_batch(value: int | str) -> int | str:
    """A global batch: samples as a number, or text with `tokens` (``4M tokens``), made plain.

    Raises:
        ValueError: naming the value and the legal forms.
    """
    match = _BATCH.fullmatch(value) if isinstance(value, str) else None
    try:
        count = parse_tokens(match[1] if match else value)
    except ValueError as error:
        raise ValueError(
            f"{value!r} is no batch: write samples (512) or tokens ('4M tokens')"
        ) from error
    if count == 0:
        raise ValueError("a batch has at least one sample")
    return f"{count} tokens" if match is not None and match[2] == "tokens" else count


Batch = Annotated[int | str, BeforeValidator(parse_batch)]
"""Samples of a step over all ranks, or tokens (`4M tokens`)."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class LimitSettings(_Strict):
    """The trainer's own bounds on any order, whoever wrote it (floor skips zero weights)."""

    floor: float = Field(0.0, ge=0.0, le=1.0)
    cap: float = Field(1.0, gt=0.0, le=1.0)
    max_change: float = Field(1.0, gt=0.0, le=1.0)


class ModelSettings(_Strict):
    """Shape of a `LlamaForCausalLM` built from scratch (vocabulary: the tokenizer's)."""

    hidden_size: int = Field(192, gt=0)
    intermediate_size: int = Field(512, gt=0)
    num_hidden_layers: int = Field(6, gt=0)
    num_attention_heads: int = Field(6, gt=0)
    num_key_value_heads: int | None = Field(None, gt=0)
    max_position_embeddings: int | None = Field(None, gt=0)
    rope_theta: float = Field(10_000.0, gt=0)
    rms_norm_eps: float = Field(1e-5, gt=0)
    initializer_range: float = Field(0.02, gt=0)
    tie_word_embeddings: bool = True

    @model_validator(mode="after")
    def _heads_divide(self) -> ModelSettings:
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} is not a multiple of "
                f"num_attention_heads {self.num_attention_heads}"
            )
        if self.num_key_value_heads and self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads {self.num_attention_heads} is not a multiple of "
                f"num_key_value_heads {self.num_key_value_heads}"
            )
        return self


class BatchStage(_Strict):
    """From `from` tokens on (the next step boundary), a step has this accumulation or batch."""

    from_tokens: Tokens = Field(validation_alias=AliasChoices("from", "from_tokens"))
    accumulation: int | None = Field(None, gt=0)
    batch: Batch | None = None

    @model_validator(mode="after")
    def _one_size(self) -> BatchStage:
        if (self.accumulation is None) == (self.batch is None):
            raise ValueError("give either accumulation or batch")
        return self


class TrainerSettings(_Strict):
    """The reference trainer: model, optimizer, learning rate, checkpoints, polling.

    Token counts (`warmup`, `decay`, `checkpoint_every`) take units; the rest is in steps.
    A step takes `micro_batch` x `accumulation` samples on each rank. With `batch` (samples over all
    ranks, or tokens: `4M tokens`) in place of `accumulation`, the latter follows from the number of
    ranks, and a run goes on unchanged on another number. `batch_schedule` changes either at given
    tokens, at the step boundary there or next.
    `parallel` says how several ranks share the model: `ddp` (each has all of it) or `fsdp` (each
    holds its part of weights and optimizer, in fp32). `lr_schedule: cosine` falls from the end of
    the warm-up to the end of the budget and has no `decay`. `on_nan` says what a gradient that is
    not finite leads to: the optimizer step is skipped, and `nan_limit` of them in a row (`stop`:
    one) end the run. A loss more than `spike_threshold` robust standard deviations above the median
    of the last `spike_window` steps is reported. `peak_flops` is what one device can do per second
    in the precision used, for the utilisation that is reported. `document_mask` keeps attention
    within documents: no token looks beyond the end-of-text token before it.
    `key_file` holds the key that orders and requests must be signed with; only its place is ever
    written anywhere.
    `phases` is for other training loops, which don't always tell the phase of their learning rate:
    the token count at which each phase begins.
    """

    model: ModelSettings | None = None
    init_from: Path | None = None
    sequence_length: int = Field(256, ge=2)
    micro_batch: int = Field(8, gt=0)
    accumulation: int = Field(1, gt=0)
    batch: Batch | None = None
    batch_schedule: tuple[BatchStage, ...] = ()
    learning_rate: float = Field(1e-3, gt=0)
    min_learning_rate: float = Field(0.0, ge=0)
    warmup: Tokens = 0
    decay: Tokens = 0
    decay_shape: Literal["linear", "1-sqrt"] = "linear"
    phases: dict[Literal["warmup", "stable", "decay"], Tokens] | None = None
    weight_decay: float = Field(0.1, ge=0)
    betas: tuple[float, float] = (0.9, 0.95)
    grad_clip: float | None = Field(1.0, gt=0)
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    device: str = "auto"
    threads: int | None = Field(None, gt=0)
    compile: bool = False
    checkpoint_every: Tokens | None = None
    checkpoint_initial: bool = False
    keep: int | None = Field(None, gt=0)
    poll_every: int = Field(20, gt=0)
    status_every: int = Field(10, gt=0)
    log_every: int = Field(50, gt=0)
    prefetch: int = Field(1, ge=0)
    accept_uid: int | None = None
    key_file: Path | None = None
    processes: int = Field(1, gt=0)
    lr_schedule: Literal["wsd", "cosine"] = "wsd"
    parallel: Literal["ddp", "fsdp"] = "ddp"
    activation_checkpointing: bool = False
    checkpoint_format: Literal["auto", "single", "dcp"] = "auto"
    on_nan: Literal["skip", "stop"] = "skip"
    nan_limit: int = Field(10, gt=0)
    spike_threshold: float | None = Field(6.0, gt=0)
    spike_window: int = Field(128, ge=16)
    peak_flops: float | None = Field(None, gt=0)
    document_mask: bool = False

    @property
    def sharded_state(self) -> bool:
        """Whether checkpoints keep the trainer's state in torch's distributed format."""
        if self.checkpoint_format == "auto":
            return self.parallel == "fsdp"
        return self.checkpoint_format == "dcp"

    @model_validator(mode="after")
    def _one_batch(self) -> TrainerSettings:
        if self.batch is not None and self.accumulation != 1:
            raise ValueError("accumulation and batch are both given: keep one")
        tokens = [stage.from_tokens for stage in self.batch_schedule]
        for before, after in pairwise(tokens):
            if after <= before:
                raise ValueError(
                    f"batch_schedule: from {after:,} tokens comes after from {before:,}; list them "
                    "in order"
                )
        return self

    @model_validator(mode="after")
    def _one_model(self) -> TrainerSettings:
        if self.lr_schedule == "cosine" and self.decay:
            raise ValueError(
                f"decay {self.decay:,} belongs to lr_schedule wsd; cosine falls over the whole "
                "budget: drop one of the two"
            )
        if self.parallel == "fsdp" and self.checkpoint_format == "single":
            raise ValueError("checkpoint_format single needs parallel ddp: fsdp saves dcp")
        if self.model is not None and self.init_from is not None:
            raise ValueError("model and init_from are both given: keep one")
        if self.min_learning_rate > self.learning_rate:
            raise ValueError(
                f"min_learning_rate {self.min_learning_rate} is above "
                f"learning_rate {self.learning_rate}"
            )
        return self


class JobSource(_Strict):
    """Where a source lies and its share at the start (`standby` waits at weight 0).

    `format` is found out from the files. `eos_id` is the id that ends a document, `column` the one
    of an arrow dataset that holds the ids, `dtype` the width of a datatrove folder's ids where it
    has no metadata.
    """

    path: Path
    weight: float | None = Field(None, ge=0.0, le=1.0)
    standby: bool = False
    format: Literal["auto", "store", "megatron", "datatrove", "arrow"] = "auto"
    eos_id: int | None = Field(None, ge=0)
    column: str | None = None
    dtype: Literal["uint16", "uint32"] | None = None

    @property
    def options(self) -> dict[str, Any]:
        """What `open_source` is told besides the path."""
        return self.model_dump(include={"format", "eos_id", "column", "dtype"})


class Job(_Strict):
    """One training job, `job.json`. Relative paths are relative to the working directory."""

    run: str = Field(min_length=1)
    dir: Path
    seed: int = Field(0, ge=0, lt=2**63)
    budget: Tokens
    sources: dict[str, JobSource] = Field(min_length=1)
    limits: LimitSettings = LimitSettings()
    tokenizer: Path | None = None
    settings: TrainerSettings = TrainerSettings()

    @field_validator("budget")
    @classmethod
    def _some_budget(cls, value: int) -> int:
        if value == 0:
            raise ValueError("the budget is 0 tokens: give at least one")
        return value

    @property
    def sequence_length(self) -> int:
        """Tokens of a sample."""
        return self.settings.sequence_length

    def start_weights(self, sizes: Mapping[str, int]) -> dict[str, float]:
        """The configured first mixture, by source, in the job's order; sums to 1.

        Args:
            sizes: size of each source's store (any unit), used when no weight is given at all.

        Raises:
            JobError: weights that don't sum to 1, are missing in part, or a standby with weight.
        """
        return start_weights(self.sources, sizes)


def start_weights(sources: Mapping[str, JobSource], sizes: Mapping[str, int]) -> dict[str, float]:
    """See :meth:`Job.start_weights`."""
    for name, source in sources.items():
        if source.standby and source.weight:
            raise JobError(
                f"sources.{name}: weight {source.weight:g} on a standby source; drop one of the two"
            )
    active = {name: source for name, source in sources.items() if not source.standby}
    if not active:
        raise JobError("sources: all are standby, so there is nothing to train on")
    given = {name: s.weight for name, s in active.items() if s.weight is not None}
    if not given:
        total = sum(sizes[name] for name in active)
        return {name: sizes[name] / total if name in active else 0.0 for name in sources}
    if absent := [name for name in active if name not in given]:
        raise JobError(
            f"sources.{absent[0]}: no weight though others have one; "
            "give every source a weight, or none, or mark it standby"
        )
    total_weight = math.fsum(given.values())
    if abs(total_weight - 1) > SUM_TOLERANCE:
        listed = ", ".join(f"{name} {weight:g}" for name, weight in given.items())
        raise JobError(
            f"sources: the weights sum to {total_weight:.6g}, not 1 ({listed}); "
            f"change them by {1 - total_weight:+.6g} in all"
        )
    return {name: given.get(name, 0.0) / total_weight for name in sources}


def one_line(error: ValidationError) -> str:
    """The first of a pydantic error's findings, as ``key: what is wrong (got value)``."""
    finding = error.errors(include_url=False)[0]
    key = ".".join(str(part) for part in finding["loc"]) or "(top)"
    message = str(finding["msg"]).removeprefix("Value error, ")
    if finding["type"] == "extra_forbidden":
        return f"{key}: unknown key"
    value = finding.get("input")
    if not isinstance(value, (str, int, float)) or _SHOWN.repr(value) in message:
        return f"{key}: {message}"
    return f"{key}: {message} (got {_SHOWN.repr(value)})"


def load_job(path: Path) -> Job:
    """Read `job.json`.

    Raises:
        JobError: one line naming the file, the key, the value and what would be right.
    """
    try:
        raw: Any = json.loads(path.read_text("utf-8"))
        return Job.model_validate(raw)
    except OSError as error:
        raise JobError(f"{path}: {error.strerror or error}") from error
    except ValidationError as error:
        raise JobError(f"{path}: {one_line(error)}") from error
    except ValueError as error:
        raise JobError(f"{path}: not JSON: {error}") from error
