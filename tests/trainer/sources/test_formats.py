"""Sources of every format: windows over many files, opened late; what is wrong is one line."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from mixloop.cli.app import app
from mixloop.common.errors import BadInput
from mixloop.contract import RunPaths, read_status
from mixloop.controller.config import load_config
from mixloop.controller.service import check_run
from mixloop.controller.service.launch import job_of
from mixloop.trainer.batches import document_ids, document_mask, position_ids
from mixloop.trainer.batches.document_mask import document_mask_mod
from mixloop.trainer.config import Job, JobError
from mixloop.trainer.prepare import prepare
from mixloop.trainer.prepare.append import alone
from mixloop.trainer.sources import (
    Shard,
    Store,
    StoreInfo,
    open_source,
    open_stores,
    read_header,
    source_info,
    train_tokenizer,
    verify_source,
)
from mixloop.trainer.sources.memory_map import POOL, MappedFile, Pool
from mixloop.trainer.sources.stream import Piece, Stream, file_piece
from mixloop.trainer.sources.token_store import verify_store
from mixloop.trainer.train import train

EOS = 0


def tokens(count: int, seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).integers(0, 1000, count).astype(np.uint16)


# --- formats, written the way their own libraries do -------------------------------------------


def write_megatron(prefix: Path, documents: list[np.ndarray[Any, Any]], code: int = 8) -> None:
    kind = {8: "<u2", 4: "<i4"}[code]
    prefix.with_name(f"{prefix.name}.bin").write_bytes(
        b"".join(one.astype(kind).tobytes() for one in documents)
    )
    lengths = np.array([len(one) for one in documents], "<i4")
    pointers = (np.cumsum(lengths) - lengths).astype("<i8") * np.dtype(kind).itemsize
    index = b"MMIDIDX\x00\x00" + struct.pack("<QBQQ", 1, code, len(documents), len(documents) + 1)
    index += lengths.tobytes() + pointers.tobytes()
    index += np.arange(len(documents) + 1, dtype="<i8").tobytes()
    prefix.with_name(f"{prefix.name}.idx").write_bytes(index)


def write_datatrove(
    folder: Path, files: dict[str, list[np.ndarray[Any, Any]]], meta: bool = True
) -> None:
    folder.mkdir(exist_ok=True)
    for name, documents in files.items():
        (folder / f"{name}.ds").write_bytes(b"".join(d.astype("<u2").tobytes() for d in documents))
        ends = np.cumsum([len(one) for one in documents]).astype("<u8")
        (folder / f"{name}.ds.index").write_bytes(ends.tobytes())
        if meta:
            (folder / f"{name}.ds.metadata").write_text(f"gpt2|2\n{int(ends[-1])}\n0.0 MT")


def write_arrow(folder: Path, rows: list[list[int]]) -> None:
    from datasets import Dataset

    Dataset.from_dict({"input_ids": rows}).save_to_disk(folder)


# --- the stream ----------------------------------------------------------------------------------


def stream_of(folder: Path, parts: list[np.ndarray[Any, Any]], pool: Pool) -> Stream:
    """A stream whose parts lie in files of their own, or several to a file, between other bytes."""
    pieces = []
    for number, part in enumerate(parts):
        file = folder / f"{number}.bin"
        if number % 3 == 2:  # as in arrow files: a part that begins somewhere inside
            file.write_bytes(b"x" * 10 + part.tobytes() + b"y" * 7)
            pieces.append(Piece(MappedFile(file, part.nbytes + 17, pool), len(part), 10))
        else:
            file.write_bytes(part.tobytes())
            pieces.append(file_piece(file, part.dtype, len(part), pool))
    return Stream(pieces, np.uint16)


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.one_of(st.integers(0, 40), st.integers(100, 300)), min_size=1, max_size=8),
    length=st.integers(1, 50),
    most=st.integers(1, 4),
    seed=st.integers(0, 99),
)
def test_windows_are_those_of_the_concatenation(
    sizes: list[int], length: int, most: int, seed: int
) -> None:
    parts = [tokens(size, seed + i) for i, size in enumerate(sizes)]
    whole = np.concatenate(parts)
    count = len(whole) // length
    samples = np.random.default_rng(seed).permutation(count)
    expected = whole[: count * length].reshape(count, length)[samples]
    with tempfile.TemporaryDirectory() as folder:
        stream = stream_of(Path(folder), parts, Pool(most))
        assert stream.tokens == len(whole)
        np.testing.assert_array_equal(stream.gather(samples, length), expected)
        out = np.full((count + 2, length), -1, np.int64)
        rows = np.random.default_rng(seed + 1).permutation(count)
        stream.gather(samples, length, out, rows)
        assert stream.mapped <= most
    np.testing.assert_array_equal(out[rows], expected)
    assert (out[count:] == -1).all()


def shards(folder: Path, count: int, size: int) -> Path:
    """A store of many shards; shard n holds the number n throughout."""
    folder.mkdir()
    for number in range(count):
        np.full(size, number, "<u2").tofile(folder / f"tokens-{number:05d}.bin")
    files = tuple(Shard(f"tokens-{n:05d}.bin", size, "") for n in range(count))
    info = StoreInfo(count * size, 1, "uint16", 2**16, "t", "f", EOS, shards=files)
    (folder / "store.json").write_text(json.dumps(info.to_json()))
    return folder


def test_ten_thousand_shards_are_mapped_one_by_one(tmp_path: Path) -> None:
    store = Store.open(shards(tmp_path / "s", 10_000, 8))
    assert store.info.tokens == 80_000
    assert store.stream.mapped == 0
    assert store.gather(np.array([7, 9999]), 8)[:, 0].tolist() == [7, 9999]
    assert store.stream.mapped == 2
    found = store.gather(np.arange(5000), 16)
    np.testing.assert_array_equal(found[:, [0, 8]], np.arange(10_000).reshape(-1, 2))
    assert store.stream.mapped <= POOL.most


def test_the_pool_keeps_what_is_used_and_frees_what_is_gone(tmp_path: Path) -> None:
    pool = Pool(3)
    files = []
    for number in range(6):
        path = tmp_path / str(number)
        path.write_bytes(bytes([number]) * 100)
        files.append(MappedFile(path, 100, pool))
    kept = files[0].bytes()
    for file in files[1:]:
        files[0].bytes()  # used again and again: it stays
        assert file.bytes()[99] == int(file.path.name)
        assert len(pool) <= 3
        assert files[0].content is kept  # mapped once
    for file in files[1:] + files[1:]:
        file.bytes()
    assert not files[0].mapped
    assert kept.sum() == 0  # an array outlives its file's place in the pool
    del files, file
    assert len(pool) == 0
    (tmp_path / "1").write_bytes(b"")
    with pytest.raises(OSError, match="0 bytes now, 100 when it was opened"):
        MappedFile(tmp_path / "1", 100, pool).bytes()


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_AS binds on Linux")
def test_files_beyond_the_address_space_take_turns(tmp_path: Path) -> None:
    code = """
