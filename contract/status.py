"""``status.json``: the trainer's heartbeat."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from mixloop.common.files import LARGEST, write_json
from mixloop.common.json_records import ReadResult, encode, read_record

STATUS_SCHEMA = "mixloop/status/1"

Phase = Literal["warmup", "stable", "decay"]
AnyPath = str | os.PathLike[str]


@dataclass(frozen=True)
class SourceStatus:
    """One source so far: tokens drawn, passes over it, tokens of one pass, its training loss.

    A pass takes the whole windows of the source, so that without growth `epochs` is `tokens` by
    `unique_tokens`.
    """

    tokens: int
    epochs: float
    unique_tokens: int
    loss: float | None = None


@dataclass(frozen=True)
class AcceptedOrder:
    """The highest fence and generation accepted; 0/0 is the configured start."""

    fence: int
    generation: int


@dataclass(frozen=True)
class OrderInForce:
    """The order being consumed, its first sample, that sample's step, and its weights."""

    fence: int
    generation: int
    sample: int
    step: int
    weights: Mapping[str, float]


@dataclass(frozen=True)
class PendingOrder:
    """An order that is recorded and comes into force at `sample`."""

    fence: int
    generation: int
    sample: int


@dataclass(frozen=True)
class RejectedOrder:
    """An order that was not accepted, and why."""

    reason: str
    digest: str
    fence: int | None = None
    generation: int | None = None
    at_step: int | None = None


@dataclass(frozen=True)
class Health:
    """Steps that went wrong since the run began; counts go on over restarts.

    `nan_steps` had a gradient that was not finite and left weights and optimizer as they were;
    `spikes` counts the times the loss left its recent range upwards, not the steps it stayed there.
    `note` tells of the last of either.
    """

    nan_steps: int = 0
    spikes: int = 0
    last_nan_step: int | None = None
    last_spike_step: int | None = None
    note: str | None = None


@dataclass(frozen=True)
class System:
    """What rank 0's process and device do; null where it can't be measured.

    `cpu_percent`: of one core; may exceed 100. `rss_gb`, `gpu_memory_gb` (10^9 bytes): resident
    memory now, and the most that torch had allocated on the GPU since the last status.
    `gpu_utilisation`: percent of the last moment in which any kernel ran. `mfu`: model FLOPs
    utilisation, 0 to 1, of all ranks.
    """

    device: str
    cpu_percent: float | None = None
    rss_gb: float | None = None
    gpu_memory_gb: float | None = None
    gpu_utilisation: float | None = None
    tokens_per_second: float | None = None
    mfu: float | None = None


@dataclass(frozen=True)
class FailedCheckpoint:
    """No checkpoint that was due since `step` could be written; training goes on and tries again.

    `reason` is the last attempt's; `saved` is the step of the newest checkpoint of the run, from
    which it would be gone on with (null: there is none).
    """

    step: int
    reason: str
    attempts: int
    saved: int | None = None

    @property
    def in_words(self) -> str:
        """One line for a person."""
        since = "there is none" if self.saved is None else f"the newest is of step {self.saved}"
        times = "once" if self.attempts == 1 else f"{self.attempts} times"
        return f"no checkpoint since step {self.step}, tried {times}: {self.reason}; {since}"


@dataclass(frozen=True)
class Status:
    """The trainer's heartbeat, `status.json`.

    `tokens` and `budget` count training tokens; `loss` and `grad_norm` are of the last step (null
    when not finite); `heartbeat` counts writes, so that liveness needs no clock. `health`, `system`
    and `failed_checkpoint` are what a trainer that knows them adds. `resumable`: a loop has saved a
    place to go on from, or has ended in order, and is not to begin again unasked.
    """

    run: str
    incarnation: int
    pid: int
    host: str
    step: int
    sample: int
    tokens: int
    budget: int
    lr: float | None
    phase: Phase | None
    loss: float | None
    grad_norm: float | None
    tokens_per_second: float | None
    sources: Mapping[str, SourceStatus]
    accepted: AcceptedOrder
    in_force: OrderInForce
    pending: PendingOrder | None = None
    rejected: tuple[RejectedOrder, ...] = ()
    world_size: int = 1
    heartbeat: int = 0
    finished: bool = False
    resumable: bool = False
    updated_at: str = ""
    health: Health | None = None
    system: System | None = None
    failed_checkpoint: FailedCheckpoint | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, `schema` first."""
        return {"schema": STATUS_SCHEMA, **encode(self)}


def write_status(path: AnyPath, status: Status) -> None:
    """Replace `status.json`.

    Raises:
        OSError: the disk did not take it.
    """
    write_json(path, status.to_json())


def read_status(path: AnyPath) -> ReadResult[Status]:
    """The newest heartbeat, or what is wrong with the file."""
    return read_record(path, STATUS_SCHEMA, Status, 8 * LARGEST)
