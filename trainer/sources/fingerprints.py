"""What formats other than our own have in common: fingerprints, and ids that are looked at."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .stream import Stream
from .token_store import StoreInfo

PROBES = 64  # places of the tokens that a fingerprint looks at
PROBE = 256  # tokens read at each
_EDGE = 2**20


def fingerprint(kind: str, facts: Iterable[bytes], stream: Stream) -> str:
    """Identity of a source: what its index says, and its tokens at places all over it.

    Not every token: a source may have terabytes.
    """
    digest = hashlib.sha256(f"mixloop/{kind}/1 {stream.dtype.str} {stream.tokens}".encode())
    for fact in facts:
        digest.update(hashlib.sha256(fact).digest())
    count = min(PROBE, stream.tokens)
    for start in np.linspace(0, stream.tokens - count, PROBES).astype(np.int64):
        digest.update(stream.read(int(start), count).tobytes())
    return f"sha256:{digest.hexdigest()}"


def info(
    kind: str, stream: Stream, documents: int, facts: Iterable[bytes], eos_id: int | None
) -> StoreInfo:
    """The header that a source of another format would have."""
    return StoreInfo(
        tokens=stream.tokens,
        documents=documents,
        dtype=stream.dtype.name,
        vocab_size=0,
        tokenizer="",
        fingerprint=fingerprint(kind, facts, stream),
        eos_id=-1 if eos_id is None else eos_id,
        format=kind,
    )


def edges(index: Path) -> list[bytes]:
    """What a fingerprint takes of an index of any size: how long it is, its head and its tail."""
    with index.open("rb") as file:
        head = file.read(_EDGE)
        size = file.seek(0, 2)
        file.seek(max(0, size - _EDGE))
        return [str(size).encode(), head, file.read()]


def id_range(stream: Stream) -> tuple[int, int]:
    """Lowest and highest id at places all over a source: those of its vocabulary, if it is one."""
    count = min(4096, stream.tokens)
    places: npt.NDArray[Any] = np.linspace(0, stream.tokens - count, PROBES).astype(np.int64)
    lowest, highest = [], []
    for start in places:
        ids = stream.read(int(start), count)
        lowest.append(int(ids.min()))
        highest.append(int(ids.max()))
    return min(lowest), max(highest)
