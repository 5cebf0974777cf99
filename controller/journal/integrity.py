"""Whether the rows of a journal hold what their columns are for: looked at when a seal doesn't fit.

SQLite lets any value into any column, and a daemon may go on for weeks before it reads the one that
is wrong. Pages are checked by SQLite itself (``PRAGMA integrity_check``).
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable

from mixloop.common.errors import shown

from .packing import unpack
from .row_reading import JSON_COLUMNS

LISTS = frozenset({"plan", "guards"})
SHARES = frozenset(
    {"weights", "weights_before", "weights_proposed", "weights_after", "drawn", "losses"}
)


def wrong_value(db: sqlite3.Connection, tables: Iterable[str]) -> str | None:
    """One line on the first value that is wrong: table, row, column, value; None: all are right.

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
            for (name, kind, required), value in zip(columns, tuple(row)[1:], strict=True):
                if value is None and not required:
                    continue
                wanted = _wrong_json(name, value) if name in JSON_COLUMNS else _wrong(kind, value)
                if wanted is not None:
                    text = ascii(shown(value))[1:-1]
                    return f"{table}, row {row[0]}: {name} is {text}: must be {wanted}"
    return None


def _wrong(kind: str, value: object) -> str | None:
    if kind == "INTEGER":
        return None if isinstance(value, int) else "a whole number"
    return None if isinstance(value, str) else "text"


def _wrong_json(name: str, value: str | bytes) -> str | None:
    try:
        content = unpack(value)
    except Exception:  # whatever damage makes of a packed value
        content = None
    if name in LISTS:
        return None if isinstance(content, list) else "a list as JSON"
    if not isinstance(content, dict):
        return "an object as JSON"
    numbers = name not in SHARES or all(_is_number(share) for share in content.values())
    return None if numbers else "an object of numbers as JSON"


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
