"""MosaicML's shards, written here as its writer does, give their texts and ids."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from mixloop.trainer.corpora import Account, Choice, read_ids, read_pieces, select

TEXTS = ["one", "zwei ü", "three\n" * 50]
IDS = [[1, 2, 300], [4], list(range(300))]


def encoded(encoding: str, value: Any) -> bytes:
    if encoding == "str":
        return str(value).encode()
    if encoding == "int":
        return np.int64(value).tobytes()
    if encoding == "bytes":
        return np.asarray(value, "<i8").tobytes()
    kind, _, shape = encoding.removeprefix("ndarray").removeprefix(":").partition(":")
    array = np.asarray(value, kind or "<i4")
    head = b"" if kind else bytes([33])
    if not shape:
        wide = len(array) > 255
        head += bytes([1 << 2 | wide]) + np.array([len(array)], "<u2" if wide else "<u1").tobytes()
    return head + array.tobytes()


def write_shards(folder: Path, columns: dict[str, str], rows: list[dict[str, Any]]) -> Path:
    """Two rows a shard, the second one compressed."""
    folder.mkdir(parents=True)
    names = sorted(columns)
    sizes = [8 if columns[name] == "int" else None for name in names]
    shards = []
    for number in range(0, len(rows), 2):
        samples = []
        for row in rows[number : number + 2]:
            data = [encoded(columns[name], row[name]) for name in names]
            lengths = [len(one) for one, size in zip(data, sizes, strict=True) if size is None]
            samples.append(np.array(lengths, "<u4").tobytes() + b"".join(data))
        config = json.dumps({"column_names": names}).encode()
        ends = np.cumsum([0, *map(len, samples)]) + 4 + 4 * (len(samples) + 1) + len(config)
        body = np.array([len(samples), *ends], "<u4").tobytes() + config + b"".join(samples)
        name = f"shard.{number // 2:05d}.mds"
        raw, packed = {"basename": name}, None
        if number:
            packed = {"basename": f"{name}.zstd"}
            with pa.CompressedOutputStream(str(folder / packed["basename"]), "zstd") as file:
                file.write(body)
        else:
            (folder / name).write_bytes(body)
        shards.append(
            {
                "column_encodings": [columns[one] for one in names],
                "column_names": names,
                "column_sizes": sizes,
                "raw_data": raw,
                "zip_data": packed,
                "samples": len(samples),
                "format": "mds",
                "version": 2,
            }
        )
    (folder / "index.json").write_text(json.dumps({"version": 2, "shards": shards}))
    return folder


def test_texts_of_shards(tmp_path: Path) -> None:
    rows = [{"text": text, "n": n} for n, text in enumerate(TEXTS)]
    folder = write_shards(tmp_path / "s", {"text": "str", "n": "int"}, rows)
    (source,) = select([str(folder)]).taken
    pieces = read_pieces(source, "text", Account(), None)
    assert [piece.text for piece in pieces] == TEXTS
    with pytest.raises(ValueError, match=r"no column 'body' \(there are: n, text\)"):
        list(read_pieces(source, "body", Account(), None))
    with pytest.raises(ValueError, match=r"column 'n' \(int\): neither text nor token ids"):
        list(read_pieces(source, "n", Account(), None))
    shard = folder / "shard.00000.mds"
    shard.write_bytes(shard.read_bytes()[:-5])
    with pytest.raises(ValueError, match=r"shard.00000.mds: column 'text' \(str\): cut short"):
        list(read_pieces(source, "text", Account(), None))


@pytest.mark.parametrize("encoding", ["bytes", "ndarray", "ndarray:uint16", "ndarray:int32"])
def test_ids_of_shards(tmp_path: Path, encoding: str) -> None:
    rows = [{"text": "t", "tokens": ids} for ids in IDS]
    folder = write_shards(tmp_path / "s", {"text": "str", "tokens": encoding}, rows)
    (source,) = select([str(folder)]).taken
    found = read_ids(source, "tokens", Account(), None)
    assert [ids.tolist() for _, ids in found] == IDS


def test_ids_of_one_length(tmp_path: Path) -> None:
    rows = [{"tokens": [n, n + 1]} for n in range(3)]
    folder = write_shards(tmp_path / "s", {"tokens": "ndarray:uint16:2"}, rows)
    (source,) = select([str(folder)]).taken
    assert [ids.tolist() for _, ids in read_ids(source, "tokens", Account(), None)] == [
        [0, 1],
        [1, 2],
        [2, 3],
    ]


def test_splits_of_shards(tmp_path: Path) -> None:
    for split in ("train", "val"):
        write_shards(tmp_path / "s" / split, {"text": "str"}, [{"text": split}])
    chosen = select([str(tmp_path / "s")])
    assert [Path(one.location).name for one in chosen.taken] == ["train"]
    assert [one.why for one in chosen.left] == ["split val"]
    (source,) = select([str(tmp_path / "s")], Choice(split="val")).taken
    assert [piece.text for piece in read_pieces(source, "text", Account(), None)] == ["val"]
    with pytest.raises(ValueError, match=r"no split 'dev' \(there are: train, val\)"):
        select([str(tmp_path / "s")], Choice(split="dev"))


def test_shards_outside_their_folder_are_refused(tmp_path: Path) -> None:
    folder = write_shards(tmp_path / "s", {"text": "str"}, [{"text": "a"}])
    index = json.loads((folder / "index.json").read_text())
    index["shards"][0]["raw_data"]["basename"] = "../secret"
    (folder / "index.json").write_text(json.dumps(index))
    (source,) = select([str(folder)]).taken
    with pytest.raises(ValueError, match="outside its own folder"):
        list(read_pieces(source, "text", Account(), None))
