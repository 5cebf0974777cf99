"""The journal's seal: what a controller wrote is told from what something else made of it."""

from __future__ import annotations

import random
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mixloop.controller.journal import (
    Journal,
    JournalAltered,
    JournalError,
    queries,
    records,
    tamper_seal,
)
from mixloop.controller.journal.journal import add_event
from mixloop.controller.journal.schema import TABLES

VALUES = st.one_of(
    st.none(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=9),
    st.binary(max_size=9),
)


@pytest.fixture
def path(sound_journal: Path, tmp_path: Path) -> Path:
    copy = tmp_path / "journal.db"
    shutil.copy(sound_journal, copy)
    return copy


def by_hand(path: Path, statements: str) -> None:
    with sqlite3.connect(path) as db:
        db.executescript(statements)
    db.close()


def at_a_start(path: Path) -> str | None:
    journal = Journal(path, create=True)
    journal.claim("r")
    said = journal.check()
    journal.close()
    return said


def test_what_controllers_wrote_is_sealed_over_starts_and_upserts(path: Path) -> None:
    for _ in range(3):
        assert at_a_start(path) is None
        journal = Journal(path)
        journal.claim("r")
        step = journal.value("SELECT MIN(step) FROM checkpoints")
        records.scoring_started(journal, step)
        records.scoring_started(journal, step)  # an upsert
        with journal.transaction() as tx:
            records.set_meta(tx, "paused", value=True)
            records.set_meta(tx, "paused", value=False)  # a replacement
            tx.execute("DELETE FROM outbox WHERE seq = (SELECT MIN(seq) FROM outbox)")
        journal.close()
    assert at_a_start(path) is None


@pytest.mark.parametrize(
    "statements",
    [
        "UPDATE decisions SET reason = 'because I say so' WHERE seq = 1",
        "UPDATE orders SET generation = generation + 7",
        "UPDATE checkpoints SET tokens = tokens + 1",
        "UPDATE evaluations SET attempts = 9",
        "DELETE FROM events WHERE seq = (SELECT MAX(seq) FROM events)",
        "DELETE FROM events",
        "DELETE FROM requests",
        "DELETE FROM outbox",
        "DELETE FROM meta WHERE key = 'initial'",
        "DELETE FROM lease",
        "UPDATE lease SET holder = 'me'",
        "UPDATE lease SET fence = fence + 40",
        "UPDATE lease SET seal = ''",
        "INSERT INTO meta VALUES ('pins', '{}')",
        "INSERT INTO assessments VALUES ('a', 'd-000001', 'good', '1', NULL, 'me', 'now')",
        "UPDATE sqlite_sequence SET seq = seq + 1 WHERE name = 'decisions'",
        "DELETE FROM sqlite_sequence",
        "DROP INDEX orders_not_in_force",
        "CREATE TRIGGER mine AFTER INSERT ON events BEGIN DELETE FROM events; END",
    ],
)
def test_what_another_hand_changed_is_told_once_and_kept(path: Path, statements: str) -> None:
    by_hand(path, statements)
    said = at_a_start(path)
    assert said is not None
    assert said.startswith(f"{path}: was changed by something other than mixloop")
    assert said.isprintable()
    if "sequence" not in statements and "TRIGGER" not in statements:
        assert at_a_start(path) is None
        journal = Journal(path)
        told = queries.events(journal, "journal-altered")
        journal.close()
        assert len(told) == 1


def test_text_that_is_none_ends_no_transaction(path: Path) -> None:
    by_hand(path, "UPDATE decisions SET reason = CAST(x'ff00fe' AS TEXT) WHERE seq = 1")
    assert "can't be read whole" in (at_a_start(path) or "")
    journal = Journal(path)
    journal.claim("r")
    with journal.transaction() as tx:
        tx.execute("UPDATE decisions SET abandoned_by = 1 WHERE seq = 1")
        tx.execute("UPDATE decisions SET abandoned_by = NULL, reason = '' WHERE seq = 1")
    assert "was changed" in (journal.check() or ""), "what did not fit does not fit now either"
    journal.close()


def test_what_was_rolled_back_is_not_sealed(path: Path) -> None:
    journal = Journal(path)
    journal.claim("r")

    def half() -> None:
        with journal.transaction() as tx:
            add_event(tx, 1, "note", {"detail": "half"})
            raise RuntimeError("mid-way")

    with pytest.raises(RuntimeError, match="mid-way"):
        half()
    journal.event("note", detail="whole")
    assert journal.check() is None
    journal.close()


def test_a_copy_made_while_a_transaction_was_open_is_told(path: Path, tmp_path: Path) -> None:
    """``cp journal.db`` without its rollback journal, of a run that goes on."""
    told = 0
    for round_ in range(6):
        journal = Journal(path)
        journal.claim("r")
        with journal.transaction() as tx:
            tx.execute("PRAGMA main.cache_size=1")  # pages go to the file before the commit
            for n in range(40 * (round_ + 1)):
                add_event(tx, 1, "note", {"detail": random.Random(n).randbytes(90).hex()})
            torn = tmp_path / "torn" / "journal.db"
            torn.parent.mkdir(exist_ok=True)
            shutil.copy(path, torn)
        journal.close()
        told += at_a_start(torn) is not None
    assert told == 6


