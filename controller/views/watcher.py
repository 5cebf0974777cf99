"""Looking at a run again and again: the files and the journal, read only, into a ``Look``.

Every look opens the journal afresh with a connection that can write nothing and gives it back at
once, so that a controller can neither be kept waiting nor be harmed; what can't be read now is
shown as it was.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mixloop.common import text
from mixloop.common.json_records import Problem
from mixloop.common.types import Json
from mixloop.contract import RunPaths, Status, read_status
from mixloop.controller.core import heartbeat
from mixloop.controller.decisions import observation_builder
from mixloop.controller.journal import Journal, JournalError, unreadable_files

from . import run_status as views

PAST = 48  # evaluations of a curve
DECISIONS = 20


def _column(journal: Journal, query: str) -> list[Any]:
    return [next(iter(row.values())) for row in journal.rows(query)]


def _score(journal: Journal, row: Json) -> Json:
    """One scorecard without its items."""
    found = journal.row("SELECT scorecard FROM evaluations WHERE step = ?", row["step"])
    card = (found or {}).get("scorecard") or {}
    return {
        "step": row["step"],
        "tokens": row["tokens"],
        "seconds": card.get("seconds"),
        "benchmarks": {
            name: {key: one[key] for key in ("status", "reason", "metrics")}
            for name, one in card.get("benchmarks", {}).items()
        },
    }


def params(journal: Journal) -> Json:
    """Of the controller's newest start: ``max_epochs``, ``evaluate_every``, ``approval_timeout``
    (both in tokens); None where it has none."""
    row = journal.row("SELECT detail FROM events WHERE kind = 'started' ORDER BY seq DESC LIMIT 1")
    told = row["detail"].get("params", {}) if row is not None else {}
    guards = json.loads(told.get("guards", "{}"))
    kept = {key: told.get(key) for key in ("evaluate_every", "approval_timeout")}
    return {"max_epochs": guards.get("max_epochs"), **kept}


def decisions(journal: Journal) -> list[Json]:
    """The newest decisions, newest first, each with what became of its approval."""
    rows = journal.rows("SELECT * FROM decisions ORDER BY seq DESC LIMIT ?", DECISIONS)
    known = {one["decision"]: one for one in journal.rows("SELECT * FROM approvals")}
    return [{**row, "approval": known.get(row["id"])} for row in rows]


def failing_since(journal: Journal) -> str | None:
    """When the present trouble with MLflow began, as the journal's clock had it; None: none."""
    found = journal.value(
        "SELECT MIN(at) FROM events WHERE kind IN ('tracking-failed', 'tracking-refused') "
        "AND at > COALESCE((SELECT MAX(done_at) FROM outbox), '')"
    )
    return None if found is None else str(found)


@dataclass(frozen=True)
class RunSnapshot:
    """What one look at a run found, as plain values.

    Attributes:
        overview: as ``mixloop status --json`` has it.
        params: of the controller's newest start: ``max_epochs``, ``evaluate_every``,
            ``approval_timeout`` (tokens), each None where unknown.
        scores: per evaluation, oldest first: step, tokens, seconds, benchmarks (status, reason,
            metrics).
        trends: per benchmark the paired effect of the newest evaluation against the one before.
        decisions: the newest decisions, newest first.
        checkpoints: tokens of the newest checkpoints, newest first.
        waiting: checkpoints that are complete and not scored.
        scoring: seconds for which this observer has seen the present evaluation go on.
        controller_silent: seconds for which it has seen the controller's counter stand still.
        failing_since: when the tracker's present trouble began, as the journal tells it.
        trouble: why the journal can't be read now; what is shown of it is then older.
    """

    overview: Json
    params: Mapping[str, Any]
    scores: Sequence[Json] = ()
    trends: Mapping[str, Json] = ()  # type: ignore[assignment]
    decisions: Sequence[Json] = ()
    checkpoints: Sequence[int] = ()
    waiting: int = 0
    scoring: float | None = None
    controller_silent: float | None = None
    failing_since: str | None = None
    trouble: str | None = None


