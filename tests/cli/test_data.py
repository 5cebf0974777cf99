"""`mixloop prepare`: what it reads, what it says, and the ids around documents."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import Result
from typer.testing import CliRunner

from mixloop.cli.app import app
from mixloop.common.errors import BadInput
from mixloop.trainer.batches import end_of_text
from mixloop.trainer.config import JobError
from mixloop.trainer.sources import Store, load_raw, read_header, train_tokenizer

TEXTS = ["the first page", "a second page", "and the last one"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A dataset repository as the hub's client leaves it, and a tokenizer."""
    train_tokenizer(TEXTS * 9, tmp_path / "tokenizer", 280)
    config = tmp_path / "tokenizer" / "tokenizer_config.json"
    raw = json.loads(config.read_text())
    config.write_text(json.dumps(raw | {"bos_token": "t"}))  # another id than that of EOS
    data = tmp_path / "data"
    (data / ".cache").mkdir(parents=True)
    (data / ".cache" / "README.md").write_text("an old card")
    (data / "README.md").write_text("# A card")
    lines = "".join(json.dumps({"text": text}) + "\n" for text in TEXTS)
    (data / "train-00000-of-00001.json").write_text(lines)
    (data / "test-00000-of-00001.json").write_text('{"text": "a TEST item"}\n')
    return tmp_path


def run(folder: Path, *arguments: str, out: str = "out") -> Result:
    options = ["--out", str(folder / out), "--tokenizer", str(folder / "tokenizer")]
    return CliRunner().invoke(app, ["prepare", *arguments, *options, "--workers", "1"])


def stored(folder: Path, out: str = "out") -> list[int]:
    store = Store.open(folder / out)
    return [int(token) for token in store.stream.read(0, store.info.tokens)]


def ids(folder: Path, before: list[int], behind: list[int]) -> list[int]:
    raw = load_raw(folder / "tokenizer")
    return [one for text in TEXTS for one in [*before, *raw.encode(text).ids, *behind]]


def test_a_dry_run_lists_every_file_and_makes_nothing(folder: Path) -> None:
    done = CliRunner().invoke(app, ["prepare", str(folder / "data"), "--dry-run", "--json"])
    assert done.exit_code == 0
    listed = json.loads(done.stdout)
    assert [Path(one["location"]).name for one in listed["taken"]] == ["train-00000-of-00001.json"]
    assert listed["taken"][0]["format"] == "jsonl"
    assert listed["taken"][0]["split"] == "train"
    why = {Path(one["location"]).name: one["why"] for one in listed["left"]}
    assert why == {
        ".cache": "hidden",
        "README.md": "about the data",
        "test-00000-of-00001.json": "split test",
    }
    shown = CliRunner().invoke(app, ["prepare", str(folder / "data"), "--dry-run"]).stdout
    assert "reads  " in shown
    assert "(split test)" in shown
    done = run(folder, str(folder / "data"), "--split", "test", "--dry-run")
    assert "test-00000" in done.stdout.splitlines()[0]
    assert not (folder / "out").exists()


def test_a_run_says_what_it_leaves(folder: Path) -> None:
    done = run(folder, str(folder / "data"))
    assert done.exit_code == 0
    (said,) = done.stderr.splitlines()
    assert said.startswith("reads 1 files, leaves 3 (")
    assert "1 split test" in said
    assert stored(folder) == ids(folder, [], [0])


def test_ids_around_documents_are_chosen_and_recorded(folder: Path) -> None:
    bos = load_raw(folder / "tokenizer").token_to_id("t")
    choices: list[tuple[list[str], list[int], list[int]]] = [
        ([], [], [0]),
        (["--bos"], [bos], [0]),
        (["--bos", "--no-eos"], [bos], []),
        (["--no-eos"], [], []),
    ]
    for number, (options, before, behind) in enumerate(choices):
        name = str(number)
        assert run(folder, str(folder / "data"), *options, out=name).exit_code == 0
        assert stored(folder, name) == ids(folder, before, behind)
        header = read_header(folder / name)
        assert header.bos_id == (bos if before else -1)
        assert header.eos_id == (0 if behind else -1)
        # what is appended has the same around it
        assert run(folder, str(folder / "data"), "--append", out=name).exit_code == 0
        assert stored(folder, name) == 2 * ids(folder, before, behind)
    refused = run(folder, str(folder / "data"), "--append", "--bos", out="0")
    assert "bos: the store that is appended to was made without it" in str(refused.exception)
    with pytest.raises(JobError, match=r"sources.a was prepared without EOS"):
        end_of_text({"a": Store.open(folder / "3")})


def test_a_tokenizer_without_bos_is_told(folder: Path) -> None:
    config = folder / "tokenizer" / "tokenizer_config.json"
    config.write_text(json.dumps({"eos_token": "<|endoftext|>"}))
    refused = run(folder, str(folder / "data"), "--bos")
    assert isinstance(refused.exception, BadInput)
    assert "no bos_token" in str(refused.exception)


