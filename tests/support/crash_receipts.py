"""The daemon struck down in a run whose changes have receipts; options as of crash_points.py.

``python crash_receipts.py [--during experiment] …``: the play of :mod:`crash_points` is too short
for a twin, which needs two evaluations before it and three after. Here the policy asks for an
experiment and then changes the mixture whenever it may, and a person gives three orders.
Undisturbed, a receipt of the policy's is done, one of a person's is given up because its order
never came into force, and another of a person's is done. A blow may shift which of them there are;
each that is planned has to end as its order did.
"""

from __future__ import annotations

import contextlib
import importlib
import sqlite3
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, ClassVar

from mixloop.controller import views
from mixloop.controller.journal import Journal, queries
from mixloop.controller.journal.packing import unpack

crash_points: Any = importlib.import_module(
    "crash_points"
)  # beside this script, which is on the path
must = crash_points.must

STEPS = list(range(20, 141, 20))
PLANNED = "a receipt: a twin"
TWIN = 40 * 80  # tokens of two evaluations
OPEN = (
    "SELECT e.id, e.asked, e.state, o.applied_step FROM experiments e "
    "LEFT JOIN orders o ON o.decision = e.decision WHERE e.state IN ('planned', 'running')"
)
GAIN = 0.03  # of the run against a twin that stays where it began: 0.02 half-way, 0.04 at its end


class ReceiptPlay(crash_points.Play):  # type: ignore[misc,name-defined]
    """Three receipts beside an experiment, of which one's order is overtaken."""

    steps, budget = STEPS, 140 * 80
    allowed: ClassVar[dict[str, Any]] = {"budget": crash_points.TRIED + 3 * TWIN, "receipts": True}

    def acts(self) -> list[tuple[int, Callable[[], None]]]:
        return [
            (60, self._change_mind),
            (80, lambda: self._ask("set", weights={"web": 0.5}, reason="less of the web")),
        ]

    def _change_mind(self) -> None:
        """The trainer looks when both are asked for, and takes the second."""
        self._ask("set", weights={"code": 0.25}, reason="more code")
        time.sleep(0.002)  # requests are taken in the order of their milliseconds
        self._ask("set", weights={"maths": 0.25}, reason="or rather maths")

    def _look(self) -> None:
        """Also, while the daemon waits for us: one receipt at a time, begun after its order."""
        super()._look()
        with contextlib.suppress(sqlite3.OperationalError):  # after a death within a transaction
            rows = self._open()
            must(len(rows) <= 1, f"{[row[0] for row in rows]} are open at a time")
            for name, _, state, in_force in rows:
                must(state == "planned" or in_force is not None, f"{name} begins before its order")

    def _open(self) -> list[tuple[Any, ...]]:
        """Receipts still to be made; what a dead daemon has left half-written stays so."""
        place = f"file:{self.paths.journal}?mode=ro"
        with contextlib.closing(sqlite3.connect(place, uri=True, timeout=0)) as database:
            rows = database.execute(OPEN).fetchall()
        return [row for row in rows if unpack(row[1]).get("receipt")]

    def _check_experiments(self, journal: Journal, decided: list[Any]) -> None:
        """Each receipt that was planned has ended once, as its order did, and been told of."""
        super()._check_experiments(journal, decided)
        rows = queries.experiments(journal)
        entries = {entry["id"]: entry for entry in views.history(journal)}
        notes = {name: [n["detail"] for n in e["guards"]] for name, e in entries.items()}
        planned = [n for n, said in notes.items() if any(s.startswith(PLANNED) for s in said)]
        receipts = [row for row in rows if row.receipt]
        has = [row.decision for row in receipts]
        must(has == planned, f"receipts planned by {planned}, in the journal of {has}")
        for row in receipts:
            self._check_receipt(journal, row, entries[row.decision])
        self.ends = Counter(row.state for row in receipts)
        few = self.starved or self.deaths > 1  # while nobody is there, orders overtake one another
        must(self.ends["done"] or few, f"receipts: {dict(self.ends)}")
        taken = sum(self._taken(row) for row in rows)
        charged = queries.experiments_charged(journal)
        must(charged == taken <= self.allowed["budget"], f"{charged} tokens charged, not {taken}")

    def _check_receipt(self, journal: Journal, row: Any, entry: dict[str, Any]) -> None:
        applied, told = entry["applied_step"], (entry["outcome"] or {}).get("receipt")
        keys = [f"experiment:{row.id}", f"receipt:{row.decision}:2"]
        sent = [key for key in keys if queries.entry(journal, key) is not None]
        if row.state == "abandoned":
            must(applied is None, f"{row.id}, its order in force, was given up: {row.reason}")
            must((row.attempts, row.ended, told) == (0, None, None), f"{row.id} was begun: {row}")
            return
        if row.state == "failed" and self.starved:
            must(told is None and sent == keys[:1], f"{row.id} failed, and told {told}, {sent}")
            return
        must(row.state == "done", f"{row.id} is {row.state}: {row.reason}")
        if self.deaths > 1 and applied > row.step + 20:
            return  # a checkpoint that was not recorded yet begins none: one point is left
        must(row.step < applied <= row.step + 20, f"{row.id}: {row.step}, in force at {applied}")
        must(row.cost == row.planned == TWIN, f"{row.id} took {row.cost} of {row.planned}")
        must(told is not None and told["n"] == 2, f"{row.id} tells {told}")
        must(abs(told["effect"] - GAIN) < 1e-6, f"{row.id} tells {told}")
        must(sent == keys, f"of {row.id} only {sent} is told")

    def _taken(self, row: Any) -> int:
        """What it costs, by how it ended."""
        if row.state == "abandoned":
            return 0
        return int(row.cost or row.planned) if row.state == "failed" else int(row.planned)


if __name__ == "__main__":
    crash_points.main(ReceiptPlay)