@dataclass
class Watcher:
    """Looks at one run.

    Args:
        clock: monotonic seconds; the only clock there is here.
    """

    paths: RunPaths
    clock: Callable[[], float]
    _status: Status | None = None
    _pulse: heartbeat.Heartbeat | None = None
    _controller: heartbeat.Heartbeat | None = None
    _scoring: tuple[tuple[int, ...], float] | None = None
    _scores: dict[tuple[int, str], Json] = field(default_factory=dict)
    _pair: tuple[object, dict[str, Json]] = ((), {})
    _wrong: dict[Path, Problem] = field(default_factory=dict)
    _last: RunSnapshot | None = None
    _last_at: float = 0.0

    def look(self) -> RunSnapshot:
        """The run now. Never raises for what the disk or another process does."""
        now = self.feel()
        try:
            found = self._read(now)
        except (sqlite3.Error, JournalError, OSError, ValueError, LookupError, TypeError) as error:
            return self._without_journal(error, now)
        self._last, self._last_at = found, now
        return found

    def feel(self) -> float:
        """Look at the heartbeat alone. Returns the time on our clock."""
        self._status = read_status(self.paths.status).value or self._status
        now = self.clock()
        self._pulse = heartbeat.update(self._pulse, self._status, now)
        return now

    def _read(self, now: float) -> RunSnapshot:
        if not self.paths.journal.exists():
            return RunSnapshot(self._overview(None, now), {})
        with closing(Journal(self.paths.journal, read_only=True)) as journal:
            scores = self._evaluations(journal)
            return RunSnapshot(
                overview=self._overview(journal, now),
                params=params(journal),
                scores=scores,
                trends=self._trends(journal, scores),
                decisions=decisions(journal),
                checkpoints=_column(
                    journal, "SELECT tokens FROM checkpoints ORDER BY step DESC LIMIT 2"
                ),
                waiting=len(
                    journal.rows(
                        "SELECT c.step FROM checkpoints c LEFT JOIN evaluations e USING (step) "
                        "WHERE e.state IS NULL OR e.state = 'running'"
                    )
                ),
                scoring=self._scoring_for(journal, now),
                controller_silent=self._controller_silence(journal, now),
                failing_since=failing_since(journal),
            )

    def _without_journal(self, error: Exception, now: float) -> RunSnapshot:
        age = text.duration(now - self._last_at)
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
        trouble = f"the journal can't be read now ({why})"
        if self._last is None:
            return RunSnapshot(self._overview(None, now), {}, trouble=trouble)
        fresh = self._overview(None, now)
        known = {name: fresh[name] for name in ("run", "trainer", "ledger", "unreadable")}
        known["mixture"] = self._last.overview["mixture"] | {"applied": fresh["mixture"]["applied"]}
        overview = self._last.overview | known
        trouble += f"; what comes from it is {age} old"
        return replace(self._last, overview=overview, trouble=trouble)

    def _overview(self, journal: Journal | None, now: float) -> Json:
        beat, seen = self._status, self._pulse
        limit = heartbeat.stall_limit(seen, beat)
        watched = None
        if seen is not None and (seen.moved or now - seen.since > limit):
            watched = (now - seen.since, limit)
        found = unreadable_files.problems(self.paths, journal)
        lasting, self._wrong = unreadable_files.lasting(self._wrong, found), found
        listed = unreadable_files.listed(lasting, self.paths.dir)
        return views.overview(self.paths, journal, beat, watched, listed)

    # -- the journal -------------------------------------------------------------------------

    def _evaluations(self, journal: Journal) -> list[Json]:
        """The newest evaluations, oldest first; each scorecard is read once."""
        rows = journal.rows(
            "SELECT c.step, c.tokens, e.finished_at FROM checkpoints c JOIN evaluations e "
            "USING (step) WHERE e.state = 'scored' ORDER BY c.step DESC LIMIT ?",
            PAST,
        )
        known = {}
        for row in reversed(rows):
            key = (row["step"], row["finished_at"])
            known[key] = self._scores.get(key) or _score(journal, row)
        self._scores = known
        return list(known.values())

    def _trends(self, journal: Journal, scores: list[Json]) -> dict[str, Json]:
        key = tuple(self._scores)[-2:]
        if len(scores) < 2:
            return {}
        if key != self._pair[0]:
            pair = observation_builder.evaluations(journal, newest=2)
            self._pair = (key, observation_builder.effects(*pair))
        return self._pair[1]

    def _scoring_for(self, journal: Journal, now: float) -> float | None:
        """How long we have seen what is being scored being scored."""
        query = "SELECT step FROM evaluations WHERE state = 'running' ORDER BY step"
        steps = tuple(_column(journal, query))
        if not steps:
            self._scoring = None
            return None
        if self._scoring is None or self._scoring[0] != steps:
            self._scoring = (steps, now)
        return now - self._scoring[1]

    def _controller_silence(self, journal: Journal, now: float) -> float | None:
        lease = journal.row("SELECT fence, counter FROM lease")
        if lease is None:
            return None
        seen = self._controller
        if seen is None or (seen.incarnation, seen.heartbeat) != (lease["fence"], lease["counter"]):
            seen = heartbeat.Heartbeat(lease["fence"], lease["counter"], now)
        self._controller = seen
        return now - seen.since
