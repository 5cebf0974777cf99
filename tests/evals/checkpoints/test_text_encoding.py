"""Evaluation reads texts as training did: the file's ids, and nothing that training never saw."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mixloop.common.tokenizing import TokenProbe
from mixloop.evals import EvalSettings
from mixloop.evals.checkpoints import CheckpointError
from mixloop.evals.engine import load_checkpoint
from mixloop.evals.scoring import Scorer
from mixloop.trainer.prepare import prepare
from mixloop.trainer.sources import (
    Store,
    copy_tokenizer,
    inspect_tokenizer,
    load_raw,
    trained_probe,
)

TEXT = "In 1997 there were 12345 (of 9876) things\n\n    return x_17.y"

Score = Callable[[Any], list[float]]
WriteTokenizer = Callable[..., Path]


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    return shutil.copytree(made, tmp_path / "checkpoint")


@pytest.fixture
def trained(made: Path) -> TokenProbe:
    """What the data's store records."""
    return inspect_tokenizer(made).probe


@pytest.mark.parametrize(
    "kind",
    ["GPT2Tokenizer", "GPTNeoXTokenizer", "Qwen2Tokenizer", "LlamaTokenizerFast", "Nothing", None],
)
@pytest.mark.parametrize("model", ["llama", "qwen2"])
def test_the_file_is_taken_whatever_class_is_named(
    kind: str | None, model: str, folder: Path, made: Path, write_tokenizer: WriteTokenizer
) -> None:
    write_tokenizer(folder, kind)
    config = folder / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"model_type": model}))
    if model == "qwen2":  # its attention has biases
        from transformers import AutoConfig, AutoModelForCausalLM

        built = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
        built.save_pretrained(folder)
    expected = load_raw(made).encode(TEXT, add_special_tokens=False).ids
    assert load_checkpoint(folder).tok_encode(TEXT) == expected


def test_a_checkpoint_says_to_others_how_its_tokenizer_is_read(folder: Path, made: Path) -> None:
    from transformers import AutoTokenizer

    expected = load_raw(made).encode(TEXT, add_special_tokens=False).ids
    before = AutoTokenizer.from_pretrained(folder)
    assert before.encode(TEXT, add_special_tokens=False) != expected  # it follows the class
    copy_tokenizer(made, folder)
    assert (folder / "tokenizer.json").read_bytes() == (made / "tokenizer.json").read_bytes()
    after = AutoTokenizer.from_pretrained(folder)
    assert after.encode(TEXT, add_special_tokens=False) == expected
    assert (after.eos_token, after.bos_token) == ("<|end|>", "<|begin|>")


def test_a_special_token_without_an_id_gets_none(folder: Path) -> None:
    config = folder / "tokenizer_config.json"
    content = json.loads(config.read_text()) | {"pad_token": "[PAD]", "unk_token": {"content": "?"}}
    config.write_text(json.dumps(content))
    tokenizer = load_checkpoint(folder).tokenizer
    assert len(tokenizer) == 600
    assert tokenizer.pad_token is None
    assert tokenizer.unk_token == "?"


def resaved(folder: Path) -> None:
    """As loops do that save with transformers: the file is now what the class made of it."""
    from transformers import AutoTokenizer

    AutoTokenizer.from_pretrained(folder).save_pretrained(folder)


def test_other_ids_than_in_training_are_not_scored(
    folder: Path, trained: TokenProbe, tmp_path: Path
) -> None:
    load_checkpoint(folder, trained=trained)
    resaved(folder)
    load_checkpoint(folder)  # nobody says what it was trained on
    settings = EvalSettings.model_validate(
        {
            "benchmarks": {"gsm8k": {"data": "packages"}, "math": {"data": "packages"}},
            "trained_probe": trained.to_json(),
            "threads": 1,
        }
    )
    # as it goes to the worker
    settings = EvalSettings.model_validate_json(settings.model_dump_json())
    scorer = Scorer(settings)
    try:
        card = scorer.score(folder)
    finally:
        scorer.close()
    for benchmark in card.benchmarks.values():
        assert benchmark.status == "missing"
        assert "is not the one that the training data was tokenised with" in benchmark.reason
        assert "of the probe text is" in benchmark.reason
        assert "store's tokenizer/ folder" in benchmark.reason


