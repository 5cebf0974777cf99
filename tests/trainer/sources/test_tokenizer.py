"""A tokenizer goes from folder or hub into stores and checkpoints as its file is."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from mixloop.common.tokenizing import read_probe
from mixloop.trainer.prepare import prepare
from mixloop.trainer.sources import (
    Store,
    copy_tokenizer,
    inspect_tokenizer,
    load_raw,
    resolve_tokenizer,
    train_tokenizer,
    trained_probe,
)

TEXT = "In 1997 there were 12345 things\n\n    return x_17.y"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tokenizer that takes digits one by one, under a class that does not."""
    from tokenizers import Tokenizer, pre_tokenizers

    made = train_tokenizer([f"In {n} there were things" for n in range(900)], tmp_path / "t", 400)
    raw = Tokenizer.from_file(str(made / "tokenizer.json"))
    raw.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    raw.save(str(made / "tokenizer.json"))
    config = made / "tokenizer_config.json"
    content = json.loads(config.read_text()) | {"tokenizer_class": "GPT2Tokenizer"}
    config.write_text(json.dumps(content))
    return made


@pytest.fixture
def store(folder: Path, tmp_path: Path) -> Path:
    lines = [json.dumps({"text": f"{TEXT} {n}"}) for n in range(20)]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    prepare([str(tmp_path / "a.jsonl")], tmp_path / "store", str(folder))
    return tmp_path / "store"


def test_by_hub_name_it_is_the_file_of_the_hub(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    revision = "a" * 40
    cached = tmp_path / "hub" / "models--lab--tok"
    shutil.copytree(folder, cached / "snapshots" / revision)
    (cached / "snapshots" / revision / "config.json").write_text('{"model_type": "starcoder2"}')
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text(revision)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    found = resolve_tokenizer("lab/tok", tmp_path / "scratch")
    assert (found / "tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()
    with pytest.raises(ValueError, match="tokenizer lab/other: neither a folder nor a hub name"):
        resolve_tokenizer("lab/other", tmp_path / "scratch")


def test_a_store_records_its_tokenizers_ids(store: Path, folder: Path) -> None:
    opened = Store.open(store)
    assert opened.info.probe == inspect_tokenizer(folder).probe
    kept = (opened.tokenizer / "tokenizer.json").read_bytes()
    assert kept == (folder / "tokenizer.json").read_bytes()
    assert trained_probe([store], None) == opened.info.probe


def test_a_store_records_whether_documents_begin_with_a_token(
    store: Path, folder: Path, tmp_path: Path
) -> None:
    begun = tmp_path / "begun"
    prepare([str(tmp_path / "a.jsonl")], begun, str(folder), bos=True)
    assert [Store.open(path).info.probe.begins for path in (begun, store)] == [True, False]
    assert [trained_probe(paths, None).begins for paths in ([begun], [begun, store])] == [
        True,
        False,
    ]
    assert read_probe(begun / "tokenizer").begins


def test_transformers_reads_a_store_s_tokenizer_as_it_is(store: Path, folder: Path) -> None:
    from transformers import AutoTokenizer

    expected = load_raw(folder).encode(TEXT, add_special_tokens=False).ids
    loaded = AutoTokenizer.from_pretrained(store / "tokenizer")
    assert loaded.encode(TEXT, add_special_tokens=False) == expected


def test_a_checkpoint_gets_what_was_recorded(store: Path, tmp_path: Path) -> None:
    target = tmp_path / "checkpoint"
    written = copy_tokenizer(store / "tokenizer", target)
    assert sorted(file.name for file in written) == [
        "tokenizer.json",
        "tokenizer_config.json",
        "tokenizer_probe.json",
    ]
    for file in written:
        assert file.read_bytes() == (store / "tokenizer" / file.name).read_bytes()


def test_a_store_of_before_there_were_records(store: Path, folder: Path) -> None:
    header = store / "store.json"
    content = json.loads(header.read_text())
    probe = inspect_tokenizer(folder).probe
    del content["probe"]
    header.write_text(json.dumps(content))
    assert Store.open(store).info.probe is None
    # earlier versions and other tools take special tokens in a text for ids
    elsewhere = replace(probe, parses_special=True)
    assert trained_probe([store], None) == elsewhere
    shutil.rmtree(store / "tokenizer")
    assert trained_probe([store], folder) == elsewhere
    assert trained_probe([store], None) is None
    assert trained_probe([store.parent / "nothing"], None) is None


def test_a_store_records_how_special_tokens_in_a_text_were_read(
    store: Path, folder: Path, tmp_path: Path
) -> None:
    parsed, texts = tmp_path / "parsed", [str(tmp_path / "a.jsonl")]
    prepare(texts, parsed, str(folder), parse_special_tokens=True)
    probes = {path: Store.open(path).info.probe for path in (parsed, store)}
    assert [probe.parses_special for probe in probes.values()] == [True, False]
    assert trained_probe([parsed], None).parses_special
    assert not trained_probe([parsed, store], None).parses_special
    assert read_probe(parsed / "tokenizer") == probes[parsed]
    with pytest.raises(ValueError, match=r"parse_special_tokens: the store .* made with it"):
        prepare(texts, parsed, str(folder), append=True)
    with pytest.raises(ValueError, match=r"parse_special_tokens: the store .* made without it"):
        prepare(texts, store, str(folder), append=True, parse_special_tokens=True)
