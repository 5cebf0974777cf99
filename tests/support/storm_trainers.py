"""The two trainers that :mod:`random_kills` can have beside the daemons that it kills.

``python storm_trainers.py RUN.yaml`` is the played one; the real one is ``mixloop train``.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from mixloop.contract import RunPaths, Status, read_schedule, read_status
from mixloop.controller.config import RunConfig, load_config
from mixloop.controller.journal import Journal, timestamp
from mixloop.tools.demo import demo


def support(name: str) -> Any:
    """A module of this folder, loaded once."""
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules[name]


crash_points = support("crash_points")
must = crash_points.must

PACE = 0.1  # seconds between two looks of the played trainer: 5 steps
EVERY = 100  # steps between its checkpoints: 2 seconds
STEP_TOKENS = 80
FINISH = "finish"  # the file that sends it to the end of its budget

REAL_EVERY = 20  # steps of the real trainer between checkpoints
REAL_BATCH = 4  # samples: the demo's micro-batch
REAL_STEP = REAL_BATCH * demo.SEQUENCE  # tokens
KEPT = 12  # checkpoints, 50 MB each: a daemon that knows of them holds those without scores
NO_ROOM = 40  # steps before the end: an order given there may find no two polls left
STORES = {"web": "prose", "code": "code", "maths": "math-docs"}
WEIGHTS = {"web": 0.72, "code": 0.1, "maths": 0.18}


class Played:
    """Files only; sent to its end by another file."""

    silence = 5.0  # seconds without a heartbeat that count as having stopped
    pause = 0.02  # seconds between two looks at it

    def settings(self) -> dict[str, Any]:
        """What run.yaml has of it."""
        return {"budget": 10**9 // STEP_TOKENS // EVERY * EVERY * STEP_TOKENS}

    def command(self, path: Path) -> list[str]:
        return [sys.executable, __file__, str(path)]

    def heard(self, status: Status) -> None:
        """A status with news."""

    def end(self, process: subprocess.Popen[bytes], paths: RunPaths) -> None:
        """It comes to its end."""
        (paths.dir / FINISH).touch()
        must(process.wait(60) == 0, "the trainer failed")

    def checkpoints(self, paths: RunPaths) -> list[int]:
        """The steps of all that it has left."""
        folders = paths.checkpoints.iterdir()
        return sorted(int(folder.name.rpartition("-")[2]) for folder in folders)

    def excused(self, paths: RunPaths, journal: Journal) -> set[int]:
        """Generations that could not come into force any more."""
        return set()

    def verify(self, path: Path, config: RunConfig) -> dict[str, Any]:
        """What must hold of it in the end. Returns figures."""
        return {}


class Real(Played):
    """``mixloop train`` at the demo's size, so many steps long.

    Args:
        stores: a demo's folder; what it lacks of text and tokenizer is made there.
    """

    silence = 60.0  # five steps and a checkpoint, on a core that others want too
    pause = 0.05

    def __init__(self, steps: int, stores: Path, seed: int) -> None:
        self.steps, self.stores, self.seed = steps, stores.resolve(), seed
        self.budget = steps * REAL_STEP
        self.first: Status | None = None
        self.newest: Status | None = None
        self.nearly: str | None = None  # when it was seen close to its end

    def settings(self) -> dict[str, Any]:
        prepared = demo.prepare_sources(self.stores, self.seed)
        trainer = demo.demo_config("run", prepared, self.seed, self.budget)["trainer"]
        trainer |= {"tokenizer": str(self.stores / "tokenizer"), "keep": KEPT}
        return {
            "budget": self.budget,
            "sources": {
                name: {"path": str(prepared[STORES[name]]), "weight": weight}
                for name, weight in WEIGHTS.items()
            },
            "trainer": trainer | {"checkpoint_every": REAL_EVERY * REAL_STEP},
        }

    def command(self, path: Path) -> list[str]:
        return [sys.executable, "-m", "mixloop.cli.app", "train", str(path)]

    def heard(self, status: Status) -> None:
        must(status.step == 0 or status.loss is not None, f"no finite loss at step {status.step}")
        if self.newest is not None:
            same = status.step >= self.newest.step and status.pid == self.newest.pid
            must(same, "the trainer went back, or is another")
        self.first = self.first or (status if status.step else None)
        self.newest = status
        if self.nearly is None and status.step >= self.steps - NO_ROOM:
            self.nearly = timestamp()

    def end(self, process: subprocess.Popen[bytes], paths: RunPaths) -> None:
        must(process.wait(300) == 0, "the trainer failed")

    def checkpoints(self, paths: RunPaths) -> list[int]:
        return list(range(REAL_EVERY, self.steps + 1, REAL_EVERY))

    def excused(self, paths: RunPaths, journal: Journal) -> set[int]:
        segments = read_schedule(paths.schedule).segments
        never = {line.generation for line in segments if line.sample >= self.steps * REAL_BATCH}
        late = "SELECT generation FROM orders WHERE COALESCE(published_at, issued_at) > ?"
        lately = {generation for (generation,) in journal.cells(late, self.nearly)}
        return never | (lately - {line.generation for line in segments})

    def verify(self, path: Path, config: RunConfig) -> dict[str, Any]:
        paths = RunPaths(config.run.dir)
        first, last = self.first, read_status(paths.status).value
        must(first is not None and last is not None and last.finished, "the trainer did not finish")
        assert first is not None
        assert last is not None
        must((last.step, last.tokens) == (self.steps, self.budget), f"it ended at {last.step}")
        must(last.incarnation == 1 and last.health is not None, "the trainer was started again")
        assert last.health is not None
        must(last.health.nan_steps == 0, f"{last.health.nan_steps} steps without a gradient")
        must((last.loss or 99.0) < (first.loss or 0.0), f"loss {first.loss} -> {last.loss}")
        command = [sys.executable, "-m", "mixloop.cli.app", "audit", str(path)]
        audit = subprocess.run(command, capture_output=True, text=True, check=False)
        must(audit.returncode == 0, f"audit: {audit.stdout}{audit.stderr}")
        return {
            "steps": last.step,
            "loss": [first.loss, last.loss],
            "spikes": last.health.spikes,
            "kept": len(list(paths.checkpoints.iterdir())),
            "audit": audit.stdout.strip().splitlines()[-1:],
        }


def train(path: Path) -> None:
    """Advance until the budget is spent; the pace is kept whatever the controller does."""
    config = load_config(path)
    played = crash_points.played_run.played
    played.EVERY = EVERY
    trainer = played.FileTrainer(config)
    while True:
        if (config.run.dir / FINISH).exists():
            played.STRIDE = config.budget // STEP_TOKENS
        trainer.advance()
        status = read_status(trainer.paths.status).value
        if status is not None and status.finished:
            return
        time.sleep(PACE)


if __name__ == "__main__":
    train(Path(sys.argv[1]))
