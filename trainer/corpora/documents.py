"""The documents of an input, in its order: text, or token ids that are there already.

Memory holds one record, or a piece of a plain text file, whatever the input's size.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from .account import Account
from .columns import check_column, table_column, table_names
from .compressed import UNREADABLE, bare_name, open_binary
from .dataset_layout import ALL
from .inputs import Input
from .json_values import json_values
from .mosaic_shards import mosaic_columns, mosaic_values

PIECE_CHARS = 2_000_000
_DELIMITERS = (",", "\t", ";", "|")
_CELL = 2**30


class _Missing(NamedTuple):
    """Instead of a value, where a record lacks the key: the keys it has."""

    keys: list[str]


@dataclass(frozen=True)
class Piece:
    """Text of a document; `ends` when it is the document's last piece."""

    text: str
    ends: bool = True


def read_pieces(source: Input, key: str, account: Account, config: str | None) -> Iterator[Piece]:
    """The documents of an input, each in one piece but for plain text files above `PIECE_CHARS`.

    Args:
        key: key or column of the text.
        config: a hub dataset's configuration.

    Raises:
        ValueError: naming file, line and key of what can't be read and isn't to be skipped.
    """
    if source.format == "text":
        yield from _read_text(Path(source.location), account)
        return
    for where, value in _values(source, key, account, config):
        if isinstance(value, str):
            yield Piece(value)
        elif isinstance(value, bytes):
            try:
                yield Piece(value.decode())
            except UnicodeDecodeError as error:
                account.bad("not UTF-8", f"{where}: not UTF-8 text (byte {error.start})")
        else:
            _tell_wrong(account, where, key, value, "text")


def read_ids(
    source: Input, key: str, account: Account, config: str | None
) -> Iterator[tuple[str, npt.NDArray[np.int64]]]:
    """Rows of token ids, shape [n], and where each stands.

    Raises:
        ValueError: as for `read_pieces`.
    """
    if source.format == "text":
        raise ValueError(f"{source.location}: plain text has no token ids")
    for where, value in _values(source, key, account, config):
        ids = _as_ids(value)
        if ids is None:
            _tell_wrong(account, where, key, value, "a list of token ids")
        else:
            yield where, ids


def _as_ids(value: Any) -> npt.NDArray[np.int64] | None:
    """Ids of a row; bytes are those of 64 bits, as llm-foundry writes them."""
    if isinstance(value, bytes) and len(value) % 8 == 0:
        return np.frombuffer(value, "<i8").astype(np.int64)
    if not isinstance(value, list | np.ndarray):
        return None
    if not len(value):
        return np.empty(0, np.int64)
    try:
        ids = np.asarray(value)
    except ValueError:
        return None
    return ids.astype(np.int64) if ids.ndim == 1 and ids.dtype.kind in "iu" else None


def _tell_wrong(account: Account, where: str, key: str, value: Any, right: str) -> None:
    if isinstance(value, _Missing):
        names = ", ".join(map(str, value.keys))
        account.bad(f"without the key {key!r}", f"{where}: no key {key!r} (there are: {names})")
    elif value is None:
        account.bad("null", f"{where}: {key!r} is null, not {right}")
    else:
        found = "a list of others" if isinstance(value, list) else type(value).__name__
        account.bad(f"not {right}", f"{where}: {key!r} is {found}, not {right}")


def check_key(source: Input, key: str, option: str) -> None:
    """Refuse an input whose first record, or whose header, lacks the key.

    Args:
        option: what names the key.

    Raises:
        ValueError: it does; the line lists the keys that are there.
    """
    if source.format in ("text", "saved", "hub"):
        return
    keys = _first_keys(source, key)
    if keys is not None and key not in keys:
        kind = "key" if source.format in ("json", "jsonl") else "column"
        raise ValueError(
            f"{source.location}: no {kind} {key!r} (there are: {', '.join(keys[:12])}); choose one "
            f"by {option}"
        )


