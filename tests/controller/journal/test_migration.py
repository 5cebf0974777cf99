"""Journals of mixloop 0.1.0: read as they are, and made ours by the controller that takes over."""

from __future__ import annotations

import shutil
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from mixloop.controller import views
from mixloop.controller.decisions import experiment_evidence
from mixloop.controller.journal import FenceLost, Journal, queries, tamper_seal
from mixloop.controller.journal.schema import TABLES

FIRST = TABLES - {"experiments"}


@pytest.fixture
def old(tmp_path: Path, sound_journal: Path) -> Path:
    """The journal of a played run as version 1 had it, sealed."""
    path = tmp_path / "journal.db"
    shutil.copy(sound_journal, path)
    db = sqlite3.connect(path, isolation_level=None)
    db.executescript(
        "DROP TABLE experiments; DROP INDEX one_policy_decision_per_checkpoint;"
        "ALTER TABLE decisions DROP COLUMN experiments_known;"
        "CREATE UNIQUE INDEX one_policy_decision_per_checkpoint ON decisions(step) "
        "WHERE asked_by = 'policy' AND abandoned_by IS NULL; PRAGMA user_version = 1;"
    )
    db.execute("UPDATE lease SET seal = ?", (tamper_seal.whole(db, FIRST),))
    db.close()
    return path


def rows(path: Path) -> dict[str, Any]:
    with sqlite3.connect(path) as db:
        found = {name: db.execute(f"SELECT * FROM {name}").fetchall() for name in FIRST}
    db.close()
    return found


def test_it_is_read_without_being_changed(old: Path) -> None:
    before = old.read_bytes()
    with_views = Journal(old, read_only=True)
    assert with_views.version == 1
    assert len(views.history(with_views)) > 1
    assert queries.experiments(with_views) == []
    assert queries.open_experiments(with_views) == []
    assert queries.experiment(with_views, "e-000001") is None
    assert queries.experiments_charged(with_views) == 0
    assert queries.experiments_known(with_views, 1) == 0
    assert experiment_evidence.experiments(with_views, before=99, known=0) == ()
    with_views.close()
    assert old.read_bytes() == before


def test_who_takes_over_makes_it_ours_with_every_row_and_its_seal(old: Path) -> None:
    before = rows(old)
    journal = Journal(old)
    fence = journal.claim("r")
    assert journal.version == 2
    assert journal.check() is None, "the seal fits"
    after = rows(old)
    for name in FIRST - {"lease", "decisions"}:
        assert after[name] == before[name], name
    assert after["decisions"] == [(*row, 0) for row in before["decisions"]]
    assert fence > before["lease"][0][1]
    journal.event("it", goes="on")
    assert journal.check() is None
    journal.close()
    again = Journal(old)
    assert again.claim("r") == fence + 1, "once"
    assert again.check() is None
    again.close()


def test_a_controller_of_the_older_version_writes_no_more(old: Path) -> None:
    first = Journal(old)
    first.fence = first.value("SELECT fence FROM lease")  # as it holds it
    second = Journal(old)
    second.claim("r")
    with pytest.raises(FenceLost):
        first.event("late")
    first.close()
    second.close()


def test_one_that_dies_meanwhile_leaves_it_as_it_was(
    old: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = rows(old)

    def dies(*args: Any) -> str:
        raise KeyboardInterrupt

    journal = Journal(old)
    with monkeypatch.context() as patch:
        patch.setattr(tamper_seal, "moved", dies)
        with pytest.raises(KeyboardInterrupt):
            journal.claim("r")
    journal.close()
    assert rows(old) == before
    reader = Journal(old, read_only=True)
    assert reader.version == 1
    reader.close()


def test_what_others_had_changed_is_still_told(old: Path) -> None:
    with sqlite3.connect(old) as db:
        db.execute("UPDATE decisions SET reason = 'another' WHERE seq = 1")
    db.close()
    journal = Journal(old)
    journal.claim("r")
    assert "was changed by something other than mixloop" in str(journal.check())
    journal.close()
