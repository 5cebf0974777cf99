"""From SQLite's rows to typed records, in one place."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Container, Iterable
from dataclasses import fields
from typing import Any, TypeVar, get_args, get_type_hints

from mixloop.common.types import Json
from mixloop.controller.core import (
    ApprovalRow,
    AssessmentRow,
    CheckpointRow,
    CheckpointState,
    Counts,
    DecisionRow,
    EvaluationRow,
    EventRow,
    ExperimentOutcome,
    ExperimentRow,
    Guards,
    LeaseRow,
    OrderRow,
    OutboxRow,
    Plan,
    RequestRow,
    ScoredCheckpoint,
    TableRow,
    Weights,
)
from mixloop.policies.guards import GuardNote

from .packing import unpack

R = TypeVar("R", bound=TableRow)

TABLE_ROWS: tuple[type[TableRow], ...] = (
    *(LeaseRow, CheckpointRow, EvaluationRow, DecisionRow, OrderRow, EventRow, OutboxRow),
    *(RequestRow, ApprovalRow, AssessmentRow, ExperimentOutcome),
)


_PARTS = (ScoredCheckpoint, CheckpointState, ExperimentRow)  # joins, and rows in part


def _plan(stored: str | bytes) -> Plan:
    return tuple((until, weights) for until, weights in unpack(stored))


def _guards(stored: str | bytes) -> Guards:
    return tuple(GuardNote(**note) for note in unpack(stored))


_JSON: dict[Any, Callable[[str | bytes], Any]] = {
    **dict.fromkeys((Json, Weights, Counts, object), unpack),
    Plan: _plan,
    Guards: _guards,
}


def _readers(kind: type[Any]) -> dict[str, Callable[[str | bytes], Any] | None]:
    hints = get_type_hints(kind)
    types = {field.name: hints[field.name] for field in fields(kind)}
    return {
        name: next((_JSON[part] for part in (hint, *get_args(hint)) if part in _JSON), None)
        for name, hint in types.items()
    }


# the columns of each kind of row; for those of JSON, what reads them
_READERS = {kind: _readers(kind) for kind in (*TABLE_ROWS, *_PARTS)}

# without `value`, which is JSON in assessments alone: it comes as such from MLflow
JSON_COLUMNS = frozenset(
    name for row in _READERS.values() for name, read in row.items() if read and name != "value"
)


def query(kind: type[TableRow], clause: str) -> str:
    """The SELECT of all its columns; ``clause``: all that follows the table."""
    return f"SELECT {', '.join(_READERS[kind])} FROM {kind.TABLE} {clause}"


def build(kind: type[R], cells: Iterable[Any]) -> R:
    """A row of :func:`query` as a record.

    Raises:
        ValueError, TypeError, RecursionError: a value that is damaged.
    """
    shaped = zip(_READERS[kind].values(), cells, strict=True)
    return kind(*(cell if read is None or cell is None else read(cell) for read, cell in shaped))


def missing_column(db: sqlite3.Connection, tables: Container[str]) -> str | None:
    """``table.column`` of the first that these tables of a file lack, or None."""
    for kind in TABLE_ROWS:
        if kind.TABLE not in tables:
            continue
        columns = {row[1] for row in db.execute(f"PRAGMA table_info({kind.TABLE})")}
        for name in _READERS[kind]:
            if name not in columns:
                return f"{kind.TABLE}.{name}"
    return None
