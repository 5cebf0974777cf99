"""Token stores: one source, tokenised once, as flat memory-mapped integers with a JSON header.

A store is a folder: `tokens.bin` (little-endian uint16 or uint32), `store.json` (the header) and
`tokenizer/`. A *sample* is one window of `sequence_length` tokens; the tail that fills no window
is never drawn.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mixloop.trainer.job import Job, JobError

SCHEMA = "mixloop/store/1"
_DTYPES: dict[str, np.dtype[Any]] = {"uint16": np.dtype("<u2"), "uint32": np.dtype("<u4")}


@dataclass(frozen=True)
class StoreInfo:
    """The header of a store. `tokens` is also its unique-token count."""

    tokens: int
    documents: int
    dtype: str
    vocab_size: int
    tokenizer: str
    fingerprint: str
    eos_id: int

    def to_json(self) -> dict[str, Any]:
        """The content of `store.json`."""
        return {"schema": SCHEMA, **asdict(self)}


def dtype_for(vocab_size: int) -> str:
    """Smallest of the two token types that holds every id."""
    return "uint16" if vocab_size <= 2**16 else "uint32"


def read_header(path: Path) -> StoreInfo:
    """The header of the store at `path`.

    Raises:
        JobError: no store there, or a damaged one.
    """
    file = path / "store.json"
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
        info = StoreInfo(**raw)
    except TypeError as error:
        raise JobError(f"{file}: damaged header: {error}") from error
    if info.dtype not in _DTYPES:
        raise JobError(f"{file}: dtype {info.dtype!r} is neither uint16 nor uint32")
    return info


class Store:
    """An open token store; reading needs no memory but the pages touched."""

    def __init__(self, path: Path, info: StoreInfo) -> None:
        self.path = path
        self.info = info
        kind = _DTYPES[info.dtype]
        self.tokens: npt.NDArray[Any] = np.memmap(
            path / "tokens.bin", dtype=kind, mode="r", shape=(info.tokens,)
        )

    @classmethod
    def open(cls, path: Path) -> Store:
        """Open the store at `path`.

        Raises:
            JobError: no store there, or its data is not what the header says.
        """
        info = read_header(path)
        data = path / "tokens.bin"
        size = data.stat().st_size if data.is_file() else 0
        expected = info.tokens * _DTYPES[info.dtype].itemsize
        if size != expected or not expected:
            raise JobError(f"{data}: {size} bytes where the header says {expected}; prepare again")
        return cls(path, info)

    @property
    def tokenizer(self) -> Path:
        """Folder of the tokenizer this store was made with."""
        return self.path / "tokenizer"

    def samples(self, sequence_length: int) -> int:
        """Whole windows of `sequence_length` tokens in the store."""
        return self.info.tokens // sequence_length

    def flat(self) -> npt.NDArray[Any] | None:
        """The tokens as one memory-mapped array."""
        return self.tokens

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
            out: [m, sequence_length] of any integer type, filled at `rows` (all in order without
                it); new int64 memory without it.

        Returns:
            Token ids, shape [n, sequence_length], or `out`.
        """
        whole = self.samples(sequence_length)
        windows = self.tokens[: whole * sequence_length].reshape(whole, sequence_length)
        if out is None:
            out = np.empty((len(samples), sequence_length), np.int64)
        out[slice(None) if rows is None else rows] = windows[samples]
        return out


def open_stores(job: Job) -> dict[str, Store]:
    """Every source's store, in the job's order, checked against each other and the job.

    Raises:
        JobError: a missing or damaged store, stores of different tokenizers, or a store shorter
            than one sample. One line, naming the source.
    """
    stores: dict[str, Store] = {}
    for name, source in job.sources.items():
        try:
            stores[name] = Store.open(source.path)
        except JobError as error:
            raise JobError(f"sources.{name}: {error}") from error
    first, *others = stores
    for name in others:
        if stores[name].info.tokenizer != stores[first].info.tokenizer:
            raise JobError(
                f"sources.{name}: made with another tokenizer than sources.{first} "
                f"(vocabulary {stores[name].info.vocab_size} and "
                f"{stores[first].info.vocab_size}); prepare both with the same one"
            )
    for name, store in stores.items():
        if store.samples(job.sequence_length) == 0:
            raise JobError(
                f"sources.{name}: {store.info.tokens} tokens are fewer than one sample of "
                f"sequence_length {job.sequence_length}"
            )
    return stores
