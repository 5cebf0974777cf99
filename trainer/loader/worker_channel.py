"""How a training process and its DataLoader workers talk: a few files in a folder of their own.

The workers ask through a FIFO, the process answers with a file for each; what both look at every
step (steps reported, switches announced) lies in shared memory. Nothing of it depends on how the
workers were started, and all that a worker needs to find it is the folder's name.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import shutil
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mixloop.common.files import write_all
from mixloop.trainer.run import Switch

_REPORTED, _SWITCHES, _CLOSED, _WORDS = range(4)
_POLL = 0.002
_RING = 64
"""Switches kept: polls apart, they are never so many within what a worker is ahead."""


class BoardClosed(RuntimeError):  # noqa: N818 - not an error of the worker
    """The training process is gone, or has ended its dataset."""


class Board:
    """One dataset's folder; `make` in the training process, the rest wherever it says.

    Args:
        folder: from `make`.
        sources: how many, which fixes the size of an announced switch.
    """

    def __init__(self, folder: Path, sources: int) -> None:
        self.folder = folder
        self._sources = sources
        words = np.memmap(folder / "words", np.int64, mode="r+")
        self._words: npt.NDArray[np.int64] = words[:_WORDS]
        self._ring: npt.NDArray[np.int64] = words[_WORDS:].reshape(_RING, 4 + sources)

    def __reduce__(self) -> tuple[Any, ...]:
        # a pickled memory map would be a copy
        return Board, (self.folder, self._sources)

    @classmethod
    def make(cls, sources: int) -> Board:
        """A new one, in the system's folder for temporary files."""
        folder = Path(tempfile.mkdtemp(prefix="mixloop-"))
        # written now, so that no full disk is met later, in the loop
        (folder / "words").write_bytes(bytes(8 * (_WORDS + _RING * (4 + sources))))
        os.mkfifo(folder / "requests", 0o600)
        return cls(folder, sources)

    # --- the training process ------------------------------------------------------------------

    def listen(self) -> int:
        """A descriptor to read requests from; it never comes to an end."""
        return os.open(self.folder / "requests", os.O_RDWR | os.O_CLOEXEC)

    def announce(self, switch: Switch) -> None:
        """Let workers know of a switch; before `report` of a step, so that none draws past it."""
        self._ring[self.announced % _RING] = switch.pack()
        self._words[_SWITCHES] += 1

    def report(self, step: int) -> None:
        """So many steps are done, and their news is told."""
        self._words[_REPORTED] = step

    def answer(self, nonce: str, content: Any) -> None:
        """Answer one request."""
        path = self.folder / f"answer-{nonce}"
        handle = os.open(f"{path}.tmp", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            write_all(handle, pickle.dumps(content))
        finally:
            os.close(handle)
        Path(f"{path}.tmp").rename(path)

    def abandon(self) -> None:
        """Let go of everyone who waits: there will be no answers."""
        self._words[_CLOSED] = 1

    def close(self) -> None:
        """The same, and remove the folder."""
        self.abandon()
        with contextlib.suppress(OSError):
            handle = os.open(self.folder / "requests", os.O_WRONLY | os.O_NONBLOCK)
            os.write(handle, b"\n")
            os.close(handle)
        shutil.rmtree(self.folder, ignore_errors=True)

    # --- a worker ------------------------------------------------------------------------------

    @property
    def reported(self) -> int:
        """Steps done, as reported."""
        return int(self._words[_REPORTED])

    @property
    def announced(self) -> int:
        """Switches announced since the board was made."""
        return int(self._words[_SWITCHES])

    @property
    def closed(self) -> bool:
        """Whether the training process has ended this."""
        return bool(self._words[_CLOSED])

    def switches(self, after: int, until: int) -> list[Switch]:
        """Announced switches by number."""
        rows = [self._ring[number % _RING] for number in range(after, until)]
        return [switch for row in rows if (switch := Switch.unpack(row)) is not None]

    def ask(self, nonce: str, request: Mapping[str, Any]) -> Any:
        """Ask the training process, and wait for its answer.

        Raises:
            BoardClosed: there will be none.
        """
        parent = os.getppid()
        path = self.folder / f"answer-{nonce}"
        try:
            handle = os.open(self.folder / "requests", os.O_WRONLY | os.O_CLOEXEC)
            try:
                line = json.dumps({**request, "nonce": nonce}).encode() + b"\n"
                if len(line) > 4096:  # beyond it a FIFO may mix lines
                    raise ValueError(f"a request of {len(line)} bytes")
                os.write(handle, line)
            finally:
                os.close(handle)
        except FileNotFoundError as error:
            raise BoardClosed("the dataset was closed") from error
        while not path.exists():
            if self.closed or os.getppid() != parent:
                raise BoardClosed("the dataset was closed")
            time.sleep(_POLL)
        content = pickle.loads(path.read_bytes())
        path.unlink()
        return content
