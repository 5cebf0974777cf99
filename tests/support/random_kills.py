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

``python random_kills.py train RUN.yaml`` is the played trainer.
"""

from __future__ import annotations

import argparse
import importlib.util
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

from mixloop.controller import demo, requests
from mixloop.controller.config import load_config
from mixloop.controller.journal import Journal, timestamp
from mixloop.trainer.contract import (
    Order,
    RunPaths,
    Status,
    read_order,
    read_schedule,
    read_status,
    write_order,
)

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

PACE = 0.1  # seconds between two looks of the played trainer: 5 steps
EVERY = 100  # steps between its checkpoints: 2 seconds
STEP_TOKENS = 80
FINISH = "finish"  # the file that sends it to the end of its budget

REAL_EVERY = 20  # steps of the real trainer between checkpoints
REAL_STEP = 4 * demo.SEQUENCE  # tokens
KEPT = 12  # checkpoints, 50 MB each: a daemon that knows of them holds those without scores
NO_ROOM = 40  # steps before the end: an order given there may find no two polls left
STORES = {"web": "prose", "code": "code", "maths": "math-docs"}


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

    silence = 5.0  # seconds without a heartbeat that count as the trainer having stopped
    pause = 0.02  # seconds between two looks

    def __init__(self, folder: Path, seed: int) -> None:
        self.chance = random.Random(seed)
        worker = Path(__file__).with_name("formula_worker.py")
        settings: dict[str, Any] = {
            "evals": {
                "benchmarks": {"gsm8k": {"data": "packages"}},
                "launcher": [sys.executable, str(worker), "{command}"],
                "backlog": "all",
            },
            "controller": {"poll": 0.05, "patience": 600},
            **self.settings(),
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
        self.over = False  # whether the trainer has spent its budget
        self.longest = 0.0
        self.looks = 0
        with (folder / "trainer.log").open("ab") as log:
            self.trainer = subprocess.Popen(self.command(), stdout=log, stderr=log)
        while not self.paths.status.exists():
            must(self.trainer.poll() is None, "the trainer did not start")
            time.sleep(0.05)
        self.last = (-1, time.monotonic())

    # -- the trainer -------------------------------------------------------------------------

    def settings(self) -> dict[str, Any]:
        """What its run.yaml has beyond the rest."""
        return {"budget": 10**9 // STEP_TOKENS // EVERY * EVERY * STEP_TOKENS}

    def command(self) -> list[str]:
        return [sys.executable, __file__, "train", str(self.plain)]

    def heard(self, status: Status) -> None:
        """A status with news."""

    def end(self) -> None:
        """Let it come to its end."""
        (self.paths.dir / FINISH).touch()
        must(self.trainer.wait(60) == 0, "the trainer failed")

    def checkpoints(self) -> list[int]:
        """The steps of all that it has left."""
        folders = self.paths.checkpoints.iterdir()
        return sorted(int(folder.name.rpartition("-")[2]) for folder in folders)

    def excused(self, journal: Journal) -> set[int]:
        """Generations that could not come into force any more."""
        return set()

    def verify(self) -> dict[str, Any]:
        """What else must hold of it. Returns figures."""
        return {}

    # -- the daemons -------------------------------------------------------------------------

    def look(self) -> None:
        """The shared file is whole, and the trainer's heart beats."""
        self.looks += 1
        ended = self.trainer.poll()
        status = read_status(self.paths.status)
        now = time.monotonic()
        if status is not None and status.heartbeat != self.last[0]:
            must(status.heartbeat > self.last[0], "the heartbeat went back")
            self.last = (status.heartbeat, now)
            self.over = status.finished
            self.heard(status)
        must(ended is None or (self.over and ended == 0), f"the trainer has ended with {ended}")
        if not self.over:
            gap = now - self.last[1]
            self.longest = max(self.longest, gap)
            must(gap < self.silence, f"no heartbeat for {gap:.1f} s")
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

        def lives_while(waiting: Callable[[], bool]) -> None:
            while waiting() and process.poll() is None:
                self.look()
                time.sleep(self.pause)
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
        self.end()
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
        play.steps = self.checkpoints()
        play.excused = self.excused(journal)
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
        return figures | self.verify()