def test_a_checkpoint_without_a_tokenizer_is_read_by_that_of_the_data(
    folder: Path, made: Path, trained: TokenProbe, score: Score
) -> None:
    right = score(load_checkpoint(folder, trained=trained))
    for file in folder.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(CheckpointError, match=r"can't be scored: no tokenizer\.json"):
        load_checkpoint(folder, trained=trained)
    assert score(load_checkpoint(folder, trained=trained, tokenizer=made)) == right
    other = TokenProbe("0" * 64, (5,))
    with pytest.raises(CheckpointError, match="is not the one that the training data"):
        load_checkpoint(folder, trained=other, tokenizer=made)


def test_the_datas_tokenizer_is_not_taken_for_a_model_that_lacks_its_ids(
    folder: Path, made: Path, trained: TokenProbe
) -> None:
    for file in folder.glob("tokenizer*"):
        file.unlink()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": 512}))
    told = (
        r"it carries no tokenizer, and that of the training data .* of which the model knows 512$"
    )
    with pytest.raises(CheckpointError, match=told):
        load_checkpoint(folder, trained=trained, tokenizer=made)


def test_a_record_in_the_checkpoint_is_compared_too(folder: Path, made: Path) -> None:
    copy_tokenizer(made, folder)
    load_checkpoint(folder)
    file = folder / "tokenizer.json"
    content = json.loads(file.read_text())
    content["normalizer"] = {"type": "Lowercase"}
    file.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match="recorded in the checkpoint"):
        load_checkpoint(folder)


def test_a_tokenizer_of_a_larger_model_is_told(folder: Path) -> None:
    file = folder / "tokenizer.json"
    content = json.loads(file.read_text())
    file.write_text(json.dumps(content | {"added_tokens": [*content["added_tokens"], added(900)]}))
    load_checkpoint(folder)  # a token that was added and that no text holds
    content["model"]["vocab"]["larger"] = 700
    file.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match="has ids up to 700, its model 600 of them"):
        load_checkpoint(folder)


def added(number: int) -> dict[str, Any]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": number, "content": "<|later|>", "special": True, **flags}


@pytest.mark.parametrize("template", ["<|begin|> $A", "$A <|end|>", "<|begin|> $A <|end|>"])
def test_templates_put_nothing_into_a_text(
    template: str, folder: Path, made: Path, score: Score, write_tokenizer: WriteTokenizer
) -> None:
    write_tokenizer(folder, template=template)
    lm, plain = load_checkpoint(folder), load_checkpoint(made)
    assert lm.tok_encode(TEXT) == plain.tok_encode(TEXT)
    assert score(lm) == score(plain)
    assert len(set(score(lm))) == 4


@pytest.mark.parametrize("template", ["", "<|begin|> $A", "$A <|end|>"])
def test_a_model_trained_with_bos_is_asked_as_hf_asks_it(
    template: str, folder: Path, score: Score, write_tokenizer: WriteTokenizer
) -> None:
    from lm_eval.models.huggingface import HFLM

    # a class by which hf reads the file as it is
    write_tokenizer(folder, "PreTrainedTokenizerFast", template)
    lm = load_checkpoint(folder, add_bos=True)
    hf = HFLM(
        pretrained=str(folder), device="cpu", dtype="float32", batch_size=1, add_bos_token=True
    )
    for text in (TEXT, f"<|begin|>{TEXT}"):
        assert lm.tok_encode(text) == hf.tok_encode(text)
        assert lm.tok_encode(text).count(1) == 1
    assert score(lm) == pytest.approx(score(hf), abs=1e-4)
    assert score(lm) != score(load_checkpoint(folder))


def test_an_empty_context_begins_as_documents_do(folder: Path) -> None:
    assert load_checkpoint(folder).prefix_token_id == 0  # the end of the one before
    assert load_checkpoint(folder, add_bos=True).prefix_token_id == 1


def test_bos_that_no_tokenizer_has_is_told(folder: Path) -> None:
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|end|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="its tokenizer has no bos_token"):
        load_checkpoint(folder, add_bos=True)


