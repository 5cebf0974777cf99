"""The folder of one experiment: what is where, what is whole, and how far it is.

    spec.json        what was asked for
    progress.json    how far it is, for people
    branch-00/       a trained branch (00 the control): there under this name only when it is whole
    branch-00.json   its scores
    branch-01.first.safetensors, branch-01.second.safetensors
                     what an expert learnt from the halves of its data
    branch-01.begun  how many processes have begun with it
    fit-whole.json, fit-first.json, fit-second.json, merge-….json
    result.json      what came of it: the last thing written

Whatever is there was renamed into its place when it was whole, so a process that is killed at any
moment goes on from what the one before has left.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel

from mixloop.common.files import lock, open_regular, read_whole, write_atomic
from mixloop.policies.interface import ExperimentResult

from .spec import ExperimentSpec

LARGEST = 2**27  # bytes of a result: some hundred an item, branch and benchmark
SCRATCH = ".writing-"
Record = TypeVar("Record", bound=BaseModel)


@dataclass(frozen=True)
class ExperimentProgress:
    """How far an experiment is: ``done`` of ``branches`` are trained and scored."""

    done: int = 0
    branches: int = 0
    doing: str = "starting"


class Workspace:
    """Paths in an experiment's folder, and what is read and written there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.spec = folder / "spec.json"
        self.progress = folder / "progress.json"
        self.result = folder / "result.json"

    def branch(self, number: int) -> Path:
        """The folder of a trained branch; 0 is the control."""
        return self.folder / f"branch-{number:02d}"

    def scores(self, number: int) -> Path:
        """The scores of a branch."""
        return self.folder / f"branch-{number:02d}.json"

    def delta(self, number: int, part: str) -> Path:
        """What an expert learnt from a part of its data, in half precision."""
        return self.folder / f"branch-{number:02d}.{part}.safetensors"

    def begun(self, number: int) -> int:
        """Note that a process begins with a branch: how many have before, and did not end it."""
        path = self.folder / f"branch-{number:02d}.begun"
        before = 0
        with contextlib.suppress(OSError, ValueError):
            before = int(read_whole(path, 20))
        write_atomic(path, str(before + 1).encode())
        return before

    # -- records -----------------------------------------------------------------------------

    def kept(self, path: Path, kind: type[Record]) -> Record | None:
        """What an earlier process has kept there; None where there is nothing whole."""
        with contextlib.suppress(OSError, ValueError):
            return kind.model_validate_json(read_whole(path, LARGEST))
        return None

    def keep(self, path: Path, record: BaseModel) -> None:
        """Keep a record.

        Raises:
            OSError: the disk does not take it.
        """
        write_atomic(path, record.model_dump_json(by_alias=True).encode())

    def made(self, path: Path, kind: type[Record], make: Callable[[], Record]) -> Record:
        """What was kept there, or what is made and kept now."""
        record = self.kept(path, kind)
        if record is None:
            record = make()
            self.keep(path, record)
        return record

    def begin(self, spec: ExperimentSpec) -> None:
        """Write down what is asked for; what is left of another experiment of this name goes.

        Raises:
            OSError: the disk does not take it.
        """
        if self.folder.exists() and self._identity() != spec.identity():
            discard(self.folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.keep(self.spec, spec)

    def _identity(self) -> str | None:
        spec = self.kept(self.spec, ExperimentSpec)
        return None if spec is None else spec.identity()

    def say(self, progress: ExperimentProgress) -> None:
        """Tell people how far it is; nothing depends on it."""
        with contextlib.suppress(OSError):
            write_atomic(self.progress, json.dumps(asdict(progress)).encode())

    def ended(self, identity: str | None = None) -> ExperimentResult | None:
        """What came of it, once it has ended.

        Args:
            identity: of the experiment that is meant; None: whichever lies there.
        """
        if identity is not None and self._identity() != identity:
            return None
        return self.kept(self.result, ExperimentResult)

    def sweep(self) -> None:
        """Remove what a kill left half-written."""
        for entry in self.folder.glob(f"{SCRATCH}*"):
            remove(entry)

    def clean(self) -> None:
        """Remove weights: spec, scores and result stay."""
        for entry in self.folder.iterdir():
            if entry.suffix != ".json":
                remove(entry)

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Wait until no other process works here: one on another machine may outlive a daemon."""
        handle = open_regular(self.folder / ".lock", os.O_RDWR | os.O_CREAT)
        try:
            lock(handle, wait=True)
            yield
        finally:
            os.close(handle)


def remove(entry: Path) -> None:
    """Remove a file or folder; one that resists is left."""
    if entry.is_dir() and not entry.is_symlink():
        shutil.rmtree(entry, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            entry.unlink()


def discard(folder: Path) -> None:
    """Remove all of an experiment, as of one that was abandoned; no process may work on it."""
    shutil.rmtree(folder, ignore_errors=True)


def read_progress(folder: Path) -> ExperimentProgress | None:
    """How far the experiment in a folder is; None where nothing tells."""
    try:
        found = json.loads(read_whole(folder / "progress.json"))
        return ExperimentProgress(int(found["done"]), int(found["branches"]), str(found["doing"]))
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
