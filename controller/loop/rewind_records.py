"""The trainer's incarnations into the journal, and what a rewind does to what is recorded."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

from mixloop.common.types import Json
from mixloop.contract import OpenLine
from mixloop.controller.core import Rewind, left_by
from mixloop.controller.journal import Journal, add_event, set_meta, skip


def incarnations(journal: Journal, begun: Sequence[OpenLine], made: Sequence[Rewind]) -> list[int]:
    """The trainer began anew; what a rewind left behind no longer counts, and stays on record.

    Scores and decisions of the abandoned branch are set apart, and orders that came into force on
    it did not on this one.

    Returns:
        The steps of the abandoned checkpoints.
    """
    left: list[int] = []
    cut_by = {cut.incarnation: cut for cut in made}
    with journal.transaction() as tx:
        for line in begun:
            cut = cut_by.get(line.incarnation)
            detail: Json = {
                "incarnation": line.incarnation,
                "step": line.step,
                "sample": line.sample,
            }
            detail |= {"parent": line.parent, "rewound": cut is not None}
            if cut is not None:
                detail["applied_before"] = _applied_beyond(journal, cut)
                left += _abandon(tx, journal, cut)
            add_event(tx, journal.fence or 0, "incarnation", detail)
        set_meta(tx, "incarnation", max(line.incarnation for line in begun))
    return left


def _applied_beyond(journal: Journal, cut: Rewind) -> list[Json]:
    """Orders that a rewind takes back: where they had come into force stays on record here."""
    rows = journal.rows(
        "SELECT generation, applied_step, applied_sample FROM orders WHERE applied_sample > ? "
        "ORDER BY generation",
        cut.sample,
    )
    return [
        {"generation": r["generation"], "step": r["applied_step"], "sample": r["applied_sample"]}
        for r in rows
    ]


def _abandon(tx: sqlite3.Connection, journal: Journal, cut: Rewind) -> list[int]:
    rows = journal.rows(
        "SELECT c.step, c.sample, c.incarnation, e.state FROM checkpoints c "
        "LEFT JOIN evaluations e USING (step)"
    )
    left = [row for row in rows if left_by((cut,), row["sample"], row["incarnation"])]
    for row in left:
        if row["state"] not in ("failed", "skipped"):
            skip(tx, journal, row["step"], f"abandoned: {cut}")
    tx.execute(
        # an operator's order that comes into force again is as good as it was
        "UPDATE decisions SET abandoned_by = ? WHERE abandoned_by IS NULL AND tokens > ? "
        "AND (asked_by = 'policy' OR generation IS NULL "
        "OR generation < (SELECT MAX(generation) FROM orders WHERE rejected IS NULL))",
        (cut.incarnation, cut.tokens),
    )
    tx.execute(
        "UPDATE orders SET applied_sample = NULL, applied_step = NULL, applied_tokens = NULL, "
        "applied_at = NULL WHERE applied_sample > ?",
        (cut.sample,),
    )
    # the newest lies in mixture.json, and the trainer takes it anew; those before it never come
    tx.execute(
        "UPDATE orders SET rejected = ? WHERE rejected IS NULL AND applied_sample IS NULL "
        "AND generation < (SELECT MAX(generation) FROM orders WHERE rejected IS NULL)",
        (f"cut when {cut}",),
    )
    return [row["step"] for row in left]
