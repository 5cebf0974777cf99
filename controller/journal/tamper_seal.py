"""The journal's seal: a digest of all its rows, kept up by every transaction, checked at a start.

A value that fits its column looks like the truth, and rows that are gone look like nothing. So
each transaction leaves the sum of what all rows hash to (an incremental multiset hash, AdHash of
Bellare and Micciancio 1997), taken from the rows it adds, changes and removes alone: what differs
from it at the next start was not written by a controller. Without a key it tells accidents (a copy
made while a transaction was open, another tool, a disk that flips bits), not somebody who means to
deceive. With one the rows hash to what only who has it can compute, and the sum is signed.
"""

from __future__ import annotations

import hmac
import sqlite3
from collections.abc import Iterable, Sequence
from hashlib import blake2b
from typing import Any

COLUMN = "seal"  # of the lease; left out of what is hashed
_BYTES = 16
_MASK = (1 << 8 * _BYTES) - 1
_SIGNED = b":"  # between a sum and its signature
_SCHEMA = "SELECT type, name, tbl_name, sql FROM main.sqlite_master ORDER BY name"


class Seal:
    """Follows what one connection does to the tables, from a known sum on.

    Args:
        db: a connection that writes; triggers of its own are put on its tables, for as long as it
            is open. They leave nothing in the file.
        tables: names.
        key: of :func:`derived`; empty: none.
    """

    def __init__(self, db: sqlite3.Connection, tables: Iterable[str], key: bytes = b"") -> None:
        self._key = key
        self._sum = self._before = 0
        db.create_function("mixloop_seal", -1, self._follow)
        db.execute("PRAGMA temp_store=MEMORY")  # a full disk must not matter here
        db.execute("PRAGMA recursive_triggers=ON")  # so that rows which REPLACE removes count
        db.executescript("".join(_triggers(db, table) for table in sorted(tables)))

    def begin(self, text: str | bytes) -> None:
        """A transaction begins on rows under this seal."""
        self._sum = self._before = _number(text, self._key)

    @property
    def now(self) -> str:
        """The seal of the rows as they are now."""
        return _text(self._sum, self._key)

    @property
    def changed(self) -> str | None:
        """The same; None while nothing has changed since the transaction began."""
        return None if self._sum == self._before else self.now

    def _follow(self, sign: int, table: str, *cells: Any) -> None:
        self._sum = (self._sum + sign * _hash(table, cells, self._key)) & _MASK


def derived(key: bytes | None) -> bytes:
    """What seals are made with; empty without a key."""
    return b"" if key is None else blake2b(key, digest_size=32, person=b"mixloop-seal").digest()


def is_keyed(seal: str | bytes) -> bool:
    """Whether a seal was made with a key, whichever."""
    return _SIGNED in (seal.encode() if isinstance(seal, str) else seal)


def is_fitting(seal: str | bytes, key: bytes) -> bool:
    """Whether a seal was made with this key, or with none where that is empty."""
    data = seal.encode() if isinstance(seal, str) else seal
    text, _, signature = data.partition(_SIGNED)
    return hmac.compare_digest(signature, _signature(text, key).encode() if key else b"")


def whole(db: sqlite3.Connection, tables: Iterable[str], key: bytes = b"") -> str:
    """The seal that the rows of these tables should have, and what the file says of them."""
    total = _number(bare(db, key), key)
    for table in tables:
        cells = _cells(_columns(db, table), "")
        for row in db.execute(f"SELECT {cells} FROM main.{table}"):
            total += _hash(table, tuple(row), key)
    return _text(total & _MASK, key)


def bare(db: sqlite3.Connection, key: bytes = b"") -> str:
    """The seal of a file without a row: of its tables and indexes as they were declared."""
    return _text(sum(_hash("", _typed(row), key) for row in db.execute(_SCHEMA)) & _MASK, key)


def moved(seal: str | bytes, before: str, after: str) -> str:
    """A seal of rows that were ``before``, as it is of ``after``; one that is off stays off."""
    return _text((_number(seal) - _number(before) + _number(after)) & _MASK)


def counters(db: sqlite3.Connection) -> str | None:
    """What is wrong with SQLite's own count of rows ever made (it takes no trigger), or None.

    Decisions and events are numbered without a gap; entries of the outbox may be removed.
    """
    counted = dict(db.execute("SELECT name, seq FROM main.sqlite_sequence").fetchall())
    for table, gaps in (("decisions", False), ("events", False), ("outbox", True)):
        last = db.execute(f"SELECT COALESCE(MAX(seq), 0) FROM main.{table}").fetchone()[0]
        count = counted.get(table, 0)
        if not isinstance(count, int) or count < last or (count > last and not gaps):
            return f"sqlite_sequence says {count!r:.40} of {table}, whose last row is {last!r:.40}"
    return None


def _triggers(db: sqlite3.Connection, table: str) -> str:
    columns = _columns(db, table)
    new, old = _cells(columns, "NEW."), _cells(columns, "OLD.")
    names = ", ".join(f'"{name}"' for name in columns)
    add = f"SELECT mixloop_seal(1, '{table}', {new});"
    take = f"SELECT mixloop_seal(-1, '{table}', {old});"
    return "".join(
        f"CREATE TEMP TRIGGER seal_{table}_{when[:6]} AFTER {when} ON main.{table} "
        f"BEGIN {what} END;"
        for when, what in (
            ("INSERT", add),
            ("DELETE", take),
            (f"UPDATE OF {names}", take + add),
        )
    )


def _columns(db: sqlite3.Connection, table: str) -> list[str]:
    return [row[1] for row in db.execute(f"PRAGMA main.table_info({table})") if row[1] != COLUMN]


def _cells(columns: Sequence[str], of: str) -> str:
    # as bytes: text that is no UTF-8 could not be handed over, and damage must end no transaction
    return ", ".join(f'typeof({of}"{name}"), CAST({of}"{name}" AS BLOB)' for name in columns)


def _typed(row: Iterable[Any]) -> tuple[Any, ...]:
    return tuple(cell if cell is None else str(cell).encode() for cell in row)


def _hash(table: str, cells: Iterable[Any], key: bytes) -> int:
    digest = blake2b(table.encode(), digest_size=_BYTES, key=key)
    for cell in cells:
        content = b"" if cell is None else cell.encode() if isinstance(cell, str) else cell
        digest.update(b"%d:" % len(content) if cell is not None else b"-")
        digest.update(content)
    return int.from_bytes(digest.digest())


def _text(total: int, key: bytes = b"") -> str:
    text = f"{total:0{2 * _BYTES}x}"
    return f"{text}{_SIGNED.decode()}{_signature(text.encode(), key)}" if key else text


def _signature(text: bytes, key: bytes) -> str:
    return hmac.new(key, text, "sha256").hexdigest()


def _number(seal: str | bytes, key: bytes = b"") -> int:
    """Of one that is not ours, or signed otherwise: what follows from it won't fit either."""
    data = seal.encode() if isinstance(seal, str) else seal
    try:
        return int(data.partition(_SIGNED)[0], 16) & _MASK if is_fitting(data, key) else 0
    except ValueError:
        return 0
