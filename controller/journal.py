"""The journal: the controller's memory in one SQLite file, and the answer to every question.

Rollback journal and ``synchronous=FULL`` rather than WAL, because the file may lie on a network
file system, where WAL's shared memory does not work.

One process writes. Which one is settled by the *fence*: it is raised when a controller starts and
asserted inside every transaction, so a controller that was paused and replaced can never write
over its successor (the fencing token of Chubby, Burrows 2006, section 2.4).
"""

from __future__ import annotations

import json
import os
import re
import socket
import sqlite3
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mixloop.controller import journal_seal
from mixloop.controller.journal_check import wrong_value

SCHEMA_VERSION = 5

_TABLES = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE lease (
  id INTEGER PRIMARY KEY CHECK (id = 1), fence INTEGER NOT NULL, holder TEXT NOT NULL,
  counter INTEGER NOT NULL, started_at TEXT NOT NULL, seal TEXT NOT NULL DEFAULT '');
CREATE TABLE checkpoints (
  step INTEGER PRIMARY KEY, tokens INTEGER NOT NULL, sample INTEGER NOT NULL, path TEXT NOT NULL,
  phase TEXT, generation INTEGER NOT NULL, weights TEXT NOT NULL, seen_at TEXT NOT NULL,
  drawn TEXT NOT NULL DEFAULT '{}', losses TEXT NOT NULL DEFAULT '{}',
  incarnation INTEGER NOT NULL DEFAULT 0);
"""

_EVALUATIONS = """
CREATE TABLE evaluations (
  step INTEGER PRIMARY KEY REFERENCES checkpoints(step), state TEXT NOT NULL
    CHECK (state IN ('running', 'scored', 'failed', 'skipped')),
  attempts INTEGER NOT NULL, reason TEXT, scorecard TEXT, started_at TEXT NOT NULL,
  finished_at TEXT);
"""

_DECISIONS = """
CREATE TABLE decisions (
  seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT UNIQUE NOT NULL, asked_by TEXT NOT NULL
    CHECK (asked_by IN ('policy', 'controller', 'operator')),
  step INTEGER NOT NULL, tokens INTEGER NOT NULL, verdict TEXT NOT NULL, policy TEXT NOT NULL,
  reason TEXT NOT NULL, evidence TEXT NOT NULL, weights_before TEXT NOT NULL, weights_proposed TEXT,
  weights_after TEXT NOT NULL, plan TEXT NOT NULL, guards TEXT NOT NULL,
  against_generation INTEGER NOT NULL, generation INTEGER, observation_digest TEXT,
  policy_digest TEXT, fence INTEGER NOT NULL, scored_at TEXT, decided_at TEXT NOT NULL,
  abandoned_by INTEGER);
"""

# of a branch that the trainer abandoned by a rewind, another may be made at the same step
_ONE_DECISION = """
CREATE UNIQUE INDEX one_policy_decision_per_checkpoint
  ON decisions(step) WHERE asked_by = 'policy' AND abandoned_by IS NULL;
"""

_ORDERS = """
CREATE TABLE orders (
  generation INTEGER PRIMARY KEY, decision TEXT NOT NULL, policy TEXT NOT NULL,
  reason TEXT NOT NULL, weights TEXT NOT NULL, plan TEXT NOT NULL, issued_at TEXT NOT NULL,
  published_fence INTEGER, published_at TEXT, applied_sample INTEGER, applied_step INTEGER,
  applied_tokens INTEGER, applied_at TEXT,
  rejected TEXT);
CREATE TABLE events (
  seq INTEGER PRIMARY KEY AUTOINCREMENT, at TEXT NOT NULL, fence INTEGER NOT NULL,
  kind TEXT NOT NULL, detail TEXT NOT NULL);
CREATE TABLE outbox (
  seq INTEGER PRIMARY KEY AUTOINCREMENT, key TEXT UNIQUE NOT NULL, kind TEXT NOT NULL,
  payload TEXT NOT NULL, created_ms INTEGER NOT NULL, done_at TEXT);
CREATE INDEX outbox_pending ON outbox(seq) WHERE done_at IS NULL;
"""

_OPERATORS = """
CREATE TABLE requests (
  id TEXT PRIMARY KEY, verb TEXT NOT NULL, asked TEXT NOT NULL, by TEXT NOT NULL,
  asked_at TEXT NOT NULL, taken_at TEXT NOT NULL, state TEXT NOT NULL
    CHECK (state IN ('done', 'refused')), answer TEXT NOT NULL, decision TEXT);
