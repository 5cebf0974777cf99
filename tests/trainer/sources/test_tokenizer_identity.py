"""What a tokenizer is: its highest id, and itself whichever version saved it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from mixloop.trainer.config import Job, JobError
from mixloop.trainer.prepare import prepare
from mixloop.trainer.sources import (
    Store,
    fingerprint,
    inspect_tokenizer,
    open_stores,
    read_header,
    train_tokenizer,
)

TEXTS = ["the quick brown fox jumps over a lazy dog"] * 9


def rewrite(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    file = folder / "tokenizer.json"
    raw = json.loads(file.read_text("utf-8"))
    change(raw)
    file.write_text(json.dumps(raw), "utf-8")


def text_file(folder: Path) -> str:
    (folder / "a.txt").write_text(TEXTS[0] * 9)
    return str(folder / "a.txt")


@pytest.mark.parametrize(("moved", "dtype"), [(3, "uint16"), (70_000, "uint32")])
def test_the_size_of_a_vocabulary_with_holes_is_its_highest_id(
    tmp_path: Path, moved: int, dtype: str
) -> None:
    folder = train_tokenizer(TEXTS, tmp_path / "t", 280)

    def move(raw: dict[str, Any]) -> None:
        vocab = raw["model"]["vocab"]
        last = max(vocab, key=vocab.__getitem__)
        vocab[last] += moved

    before = inspect_tokenizer(folder).vocab_size
    rewrite(folder, move)
    facts = inspect_tokenizer(folder)
    assert facts.vocab_size == before + moved
    highest = before + moved - 1
    word = Tokenizer.from_file(str(folder / "tokenizer.json")).decode([highest])
    (tmp_path / "a.txt").write_text(word * 50)
    info = prepare([str(tmp_path / "a.txt")], tmp_path / "out", str(folder))
    assert (info.vocab_size, info.dtype) == (before + moved, dtype)
    assert int(Store.open(tmp_path / "out").stream.read(0, info.tokens).max()) == highest


def old_merges(raw: dict[str, Any]) -> None:
    raw["model"]["merges"] = [" ".join(pair) for pair in raw["model"]["merges"]]


def no_defaults(raw: dict[str, Any]) -> None:
    for name in ("ignore_merges", "byte_fallback", "fuse_unk", "dropout", "unk_token"):
        raw["model"].pop(name, None)
    raw["pre_tokenizer"].pop("use_regex", None)


def in_a_sequence(raw: dict[str, Any]) -> None:
    raw["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [raw["pre_tokenizer"]]}
    raw["normalizer"] = {"type": "Sequence", "normalizers": []}


def other_order(raw: dict[str, Any]) -> None:
    vocab = raw["model"]["vocab"]
    raw["model"]["vocab"] = dict(sorted(vocab.items()))
    raw["pre_tokenizer"]["trim_offsets"] = not raw["pre_tokenizer"]["trim_offsets"]


def what_makes_no_ids(raw: dict[str, Any]) -> None:
    raw["truncation"] = {
        "direction": "Right",
        "max_length": 8,
        "strategy": "LongestFirst",
        "stride": 0,
    }
    raw["post_processor"] = json.loads(
        processors.TemplateProcessing(single="$A", special_tokens=[]).__getstate__()
    )
    raw["decoder"] = None
    raw["model"]["dropout"] = 0.1


@pytest.mark.parametrize(
    "change", [old_merges, no_defaults, in_a_sequence, other_order, what_makes_no_ids]
)
def test_one_tokenizer_saved_by_two_versions_is_one(
    tmp_path: Path, change: Callable[[dict[str, Any]], None]
) -> None:
    one = train_tokenizer(TEXTS, tmp_path / "one", 290)
    two = train_tokenizer(TEXTS, tmp_path / "two", 290)
    rewrite(two, change)
    assert inspect_tokenizer(two).fingerprint == inspect_tokenizer(one).fingerprint
    text = text_file(tmp_path)
    prepare([text], tmp_path / "a", str(one))
    prepare([text], tmp_path / "b", str(two))
    prepare([text], tmp_path / "a", str(two), append=True)
    assert (tmp_path / "a" / "tokens.bin").read_bytes() == (
        tmp_path / "b" / "tokens.bin"
    ).read_bytes()


def test_other_ids_are_another_tokenizer(tmp_path: Path) -> None:
    base = inspect_tokenizer(train_tokenizer(TEXTS, tmp_path / "one", 290)).fingerprint
    changes: list[Callable[[dict[str, Any]], Any]] = [
        lambda raw: raw["pre_tokenizer"].update(add_prefix_space=True),
        lambda raw: raw["model"]["merges"].pop(),
        lambda raw: raw["model"].update(ignore_merges=True),
        lambda raw: raw.update(normalizer={"type": "Lowercase"}),
    ]
    for number, change in enumerate(changes):
        folder = train_tokenizer(TEXTS, tmp_path / str(number), 290)
        rewrite(folder, change)
        assert inspect_tokenizer(folder).fingerprint != base


def metaspace(folder: Path) -> Path:
    tokenizer = Tokenizer(
        models.BPE({"<s>": 0, "▁": 1, "a": 2, "▁a": 3}, [("▁", "a")], unk_token="<s>")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.decoder = decoders.Metaspace()
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"eos_token": "<s>"}')
    return folder


def test_the_older_form_of_metaspace_is_the_same(tmp_path: Path) -> None:
    one, two = metaspace(tmp_path / "one"), metaspace(tmp_path / "two")
    old = {"type": "Metaspace", "replacement": "▁", "add_prefix_space": True, "str_rep": "▁"}
    rewrite(two, lambda raw: raw.update(pre_tokenizer=old))
    assert inspect_tokenizer(one).fingerprint == inspect_tokenizer(two).fingerprint


def test_a_header_that_hashed_otherwise_is_compared_by_the_files(tmp_path: Path) -> None:
    folder = train_tokenizer(TEXTS, tmp_path / "t", 290)
    text = text_file(tmp_path)
    for name in ("a", "b"):
        prepare([text], tmp_path / name, str(folder))
    header = tmp_path / "b" / "store.json"
    raw = json.loads(header.read_text())
    raw["tokenizer"] = "sha256:as an earlier version hashed it"
    digest = hashlib.sha256((tmp_path / "b" / "tokens.bin").read_bytes()).hexdigest()
    raw["fingerprint"] = fingerprint(raw["tokenizer"], raw["dtype"], digest)
    header.write_text(json.dumps(raw))
    sources = {name: {"path": tmp_path / name, "weight": 0.5} for name in ("a", "b")}
    job = Job.model_validate(
        {
            "run": "r",
            "dir": tmp_path / "run",
            "sources": sources,
            "budget": 1000,
            "settings": {"sequence_length": 8, "micro_batch": 2},
        }
    )
    assert set(open_stores(job)) == {"a", "b"}
    prepare([text], tmp_path / "b", str(folder), append=True)
    assert read_header(tmp_path / "b").documents == 2
    other = train_tokenizer(["zebras and okapis " * 40], tmp_path / "other", 280)
    prepare([text], tmp_path / "b", str(other), overwrite=True)
    with pytest.raises(JobError, match=r"sources.b: made with another tokenizer"):
        open_stores(job)
