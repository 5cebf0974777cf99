"""`status.json`, `manifest.json` and `holds.json`: what trainer and controller tell each other."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, cast

from mixloop.common.files import LARGEST, parse_json, read_regular, write_atomic
from mixloop.common.json_records import (
    Problem,
    ReadResult,
    RecordError,
    decode,
    encode,
    json_shown,
    problem_of,
)

STATUS_SCHEMA = "mixloop/status/1"

Phase = Literal["warmup", "stable", "decay"]
AnyPath = str | os.PathLike[str]
T = TypeVar("T")


@dataclass(frozen=True)
class SourceStatus:
    """One source so far: tokens drawn, passes over it, its unique tokens, its training loss."""

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
class Status:
    """The trainer's heartbeat, `status.json`.

    `tokens` and `budget` count training tokens; `loss` and `grad_norm` are of the last step (null
    when not finite); `heartbeat` counts writes, so that liveness needs no clock. `health` and
    `system` are what a trainer that knows them adds.
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
    updated_at: str = ""
    health: Health | None = None
    system: System | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, `schema` first."""
        return {"schema": STATUS_SCHEMA, **encode(self)}


def _write(path: AnyPath, value: dict[str, Any]) -> None:
    write_atomic(path, (json.dumps(value, indent=1, allow_nan=False) + "\n").encode())


def read_record(path: AnyPath, schema: str, kind: type[T], limit: int = LARGEST) -> ReadResult[T]:
    """A file of one record: its value, or what is wrong with it. Never raises.

    Args:
        limit: bytes; a larger file is refused.
    """
    try:
        data = read_regular(path, limit).data
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        return ReadResult(problem=problem_of(error))
    if len(data) > limit:
        return ReadResult(problem=Problem("", f"larger than {limit:,} bytes"))
    parse = _parsed if len(data) <= LARGEST else _parsed.__wrapped__
    return cast("ReadResult[T]", parse(data, schema, cast(Any, kind)))


@functools.lru_cache(maxsize=8)  # a file that is looked at again and again rarely has news
def _parsed(data: bytes, schema: str, kind: type[Any]) -> ReadResult[Any]:
    try:
        value = parse_json(data.decode())
        if not isinstance(value, dict):
            raise RecordError(f"it is {json_shown(value)}: must be an object")
        if value.get("schema") != schema:
            raise RecordError(
                f"schema is {json_shown(value.get('schema'))}: must be {schema!r}", "schema"
            )
        return ReadResult(decode(kind, value))
    except (ValueError, RecursionError) as error:  # RecordError and decoding errors are ValueErrors
        return ReadResult(problem=problem_of(error))


def write_status(path: AnyPath, status: Status) -> None:
    """Replace `status.json`.

    Raises:
        OSError: the disk did not take it.
    """
    _write(path, status.to_json())


def read_status(path: AnyPath) -> ReadResult[Status]:
    """The newest heartbeat, or what is wrong with the file."""
    return read_record(path, STATUS_SCHEMA, Status, 8 * LARGEST)
