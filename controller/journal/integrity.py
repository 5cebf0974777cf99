"""Whether the rows of a journal hold what their columns are for: looked at when a seal doesn't fit.

SQLite lets any value into any column, and a daemon may go on for weeks before it reads the one that
is wrong. Pages are checked by SQLite itself (``PRAGMA integrity_check``).
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable
from typing import Any

from mixloop.common.errors import shown

LISTS = frozenset({"plan", "guards"})
SHARES = frozenset(
    {"weights", "weights_before", "weights_proposed", "weights_after", "drawn", "losses"}
)


def wrong_value(
    db: sqlite3.Connection,
    tables: Iterable[str],
    json_columns: frozenset[str],
    unpack: Callable[[str | bytes], Any],
) -> str | None:
    """One line on the first value that is wrong: table, row, column, value; None: all are right.

    Args:
        tables: names.
        json_columns: columns that hold JSON, as ``unpack`` reads it.

    Raises:
        sqlite3.DatabaseError: the file can't be read.
    """
    for table in sorted(tables):
        columns = [
            (row[1], row[2].upper(), bool(row[3]))
            for row in db.execute(f"PRAGMA table_info({table})")
        ]
        names = ", ".join(f'"{name}"' for name, _, _ in columns)
        for row in db.execute(f"SELECT rowid, {names} FROM {table}"):
            for (name, kind, needed), value in zip(columns, tuple(row)[1:], strict=True):
                if value is None and not needed:
                    continue
                is_json = name in json_columns
                wanted = _wrong_json(name, value, unpack) if is_json else _wrong(kind, value)
                if wanted is not None:
                    return f"{table}, row {row[0]}: {name} is {_shown(value)}: must be {wanted}"
    return None


def _wrong(kind: str, value: Any) -> str | None:
    if kind == "INTEGER":
        return None if isinstance(value, int) else "a whole number"
    return None if isinstance(value, str) else "text"


def _wrong_json(name: str, value: Any, unpack: Callable[[str | bytes], Any]) -> str | None:
    wanted = "a list" if name in LISTS else "an object"
    if not isinstance(value, str | bytes):
        return f"{wanted} as JSON"
    try:
        found = unpack(value)
    except Exception:  # whatever damage makes of a packed entry
        return f"{wanted} as JSON"
    if name in LISTS:
        return None if isinstance(found, list) else f"{wanted} as JSON"
    if not isinstance(found, dict):
        return f"{wanted} as JSON"
    numbers = name not in SHARES or all(_is_number(one) for one in found.values())
    return None if numbers else "an object of numbers as JSON"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _shown(value: Any) -> str:
    return ascii(shown(value))[1:-1]
