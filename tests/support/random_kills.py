"""``mixloop control`` killed with SIGKILL at random moments, again and again, under load.

``python random_kills.py --kills 500`` makes a run, starts the played trainer as a process of its
own, which trains on whatever happens, and starts and kills the real command: its own start-up, its
policy child (the real one), an evaluation worker of its own (scores by formula), every few starts
with MLflow (a real SQLite store), now and then an operator's request or a stranger's file. The last
start lives until the run has ended. Then everything that must hold is checked. Prints a JSON
summary; the exit code says whether it held.

``--trainer real`` puts ``mixloop train`` in its place: the demo's model, tokenizer and text (three
of its four sources, under the names that the policy moves), a step of 1,024 tokens on one thread, a
checkpoint every 20 of them, old ones retired. Its budget can't be cut short, so it is set by
``--seconds``, and daemons are killed until it is spent; ``--kills`` is then the least that counts.
In the end ``mixloop audit`` has to agree. The scores stay a formula: a real evaluation takes half a
minute, and none would be finished by daemons that live for two seconds.
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from mixloop.contract import Order, RunPaths, read_order, read_status, requests, write_order
from mixloop.controller.config import load_config
from mixloop.controller.journal import Journal

storm_trainers: Any = importlib.import_module(
    "storm_trainers"
)  # beside this script, which is on the path
crash_points = storm_trainers.crash_points
must, Broken = crash_points.must, crash_points.Broken


class Storm:
    """One run, its trainer, and the daemons that come and go."""

    def __init__(self, folder: Path, seed: int, kind: Any) -> None:
        self.chance = random.Random(seed)
        self.kind = kind
        worker = Path(__file__).with_name("formula_worker.py")
        settings: dict[str, Any] = {
            "evals": {
                "benchmarks": {"gsm8k": {"data": "packages"}},
                "launcher": [sys.executable, str(worker), "{command}"],
                "backlog": "all",
            },
            "controller": {"poll": 0.05, "patience": 600},
            **kind.settings(),
        }
        self.plain = crash_points.played_run.make_run(folder, **settings)
        self.budget = settings["budget"]
        self.mlflow = folder / "mlflow.db"
        tracked = yaml.safe_load(self.plain.read_text())
        tracked["tracking"] = {"uri": f"sqlite:///{self.mlflow}"}
        self.tracked = folder / "run-mlflow.yaml"
        self.tracked.write_text(yaml.safe_dump(tracked))
        self.config = load_config(self.plain)
        self.paths = RunPaths(self.config.run.dir)
        self.paths.dir.mkdir()
        self.log = folder / "control.log"
        self.asked: list[str] = []
        self.strangers: list[bytes] = []
        self.last = (-1, time.monotonic())
        self.over = False  # whether the trainer has spent its budget
        self.longest = 0.0
        self.looks = 0
        with (folder / "trainer.log").open("ab") as log:
            self.trainer = subprocess.Popen(kind.command(self.plain), stdout=log, stderr=log)
        while not self.paths.status.exists():
            must(self.trainer.poll() is None, "the trainer did not start")
            time.sleep(0.05)
        self.last = (-1, time.monotonic())

    def look(self) -> None:
        """The shared file is whole, and the trainer's heart beats."""
        self.looks += 1
        ended = self.trainer.poll()
        status = read_status(self.paths.status).value
        now = time.monotonic()
        if status is not None and status.heartbeat != self.last[0]:
            must(status.heartbeat > self.last[0], "the heartbeat went back")
            self.last = (status.heartbeat, now)
            self.over = status.finished
            self.kind.heard(status)
        must(ended is None or (self.over and ended == 0), f"the trainer has ended with {ended}")
        if not self.over:
            gap = now - self.last[1]
            self.longest = max(self.longest, gap)
            must(gap < self.kind.silence, f"no heartbeat for {gap:.1f} s")
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
        command = [sys.executable, "-m", "mixloop.cli.app", "control", str(path)]
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

        def lives_while(waiting: Callable[[], bool]) -> None:
            while waiting() and process.poll() is None:
                self.look()
                time.sleep(self.kind.pause)
            self.look()
            code = process.poll()
            must(code is None or (self.over and code == 0), f"ended by itself: {self._tail()}")

        if self.chance.random() < 0.8:  # the other kills fall on its start as well
            lives_while(lambda: b"controlling run" not in self._said(before))
        until = time.monotonic() + self.chance.uniform(0, life * (4 if tracked else 1))
        lives_while(lambda: time.monotonic() < until)
        process.send_signal(signal.SIGKILL)
        if process.wait() != -signal.SIGKILL:
            return "ended"
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
        status = read_status(self.paths.status).value
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
        self.kind.end(self.trainer, self.paths)
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
        play.steps = self.kind.checkpoints(self.paths)
        play.excused = self.kind.excused(self.paths, journal)
        crash_points.ForkedChild.mlflow = True
        must(journal.value("PRAGMA integrity_check") == "ok", "the journal is damaged")
        play.said = [line for line in self.log.read_text().splitlines() if " " in line]
        for check in ("work", "orders", "requests", "outbox", "said"):
            getattr(play, f"_check_{check}")(journal)
        mlflow = crash_points.check_mlflow(self.mlflow, self.paths.journal, play.steps)
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
            "mlflow": mlflow,
            "journal_bytes": self.paths.journal.stat().st_size,
            "scratch_left": len(list(self.paths.dir.rglob(".*.tmp"))),
        }
        journal.close()
        return figures | self.kind.verify(self.plain, self.config)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=500)
    parser.add_argument("--life", type=float, default=3.0, help="longest life in seconds")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dir", type=Path)
    parser.add_argument("--trainer", choices=("played", "real"), default="played")
    parser.add_argument("--seconds", type=float, default=1500, help="of the real trainer, about")
    parser.add_argument("--pace", type=float, default=1.7, help="its steps per second here")
    parser.add_argument("--stores", type=Path, help="a demo's folder, to take its text from")
    options = parser.parse_args()
    os.environ |= {"OMP_NUM_THREADS": "1"}
    folder = Path(tempfile.mkdtemp(prefix="random-kills-", dir=options.dir))
    began = time.monotonic()
    states: Counter[str] = Counter()
    loads: list[float] = []
    summary: dict[str, Any] = {"trainer": options.trainer, "seed": options.seed}
    storm: Storm | None = None
    try:
        storm = begin(options, folder)
        for number in itertools.count():
            if storm.over or (options.trainer == "played" and number == options.kills):
                break
            states[storm.kill_one(number, options.life)] += 1
            loads.append(os.getloadavg()[0])
        kills = states.total() - states["ended"]
        summary |= {"kills": kills, "kill_seconds": round(time.monotonic() - began)}
        storm.finish()
        summary |= storm.check()
        must(kills >= options.kills, f"the run was over after {kills} kills")
    except Broken as error:
        summary["broken"] = f"{error} (left in {folder})"
    finally:
        if storm is not None:
            storm.trainer.kill()
            storm.trainer.wait()
            summary |= {"longest_silence": round(storm.longest, 2), "looks": storm.looks}
    summary |= {
        "killed_while": dict(states),
        "load": [round(at(loads), 1) for at in (min, statistics.median, max)] if loads else [],
        "seconds": round(time.monotonic() - began),
    }
    print(json.dumps(summary))  # noqa: T201
    if "broken" in summary:
        sys.exit(1)
    crash_points.shutil.rmtree(folder)


def begin(options: argparse.Namespace, folder: Path) -> Storm:
    """The run that was asked for, with its trainer at work."""
    if options.trainer == "played":
        return Storm(folder, options.seed, storm_trainers.Played())
    every = storm_trainers.REAL_EVERY
    steps = max(2, round(options.seconds * options.pace / every)) * every
    stores = options.stores or folder / "demo"
    return Storm(folder, options.seed, storm_trainers.Real(steps, stores, options.seed))


if __name__ == "__main__":
    main()