@given(
    st.lists(
        st.tuples(st.sampled_from("iud"), st.integers(0, 5), VALUES, VALUES, VALUES), max_size=12
    )
)
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
def test_following_rows_gives_the_seal_of_all_rows(steps: list[tuple[Any, ...]]) -> None:
    db = sqlite3.connect(":memory:", isolation_level=None)
    db.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, a, b TEXT, c INTEGER)")
    empty = tamper_seal.whole(db, ["t"])
    seal = tamper_seal.Seal(db, ["t"])
    seal.begin(empty)
    for what, row, *values in steps:
        if what == "i":
            db.execute("INSERT OR REPLACE INTO t VALUES (?, ?, ?, ?)", (row, *values))
        elif what == "u":
            db.execute("UPDATE t SET a = ?, b = ?, c = ? WHERE id >= ?", (*values, row))
        else:
            db.execute("DELETE FROM t WHERE id = ?", (row,))
        assert seal.now == tamper_seal.whole(db, ["t"])
    db.execute("DELETE FROM t")
    assert seal.now == empty
    assert seal.changed is None
    db.close()


@given(st.lists(VALUES, min_size=2, max_size=2, unique_by=lambda one: (type(one), one)))
@settings(max_examples=60, deadline=None)
def test_values_that_differ_have_other_seals(pair: list[object]) -> None:
    seals = set()
    for value in pair:
        db = sqlite3.connect(":memory:")
        db.execute("CREATE TABLE t (a, b)")
        db.execute("INSERT INTO t VALUES (?, 'x')", (value,))
        seals.add(tamper_seal.whole(db, ["t"]))
        db.close()
    assert len(seals) == 2


def test_every_table_is_followed(path: Path) -> None:
    with sqlite3.connect(path) as db:
        found = db.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
    db.close()
    assert {name for (name,) in found} - {"sqlite_sequence"} == TABLES


def test_a_check_that_could_not_be_made_is_said(path: Path) -> None:
    journal = Journal(path)
    journal.claim("r")
    journal._db.execute("PRAGMA busy_timeout=0")
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    assert "could not be checked (database is locked)" in (journal.check() or "")
    other.execute("ROLLBACK")
    assert journal.check() is None
    other.close()
    journal.close()


KEY = b"0123456789abcdef-the-key-itself"


def keyed(path: Path, key: bytes | None = KEY) -> tuple[Journal, str | None]:
    journal = Journal(path, key=key)
    journal.claim("r")
    return journal, journal.check()


def test_with_a_key_no_seal_but_its_own_fits(path: Path) -> None:
    journal, said = keyed(path)
    assert "sealed with no key: nobody can tell who wrote it" in (said or "")
    journal.close()
    for key, words in (
        (KEY, None),
        (b"fedcba9876543210-another-one", "sealed with another key than this"),
        (None, "was sealed with a key, which this controller has not"),
        (None, None),
    ):
        journal, said = keyed(path, key)
        assert words in (said or "") if words else said is None
        journal.event("noted")
        journal.close()
    journal, _ = keyed(path)
    journal.close()
    with (
        closing(Journal(path, key=b"fedcba9876543210-another-one")) as other,
        pytest.raises(JournalError, match=r"trainer.key_file, or MIXLOOP_KEY_FILE"),
    ):
        other.refuse_other_key()  # `mixloop sync` writes, and takes nothing over


@pytest.mark.parametrize("what", ["rows", "rows and a seal", "an older copy", "nothing"])
def test_with_a_key_a_running_controller_rests_on_nothing_of_others(
    path: Path, tmp_path: Path, what: str
) -> None:
    journal, _ = keyed(path)
    journal.event("noted")
    with closing(sqlite3.connect(path)) as db, closing(sqlite3.connect(tmp_path / "old")) as copy:
        db.backup(copy)
    journal.event("noted")
    journal.notice()
    with closing(sqlite3.connect(path)) as db, closing(sqlite3.connect(tmp_path / "old")) as copy:
        if what.startswith("rows"):
            db.execute("""INSERT OR REPLACE INTO meta VALUES ('pins', '{"code": 0.9}')""")
        if what == "rows and a seal":
            db.execute("UPDATE lease SET seal = ?", (tamper_seal.whole(db, TABLES),))
        if what == "an older copy":
            copy.backup(db)
        if what == "nothing":
            db.execute("UPDATE meta SET value = value")
        db.commit()
    if what == "nothing":
        journal.notice()
        journal.event("noted")
        return
    for use in (journal.notice, journal.verify, journal.assert_fence):
        with pytest.raises(JournalAltered):
            use()
    assert journal.check() is not None
    journal.event("goes on, under the rows as they are")
    journal.verify()
    journal.close()
    assert keyed(path)[1] is None
