"""``mixloop control`` killed with SIGKILL at random moments, again and again, under load.

``python random_kills.py --kills 500`` makes a run, starts the played trainer as a process of its
own, which trains on whatever happens, and starts and kills the real command: its own start-up, its
policy child (the real one), an evaluation worker of its own (scores by formula), every few starts
with MLflow (a real SQLite store), now and then an operator's request or a stranger's file. The last
start lives until the run has ended. Then everything that must hold is checked. Prints a JSON
summary; the exit code says whether it held.

``python random_kills.py train RUN.yaml`` is the trainer.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import yaml

from mixloop.controller import requests
from mixloop.controller.config import load_config
from mixloop.controller.journal import Journal
from mixloop.trainer.contract import Order, RunPaths, read_order, read_status, write_order

_spec = importlib.util.spec_from_file_location(
    "crash_points", Path(__file__).with_name("crash_points.py")
)
assert _spec is not None
assert _spec.loader is not None
crash_points: Any = importlib.util.module_from_spec(_spec)
sys.modules["crash_points"] = crash_points
_spec.loader.exec_module(crash_points)
must, Broken = crash_points.must, crash_points.Broken
played = crash_points.played_run.played

PACE = 0.1  # seconds between two looks of the trainer: 5 steps
EVERY = 100  # steps between checkpoints: 2 seconds
STEP_TOKENS = 80
SILENCE = 5.0  # seconds without a heartbeat that count as the trainer having stopped
FINISH = "finish"  # the file that sends the trainer to the end of its budget


def train(path: Path) -> None:
    """Advance until the budget is spent; the pace is kept whatever the controller does."""
    config = load_config(path)
    played.EVERY = EVERY
    trainer = played.FileTrainer(config)
    while True:
        if (config.run.dir / FINISH).exists():
            played.STRIDE = config.budget // STEP_TOKENS
        trainer.advance()
        status = read_status(trainer.paths.status)
        if status is not None and status.finished:
            return
        time.sleep(PACE)


class Storm:
    """One run, its trainer, and the daemons that come and go."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.chance = random.Random(seed)
        worker = Path(__file__).with_name("formula_worker.py")
        settings: dict[str, Any] = {
            "budget": 10**9 // STEP_TOKENS // EVERY * EVERY * STEP_TOKENS,
            "evals": {
                "benchmarks": {"gsm8k": {"data": "packages"}},
                "launcher": [sys.executable, str(worker), "{command}"],
            },
            "controller": {"poll": 0.05, "patience": 600},
        }
        self.plain = crash_points.played_run.make_run(folder, **settings)
        self.budget = settings["budget"]
        self.mlflow = folder / "mlflow.db"
        told = yaml.safe_load(self.plain.read_text())
        told["tracking"] = {"uri": f"sqlite:///{self.mlflow}"}
        self.tracked = folder / "run-mlflow.yaml"
        self.tracked.write_text(yaml.safe_dump(told))
        self.config = load_config(self.plain)
        self.paths = RunPaths(self.config.run.dir)
        self.paths.dir.mkdir()
        self.log = folder / "control.log"
        self.asked: list[str] = []
        self.strangers: list[bytes] = []
        self.last = (-1, time.monotonic())
        self.longest = 0.0
        self.looks = 0
        command = [sys.executable, __file__, "train", str(self.plain)]
        with (folder / "trainer.log").open("ab") as log:
            self.trainer = subprocess.Popen(command, stdout=log, stderr=log)

    def look(self) -> None:
        """The shared file is whole, and the trainer's heart beats."""
        self.looks += 1
        must(self.trainer.poll() is None, "the trainer has ended")
        status = read_status(self.paths.status)
        now = time.monotonic()
        if status is not None and status.heartbeat != self.last[0]:
            must(status.heartbeat > self.last[0], "the heartbeat went back")
            self.last = (status.heartbeat, now)
        gap = now - self.last[1]
        self.longest = max(self.longest, gap)
        must(gap < SILENCE, f"no heartbeat for {gap:.1f} s")
        try:
            data = self.paths.mixture.read_bytes()
        except FileNotFoundError:
            return
        if data in self.strangers:
            return
        names = list(self.config.sources)
        order = read_order(self.paths.mixture, run="r", sources=names, after=(0, 0))
        again = self.paths.mixture.read_bytes() in self.strangers
        must(isinstance(order, Order) or again, f"mixture.json does not parse: {order}")

    def control(self, path: Path) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "mixloop.controller.cli", "control", str(path)]
        with self.log.open("ab") as log:
            return subprocess.Popen(command, stdout=log, stderr=log)

    def kill_one(self, number: int, life: float) -> str:
        """Start a daemon and kill it. Returns how far it had come."""
        tracked = number % 10 == 9
        if number % 7 == 3:
            self._ask()
        if number % 40 == 20:
            self._strange()
        before = self.log.stat().st_size if self.log.exists() else 0
        process = self.control(self.tracked if tracked else self.plain)
        late = self.chance.random() < 0.8  # the other kills fall on its start as well
        while late and b"controlling run" not in self._said(before):
            self.look()
            must(process.poll() is None, f"the daemon ended by itself: {self._tail()}")
            time.sleep(0.02)
        until = time.monotonic() + self.chance.uniform(0, life * (4 if tracked else 1))
        while time.monotonic() < until:
            self.look()
            must(process.poll() is None, f"the daemon ended by itself: {self._tail()}")
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait()
        self.look()
        said = self._said(before)
        if b"controlling run" not in said:
            return "starting"
        return "working" if said.count(b"\n") > 1 else "started"

    def _said(self, since: int) -> bytes:
        with self.log.open("rb") as log:
            log.seek(since)
            return log.read()

    def _tail(self) -> str:
        return self.log.read_text()[-500:]

    def _ask(self) -> None:
        kind = self.chance.choice(("set", "pin", "unpin"))
        fields: dict[str, Any] = {}
        if kind == "set":
            fields = {"weights": {"code": round(self.chance.uniform(0.1, 0.3), 3)}}
        elif kind == "pin":
            fields = {"weights": {"maths": 0.18}}
        request = requests.new_request(kind, "2026-11-25T00:00:00Z", **fields)  # type: ignore[arg-type]
        requests.submit(self.paths.requests, request)
        self.asked.append(request.id)

    def _strange(self) -> None:
        status = read_status(self.paths.status)
        accepted = status.accepted if status is not None else None
        fence, generation = (accepted.fence, accepted.generation) if accepted else (0, 0)
        names = dict.fromkeys(self.config.sources, 0.0) | {"web": 0.5, "code": 0.5}
        order = Order("r", fence + 5, generation + 3, names, decision="mine", reason="by hand")
        scratch = self.paths.dir / "stranger"
        write_order(scratch, order)
        self.strangers.append(scratch.read_bytes())
        scratch.replace(self.paths.mixture)

    def finish(self) -> None:
        """The run ends, and a daemon that nobody kills tells MLflow everything."""
        (self.paths.dir / FINISH).touch()
        must(self.trainer.wait(60) == 0, "the trainer failed")
        process = self.control(self.tracked)
        must(process.wait(3600) == 0, f"the last daemon failed: {self._tail()}")

    def check(self) -> dict[str, Any]:
        """Nothing lost, nothing doubled. Returns the figures."""
        journal = Journal(self.paths.journal)
        play = crash_points.Play.__new__(crash_points.Play)
        play.paths, play.config, play.asked, play.said = self.paths, self.config, self.asked, []
        play.stranger, play.budget, play.refusals = False, self.budget, True
        play.unsent = False
        play.strange = {json.loads(data)["generation"] for data in self.strangers}
        folders = self.paths.checkpoints.iterdir()
        play.steps = sorted(int(folder.name.rpartition("-")[2]) for folder in folders)
        crash_points.ForkedChild.mlflow = True
        must(journal.value("PRAGMA integrity_check") == "ok", "the journal is damaged")
        play.said = [line for line in self.log.read_text().splitlines() if " " in line]
        for check in ("work", "orders", "requests", "outbox", "said"):
            getattr(play, f"_check_{check}")(journal)
        found = crash_points.check_mlflow(self.mlflow, self.paths.journal, play.steps)
        fence = journal.value("SELECT fence FROM lease")
        figures = {
            "checkpoints": len(play.steps),
            "decisions": journal.value("SELECT COUNT(*) FROM decisions"),
            "orders": journal.value("SELECT COUNT(*) FROM orders"),
            "applied": journal.value("SELECT COUNT(*) FROM orders WHERE applied_step NOT NULL"),
            "requests": len(self.asked),
            "strangers": len(self.strangers),
            "outbox": journal.value("SELECT COUNT(*) FROM outbox"),
            "fence": fence,
            "mlflow": found,
            "journal_bytes": self.paths.journal.stat().st_size,
            "scratch_left": len(list(self.paths.dir.rglob(".*.tmp"))),
        }
        journal.close()
        return figures


