"""One seed: a run under faults, then without them until it has ended, watched all the way."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import sqlite3
import tempfile
import traceback
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mixloop.controller.config import RunConfig
from mixloop.controller.daemon import Controller
from mixloop.controller.journal import FenceLost, Journal, JournalError
from mixloop.trainer.contract import Order, RunPaths, write_order

from . import here
from .faults import READ_ERRORS, WRITE_ERRORS, Crash, Faults
from .final import at_end
from .invariants import Violation, Watch
from .memfs import MemFS, MemPath
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


class Simulation:
    """The world of one seed.

    Args:
        cycles: looks of the controller while faults are on and in all, at least.
        base: a folder on a fast file system for the journal.
        say: hears every event.
    """

    def __init__(
        self, seed: int, cycles: int, base: Path, say: Callable[[str], None] | None = None
    ) -> None:
        self.seed, self.wanted, self.base = seed, cycles, base
        self.rng = random.Random(f"world {seed}")
        rate = self.rng.choice([0.004, 0.01, 0.02, 0.04])
        self.faults = Faults(random.Random(f"faults {seed}"), rate)
        self.events: deque[str] = deque(maxlen=60)
        self.hash = hashlib.sha256()
        self._say = say
        self.now, self._wall = 0.0, 1.7e9
        self._tokens = 0
        self.cycles = 0
        self.actor = ""
        self.dying = False
        self.fs = MemFS()
        self.fs.gate, self.fs.see = self._gate, self._see
        self._late: dict[tuple[str, str], tuple[int, bytes]] = {}
        self.dir = base / f"s{seed}"
        shutil.rmtree(self.dir, ignore_errors=True)
        self.dir.mkdir(parents=True)
        self.tracker = Store()
        self._tracker_back = self._stall_until = self._deaf_until = self._start_at = 0
        self._configs: dict[int, RunConfig] = {}
        self.foreign = False
        self.strangers: set[int] = set()
        self.first: Controller | None = None
        self.old: list[Controller] = []
        self._nested = False
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

    def _configure(self, settings: dict[str, Any]) -> RunConfig:
        config = RunConfig.model_validate(settings).at(self.base)
        folder = MemPath(str(self.dir))
        return config.model_copy(update={"run": config.run.model_copy(update={"dir": folder})})

    # -- what the product asks of its surroundings ---------------------------------------------------

    def clock(self) -> float:
        return self.now

    def wall(self) -> float:
        return self._wall + self.now

    def token(self, size: int) -> str:
        self._tokens += 1
        return f"{self._tokens:0{2 * size}x}"

    def noise(self, *key: object) -> random.Random:
        return random.Random(f"noise {self.seed} {key}")

    def is_set(self) -> bool:
        return False

    def set(self) -> None:
        pass

    def wait(self, seconds: float) -> None:
        self.now += seconds

    def tell(self, text: str) -> None:
        line = f"{self.cycles:4d} {text}"
        self.events.append(line)
        self.hash.update(line.replace(str(self.base), "").encode())
        if self._say is not None:
            self._say(line)

    # -- faults ----------------------------------------------------------------------------------------

    def _gate(self, op: str, path: str) -> None:
        if self.actor == "controller":
            if self.dying:
                raise Crash
            if op in ("read", "list"):
                self._read_errors(op, path)
                return
            if self.faults.draw("crash-in-file-write"):
                self.dying = True
                raise Crash
            self._write_errors(path)
        elif self.actor == "trainer":
            if op == "read":
                self._read_errors(op, path)
            elif op != "list":
                self._write_errors(path)

    def _read_errors(self, op: str, path: str) -> None:
        if op == "list":
            if self.faults.draw("list-failed", 0.5):
                raise OSError(5, "Input/output error", path)
            return
        for kind, number in READ_ERRORS.items():
            if self.faults.draw(kind, 0.3):
                raise OSError(number, os.strerror(number), path)

    def _write_errors(self, path: str) -> None:
        for kind, number in WRITE_ERRORS.items():
            if self.faults.draw(kind, 0.5):
                raise OSError(number, os.strerror(number), path)

    def _see(self, path: str, data: bytes) -> bytes:
        if self.actor not in ("controller", "trainer") or not self.faults.on:
            return data
        key = (self.actor, path)
        if key in self._late:
            until, before = self._late[key]
            if self.cycles < until:
                return before
            del self._late[key]
        past = self.fs.past.get(path)
        if past:
            if self.faults.draw("read-stale", 0.3):
                return self.rng.choice(past)
            if self.faults.draw("rename-late", 0.3):
                self._late[key] = (self.cycles + self.rng.randrange(2, 12), past[-1])
                return past[-1]
        if "/requests/" in path:  # whole from the start, by a rename, and never changed
            return data
        if data and self.faults.draw("read-torn", 0.5):
            cut = self.rng.randrange(len(data))
            return data[:cut] + (b"" if self.rng.random() < 0.7 else b"\0" * (len(data) - cut))
        return data

    def journal_point(self, journal: Journal, kind: str) -> None:
        if self.actor == "controller":
            if self.dying:
                raise Crash
            if self.faults.draw(kind):
                self.dying = True
                raise Crash

    def journal_fails(self, journal: Journal, kind: str, share: float = 0.4) -> bool:
        return self.actor == "controller" and self.faults.draw(kind, share)

    def committed(self, journal: Journal, lease: int) -> None:
        self.watch.committed(journal, lease)

    def scorecard_written(self) -> None:
        if self.actor == "controller" and self.faults.draw("scorecard-lost", 2):
            self.dying = True
            raise Crash

    def publish(self, path: Any, order: Order) -> None:
        """``write_order`` as the controller calls it."""
        if not self._nested and self.faults.draw("takeover-in-publish", 3):
            self._take_over()
        self.watch.publishing(order, self._look_db())
        before = self.watch.last_published
        made = (order.fence, order.generation)
        self.fs_published(order)
        try:
            write_order(path, order)
        except BaseException:
            self.watch.last_published = min(before, made) if before != (0, 0) else before
            raise
        self.watch.last_published = made
        self.foreign = False

    def fs_published(self, order: Order) -> None:
        from mixloop.trainer.contract import order_json

        text = json.dumps(order_json(order), indent=1, allow_nan=False) + "\n"
        self.watch.published.add(text.encode())

    def config_of(self, fence: int) -> RunConfig:
        return self._configs.get(fence, self.config)

    def seen_ledger(self, fence: int) -> tuple[dict[str, float], int]:
        for one in [self.first, *self.old]:
            if one is not None and one.journal.fence == fence and one._eyes.status is not None:
                status = one._eyes.status
                return {n: s.tokens for n, s in status.sources.items()}, status.tokens
        return dict(self.trainer.drawn), self.trainer.step * STEP_TOKENS

    def _look_db(self) -> sqlite3.Connection:
        if self._db is None:
            self._db = sqlite3.connect(
                f"file:{self.dir / 'journal.db'}?vfs=unix-none", uri=True, isolation_level=None
            )
            self._db.row_factory = sqlite3.Row
        return self._db

    _db: sqlite3.Connection | None = None

    # -- controllers -------------------------------------------------------------------------------------

    def _start(self) -> Controller | None:
        """A controller on the files as they are; None if it could not start this time."""
        base = Path(str(self.base))
        fence = self._lease() + 1
        self._configs[fence] = self.config
        try:
            one = Controller(self.config, base, self.tell, clock=self.clock)
        except (OSError, sqlite3.Error, JournalError) as error:
            self.tell(f"no start: {type(error).__name__}: {error}")
            return None
        one._stop = self  # type: ignore[assignment]  # waits in simulated time
        self._configs[one.journal.fence or 0] = self.config
        self.tell(f"started under fence {one.journal.fence}")
        return one

    def _lease(self) -> int:
        try:
            row = self._look_db().execute("SELECT fence FROM lease").fetchone()
        except sqlite3.Error:
            return 0
        return row[0] if row else 0

    def _turn(self, one: Controller) -> str:
        """One look of a controller: ``on``, ``ended``, ``replaced`` or ``died``."""
        try:
            more = one.turn()
            self._configs.setdefault(one.journal.fence or 0, self.config)
            return "on" if more else "ended"
        except FenceLost as error:
            self.tell(f"a controller ends: {error}")
            self._discard(one)
            return "replaced"
        except Crash:
            self.tell("a controller dies")
            self._discard(one)
            self._after_death()
            return "died"
        except Violation:
            raise
        except Exception as error:
            raise Violation("survives", f"{type(error).__name__}: {error}") from error

    def _discard(self, one: Controller) -> None:
        """Its memory is gone; the kernel closes what it had open."""
        one.journal._db.close()
        for child in (one.running and one.running.child, one.tracking.child):
            if child:
                child.close()

    def _after_death(self) -> None:
        self.dying = False
        if self.faults.on and self.rng.random() < 0.3:
            self._power_loss()

    def _power_loss(self) -> None:
        lost = self.fs.lose_power(self.rng)
        self.faults.happened("power-loss")
        self.tell(f"power lost, and {lost} things that were not fsynced")
        self._late.clear()
        node = self.fs.find(str(self.paths.mixture))
        self.watch.after_power_loss(node.data if node else None, foreign=self.foreign)

    def _take_over(self) -> None:
        """A second controller (on another machine) starts while the first lives."""
        self._nested = True
        held = self.first
        try:
            second = self._try_start()
            if second is None:
                return
            self.first = second
            if held is not None:
                self.old.append(held)
            for _ in range(self.rng.randrange(6)):
                if self._turn(second) != "on":
                    self.first = None
                    break
        finally:
            self._nested = False

    def _try_start(self) -> Controller | None:
        try:
            return self._start()
        except Crash:
            self.tell("a controller dies while it starts")
            self._after_death()
            return None

    # -- time ----------------------------------------------------------------------------------------------

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
            None if violation is None else str(violation),
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
        one = self._choose()
        if one is None:
            return
        self.cycles += 1
        self.actor = "controller"
        state = self._turn(one)
        self.actor = ""
        if state != "on":
            if one is self.first:
                self.first = None
                self._start_at = self.rng.randrange(6) if self.faults.on else 0
            self.old = [old for old in self.old if old is not one]
            if state == "ended":
                self._discard(one)

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
        for kind, rewind in (("trainer-restart", False), ("trainer-rewind", True)):
            if rng.random() < self.faults.rate * 0.5:
                self._restart(kind, rewind=rewind)

    def _stranger(self) -> None:
        self.foreign = True
        fence, generation = self.trainer.desk.view().accepted
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

    def _vanish(self) -> None:
        made = sorted(self.trainer.made)
        if not made:
            return
        step = self.rng.choice(made[-2:])
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
        whole = not self.faults.draw("checkpoint-half-written", 3)
        if trainer.step in self._checkpointed and self.faults.on:
            self.faults.happened("checkpoint-repeated")
        self._checkpointed.add(trainer.step)
        trainer.checkpoint(whole=whole)
        self.tell(f"checkpoint at step {trainer.step}{'' if whole else ', without its manifest'}")

    def _accepted(self, *, rewound: bool) -> None:
        view = self.trainer.desk.view()
        if view.accepted != self.trainer.highest or rewound:
            self.trainer.highest = view.accepted
            self.tell(f"the trainer follows {view.accepted}")
            self.watch.accepted(view, self._look_db(), rewound=rewound)

    # -- the end -----------------------------------------------------------------------------------------------

    def _finish(self) -> None:
        """Until the controller says that the run has ended."""
        ends = self.cycles + HORIZON
        done_by = None
        while True:
            if self.trainer.finished and done_by is None:
                done_by = self.cycles + END_WITHIN
            before = self.first
            self._cycle()
            if before is not None and self.first is None and self.trainer.finished:
                if "ends:" not in self.events[-1]:
                    break
            if self.cycles > (done_by or ends):
                raise Violation("converges", f"no end after {self.cycles} cycles: {self._why()}")
        at_end(self)

    def _why(self) -> str:
        if self.first is None:
            return "no controller"
        return str(self.first.look())[:1500]

    _checkpointed: set[int]

    def _close(self) -> None:
        for one in [self.first, *self.old]:
            if one is not None:
                self._discard(one)

    def _facts(self) -> Counter[str]:
        facts: Counter[str] = Counter()
        db = self._look_db()
        for name in ("decisions", "orders", "requests", "checkpoints", "evaluations", "outbox"):
            facts[name] = db.execute(f"SELECT COUNT(*) FROM {name}").fetchone()[0]
        query = "SELECT COUNT(*) FROM orders WHERE applied_step IS NOT NULL"
        facts["applied"] = db.execute(query).fetchone()[0]
        facts["fences"] = self._lease()
        db.close()
        shutil.rmtree(self.dir, ignore_errors=True)
        return facts

    def _digest(self) -> str:
        """Everything that was said, journaled, written and told, in one number."""
        total = self.hash.copy()
        root = str(self.base)
        try:
            dump = "\n".join(self._look_db().iterdump())
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
    world = Simulation(seed, cycles, base, say)
    world._checkpointed = set()
    return world.run()


def fast_folder() -> str | None:
    """A folder in memory where the machine has one."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
