"""The journal: the controller's memory in one SQLite file, and the answer to every question.

Rollback journal and ``synchronous=FULL`` rather than WAL, because the file may lie on a network
file system, where WAL's shared memory does not work.

One process writes. Which one is settled by the *fence*: it is raised when a controller starts and
asserted inside every transaction, so a controller that was paused and replaced can never write
over its successor (the fencing token of Chubby, Burrows 2006, section 2.4).
"""

from __future__ import annotations

import os
import socket
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from . import row_reading, tamper_seal
from .integrity import wrong_value
from .packing import JournalError, pack
from .row_reading import JSON_COLUMNS, R
from .schema import LATER_TABLES, MIGRATIONS, RUN_TABLES, SCHEMA_VERSION, TABLES


class FenceLost(Exception):  # noqa: N818 - a normal end of a replaced controller
    """Another controller has taken this run over; this one must stop at once."""


class JournalAltered(Exception):  # noqa: N818 - a verdict on the file, no fault of the program
    """With a key: rows are not what this controller left, so that nothing may rest on them."""


def damage(path: Path, error: Exception) -> str:
    """One line on a journal that can't be read, and what to do."""
    first = (str(error).splitlines() or [""])[0][:200]
    return (
        f"{path}: can't be read whole ({type(error).__name__}: {first}); restore a backup, or move "
        "it away: the next controller begins a new one from the mixture in force"
    )