def _first_keys(source: Input, key: str) -> list[str] | None:
    """Keys of the first record; None where it can't be told."""
    path = Path(source.location)
    try:
        if source.format in ("parquet", "arrow"):
            return table_names(path, source.format)
        if source.format == "mds":
            return mosaic_columns(path)
        if source.format == "csv":
            with _text_file(path) as file:
                return next(csv.reader(file, delimiter=_delimiter(path, key)), None)
        with _text_file(path) as file:
            if source.format == "jsonl":
                first = json.loads(next(line for line in file if line.strip()))
            else:
                first = next(json_values(file))
        return list(first) if isinstance(first, dict) else None
    except Exception:  # whatever it is, reading the file tells it with its place
        return None


# --- plain text -------------------------------------------------------------------------------


def _text_file(path: Path, errors: str = "strict") -> IO[str]:
    """Text as it stands: no newline is translated, a byte order mark is no text."""
    return io.TextIOWrapper(open_binary(path), "utf-8-sig", errors, newline="")


def _read_text(path: Path, account: Account) -> Iterator[Piece]:
    if account.on_error == "skip" and not _is_utf8(path):
        account.bad("not UTF-8", f"{path}: not UTF-8 text")
        return
    read = 0
    try:
        with open_binary(path) as file:
            decoder = codecs.getincrementaldecoder("utf-8-sig")()
            block = file.read(PIECE_CHARS)
            while block:
                following = file.read(PIECE_CHARS)
                text = decoder.decode(block, final=not following)
                read += len(block)
                yield Piece(text, ends=not following)
                block = following
    except UnicodeDecodeError as error:
        account.bad("not UTF-8", f"{path}: not UTF-8 text (byte {read + error.start})")
    except UNREADABLE as error:
        account.bad("unreadable", f"{path}: unreadable: {error}")


def _is_utf8(path: Path) -> bool:
    """Whether a file can be read to its end as text."""
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    try:
        with open_binary(path) as file:
            while block := file.read(PIECE_CHARS):
                decoder.decode(block)
        decoder.decode(b"", final=True)
    except (UnicodeDecodeError, *UNREADABLE):
        return False
    return True


# --- records ----------------------------------------------------------------------------------


def _values(
    source: Input, key: str, account: Account, config: str | None
) -> Iterator[tuple[str, Any]]:
    """Each record's value under the key, and where it stands; a file's end where it is damaged."""
    path = source.location
    where = f"{path}, the beginning"
    try:
        for where, value in _records(source, key, account, config):
            yield where, value
    except UnicodeDecodeError as error:
        account.bad("not UTF-8", f"{path}: not UTF-8 text{_after(path, where)}: {error.reason}")
    except json.JSONDecodeError as error:
        account.bad("not JSON", f"{path}: not JSON{_after(path, where)}: {error}")
    except RecursionError:
        account.bad("not JSON", f"{path}: not JSON{_after(path, where)}: nested too deeply")
    except UNREADABLE as error:
        account.bad("unreadable", f"{path}: unreadable{_after(path, where)}: {error}")


def _after(path: str, where: str) -> str:
    return f" after {where.removeprefix(f'{path}, ')}"


def _records(
    source: Input, key: str, account: Account, config: str | None
) -> Iterator[tuple[str, Any]]:
    """Each record's value under the key, and where it stands."""
    path = Path(source.location)
    if source.format in ("saved", "hub"):
        for number, record in enumerate(_open_dataset(source, config), start=1):
            yield f"{path}, row {number}", _member(record, key)
    elif source.format == "jsonl":
        yield from _json_lines(path, key, account)
    elif source.format == "json":
        with _text_file(path) as file:
            for number, record in enumerate(json_values(file), start=1):
                yield from _from_json(record, key, f"{path}, record {number}", account)
    elif source.format == "csv":
        yield from _csv_rows(path, key, account)
    elif source.format == "mds":
        check_column(path, mosaic_columns(path), key)
        for number, value in enumerate(mosaic_values(path, key), start=1):
            yield f"{path}, row {number}", value
    else:
        for number, value in enumerate(table_column(path, source.format, key), start=1):
            yield f"{path}, row {number}", value


