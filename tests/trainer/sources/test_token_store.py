"""Prepared stores: shards, growth, damage."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mixloop.trainer.config import JobError
from mixloop.trainer.prepare import prepare
from mixloop.trainer.prepare.append import alone
from mixloop.trainer.sources import (
    Shard,
    Store,
    StoreInfo,
    read_header,
    train_tokenizer,
)
from mixloop.trainer.sources.memory_map import POOL
from mixloop.trainer.sources.token_store import verify_store

EOS = 0


def shards(folder: Path, count: int, size: int) -> Path:
    """A store of many shards; shard n holds the number n throughout."""
    folder.mkdir()
    for number in range(count):
        np.full(size, number, "<u2").tofile(folder / f"tokens-{number:05d}.bin")
    files = tuple(Shard(f"tokens-{n:05d}.bin", size, "") for n in range(count))
    info = StoreInfo(count * size, 1, "uint16", 2**16, "t", "f", EOS, shards=files)
    (folder / "store.json").write_text(json.dumps(info.to_json()))
    return folder


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    texts = [f"the quick brown fox number {n} jumps over a lazy dog" for n in range(200)]
    return train_tokenizer(texts, tmp_path_factory.mktemp("tokenizer") / "t", 300)


def text_file(path: Path, lines: range) -> Path:
    path.write_text("".join(json.dumps({"text": f"fox number {n}, a dog"}) + "\n" for n in lines))
    return path


def test_ten_thousand_shards_are_mapped_one_by_one(tmp_path: Path) -> None:
    store = Store.open(shards(tmp_path / "s", 10_000, 8))
    assert store.info.tokens == 80_000
    assert store.stream.mapped == 0
    assert store.gather(np.array([7, 9999]), 8)[:, 0].tolist() == [7, 9999]
    assert store.stream.mapped == 2
    found = store.gather(np.arange(5000), 16)
    np.testing.assert_array_equal(found[:, [0, 8]], np.arange(10_000).reshape(-1, 2))
    assert store.stream.mapped <= POOL.most


def test_a_sharded_store_holds_what_one_file_holds(tmp_path: Path, tokenizer: Path) -> None:
    text = str(text_file(tmp_path / "a.jsonl", range(300)))
    one = prepare([text], tmp_path / "one", str(tokenizer))
    many = prepare([text], tmp_path / "many", str(tokenizer), shard_size=100)
    assert many.tokens == one.tokens
    assert [shard.tokens for shard in many.shards[:-1]] == [100] * (len(many.shards) - 1)
    stores = Store.open(tmp_path / "one"), Store.open(tmp_path / "many")
    samples = np.arange(stores[0].samples(33))
    np.testing.assert_array_equal(*(store.gather(samples, 33) for store in stores))
    assert verify_store(tmp_path / "one") == verify_store(tmp_path / "many") == []


@pytest.mark.parametrize("shard_size", [None, 150])
def test_a_store_grows_and_says_what_it_was(
    tmp_path: Path, tokenizer: Path, shard_size: int | None
) -> None:
    out = tmp_path / "s"
    first = text_file(tmp_path / "a.jsonl", range(200))
    second = text_file(tmp_path / "b.jsonl", range(200, 300))
    before = prepare([str(first)], out, str(tokenizer), shard_size=shard_size)
    old = Store.open(out).stream.read(0, before.tokens)
    grown = prepare([str(second)], out, str(tokenizer), shard_size=shard_size, append=True)
    assert grown.documents == 300
    assert list(grown.history) == [{"tokens": before.tokens, "fingerprint": before.fingerprint}]
    assert read_header(out) == grown
    np.testing.assert_array_equal(Store.open(out).stream.read(0, before.tokens), old)
    assert verify_store(out) == []
    again = prepare([str(first)], out, str(tokenizer), append=True)
    assert [one["tokens"] for one in again.history] == [before.tokens, grown.tokens]
    other = train_tokenizer(["zebras and okapis " * 40], tmp_path / "other", 280)
    with pytest.raises(ValueError, match="not the tokenizer"):
        prepare([str(first)], out, str(other), append=True)


def test_one_appends_at_a_time_and_only_to_what_is_sound(tmp_path: Path, tokenizer: Path) -> None:
    out, text = tmp_path / "s", str(text_file(tmp_path / "a.jsonl", range(50)))
    before = prepare([text], out, str(tokenizer))
    with alone(out), pytest.raises(ValueError, match="another `mixloop prepare`"):
        prepare([text], out, str(tokenizer), append=True)
    (out / "tokens-00001.bin").write_bytes(b"what a crash left behind")
    data = bytearray((out / "tokens.bin").read_bytes())
    data[4] ^= 1
    (out / "tokens.bin").write_bytes(data)
    with pytest.raises(ValueError, match="SHA-256 is not the header's"):
        prepare([text], out, str(tokenizer), append=True)
    assert read_header(out) == before
    data[4] ^= 1
    (out / "tokens.bin").write_bytes(data)
    assert prepare([text], out, str(tokenizer), append=True).tokens == 2 * before.tokens
    assert verify_store(out) == []
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.jsonl", "s"]
    with pytest.raises(ValueError, match="no token store there"):
        prepare([text], tmp_path / "other", str(tokenizer), append=True)


def test_a_changed_byte_is_found(tmp_path: Path, tokenizer: Path) -> None:
    text = str(text_file(tmp_path / "a.jsonl", range(100)))
    for name, size in (("one", None), ("many", 64)):
        prepare([text], tmp_path / name, str(tokenizer), shard_size=size)
        file = sorted((tmp_path / name).glob("tokens*.bin"))[0]
        data = bytearray(file.read_bytes())
        data[10] ^= 1
        file.write_bytes(data)
        (found,) = verify_store(tmp_path / name)
        assert file.name in found
        assert "SHA-256" in found


def test_a_header_that_lies_about_its_shards_is_refused(tmp_path: Path, tokenizer: Path) -> None:
    text = str(text_file(tmp_path / "a.jsonl", range(100)))
    info = prepare([text], tmp_path / "s", str(tokenizer), shard_size=64)
    header = tmp_path / "s" / "store.json"
    header.write_text(json.dumps(replace(info, tokens=info.tokens + 1).to_json()))
    with pytest.raises(JobError, match="its shards hold"):
        Store.open(tmp_path / "s")
    raw = info.to_json()
    raw["shards"][0]["file"] = "../elsewhere.bin"
    header.write_text(json.dumps(raw))
    with pytest.raises(JobError, match="own folder"):
        Store.open(tmp_path / "s")


# --- stores that are replaced while they are read ----------------------------------------------


def lines_of(path: Path, word: str, count: int) -> str:
    path.write_text(
        "".join(json.dumps({"text": f"{word} {n}, a dog"}) + "\n" for n in range(count))
    )
    return str(path)


@pytest.mark.parametrize("shard_size", [None, 100])
def test_a_store_that_is_prepared_again_stays_what_it_was_for_its_readers(
    tmp_path: Path, tokenizer: Path, shard_size: int | None
) -> None:
    old = lines_of(tmp_path / "old.jsonl", "fox", 300)
    new = lines_of(tmp_path / "new.jsonl", "zebra", 500)
    other = train_tokenizer(["zebras and okapis " * 40], tmp_path / "other", 280)
    out, right = tmp_path / "s", tmp_path / "right"
    prepare([old], right, str(tokenizer), shard_size=shard_size)
    before = prepare([old], out, str(tokenizer), shard_size=shard_size)
    reader = Store.open(out)
    reader.stream.read(0, 8)  # its first file is mapped, the others aren't
    after = prepare([new], out, str(other), shard_size=shard_size, overwrite=True)
    expected = Store.open(right).stream.read(0, before.tokens)
    np.testing.assert_array_equal(reader.stream.read(0, before.tokens), expected)
    names = [file.name for file in (right / "tokenizer").iterdir()]
    for name in names:
        assert (reader.tokenizer / name).read_bytes() == (right / "tokenizer" / name).read_bytes()
    fresh = Store.open(out)
    assert fresh.info == after == read_header(out)
    assert verify_store(out) == []
    assert fresh.tokenizer == out / "tokenizer"


def test_every_reader_keeps_its_store_until_that_is_removed(
    tmp_path: Path, tokenizer: Path
) -> None:
    texts = [lines_of(tmp_path / f"{n}.jsonl", f"fox {n}", 100) for n in range(3)]
    out = tmp_path / "s"
    kept = []
    for number in (0, 1, 2, 0, 2, 2):
        fresh = tmp_path / f"right {number}"
        if not fresh.exists():
            prepare([texts[number]], fresh, str(tokenizer), shard_size=100)
        prepare([texts[number]], out, str(tokenizer), shard_size=100, overwrite=bool(kept))
        reader = Store.open(out)
        reader.stream.read(0, 8)
        kept.append((reader, Store.open(fresh)))
    for reader, right in kept:
        tokens = right.info.tokens
        assert reader.stream.read(0, tokens).tolist() == right.stream.read(0, tokens).tolist()
    asides = list(tmp_path.glob(".s.*"))
    assert len(asides) == 2  # of three contents, one is in its place
    reader = Store.open(out)
    for folder in (out, *asides):
        shutil.rmtree(folder)
    prepare([texts[0]], out, str(tokenizer))
    with pytest.raises(OSError, match="another store than when it was opened"):
        reader.stream.read(0, 300)
    with pytest.raises(JobError, match="another store than when it was opened"):
        _ = reader.tokenizer


def test_a_store_that_grows_or_is_touched_is_still_its_readers(
    tmp_path: Path, tokenizer: Path
) -> None:
    text = lines_of(tmp_path / "a.jsonl", "fox", 100)
    out = tmp_path / "s"
    before = prepare([text], out, str(tokenizer), shard_size=100)
    reader = Store.open(out)
    prepare([text], out, str(tokenizer), append=True)
    for file in out.iterdir():
        file.touch()
    assert len(reader.stream.read(0, before.tokens)) == before.tokens


def test_a_foreign_file_that_is_replaced_is_noticed(tmp_path: Path) -> None:
    from mixloop.trainer.sources.memory_map import MappedFile

    path = tmp_path / "a.bin"
    path.write_bytes(b"old!")
    kept, moved = MappedFile(path, 4), MappedFile(path, 4)
    os.utime(path, ns=(1, 1))
    assert bytes(kept.bytes()) == b"old!"
    (tmp_path / "b.bin").write_bytes(b"new!")
    (tmp_path / "b.bin").rename(path)
    assert bytes(kept.bytes()) == b"old!"
    with pytest.raises(OSError, match="another file than when it was opened"):
        moved.bytes()
