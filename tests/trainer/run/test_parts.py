"""Parts of the trainer: units, job files, learning rate, checkpoints, losses, deals to ranks."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mixloop.common.log import say
from mixloop.contract import FileEntry, Manifest, OrderInForce
from mixloop.trainer.batches import BatchLayout
from mixloop.trainer.config import Job, JobError, load_job
from mixloop.trainer.config.learning_rate import WarmupStableDecay
from mixloop.trainer.prepare import prepare
from mixloop.trainer.run import LossPerSource, SingleProcess, checkpoint_store
from mixloop.trainer.sources import train_tokenizer
from mixloop.trainer.train import Stop, main


def body(tmp_path: Path, **changes: Any) -> dict[str, Any]:
    sources = {"a": {"path": str(tmp_path / "a")}, "b": {"path": str(tmp_path / "b")}}
    settings = {"sequence_length": 8, "device": "cpu"}
    start: dict[str, Any] = {"run": "r", "dir": str(tmp_path / "run"), "budget": "1M"}
    return start | {"sources": sources, "settings": settings} | changes


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stores a and b, and c of another tokenizer."""
    folder = tmp_path_factory.mktemp("ready")
    (folder / "text.txt").write_text("some words to tokenise " * 20)
    for name, size in (("one", 260), ("two", 270)):
        train_tokenizer([(folder / "text.txt").read_text()], folder / name, size)
    for name, tokenizer in (("a", "one"), ("b", "one"), ("c", "two")):
        prepare([str(folder / "text.txt")], folder / name, str(folder / tokenizer))
    return folder


