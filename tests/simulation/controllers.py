"""Controllers of one run: started, replaced, killed, and what a power loss leaves of files."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from mixloop.contract import RunPaths
from mixloop.controller.journal import FenceLost, JournalError
from mixloop.controller.loop import Controller

from .faults import Crash
from .invariants import Violation
from .surroundings import Surroundings


class Controllers(Surroundings):
    """The first controller, and those that were replaced and do not know it yet."""

    paths: RunPaths

    # -- controllers ------------------------------------------------------

    def _start(self) -> Controller | None:
        """A controller on the files as they are; None if it could not start this time."""
        base = Path(str(self.base))
        fence = self._lease() + 1
        self._configs[fence] = self.config
        try:
            controller = Controller(self.config, base, self.tell, clock=self.clock)
        except (OSError, sqlite3.Error, JournalError) as error:
            self.tell(f"no start: {type(error).__name__}: {error}")
            return None
        controller._stop = self  # type: ignore[assignment]  # waits in simulated time
        self._configs[controller.journal.fence or 0] = self.config
        self.tell(f"started under fence {controller.journal.fence}")
        return controller

    def _lease(self) -> int:
        try:
            row = self._look_db().execute("SELECT fence FROM lease").fetchone()
        except sqlite3.Error:
            return 0
        return row[0] if row else 0

    def _turn(self, controller: Controller) -> str:
        """One look of a controller: ``on``, ``ended``, ``replaced`` or ``died``."""
        try:
            more = controller.turn()
            self._configs.setdefault(controller.journal.fence or 0, self.config)
            return "on" if more else "ended"
        except FenceLost as error:
            self.tell(f"a controller ends: {error}")
            self._discard(controller)
            return "replaced"
        except Crash:
            self.tell("a controller dies")
            self._discard(controller)
            self._after_death()
            return "died"
        except Violation:
            raise
        except Exception as error:
            raise Violation("survives", f"{type(error).__name__}: {error}") from error

    def _discard(self, controller: Controller) -> None:
        """Its memory is gone; the kernel closes what it had open."""
        controller.journal._db.close()
        controller.decisions.drop()
        controller.experiments.close()
        controller.mlflow.close()

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
