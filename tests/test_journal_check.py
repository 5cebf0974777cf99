"""A journal's wrong values are told when a controller starts, though nobody reads them yet."""

from __future__ import annotations

import shutil
import sqlite3
from pathlib import Path
from types import ModuleType

import pytest

from mixloop.controller.journal import Journal, pack


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory, played_run: ModuleType) -> Path:
    """The journal of a played run with decisions, orders and a request."""
    folder = tmp_path_factory.mktemp("sound")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(played_run.daemon, "Evaluator", played_run.QuickEvaluator)
        run = played_run.Run(played_run.make_run(folder))
        run.train(10)
        run.tell("set", "code=0.2")
        assert run.history()
        run.controller.close()
    path: Path = run.paths.journal
    return path


def spoilt(sound: Path, folder: Path, table: str, column: str, value: object) -> Journal:
    path = folder / "journal.db"
    shutil.copy(sound, path)
    with sqlite3.connect(path) as db:
        which = " WHERE key = 'initial'" if table == "meta" else ""
        db.execute(f"UPDATE {table} SET {column} = ?{which}", (value,))
    db.close()
    journal = Journal(path)
    journal.claim("r")
    return journal


def test_a_sound_journal_is_sound(sound: Path) -> None:
    journal = Journal(sound)
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
    sound: Path, tmp_path: Path, table: str, column: str, value: object, said: str
) -> None:
    journal = spoilt(sound, tmp_path, table, column, value)
    line = journal.check()
    journal.close()
    assert line is not None
    assert f"{table}, row " in line
    assert said in line
    assert line.startswith(f"{tmp_path / 'journal.db'}: can't be read whole")
    assert line.isprintable()
