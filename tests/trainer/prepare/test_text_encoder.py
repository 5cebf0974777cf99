"""Text is text: no control ids from it, nothing left to chance, nothing lost in silence."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from mixloop.trainer.prepare import prepare
from mixloop.trainer.prepare.text_encoder import Changes, TextEncoder
from mixloop.trainer.sources import load_raw

MARKS = ("<|endoftext|>", "<|im_start|>", "</s>")
CORPUS = ["the quick brown fox </s> jumps over <|im_start|> a lazy dog"] * 9


def save(folder: Path, tokenizer: Tokenizer, **config: Any) -> Path:
    folder.mkdir(parents=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": MARKS[0]} | config))
    return folder


def change(folder: Path, change: Any) -> None:
    raw = json.loads((folder / "tokenizer.json").read_text())
    change(raw)
    (folder / "tokenizer.json").write_text(json.dumps(raw))


def byte_level(marks: Sequence[str] = MARKS) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=list(marks), initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer=trainer)
    return tokenizer


def unigram() -> Tokenizer:
    """Its special tokens are among the words, with the best of all scores, as T5's."""
    pieces = [(mark, 0.0) for mark in MARKS] + [("<unk>", 0.0)]
    letters = sorted({letter for text in CORPUS for letter in text.replace(" ", "▁")})
    tokenizer = Tokenizer(models.Unigram([*pieces, *((one, -5.0) for one in letters)], unk_id=3))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.add_special_tokens(list(MARKS))
    return tokenizer