def test_a_tokenizer_without_eos_goes_where_none_is_wanted(folder: Path) -> None:
    (folder / "tokenizer" / "tokenizer_config.json").write_text("{}")
    for options in ([], ["--eos"]):
        refused = run(folder, str(folder / "data"), *options)
        assert isinstance(refused.exception, BadInput)
        assert "no eos_token with an id (tokenizer_config.json); --no-eos" in str(refused.exception)
    assert run(folder, str(folder / "data"), "--no-eos").exit_code == 0
    assert stored(folder) == ids(folder, [], [])
    assert read_header(folder / "out").eos_id == -1
    assert run(folder, str(folder / "data"), "--append").exit_code == 0
    rows = folder / "ids.jsonl"
    rows.write_text('{"input_ids": [5, 6]}\n')
    done = run(folder, str(rows), "--ids-key", "input_ids", out="rows")
    assert done.exit_code == 0
    assert stored(folder, "rows") == [5, 6]


def test_a_set_that_is_read_in_part_is_told(folder: Path) -> None:
    file = folder / "data" / "train-00000-of-00001.json"
    part = file.rename(folder / "c4.00000-of-01024.json")
    for options in ([], ["--dry-run"]):
        (said,) = run(folder, str(part), *options).stderr.splitlines()
        assert said == f"reads sets of files in part: {folder}/c4.*-of-01024.json: 1 of 1,024"
    listed = json.loads(run(folder, str(part), "--dry-run", "--json").stdout)
    assert listed["incomplete"] == [f"{folder}/c4.*-of-01024.json: 1 of 1,024"]


@pytest.mark.parametrize("kind", [pa.list_(pa.int32()), pa.list_(pa.int64(), 4)])
def test_token_ids_of_parquet_become_a_store(folder: Path, kind: Any) -> None:
    rows = [[5, 6, 7, 0], [8, 9, 10, 0]]
    table = pa.table({"input_ids": pa.array(rows, kind), "n": [1, 2]})
    pq.write_table(table, folder / "a.parquet")
    file = str(folder / "a.parquet")
    assert run(folder, file, "--ids-key", "input_ids").exit_code == 0
    assert stored(folder) == [5, 6, 7, 0, 8, 9, 10, 0]
    header = read_header(folder / "out")
    assert (header.documents, header.eos_id) == (2, 0)
    assert run(folder, file, "--ids-key", "input_ids", "--bos", "--eos", out="two").exit_code == 0
    bos = read_header(folder / "two").bos_id
    assert stored(folder, "two") == [bos, 5, 6, 7, 0, bos, 8, 9, 10, 0]
    pq.write_table(pa.table({"input_ids": [[5], [4_000_000]]}), folder / "a.parquet")
    refused = run(folder, file, "--ids-key", "input_ids", out="three")
    assert "a.parquet, row 2: the id 4000000 is none of the tokenizer's" in str(refused.exception)
    pq.write_table(pa.table({"input_ids": [[5], [4]]}), folder / "a.parquet")
    run(folder, file, "--ids-key", "input_ids", out="four")
    assert read_header(folder / "four").eos_id == -1
    assert "no column 'ids'" in str(run(folder, file, "--ids-key", "ids", out="five").exception)


def test_bad_records_stop_or_are_counted(folder: Path) -> None:
    file = folder / "a.jsonl"
    rows = [*TEXTS, None, 3]
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in rows) + "{\n")
    refused = run(folder, str(file))
    assert isinstance(refused.exception, BadInput)
    assert f"{file}, line 4: 'text' is null" in str(refused.exception)
    done = run(folder, str(file), "--on-error", "skip", "--json")
    assert done.exit_code == 0
    assert json.loads(done.stdout)["skipped"] == {"null": 1, "not text": 1, "not JSON": 1}
    assert "left out 3 bad records: 1 null, 1 not text, 1 not JSON" in done.stderr
    assert stored(folder) == ids(folder, [], [0])
    refused = run(folder, str(file), "--on-error", "skip", "--max-errors", "2", out="two")
    assert "line 6: not JSON" in str(refused.exception)
    assert "more than --max-errors 2" in str(refused.exception)
    assert not (folder / "two").exists()
    assert "neither stop nor skip" in str(run(folder, str(file), "--on-error", "go").exception)


def test_what_is_replaced_is_told(folder: Path) -> None:
    file = folder / "a.txt"
    file.write_text("one")
    run(folder, str(file))
    file.write_text("two")
    done = run(folder, str(file), "--overwrite")
    assert done.exit_code == 0
    (aside,) = folder.glob(".out.replaced-*")
    assert f"kept for runs that read it: {aside};" in done.stderr
    assert np.fromfile(aside / "tokens.bin", "<u2").tolist() != stored(folder)


def test_what_is_missing_is_told(folder: Path) -> None:
    done = CliRunner().invoke(app, ["prepare", str(folder / "data")])
    assert str(done.exception) == "--out: missing; give it a value"