def _member(record: Any, key: str) -> Any:
    return record[key] if key in record else _Missing(list(record)[:12])


def _from_json(record: Any, key: str, where: str, account: Account) -> Iterator[tuple[str, Any]]:
    if isinstance(record, dict):
        yield where, _member(record, key)
    else:
        account.bad("not a JSON object", f"{where}: not a JSON object")


def _json_lines(path: Path, key: str, account: Account) -> Iterator[tuple[str, Any]]:
    with open_binary(path) as file:
        for number, line in enumerate(file, start=1):
            where = f"{path}, line {number}"
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
                if not text or text.isspace():
                    continue
                record = json.loads(text)
            except UnicodeDecodeError as error:
                account.bad("not UTF-8", f"{where}: not UTF-8 text (byte {error.start})")
            except RecursionError:
                account.bad("not JSON", f"{where}: not JSON: nested too deeply")
            except ValueError as error:
                account.bad("not JSON", f"{where}: not JSON: {error}")
            else:
                yield from _from_json(record, key, where, account)


def _delimiter(path: Path, key: str) -> str:
    """The delimiter by which the first row has the key, else the likeliest one."""
    with _text_file(path, "replace") as file:
        head = file.readline()
    by_name = "\t" if bare_name(path).endswith(".tsv") else ","
    commonest = max(_DELIMITERS, key=head.count)
    for delimiter in (by_name, commonest):
        if key in next(csv.reader([head], delimiter=delimiter), ()):
            return delimiter
    return commonest if commonest in head else by_name


def _csv_rows(path: Path, key: str, account: Account) -> Iterator[tuple[str, Any]]:
    csv.field_size_limit(_CELL)  # the process's; a document may be longer than the default
    # bytes that are no UTF-8 become half surrogates, so that only their row is bad
    with _text_file(path, "surrogateescape") as file:
        rows = csv.reader(file, delimiter=_delimiter(path, key), strict=True)
        names = next(rows, [])
        check_column(path, names, key)
        place = names.index(key)
        while True:
            try:
                row = next(rows)
            except StopIteration:
                return
            except csv.Error as error:
                account.bad("not CSV", f"{path}, line {rows.line_num}: not CSV: {error}")
                continue
            where = f"{path}, line {rows.line_num}"
            if not row:
                continue
            if len(row) != len(names):
                account.bad(
                    "of another number of columns",
                    f"{where}: {len(row)} columns where the header has {len(names)}",
                )
            elif re.search("[\udc80-\udcff]", row[place]):
                account.bad("not UTF-8", f"{where}: not UTF-8 text")
            else:
                yield where, row[place]


# --- Hugging Face datasets ----------------------------------------------------------------------


def _open_dataset(source: Input, config: str | None) -> Any:
    import datasets

    split = source.split or "train"
    try:
        if source.format == "saved":
            saved: Any = datasets.load_from_disk(source.location)
            if isinstance(saved, datasets.DatasetDict) and split == ALL:
                return chain.from_iterable(saved.values())
            if isinstance(saved, datasets.DatasetDict):
                if split not in saved:
                    names = ", ".join(saved)
                    raise ValueError(f"no split {split!r} (there are: {names}); choose by --split")
                saved = saved[split]
            return saved
        # streamed: nothing is stored twice, and the order is the dataset's own
        return datasets.load_dataset(source.location, config, split=split, streaming=True)
    except Exception as error:
        # the hub client raises a dozen unrelated types (HTTP, gated, missing, offline)
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"dataset {source.location}: {reason}") from error
