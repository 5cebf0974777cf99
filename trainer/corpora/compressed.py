"""Files as they are or compressed, opened alike: their first bytes say which, not their names."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO, cast

SUFFIXES = (".gz", ".bz2", ".xz", ".zst", ".zstd", ".lz4")
UNREADABLE = (OSError, EOFError, lzma.LZMAError, zlib.error)
"""What reading a damaged or missing file raises."""

_STANDARD: dict[str, Callable[[Path], object]] = {
    "gzip": gzip.open,
    "bzip2": bz2.open,
    "xz": lzma.open,
}

HEAD = 2**16
"""Bytes of a file's content that it is recognised by."""


def compression(head: bytes) -> str | None:
    """The compression of a file that begins with `head`; None: it isn't compressed."""
    if head.startswith(b"\x1f\x8b"):
        return "gzip"
    if head.startswith(b"BZh") and head[4:10] == b"1AY&SY":
        return "bzip2"
    if head.startswith(b"\xfd7zXZ\x00"):
        return "xz"
    # pzstd and seekable zstd begin with a frame that is skipped
    if head.startswith(b"\x28\xb5\x2f\xfd") or (
        head[1:4] == b"\x2a\x4d\x18" and 0x50 <= head[0] <= 0x5F
    ):
        return "zstd"
    return "lz4" if head.startswith(b"\x04\x22\x4d\x18") else None


def open_binary(path: Path) -> IO[bytes]:
    """A file's content, decompressed.

    Raises:
        OSError: no such file.
    """
    with path.open("rb") as file:
        kind = compression(file.read(16))
    if kind is None:
        return path.open("rb", buffering=2**20)
    if kind in _STANDARD:
        return cast(IO[bytes], _STANDARD[kind](path))
    import pyarrow as pa

    stream = pa.CompressedInputStream(pa.OSFile(str(path)), kind)
    return io.BufferedReader(stream, 2**20)


def head_of(path: Path) -> tuple[bytes, str | None]:
    """The first `HEAD` bytes of a file's content, and how it is compressed.

    Raises:
        OSError, EOFError, lzma.LZMAError, zlib.error: it can't be read, see `UNREADABLE`.
    """
    with path.open("rb") as file:
        kind = compression(file.read(16))
    with open_binary(path) as content:
        return content.read(HEAD), kind


def bare_name(path: Path) -> str:
    """A file's name in small letters, without what only says that it is compressed."""
    name = path.name.lower()
    return next((name.removesuffix(end) for end in SUFFIXES if name.endswith(end)), name)
