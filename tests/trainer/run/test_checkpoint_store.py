"""Checkpoints are whole or absent; which ones go, and which stay."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mixloop.contract import FileEntry, Manifest, OrderInForce
from mixloop.trainer.run import checkpoint_store


def manifest(step: int, files: dict[str, FileEntry]) -> Manifest:
    return Manifest(
        run="r", step=step, sample=step * 8, tokens=step * 64, phase="stable",
        in_force=OrderInForce(0, 0, 0, 0, {"a": 1.0}), sources={}, incarnation=1,
        sequence_length=8, quantum=8, files=files,
    )  # fmt: skip


def save(folder: Path, step: int, text: str = "weights") -> Path:
    def write(into: Path) -> None:
        (into / "model").mkdir()
        (into / "model" / "data.bin").write_text(text)

    return checkpoint_store.save(folder, step, write, lambda files: manifest(step, files))


def test_checkpoints_are_whole_or_absent(tmp_path: Path) -> None:
    folder = save(tmp_path, 12)
    assert folder.name == "step-00000012"
    assert checkpoint_store.fault(folder) is None
    assert (folder / "model" / "data.bin").stat().st_mode & 0o777 == 0o644
    assert save(tmp_path, 12, "others") == folder  # the one that is there stays
    assert (folder / "model" / "data.bin").read_text() == "weights"

    def fails(into: Path) -> None:
        (into / "half").write_text("x")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        checkpoint_store.save(tmp_path, 13, fails, lambda files: manifest(13, files))
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000012"]


def test_broken_checkpoints_are_skipped_with_a_word(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4, 5):
        save(tmp_path, step)
    (tmp_path / "step-00000005" / "manifest.json").write_text("{")
    (tmp_path / "step-00000004" / "model" / "data.bin").unlink()
    os.truncate(tmp_path / "step-00000003" / "model" / "data.bin", 2)
    (tmp_path / "step-9").mkdir()
    said: list[str] = []
    found = checkpoint_store.newest(tmp_path, said.append)
    assert found is not None
    assert (found[0].name, found[1].step) == ("step-00000002", 2)
    assert [text.split(": ", 1)[1] for text in said] == [
        "no readable manifest.json",
        "model/data.bin is missing",
        "model/data.bin has 2 bytes, its manifest says 7",
    ]
    assert save(tmp_path, 3, "anew").joinpath("model/data.bin").read_text() == "anew"
    assert checkpoint_store.newest(tmp_path / "none") is None


def test_retirement_spares_the_newest_and_the_held(tmp_path: Path) -> None:
    for step in range(1, 7):
        save(tmp_path, step)
    assert checkpoint_store.retire(tmp_path, None, frozenset(), 6) == []
    assert checkpoint_store.retire(tmp_path, 2, frozenset({1, 3}), 6) == [2, 4]
    assert list(checkpoint_store.list_steps(tmp_path)) == [1, 3, 5, 6]
    (tmp_path / ".writing-step-00000007-1").mkdir()
    checkpoint_store.sweep(tmp_path)
    assert len(list(tmp_path.iterdir())) == 4


def test_retirement_counts_only_the_sound_up_to_the_one_just_saved(tmp_path: Path) -> None:
    for step in (900, 1000, 1020, 1050, 1100, 1150):
        save(tmp_path, step)
    for step in (1020, 1100):
        (tmp_path / checkpoint_store.folder_name(step) / "manifest.json").unlink()
    assert checkpoint_store.retire(tmp_path, 1, frozenset(), 1050) == [900, 1000]
    assert list(checkpoint_store.list_steps(tmp_path)) == [1020, 1050, 1100, 1150]


def test_only_a_missing_folder_has_no_checkpoints(tmp_path: Path) -> None:
    assert checkpoint_store.list_steps(tmp_path / "none") == {}
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError):
        checkpoint_store.list_steps(tmp_path / "file")


def test_a_mount_without_modes_takes_checkpoints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, mode: int) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(Path, "chmod", refuse)
    assert checkpoint_store.fault(save(tmp_path, 1)) is None