def test_bos_is_asked_where_documents_of_the_training_data_have_it(
    folder: Path, made: Path, trained: TokenProbe
) -> None:
    copy_tokenizer(made, folder)
    assert 1 not in load_checkpoint(folder).tok_encode(TEXT)
    record = folder / "tokenizer_probe.json"
    begins = replace(trained, begins=True)
    record.write_text(json.dumps(begins.to_json()))
    assert load_checkpoint(folder).tok_encode(TEXT)[0] == 1
    assert load_checkpoint(folder, add_bos=False).tok_encode(TEXT)[0] != 1
    # the run's data is asked before the record
    assert load_checkpoint(folder, trained=trained).tok_encode(TEXT)[0] != 1
    record.unlink()
    assert load_checkpoint(folder, trained=begins).tok_encode(TEXT)[0] == 1


def test_bos_is_part_of_what_is_measured() -> None:
    plain = EvalSettings()
    assert plain.digest() == EvalSettings(add_bos=False, device="cuda:1").digest()
    assert plain.digest() != EvalSettings(add_bos=True).digest()


@pytest.mark.parametrize("parse", [False, True])
@pytest.mark.parametrize("recorded", [False, True])
def test_special_tokens_in_a_text_are_what_they_were_in_training(
    parse: bool, recorded: bool, folder: Path, tmp_path: Path
) -> None:
    text = "<|begin|> opens and <|end|> closes a document"
    (tmp_path / "page.jsonl").write_text(json.dumps({"text": text}))
    options = {"eos": False, "parse_special_tokens": parse}
    prepare([str(tmp_path / "page.jsonl")], tmp_path / "store", str(folder), **options)
    store = Store.open(tmp_path / "store")
    trained_on = np.fromfile(tmp_path / "store" / "tokens.bin", "<u2").tolist()
    if recorded:
        copy_tokenizer(store.tokenizer, folder)
        lm = load_checkpoint(folder)
    else:
        lm = load_checkpoint(folder, trained=trained_probe([tmp_path / "store"], None))
    assert lm.tok_encode(text) == trained_on
    assert (1 in trained_on) == parse
    # a text that begins with the token's name has none of it
    begun = load_checkpoint(folder, trained=replace(store.info.probe, begins=True))
    assert begun.tok_encode(text) == (trained_on if parse else [1, *trained_on])


def test_special_tokens_are_lm_evals_where_training_is_not_known(folder: Path) -> None:
    assert 0 in load_checkpoint(folder).tok_encode("a text <|end|> and another")


def test_an_end_of_text_that_is_a_newline_by_name_splits_none(folder: Path) -> None:
    raw = load_raw(folder)
    newline = "Ċ" if raw.token_to_id("\n") is None else "\n"
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": newline}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    text = "one\n\ntwo\n\n\nthree"
    lm = load_checkpoint(folder, trained=inspect_tokenizer(folder).probe)
    assert lm.tok_encode(text) == raw.encode(text, add_special_tokens=False).ids


def test_half_surrogates_are_replaced_as_in_training(folder: Path, trained: TokenProbe) -> None:
    for lm in (load_checkpoint(folder), load_checkpoint(folder, trained=trained)):
        assert lm.tok_encode("a \ud800 b") == lm.tok_encode("a \ufffd b")


def test_checkpoints_share_a_tokenizer_where_they_read_alike(
    folder: Path, made: Path, tmp_path: Path, trained: TokenProbe
) -> None:
    copy_tokenizer(made, folder)
    folders = {
        parses: shutil.copytree(folder, tmp_path / f"parses-{parses}") for parses in (False, True)
    }
    for parses, path in folders.items():
        record = replace(trained, parses_special=parses).to_json()
        (path / "tokenizer_probe.json").write_text(json.dumps(record))
    scorer = Scorer(EvalSettings(benchmarks={}))
    first, other = scorer.load(folder), scorer.load(folders[False])
    assert first.encode is not other.encode  # the record of this folder says that ids are parsed
    assert scorer.load(folders[True]).tok_encode("<|end|>") == [0]
    plain = scorer.load(folders[False])
    assert 0 not in plain.tok_encode("<|end|>")
    again = scorer.load(shutil.copytree(folders[False], tmp_path / "again"))
    assert again.encode is plain.encode
    assert again.tokenizer is plain.tokenizer
