"""The journal: what is written is kept, one controller writes, and a fact is written once."""

from __future__ import annotations

import random
import sqlite3
from pathlib import Path

import pytest

from mixloop.controller.core import DecisionRecord, EventRow, OrderRecord
from mixloop.controller.journal import FenceLost, Journal, JournalError, queries, records
from mixloop.controller.journal.packing import pack
from mixloop.policies.guards import GuardNote


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.db"


def opened(path: Path, above: int = 0) -> Journal:
    journal = Journal(path, create=True)
    journal.claim("r", above=above)
    return journal


def test_the_fence_rises_at_every_start_and_never_falls(path: Path) -> None:
    fences = []
    for above in (0, 0, 10, 3):
        journal = opened(path, above)
        fences.append(journal.fence)
        journal.close()
    assert fences == [1, 2, 11, 12]


def test_a_replaced_controller_can_write_nothing(path: Path) -> None:
    old = opened(path)
    new = opened(path)
    with pytest.raises(FenceLost):
        old.event("late", detail="x")
    with pytest.raises(FenceLost):
        records.published(old, 1)
    new.event("mine")
    assert [event.kind for event in queries.events(new, "late", "mine")] == ["mine"]
    old.close()
    new.close()


def test_a_transaction_happens_wholly_or_not_at_all(path: Path) -> None:
    journal = opened(path)

    def half() -> None:
        with journal.transaction() as tx:
            tx.execute("INSERT INTO meta VALUES ('half', 'done')")
            raise RuntimeError("mid-way")

    with pytest.raises(RuntimeError, match="mid-way"):
        half()
    assert journal.value("SELECT COUNT(*) FROM meta WHERE key = 'half'") == 0
    journal.close()


def test_another_runs_journal_is_refused(path: Path) -> None:
    opened(path).close()
    other = Journal(path)
    with pytest.raises(JournalError, match="belongs to run 'r', not 'other'"):
        other.claim("other")
    other.close()


def test_what_is_no_journal_is_refused(path: Path) -> None:
    path.write_bytes(b"not a database at all, but long enough to be looked at" * 30)
    with pytest.raises(JournalError, match="not a usable journal"):
        Journal(path)
    with pytest.raises(JournalError, match="no journal here"):
        Journal(path.with_name("absent.db"))


@pytest.mark.parametrize("reads", [{"create": True}, {}, {"read_only": True}])
@pytest.mark.parametrize("version", [0, 99])
def test_another_version_is_refused(path: Path, version: int, reads: dict[str, bool]) -> None:
    opened(path).close()
    database = sqlite3.connect(path)
    database.execute(f"PRAGMA user_version = {version}")
    database.close()
    with pytest.raises(JournalError, match=f"version {version}, this mixloop reads 2"):
        Journal(path, **reads)


def test_it_survives_power_loss_by_its_settings(path: Path) -> None:
    journal = opened(path)
    assert journal.value("PRAGMA synchronous") == 2  # FULL
    assert journal.value("PRAGMA journal_mode") == "delete"
    journal.close()


def test_a_start_told_twice_is_one_entry(path: Path) -> None:
    for _ in range(2):
        journal = opened(path)
        records.start(journal, "r", {"seed": 1}, {"a": 1.0})
        keys = [key for (key,) in journal.cells("SELECT key FROM outbox ORDER BY seq")]
        assert keys == ["run", "mixture:0"]
        journal.close()


def test_the_uid_is_made_once(path: Path) -> None:
    journal = opened(path)
    first = records.run_uid(journal)
    journal.close()
    again = opened(path)
    assert records.run_uid(again) == first
    again.close()


def test_a_damaged_entry_is_told_in_one_line(path: Path) -> None:
    # zlib's error is no ValueError: it once got past everybody who reads
    journal = opened(path)
    journal.event("note", detail="a long text, so that it is packed " * 9)
    stored = pack({"detail": "a long text, so that it is packed " * 9})
    assert isinstance(stored, bytes)
    rng = random.Random(5)
    said = []
    for _ in range(60):
        spoilt = bytearray(stored)
        at = rng.randint(1, len(spoilt) - 1)
        spoilt[at : at + 3] = rng.randbytes(3)
        with journal.transaction() as tx:
            tx.execute("UPDATE events SET detail = ?", (bytes(spoilt),))
        try:
            queries.events(journal, "note")
        except JournalError as error:
            said.append(str(error))
    assert len(said) > 30
    assert all("restore a backup" in line and "\n" not in line for line in said)


