"""What run.yaml's `trainer` section may hold, validated."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AliasChoices, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from mixloop.common.units import Tokens, parse_tokens

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


def durable_steps(poll_every: int) -> int:
    """Steps that a recorded switch is given to reach the disk before ranks may hear of it."""
    return max(2, poll_every // 4)


class StrictModel(BaseModel):
    """Unknown keys are refused, values never change, numbers are finite as JSON has them."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False
    )


class LimitSettings(StrictModel):
    """The trainer's own bounds on any order, whoever wrote it (floor skips zero weights)."""

    floor: float = Field(0.0, ge=0.0, le=1.0)
    cap: float = Field(1.0, gt=0.0, le=1.0)
    max_change: float = Field(1.0, gt=0.0, le=1.0)


class ModelSettings(StrictModel):
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


class BatchStage(StrictModel):
    """From `from` tokens on (the next step boundary), a step has this accumulation or batch."""

    from_tokens: Tokens = Field(validation_alias=AliasChoices("from", "from_tokens"))
    accumulation: int | None = Field(None, gt=0)
    batch: Batch | None = None

    @model_validator(mode="after")
    def _one_size(self) -> BatchStage:
        if (self.accumulation is None) == (self.batch is None):
            raise ValueError("give either accumulation or batch")
        return self


class TrainerSettings(StrictModel):
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
    Every `poll_every` steps all ranks hear of a new order; it begins `prefetch` steps later.
    `key_file` holds the key that orders and requests must be signed with; only its place is ever
    written anywhere.
    Ranks wait for one another for `rank_timeout` seconds at most; then the run ends and says which
    is missing.
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
    grad_clip: float | None = Field(1.0, gt=0, allow_inf_nan=True)
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
    rank_timeout: float = Field(1800.0, ge=1.0, le=1e6)
    lr_schedule: Literal["wsd", "cosine"] = "wsd"
    parallel: Literal["ddp", "fsdp"] = "ddp"
    activation_checkpointing: bool = False
    checkpoint_format: Literal["auto", "single", "dcp"] = "auto"
    on_nan: Literal["skip", "stop"] = "skip"
    nan_limit: int = Field(10, gt=0)
    spike_threshold: float | None = Field(6.0, gt=0, allow_inf_nan=True)
    spike_window: int = Field(128, ge=16)
    peak_flops: float | None = Field(None, gt=0)
    document_mask: bool = False

    @property
    def switching_steps(self) -> int:
        """Steps from an order's publication to its first batch, at most, on a disk in time.

        The poll that sees it, if nothing did before; the first one after the line's time to reach
        the disk, at which ranks hear of it; and what they have drawn ahead by then.
        """
        polls = 1 - durable_steps(self.poll_every) // -self.poll_every
        return polls * self.poll_every + self.prefetch

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
