"""A journal's wrong values are told when a controller starts, though nobody reads them yet."""

from __future__ import annotations

import shutil
import sqlite3
from pathlib import Path

import pytest

from mixloop.controller.journal import Journal
from mixloop.controller.journal.packing import pack


def spoilt(sound_journal: Path, folder: Path, table: str, column: str, value: object) -> Journal:
    path = folder / "journal.db"
    shutil.copy(sound_journal, path)
    with sqlite3.connect(path) as db:
        which = " WHERE key = 'initial'" if table == "meta" else ""
        db.execute(f"UPDATE {table} SET {column} = ?{which}", (value,))
    db.close()
    journal = Journal(path)
    journal.claim("r")
    return journal


def test_a_sound_journal_is_sound(sound_journal: Path, tmp_path: Path) -> None:
    journal = Journal(Path(shutil.copy(sound_journal, tmp_path)))
    journal.claim("r")
    assert journal.check() is None
    for table in ("decisions", "orders", "requests", "evaluations", "outbox", "events"):
        assert journal.value(f"SELECT COUNT(*) FROM {table}") > 0, "then it is not looked at"
    journal.close()


@pytest.mark.parametrize(
    ("table", "column", "value", "said"),
    [
        ("orders", "issued_at", b"x", "issued_at is b'x': must be text"),
        ("orders", "published_fence", "x", "published_fence is 'x': must be a whole number"),
        ("checkpoints", "tokens", 1.5, "tokens is 1.5: must be a whole number"),
        ("decisions", "weights_before", "[]", "weights_before is '[]': must be an object as JSON"),
        ("decisions", "weights_after", '{"web": "all"}', "must be an object of numbers as JSON"),
        ("decisions", "plan", "{}", "plan is '{}': must be a list as JSON"),
        ("decisions", "guards", b"\x01no deflate", "must be a list as JSON"),
        ("evaluations", "scorecard", '{"torn', "must be an object as JSON"),
        ("outbox", "payload", pack([1] * 99), "must be an object as JSON"),
        ("events", "detail", 7, "detail is '7': must be an object as JSON"),
        ("meta", "value", b"\xff\x1b[2J", "must be text"),
    ],
)
def test_a_value_that_is_wrong_is_told_with_its_place(
    sound_journal: Path, tmp_path: Path, table: str, column: str, value: object, said: str
) -> None:
    journal = spoilt(sound_journal, tmp_path, table, column, value)
    line = journal.check()
    journal.close()
    assert line is not None
    assert f"{table}, row " in line
    assert said in line
    assert line.startswith(f"{tmp_path / 'journal.db'}: can't be read whole")
    assert line.isprintable()