CREATE TABLE approvals (
  decision TEXT PRIMARY KEY REFERENCES decisions(id), state TEXT NOT NULL CHECK (state IN
    ('waiting', 'approved', 'rejected', 'superseded', 'expired')), why TEXT NOT NULL, by TEXT,
  reason TEXT, at TEXT, made TEXT);
CREATE TABLE assessments (
  id TEXT PRIMARY KEY, decision TEXT NOT NULL, name TEXT NOT NULL, value TEXT,
  rationale TEXT, by TEXT, at TEXT);
"""

# for what is asked at every look or score, so that its cost doesn't grow with the run
_INDEXES = """
CREATE INDEX IF NOT EXISTS decisions_by_verdict ON decisions(verdict, seq);
CREATE INDEX IF NOT EXISTS evaluations_by_state ON evaluations(state, step);
CREATE INDEX IF NOT EXISTS orders_not_in_force ON orders(generation) WHERE applied_step IS NULL;
"""

_TABLES += _EVALUATIONS + _DECISIONS + _ONE_DECISION + _ORDERS + _OPERATORS + _INDEXES

TABLES = frozenset(re.findall(r"CREATE TABLE (\w+)", _TABLES))

# SQLite can't change a CHECK: the table is made anew
_SKIPPED = f"""
ALTER TABLE checkpoints ADD COLUMN incarnation INTEGER NOT NULL DEFAULT 0;
ALTER TABLE decisions ADD COLUMN abandoned_by INTEGER;
DROP INDEX one_policy_decision_per_checkpoint;
{_ONE_DECISION}
ALTER TABLE evaluations RENAME TO evaluations_3;
{_EVALUATIONS}
INSERT INTO evaluations SELECT * FROM evaluations_3;
DROP TABLE evaluations_3;
"""

# what brings a journal of an earlier version up to the next one
_UPGRADES = {
    1: "ALTER TABLE checkpoints ADD COLUMN drawn TEXT NOT NULL DEFAULT '{}';"
    "ALTER TABLE checkpoints ADD COLUMN losses TEXT NOT NULL DEFAULT '{}';",
    2: _OPERATORS,
    3: _SKIPPED + _INDEXES,  # and JSON may be packed from here on
    4: "ALTER TABLE lease ADD COLUMN seal TEXT NOT NULL DEFAULT '';",
}

Row = dict[str, Any]

_JSON_COLUMNS = frozenset(
    {"weights", "weights_before", "weights_proposed", "weights_after", "plan", "guards", "evidence"}
    | {"scorecard", "payload", "detail", "drawn", "losses", "asked"}
)


_PACKED = b"\x01"  # how a packed column begins: the version of _WORDS
_PACK_ABOVE = 40  # characters of JSON
_LARGEST_ENTRY = 2**28  # bytes of JSON: what deflate makes of a few kilobytes can fill memory
# What entries are full of, the commonest last (deflate finds what is near most cheaply). Part of
# the file format: packed entries can't be read with any other.
_WORDS = (
    b'{"name":"step-000","tags":{},"params":{"step":"","tokens":"","path":"/checkpoints/","weight.":'
    b'"datasets":{"train/loss":,"train/learning_rate":,"train/grad_norm":,"train/tokens_per_second":'
    b'"epochs/":,"source_loss/":,"mixture_realised/":,"system/":{"checkpoint":"/checkpoints/step-000'
    b'"benchmarks":{"gsm8k":{"status":"ok","metrics":{"bits_per_byte":{"value":,"stderr":,"n":,'
    b'"higher_is_better":false,"asked":,"excluded":0,"unparsed":null},"accuracy":{"value":,'
    b'"exact_match":,"pass_at_1":{"higher_is_better":true,"items":{"i0":{"bits_per_byte":,"bytes":'
    b'"humaneval":"mmlu":"math":"reason":null,"data":"packages: of items","data_kind":'
    b'"cost":{"seconds":,"cpu_seconds":,"items":,"tokens":,"asked_tokens":'
    b'"settings_digest":"","engine":{},"evidence":{"rule":"tests":"claims":'
    b'"guards":[{"guard":"significance","action":"passed","detail":"nothing to compare","before":'
    b'{"guard":"dead-band","guard":"dwell","guard":"phase","guard":"loss spike","guard":"vetoes",'
    b'{"guard":"trust region","guard":"simplex","guard":"floor and cap","guard":"epoch ledger",'
    b'"action":"changed","action":"flagged","action":"blocked","after":{"web":"code":"maths":'
    b'"metric":"bits_per_byte","gain":,"stderr":,"n":,"from_step":,"to_step":,"gain_before":null,'
    b'"stderr_before":null,"steps_before":null}"outcome.gsm8k":"+0.0 \xc2\xb1 0.0 bits_per_byte",'
    b'"outcome_step":{"metrics":{"order/applied_step":,"order/generation":,"mixture/web":'
    b'"mixture/code":"mixture/maths":},"tokens":,"ms":1},"start_ms":1,"end_ms":1,"request":{"scores":'
    b'{"gsm8k bits_per_byte":" \xc2\xb1 (n=)"},"step":,"tokens":,"weights":{"response":{"verdict":'
    b'"intervene","hold","inconclusive","superseded","expired","reason":"","weights_before":{'
    b'"weights_after":{"weights_proposed":{"generation":"spans":[["observe",null,{"step":,"tokens":'
    b'["decide",null,{"policy":"rules",["guard",null,{["guard floor and cap","guard",{"verdict":'
    b'"tags":{"applied_step":,"applied_tokens":,"generation":,"decision":"d-000","phase":"stable",'
    b'"in_force":true,"drawn":{"id":"d-000","name":"publish","name":"applied","name":"outcome",'
    b'"inputs":{"generation":,"weights":{"outputs":{"file":"mixture.json","fence":'
)


class JournalError(Exception):
    """The journal cannot be used; the message is one line for a person."""


class FenceLost(Exception):  # noqa: N818 - a normal end of a replaced controller
    """Another controller has taken this run over; this one must stop at once."""


def damage(path: Path, error: Exception) -> str:
    """One line on a journal that can't be read, and the mend."""
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
        create: make the file, or bring one of an earlier version up to this one.
        read_only: for those who look at a run that goes on: such a connection can write nothing,
            not even roll back what a killed controller left, and waits ``patience`` at most.
        patience: seconds.

    Raises:
        JournalError: when the file is no journal, or one of a newer mixloop.
    """

    def __init__(
        self,
        path: Path,
        *,
        create: bool = False,
        read_only: bool = False,
        patience: float = 0.5,
    ) -> None:
        if not create and not path.exists():
            raise JournalError(f"{path}: no journal here; start the run with `mixloop control`")
        if create:
            path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self.fence: int | None = None
        self._seal: journal_seal.Seal | None = None
        self._unchecked = False  # sealed here for the first time
        try:
            self._db = _connect(path, read_only, patience)
            self._db.row_factory = sqlite3.Row
            self._prepare(create)
        except UnicodeDecodeError as error:  # SQLite's message quotes what is damaged
            raise JournalError(damage(path, error)) from error
        except sqlite3.DatabaseError as error:
            raise JournalError(f"{path}: not a usable journal ({error})") from error

    def _prepare(self, create: bool) -> None:
        self._db.execute("PRAGMA synchronous=FULL")
        self._db.execute("PRAGMA foreign_keys=ON")
        version = self._db.execute("PRAGMA user_version").fetchone()[0]
        if version == 0 and create and not self._has_tables():
            # The tables and their version appear together or not at all.
            self._db.executescript(
                f"BEGIN IMMEDIATE;{_TABLES}PRAGMA user_version={SCHEMA_VERSION};COMMIT;"
            )
        elif version in _UPGRADES and create:
            self._upgrade(version)
        elif version != SCHEMA_VERSION and version not in _UPGRADES:
            raise JournalError(
                f"{self.path}: journal version {version}, this mixloop reads {SCHEMA_VERSION}"
            )
        elif version == SCHEMA_VERSION:
            self._check_tables()

    def _check_tables(self) -> None:
        rows = self._db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
        lost = sorted(TABLES - {name for (name,) in rows})
        if lost:
            raise JournalError(damage(self.path, LookupError(f"it has no table {lost[0]}")))

    def _upgrade(self, version: int) -> None:
        # versions 1 to 4 have no seal; an upgrade from 5 on has to check it before it seals anew
        steps = "".join(_UPGRADES[old] for old in range(version, SCHEMA_VERSION))
        try:
            self._db.executescript(f"BEGIN IMMEDIATE;{steps}PRAGMA user_version={SCHEMA_VERSION};")
            self._db.execute("UPDATE lease SET seal = ?", (journal_seal.whole(self._db, TABLES),))
            self._db.execute("COMMIT")
        except BaseException:
            self._roll_back()
            raise
        self._unchecked = True

    def _has_tables(self) -> bool:
        found = self._db.execute("SELECT 1 FROM sqlite_master WHERE type = 'table'").fetchone()
        return found is not None

    def check(self) -> str | None:
        """One line on what is damaged, read or not, or was changed by other hands; else None.

        Needs the fence. Reads the whole file: a start can bear that, a look can't. Damage is told
        at every start. Other changes are told once: then the rows are sealed as they are, and an
        event keeps that they were changed.

        Raises:
            FenceLost: when another controller has taken the run over.
        """
        try:
            found = str(self._db.execute("PRAGMA integrity_check(1)").fetchone()[0])
            if found != "ok":
                return damage(self.path, sqlite3.DatabaseError(found.splitlines()[-1]))
            return self._check_rows()
        except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
            if isinstance(error, sqlite3.OperationalError) and "decode" not in str(error):
                # locked, say: that is nobody's damage
                return f"{self.path}: could not be checked ({error}); the next start checks it"
            return damage(self.path, error)

    def _check_rows(self) -> str | None:
        seal = self._watch()
        with self.transaction() as tx:
            rows, sealed = journal_seal.whole(tx, TABLES), seal.now
            count = journal_seal.counters(tx)
            if rows == sealed and count is None and not self._unchecked:
                return None
            wrong = wrong_value(tx, TABLES, _JSON_COLUMNS, unpack)
            self._unchecked = False
            if wrong is not None:
                return damage(self.path, ValueError(wrong))
            if rows == sealed and count is None:
                return None
            seal.begin(rows)
            why = count or "rows were added, changed or removed by something other than mixloop"
            detail = {"reason": why, "sealed": sealed, "found": rows}
            add_event(tx, self.fence or 0, "journal-altered", detail)
        return (
            f"{self.path}: was changed by something other than mixloop since a controller last "
            f"wrote it{f' ({count})' if count else ''}; it is gone on with as it is: if nobody "
            "meant to, stop, and restore a backup, or move it away: the next controller begins a "
            "new one from the mixture in force"
        )

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
        seal = self._watch()
        self._db.execute("BEGIN IMMEDIATE")
        try:
            known = self._db.execute("SELECT value FROM meta WHERE key = 'run'").fetchone()
            if known is not None and known[0] != run:
                raise JournalError(
                    f"{self.path}: belongs to run '{known[0]}', not '{run}'; "
                    "give this run a folder of its own (run.dir)"
                )
            row = self._db.execute("SELECT fence, CAST(seal AS BLOB) FROM lease").fetchone()
            seal.begin(row[1] if row else journal_seal.bare(self._db))
            self._db.execute("INSERT OR IGNORE INTO meta VALUES ('run', ?)", (run,))
            fence = max(row[0] if row else 0, above) + 1
            holder = f"{socket.gethostname()}:{os.getpid()}"
            self._db.execute(
                "INSERT OR REPLACE INTO lease VALUES (1, ?, ?, 0, ?, '')",
                (fence, holder, timestamp()),
            )
            self._commit(seal)
        except BaseException:
            self._roll_back()
            raise
        self.fence = fence
        return fence

    def _watch(self) -> journal_seal.Seal:
        if self._seal is None:  # those who only read need none
            self._seal = journal_seal.Seal(self._db, TABLES)
        return self._seal

    def _commit(self, seal: journal_seal.Seal) -> None:
        if seal.changed is not None:
            self._db.execute("UPDATE lease SET seal = ?", (seal.changed,))
        self._db.execute("COMMIT")

    def _roll_back(self) -> None:
        if self._db.in_transaction:  # SQLite has done it already on a full disk
            self._db.execute("ROLLBACK")

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

        Raises:
            FenceLost: when a later controller holds the run; nothing was written.
        """
        seal = self._watch()
        self._db.execute("BEGIN IMMEDIATE")
        try:
            row = self._db.execute("SELECT fence, CAST(seal AS BLOB) FROM lease").fetchone()
            if row is None or row[0] != self.fence:
                raise FenceLost(f"fence {self.fence} was replaced by {row and row[0]}")
            seal.begin(row[1])
            yield self._db
            self._commit(seal)
        except BaseException:
            self._roll_back()
            raise

    def beat(self) -> None:
        """Move the liveness counter: a peer judges us by whether it changes, never by a clock."""
        with self.transaction() as tx:
            tx.execute("UPDATE lease SET counter = counter + 1")

    # -- reading -----------------------------------------------------------------------------

    def rows(self, query: str, *values: object) -> list[Row]:
        """Rows as dicts, JSON columns decoded."""
        with self._read():  # all at once: while rows are being fetched the file can't be written
            return [_decode(row) for row in self._db.execute(query, values).fetchall()]

    def each(self, query: str, *values: object) -> Iterator[Row]:
        """Like :meth:`rows`, unpacked one at a time: a long history never lies there as a whole.

        What is packed is fetched at once all the same: the controller can't write meanwhile.
        """
        with self._read():
            for row in self._db.execute(query, values).fetchall():
                yield _decode(row)

    def row(self, query: str, *values: object) -> Row | None:
        """The first row, or None."""
        with self._read():
            found = self._db.execute(query, values).fetchone()
            return None if found is None else _decode(found)

    def value(self, query: str, *values: object) -> Any:
        """The first column of the first row, or None."""
        with self._read():
            found = self._db.execute(query, values).fetchone()
            return None if found is None else found[0]

    @contextmanager
    def _read(self) -> Iterator[None]:
        """What can't be read is told in one line: a damaged page, a row that is no JSON."""
        try:
            yield
        except (sqlite3.DatabaseError, ValueError, RecursionError) as error:
            raise JournalError(damage(self.path, error)) from error

    def columns(self, table: str) -> frozenset[str]:
        """The columns of a table; a file of an earlier version, opened to be read, has fewer."""
        with self._read():
            return frozenset(row[1] for row in self._db.execute(f"PRAGMA table_info({table})"))

    @property
    def knows_operators(self) -> bool:
        """Whether the file has the tables of requests and approvals: one of an earlier version,
        opened only to be read, has not."""
        found = self.value("SELECT 1 FROM sqlite_master WHERE name = 'approvals'")
        return found is not None

    # -- writing -----------------------------------------------------------------------------

    def event(self, kind: str, **detail: object) -> None:
        """Note something a person may later ask about (a start, a stranger's file, an alarm)."""
        with self.transaction() as tx:
            add_event(tx, self.fence or 0, kind, detail)


