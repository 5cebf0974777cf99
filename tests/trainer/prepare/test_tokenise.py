"""`prepare`: text, jsonl, parquet and saved datasets become token stores; bad input says where."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mixloop.trainer.config import JobError
from mixloop.trainer.prepare import prepare
from mixloop.trainer.prepare.tokenise import Progress
from mixloop.trainer.sources import (
    Store,
    dtype_for,
    inspect_tokenizer,
    load_raw,
    read_header,
    resolve_tokenizer,
    train_tokenizer,
)
from mixloop.trainer.sources.tokenizer import END_OF_TEXT

TEXTS = [f"Document {n}: {'the cat sat on mat number ' * (n % 5 + 1)}{n * n}.\n" for n in range(40)]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(train_tokenizer(TEXTS, tmp_path_factory.mktemp("tokenizer"), 300))


def expected(tokenizer: str, texts: list[str]) -> list[int]:
    raw, eos = load_raw(Path(tokenizer)), inspect_tokenizer(Path(tokenizer)).eos_id
    return [token for text in texts for token in [*raw.encode(text).ids, eos]]


def content(path: Path) -> list[int]:
    store = Store.open(path)
    return [int(token) for token in store.stream.read(0, store.info.tokens)]


def write_lines(path: Path, records: list[Any]) -> Path:
    data = "".join(json.dumps(record) + "\n" for record in records)
    if path.suffix == ".gz":
        with gzip.open(path, "wt", encoding="utf-8") as file:
            file.write(data)
    else:
        path.write_text(data, "utf-8")
    return path


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz"])
def test_json_lines_become_tokens_with_an_end_after_each(
    tmp_path: Path, tokenizer: str, suffix: str
) -> None:
    file = write_lines(tmp_path / f"a{suffix}", [{"text": text, "id": 1} for text in TEXTS])
    info = prepare([str(file)], tmp_path / "out", tokenizer)
    assert content(tmp_path / "out") == expected(tokenizer, TEXTS)
    assert (info.documents, info.dtype) == (40, "uint16")
    assert read_header(tmp_path / "out") == info


def test_parquet_and_another_key(tmp_path: Path, tokenizer: str) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"content": TEXTS, "n": list(range(40))}), tmp_path / "a.parquet")
    prepare([str(tmp_path / "a.parquet")], tmp_path / "out", tokenizer, text_key="content")
    assert content(tmp_path / "out") == expected(tokenizer, TEXTS)
    with pytest.raises(ValueError, match=r"a\.parquet: no column 'text' \(there are: content, n\)"):
        prepare([str(tmp_path / "a.parquet")], tmp_path / "two", tokenizer)
    assert not (tmp_path / "two").exists()


def test_a_dataset_saved_to_disk(tmp_path: Path, tokenizer: str) -> None:
    import datasets

    saved = datasets.DatasetDict({"train": datasets.Dataset.from_dict({"text": TEXTS})})
    saved.save_to_disk(str(tmp_path / "ds"))
    prepare([str(tmp_path / "ds")], tmp_path / "out", tokenizer)
    assert content(tmp_path / "out") == expected(tokenizer, TEXTS)
    with pytest.raises(ValueError, match=r"ds: no split 'test' \(there are: train\)"):
        prepare([str(tmp_path / "ds")], tmp_path / "two", tokenizer, split="test")
    saved["test"] = datasets.Dataset.from_dict({"text": ["a test"]})
    saved.save_to_disk(str(tmp_path / "both"))
    prepare([str(tmp_path / "both")], tmp_path / "three", tokenizer, split="all")
    assert content(tmp_path / "three") == expected(tokenizer, [*TEXTS, "a test"])


def test_folders_globs_and_order(tmp_path: Path, tokenizer: str) -> None:
    folder = tmp_path / "texts"
    (folder / "sub").mkdir(parents=True)
    for name, text in (("b.txt", "second"), ("a.txt", "first"), ("sub/c.md", "third")):
        (folder / name).write_text(text)
    (folder / "d.py").write_text("ignored = 1")
    (folder / "blank.txt").write_text(" \n")
    prepare([str(folder)], tmp_path / "one", tokenizer)
    assert content(tmp_path / "one") == expected(tokenizer, ["first", "second", "third"])
    prepare([str(folder / "**" / "*.[mp]*")], tmp_path / "two", tokenizer)
    assert content(tmp_path / "two") == expected(tokenizer, ["ignored = 1", "third"])


def test_more_workers_give_the_same_bytes(tmp_path: Path, tokenizer: str) -> None:
    many = [{"text": text * 200} for text in TEXTS]
    file = str(write_lines(tmp_path / "a.jsonl", many))
    steps: list[Progress] = []
    one = prepare([file], tmp_path / "one", tokenizer)
    two = prepare([file], tmp_path / "two", tokenizer, workers=2, progress=steps.append)
    assert one == two
    assert content(tmp_path / "one") == content(tmp_path / "two")
    assert len(steps) > 1
    assert steps[-1] == Progress(40, two.tokens, 1, 1)


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.jsonl", b'{"text": "x"}\n{"body": "y"}\n', r"a\.jsonl, line 2: no key 'text' .*body"),
        ("a.jsonl", b'{"text": "x"}\n{"text": 3}\n', r"line 2: 'text' is int, not text"),
        ("a.jsonl", b'{"text": "x"}\n\n{"text": \n', r"line 3: not JSON"),
        ("a.jsonl", b"[1]\n", r"line 1: not a JSON object"),
        ("a.jsonl", b'{"text": "x"}\n\xff\n', r"a\.jsonl.*not UTF-8"),
        ("a.jsonl", b"", r"a\.jsonl: no document with text in it"),
        ("a.txt", b"\xff\xfe", r"a\.txt: not UTF-8"),
        ("a.txt", b"  \n", r"a\.txt: no document"),
        ("a.parquet", b"nothing", r"a\.parquet: not a readable parquet file"),
        ("a.jsonl.gz", b"nothing", r"a\.jsonl\.gz.*unreadable"),
    ],
)
def test_bad_files_say_where(
    tmp_path: Path, tokenizer: str, name: str, data: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ValueError, match=message):
        prepare([str(tmp_path / name)], tmp_path / "out", tokenizer)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_an_existing_store_is_kept_unless_asked(tmp_path: Path, tokenizer: str) -> None:
    (tmp_path / "a.txt").write_text(TEXTS[0])
    source, out = [str(tmp_path / "a.txt")], tmp_path / "out"
    prepare(source, out, tokenizer)
    with pytest.raises(ValueError, match="already there"):
        prepare(source, out, tokenizer)
    (tmp_path / "a.txt").write_text(TEXTS[1])
    prepare(source, out, tokenizer, overwrite=True)
    assert content(out) == expected(tokenizer, [TEXTS[1]])
    (tmp_path / "folder").mkdir()
    with pytest.raises(ValueError, match="not a token store"):
        prepare(source, tmp_path / "folder", tokenizer, overwrite=True)


def test_too_little_text_for_a_sample(tmp_path: Path, tokenizer: str) -> None:
    (tmp_path / "a.txt").write_text("short")
    with pytest.raises(ValueError, match="fewer than one sample of sequence_length 512"):
        prepare([str(tmp_path / "a.txt")], tmp_path / "out", tokenizer, sequence_length=512)


def test_stores_refuse_damage(tmp_path: Path, tokenizer: str) -> None:
    (tmp_path / "a.txt").write_text(TEXTS[0])
    prepare([str(tmp_path / "a.txt")], tmp_path / "out", tokenizer)
    data = tmp_path / "out" / "tokens.bin"
    data.write_bytes(data.read_bytes()[:-1])
    with pytest.raises(JobError, match="bytes where the header says"):
        Store.open(tmp_path / "out")
    header = tmp_path / "out" / "store.json"
    for damage in ("{", "[]", '{"schema": "other"}', '{"schema": "mixloop/store/1", "x": 1}'):
        header.write_text(damage)
        with pytest.raises(JobError, match=r"store\.json"):
            read_header(tmp_path / "out")
    with pytest.raises(JobError, match="no token store there"):
        Store.open(tmp_path / "nothing")


def test_windows_of_a_store(tmp_path: Path, tokenizer: str) -> None:
    write_lines(tmp_path / "a.jsonl", [{"text": text} for text in TEXTS])
    info = prepare([str(tmp_path / "a.jsonl")], tmp_path / "out", tokenizer)
    store = Store.open(tmp_path / "out")
    assert store.samples(16) == info.tokens // 16
    picked = np.array([3, 0, store.samples(16) - 1])
    windows = store.gather(picked, 16)
    assert windows.dtype == np.int64
    for row, sample in zip(windows, picked, strict=True):
        assert row.tolist() == store.stream.read(sample * 16, 16).tolist()
    assert [dtype_for(size) for size in (65536, 65537)] == ["uint16", "uint32"]


def test_tokenizers(tmp_path: Path, tokenizer: str) -> None:
    from transformers import AutoTokenizer

    loaded = AutoTokenizer.from_pretrained(tokenizer)
    assert loaded.eos_token == END_OF_TEXT
    assert loaded.decode(loaded("naïve ∑ text").input_ids) == "naïve ∑ text"
    loaded.save_pretrained(tmp_path / "resaved")
    again = inspect_tokenizer(tmp_path / "resaved")
    assert again == inspect_tokenizer(Path(tokenizer))
    with pytest.raises(ValueError, match=r"no tokenizer\.json"):
        resolve_tokenizer(str(tmp_path), tmp_path / "scratch")
    with pytest.raises(ValueError, match="too small"):
        train_tokenizer(TEXTS, tmp_path / "t", 200)
    with pytest.raises(ValueError, match="no text"):
        train_tokenizer([], tmp_path / "t", 300)
