"""Sources of every format are read in place; what is wrong with one is said in one line."""

from __future__ import annotations

import json
import struct
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
from mixloop.controller.config import job_of, load_config
from mixloop.controller.service import check_run
from mixloop.trainer.batches import document_ids, document_mask, position_ids
from mixloop.trainer.batches.document_mask import document_mask_mod
from mixloop.trainer.config import JobError
from mixloop.trainer.prepare import prepare
from mixloop.trainer.sources import (
    Store,
    open_source,
    source_info,
    train_tokenizer,
    verify_source,
)
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
