"""``manifest.json``, which makes a checkpoint complete, and ``holds.json``, which spares it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mixloop.common.files import LARGEST, write_json
from mixloop.common.json_records import ReadResult, encode, read_record

from .status import AnyPath, OrderInForce, Phase

MANIFEST_SCHEMA = "mixloop/checkpoint/1"
HOLDS_SCHEMA = "mixloop/holds/1"
MANIFEST_FILE = "manifest.json"

LARGEST_MANIFEST = 64 * LARGEST  # a sharded model of thousands of files still fits


@dataclass(frozen=True)
class FileEntry:
    """Size and hexadecimal SHA-256 of a checkpoint's file."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class SourceLedger:
    """What a source had given when the checkpoint was taken."""

    tokens: int
    epochs: float


@dataclass(frozen=True)
class Manifest:
    """`manifest.json`: written last, so a checkpoint that has one is complete."""

    run: str
    step: int
    sample: int
    tokens: int
    phase: Phase | None
    in_force: OrderInForce
    sources: Mapping[str, SourceLedger]
    incarnation: int
    sequence_length: int
    quantum: int
    files: Mapping[str, FileEntry]
    created_at: str = ""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, `schema` first."""
        return {"schema": MANIFEST_SCHEMA, **encode(self)}


def write_manifest(folder: AnyPath, manifest: Manifest) -> None:
    """Write `manifest.json` into a checkpoint's folder.

    Raises:
        OSError: the disk did not take it.
    """
    write_json(Path(folder) / MANIFEST_FILE, manifest.to_json())


def read_manifest(folder: AnyPath) -> ReadResult[Manifest]:
    """A checkpoint's manifest, or what is wrong with the file."""
    path = Path(folder) / MANIFEST_FILE
    return read_record(path, MANIFEST_SCHEMA, Manifest, LARGEST_MANIFEST)


@dataclass(frozen=True)
class _Holds:
    steps: tuple[int, ...]


def write_holds(path: AnyPath, steps: Iterable[int]) -> None:
    """Replace `holds.json`: the checkpoints in use, which the trainer must not retire.

    Raises:
        OSError: the disk did not take it.
    """
    write_json(path, {"schema": HOLDS_SCHEMA, "steps": sorted(set(steps))})


def read_holds(path: AnyPath) -> ReadResult[frozenset[int]]:
    """Steps of the checkpoints in use (none where there is no file), or what is wrong with it."""
    holds = read_record(path, HOLDS_SCHEMA, _Holds)
    if holds.problem is not None:
        return ReadResult(problem=holds.problem)
    return ReadResult(frozenset(holds.value.steps if holds.value is not None else ()))
