"""The folder of one experiment: what is where, what is whole, and how far it is.

    spec.json        what was asked for
    progress.json    how far it is, for people
    branch-00/       a trained branch (00 the control): there under this name only when it is whole
    branch-00.json   its scores
    result.json      what came of it: the last thing written

Whatever is there was renamed into its place when it was whole, so a process that is killed at any
moment goes on from what the one before has left.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from mixloop.common.files import read_regular, write_atomic
from mixloop.policies.interface import ExperimentResult

from .spec import ExperimentSpec

LARGEST = 2**28  # bytes of a result: some hundred an item, branch and benchmark
SCRATCH = ".writing-"


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

    def begin(self, spec: ExperimentSpec) -> None:
        """Write down what is asked for; what is left of another experiment of this name goes.

        Raises:
            OSError: the disk does not take it.
        """
        if self.folder.exists() and self._identity() != spec.identity():
            discard(self.folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        write_atomic(self.spec, spec.model_dump_json(by_alias=True, indent=1).encode())

    def _identity(self) -> str | None:
        with contextlib.suppress(OSError, ValueError):
            return ExperimentSpec.model_validate_json(self.spec.read_bytes()).identity()
        return None

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
        with contextlib.suppress(OSError, ValueError):
            return ExperimentResult.model_validate_json(read_regular(self.result, LARGEST).data)
        return None

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
        handle = os.open(self.folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
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
        found = json.loads(read_regular(folder / "progress.json").data)
        return ExperimentProgress(int(found["done"]), int(found["branches"]), str(found["doing"]))
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
