"""Looking at a run again and again: files and journal, read only, into a :class:`RunSnapshot`.

Every look opens the journal afresh with a connection that can write nothing and gives it back at
once, so that a controller can neither be kept waiting nor be harmed; what can't be read now is
shown as it was.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path

from mixloop.common import text
from mixloop.common.json_records import Problem
from mixloop.common.types import Json
from mixloop.contract import RunPaths, Status, read_status
from mixloop.controller.core import heartbeat
from mixloop.controller.decisions import effects, observation_builder
from mixloop.controller.journal import Journal, JournalError, queries, unreadable_files
from mixloop.policies.evidence import RECENT

from .run_standing import CheckpointScores, RunStanding, run_standing, scores_of

PAST = 48  # evaluations of a curve


@dataclass(frozen=True)
class RunSnapshot:
    """What one look at a run found, and what only one who goes on looking can know.

    Attributes:
        standing: how the run stands, with the scores of the newest :data:`PAST` evaluations.
        trends: per benchmark the paired effect of the newest evaluation against the one before.
        scoring: seconds for which this observer has seen the present evaluation go on.
        controller_silent: seconds for which it has seen the controller's counter stand still.
        trouble: why the journal can't be read now; what is shown of it is then older.
    """

    standing: RunStanding
    trends: Mapping[str, Json] = field(default_factory=dict)
    scoring: float | None = None
    controller_silent: float | None = None
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
    _trainer: heartbeat.Heartbeat | None = None
    _controller: heartbeat.Heartbeat | None = None
    _scoring: tuple[Sequence[int], float] | None = None
    _scores: dict[tuple[int, str | None], CheckpointScores] = field(default_factory=dict)
    _trends: tuple[object, dict[str, Json]] = ((), {})
    _problems: dict[Path, Problem] = field(default_factory=dict)
    _last: tuple[RunSnapshot, float] | None = None

    def look(self) -> RunSnapshot:
        """The run now. Never raises for what the disk or another process does."""
        now = self.read_heartbeat()
        try:
            snapshot = self._read(now)
        except (sqlite3.Error, JournalError, OSError, ValueError, LookupError, TypeError) as error:
            return self._without_journal(error, now)
        self._last = snapshot, now
        return snapshot

    def read_heartbeat(self) -> float:
        """Look at the heartbeat alone. Returns the time on our clock."""
        self._status = read_status(self.paths.status).value or self._status
        now = self.clock()
        self._trainer = heartbeat.update(self._trainer, self._status, now)
        return now

    def _read(self, now: float) -> RunSnapshot:
        if not self.paths.journal.exists():
            return RunSnapshot(self._standing(None, now))
        with closing(Journal(self.paths.journal, read_only=True)) as journal:
            standing = self._standing(journal, now, self._read_scores(journal))
            return RunSnapshot(
                standing,
                trends=self._read_trends(journal),
                scoring=self._scoring_for(standing.scoring, now),
                controller_silent=self._controller_silence(standing, now),
            )

    def _without_journal(self, error: Exception, now: float) -> RunSnapshot:
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
        trouble = f"the journal can't be read now ({why})"
        fresh = self._standing(None, now)
        if self._last is None:
            return RunSnapshot(fresh, trouble=trouble)
        last, looked_at = self._last
        standing = replace(
            last.standing, run=fresh.run, trainer=fresh.trainer, unreadable=fresh.unreadable
        )
        trouble += f"; what comes from it is {text.duration(now - looked_at)} old"
        return replace(last, standing=standing, trouble=trouble)

    def _standing(
        self, journal: Journal | None, now: float, scores: Sequence[CheckpointScores] = ()
    ) -> RunStanding:
        limit = heartbeat.stall_limit(self._trainer, self._status)
        watched = None
        if self._trainer is not None:
            silent = now - self._trainer.since
            if self._trainer.moved or silent > limit:
                watched = (silent, limit)
        problems = unreadable_files.problems(self.paths, journal)
        unreadable = unreadable_files.persisting(self._problems, problems, self.paths.dir)
        self._problems = problems
        return run_standing(
            self.paths,
            journal,
            self._status,
            watched=watched,
            unreadable=unreadable,
            scores=scores,
        )

    # -- the journal -------------------------------------------------------------------------

    def _read_scores(self, journal: Journal) -> list[CheckpointScores]:
        """The newest evaluations, oldest first; each scorecard is read once."""
        scores = {}
        for row in queries.checkpoints_in(journal, "scored", newest=PAST):
            key = (row.step, row.finished_at)
            scores[key] = self._scores.get(key) or next(
                map(scores_of, queries.scored(journal, since=row.step, until=row.step))
            )
        self._scores = scores
        return list(scores.values())

    def _read_trends(self, journal: Journal) -> dict[str, Json]:
        key = tuple(self._scores)[-2:]
        if len(key) < 2:
            return {}
        if key != self._trends[0]:
            course = observation_builder.evaluations(journal, newest=RECENT)
            self._trends = (key, effects(*course[-2:], course=course))
        return self._trends[1]

    def _scoring_for(self, steps: Sequence[int], now: float) -> float | None:
        """How long we have seen what is being scored being scored."""
        if not steps:
            self._scoring = None
            return None
        if self._scoring is None or self._scoring[0] != steps:
            self._scoring = (steps, now)
        return now - self._scoring[1]

    def _controller_silence(self, standing: RunStanding, now: float) -> float | None:
        holder, last = standing.controller, self._controller
        if holder is None:
            return None
        if last is None or (last.incarnation, last.heartbeat) != (holder.fence, holder.counter):
            last = heartbeat.Heartbeat(holder.fence, holder.counter, now)
        self._controller = last
        return now - last.since