def words() -> Tokenizer:
    known = {word: at for at, word in enumerate([*MARKS, "<unk>", *CORPUS[0].split()[:2]])}
    tokenizer = Tokenizer(models.WordLevel(known, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(list(MARKS))
    return tokenizer


def plainly_added() -> Tokenizer:
    """A tokenizer whose end-of-text token was added as if it were a word."""
    tokenizer = byte_level(MARKS[1:])
    tokenizer.add_tokens([MARKS[0]])
    return tokenizer


@pytest.mark.parametrize("make", [byte_level, unigram, words, plainly_added])
def test_a_text_makes_no_control_ids(tmp_path: Path, make: Any) -> None:
    folder = save(tmp_path / "t", make())
    raw = load_raw(folder)
    control = {raw.token_to_id(mark) for mark in MARKS}
    text = f"a page: {MARKS[0]} ends a text, {MARKS[2]} too, {MARKS[1]} begins one"
    (ids,) = TextEncoder(folder).encode([text], Changes())
    assert not control & set(ids)
    if make is byte_level:
        assert raw.decode(ids, skip_special_tokens=False) == text
    (ids,) = TextEncoder(folder, parse_special=True).encode([text], Changes())
    assert control <= set(ids)
    plain = "the quick fox, jumps over it"
    (ids,) = TextEncoder(folder).encode([plain], Changes())
    assert ids == raw.encode(plain, add_special_tokens=False).ids


def test_bytes_stay_bytes_where_they_are_called_special(tmp_path: Path) -> None:
    named = ["<unk>", *MARKS, *(f"<0x{byte:02X}>" for byte in range(256))]
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=named, show_progress=False)
    tokenizer.train_from_iterator(["the fox has 0x3C legs"] * 9, trainer=trainer)
    folder = save(tmp_path / "t", tokenizer)
    changes = Changes()
    (ids,) = TextEncoder(folder).encode(["1 < 2, 北"], changes)
    signs = [tokenizer.id_to_token(at) for at in ids]
    assert "<0x3C>" in signs
    assert signs[-3:] == ["<0xE5>", "<0x8C>", "<0x97>"]
    assert not changes.unknown


def test_special_tokens_of_any_look(tmp_path: Path) -> None:
    tokenizer = byte_level()
    tokenizer.add_special_tokens(
        [AddedToken("sop", normalized=True), AddedToken("[gMASK]", single_word=True, lstrip=True)]
    )
    folder = save(tmp_path / "t", tokenizer)
    (ids,) = TextEncoder(folder).encode(["a sop [gMASK] of bread, sop"], Changes())
    assert tokenizer.decode(ids) == "a sop [gMASK] of bread, sop"
    assert not {tokenizer.token_to_id("sop"), tokenizer.token_to_id("[gMASK]")} & set(ids)


def test_what_ends_a_text_by_name_may_be_a_newline(tmp_path: Path) -> None:
    tokenizer = byte_level()
    folder = save(tmp_path / "t", tokenizer, eos_token="Ċ", pad_token="e")
    (ids,) = TextEncoder(folder).encode(["one\nthe end"], Changes())
    assert tokenizer.decode(ids) == "one\nthe end"


def test_added_words_stay_words(tmp_path: Path) -> None:
    tokenizer = byte_level()
    tokenizer.add_tokens(["    ", "§12"])
    folder = save(tmp_path / "t", tokenizer)
    (ids,) = TextEncoder(folder).encode(["x    §12 y"], Changes())
    assert {tokenizer.token_to_id("    "), tokenizer.token_to_id("§12")} <= set(ids)


def test_marks_that_are_not_special_are_told(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from mixloop.cli.app import app

    tokenizer = byte_level()
    tokenizer.add_tokens(["<think>", "<|fim_middle|>", "§12"])
    folder = save(tmp_path / "t", tokenizer)
    (tmp_path / "a.jsonl").write_text('{"text": "a <think> and §12, <think>"}\n')
    command = ["prepare", str(tmp_path / "a.jsonl"), "--tokenizer", str(folder), "--workers", "1"]
    done = CliRunner().invoke(app, [*command, "--out", str(tmp_path / "out")])
    (said,) = done.stderr.splitlines()
    assert said.startswith("2 marks in texts became ids of their own")
    assert said.endswith(", such as <think>")
    asked = [*command, "--out", str(tmp_path / "two"), "--parse-special-tokens"]
    assert CliRunner().invoke(app, asked).stderr == ""


def test_documents_are_as_many_as_their_ends(tmp_path: Path) -> None:
    folder = save(tmp_path / "t", byte_level())
    (tmp_path / "a.jsonl").write_text(
        "".join(json.dumps({"text": f"{n} {MARKS[0]} {MARKS[1]}"}) + "\n" for n in range(40))
    )
    for parsed, ends in ((False, 40), (True, 80)):
        out = tmp_path / f"out{parsed}"
        info = prepare([str(tmp_path / "a.jsonl")], out, str(folder), parse_special_tokens=parsed)
        tokens = (out / "tokens.bin").read_bytes()[::2]
        assert info.documents == 40
        assert tokens.count(bytes([info.eos_id])) == ends


def test_half_surrogates_become_a_replacement_and_are_counted(tmp_path: Path) -> None:
    folder = save(tmp_path / "t", byte_level())
    changes = Changes()
    encoder = TextEncoder(folder)
    whole, half = encoder.encode(["an emoji \U0001f600", "cut \ud83d and \udc00"], changes)
    assert load_raw(folder).decode(half) == "cut \ufffd and \ufffd"
    assert load_raw(folder).decode(whole) == "an emoji \U0001f600"
    assert changes == Changes(surrogates=2)


def test_dropout_is_off(tmp_path: Path) -> None:
    folder = save(tmp_path / "t", byte_level())
    encoded = TextEncoder(folder).encode([CORPUS[0]], Changes())
    change(folder, lambda raw: raw["model"].update(dropout=0.5))
    for _ in range(9):
        assert TextEncoder(folder).encode([CORPUS[0]], Changes()) == encoded


def bare_bpe(**options: Any) -> Tokenizer:
    """A BPE without bytes: what it hasn't seen has no token."""
    tokenizer = Tokenizer(models.BPE(**options))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    unknown = [options["unk_token"]] if options else []
    trainer = trainers.BpeTrainer(
        vocab_size=60, special_tokens=[*MARKS, *unknown], show_progress=False
    )
    tokenizer.train_from_iterator(["hello world"] * 5, trainer=trainer)
    return tokenizer


def bytes_for_the_rest() -> Tokenizer:
    tokenizer = bare_bpe()
    raw = json.loads(tokenizer.to_str())
    raw["model"]["byte_fallback"] = True
    for byte in range(256):
        raw["model"]["vocab"][f"<0x{byte:02X}>"] = len(raw["model"]["vocab"])
    return Tokenizer.from_str(json.dumps(raw))


@pytest.mark.parametrize("options", [{}, {"unk_token": "<unk>"}])
def test_characters_without_a_token_are_counted(tmp_path: Path, options: Any) -> None:
    folder = save(tmp_path / "t", bare_bpe(**options))
    changes = Changes()
    TextEncoder(folder).encode(["hello wörld 北京", "all is known: no", "held"], changes)
    assert changes.unknown == len("ö北京" + "aisknn:n")
    assert {"ö", "北", "京", ":"} <= changes.which


@pytest.mark.parametrize("make", [byte_level, bytes_for_the_rest])
def test_nothing_is_lost_where_there_are_bytes(tmp_path: Path, make: Any) -> None:
    encoder = TextEncoder(save(tmp_path / "t", make()))
    changes = Changes()
    encoder.encode(["hello wörld 北京 привет"], changes)
    assert encoder.complete
    assert changes == Changes()


def test_a_byte_that_is_missing_is_missed(tmp_path: Path) -> None:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.train_from_iterator(
        ["hello world"], trainer=trainers.BpeTrainer(special_tokens=[*MARKS], show_progress=False)
    )
    changes = Changes()
    TextEncoder(save(tmp_path / "t", tokenizer)).encode(["hello wxrld"], changes)
    assert (changes.unknown, changes.which) == (1, {"x"})


def test_the_command_tells_what_was_lost(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from mixloop.cli.app import app

    folder = save(tmp_path / "t", bare_bpe())
    (tmp_path / "a.jsonl").write_text('{"text": "hello w\\u00f6rld \\ud83d"}\n{"text": "hello"}\n')
    options = ["--out", str(tmp_path / "out"), "--tokenizer", str(folder), "--workers", "1"]
    done = CliRunner().invoke(app, ["prepare", str(tmp_path / "a.jsonl"), *options])
    assert done.exit_code == 0
    assert "1 half surrogates became U+FFFD" in done.stderr
    assert "2 characters are unknown to the tokenizer and lost, such as ö \ufffd" in done.stderr
