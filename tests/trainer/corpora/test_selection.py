"""Which files are read: by content, one format, one split; what is left says why."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mixloop.trainer.corpora import Choice, select

LINES = b'{"text": "one"}\n{"text": "two"}\n'


def zstd(data: bytes) -> bytes:
    target = pa.BufferOutputStream()
    with pa.CompressedOutputStream(target, "zstd") as stream:
        stream.write(data)
    return bytes(target.getvalue().to_pybytes())


PACKED: dict[str, tuple[str | None, Callable[[bytes], bytes]]] = {
    "": (None, bytes),
    ".gz": ("gzip", gzip.compress),
    ".bz2": ("bzip2", bz2.compress),
    ".xz": ("xz", lzma.compress),
    ".zst": ("zstd", zstd),
}


def put(folder: Path, names: list[str], content: bytes = LINES) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


def taken(folder: Path, choice: Choice | None = None) -> list[str]:
    files = select([str(folder)], choice).taken
    return [Path(one.location).relative_to(folder).as_posix() for one in files]


@pytest.mark.parametrize("suffix", PACKED)
@pytest.mark.parametrize(
    ("name", "content", "kind"),
    [
        ("c4-train.00000-of-01024.json", LINES, "jsonl"),
        ("part-00000", LINES, "jsonl"),
        ("a.jsonl", LINES, "jsonl"),
        ("a.json", b'[\n  {"text": "one"},\n  {"text": "two"}]', "json"),
        ("a.json", b'{\n  "text": "one"\n}\n', "json"),
        ("long", b'{"text": "' + b"x" * 100_000 + b'"}\n', "jsonl"),
        ("long.json", b'{\n "text": "' + b"x" * 100_000 + b'"}\n', "json"),
        ("long.json", b'[{"text": "' + b"x" * 100_000 + b'"}]', "json"),
        ("damaged", b'{"text": \n' + LINES + LINES, "jsonl"),
        ("a.csv", b"id,text\n1,one\n", "csv"),
        ("a.tsv", b"id\ttext\n1\tone\n", "csv"),
        ("a.txt", b"plain text", "text"),
        ("a.md", b"[1] a note", "text"),
        ("notes", b"{ braces } alone are no JSON", "text"),
    ],
)
def test_a_file_is_what_its_content_is(
    tmp_path: Path, name: str, content: bytes, kind: str, suffix: str
) -> None:
    compression, pack = PACKED[suffix]
    file = tmp_path / f"{name}{suffix}"
    file.write_bytes(pack(content))
    (one,) = select([str(file)]).taken
    assert (one.format, one.compression) == (kind, compression)


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("a.txt", LINES, "jsonl by its content, text by its name: give --format"),
        ("a.csv", LINES, "give --format"),
        ("a.parquet", b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "LFS pointer"),
        ("a.jsonl", b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "LFS pointer"),
        ("a.jsonl", b"\x00" * 100, "binary"),
        ("a.txt", "text".encode("utf-16"), "UTF-16"),
        ("a.jsonl.zst", zstd(LINES)[:-4], "unreadable"),
        ("a.txt.gz", b"never packed", "named .gz, but not compressed"),
        ("a.zip", b"PK\x03\x04rest", "zip archive; unpack it"),
        (
            "a.warc.gz",
            gzip.compress(b"WARC/1.0\r\n", mtime=0),
            "a web archive .*; extract its text",
        ),
        ("a.wet", b"WARC/1.0\r\nWARC-Type: conversion", "a web archive .*; extract its text"),
        ("a.xml.bz2", bz2.compress(b'<mediawiki xmlns="http'), "a MediaWiki dump; extract"),
    ],
)
def test_what_is_in_doubt_is_refused(tmp_path: Path, name: str, content: bytes, why: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=why) as refused:
        select([str(tmp_path / name)])
    assert name in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_word_settles_a_doubt(tmp_path: Path) -> None:
    file = str(put(tmp_path, ["a.txt"]) / "a.txt")
    for word in ("jsonl", "text"):
        assert [one.format for one in select([file], Choice(format=word)).taken] == [word]
        assert taken(tmp_path, Choice(format=word)) == ["a.txt"]
    with pytest.raises(ValueError, match="none of jsonl, json, csv"):
        select([file], Choice(format="jsonlines"))


def test_a_folder_gives_its_data_alone(tmp_path: Path) -> None:
    data = ["en/c4-0.json.gz", "en/c4-1.json.gz"]
    put(tmp_path, data, gzip.compress(LINES))
    about = ["README.md", "LICENSE", "en/README.md", "requirements.txt", "checksums.txt"]
    put(tmp_path, about, b"about the data")
    put(tmp_path, ["dataset_infos.json", "stats.json"], b'{"text": "no document"}')
    put(tmp_path, [".cache/hf/README.md", "en/.ipynb_checkpoints/c.jsonl", "__pycache__/a.txt"])
    put(tmp_path, [".gitattributes", "load.py", "_SUCCESS"], b"x = 1")
    chosen = select([str(tmp_path)])
    assert taken(tmp_path) == data
    left = {Path(one.location).relative_to(tmp_path).as_posix(): one.why for one in chosen.left}
    assert left.pop(".cache") == left.pop("en/.ipynb_checkpoints") == "hidden"
    assert left.pop("__pycache__") == left.pop(".gitattributes") == "hidden"
    assert set(left.values()) == {"about the data"}
    assert set(left) == {*about, "dataset_infos.json", "stats.json", "load.py", "_SUCCESS"}


def test_mixed_folders_need_a_word(tmp_path: Path) -> None:
    put(tmp_path, ["a.jsonl", "b.jsonl"])
    put(tmp_path, ["notes.txt"], b"some text")
    with pytest.raises(ValueError, match=r"2 jsonl \(a.jsonl, b.jsonl\) and 1 text \(notes.txt\)"):
        select([str(tmp_path)])
    assert taken(tmp_path, Choice(format="jsonl")) == ["a.jsonl", "b.jsonl"]
    assert taken(tmp_path, Choice(format="text")) == ["notes.txt"]
    assert taken(tmp_path, Choice(include=("*.txt",))) == ["notes.txt"]
    with pytest.raises(ValueError, match="formats are mixed"):
        select([str(tmp_path / "a.jsonl"), str(tmp_path / "notes.txt")])
    put(tmp_path, ["README.md"], b"# Card")
    with pytest.raises(ValueError, match=r"README.md: about the data"):
        select([str(tmp_path / "README.md"), str(tmp_path / "a.jsonl")])  # as a shell's * gives


def test_code_and_cards_are_taken_when_they_are_asked_for(tmp_path: Path) -> None:
    put(tmp_path, ["a.py", "lib/b.py", "README.md"], b"text")
    with pytest.raises(ValueError, match="no file of documents"):
        select([str(tmp_path)])
    assert taken(tmp_path, Choice(include=("*.py",))) == ["a.py", "lib/b.py"]
    assert taken(tmp_path, Choice(include=("README*",))) == ["README.md"]
    files = select([str(tmp_path / "**" / "*")]).left
    assert {Path(one.location).name for one in files} == {"README.md"} | {"a.py", "b.py"}


SPLITS = [
    # as the hub has them, by file name and by folder
    (["data/train-00000-of-00001.parquet"], ["data/test-00000-of-00001.parquet"]),
    (["data/train-0.jsonl", "data/train-1.jsonl"], ["data/validation-0.jsonl"]),
    (["train/00.jsonl"], ["val.jsonl", "test.jsonl"]),
    (["en/c4-train.00000.json"], ["en/c4-validation.00000.json"]),
    (["wiki.train.txt"], ["wiki.valid.txt", "wiki.test.txt"]),
    (["train.csv"], ["dev.csv"]),
    (["pages.jsonl", "more.jsonl"], ["test.jsonl"]),
]


@pytest.mark.parametrize(("train", "others"), SPLITS)
def test_the_test_split_is_never_taken_unasked(
    tmp_path: Path, train: list[str], others: list[str]
) -> None:
    content = {"txt": b"text", "csv": b"text\none\n"}
    for name in train + others:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".parquet":
            pq.write_table(pa.table({"text": [name]}), path)
        else:
            path.write_bytes(content.get(path.suffix[1:], LINES))
    assert sorted(taken(tmp_path)) == sorted(train)
    assert sorted(taken(tmp_path, Choice(split="all"))) == sorted(train + others)
    chosen = select([str(tmp_path)])
    assert all(one.why.startswith("split ") for one in chosen.left)
    (tmp_path / others[0]).rename(tmp_path / f"only-test{Path(others[0]).suffix}")
    for name in (*train, *others[1:]):
        (tmp_path / name).unlink()
    with pytest.raises(ValueError, match=r"no split 'train' \(there are: test\)"):
        select([str(tmp_path)])
    assert len(taken(tmp_path, Choice(split="test"))) == 1


def test_splits_in_doubt_need_a_word(tmp_path: Path) -> None:
    put(tmp_path / "a", ["train.jsonl", "extra.jsonl"])
    with pytest.raises(ValueError, match=r"train.jsonl of the split train by name, extra.jsonl of"):
        select([str(tmp_path / "a")])
    assert taken(tmp_path / "a", Choice(split="train")) == ["train.jsonl"]
    # pages, of which some only speak of trains and tests
    put(tmp_path / "e", ["cat.txt", "test tubes.txt"], b"text")
    for name in ("test tubes.txt", "a train.txt"):
        put(tmp_path / "e", [name], b"text")
        with pytest.raises(ValueError, match=r"by name, cat.txt of none; give --split"):
            select([str(tmp_path / "e")])
    assert len(taken(tmp_path / "e", Choice(split="all"))) == 3
    put(tmp_path / "b", ["train-test.jsonl"])
    with pytest.raises(ValueError, match="there are: test or train"):
        select([str(tmp_path / "b")])
    put(tmp_path / "c", ["data/train_sft-00000-of-00001.jsonl", "data/x-00000-of-00001.jsonl"])
    with pytest.raises(ValueError, match="there are: train_sft, x"):
        select([str(tmp_path / "c")])
    assert taken(tmp_path / "c", Choice(split="train_sft")) == [
        "data/train_sft-00000-of-00001.jsonl"
    ]
    named = [str(put(tmp_path / "d", [name]) / name) for name in ("train.jsonl", "test.jsonl")]
    with pytest.raises(ValueError, match=r"test.jsonl: of the split test"):
        select(named)
    assert len(select(named, Choice(split="train")).taken) == 1
    assert len(select(named, Choice(split="all")).taken) == 2
    assert len(select(named[1:]).taken) == 1  # named by itself


def test_nothing_is_taken_twice(tmp_path: Path) -> None:
    put(tmp_path / "a", ["x.jsonl"])
    put(tmp_path / "a", ["x.jsonl.gz"], gzip.compress(LINES))
    with pytest.raises(ValueError, match=r"x.jsonl.gz: the same file as x.jsonl, by its name"):
        select([str(tmp_path / "a")])
    file = str(tmp_path / "a" / "x.jsonl")
    for inputs in ([file, f"{file}.gz"], [str(tmp_path / "a" / "x*")]):
        with pytest.raises(ValueError, match=r"x.jsonl.gz: the same file as x.jsonl, by its name"):
            select(inputs)
    for inputs in ([file, file], [file, str(tmp_path / "a" / "*l")]):
        with pytest.raises(ValueError, match=r"x.jsonl: given 2 times"):
            select(inputs)


def test_what_is_missing_or_half_there_is_no_data(tmp_path: Path) -> None:
    put(tmp_path, ["a.jsonl", "b.jsonl.incomplete", "c.jsonl.part"])
    assert taken(tmp_path) == ["a.jsonl"]
    (tmp_path / "d.jsonl").symlink_to(tmp_path / "gone")
    with pytest.raises(ValueError, match=r"d.jsonl: unreadable: .*No such file"):
        select([str(tmp_path)])


def test_links_to_folders_are_followed_once(tmp_path: Path) -> None:
    put(tmp_path / "disk", ["a.jsonl", "deep/b.jsonl", ".hidden/c.jsonl"])
    here = tmp_path / "here"
    put(here, ["own/x.jsonl"])
    (here / "linked").symlink_to(tmp_path / "disk")
    (here / "seen").symlink_to(here / "linked" / ".hidden")
    (here / "twice").symlink_to(here / "own")
    (tmp_path / "disk" / "deep" / "loop").symlink_to(tmp_path / "disk")
    (here / "above").symlink_to(tmp_path)
    assert taken(here) == ["linked/a.jsonl", "linked/deep/b.jsonl", "own/x.jsonl", "seen/c.jsonl"]
    why = {Path(one.location).name: one.why for one in select([str(here)]).left}
    read = "a folder that is read already (a link)"
    assert why == {".hidden": "hidden", "above": read, "loop": read, "twice": read}


def test_files_that_a_set_lacks_are_told(tmp_path: Path) -> None:
    put(tmp_path, ["en/c4.00000-of-01024.jsonl", "all-00000-of-00002.jsonl", "x-1-of-3.jsonl"])
    put(tmp_path, ["all-00001-of-00002.jsonl"])
    part = [f"{tmp_path}/en/c4.*-of-01024.jsonl: 1 of 1,024"]
    assert select([str(tmp_path)]).incomplete() == part
    assert select([str(tmp_path / "en" / "c4.00000-of-01024.jsonl")]).incomplete() == part
    assert not select([str(tmp_path / "all*")]).incomplete()


CARD = b"""---
license: odc-by
configs:
- config_name: default
  data_files:
  - split: train
    path: data/*/*
- config_name: sample
  data_files:
  - split: train
    path: sample/10BT/*
  - split: holdout
    path: [sample/held.jsonl]
---
# A dataset
"""


def test_the_card_says_configurations_and_splits(tmp_path: Path) -> None:
    put(tmp_path, ["data/CC-2024/000.jsonl", "data/CC-2023/000.jsonl", "sample/10BT/000.jsonl"])
    put(tmp_path, ["sample/held.jsonl"])
    put(tmp_path, ["README.md"], CARD)
    assert taken(tmp_path) == ["data/CC-2023/000.jsonl", "data/CC-2024/000.jsonl"]
    assert taken(tmp_path, Choice(config="sample")) == ["sample/10BT/000.jsonl"]
    assert taken(tmp_path, Choice(config="sample", split="holdout")) == ["sample/held.jsonl"]
    with pytest.raises(ValueError, match=r"no configuration 'smaple' \(there are: default, sample"):
        select([str(tmp_path)], Choice(config="smaple"))
    put(tmp_path, ["README.md"], CARD.replace(b"config_name: default", b"config_name: full"))
    with pytest.raises(ValueError, match=r"several configurations \(full, sample\)"):
        select([str(tmp_path)])
    put(tmp_path, ["README.md"], b"---\nconfigs: [{config_name: a, data_files: 3}]\n---\n")
    with pytest.raises(ValueError, match=r"README.md: configs: data_files of 'a'"):
        select([str(tmp_path)])


def test_a_configuration_may_be_a_folder(tmp_path: Path) -> None:
    put(tmp_path, ["en/train.jsonl", "de/train.jsonl"])
    assert taken(tmp_path, Choice(config="de")) == ["de/train.jsonl"]
    with pytest.raises(ValueError, match="no such subfolder"):
        select([str(tmp_path)], Choice(config="fr"))


def test_what_other_loaders_made_says_the_way_in(tmp_path: Path) -> None:
    kinds = {
        "lit": ("index.json", {"chunks": [], "config": {}}, "litdata .*--ids-key input_ids"),
        "trove": ("000.ds", {}, "as a source of the run"),
        "megatron": ("web.idx", {}, "as a source of the run"),
        "store": ("store.json", {}, "a token store already"),
    }
    for name, (file, content, words) in kinds.items():
        put(tmp_path / name, [file], json.dumps(content).encode())
        with pytest.raises(ValueError, match=words) as refused:
            select([str(tmp_path / name)])
        assert "\n" not in str(refused.value)


def test_inputs_that_are_not_there(tmp_path: Path) -> None:
    for wrong in (tmp_path / "none.jsonl", tmp_path / "none"):
        with pytest.raises(ValueError, match="no such file or folder"):
            select([str(wrong)])
    with pytest.raises(ValueError, match="matches no file"):
        select([str(tmp_path / "*.txt")])
    with pytest.raises(ValueError, match="no input"):
        select([])
    assert select(["org/name"]).taken[0].format == "hub"
    assert select(["hub:wikitext"]).taken[0].location == "wikitext"