def timestamp() -> str:
    """The wall clock as ISO 8601 in UTC, to the millisecond. For people; never compared."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class Journal:
    """One run's journal. Reads are free for all; writes need the fence that :meth:`claim` gives.

    Args:
        create: make the file where there is none.
        read_only: for those who look at a run that goes on: such a connection can write nothing,
            not even roll back what a killed controller left, and waits ``timeout`` at most.
        timeout: seconds.
        key: of the run; the seal is made with it, so that nobody without it can write rows that
            seem the controller's.

    Attributes:
        trusted: whether, with a key, nobody else has written since the last :meth:`check`.

    Raises:
        JournalError: when the file is no journal, or one of another version.
    """

    def __init__(
        self,
        path: Path,
        *,
        create: bool = False,
        read_only: bool = False,
        timeout: float = 0.5,
        key: bytes | None = None,
    ) -> None:
        if not create and not path.exists():
            raise JournalError(f"{path}: no journal here; start the run with `mixloop control`")
        if path.exists() and not path.is_file():  # SQLite would wait for a FIFO
            raise JournalError(f"{path}: no file, and no journal; move it away")
        if create:
            path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self.fence: int | None = None
        self.trusted = key is None
        self._seal: tamper_seal.Seal | None = None
        self._seal_key = tamper_seal.derived(key)
        self._watching = False
        self._left = ""  # the seal, after our last transaction
        self._foreign = ""  # why the seal that was found can't be ours
        self._others = 0  # SQLite's count of what other connections have written
        try:
            self._db = _connect(path, read_only, timeout)
            self._prepare(create)
        except UnicodeDecodeError as error:  # SQLite's message quotes what is damaged
            raise JournalError(damage(path, error)) from error
        except sqlite3.DatabaseError as error:
            raise JournalError(f"{path}: not a usable journal ({error})") from error

    def _prepare(self, create: bool) -> None:
        self._db.execute("PRAGMA synchronous=FULL")
        self._db.execute("PRAGMA foreign_keys=ON")
        version = self._db.execute("PRAGMA user_version").fetchone()[0]
        tables = {
            name
            for (name,) in self._db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
        }
        if version == 0 and create and not tables:
            # The tables and their version appear together or not at all.
            self._db.executescript(
                f"BEGIN IMMEDIATE;{RUN_TABLES}PRAGMA user_version={SCHEMA_VERSION};COMMIT;"
            )
            return
        if version != SCHEMA_VERSION and version not in MIGRATIONS:
            raise JournalError(
                f"{self.path}: journal version {version}, this mixloop reads {SCHEMA_VERSION}"
            )
        wanted = _tables_of(version)
        if lost := sorted(wanted - tables):
            raise JournalError(damage(self.path, LookupError(f"it has no table {lost[0]}")))
        if (column := row_reading.missing_column(self._db, wanted)) is not None:
            raise JournalError(damage(self.path, LookupError(f"it has no column {column}")))

    def check(self) -> str | None:
        """One line on what is damaged, read or not, or was changed by other hands; else None.

        Needs the fence. Reads the whole file: a start can bear that, a look can't. Damage is told
        at every start. Other changes are told once: then the rows are sealed as they are, and an
        event keeps that they were changed. With a key, what is told means that the rows are
        nobody's word.

        Raises:
            FenceLost: when another controller has taken the run over.
            JournalError: with a key, where nobody can tell what the rows are.
        """
        wrong = self._wrong()
        if self._seal_key and not self.trusted:
            raise JournalError(wrong)
        return wrong

    def _wrong(self) -> str | None:
        try:
            pages = str(self._db.execute("PRAGMA integrity_check(1)").fetchone()[0])
            if pages != "ok":
                return damage(self.path, sqlite3.DatabaseError(pages.splitlines()[-1]))
            return self._check_rows()
        except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
            if isinstance(error, sqlite3.OperationalError) and "decode" not in str(error):
                # locked, say: that is nobody's damage
                return f"{self.path}: could not be checked ({error}); the next start checks it"
            return damage(self.path, error)

    def _check_rows(self) -> str | None:
        seal = self._track_seal()
        with self._fenced() as tx:
            self._others = self._written_by_others()
            actual, sealed = tamper_seal.whole(tx, TABLES, self._seal_key), seal.now
            count = tamper_seal.counters(tx)
            older = self._watching and self._left != sealed
            self._watching = bool(self._seal_key)
            if actual == sealed and count is None and not older:
                self.trusted = True
                return None
            wrong = wrong_value(tx, TABLES)
            if wrong is not None and not self._seal_key:
                return damage(self.path, ValueError(wrong))
            seal.begin(actual)
            why = count or self._foreign or "rows were added, changed or removed"
            detail = {"reason": why, "sealed": sealed, "found": actual}
            add_event(tx, self.fence or 0, "journal-altered", detail)
        self.trusted = True  # from here on
        if wrong is not None:
            return damage(self.path, ValueError(wrong))
        if self._foreign:
            return f"{self.path}: {self._foreign}"
        return (
            f"{self.path}: was changed by something other than mixloop since a controller last "
            f"wrote it{f' ({count})' if count else ''}; it is gone on with as it is: if nobody "
            "meant to, stop, and restore a backup, or move it away: the next controller begins a "
            "new one from the mixture in force"
        )

    def verify(self) -> None:
        """With a key: see whether every row is as this controller left it. Reads the whole file.

        Raises:
            JournalAltered: one is not.
            FenceLost: when another controller has taken the run over.
        """
        if self._watching:
            with self._fenced() as tx:
                self._refuse_altered(tx)

    def notice(self) -> None:
        """With a key: :meth:`verify` if another process has written since the last time.

        Raises:
            JournalAltered: it has changed rows.
        """
        if self._watching and not (self.trusted and self._written_by_others() == self._others):
            self.verify()

    def _refuse_altered(self, tx: sqlite3.Connection) -> None:
        sealed = self._track_seal().now
        # an older copy has a sound seal too
        as_left = self._left == sealed == tamper_seal.whole(tx, TABLES, self._seal_key)
        if not (self.trusted and as_left):
            self.trusted = False
            raise JournalAltered(f"{self.path}: was changed by something other than mixloop")
        self._others = self._written_by_others()

    def _written_by_others(self) -> int:
        return int(self._db.execute("PRAGMA data_version").fetchone()[0])

    def close(self) -> None:
        """Close the file. Safe to call twice."""
        self._db.close()

    # -- the fence ---------------------------------------------------------------------------

    def claim(self, run: str, *, above: int = 0) -> int:
        """Take the run over: raise the fence past every one seen, here or by the trainer.

        Args:
            run: The run's id.
            above: The highest fence in the trainer's schedule, which may be ahead of a journal
                that was lost or restored from a backup.

        Returns:
            The new fence.

        Raises:
            JournalError: when the journal belongs to another run.
        """
        self._refuse_other(run)
        self._migrate()
        self._foreign = self._sealed_otherwise()
        with self._writing() as lease:
            self._refuse_other(run)
            self._db.execute("INSERT OR IGNORE INTO meta VALUES ('run', ?)", (run,))
            fence = max(0 if lease is None else lease, above) + 1
            holder = f"{socket.gethostname()}:{os.getpid()}"
            self._db.execute(
                "INSERT OR REPLACE INTO lease VALUES (1, ?, ?, 0, ?, '')",
                (fence, holder, timestamp()),
            )
        self.fence = fence
        return fence

    def refuse_other_key(self) -> None:
        """For who writes without taking the run over: the next start must find its seal.

        Raises:
            JournalError: it is not of this key, or there is one and this has none.
        """
        if self._sealed_otherwise():
            raise JournalError(
                f"{self.path}: is sealed with another key than this command's, or one of the two "
                "has none; give it the controller's (trainer.key_file, or MIXLOOP_KEY_FILE)"
            )

    def _sealed_otherwise(self) -> str:
        """Why the seal in the file can't fit, whoever wrote the rows; empty where it may."""
        seal = self.value("SELECT CAST(seal AS BLOB) FROM lease")
        if seal is None or tamper_seal.is_fitting(seal, self._seal_key):
            return ""
        if not self._seal_key:
            return "was sealed with a key, which this controller has not; gone on with as it is"
        found = "another key than this" if tamper_seal.is_keyed(seal) else "no key"
        return f"was sealed with {found}: nobody can tell who wrote it"

    def _refuse_other(self, run: str) -> None:
        owner = self.value("SELECT value FROM meta WHERE key = 'run'")
        if owner is not None and owner != run:
            raise JournalError(
                f"{self.path}: belongs to run '{owner}', not '{run}'; "
                "give this run a folder of its own (run.dir)"
            )

    @property
    def version(self) -> int:
        """The version of the tables in the file: a reader may find those of an older one."""
        return int(self.value("PRAGMA user_version"))

    def _migrate(self) -> None:
        """Make the tables of an older version those of this one, whole or not at all.

        The fence is raised with them: a controller of that version writes no more. Whether the
        seal fits is left as it was.
        """
        if self.version == SCHEMA_VERSION:
            return
        self._db.execute("BEGIN IMMEDIATE")
        try:
            for version in range(self.version, SCHEMA_VERSION):
                self._migrate_from(version)
            self._db.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise

    def _migrate_from(self, version: int) -> None:
        before = tamper_seal.whole(self._db, _tables_of(version))
        for statements in MIGRATIONS[version]:
            self._db.execute(statements)
        self._db.execute(f"PRAGMA user_version={version + 1}")
        self._db.execute("UPDATE lease SET fence = fence + 1")
        row = self._db.execute("SELECT CAST(seal AS BLOB) FROM lease").fetchone()
        if row is not None:
            after = tamper_seal.whole(self._db, _tables_of(version + 1))
            self._db.execute(
                "UPDATE lease SET seal = ?", (tamper_seal.moved(row[0], before, after),)
            )

    @contextmanager
    def _writing(self) -> Iterator[int | None]:
        """A write under the seal, whole or not at all; gives the fence in the file."""
        seal = self._track_seal()
        self._db.execute("BEGIN IMMEDIATE")
        try:
            lease = self._db.execute("SELECT fence, CAST(seal AS BLOB) FROM lease").fetchone()
            seal.begin(lease[1] if lease else tamper_seal.bare(self._db, self._seal_key))
            yield lease and lease[0]
            if seal.changed is not None:
                self._db.execute("UPDATE lease SET seal = ?", (seal.changed,))
            self._db.execute("COMMIT")
            self._left = seal.now
        except BaseException:
            if self._db.in_transaction:  # SQLite has done it already on a full disk
                self._db.execute("ROLLBACK")
            raise

    def _track_seal(self) -> tamper_seal.Seal:
        if self._seal is None:  # those who only read need none
            self._seal = tamper_seal.Seal(self._db, TABLES, self._seal_key)
        return self._seal

    def assert_fence(self) -> None:
        """Raise :class:`FenceLost` if another controller has taken the run over by now."""
        with self.transaction():
            pass

    def raise_fence(self, above: int) -> int:
        """Pass a fence that a stranger made the trainer accept. Returns the new fence.

        Raises:
            FenceLost: when the fence was raised by a controller of this journal.
        """
        with self.transaction() as tx:
            fence = max(self.fence or 0, above) + 1
            tx.execute("UPDATE lease SET fence = ?", (fence,))
        self.fence = fence
        return fence

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """A write that happens wholly or not at all, under this controller's fence.

        With a key, what was read for it was this controller's: rows that others wrote meanwhile
        end it.

        Raises:
            FenceLost: when a later controller holds the run; nothing was written.
            JournalAltered: rows are not what this controller left; nothing was written.
        """
        with self._fenced() as tx:
            if self._watching and self._written_by_others() != self._others:
                self._refuse_altered(tx)
            yield tx

    @contextmanager
    def _fenced(self) -> Iterator[sqlite3.Connection]:
        with self._writing() as fence:
            if fence is None or fence != self.fence:
                raise FenceLost(f"fence {self.fence} was replaced by {fence}")
            yield self._db

    # -- reading -----------------------------------------------------------------------------

    def stream(self, kind: type[R], clause: str = "", *values: object) -> Iterator[R]:
        """Rows as records, unpacked one at a time: a long history never lies there as a whole.

        What is packed is fetched at once all the same: while rows are being fetched the file
        can't be written. ``clause`` is all that follows the table in the SELECT.
        """
        with self._read():
            for cells in self._db.execute(row_reading.query(kind, clause), values).fetchall():
                yield row_reading.build(kind, cells)

    def select(self, kind: type[R], clause: str = "", *values: object) -> list[R]:
        """All of :meth:`stream`."""
        return list(self.stream(kind, clause, *values))

    def first(self, kind: type[R], clause: str = "", *values: object) -> R | None:
        """The first of :meth:`stream`, or None."""
        with self._read():
            cells = self._db.execute(row_reading.query(kind, clause), values).fetchone()
            return None if cells is None else row_reading.build(kind, cells)

    def cells(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        """Rows as they are stored."""
        with self._read():
            return self._db.execute(query, values).fetchall()

    def value(self, query: str, *values: object) -> Any:
        """The first cell, or None."""
        return next((row[0] for row in self.cells(query, *values)), None)

    @contextmanager
    def _read(self) -> Iterator[None]:
        """What can't be read is told in one line: a damaged page, a row that is no JSON."""
        try:
            yield
        except (sqlite3.DatabaseError, ValueError, TypeError, RecursionError) as error:
            raise JournalError(damage(self.path, error)) from error

    # -- writing -----------------------------------------------------------------------------

    def event(self, kind: str, **detail: object) -> None:
        """Note something a person may later ask about (a start, a stranger's file, an alarm)."""
        with self.transaction() as tx:
            add_event(tx, self.fence or 0, kind, detail)


def _tables_of(version: int) -> frozenset[str]:
    return frozenset(name for name in TABLES if LATER_TABLES.get(name, 1) <= version)


def _connect(path: Path, read_only: bool, timeout: float) -> sqlite3.Connection:
    if not read_only:
        return sqlite3.connect(path, isolation_level=None, timeout=30.0)
    place = f"{path.resolve().as_uri()}?mode=ro"
    return sqlite3.connect(place, uri=True, isolation_level=None, timeout=timeout)


def add_event(tx: sqlite3.Connection, fence: int, kind: str, detail: Mapping[str, object]) -> None:
    """Append an event inside a running transaction."""
    tx.execute(
        "INSERT INTO events (at, fence, kind, detail) VALUES (?, ?, ?, ?)",
        (timestamp(), fence, kind, pack(detail)),
    )


def insert(tx: sqlite3.Connection, table: str, /, **columns: object) -> None:
    """Insert one row; mappings and sequences become JSON."""
    names = ", ".join(columns)
    marks = ", ".join("?" * len(columns))
    values = [pack(v) if name in JSON_COLUMNS else v for name, v in columns.items()]
    tx.execute(f"INSERT INTO {table} ({names}) VALUES ({marks})", values)
