"""A checkpoint is read once: what happens to its files later changes nothing, during it is told."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from mixloop.evals.checkpoints import CheckpointError
from mixloop.evals.engine import load_checkpoint

Score = Callable[[Any], list[float]]


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    return shutil.copytree(made, tmp_path / "checkpoint")


def overwrite(file: Path) -> None:
    """As a trainer does that saves into the same folder: the same file gets other content."""
    from safetensors.torch import load_file, save

    other = save({name: -tensor for name, tensor in load_file(file).items()}, {"format": "pt"})
    assert len(other) == file.stat().st_size
    with file.open("r+b") as opened:
        opened.write(other)


def test_a_checkpoint_overwritten_in_place_changes_no_score(folder: Path, score: Score) -> None:
    lm = load_checkpoint(folder)
    before = score(lm)
    overwrite(folder / "model.safetensors")
    lm.forget()
    assert score(lm) == before
    assert score(load_checkpoint(folder)) != before


def test_a_checkpoint_cut_short_while_it_is_scored_changes_no_score(
    folder: Path, score: Score
) -> None:
    lm = load_checkpoint(folder)
    before = score(lm)
    os.truncate(folder / "model.safetensors", 100)
    lm.forget()
    assert score(lm) == before


@contextmanager
def touched(file: Path, seconds: float) -> Iterator[None]:
    """Somebody writes the file meanwhile, for so long."""
    done = threading.Event()

    def write() -> None:
        end = time.monotonic() + seconds
        while not done.is_set() and time.monotonic() < end:
            os.utime(file)
            done.wait(0.002)

    thread = threading.Thread(target=write)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def test_what_changes_while_it_is_read_is_told(folder: Path) -> None:
    said = r"model\.safetensors changed while it was read, 3 times"
    with (
        touched(folder / "model.safetensors", 60),
        pytest.raises(CheckpointError, match=said),
    ):
        load_checkpoint(folder)


def test_what_changed_is_read_again(
    folder: Path, made: Path, score: Score, caplog: pytest.LogCaptureFixture
) -> None:
    expected = score(load_checkpoint(made))
    with touched(folder / "config.json", 0.6):
        lm = load_checkpoint(folder)
    assert score(lm) == expected
    assert "config.json changed while it was read" in caplog.text


def test_files_that_are_not_read_may_come_and_go(folder: Path) -> None:
    (folder / "trainer_state.json").write_text("{}")
    with touched(folder / "trainer_state.json", 60):
        load_checkpoint(folder)


@pytest.mark.parametrize(
    ("gone", "said"),
    [
        ("*", "no config.json: the folder is gone, or no checkpoint"),
        ("tokenizer*", r"no tokenizer.json: .* tokenizer/ folder, as they are\)$"),
        ("*.safetensors", "weights are read from safetensors alone"),
    ],
)
def test_what_is_not_there_is_told_whole(gone: str, said: str, folder: Path) -> None:
    for file in folder.glob(gone):
        file.unlink()
    with pytest.raises(CheckpointError, match=said) as refused:
        load_checkpoint(folder)
    assert "\n" not in str(refused.value)
