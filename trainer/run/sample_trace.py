"""An optional record of which samples every rank drew, for `mixloop audit`."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mixloop.trainer.batches import Batch


def ids_hash(ids: npt.NDArray[Any]) -> str:
    """SHA-256 of token ids as little-endian unsigned 32-bit integers in C order, hexadecimal."""
    return hashlib.sha256(np.ascontiguousarray(ids, "<u4").tobytes()).hexdigest()


class SampleTrace:
    """Appends the samples of every step to a file, one JSON line a step, for audits.

    Ranks above 0 write to files of their own (`FILE.rank1`, ...).
    """

    def __init__(self, path: Path, rank: int, world: int) -> None:
        if rank:
            path = path.with_name(f"{path.name}.rank{rank}")
        self._file = path.open("a", encoding="utf-8")
        self._rank = rank
        self._world = world

    def write(self, step: int, batch: Batch) -> None:
        """Record a step: shapes [accumulation, rows] as nested lists, and a hash of the tokens."""
        line: dict[str, Any] = {
            "step": step,
            "sample": batch.sample,
            "rank": self._rank,
            "world": self._world,
            "source": batch.source.tolist(),
            "index": batch.index.tolist(),
            "sha256": ids_hash(batch.ids),
        }
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()