def main() -> None:
    if sys.argv[1:2] == ["train"]:
        train(Path(sys.argv[2]))
        return
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=500)
    parser.add_argument("--life", type=float, default=3.0, help="longest life in seconds")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dir", type=Path)
    options = parser.parse_args()
    os.environ |= {"OMP_NUM_THREADS": "1"}
    folder = Path(tempfile.mkdtemp(prefix="random-kills-", dir=options.dir))
    began = time.monotonic()
    storm = Storm(folder, options.seed)
    states: Counter[str] = Counter()
    summary: dict[str, Any] = {"kills": options.kills, "seed": options.seed}
    try:
        while not storm.paths.status.exists():
            must(storm.trainer.poll() is None, "the trainer did not start")
            time.sleep(0.05)
        for number in range(options.kills):
            states[storm.kill_one(number, options.life)] += 1
        storm.finish()
        summary |= storm.check()
    except Broken as error:
        summary["broken"] = f"{error} (left in {folder})"
    finally:
        storm.trainer.kill()
        storm.trainer.wait()
    summary |= {
        "killed_while": dict(states),
        "longest_silence": round(storm.longest, 2),
        "looks": storm.looks,
        "seconds": round(time.monotonic() - began),
    }
    print(json.dumps(summary))  # noqa: T201
    if "broken" in summary:
        sys.exit(1)
    crash_points.shutil.rmtree(folder)


if __name__ == "__main__":
    main()
