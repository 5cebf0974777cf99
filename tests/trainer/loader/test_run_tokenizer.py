"""What a checkpoint carries so that it can be scored, and what a model is built by."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mixloop.trainer.config import JobError
from mixloop.trainer.loader import MixtureLoader
from mixloop.trainer.prepare import prepare
from mixloop.trainer.run import SingleProcess
from mixloop.trainer.sources import inspect_tokenizer, train_tokenizer

TEXT = "a loop mixes what a model reads; " * 50


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_tokenizer([TEXT], tmp_path_factory.mktemp("made") / "tokenizer", 270)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, tokenizer: Path) -> Path:
    folder = tmp_path_factory.mktemp("stores")
    (folder / "web.txt").write_text(TEXT)
    prepare([str(folder / "web.txt")], folder / "web", str(tokenizer))
    return folder / "web"


def make(folder: Path, source: Path, **options: Any) -> MixtureLoader:
    values = {"run": "r", "budget": 640, "sequence_length": 8, "micro_batch": 2}
    return MixtureLoader(folder / "run", sources={"web": source}, **(values | options))


def weights(folder: Path) -> Path:
    folder.mkdir()
    (folder / "model.safetensors").touch()
    return folder


def test_a_model_is_built_by_the_sources_tokenizer(
    tmp_path: Path, store: Path, tokenizer: Path
) -> None:
    loader, facts = make(tmp_path, store), inspect_tokenizer(tokenizer)
    assert (loader.vocab_size, loader.eos_token_id) == (facts.vocab_size, facts.eos_id)


def test_the_tokenizer_goes_beside_weights_that_lack_one(
    tmp_path: Path, store: Path, tokenizer: Path
) -> None:
    bare, own = weights(tmp_path / "bare"), weights(tmp_path / "own")
    (own / "tokenizer.json").write_text("its own")
    (nothing := tmp_path / "nothing").mkdir()
    with make(tmp_path, store) as loader:
        next(loader)
        assert all(loader.mark_checkpoint(folder) for folder in (bare, own, nothing))
    original = (tokenizer / "tokenizer.json").read_bytes()
    assert (bare / "tokenizer.json").read_bytes() == original
    assert inspect_tokenizer(bare) == inspect_tokenizer(tokenizer)
    assert (own / "tokenizer.json").read_text() == "its own"
    assert [path.name for path in nothing.iterdir()] == ["mixloop.json"]


def test_it_is_written_where_it_is_asked_for(tmp_path: Path, store: Path, tokenizer: Path) -> None:
    make(tmp_path, store).save_tokenizer(tmp_path / "export")
    saved = tmp_path / "export" / "tokenizer.json"
    assert saved.read_bytes() == (tokenizer / "tokenizer.json").read_bytes()
    make(tmp_path, store, rank=1, world=2, peers=SingleProcess()).save_tokenizer(tmp_path / "no")
    assert not (tmp_path / "no").exists()


def test_a_checkpoint_without_one_is_told_once_and_marked_all_the_same(
    tmp_path: Path, windows: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    source = windows(tmp_path / "web", 0, 20, 8)  # says that it has one
    with make(tmp_path, source) as loader:
        next(loader)
        for number in range(3):
            assert loader.mark_checkpoint(weights(tmp_path / f"checkpoint-{number}"))
        with pytest.raises(JobError, match=rf"^tokenizer {source}.*: no tokenizer\.json there$"):
            loader.save_tokenizer(tmp_path / "export")
    [told] = [line for line in capsys.readouterr().err.splitlines() if "can't be scored" in line]
    assert told.startswith(f"mixloop: {tmp_path / 'checkpoint-0'}: can't be scored: tokenizer ")
