"""`mixloop.json`: what a foreign checkpoint says of the mixture it was trained on."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mixloop.common.files import LARGEST, open_regular, read_json, write_json
from mixloop.common.json_records import ReadResult, read_record
from mixloop.contract import LARGEST_MANIFEST, FileEntry, Manifest
from mixloop.trainer.config import JobError

from .loader_state import LoaderState

SAVED_FILE = "mixloop.json"
SAVED_SCHEMA = "mixloop/saved/1"


def write_saved_state(
    folder: Path,
    state: LoaderState,
    manifest: Callable[[Mapping[str, FileEntry]], Manifest],
    files: Sequence[str],
) -> None:
    """Write `mixloop.json`: the manifest's keys, and under `state` what a resume needs.

    Raises:
        OSError: the disk did not take it, or a file is not there.
    """
    entries = {name: _entry(folder / name) for name in files}
    body = manifest(entries).to_json() | {"schema": SAVED_SCHEMA, "state": state.to_json()}
    write_json(folder / SAVED_FILE, body)


def _entry(path: Path) -> FileEntry:
    with os.fdopen(open_regular(path, follow=True), "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return FileEntry(bytes=os.fstat(file.fileno()).st_size, sha256=digest)


def read_saved_state(folder: Path) -> dict[str, Any]:
    """The loader's state in a checkpoint's folder.

    Raises:
        JobError: there is no `mixloop.json` that can be read.
    """
    path = folder / SAVED_FILE
    try:
        value = read_json(path, 64 * LARGEST)
    except (OSError, ValueError, RecursionError) as error:
        raise JobError(f"{path}: unreadable: {error}") from error
    if not isinstance(value, dict) or value.get("schema") != SAVED_SCHEMA:
        raise JobError(f"{path}: not of schema {SAVED_SCHEMA!r}")
    state: dict[str, Any] = value.get("state") or {}
    return state


def read_saved_manifest(folder: Path) -> ReadResult[Manifest]:
    """What a foreign checkpoint says of its mixture, or what is wrong with its `mixloop.json`."""
    return read_record(folder / SAVED_FILE, SAVED_SCHEMA, Manifest, LARGEST_MANIFEST)
