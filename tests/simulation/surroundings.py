"""What the product asks of its surroundings, and the faults that come with the answers."""

from __future__ import annotations

import hashlib
import json
import os
import random
import sqlite3
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mixloop.contract import Order, write_order
from mixloop.contract.orders import order_json
from mixloop.controller.config import RunConfig
from mixloop.controller.journal import Journal

from .faults import READ_ERRORS, WRITE_ERRORS, Crash, Faults
from .memfs import MemFS
from .trainer import STEP_TOKENS, Trainer

if TYPE_CHECKING:
    from mixloop.controller.loop import Controller

    from .invariants import Watch


class Surroundings:
    """Clocks, files and journal as the patched product finds them."""

    seed: int
    base: Path
    dir: Path
    rng: random.Random
    faults: Faults
    fs: MemFS
    watch: Watch
    trainer: Trainer
    config: RunConfig
    events: deque[str]
    first: Controller | None
    old: list[Controller]

    def __init__(self, seed: int, say: Callable[[str], None] | None) -> None:
        self.seed = seed
        self.events = deque(maxlen=60)
        self.hash = hashlib.sha256()
        self._say = say
        self.now, self._wall = 0.0, 1.7e9
        self._tokens = 0
        self.cycles = 0
        self.actor = ""  # whose code runs: faults are drawn for the controller and the trainer
        self.dying = False
        self.fs = MemFS()
        self.fs.gate, self.fs.see = self._gate, self._see
        self._late: dict[tuple[str, str], tuple[int, bytes]] = {}
        self._configs: dict[int, RunConfig] = {}
        self.disk: dict[str, Any] = {}  # what experiments have left there, by id
        self._nested = False
        self.foreign = False  # mixture.json holds what no controller wrote
        self._db: sqlite3.Connection | None = None

    def _take_over(self) -> None:
        raise NotImplementedError

    # -- what the product asks of its surroundings -------------------------

    def clock(self) -> float:
        return self.now

    def wall(self) -> float:
        return self._wall + self.now

    def token(self, size: int) -> str:
        self._tokens += 1
        return f"{self._tokens:0{2 * size}x}"

    def noise(self, *key: object) -> random.Random:
        return random.Random(f"noise {self.seed} {key}")

    def fallen(self, step: int) -> float:
        """By how much every score is worse at a step: more and more in one run of five."""
        since = max(0.0, step - self.trainer.budget_steps / 3)
        return since / 200 if self.seed % 5 == 2 else 0.0

    def is_set(self) -> bool:
        return False

    def set(self) -> None:
        pass

    def wait(self, seconds: float) -> None:
        self.now += seconds

    def tell(self, text: str) -> None:
        line = f"{self.cycles:4d} {text}".replace(str(self.base), "")
        self.events.append(line)
        self.hash.update(line.encode())
        if self._say is not None:
            self._say(line)

    # -- faults ------------------------------------------------------

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
        """What a reader gets of a file that holds ``data``."""
        if self.actor not in ("controller", "trainer") or not self.faults.on:
            return data
        earlier = self._earlier(path)
        if earlier is not None:
            return earlier
        if "/requests/" in path:  # whole from the start, by a rename, and never changed
            return data
        if data and self.faults.draw("read-torn", 0.5):
            cut = self.rng.randrange(len(data))
            return data[:cut] + (b"" if self.rng.random() < 0.7 else b"\0" * (len(data) - cut))
        return data

    def _earlier(self, path: str) -> bytes | None:
        key = (self.actor, path)
        if key in self._late:
            until, before = self._late[key]
            if self.cycles < until:
                return before
            del self._late[key]
        past = self.fs.past.get(path)
        if past and self.faults.draw("read-stale", 0.3):
            return self.rng.choice(past)
        if past and self.faults.draw("rename-late", 0.3):
            self._late[key] = (self.cycles + self.rng.randrange(2, 12), past[-1])
            return past[-1]
        return None

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

    def experiment_written(self) -> None:
        if self.actor == "controller" and self.faults.draw("experiment-lost", 10):
            self.dying = True
            raise Crash

    def publish(self, path: Any, order: Order) -> None:
        """``write_order`` as the controller calls it."""
        if not self._nested and self.faults.draw("takeover-in-publish", 3):
            self._take_over()
        self.watch.publishing(order, self._look_db())
        before = self.watch.last_published
        turn = (order.fence, order.generation)
        self.fs_published(order)
        try:
            write_order(path, order)
        except BaseException:
            self.watch.last_published = min(before, turn) if before != (0, 0) else before
            raise
        self.watch.last_published = turn
        self.foreign = False

    def fs_published(self, order: Order) -> None:
        text = json.dumps(order_json(order), indent=1, allow_nan=False) + "\n"
        self.watch.published.add(text.encode())

    def config_of(self, fence: int) -> RunConfig:
        return self._configs.get(fence, self.config)

    def seen_ledger(self, fence: int) -> tuple[dict[str, float], int]:
        for controller in [self.first, *self.old]:
            if (
                controller is not None
                and controller.journal.fence == fence
                and controller.observer.news.status is not None
            ):
                status = controller.observer.news.status
                return {n: s.tokens for n, s in status.sources.items()}, status.tokens
        return dict(self.trainer.drawn), self.trainer.step * STEP_TOKENS

    def _look_db(self) -> sqlite3.Connection:
        if self._db is None:
            self._db = sqlite3.connect(
                f"file:{self.dir / 'journal.db'}?vfs=unix-none", uri=True, isolation_level=None
            )
            self._db.row_factory = sqlite3.Row
        return self._db