import resource, sys
from pathlib import Path
from mixloop.trainer.sources.memory_map import MappedFile, Pool
files = []
for number in range(8):
    path = Path(sys.argv[1]) / str(number)
    with path.open("wb") as stream:
        stream.write(bytes([number]))
        stream.truncate(2**30)
    files.append(MappedFile(path, 2**30, Pool(100) if not files else files[0].pool))
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 7 * 2**29, resource.RLIM_INFINITY))
print([int(file.bytes()[0]) for file in files * 2], len(files[0].pool))
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert done.stdout.split("]")[0] == str([*range(8), *range(8)])[:-1]
    assert int(done.stdout.split("]")[1]) <= 3


def test_many_threads_read_through_a_small_pool(tmp_path: Path) -> None:
    parts = [np.full(50, number, np.uint16) for number in range(40)]
    stream = stream_of(tmp_path, parts, Pool(2))
    samples = np.random.default_rng(0).permutation(200)
    with ThreadPoolExecutor(4) as threads:
        for found in threads.map(lambda _: stream.gather(samples, 10), range(40)):
            np.testing.assert_array_equal(found, np.repeat(samples // 5, 10).reshape(-1, 10))


def test_a_thousand_sources_open_no_file(tmp_path: Path) -> None:
    data = tokens(64).tobytes()
    info = StoreInfo(64, 1, "uint16", 1000, "t", "f", EOS)
    for number in range(1000):
        folder = tmp_path / f"s{number}"
        folder.mkdir()
        (folder / "tokens.bin").write_bytes(data)
        (folder / "store.json").write_text(json.dumps(info.to_json()))
    sources = {f"s{n}": {"path": tmp_path / f"s{n}"} for n in range(1000)}
    job = Job.model_validate(
        {"run": "r", "dir": tmp_path, "budget": 100, "sources": sources,
         "settings": {"sequence_length": 8}}
    )  # fmt: skip
    stores = open_stores(job)
    assert sum(store.stream.mapped for store in stores.values()) == 0
    before = sum(1 for _ in Path("/dev/fd").iterdir())
    found = [store.gather(np.array([7]), 8) for store in stores.values()]
    assert (np.concatenate(found) == tokens(64)[56:]).all()
    assert sum(store.stream.mapped for store in stores.values()) == 1000
    assert sum(1 for _ in Path("/dev/fd").iterdir()) <= before + 8  # of others; a map needs none


# --- prepared stores -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    texts = [f"the quick brown fox number {n} jumps over a lazy dog" for n in range(200)]
    return train_tokenizer(texts, tmp_path_factory.mktemp("tokenizer") / "t", 300)


def text_file(path: Path, lines: range) -> Path:
    path.write_text("".join(json.dumps({"text": f"fox number {n}, a dog"}) + "\n" for n in lines))
    return path


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


# --- formats of others ---------------------------------------------------------------------------

DOCUMENTS = [tokens(n, n) for n in (7, 30, 1, 64, 12)]
WHOLE = np.concatenate(DOCUMENTS)


def make(kind: str, folder: Path) -> Path:
    if kind == "megatron":
        write_megatron(folder / "corpus_text_document", DOCUMENTS)
        return folder / "corpus_text_document"
    if kind == "datatrove":
        write_datatrove(folder / "ds", {"00000": DOCUMENTS[:2], "00001": DOCUMENTS[2:]})
        return folder / "ds"
    write_arrow(folder / "arrow", [one.tolist() for one in DOCUMENTS])
    return folder / "arrow"


@pytest.mark.parametrize("kind", ["megatron", "datatrove", "arrow"])
def test_foreign_sources_are_read_in_place(kind: str, tmp_path: Path) -> None:
    path = make(kind, tmp_path)
    store = open_source(path)
    assert store.info.format == kind
    assert store.info.tokens == len(WHOLE)
    assert store.info.documents == len(DOCUMENTS)
    samples = np.arange(store.samples(10))
    expected = WHOLE[: len(samples) * 10].reshape(-1, 10)
    np.testing.assert_array_equal(store.gather(samples, 10), expected)
    again = source_info(path, {"format": kind})
    assert again == store.info
    assert open_source(path, {"eos_id": 5}).info.eos_id == 5


@pytest.mark.parametrize("kind", ["megatron", "datatrove", "arrow"])
def test_another_content_is_another_fingerprint(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = tmp_path / "1", tmp_path / "2"
    one.mkdir()
    two.mkdir()
    first = open_source(make(kind, one)).info
    changed = [*DOCUMENTS[:-1], DOCUMENTS[-1] + 1]
    monkeypatch.setitem(make.__globals__, "DOCUMENTS", changed)
    assert open_source(make(kind, two)).info.fingerprint != first.fingerprint


def test_rows_of_one_length_and_wide_ids(tmp_path: Path) -> None:
    rows = np.arange(60).reshape(6, 10) + 100_000
    write_arrow(tmp_path / "rows", rows.tolist())
    np.testing.assert_array_equal(open_source(tmp_path / "rows").gather(np.arange(6), 10), rows)
    write_megatron(tmp_path / "wide", [one + 100_000 for one in map(np.int64, DOCUMENTS)], code=4)
    found = open_source(tmp_path / "wide.bin").gather(np.array([0]), 5)[0]
    np.testing.assert_array_equal(found, WHOLE[:5].astype(np.int64) + 100_000)


def damage(path: Path, what: str) -> None:
    if what == "cut index":
        file = path.with_name(f"{path.name}.idx")
        file.write_bytes(file.read_bytes()[:40])
    elif what == "no index magic":
        path.with_name(f"{path.name}.idx").write_bytes(b"x" * 100)
    elif what == "cut data":
        file = path.with_name(f"{path.name}.bin")
        file.write_bytes(file.read_bytes()[:-2])
    elif what == "cut ds":
        file = path / "00001.ds"
        file.write_bytes(file.read_bytes()[:-2])
    elif what == "odd ds":
        file = path / "00001.ds"
        file.write_bytes(file.read_bytes()[:-1])
    elif what == "no metadata":
        (path / "00000.ds.metadata").unlink()
    elif what == "no state":
        (path / "state.json").write_text("{}")
    else:
        for file in path.glob("*.arrow"):
            file.write_bytes(b"x" * 64)


@pytest.mark.parametrize(
    ("kind", "what", "said"),
    [
        ("megatron", "cut index", "cut short"),
        ("megatron", "no index magic", "not a Megatron index"),
        ("megatron", "cut data", "bytes where"),
        ("datatrove", "cut ds", "its index says"),
        ("datatrove", "odd ds", "no whole number"),
        ("datatrove", "no metadata", "give dtype"),
        ("arrow", "no state", "not a dataset's state"),
        ("arrow", "no arrow", "not an arrow stream"),
    ],
)
def test_what_is_damaged_is_said_in_one_line(
    kind: str, what: str, said: str, tmp_path: Path
) -> None:
    path = make(kind, tmp_path)
    damage(path, what)
    with pytest.raises(JobError) as caught:
        open_source(path)
    assert said in str(caught.value)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["megatron", "datatrove", "arrow"])
def test_the_whole_of_a_foreign_source_is_verified(kind: str, tmp_path: Path) -> None:
    path = make(kind, tmp_path)
    assert verify_source(path) == []
    if kind == "megatron":
        file, at = path.with_name(f"{path.name}.idx"), 34 + 4  # the second sequence's length
    elif kind == "datatrove":
        file, at = path / "00001.ds.index", 6  # the first document's end, beyond the second's
    else:
        (file,) = path.glob("*.arrow")
        ends = np.cumsum([0, *map(len, DOCUMENTS)]).astype("<i4").tobytes()
        at = file.read_bytes().index(ends) + 6  # likewise
    data = bytearray(file.read_bytes())
    data[at] ^= 3
    file.write_bytes(data)
    assert open_source(path).info.tokens == len(WHOLE)  # not seen at the start
    (found,) = verify_source(path)
    assert str(file) in found


def test_an_index_that_is_cut_or_of_numbers_is_refused(tmp_path: Path) -> None:
    path = make("datatrove", tmp_path)
    index = path / "00000.ds.index"
    index.write_bytes(index.read_bytes()[:-3])
    with pytest.raises(JobError, match="no whole number of ends"):
        open_source(path)
    path = make("megatron", tmp_path)
    index = path.with_name(f"{path.name}.idx")
    data = bytearray(index.read_bytes())
    data[17] = 7
    index.write_bytes(data)
    with pytest.raises(JobError, match="token type float32"):
        open_source(path)


def test_datatrove_folders_in_folders(tmp_path: Path) -> None:
    (tmp_path / "ds").mkdir()
    write_datatrove(tmp_path / "ds" / "b", {"0": DOCUMENTS[2:]})
    write_datatrove(tmp_path / "ds" / "a", {"0": DOCUMENTS[:2]})
    store = open_source(tmp_path / "ds")
    np.testing.assert_array_equal(store.stream.read(0, store.info.tokens), WHOLE)


@pytest.mark.parametrize("kind", ["list", "large_list", "fixed"])
def test_lists_of_every_kind_in_several_batches(kind: str, tmp_path: Path) -> None:
    """Batches cut from longer ones, whose rows don't begin where their memory does."""
    import pyarrow as pa

    rows = [list(range(n, n + 4)) for n in range(0, 80, 4)]
    types = {
        "list": pa.list_(pa.uint16()),
        "large_list": pa.large_list(pa.uint16()),
        "fixed": pa.list_(pa.uint16(), 4),
    }
    table = pa.table({"other": ["x"] * 20, "ids": pa.array(rows, types[kind])})
    with pa.ipc.new_stream(tmp_path / "data.arrow", table.schema) as writer:
        for part in table.slice(3).to_batches(max_chunksize=6):
            writer.write_batch(part)
    (tmp_path / "state.json").write_text('{"_data_files": [{"filename": "data.arrow"}]}')
    store = open_source(tmp_path, {"column": "ids"})
    assert store.info.documents == 17
    assert store.stream.dtype == np.uint16
    np.testing.assert_array_equal(store.gather(np.arange(6), 11), np.arange(12, 78).reshape(6, 11))
    assert verify_source(tmp_path, {"column": "ids"}) == []


def test_arrow_that_cannot_be_read_in_place_is_refused(tmp_path: Path) -> None:
    import pyarrow as pa

    (tmp_path / "state.json").write_text('{"_data_files": [{"filename": "data.arrow"}]}')
    table = pa.table({"input_ids": [[1] * 500, [2] * 500]})
    packed = pa.ipc.IpcWriteOptions(compression="lz4")
    with pa.ipc.new_stream(tmp_path / "data.arrow", table.schema, options=packed) as writer:
        writer.write_table(table)
    with pytest.raises(JobError, match="compressed"):
        open_source(tmp_path)
    (tmp_path / "data.arrow").unlink()
    with pytest.raises(JobError, match="No such file"):
        open_source(tmp_path)


def test_a_dataset_of_splits_asks_for_one(tmp_path: Path) -> None:
    from datasets import Dataset, DatasetDict

    split = Dataset.from_dict({"input_ids": [[1, 2, 3]]})
    DatasetDict({"train": split, "test": split}).save_to_disk(tmp_path / "d")
    with pytest.raises(JobError, match="name the folder of one"):
        open_source(tmp_path / "d")
    assert open_source(tmp_path / "d" / "train").info.tokens == 3


def test_text_and_strangers_are_sent_to_prepare(tmp_path: Path) -> None:
    from datasets import Dataset

    Dataset.from_dict({"text": ["a", "b"]}).save_to_disk(tmp_path / "text")
    with pytest.raises(JobError, match="mixloop prepare"):
        open_source(tmp_path / "text")
    (tmp_path / "folder").mkdir()
    with pytest.raises(JobError, match="none of the formats"):
        open_source(tmp_path / "folder")
    with pytest.raises(JobError, match="not an option of megatron"):
        open_source(make("megatron", tmp_path), {"column": "x"})
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "store.json").write_text("{}")
    with pytest.raises(JobError, match="eos_id: not an option of store"):
        source_info(tmp_path / "store", {"eos_id": 3})


def test_rows_that_an_index_picks_come_in_its_order(tmp_path: Path) -> None:
    from datasets import Dataset

    shuffled = Dataset.from_dict({"input_ids": [[n] for n in range(9)]}).shuffle(seed=1)
    shuffled.save_to_disk(tmp_path / "shuffled")
    store = open_source(tmp_path / "shuffled")
    assert store.gather(np.arange(9), 1)[:, 0].tolist() == [r[0] for r in shuffled["input_ids"]]


# --- documents in windows ------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=30))
def test_attention_stays_within_documents(row: list[int]) -> None:
    import torch

    ids = np.array([row])
    documents, positions = document_ids(ids, EOS), position_ids(ids, EOS)
    for function, expected in ((document_ids, documents), (position_ids, positions)):
        found = function(torch.tensor([row]), EOS)
        assert found.dtype == torch.int32
        np.testing.assert_array_equal(found.numpy(), expected)
    mask = document_mask(torch.from_numpy(documents))[0, 0].numpy()
    allowed = document_mask_mod(torch.from_numpy(documents))
    place = torch.arange(len(row))
    flexible = allowed(torch.tensor(0), torch.tensor(0), place[:, None], place[None, :])
    np.testing.assert_array_equal(flexible.numpy(), mask)
    for query in range(len(row)):
        begin = max((i + 1 for i in range(query) if row[i] == EOS), default=0)
        assert positions[0, query] == query - begin
        assert mask[query].tolist() == [begin <= key <= query for key in range(len(row))]


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


# --- a run ---------------------------------------------------------------------------------------

MODEL = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """run.yaml with one source of every format, all of the same documents."""
    from datasets import Dataset

    random = np.random.default_rng(0)
    texts = [" ".join(random.choice(["a", "loop", "of", "data"], 30)) for _ in range(40)]
    tokenizer = train_tokenizer(texts, tmp_path / "tokenizer", 280)
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"text": t}) for t in texts))
    info = prepare([str(tmp_path / "a.jsonl")], tmp_path / "own", str(tokenizer), shard_size=500)
    own = Store.open(tmp_path / "own")
    ids = own.stream.read(0, own.info.tokens)
    documents = np.split(ids, np.flatnonzero(ids == info.eos_id)[:-1] + 1)
    write_megatron(tmp_path / "meg", documents)
    write_datatrove(tmp_path / "ds", {"0": documents[:9], "1": documents[9:]})
    Dataset.from_dict({"ids": [d.tolist() for d in documents]}).save_to_disk(tmp_path / "arrow")
    eos = {"eos_id": info.eos_id}
    config = {
        "run": {"id": "formats", "dir": "run"},
        "budget": 16 * 4 * 10,
        "sources": {
            "own": {"path": "own"},
            "meg": {"path": "meg", **eos},
            "ds": {"path": "ds", **eos},
            "arrow": {"path": "arrow", "column": "ids", **eos},
        },
        "evals": {"benchmarks": {"mmlu": {"items": 2}}},
        "policy": {"use": "static"},
        "trainer": {
            "tokenizer": "tokenizer",
            "model": MODEL,
            "sequence_length": 16,
            "micro_batch": 4,
            "document_mask": True,
            "device": "cpu",
            "precision": "fp32",
            "threads": 1,
        },
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config))
    return tmp_path / "run.yaml"


