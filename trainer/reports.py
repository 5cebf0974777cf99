"""What the trainer says of itself: heartbeat, manifest; and the controller's holds. Light.

Readers open the file afresh each time and treat what can't be read as no news (None).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from mixloop.trainer.files import NotAFile, decode, read_small, write_atomic

STATUS_SCHEMA: Final = "mixloop/status/1"
MANIFEST_SCHEMA: Final = "mixloop/checkpoint/1"
HOLDS_SCHEMA: Final = "mixloop/holds/1"


@dataclass(frozen=True)
class OrderRef:
    """The highest accepted fence and generation."""

    fence: int = 0
    generation: int = 0


@dataclass(frozen=True)
class InForceReport:
    """The mixture being consumed: its order, and the sample and step it began at."""

    fence: int = 0
    generation: int = 0
    sample: int = 0
    step: int = 0
    weights: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class PendingReport:
    """A switch that is decided and not yet consumed."""

    fence: int
    generation: int
    sample: int


@dataclass(frozen=True)
class RejectedReport:
    """An order the trainer did not follow, and why."""

    reason: str
    digest: str = ""
    fence: int | None = None
    generation: int | None = None
    at_step: int = 0


@dataclass(frozen=True)
class SourceReport:
    """Tokens and epochs drawn from one source, its unique tokens, its recent training loss."""

    tokens: int = 0
    epochs: float = 0.0
    unique_tokens: int = 0
    loss: float | None = None


@dataclass(frozen=True)
class Status:
    """The heartbeat, ``status.json``. ``heartbeat`` is a counter: liveness is that it moves."""

    run: str
    incarnation: int
    pid: int
    host: str
    step: int
    sample: int
    tokens: int
    budget: int
    lr: float | None = None
    phase: str | None = None
    loss: float | None = None
    grad_norm: float | None = None
    tokens_per_second: float | None = None
    sources: Mapping[str, SourceReport] = field(default_factory=dict)
    accepted: OrderRef = OrderRef()
    in_force: InForceReport = InForceReport()
    pending: PendingReport | None = None
    rejected: Sequence[RejectedReport] = ()
    world_size: int = 1
    heartbeat: int = 0
    finished: bool = False
    superseded: bool = False
    updated_at: str = ""


@dataclass(frozen=True)
class FileEntry:
    """Size and hash of one file of a checkpoint."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What a checkpoint is, ``manifest.json``; the last file written into its folder."""

    run: str
    step: int
    sample: int
    tokens: int
    phase: str | None
    in_force: InForceReport
    sources: Mapping[str, SourceReport]
    incarnation: int
    sequence_length: int
    quantum: int
    files: Mapping[str, FileEntry]
    created_at: str = ""


def write_status(path: Path, status: Status) -> None:
    """Replace the heartbeat. Raises OSError when the disk does not take it."""
    write_atomic(path, _dump(STATUS_SCHEMA, status))


def read_status(path: Path) -> Status | None:
    """The heartbeat, or None for no news."""
    body = _load(path, STATUS_SCHEMA)
    if body is None:
        return None
    try:
        return Status(
            **body
            | {
                "sources": _sources(body["sources"]),
                "accepted": OrderRef(**body["accepted"]),
                "in_force": InForceReport(**body["in_force"]),
                "pending": PendingReport(**body["pending"]) if body["pending"] else None,
                "rejected": tuple(RejectedReport(**entry) for entry in body["rejected"]),
            }
        )
    except (TypeError, KeyError, AttributeError):
        return None


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write ``manifest.json`` into a checkpoint's folder."""
    write_atomic(folder / "manifest.json", _dump(MANIFEST_SCHEMA, manifest))


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest of a complete checkpoint, or None."""
    body = _load(folder / "manifest.json", MANIFEST_SCHEMA)
    if body is None:
        return None
    try:
        return Manifest(
            **body
            | {
                "in_force": InForceReport(**body["in_force"]),
                "sources": _sources(body["sources"]),
                "files": {name: FileEntry(**entry) for name, entry in body["files"].items()},
            }
        )
    except (TypeError, KeyError, AttributeError):
        return None


def write_holds(path: Path, steps: Iterable[int]) -> None:
    """Name the steps whose checkpoints are still needed (the controller writes this)."""
    body = {"schema": HOLDS_SCHEMA, "steps": sorted(steps)}
    write_atomic(path, json.dumps(body).encode() + b"\n")


def read_holds(path: Path) -> frozenset[int]:
    """Steps whose checkpoints are to be spared; none when the file says nothing."""
    body = _load(path, HOLDS_SCHEMA)
    steps = body.get("steps") if body is not None else None
    if not isinstance(steps, list):
        return frozenset()
    return frozenset(step for step in steps if type(step) is int)


def _sources(body: Mapping[str, Any]) -> dict[str, SourceReport]:
    return {name: SourceReport(**entry) for name, entry in body.items()}


def _dump(schema: str, value: Any) -> bytes:
    body = {"schema": schema, **asdict(value)}
    # NaN and infinity are no JSON; a loss that is one of them is no number either
    return json.dumps(_finite(body), indent=1, allow_nan=False).encode() + b"\n"


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if value - value == 0.0 else None
    if isinstance(value, Mapping):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    return value


def _load(path: Path, schema: str) -> dict[str, Any] | None:
    try:
        found = read_small(path)
        body = decode(found[0]) if found is not None else None
    except (NotAFile, ValueError):
        return None
    if not isinstance(body, dict) or body.pop("schema", None) != schema:
        return None
    return body
