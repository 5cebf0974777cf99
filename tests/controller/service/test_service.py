"""`mixloop run`: trainer and controller end with it, however it ends."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import yaml

from mixloop.common.process import handling
from mixloop.contract import RunPaths, read_status
from mixloop.controller.service import service
from mixloop.trainer.prepare import prepare
from mixloop.trainer.run import checkpoint_store
from mixloop.trainer.sources import train_tokenizer


@pytest.fixture
def run_file(tmp_path: Path) -> Path:
    """A run that doesn't end by itself."""
    text = " ".join(f"word{number}" for number in range(400))
    (tmp_path / "web.txt").write_text(text)
    tokenizer = train_tokenizer([text], tmp_path / "tokenizer", 300)
    prepare([str(tmp_path / "web.txt")], tmp_path / "web", str(tokenizer))
    model = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    data = {
        "run": {"id": "r", "dir": "run"},
        "budget": "1T",
        "sources": {"web": {"path": "web", "weight": 1.0}},
        "policy": {"use": "static"},
        "tracking": {"enabled": False},
        "trainer": {
            "sequence_length": 16, "micro_batch": 2, "threads": 1, "device": "cpu",
            "status_every": 1, "model": {**model, "num_attention_heads": 1},
        },
    }  # fmt: skip
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(data))
    return path


def wait(until: Callable[[], object], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not until():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@contextlib.contextmanager
def running(run_file: Path) -> Iterator[tuple[psutil.Popen, list[psutil.Process]]]:
    """The command, whose trainer trains, and its children."""
    status = RunPaths(run_file.parent / "run").status

    def trains() -> bool:
        now = read_status(status).value
        return now is not None and now.step >= 3

    arguments = [sys.executable, "-m", "mixloop.cli.app", "run", str(run_file)]
    with handling([signal.SIGHUP], signal.SIG_DFL):  # these tests may run under nohup
        started = psutil.Popen(arguments, stdout=subprocess.DEVNULL)
    with started as process:
        children: list[psutil.Process] = []
        try:
            wait(trains)
            children = process.children()
            yield process, children
        finally:
            for left in [process, *children]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    left.kill()


# a shell that goes tells its jobs, and the kernel the terminal's: SIGHUP comes several times
@pytest.mark.parametrize(
    ("number", "times", "code"), [(signal.SIGHUP, 20, 130), (signal.SIGKILL, 1, -9)]
)
def test_what_ends_a_run_leaves_a_checkpoint_and_no_process(
    run_file: Path, number: int, times: int, code: int
) -> None:
    with running(run_file) as (process, children):
        assert len(children) == 2
        for _ in range(times):
            process.send_signal(number)
            time.sleep(0.01)
        assert process.wait(60) == code
        psutil.wait_procs(children, timeout=30)
        assert not [child for child in children if child.is_running()]
    folders = checkpoint_store.list_steps(RunPaths(run_file.parent / "run").checkpoints).values()
    assert [checkpoint_store.fault(folder) for folder in folders] == [None]


def test_a_controller_that_is_told_often_says_that_it_was_interrupted(run_file: Path) -> None:
    arguments = [sys.executable, "-m", "mixloop.cli.app", "control", str(run_file)]
    with handling([signal.SIGHUP], signal.SIG_DFL):
        started = subprocess.Popen(arguments, stdout=subprocess.PIPE)
    with started as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith(b"controlling run")
        for _ in range(20):
            process.send_signal(signal.SIGHUP)
            time.sleep(0.01)
        assert process.wait(60) == 130


def test_a_controller_that_lost_a_signal_is_asked_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(service, "ASK_AGAIN", 0.1)
    deaf = """
import signal, time
heard = []
signal.signal(signal.SIGTERM, lambda *_: heard.append(1))
print("up", flush=True)
while len(heard) < 2:
    time.sleep(0.01)
"""
    with subprocess.Popen([sys.executable, "-c", deaf], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        service._end({"controller": process, "trainer": process})
        assert process.poll() == 0
