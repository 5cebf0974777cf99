"""The trainer's incarnations into the journal, and what a rewind does to what is recorded."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

from mixloop.common.types import Json
from mixloop.contract import OpenLine
from mixloop.controller.core import Rewind, left_by

from . import experiment_records, queries
from .journal import Journal, add_event
from .records import set_meta, skip


def note_incarnations(
    journal: Journal, began: Sequence[OpenLine], rewinds: Sequence[Rewind]
) -> list[int]:
    """The trainer began anew; what a rewind left behind no longer counts, and stays on record.

    Scores and decisions of the abandoned branch are set apart, and orders that came into force on
    it did not on this one.

    Args:
        journal: The run's, claimed.
        began: The incarnations it does not know of, oldest first.
        rewinds: All rewinds of the run.

    Returns:
        The steps of the abandoned checkpoints.
    """
    left: list[int] = []
    rewind_of = {rewind.incarnation: rewind for rewind in rewinds}
    with journal.transaction() as tx:
        for line in began:
            rewind = rewind_of.get(line.incarnation)
            detail: Json = {
                "incarnation": line.incarnation,
                "step": line.step,
                "sample": line.sample,
            }
            detail |= {"parent": line.parent, "rewound": rewind is not None}
            if rewind is not None:
                detail["applied_before"] = _applied_beyond(journal, rewind)
                left += _abandon(tx, journal, rewind)
            add_event(tx, journal.fence or 0, "incarnation", detail)
        set_meta(tx, "incarnation", max(line.incarnation for line in began))
    return left


def _applied_beyond(journal: Journal, rewind: Rewind) -> list[Json]:
    """Orders that a rewind takes back: where they had come into force stays on record here."""
    return [
        {
            "generation": order.generation,
            "step": order.applied_step,
            "sample": order.applied_sample,
        }
        for order in queries.orders_applied_after(journal, rewind.sample)
    ]


def _abandon(tx: sqlite3.Connection, journal: Journal, rewind: Rewind) -> list[int]:
    rows = queries.checkpoint_states(journal)
    left = [row for row in rows if left_by((rewind,), row.sample, row.incarnation)]
    for row in left:
        if row.state not in ("failed", "skipped"):
            skip(tx, journal, row.step, f"abandoned: {rewind}")
    tx.execute(
        # an operator's order that comes into force again is as good as it was
        "UPDATE decisions SET abandoned_by = ? WHERE abandoned_by IS NULL AND tokens > ? "
        "AND (asked_by = 'policy' OR generation IS NULL "
        "OR generation < (SELECT MAX(generation) FROM orders WHERE rejected IS NULL))",
        (rewind.incarnation, rewind.tokens),
    )
    experiment_records.left_behind(tx, rewind)
    tx.execute(
        "UPDATE orders SET applied_sample = NULL, applied_step = NULL, applied_tokens = NULL, "
        "applied_at = NULL WHERE applied_sample > ?",
        (rewind.sample,),
    )
    # the newest lies in mixture.json, and the trainer takes it anew; those before it never come
    tx.execute(
        "UPDATE orders SET rejected = ? WHERE rejected IS NULL AND applied_sample IS NULL "
        "AND generation < (SELECT MAX(generation) FROM orders WHERE rejected IS NULL)",
        (f"cut when {rewind}",),
    )
    return [row.step for row in left]