def test_a_run_on_sources_of_all_formats(run: Path) -> None:
    shown = CliRunner().invoke(app, ["check", str(run), "--json"])
    assert shown.exit_code == 0, shown.output
    sources = json.loads(shown.stdout)["sources"]
    formats = {name: source["format"] for name, source in sources.items()}
    assert formats == {"own": "store", "meg": "megatron", "ds": "datatrove", "arrow": "arrow"}
    assert len({source["unique_tokens"] for source in sources.values()}) == 1
    verified = CliRunner().invoke(app, ["verify", str(run), "--json"])
    assert json.loads(verified.stdout) == {
        str(run.parent / path): [] for path in ("own", "meg", "ds", "arrow")
    }
    job = job_of(load_config(run))
    losses = []
    for name, masked in (("run", True), ("other", False)):
        settings = job.settings.model_copy(update={"document_mask": masked})
        one = job.model_copy(update={"dir": run.parent / name, "settings": settings})
        assert train(one) == 0
        status = read_status(RunPaths(one.dir).status).value
        assert status is not None
        assert status.loss is not None
        assert {source.tokens for source in status.sources.values()} == {16 * 10}
        losses.append(status.loss)
    assert losses[0] != losses[1]


def test_what_is_wrong_with_foreign_sources_is_said_at_the_start(run: Path) -> None:
    config = yaml.safe_load(run.read_text())

    def refused(section: str, key: str, value: Any) -> str:
        changed = json.loads(json.dumps(config))
        place = changed["sources"].get(section, changed["trainer"])
        place.pop(key) if value is None else place.update({key: value})
        run.write_text(yaml.safe_dump(changed))
        with pytest.raises(BadInput) as caught:
            check_run(run)
        return str(caught.value)

    assert "give sources.ds.eos_id" in refused("ds", "eos_id", None)
    assert "sources.meg ends documents with 7" in refused("meg", "eos_id", 7)
    assert "sources.arrow.path" in refused("arrow", "column", "input_ids")
    assert "not an option of megatron" in refused("meg", "dtype", "uint16")
    own = run.parent / "own" / "tokens-00001.bin"
    own.write_bytes(own.read_bytes()[:-2])
    assert "prepare again" in refused("trainer", "document_mask", True)
    done = CliRunner().invoke(app, ["verify", str(run.parent / "own")])
    assert done.exit_code == 1
    assert own.name in done.output


def test_negative_ids_are_no_tokens(run: Path) -> None:
    write_megatron(run.parent / "meg", [np.array([1, 2, -3] * 40)], code=4)
    with pytest.raises(BadInput, match="holds the id -3"):
        check_run(run)
