"""Files of a run that can't be read: reported once they stay so, shown as long as they are so.

What a reader can't take is no news to it: the last sound content counts. That a file is torn, or
an NFS client is stale, for a moment is normal; what persists is somebody's mistake, or mischief,
and a person has to hear of it. :class:`UnreadableFiles` is pure; :func:`find_unreadable` reads.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mixloop.common.files import why_no_file
from mixloop.common.json_records import Problem
from mixloop.contract import RunPaths, read_holds, read_manifest, read_status, schedule_of
from mixloop.trainer.loader import SAVED_FILE, read_saved_manifest

from . import queries
from .journal import Journal

EXAMINE_SECONDS = 5.0  # between two examinations
PERSISTS = 3  # examinations in a row that make a state of a file: a torn read is none
PAUSE_SECONDS = (60.0, 86_400.0)  # first and greatest pause between two reports on one file
AGAIN_SECONDS = 0.1  # after which a command looks once more

_REMEDIES = {
    "status.json": "the last heartbeat that could be read counts; if the trainer's next one does "
    "not mend it, see what else writes there",
    "schedule.jsonl": "what was read before counts; restore it from a copy, or start a new run "
    "from a checkpoint",
    "holds.json": "the controller writes it anew",
}
_LOG = "what would be logged there is lost; move it away"
LOGS = ("controller", "evals", "experiments", "mlflow", "policy", "trainer")
_CHECKPOINT = "the checkpoint is not scored; restore the file from a copy, or remove its folder"


@dataclass(frozen=True)
class Report:
    """Something to say of a file: its problem, or, with None, that it can be read again."""

    path: Path
    problem: Problem | None


@dataclass(frozen=True, slots=True)
class UnreadableFile:
    """A file that can't be read, as people are told of it; ``key``: empty where it is all of it."""

    file: str
    key: str
    problem: str
    mend: str


@dataclass
class _State:
    bad: int = 0  # examinations in a row that found it wrong, and other than reported
    good: int = 0
    reported: Problem | None = None
    pause: float = 0.0
    quiet_until: float = float("-inf")


class UnreadableFiles:
    """Reports of each file once that it can't be read.

    And again when another place in it is wrong, or after it could be read in between. A file that
    goes bad again and again is reported less and less often, a day apart in the end: neither log
    nor journal grows without bound.

    Attributes:
        pending: reports that the journal does not have yet.
    """

    def __init__(self) -> None:
        self._states: dict[Path, _State] = {}
        self._journaled: list[Path] | None = None
        self.pending: list[Report] = []

    @property
    def reported(self) -> list[Path]:
        """The files that can't be read now, as far as was reported."""
        return sorted(path for path, state in self._states.items() if state.reported is not None)

    @property
    def unwritten(self) -> bool:
        """Whether the journal is to be told something."""
        return bool(self.pending) or self._journaled != self.reported

    def written(self) -> None:
        """The journal has it all."""
        self.pending, self._journaled = [], self.reported

    def examine(self, problems: Mapping[Path, Problem], now: float) -> list[Report]:
        """What is to be said after an examination.

        Args:
            problems: of the files that can't be read; those that are sound or missing have none.
            now: monotonic seconds.
        """
        reports = []
        for path in sorted({*self._states, *problems}):
            state = self._states.setdefault(path, _State())
            problem = problems.get(path)
            if problem is None:
                reports += self._sound(path, state, now)
            elif self._is_due(state, problem, now):
                state.reported, state.bad = problem, 0
                reports.append(Report(path, problem))
        self.pending += reports
        return reports

    def _sound(self, path: Path, state: _State, now: float) -> list[Report]:
        state.bad = 0
        state.good += 1
        if state.good < PERSISTS:
            return []
        before, state.reported = state.reported, None
        if now > state.quiet_until + state.pause:
            del self._states[path]
        return [Report(path, None)] if before is not None else []

    def _is_due(self, state: _State, problem: Problem, now: float) -> bool:
        state.good = 0
        same = state.reported is not None and state.reported.key == problem.key
        state.bad = 0 if same else state.bad + 1
        if state.bad < PERSISTS or now < state.quiet_until:
            return False
        calm = now > state.quiet_until + state.pause
        first, greatest = PAUSE_SECONDS
        state.pause = first if calm else min(2 * state.pause, greatest)
        state.quiet_until = now + state.pause
        return True


def remedy(path: Path) -> str:
    """What comes of a file that can't be read, and what to do."""
    return _REMEDIES.get(path.name, _LOG if path.suffix == ".log" else _CHECKPOINT)


def name_of(path: Path, folder: Path) -> str:
    """A file's name as people know it: relative to the run folder, if it lies there."""
    return str(path.relative_to(folder)) if path.is_relative_to(folder) else str(path)


def report_line(report: Report, folder: Path) -> str:
    """One line for a person."""
    name = name_of(report.path, folder)
    if report.problem is None:
        return f"{name} can be read again"
    return f"{name} can't be read: {report.problem.text}; {remedy(report.path)}"


def log_problems(paths: RunPaths) -> dict[Path, Problem]:
    """Of logs in whose place something lies that is no file, and that nobody opens."""
    kinds = {path: why_no_file(path) for path in (paths.dir / f"{name}.log" for name in LOGS)}
    return {path: Problem("", kind) for path, kind in kinds.items() if kind is not None}


def problems(paths: RunPaths, journal: Journal | None) -> dict[Path, Problem]:
    """What can't be read now: status, schedule, holds, logs, and manifests that were told of."""
    results: dict[Path, Problem | None] = {
        **log_problems(paths),
        paths.status: read_status(paths.status).problem,
        paths.schedule: schedule_of(paths.schedule).problem,
        paths.holds: read_holds(paths.holds).problem,
    }
    for name in queries.unreadable_names(journal) if journal is not None else ():
        path = paths.dir / name
        if path not in results:
            read = read_saved_manifest if path.name == SAVED_FILE else read_manifest
            results[path] = read(path.parent).problem
    return {path: problem for path, problem in results.items() if problem is not None}


def persisting(
    before: Mapping[Path, Problem], now: Mapping[Path, Problem], folder: Path
) -> list[UnreadableFile]:
    """What was wrong at two looks, for people."""
    return [
        UnreadableFile(name_of(path, folder), problem.key, problem.text, remedy(path))
        for path, problem in sorted(now.items(), key=lambda pair: pair[0])
        if path in before
    ]


def find_unreadable(paths: RunPaths, journal: Journal | None) -> list[UnreadableFile]:
    """What can't be read, seen twice; of a run without a fault it costs one look."""
    before = problems(paths, journal)
    if not before:
        return []
    time.sleep(AGAIN_SECONDS)
    return persisting(before, problems(paths, journal), paths.dir)
