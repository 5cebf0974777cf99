"""``python small_disk.py FOLDER``, in a mount namespace of its own: a run on a disk that fills up.

The run folder is a tmpfs of one megabyte. The real command runs beside the played trainer; while it
is stopped a checkpoint is left and every byte of the disk is taken, so that what it has to do next
can't be done. Then there is room again. Also: a start on the full disk, and on one that is mounted
read-only. Prints JSON.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import random_kills  # beside this file, which is where Python looks first

from mixloop.contract import RunPaths
from mixloop.controller.config import load_config
from mixloop.controller.journal import Journal

crash_points, must = random_kills.crash_points, random_kills.must
played = crash_points.played_run.played
BUDGET = 8_000


def main() -> None:
    folder = Path(sys.argv[1])
    worker = Path(__file__).with_name("formula_worker.py")
    path = crash_points.played_run.make_run(
        folder,
        budget=BUDGET,
        evals={
            "benchmarks": {"gsm8k": {"data": "packages"}},
            "launcher": [sys.executable, str(worker), "{command}"],
        },
        controller={"poll": 0.05},
    )
    config = load_config(path)
    paths = RunPaths(config.run.dir)
    paths.dir.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(paths.dir)], check=True)
    log = folder / "control.log"
    trainer = played.FileTrainer(config)

    def advance(times: int) -> None:
        for _ in range(times):
            with contextlib.suppress(OSError):  # the real one trains on as well
                trainer.advance()

    advance(5)  # the first checkpoint, at step 20
    summary: dict[str, Any] = {}
    with control(path, log) as process:
        wait(lambda: decisions(paths) == 1, "the first decision")
        os.kill(process.pid, signal.SIGSTOP)
        advance(4)
        fill(paths.dir / "filler")
        os.kill(process.pid, signal.SIGCONT)
        wait(lambda: "full" in log.read_text(), "a word about the full disk")
        time.sleep(2)
        must(process.poll() is None, f"the daemon ended: {log.read_text()}")
        summary["said"] = [line for line in log.read_text().splitlines() if "trouble" in line]
        (paths.dir / "filler").unlink()
        wait(lambda: decisions(paths) == 2, "the decision that had to wait")
        process.send_signal(signal.SIGTERM)
        must(process.wait(60) == 130, "it did not stop when told to")
    fill(paths.dir / "filler")
    summary["start_full"] = refused(path)
    (paths.dir / "filler").unlink()
    subprocess.run(["mount", "-o", "remount,ro", str(paths.dir)], check=True)
    summary["start_readonly"] = refused(path)
    subprocess.run(["mount", "-o", "remount,rw", str(paths.dir)], check=True)
    with control(path, log) as process:
        deadline = time.monotonic() + 240
        while process.poll() is None and time.monotonic() < deadline:
            advance(1)
            time.sleep(0.3)
        must(process.poll() == 0, f"the run did not end: {log.read_text()[-500:]}")
    play = crash_points.Play.__new__(crash_points.Play)
    play.paths, play.config, play.asked = paths, config, []
    play.said = log.read_text().splitlines()
    play.steps, play.budget, play.stranger = crash_points.STEPS, BUDGET, False
    play.strange, play.refusals, play.unsent = set(), False, True
    with contextlib.closing(Journal(paths.journal)) as journal:
        for check in ("work", "orders", "requests", "outbox", "said"):
            getattr(play, f"_check_{check}")(journal)
        summary["decisions"] = journal.value("SELECT COUNT(*) FROM decisions")
    print(json.dumps(summary))  # noqa: T201


@contextlib.contextmanager
def control(path: Path, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "mixloop.cli.app", "control", str(path)]
    with log.open("ab") as stream:
        process = subprocess.Popen(command, stdout=stream, stderr=stream)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def refused(path: Path) -> str:
    """What a start says that can't be; one line, and the exit code of bad input."""
    command = [sys.executable, "-m", "mixloop.cli.app", "control", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    must(done.returncode == 2, f"exit code {done.returncode}: {done.stderr}")
    must(done.stderr.count("\n") == 1, f"more than a line: {done.stderr}")
    return done.stderr.strip()


def decisions(paths: RunPaths) -> int:
    if not paths.journal.exists():
        return 0
    with contextlib.closing(Journal(paths.journal)) as journal:
        return int(journal.value("SELECT COUNT(*) FROM decisions"))


def fill(path: Path) -> None:
    """Take every byte that is left."""
    with path.open("wb", buffering=0) as stream:
        for size in (65536, 4096, 1):
            with contextlib.suppress(OSError):
                while True:
                    stream.write(b"\0" * size)


def wait(until: Callable[[], bool], what: str, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not until():
        must(time.monotonic() < deadline, f"no {what} within {seconds:g} s")
        time.sleep(0.1)


if __name__ == "__main__":
    main()