def test_a_journal_that_lost_a_table_is_refused_by_name(path: Path) -> None:
    opened(path).close()
    with sqlite3.connect(path) as db:
        db.execute("DROP TABLE requests")
    db.close()
    for reads in ({"create": True}, {}, {"read_only": True}):
        with pytest.raises(JournalError, match=r"no table requests\); restore a backup") as error:
            Journal(path, **reads)
        assert str(path) in str(error.value)


def test_a_journal_that_lost_a_column_is_refused_by_name(path: Path) -> None:
    opened(path).close()
    with sqlite3.connect(path) as db:
        db.execute("ALTER TABLE decisions DROP COLUMN policy_digest")
    db.close()
    with pytest.raises(JournalError, match=r"no column decisions\.policy_digest\); restore"):
        Journal(path)


def test_rows_are_read_as_the_types_that_were_written(path: Path) -> None:
    journal = opened(path)
    note = GuardNote("dwell", "passed", "fine", {"web": 0.5, "code": 0.5}, {"web": 1.0, "code": 0})
    made = DecisionRecord(
        verdict="intervene",
        reason="because " * 40,
        weights_before={"web": 1.0},
        weights_after={"web": 0.5, "code": 0.5},
        against_generation=0,
        evidence={"text": "long enough to be deflated " * 9},
        plan=((1000, {"web": 0.5}), (2000, {"web": 1.0})),
        guards=(note,),
        order=OrderRecord(1, "rules"),
    )
    records.decision(journal, made, scores={}, started_ms=0)
    decision, order = queries.decision(journal, "d-000001"), queries.newest_order(journal)
    assert decision is not None
    assert order is not None
    assert (decision.plan, decision.guards, decision.evidence) == (
        made.plan,
        made.guards,
        made.evidence,
    )
    assert (order.weights, order.plan, order.reason) == (
        made.weights_after,
        made.plan,
        made.reason,
    )
    assert decision.to_json(but=("seq",))["guards"] == [note.to_json()]
    assert decision.weights_proposed is None
    journal.close()


def test_damaged_pages_are_told_though_nobody_reads_them(path: Path) -> None:
    journal = opened(path)
    for n in range(300):
        journal.event("note", detail=f"{n} " + random.Random(n).randbytes(200).hex())
    assert journal.check() is None
    journal.close()
    data = bytearray(path.read_bytes())
    page = 4096 * (len(data) // 4096 - 3)
    data[page : page + 12] = b"\xff" * 12
    path.write_bytes(bytes(data))
    spoilt = opened(path)  # what it reads to start is sound
    line = spoilt.check()
    spoilt.close()
    assert line is not None
    assert line.startswith(f"{path}: can't be read whole (DatabaseError: ")
    assert "\n" not in line


def test_a_reader_in_the_middle_of_a_long_history_keeps_nobody_from_writing(path: Path) -> None:
    writer = opened(path)
    for n in range(2000):
        writer._db.execute("INSERT INTO events VALUES (?, '', 1, 'note', '{}')", (n + 1,))
    writer._db.execute("PRAGMA busy_timeout=0")
    reader = Journal(path, read_only=True)
    rows = reader.stream(EventRow)
    next(rows)
    writer.event("note", detail="while it reads")
    assert sum(1 for _ in rows) == 1999
    reader.close()
    writer.close()


def test_a_failure_counts_though_the_clock_was_set_back(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`status` told of none until the clock was where it had been when MLflow last answered."""
    journal = opened(path)
    monkeypatch.setattr(records, "timestamp", lambda: "2099-01-01T00:00:00.000Z")
    journal.event("tracking-failed", entry=None, error="of before")
    records.drained(journal, [{"done": 1}])
    sent = queries.event_before_sent(journal)
    assert queries.events(journal, "tracking-failed", after=sent) == []
    journal.event("tracking-failed", entry=None, error="of now")
    (event,) = queries.events(journal, "tracking-failed", after=sent)
    assert event.detail["error"] == "of now"
    journal.close()
