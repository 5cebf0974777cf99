"""Token stores: one source, tokenised once, as flat memory-mapped integers with a JSON header.

A store is a folder: `tokens.bin`, or shards `tokens-00000.bin`, … (little-endian uint16 or uint32),
`store.json` (the header) and `tokenizer/`. A *sample* is one window of `sequence_length` tokens of
all shards in a row; the tail that fills no window is never drawn.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mixloop.common.tokenizing import TokenProbe
from mixloop.trainer.config import JobError

from .memory_map import MappedFile
from .stream import Piece, Stream

SCHEMA = "mixloop/store/1"
HEADER = "store.json"
DTYPES: dict[str, np.dtype[Any]] = {"uint16": np.dtype("<u2"), "uint32": np.dtype("<u4")}


@dataclass(frozen=True)
class Shard:
    """One file of a sharded store: its name, tokens and hexadecimal SHA-256."""

    file: str
    tokens: int
    sha256: str


@dataclass(frozen=True)
class StoreInfo:
    """What a source is. `tokens` is also its unique-token count.

    `tokenizer` is its fingerprint, empty where the format doesn't carry one; `vocab_size` is 0 and
    `eos_id` -1 where they aren't known, or no such token ends a document; `bos_id` is the token
    that begins each, -1 for none. `history` has `tokens` and `fingerprint` of what a store
    was before each extension, `shards` its files (none: the one file `tokens.bin`). `probe` are the
    tokenizer's ids of a fixed text, which evaluation compares with its own.
    """

    tokens: int
    documents: int
    dtype: str
    vocab_size: int
    tokenizer: str
    fingerprint: str
    eos_id: int
    history: Sequence[Mapping[str, Any]] = ()
    shards: tuple[Shard, ...] = ()
    bos_id: int = -1
    probe: TokenProbe | None = None
    format: str = "store"

    def samples(self, sequence_length: int) -> int:
        """Whole windows of `sequence_length` tokens: what an epoch draws."""
        return self.tokens // sequence_length

    def epoch_tokens(self, sequence_length: int) -> int:
        """Tokens of an epoch: those of the whole windows. What is left over is never drawn."""
        return self.samples(sequence_length) * sequence_length

    def to_json(self) -> dict[str, Any]:
        """The content of `store.json`."""
        body = {"schema": SCHEMA, **asdict(self)}
        del body["format"]
        if self.bos_id < 0:
            del body["bos_id"]
        for key in ("history", "shards", "probe"):
            if not body[key]:
                del body[key]
        return body


def dtype_for(vocab_size: int) -> str:
    """Smallest of the two token types that holds every id."""
    return "uint16" if vocab_size <= 2**16 else "uint32"


def read_header(path: Path) -> StoreInfo:
    """The header of the store at `path`.

    Raises:
        JobError: no store there, or a damaged one.
    """
    file = path / HEADER
    try:
        raw = json.loads(file.read_text("utf-8"))
    except FileNotFoundError as error:
        raise JobError(f"{path}: no token store there (make one with `mixloop prepare`)") from error
    except (OSError, ValueError) as error:
        raise JobError(f"{file}: unreadable: {error}") from error
    schema = raw.pop("schema", None) if isinstance(raw, dict) else None
    if schema != SCHEMA:
        raise JobError(f"{file}: schema {schema!r} is not {SCHEMA!r}")
    try:
        shards = tuple(Shard(**shard) for shard in raw.pop("shards", ()))
        history = tuple(raw.pop("history", ()))
        probe = TokenProbe.from_json(raw.pop("probe", None))
        info = StoreInfo(**raw, history=history, shards=shards, probe=probe)
        counted = sum(shard.tokens for shard in shards)
    except TypeError as error:
        raise JobError(f"{file}: damaged header: {error}") from error
    if info.dtype not in DTYPES:
        raise JobError(f"{file}: dtype {info.dtype!r} is neither uint16 nor uint32")
    if shards and counted != info.tokens:
        raise JobError(f"{file}: its shards hold {counted} tokens where it says {info.tokens}")
    if any(Path(shard.file).name != shard.file for shard in shards):
        raise JobError(f"{file}: a shard that isn't in the store's own folder")
    return info


def place_of_replaced(path: Path, fingerprint: str) -> Path:
    """Where a store of `path` lies once another has taken its place."""
    return path.with_name(f".{path.name}.replaced-{fingerprint.removeprefix('sha256:')[:12]}")


class _Place:
    """Where an open store's files are: at its path, or aside if it was prepared again since."""

    def __init__(self, path: Path, fingerprint: str) -> None:
        self._path = path
        self._fingerprint = fingerprint
        self._known: tuple[int, int] | None = None  # the header that said it is there

    def folder(self) -> Path:
        """The folder that holds the store now.

        Raises:
            OSError: it is gone.
        """
        try:
            status = (self._path / HEADER).stat()
            if self._known == (status.st_ino, status.st_mtime_ns):
                return self._path
            header = read_header(self._path)
        except (OSError, JobError):
            header = None
        if header is not None and self._fingerprint in (
            header.fingerprint,
            *(entry["fingerprint"] for entry in header.history),
        ):
            self._known = (status.st_ino, status.st_mtime_ns)
            return self._path
        aside = place_of_replaced(self._path, self._fingerprint)
        if aside.is_dir():
            return aside
        raise OSError(
            f"{self._path}: another store than when it was opened (prepared again?), and the old "
            "one is gone; end the run, and begin one with the new store"
        )


