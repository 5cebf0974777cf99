"""The probe tells apart tokenizers that tokenise differently, and no others."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from mixloop.common.tokenizing import (
    RECORD,
    TokenProbe,
    exact_config,
    read_probe,
    read_tokenizer_file,
    take_probe,
)

DIGITS = r" ?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+|\s+"


@pytest.fixture(scope="module")
def trained() -> str:
    """A byte-level BPE as its file has it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        special_tokens=["<eos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = ["In 1997 there were 12,345 things; don't stop.", "def f(x):\n    return  x  # Straße"]
    tokenizer.train_from_iterator(texts * 50, trainer)
    return tokenizer.to_str()


def probe(tokenizer: Tokenizer) -> TokenProbe:
    return take_probe(lambda text: tokenizer.encode(text, add_special_tokens=False).ids)


def byte_level(tokenizer: Tokenizer, **options: bool) -> None:
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(**options)


OTHERS: dict[str, Callable[[Tokenizer], None]] = {
    "gpt-2's pattern": lambda t: byte_level(t, add_prefix_space=False, use_regex=True),
    "a leading space": lambda t: byte_level(t, add_prefix_space=True, use_regex=False),
    "digits": lambda t: setattr(
        t,
        "pre_tokenizer",
        pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(DIGITS), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        ),
    ),
    "lower case": lambda t: setattr(t, "normalizer", normalizers.Lowercase()),
    "composed": lambda t: setattr(t, "normalizer", normalizers.NFC()),
    "compatible": lambda t: setattr(t, "normalizer", normalizers.NFKC()),
    "stripped": lambda t: setattr(t, "normalizer", normalizers.Strip()),
    "added tokens": lambda t: t.add_tokens(["there were"]) and None,
}


@pytest.mark.parametrize("kind", OTHERS)
def test_another_tokenizer_is_told(kind: str, trained: str) -> None:
    other = Tokenizer.from_str(trained)
    OTHERS[kind](other)
    difference = probe(other).difference(probe(Tokenizer.from_str(trained)))
    assert difference is not None
    assert "of the probe text" in difference


def test_one_tokenizer_is_one_whatever_its_file_says_besides(trained: str, tmp_path: Path) -> None:
    content = json.loads(trained)
    content["truncation"] = {
        "direction": "Right",
        "max_length": 4,
        "strategy": "LongestFirst",
        "stride": 0,
    }
    content["padding"] = {
        "strategy": {"Fixed": 9},
        "direction": "Left",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "<eos>",
    }
    content["model"]["dropout"] = 0.5
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    mine = probe(read_tokenizer_file(tmp_path))
    assert mine.difference(probe(Tokenizer.from_str(trained))) is None
    (tmp_path / RECORD).write_text(json.dumps(mine.to_json()))
    assert read_probe(tmp_path) == mine


@pytest.mark.parametrize("content", ["", "[]", '{"version": 2, "sha256": "", "ids": []}', "{}"])
def test_a_record_of_another_kind_is_none(content: str, tmp_path: Path) -> None:
    assert read_probe(tmp_path) is None
    (tmp_path / RECORD).write_text(content)
    assert read_probe(tmp_path) is None


def test_a_file_that_is_no_tokenizer_is_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text('{"model": {}}')
    with pytest.raises(ValueError, match=r"tokenizer\.json holds no tokenizer: ") as told:
        read_tokenizer_file(tmp_path)
    assert "\n" not in str(told.value)


def test_the_config_names_what_changes_no_id(trained: str, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(trained)
    named = {
        "tokenizer_class": "GPT2Tokenizer",
        "auto_map": {"AutoTokenizer": ["x.Y", None]},
        "add_prefix_space": True,
        "eos_token": {"content": "<eos>", "lstrip": True},
        "pad_token": "<pad>",
        "model_max_length": 512,
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(named))
    (tmp_path / "special_tokens_map.json").write_text('{"eos_token": "d", "bos_token": "e"}')
    assert exact_config(tmp_path, read_tokenizer_file(tmp_path)) == {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "e",
        "eos_token": "<eos>",
        "model_max_length": 512,
    }