def _connect(path: Path, read_only: bool, patience: float) -> sqlite3.Connection:
    if not read_only:
        return sqlite3.connect(path, isolation_level=None, timeout=30.0)
    place = f"{path.resolve().as_uri()}?mode=ro"
    return sqlite3.connect(place, uri=True, isolation_level=None, timeout=patience)


def decision_id(text: str) -> str:
    """A decision's id as people type it: ``d-000003``, or just ``3``."""
    return f"d-{int(text):06d}" if text.isdecimal() and len(text) <= 12 else text


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
    values = [pack(v) if name in _JSON_COLUMNS else v for name, v in columns.items()]
    tx.execute(f"INSERT INTO {table} ({names}) VALUES ({marks})", values)


def dumps(value: object) -> str | None:
    """Compact JSON, None kept as SQL NULL. Non-finite numbers are refused."""
    if value is None:
        return None
    return json.dumps(value, separators=(",", ":"), allow_nan=False, ensure_ascii=False)


def pack(value: object) -> str | bytes | None:
    """JSON as a column holds it: text while it is short, deflated with :data:`_WORDS` above.

    Thousands of decisions say the same in nearly the same words.
    """
    text = dumps(value)
    if text is None or len(text) < _PACK_ABOVE:
        return text
    squeeze = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS, zdict=_WORDS)
    return _PACKED + squeeze.compress(text.encode()) + squeeze.flush()


def unpack(stored: str | bytes) -> Any:
    """What :func:`pack` was given.

    Raises:
        JournalError: packed in a way that a later mixloop invented.
        ValueError: damaged.
    """
    if isinstance(stored, str):
        return json.loads(stored)
    if stored[:1] != _PACKED:
        raise JournalError("an entry is packed in a way that this mixloop doesn't know")
    inflate = zlib.decompressobj(-zlib.MAX_WBITS, zdict=_WORDS)
    try:
        text = inflate.decompress(stored[1:], _LARGEST_ENTRY)
    except zlib.error as error:  # no ValueError, which all who read a journal expect of damage
        raise ValueError(f"a packed entry is damaged: {error}") from error
    if inflate.unconsumed_tail:
        raise ValueError(f"a packed entry is of more than {_LARGEST_ENTRY} bytes")
    return json.loads(text)


def _decode(row: sqlite3.Row) -> Row:
    return {
        key: unpack(row[key]) if key in _JSON_COLUMNS and row[key] is not None else row[key]
        for key in row.keys()  # noqa: SIM118 - sqlite3.Row iterates over values, not keys
    }