class RealStorm(Storm):
    """The same beside ``mixloop train`` at the demo's size, ``steps`` long."""

    silence = 60.0  # five steps and a checkpoint, on a core that others want too
    pause = 0.05

    def __init__(self, folder: Path, seed: int, steps: int, stores: Path) -> None:
        self.steps, self.data, self.seed = steps, stores.resolve(), seed
        self.first: Status | None = None
        self.newest: Status | None = None
        self.nearly: str | None = None  # when it was seen close to its end
        super().__init__(folder, seed)

    def settings(self) -> dict[str, Any]:
        made = demo.prepare_sources(self.data, self.seed)
        weights = {"web": 0.72, "code": 0.1, "maths": 0.18}
        budget = self.steps * REAL_STEP
        trainer = demo.demo_config("run", made, self.seed, budget)["trainer"]
        trainer |= {"tokenizer": str(self.data / "tokenizer"), "keep": KEPT}
        return {
            "budget": budget,
            "sources": {
                name: {"path": str(made[STORES[name]]), "weight": weight}
                for name, weight in weights.items()
            },
            "trainer": trainer | {"checkpoint_every": REAL_EVERY * REAL_STEP},
        }

    def command(self) -> list[str]:
        return [sys.executable, "-m", "mixloop.controller.cli", "train", str(self.plain)]

    def heard(self, status: Status) -> None:
        must(status.step == 0 or status.loss is not None, f"no finite loss at step {status.step}")
        if self.newest is not None:
            same = status.step >= self.newest.step and status.pid == self.newest.pid
            must(same, "the trainer went back, or is another")
        self.first = self.first or (status if status.step else None)
        self.newest = status
        if self.nearly is None and status.step >= self.steps - NO_ROOM:
            self.nearly = timestamp()

    def end(self) -> None:
        must(self.trainer.wait(300) == 0, "the trainer failed")

    def checkpoints(self) -> list[int]:
        return list(range(REAL_EVERY, self.steps + 1, REAL_EVERY))

    def excused(self, journal: Journal) -> set[int]:
        segments = read_schedule(self.paths.schedule).segments
        never = {line.generation for line in segments if line.sample >= self.steps * 4}
        late = "SELECT generation FROM orders WHERE COALESCE(published_at, issued_at) > ?"
        given = {row["generation"] for row in journal.rows(late, self.nearly)}
        return never | (given - {line.generation for line in segments})

    def verify(self) -> dict[str, Any]:
        first, last = self.first, read_status(self.paths.status)
        must(first is not None and last is not None and last.finished, "the trainer did not finish")
        assert first is not None
        assert last is not None
        must((last.step, last.tokens) == (self.steps, self.budget), f"it ended at {last.step}")
        must(last.incarnation == 1 and last.health is not None, "the trainer was started again")
        assert last.health is not None
        must(last.health.nan_steps == 0, f"{last.health.nan_steps} steps without a gradient")
        must((last.loss or 99.0) < (first.loss or 0.0), f"loss {first.loss} -> {last.loss}")
        command = [sys.executable, "-m", "mixloop.controller.cli", "audit", str(self.plain)]
        audit = subprocess.run(command, capture_output=True, text=True, check=False)
        must(audit.returncode == 0, f"audit: {audit.stdout}{audit.stderr}")
        return {
            "steps": last.step,
            "loss": [first.loss, last.loss],
            "spikes": last.health.spikes,
            "kept": len(list(self.paths.checkpoints.iterdir())),
            "audit": audit.stdout.strip().splitlines()[-1:],
        }


def main() -> None:
    if sys.argv[1:2] == ["train"]:
        train(Path(sys.argv[2]))
        return
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
        must(kills >= options.kills, f"the run was over after {kills} kills")
        storm.finish()
        summary |= storm.check()
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
        return Storm(folder, options.seed)
    steps = max(2, round(options.seconds * options.pace / REAL_EVERY)) * REAL_EVERY
    return RealStorm(folder, options.seed, steps, options.stores or folder / "demo")


if __name__ == "__main__":
    main()
