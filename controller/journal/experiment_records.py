"""What becomes of experiments, into the journal: each function is one transaction, or part of it.

An experiment is planned by the decision that asks for it (``records``), runs once its start is on
record, and ends once: ``done``, ``failed``, ``refused`` or ``abandoned``.
"""

from __future__ import annotations

import sqlite3

from mixloop.common.types import Json
from mixloop.controller.core import ExperimentRow, Rewind, experiment_entry

from .journal import Journal, add_event, timestamp
from .packing import pack
from .records import enqueue, now_ms

_OPEN = "state IN ('planned', 'running')"


def started(journal: Journal, experiment: str) -> None:
    """It begins, or goes on after a controller that began it has died."""
    with journal.transaction() as tx:
        tx.execute(
            "UPDATE experiments SET state = 'running', attempts = attempts + 1, "
            f"started_at = COALESCE(started_at, ?) WHERE id = ? AND {_OPEN}",
            (timestamp(), experiment),
        )


def retried(journal: Journal, experiment: str, reason: str) -> None:
    """An attempt has failed, and another is made."""
    with journal.transaction() as tx:
        tx.execute("UPDATE experiments SET reason = ? WHERE id = ?", (reason, experiment))
        detail = {"experiment": experiment, "reason": reason}
        add_event(tx, journal.fence or 0, "experiment-failed", detail)


def done(journal: Journal, row: ExperimentRow, result: Json, *, cost: int, effects: Json) -> None:
    """It has ended, with what came of it; ``effects``: what that says in figures."""
    with journal.transaction() as tx:
        _end(tx, row.id, "done", None, cost)
        tx.execute(
            "UPDATE experiments SET result = ?, effects = ? WHERE id = ? AND state = 'done'",
            (pack(result), pack(effects), row.id),
        )
        enqueue(tx, experiment_entry(row, "done", None, cost, effects, now_ms()))


def failed(journal: Journal, row: ExperimentRow, reason: str, *, cost: int = 0) -> None:
    """It has ended without a result, and is not tried again; ``cost``: of all branches; 0: unknown.

    What was not begun is the budget's again.
    """
    with journal.transaction() as tx:
        _end(tx, row.id, "failed", reason, cost)
        detail = {"experiment": row.id, "reason": reason}
        add_event(tx, journal.fence or 0, "experiment-failed", detail)
        enqueue(tx, experiment_entry(row, "failed", reason, cost or row.planned, {}, now_ms()))


def _end(
    tx: sqlite3.Connection,
    experiment: str,
    state: str,
    reason: str | None,
    cost: int = 0,
) -> None:
    tx.execute(
        "UPDATE experiments SET state = ?, reason = ?, finished_at = ?, cost = ?, "
        "ended = (SELECT COALESCE(MAX(ended), 0) + 1 FROM experiments) "
        f"WHERE id = ? AND {_OPEN}",
        (state, reason, timestamp(), cost, experiment),
    )


def abandoned(journal: Journal, experiment: str, reason: str) -> None:
    """It is given up: nothing more can come of it that anybody would use."""
    with journal.transaction() as tx:
        _abandon(tx, reason, "id = ?", experiment)
        detail = {"experiment": experiment, "reason": reason}
        add_event(tx, journal.fence or 0, "experiment-abandoned", detail)


def left_behind(tx: sqlite3.Connection, rewind: Rewind) -> None:
    """The trainer has left the branch that these began on; what they told is of no use here."""
    _abandon(tx, f"abandoned: {rewind}", "tokens > ?", rewind.tokens)
    tx.execute(
        "UPDATE experiments SET abandoned_by = ? WHERE abandoned_by IS NULL AND tokens > ?",
        (rewind.incarnation, rewind.tokens),
    )


def _abandon(tx: sqlite3.Connection, reason: str, which: str, value: object) -> None:
    tx.execute(
        "UPDATE experiments SET state = 'abandoned', reason = ?, finished_at = ? "
        f"WHERE {_OPEN} AND {which}",
        (reason, timestamp(), value),
    )