def sources(ready: Path, **changes: dict[str, Any]) -> dict[str, Any]:
    plain = {name: {"path": str(ready / name)} for name in ("a", "b")}
    return {name: plain.get(name, {}) | changes.get(name, {}) for name in {**plain, **changes}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sede": 1}, "sede: unknown key"),
        ({"budget": "12Q"}, "budget: '12Q' is not a token count"),
        ({"budget": 0}, "budget: the budget is 0 tokens"),
        ({"settings": {"sequence_lenght": 4}}, "settings.sequence_lenght: unknown key"),
        ({"settings": {"micro_batch": 0}}, "settings.micro_batch: .* greater than 0"),
        ({"settings": {"precision": "fp8"}}, "settings.precision: "),
        ({"settings": {"model": {"hidden_size": 7}}}, "hidden_size 7 is not a multiple"),
        ({"settings": {"warmup": "2M"}}, "warmup 2,000,000 and decay 0 tokens together exceed"),
        ({"sources": {}}, "sources: "),
        ({"sources": {"a": {"path": "none"}}}, "sources.a: none: no token store there"),
        ({"a": {"weight": 0.5}}, "sources.b: no weight though others have one"),
        ({"a": {"weight": 0.5}, "b": {"weight": 0.4}}, "weights sum to 0.9, not 1"),
        ({"a": {"weight": 1.0}, "b": {"weight": 0.5, "standby": True}}, "sources.b: weight 0.5 on"),
        ({"a": {"standby": True}, "b": {"standby": True}}, "all are standby"),
        ({"c": {}}, "sources.c: made with another tokenizer than sources.a"),
        ({"settings": {"sequence_length": 5000}}, "fewer than one sample of sequence_length 5000"),
        ({"tokenizer": "two"}, "is not the tokenizer sources.a was prepared with"),
    ],
)
def test_bad_jobs_get_one_line_and_exit_code_2(
    tmp_path: Path,
    ready: Path,
    capsys: pytest.CaptureFixture[str],
    changes: dict[str, Any],
    message: str,
) -> None:
    named = {key: value for key, value in changes.items() if key in ("a", "b", "c")}
    if "c" in named:
        named["c"] = {"path": str(ready / "c")}
    rest = {key: value for key, value in changes.items() if key not in named}
    if "tokenizer" in rest:
        rest["tokenizer"] = str(ready / rest["tokenizer"])
    made = body(tmp_path) | {"sources": sources(ready, **named)} | rest
    (tmp_path / "job.json").write_text(json.dumps(made))
    assert main([str(tmp_path / "job.json")]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert re.search(message, lines[0])
    assert not (tmp_path / "run").exists()


def test_job_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(JobError, match=r"none\.json: No such file"):
        load_job(tmp_path / "none.json")
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(JobError, match=r"bad\.json: not JSON"):
        load_job(tmp_path / "bad.json")


def test_start_weights(tmp_path: Path) -> None:
    sizes = {"a": 30, "b": 10, "c": 5}
    plain = {name: {"path": name} for name in sizes}
    free = Job.model_validate(body(tmp_path, sources=plain))
    assert free.start_weights(sizes) == {"a": 30 / 45, "b": 10 / 45, "c": 5 / 45}
    waiting = Job.model_validate(
        body(tmp_path, sources=plain | {"c": {"path": "c", "standby": True}})
    )
    assert waiting.start_weights(sizes) == {"a": 0.75, "b": 0.25, "c": 0.0}
    given = {n: {"path": n, "weight": w} for n, w in (("a", 0.1), ("b", 0.2), ("c", 0.7))}
    chosen = Job.model_validate(body(tmp_path, sources=given))
    assert chosen.start_weights(sizes) == pytest.approx({"a": 0.1, "b": 0.2, "c": 0.7})


def test_the_job_is_checked_without_torch(tmp_path: Path, ready: Path) -> None:
    (tmp_path / "job.json").write_text(json.dumps(body(tmp_path, sources=sources(ready))))
    program = (
        "import sys; from pathlib import Path\n"
        "from mixloop.trainer.run.resume import check_job\n"
        "from mixloop.trainer.config.job import load_job\n"
        "check_job(load_job(Path(sys.argv[1])))\n"
        "heavy = {'torch', 'transformers', 'datasets'} & set(sys.modules); assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path / "job.json")], check=True)


@pytest.mark.parametrize("shape", ["linear", "1-sqrt"])
def test_learning_rate(shape: Any) -> None:
    schedule = WarmupStableDecay(1.0, 0.1, budget=1000, warmup=100, decay=200, shape=shape)
    rates = [schedule.rate(at, at + 10) for at in range(0, 1000, 10)]
    assert rates[0] == pytest.approx(0.05)
    assert rates[10:80] == [1.0] * 70
    assert sorted(rates[:10]) == rates[:10]
    assert sorted(rates[80:], reverse=True) == rates[80:]
    assert 0.1 < rates[-1] < 0.13
    middle = 0.55 if shape == "linear" else 1 - 0.9 * 0.5**0.5
    assert schedule.rate(900, 900) == pytest.approx(middle)
    assert [schedule.phase(at) for at in (0, 99, 100, 799, 800, 1000)] == [
        "warmup", "warmup", "stable", "stable", "decay", "decay",
    ]  # fmt: skip
    constant = WarmupStableDecay(1.0, 0.0, budget=10, warmup=0, decay=0)
    assert (constant.rate(0, 10), constant.phase(10)) == (1.0, "stable")


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


@pytest.mark.parametrize("error", [OSError(28, "No space"), ValueError("closed file")])
def test_what_cannot_be_said_is_no_trouble(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    class Broken(io.StringIO):
        def write(self, text: str) -> int:
            raise error

    monkeypatch.setattr(sys, "stderr", Broken())
    say("unheard")


def test_every_sigterm_is_the_same_wish(
    monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    now = [100.0]
    monkeypatch.setattr("mixloop.trainer.train.time.monotonic", lambda: now[0])
    # a shell starts what runs in its background with SIGINT ignored
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    with Stop() as stop:
        for _ in range(3):
            signal.raise_signal(signal.SIGTERM)
            now[0] += 10
        assert stop.asked
        signal.raise_signal(signal.SIGINT)
        now[0] += 1
        signal.raise_signal(signal.SIGINT)  # an echo of the first
        now[0] += 1.5
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)


def test_loss_per_source_is_the_mean_over_its_sequences() -> None:
    import torch

    totals = LossPerSource(3, torch.device("cpu"))
    totals.add(np.array([0, 2, 0]), torch.tensor([1.0, 5.0, 3.0]))
    totals.add(np.array([2, 2]), torch.tensor([6.0, 7.0]))
    sums, counts = totals.take(SingleProcess())
    assert (sums.tolist(), counts.tolist()) == ([4.0, 0.0, 18.0], [2.0, 0.0, 3.0])
    assert totals.take(SingleProcess())[1].tolist() == [0.0, 0.0, 0.0]


def test_every_position_of_a_step_is_dealt_once() -> None:
    layouts = [BatchLayout(3, 2, rank, 4, 16) for rank in range(4)]
    assert layouts[0].quantum == 24
    dealt = np.concatenate([layout.positions().ravel() for layout in layouts])
    assert sorted(dealt.tolist()) == list(range(24))
    assert layouts[1].positions().tolist() == [[3, 4, 5], [15, 16, 17]]
