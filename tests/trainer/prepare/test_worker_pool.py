"""Workers and scratch folders go with their parent, and a death is told as what it was."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from mixloop.trainer.prepare import prepare
from mixloop.trainer.prepare.scratch import scratch_folder
from mixloop.trainer.sources import read_header, train_tokenizer

TEXT = "the quick brown fox number 1984 jumps over a lazy dog. " * 2_000
SCRIPT = """
import sys
from pathlib import Path
from mixloop.trainer.prepare import prepare
if __name__ == "__main__" or "unguarded" in sys.argv:
    prepare(["a.jsonl"], Path("out"), "tokenizer", workers=2)
"""


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    train_tokenizer([TEXT[:5_000]], tmp_path / "tokenizer", 300)
    row = json.dumps({"text": TEXT}) + "\n"
    (tmp_path / "a.jsonl").write_text(row * 700)  # 77 MB: half a minute's work
    (tmp_path / "script.py").write_text(SCRIPT)
    return tmp_path


def started(corpus: Path, *command: str) -> tuple[subprocess.Popen[bytes], list[psutil.Process]]:
    """A run with its two workers at work; what it says goes to `said.txt`."""
    with (corpus / "said.txt").open("w") as said:
        process = subprocess.Popen(command, cwd=corpus, stderr=said)

    def workers() -> list[psutil.Process]:
        children = psutil.Process(process.pid).children()
        return [one for one in children if "spawn_main" in " ".join(one.cmdline())]

    wait_for(lambda: len(workers()) == 2 and all(busy(one) for one in workers()))
    return process, workers()


def busy(process: psutil.Process) -> bool:
    return sum(process.cpu_times()[:2]) > 1


def wait_for(happened: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.05)


def gone(workers: list[psutil.Process]) -> bool:
    return not any(one.is_running() and one.status() != psutil.STATUS_ZOMBIE for one in workers)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends children with their parent")
def test_a_killed_run_leaves_no_workers_and_its_scratch_to_the_next(corpus: Path) -> None:
    process, workers = started(corpus, sys.executable, "script.py")
    process.kill()
    process.wait()
    wait_for(lambda: gone(workers), 10)
    assert len(list(corpus.glob(".out.tmp-*"))) == 1
    (corpus / "b.txt").write_text("short")
    prepare([str(corpus / "b.txt")], corpus / "out", str(corpus / "tokenizer"))
    assert list(corpus.glob(".out.*")) == []


def test_a_run_that_is_told_to_end_clears_up(corpus: Path) -> None:
    command = [sys.executable, "-m", "mixloop.cli.app", "prepare", "a.jsonl", "--out", "out"]
    process, workers = started(corpus, *command, "--tokenizer", "tokenizer", "--workers", "2")
    process.terminate()
    assert process.wait(30) == 130
    wait_for(lambda: gone(workers), 10)
    assert list(corpus.glob(".out.*")) == []
    assert not (corpus / "out").exists()


def test_a_worker_that_dies_is_told_as_what_it_died_of(corpus: Path) -> None:
    process, workers = started(corpus, sys.executable, "script.py")
    workers[0].kill()
    process.wait(60)
    last = (corpus / "said.txt").read_text().splitlines()[-1]
    assert "a tokenising worker was killed (SIGKILL)" in last
    assert list(corpus.glob(".out.*")) == []


def test_workers_that_die_in_the_middle_of_an_answer_are_not_waited_for(corpus: Path) -> None:
    """Of what they had begun to say the rest never comes: that hung."""
    process, workers = started(corpus, sys.executable, "script.py")
    parent = psutil.Process(process.pid)
    parent.suspend()  # nobody reads their answers, which are larger than a pipe
    before = -1.0
    while (spent := sum(sum(worker.cpu_times()[:2]) for worker in workers)) > before:
        before = spent
        time.sleep(0.5)
    for worker in workers:
        worker.kill()
    parent.resume()
    process.wait(60)
    last = (corpus / "said.txt").read_text().splitlines()[-1]
    assert "a tokenising worker was killed (SIGKILL)" in last


def test_a_full_disk_is_told_in_a_line(corpus: Path) -> None:
    program = (
        "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (10**6, 10**6));"
        "from mixloop.cli.app import main; main()"
    )
    for workers in ("1", "2"):
        options = ["--out", "out", "--tokenizer", "tokenizer", "--workers", workers]
        done = subprocess.run(
            [sys.executable, "-c", program, "prepare", "a.jsonl", *options],
            cwd=corpus,
            capture_output=True,
            text=True,
            timeout=90,
            check=False,
        )
        said = done.stderr.strip().splitlines()[-1]
        assert said == "error: out: File too large; no token store is made"
        assert "Traceback" not in done.stderr
        assert done.returncode == 2
        assert not list(corpus.glob(".out*"))


def test_a_script_without_a_guard_is_told(corpus: Path) -> None:
    done = subprocess.run(
        [sys.executable, "script.py", "unguarded"],
        cwd=corpus,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "could not start (exit code 1" in done.stderr.splitlines()[-1]
    assert 'if __name__ == "__main__"' in done.stderr.splitlines()[-1]


def test_scratch_of_a_living_process_is_left_alone(tmp_path: Path) -> None:
    with scratch_folder(tmp_path / "out") as one, scratch_folder(tmp_path / "out") as two:
        assert one.is_dir()
        assert two.is_dir()
        with scratch_folder(tmp_path / "ou") as other:
            assert other.is_dir()
    (tmp_path / ".out.tmp-1-abc").mkdir()
    with scratch_folder(tmp_path / "out"):
        assert len(list(tmp_path.iterdir())) == 1
    assert list(tmp_path.iterdir()) == []


def test_whoever_is_second_does_not_replace_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_tokenizer([TEXT[:5_000]], tmp_path / "tokenizer", 300)
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text(name * 9)
    out, tokenizer = tmp_path / "out", str(tmp_path / "tokenizer")

    def other(_: object) -> None:
        if not out.exists():
            prepare([str(tmp_path / "b.txt")], out, tokenizer)

    with pytest.raises(ValueError, match="already there"):
        prepare([str(tmp_path / "a.txt")], out, tokenizer, progress=other)
    assert read_header(out).documents == 1
