"""The files of a store while they are written."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import IO

from mixloop.trainer.sources import Shard


class StoreFiles:
    """Tokens into `tokens.bin`, or into shards.

    Args:
        folder: that they are written into.
        width: bytes of a token.
        size: most tokens of a shard; None: one file.
        first: the number of the first shard; above 0, one file is a shard too.
    """

    def __init__(self, folder: Path, width: int, size: int | None, first: int) -> None:
        self.shards: list[Shard] = []
        self.tokens = 0
        self._folder = folder
        self._width = width
        self._size = size
        self._number = first
        self._file: IO[bytes] | None = None
        self._held = 0
        self._digest = hashlib.sha256()

    def write(self, data: bytes) -> None:
        """Append whole tokens."""
        view = memoryview(data)
        while view:
            if self._file is None:
                self._open()
            assert self._file is not None
            room = len(view) if self._size is None else (self._size - self._held) * self._width
            part = view[:room]
            self._file.write(part)
            self._digest.update(part)
            self._held += len(part) // self._width
            self.tokens += len(part) // self._width
            view = view[room:]
            if self._held == self._size:
                self.close()

    def _open(self) -> None:
        sharded = self._size is not None or self._number
        name = f"tokens-{self._number:05d}.bin" if sharded else "tokens.bin"
        self._file = (self._folder / name).open("wb")

    def close(self) -> None:
        """End the file being written; on return it is on the disk."""
        if self._file is None:
            return
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        name = Path(self._file.name).name
        self.shards.append(Shard(name, self._held, self._digest.hexdigest()))
        self._file, self._held, self._digest = None, 0, hashlib.sha256()
        self._number += 1

    def abandon(self) -> None:
        """Let go of a file that isn't ended."""
        if self._file is not None:
            self._file.close()
            self._file = None