class Store:
    """An open source of any format; reading needs no memory but the pages touched."""

    def __init__(self, path: Path, info: StoreInfo, stream: Stream) -> None:
        self.path = path
        self.info = info
        self.stream = stream

    @classmethod
    def open(cls, path: Path) -> Store:
        """Open the token store at `path`; its files are mapped when they are first read.

        Raises:
            JobError: no store there, or its data is not what the header says.
        """
        info = read_header(path)
        kind = DTYPES[info.dtype]
        place = _Place(path, info.fingerprint)
        pieces = []
        for name, tokens in _files(info):
            data = path / name
            try:
                size = data.stat().st_size
            except OSError:
                size = 0
            expected = tokens * kind.itemsize
            if size != expected or not expected:
                raise JobError(
                    f"{data}: {size} bytes where the header says {expected}; prepare again"
                )
            pieces.append(Piece(MappedFile(data, expected, find=place.folder), tokens))
        return cls(path, info, Stream(pieces, kind))

    @property
    def tokenizer(self) -> Path:
        """Folder of the tokenizer this store was made with.

        Raises:
            JobError: the store was replaced since it was opened, and is gone.
        """
        if self.info.format != "store":
            return self.path / "tokenizer"
        try:
            return _Place(self.path, self.info.fingerprint).folder() / "tokenizer"
        except OSError as error:
            raise JobError(str(error)) from error

    def samples(self, sequence_length: int) -> int:
        """Whole windows of `sequence_length` tokens in the store."""
        return self.info.samples(sequence_length)

    def flat(self) -> npt.NDArray[Any] | None:
        """The tokens as one memory-mapped array, where the source is one file."""
        return self.stream.flat()

    def gather(
        self,
        samples: npt.NDArray[np.int64],
        sequence_length: int,
        out: npt.NDArray[Any] | None = None,
        rows: npt.NDArray[np.int64] | None = None,
    ) -> npt.NDArray[Any]:
        """Windows by index.

        Args:
            samples: indices, shape [n], each below ``self.samples(sequence_length)``.
            sequence_length: tokens of a window.
            out: [m, sequence_length] of any integer type; new int64 memory without it.
            rows: those of `out` to fill, shape [n]; without it all, in order.

        Returns:
            Token ids, shape [n, sequence_length], or `out`.
        """
        if out is None:
            out = np.empty((len(samples), sequence_length), np.int64)
        return self.stream.gather(samples, sequence_length, out, rows)


def _files(info: StoreInfo) -> list[tuple[str, int]]:
    shards = [(shard.file, shard.tokens) for shard in info.shards]
    return shards or [("tokens.bin", info.tokens)]


def verify_store(path: Path) -> list[str]:
    """What is wrong with a store's content, file by file; empty when every checksum is right.

    Raises:
        JobError: no store there, or its header is damaged.
    """
    info = read_header(path)
    problems = []
    for number, (name, tokens) in enumerate(_files(info)):
        data = path / name
        try:
            size = data.stat().st_size
            with data.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            problems.append(f"{data}: {error.strerror or error}")
            continue
        if info.shards:
            right = info.shards[number].sha256 == digest
        else:
            right = fingerprint(info.tokenizer, info.dtype, digest) == info.fingerprint
        if size != tokens * DTYPES[info.dtype].itemsize:
            problems.append(f"{data}: {size} bytes for {tokens} tokens of {info.dtype}")
        elif not right:
            problems.append(f"{data}: its SHA-256 is not the header's; prepare the store again")
    if info.shards and not problems:
        whole = shards_fingerprint(info.tokenizer, info.dtype, info.shards)
        if whole != info.fingerprint:
            problems.append(f"{path / HEADER}: its fingerprint is not that of its shards")
    return problems


def fingerprint(tokenizer: str, dtype: str, digest: str) -> str:
    """Of a store: its tokenizer's fingerprint, token type, and digest of its tokens."""
    whole = hashlib.sha256(f"{tokenizer} {dtype} {digest}".encode()).hexdigest()
    return f"sha256:{whole}"


def shards_fingerprint(tokenizer: str, dtype: str, shards: Sequence[Shard]) -> str:
    """Of a sharded store: of its shards' digests in a row."""
    digests = " ".join(f"{shard.tokens}:{shard.sha256}" for shard in shards)
    return fingerprint(tokenizer, dtype, hashlib.sha256(digests.encode()).hexdigest())
