"""MosaicML Streaming's shards (MDS), read in their order.

`index.json` lists the shards. One is: the number of samples (u32), their places (u32 each, and the
end), the columns once more as JSON, the samples; a sample is the sizes (u32) of its columns of no
fixed size, then the columns (`streaming/base/format/mds`). A shard has 64 MB as a rule and is in
memory as a whole.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from .compressed import open_binary

INDEX = "index.json"
_ARRAY = re.compile(r"ndarray(?::(\w+))?(?::([\d,]+))?")
_KINDS = {8: "u1", 9: "i1", 16: "u2", 17: "i2", 32: "u4", 33: "i4", 64: "u8", 65: "i8"}


def is_mosaic(folder: Path) -> bool:
    """Whether a folder holds such shards."""
    return isinstance(_index(folder).get("shards"), list)


def _index(folder: Path) -> Mapping[str, Any]:
    try:
        content = json.loads((folder / INDEX).read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def mosaic_columns(folder: Path) -> list[str]:
    """The columns of a folder's first shard."""
    return list(_index(folder)["shards"][0]["column_names"])


def mosaic_values(folder: Path, column: str) -> Iterator[Any]:
    """The values of a column: text, arrays, or bytes as they are.

    Raises:
        ValueError: no such column, one of another kind, or a shard that is not what its index says.
        OSError, EOFError: a shard can't be read.
    """
    for shard in _index(folder)["shards"]:
        try:
            place = shard["column_names"].index(column)
            encoding = shard["column_encodings"][place]
            sizes = shard["column_sizes"]
            files = [shard[key]["basename"] for key in ("raw_data", "zip_data") if shard[key]]
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{folder / INDEX}: a shard without the column {column!r}") from error
        if any(Path(name).name != name for name in files):
            raise ValueError(f"{folder / INDEX}: names a file outside its own folder")
        path = next((folder / one for one in files if (folder / one).is_file()), folder / files[0])
        with open_binary(path) as file:
            content = file.read()
        try:
            for sample in _samples(content, shard["samples"]):
                yield _decoded(encoding, _column(sample, sizes, place))
        except (ValueError, IndexError, KeyError) as error:
            raise ValueError(f"{path}: column {column!r} ({encoding}): {error}") from error


def _samples(content: bytes, count: int) -> Iterator[bytes]:
    if len(content) < 4 or int.from_bytes(content[:4], "little") != count:
        raise ValueError(f"not the {count} samples that its index says")
    places = np.frombuffer(content, "<u4", count + 1, 4).tolist()
    if places[-1] > len(content):
        raise ValueError("cut short")
    for begin, end in pairwise(places):
        yield content[begin:end]


def _column(sample: bytes, sizes: list[int | None], place: int) -> bytes:
    """The bytes of one column of a sample."""
    at, found = 0, []
    for size in sizes:
        if size:
            found.append(size)
        else:
            found.append(int.from_bytes(sample[at : at + 4], "little"))
            at += 4
    at += sum(found[:place])
    return sample[at : at + found[place]]


def _decoded(encoding: str, data: bytes) -> Any:
    if encoding == "str":
        return data.decode()
    if encoding == "bytes":
        return data
    match = _ARRAY.fullmatch(encoding)
    if match is None:
        raise ValueError("neither text nor token ids")
    kind, shape = match[1], match[2]
    at = 0
    if kind is None:
        kind, at = _KINDS[data[0]], 1
    if shape is None:  # how many axes, and in what type their lengths stand
        at += 1 + (data[at] >> 2) * 2 ** (data[at] % 4)
    return np.frombuffer(data[at:], np.dtype(kind).newbyteorder("<"))
