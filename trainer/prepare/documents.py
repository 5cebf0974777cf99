"""Read documents from files, folders, globs and Hugging Face datasets, in a fixed order.

A document arrives as one or more :class:`Piece`; only plain text files above `PIECE_CHARS` come in
several, so memory stays bounded whatever the input.
"""

from __future__ import annotations

import glob
import gzip
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

PIECE_CHARS = 4_000_000
_TEXT = (".txt", ".text", ".md", ".rst")
_LINES = (".jsonl", ".ndjson", ".jsonl.gz", ".ndjson.gz")
_TABLES = (".parquet",)
_HUB = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class Piece:
    """Text of a document; `ends` when it is the document's last piece."""

    text: str
    ends: bool = True


@dataclass(frozen=True)
class Input:
    """One resolved input: a file, a dataset saved to disk, or a hub dataset's name."""

    kind: str
    location: str


def _has_suffix(path: Path, suffixes: tuple[str, ...]) -> bool:
    return path.name.lower().endswith(suffixes)


def _file(path: Path) -> Input:
    if _has_suffix(path, _LINES):
        kind = "lines"
    elif _has_suffix(path, _TABLES):
        kind = "table"
    else:
        kind = "text"
    return Input(kind, str(path))


def _folder(path: Path) -> list[Input]:
    if (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():
        return [Input("saved", str(path))]
    suffixes = _TEXT + _LINES + _TABLES
    files = sorted(p for p in path.rglob("*") if p.is_file() and _has_suffix(p, suffixes))
    if not files:
        raise ValueError(f"{path}: no {', '.join(suffixes)} file in this folder (a glob takes any)")
    return [_file(file) for file in files]


def resolve_inputs(inputs: Iterable[str]) -> list[Input]:
    """Inputs in reading order: as given, the files of a folder or glob sorted by path.

    A string is a file (`.jsonl`, `.jsonl.gz`, `.parquet`, anything else is one text document), a
    folder, a glob, a dataset saved by `save_to_disk`, or a hub dataset (`org/name`, `hub:name`).

    Raises:
        ValueError: naming the input that is missing or matches nothing.
    """
    resolved: list[Input] = []
    for text in inputs:
        path = Path(text).expanduser()
        if text.startswith("hub:"):
            resolved.append(Input("hub", text.removeprefix("hub:")))
        elif path.is_dir():
            resolved += _folder(path)
        elif path.is_file():
            resolved.append(_file(path))
        elif glob.has_magic(text):
            root = Path(path.anchor)
            files = sorted(root.glob(str(path.relative_to(root))))
            matched = [_file(file) for file in files if file.is_file()]
            if not matched:
                raise ValueError(f"{text}: the pattern matches no file")
            resolved += matched
        elif _HUB.fullmatch(text) and not _has_suffix(path, _TEXT + _LINES + _TABLES):
            resolved.append(Input("hub", text))
        else:
            raise ValueError(f"{text}: no such file or folder")
    if not resolved:
        raise ValueError("no input given")
    return resolved


def read_pieces(
    source: Input, *, text_key: str = "text", split: str | None = None, config: str | None = None
) -> Iterator[Piece]:
    """The documents of one input.

    Raises:
        ValueError: naming file, line and key of what cannot be read.
    """
    if source.kind == "text":
        return _read_text(Path(source.location))
    if source.kind == "lines":
        return _read_lines(Path(source.location), text_key)
    if source.kind == "table":
        return _read_table(Path(source.location), text_key)
    return _read_dataset(source, text_key, split or "train", config)


def _open(path: Path) -> IO[str]:
    if path.name.lower().endswith(".gz"):
        return gzip.open(path, "rt", encoding="utf-8")
    return path.open(encoding="utf-8")


def _read_text(path: Path) -> Iterator[Piece]:
    try:
        with _open(path) as file:
            text = file.read(PIECE_CHARS)
            while True:
                # a piece ends with its line, so that no word is tokenised in halves
                text += file.readline()
                following = file.read(PIECE_CHARS)
                yield Piece(text, ends=not following)
                if not following:
                    return
                text = following
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text (byte {error.start} of a read)") from error
    except (OSError, EOFError) as error:
        raise ValueError(f"{path}: unreadable: {error}") from error


def _text_of(record: Any, key: str, where: str) -> str:
    if not isinstance(record, dict):
        raise ValueError(f"{where}: not a JSON object")
    if key not in record:
        names = ", ".join(map(str, list(record)[:12]))
        raise ValueError(f"{where}: no key {key!r} (there are: {names}); choose one with text_key")
    value = record[key]
    if not isinstance(value, str):
        raise ValueError(f"{where}: {key!r} is {type(value).__name__}, not text")
    return value


def _read_lines(path: Path, key: str) -> Iterator[Piece]:
    number = 0
    try:
        with _open(path) as file:
            for number, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                where = f"{path}, line {number}"
                try:
                    record = json.loads(line)
                except ValueError as error:
                    raise ValueError(f"{where}: not JSON: {error}") from error
                yield Piece(_text_of(record, key, where))
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}, after line {number}: not UTF-8 text") from error
    except (OSError, EOFError) as error:
        raise ValueError(f"{path}, after line {number}: unreadable: {error}") from error


def _read_table(path: Path, key: str) -> Iterator[Piece]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as table:
            names = table.schema_arrow.names
            if key not in names:
                raise ValueError(
                    f"{path}: no column {key!r} (there are: {', '.join(names[:12])}); "
                    "choose one with text_key"
                )
            batches = table.iter_batches(batch_size=1024, columns=[key])
            values = (value for batch in batches for value in batch.column(0).to_pylist())
            for row, value in enumerate(values, start=1):
                yield Piece(_text_of({key: value}, key, f"{path}, row {row}"))
    except (OSError, pa.ArrowException) as error:
        raise ValueError(f"{path}: not a readable parquet file: {error}") from error


def _read_dataset(source: Input, key: str, split: str, config: str | None) -> Iterator[Piece]:
    for number, record in enumerate(_open_dataset(source, split, config), start=1):
        yield Piece(_text_of(record, key, f"{source.location}, row {number}"))


def _open_dataset(source: Input, split: str, config: str | None) -> Any:
    import datasets

    try:
        if source.kind == "saved":
            saved: Any = datasets.load_from_disk(source.location)
            if isinstance(saved, datasets.DatasetDict):
                if split not in saved:
                    raise ValueError(f"no split {split!r} (there are: {', '.join(saved)})")
                saved = saved[split]
            return saved
        # streamed: nothing is stored twice, and the order is the dataset's own
        return datasets.load_dataset(source.location, config, split=split, streaming=True)
    except Exception as error:
        # the hub client raises a dozen unrelated types (HTTP, gated, missing, offline)
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"dataset {source.location}: {reason}") from error
