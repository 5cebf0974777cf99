"""One seed: a run under faults, then without them until it has ended, watched all the way."""

from __future__ import annotations

import json
import os
import random
import shutil
import sqlite3
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mixloop.contract import Order, RunPaths, write_order
from mixloop.controller.config import RunConfig
from mixloop.controller.journal.packing import dumps, unpack
from mixloop.controller.loop import Controller

from . import here
from .controllers import Controllers
from .faults import Faults
from .final import at_end
from .invariants import Violation, Watch
from .memfs import MemPath
from .operators import Operators
from .settings import draw_settings, stores
from .tracker import Store
from .trainer import STEP_TOKENS, Trainer

END_WITHIN = 150  # cycles from the trainer's end to the controller's, without faults
HORIZON = 400  # cycles without faults in all


@dataclass
class Result:
    """What a seed came to."""

    seed: int
    cycles: int
    faults: Counter[str]
    digest: str
    violation: str | None = None
    invariant: str | None = None
    events: list[str] = field(default_factory=list)
    facts: Counter[str] = field(default_factory=Counter)


class Simulation(Controllers):
    """The world of one seed.

    Args:
        cycles: looks of the controller while faults are on and in all, at least.
        base: a folder on a fast file system for the journal.
        say: hears every event.
    """

    def __init__(
        self, seed: int, cycles: int, base: Path, say: Callable[[str], None] | None = None
    ) -> None:
        super().__init__(seed, say)
        self.wanted, self.base = cycles, base
        self.rng = random.Random(f"world {seed}")
        rate = self.rng.choice([0.004, 0.01, 0.02, 0.04])
        self.faults = Faults(random.Random(f"faults {seed}"), rate)
        self.dir = base / f"s{seed}"
        shutil.rmtree(self.dir, ignore_errors=True)
        self.dir.mkdir(parents=True)
        self.tracker = Store()
        self._tracker_back = self._stall_until = self._deaf_until = self._start_at = 0
        self.strangers: set[int] = set()
        self.first: Controller | None = None
        self.old: list[Controller] = []
        self.watch = Watch(self)
        here.enter(self)
        self._budget = int(cycles * 1.8) * STEP_TOKENS
        self.base_settings = draw_settings(self.rng, stores(base), seed, self._budget)
        self.config = self._configure(self.base_settings)
        self.paths = RunPaths(self.config.run.dir)
        self.fs.mkdir(str(self.paths.dir))
        self.sizes = dict.fromkeys(self.config.sources, 10_000)
        start = self.config.start_weights(self.sizes)
        self.actor = "setup"
        self.trainer = Trainer(self.paths, self.config, start, self.sizes)
        self.operators = Operators(self)
        self._checkpointed: set[int] = set()

    def _configure(self, settings: dict[str, Any]) -> RunConfig:
        config = RunConfig.model_validate(settings).at(self.base)
        folder = MemPath(str(self.dir))
        return config.model_copy(update={"run": config.run.model_copy(update={"dir": folder})})

    # -- time ------------------------------------------------------

    def run(self) -> Result:
        """The whole seed."""
        violation: Violation | None = None
        try:
            while self.cycles < self.wanted * 3 // 4:
                self._cycle()
            self._calm()
            while self.cycles < self.wanted:
                self._cycle()
            self._finish()
        except Violation as found:
            violation = found
            self.tell(f"VIOLATION {found}")
        except Exception as error:  # the simulation's own mistake, or one of the product
            where = traceback.extract_tb(error.__traceback__)[-1]
            text = f"{type(error).__name__}: {error} ({where.filename}:{where.lineno})"
            violation = Violation("survives", text)
            self.tell(f"VIOLATION {violation}")
        self._close()
        return Result(
            self.seed,
            self.cycles,
            self.faults.counts,
            self._digest(),
            None if violation is None else str(violation).replace(str(self.base), ""),
            None if violation is None else violation.name,
            list(self.events),
            self._facts(),
        )

    def _calm(self) -> None:
        self.faults.on = False
        self.tracker.down = False
        self._stall_until = self._deaf_until = self._start_at = 0
        self._late.clear()
        self.trainer.deaf = False
        self.tell("faults are off")
        self.operators.resume()

    def _cycle(self) -> None:
        self.now += self.rng.uniform(0.1, 2.0)
        self._world()
        controller = self._choose()
        if controller is None:
            return
        self.cycles += 1
        self.actor = "controller"
        state = self._turn(controller)
        self.actor = ""
        if state != "on":
            if controller is self.first:
                self.first = None
                self._start_at = self.rng.randrange(6) if self.faults.on else 0
            self.old = [old for old in self.old if old is not controller]
            if state == "ended":
                self._discard(controller)

    def _choose(self) -> Controller | None:
        if self.old and self.rng.random() < 0.3:
            return self.rng.choice(self.old)
        if self.first is None:
            if self._start_at > 0:
                self._start_at -= 1
                self.cycles += 1 if self.old else 0
                return self.old[0] if self.old else None
            if self.rng.random() < 0.2 and self.faults.on:
                self._edit()
            self.actor = "controller"
            self.first = self._try_start()
            self.actor = ""
            self._start_at = 0 if self.first else 2
        return self.first

    def _edit(self) -> None:
        self.base_settings = draw_settings(self.rng, stores(self.base), self.seed, self._budget)
        self.config = self._configure(self.base_settings)
        self.faults.happened("config-changed")
        self.tell(f"run.yaml is edited: {self.config.policy.use}")

    def _world(self) -> None:
        """What everybody else does meanwhile."""
        draw = self.faults.draw
        if self.faults.on:
            self._misfortunes()
            self.operators.act()
        if self.cycles >= self._tracker_back:
            self.tracker.down = False
        if draw("tracker-down"):
            self.tracker.down, self._tracker_back = True, self.cycles + self.rng.randrange(5, 60)
        if self.cycles < self._stall_until:
            return
        self.trainer.deaf = self.cycles < self._deaf_until
        if self.rng.random() < (0.35 if self.faults.on else 0.6):
            self._train()

    def _misfortunes(self) -> None:
        draw, rng = self.faults.draw, self.rng
        if self.first is not None and draw("crash-at-rest", 0.5):
            self.tell("a controller is killed")
            self._discard(self.first)
            self.first = None
            self._after_death()
        if draw("second-controller", 0.5):
            self.actor = "controller"
            self._take_over()
            self.actor = ""
        if draw("clock-jump"):
            self._wall += rng.uniform(-3e7, 3e7)
        if draw("suspended", 0.5):
            self.now += rng.uniform(100, 600)
        if draw("trainer-stalls"):
            self._stall_until = self.cycles + rng.randrange(5, 30)
        if draw("trainer-deaf"):
            self._deaf_until = self.cycles + rng.randrange(10, 60)
        if draw("checkpoint-vanished", 2):
            self._vanish()
        if draw("mixture-rubbish"):
            self.foreign = True
            junk = rng.choice([b"", b"{}", b"\0" * 40, b'{"generation": 1e400}', b"rubbish\n"])
            self.fs.put(str(self.paths.mixture), junk)
        if draw("mixture-stranger", 0.3):
            self._stranger()
        self._forgeries(self.noise("forgeries", self.cycles))
        for kind, rewind in (("trainer-restart", False), ("trainer-rewind", True)):
            if rng.random() < self.faults.rate * 0.5:
                self._restart(kind, rewind=rewind)

    def _stranger(self) -> None:
        self.foreign = True
        fence, generation = self.trainer.inbox.state().accepted
        high = max(generation, self.watch.newest()) + self.rng.randrange(1, 9)
        even = 1 / len(self.config.sources)
        weights = dict.fromkeys(self.config.sources, even)
        self.strangers.add(high)
        self.actor = "stranger"
        write_order(
            self.paths.mixture, Order("r", fence + self.rng.randrange(3), high, weights, reason="x")
        )
        self.actor = ""
        self.tell(f"a stranger orders generation {high}")

    def _forgeries(self, rng: random.Random) -> None:
        """Numbers from nowhere, without a draw that would move all those after it."""
        far = rng.choice([2**20 + 500, 2**61, 2**62 - 1, 2**62, 2**63 - 1])
        even = dict.fromkeys(self.config.sources, 1 / len(self.config.sources))
        if rng.random() < 0.3 * self.faults.rate:
            self.foreign = True
            fence, generation = rng.choice([(far, far), (far, 5), (self.watch.newest(), far)])
            self.actor = "stranger"
            write_order(self.paths.mixture, Order("r", fence, generation, even, reason="x"))
            self.actor = ""
            self.faults.happened("mixture-far")
        status = self.fs.find(str(self.paths.status))
        if status is not None and rng.random() < 0.5 * self.faults.rate:
            body = json.loads(status.data) | {"accepted": {"fence": far, "generation": far}}
            self.fs.put(str(self.paths.status), json.dumps(body).encode())
            self.faults.happened("status-forged")

    def _vanish(self) -> None:
        steps = sorted(self.trainer.made)
        if not steps:
            return
        step = self.rng.choice(steps[-2:])
        del self.trainer.made[step]
        self.fs.remove_folder(str(self.trainer.folder(step)))
        self.tell(f"the checkpoint of step {step} vanishes")

    def _restart(self, kind: str, *, rewind: bool) -> None:
        self.actor = ""
        if self.trainer.restart(self.rng, rewind=rewind):
            self.faults.happened(kind)
            self.tell(f"{kind} to step {self.trainer.step}")
            self._accepted(rewound=True)

    def _train(self) -> None:
        trainer = self.trainer
        if self.faults.on and trainer.step + 40 > trainer.budget_steps:
            return  # the end comes when all is well
        self.actor = "trainer"
        try:
            trainer.advance()
        except OSError as error:
            self.tell(f"the trainer's heartbeat fails: {error.strerror}")
        self.actor = ""
        self._accepted(rewound=False)
        if trainer.due():
            self._checkpoint()

    def _checkpoint(self) -> None:
        trainer = self.trainer
        if self._disk_is_full():
            self.faults.happened("checkpoint-failed")
            trainer.fail()
            self.tell(f"the checkpoint of step {trainer.step} can't be written")
            return
        whole = not self.faults.draw("checkpoint-half-written", 3)
        if trainer.step in self._checkpointed and self.faults.on:
            self.faults.happened("checkpoint-repeated")
        self._checkpointed.add(trainer.step)
        trainer.checkpoint(whole=whole)
        self.tell(f"checkpoint at step {trainer.step}{'' if whole else ', without its manifest'}")

    def _disk_is_full(self) -> bool:
        """In one run of four, at one checkpoint of ten."""
        often = self.seed % 4 == 2 and self.faults.on and not self.trainer.finished
        return often and self.noise("full", self.trainer.step).random() < 0.1

    def _accepted(self, *, rewound: bool) -> None:
        view = self.trainer.inbox.state()
        if view.accepted != self.trainer.highest or rewound:
            self.trainer.highest = view.accepted
            self.tell(f"the trainer follows {view.accepted}")
            self.watch.accepted(view, self._look_db(), rewound=rewound)

    # -- the end ------------------------------------------------------

    def _finish(self) -> None:
        """Until the controller says that the run has ended."""
        ends = self.cycles + HORIZON
        done_by = None
        while True:
            if self.trainer.finished and done_by is None:
                done_by = self.cycles + END_WITHIN
            before = self.first
            self._cycle()
            gone = before is not None and self.first is None
            if gone and self.trainer.finished and "ends:" not in self.events[-1]:
                break
            if self.cycles > (done_by or ends):
                raise Violation("converges", f"no end after {self.cycles} cycles: {self._why()}")
        at_end(self)

    def _why(self) -> str:
        if self.first is None:
            return "no controller"
        return str(self.first.look())[:1500]

    def _close(self) -> None:
        for controller in [self.first, *self.old]:
            if controller is not None:
                self._discard(controller)

    def _facts(self) -> Counter[str]:
        facts: Counter[str] = Counter()
        db = self._look_db()
        tables = ("decisions", "orders", "requests", "checkpoints", "evaluations", "outbox")
        for name in (*tables, "experiments"):
            facts[name] = db.execute(f"SELECT COUNT(*) FROM {name}").fetchone()[0]
        query = "SELECT COUNT(*) FROM orders WHERE applied_step IS NOT NULL"
        facts["applied"] = db.execute(query).fetchone()[0]
        states = db.execute("SELECT state, COUNT(*) FROM experiments GROUP BY state")
        facts.update({f"experiments {state}": count for state, count in states})
        facts["fences"] = self._lease()
        db.close()
        shutil.rmtree(self.dir, ignore_errors=True)
        return facts

    @staticmethod
    def _dump(db: sqlite3.Connection) -> Iterator[str]:
        """Every row, packed columns as text: they hold paths, which differ from place to place, and
        their length says which are packed. The seal, a hash over such paths, is left out.
        """
        tables = db.execute("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name")
        for (name,) in tables.fetchall():
            cursor = db.execute(f"SELECT * FROM {name}")
            held = [i for i, column in enumerate(cursor.description) if column[0] != "seal"]
            for row in cursor:
                values = (row[i] for i in held)
                yield repr([dumps(unpack(v)) if isinstance(v, bytes) else v for v in values])

    def _digest(self) -> str:
        """Everything that was said, journaled, written and told, in one number."""
        total = self.hash.copy()
        root = str(self.base)
        try:
            dump = "\n".join(self._dump(self._look_db()))
        except sqlite3.Error as error:
            dump = str(error)
        total.update(dump.replace(root, "").encode())
        for folder in sorted(self.fs.folders):
            for name, node in sorted(self.fs.folders[folder].items()):
                total.update(f"{folder}/{name}".replace(root, "").encode())
                total.update(node.data.replace(root.encode(), b""))
        total.update(repr(sorted(self.tracker.points, key=repr)).encode())
        total.update(repr(sorted(self.faults.counts.items())).encode())
        return total.hexdigest()


def simulate(
    seed: int, cycles: int = 200, base: Path | None = None, say: Callable[[str], None] | None = None
) -> Result:
    """Run one seed; the product must be patched (:func:`patches.installed`)."""
    if base is not None:
        return _one(seed, cycles, base, say)
    with tempfile.TemporaryDirectory(dir=fast_folder()) as folder:
        return _one(seed, cycles, Path(folder), say)


def _one(seed: int, cycles: int, base: Path, say: Callable[[str], None] | None) -> Result:
    return Simulation(seed, cycles, base, say).run()


def fast_folder() -> str | None:
    """A folder in memory where the machine has one."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
