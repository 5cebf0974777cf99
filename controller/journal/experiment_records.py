"""What becomes of experiments, into the journal: each function is one transaction, or part of it.

An experiment is planned by the decision that asks for it, runs once its start is on record, and
ends once: ``done``, ``failed``, ``refused`` or ``abandoned``.
"""

from __future__ import annotations

import sqlite3

from mixloop.common.types import Json
from mixloop.controller.core import DecisionRecord, ExperimentRecord, Rewind

from .journal import Journal, add_event, insert, timestamp
from .packing import pack

_OPEN = "state IN ('planned', 'running')"


def asked(
    tx: sqlite3.Connection, decision: str, record: DecisionRecord, experiment: ExperimentRecord
) -> None:
    """The experiment of a decision, inside the transaction that records that."""
    number = tx.execute("SELECT COUNT(*) FROM experiments").fetchone()[0] + 1
    refused = experiment.refused
    now = timestamp()
    insert(
        tx,
        "experiments",
        id=f"e-{number:06d}",
        decision=decision,
        step=record.step,
        tokens=record.tokens,
        asked=experiment.asked,
        planned=experiment.planned,
        state="planned" if refused is None else "refused",
        attempts=0,
        reason=refused,
        cost=0,
        asked_at=now,
        finished_at=None if refused is None else now,
    )


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


def done(journal: Journal, experiment: str, result: Json, cost: int) -> None:
    """It has ended, with what came of it; ``cost`` in training tokens."""
    with journal.transaction() as tx:
        _end(tx, experiment, "done", None)
        tx.execute(
            "UPDATE experiments SET result = ?, cost = ? WHERE id = ?",
            (pack(result), cost, experiment),
        )


def failed(journal: Journal, experiment: str, reason: str) -> None:
    """It has ended without a result, and is not tried again."""
    with journal.transaction() as tx:
        _end(tx, experiment, "failed", reason)
        detail = {"experiment": experiment, "reason": reason}
        add_event(tx, journal.fence or 0, "experiment-failed", detail)


def _end(tx: sqlite3.Connection, experiment: str, state: str, reason: str | None) -> None:
    tx.execute(
        "UPDATE experiments SET state = ?, reason = ?, finished_at = ?, "
        "ended = (SELECT COALESCE(MAX(ended), 0) + 1 FROM experiments) "
        f"WHERE id = ? AND {_OPEN}",
        (state, reason, timestamp(), experiment),
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
