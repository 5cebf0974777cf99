"""Files of a run that can't be read: said once they stay so, shown as long as they are so.

What a reader can't take is no news to it: the last sound content counts. That a file is torn, or
an NFS client is stale, for a moment is normal; what persists is somebody's mistake, or mischief,
and a person has to hear of it. :class:`Unread` is pure; :func:`unread` reads.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mixloop.common.json_records import Problem
from mixloop.common.types import Json
from mixloop.contract import RunPaths, read_holds, read_manifest, read_status, schedule_of
from mixloop.trainer.loader import SAVED_FILE, read_saved_manifest

from .journal import Journal

EXAMINE = 5.0  # seconds between two examinations
LOOKS = 3  # examinations in a row that make a state of a file: a torn read is none
PAUSE = (60.0, 86_400.0)  # seconds: first and greatest pause between two words on one file
AGAIN = 0.1  # seconds after which a command looks once more

_MENDS = {
    "status.json": "the last heartbeat that could be read counts; if the trainer's next one does "
    "not mend it, see what else writes there",
    "schedule.jsonl": "what was read before counts; restore it from a copy, or start a new run "
    "from a checkpoint",
    "holds.json": "the controller writes it anew",
}
_CHECKPOINT = "the checkpoint is not scored; restore the file from a copy, or remove its folder"


@dataclass(frozen=True)
class Report:
    """Something to say of a file: its problem, or, with None, that it can be read again."""

    path: Path
    problem: Problem | None


@dataclass
class _State:
    bad: int = 0  # examinations in a row that found it wrong, and other than told
    good: int = 0
    told: Problem | None = None
    pause: float = 0.0
    quiet_until: float = float("-inf")


class UnreadableFiles:
    """Says of each file once that it can't be read, and again when another place in it is wrong,
    or after it could be read in between.

    A file that goes bad again and again is spoken of less and less often, a day apart in the end:
    neither log nor journal grows without bound.
    """

    def __init__(self) -> None:
        self._states: dict[Path, _State] = {}

    @property
    def told(self) -> list[Path]:
        """The files that can't be read now, as far as was said."""
        return sorted(path for path, state in self._states.items() if state.told is not None)

    def see(self, problems: Mapping[Path, Problem], now: float) -> list[Report]:
        """What is to be said after an examination.

        Args:
            problems: of the files that can't be read; those that are sound or missing have none.
            now: monotonic seconds.
        """
        words = []
        for path in sorted({*self._states, *problems}):
            state = self._states.setdefault(path, _State())
            problem = problems.get(path)
            if problem is None:
                words += self._sound(path, state, now)
            elif self._is_due(state, problem, now):
                state.told, state.bad = problem, 0
                words.append(Report(path, problem))
        return words

    def _sound(self, path: Path, state: _State, now: float) -> list[Report]:
        state.bad = 0
        state.good += 1
        if state.good < LOOKS:
            return []
        was, state.told = state.told, None
        if now > state.quiet_until + state.pause:
            del self._states[path]
        return [Report(path, None)] if was is not None else []

    def _is_due(self, state: _State, problem: Problem, now: float) -> bool:
        state.good = 0
        known = state.told is not None and state.told.key == problem.key
        state.bad = 0 if known else state.bad + 1
        if state.bad < LOOKS or now < state.quiet_until:
            return False
        calm = now > state.quiet_until + state.pause
        first, greatest = PAUSE
        state.pause = first if calm else min(2 * state.pause, greatest)
        state.quiet_until = now + state.pause
        return True


@dataclass
class PendingReports:
    """A controller's :class:`Unread`, and what of it the journal does not have yet."""

    unread: UnreadableFiles = field(default_factory=UnreadableFiles)
    words: list[Report] = field(default_factory=list)
    written: list[Path] | None = None

    @property
    def unwritten(self) -> bool:
        """Whether the journal is to be told something."""
        return bool(self.words) or self.written != self.unread.told

    def done(self) -> None:
        """The journal has it all."""
        self.words, self.written = [], self.unread.told


def remedy(path: Path) -> str:
    """What comes of a file that can't be read, and what to do."""
    return _MENDS.get(path.name, _CHECKPOINT)


def name_of(path: Path, folder: Path) -> str:
    """A file's name as people know it: relative to the run folder, if it lies there."""
    return str(path.relative_to(folder)) if path.is_relative_to(folder) else str(path)


def line(word: Report, folder: Path) -> str:
    """One line for a person."""
    name = name_of(word.path, folder)
    if word.problem is None:
        return f"{name} can be read again"
    return f"{name} can't be read: {word.problem.text}; {remedy(word.path)}"


def as_json(path: Path, problem: Problem, folder: Path) -> Json:
    """``file``, ``key`` (empty: all of it), ``problem`` and ``mend``."""
    name = name_of(path, folder)
    return {"file": name, "key": problem.key, "problem": problem.text, "mend": remedy(path)}


def problems(paths: RunPaths, journal: Journal | None) -> dict[Path, Problem]:
    """What can't be read now: status, schedule, holds, and the manifests the controller told of."""
    found = {
        paths.status: read_status(paths.status).problem,
        paths.schedule: schedule_of(paths.schedule).problem,
        paths.holds: read_holds(paths.holds).problem,
    }
    for path in _told(paths, journal):
        if path not in found:
            of = read_saved_manifest if path.name == SAVED_FILE else read_manifest
            found[path] = of(path.parent).problem
    return {path: problem for path, problem in found.items() if problem is not None}


def _told(paths: RunPaths, journal: Journal | None) -> Sequence[Path]:
    row = None
    if journal is not None:
        row = journal.row("SELECT value FROM meta WHERE key = 'unread'")
    return [paths.dir / str(name) for name in json.loads(row["value"])] if row is not None else []


def listed(found: Mapping[Path, Problem], folder: Path) -> list[Json]:
    """As ``mixloop status --json`` has them."""
    return [as_json(path, found[path], folder) for path in sorted(found)]


def lasting(before: Mapping[Path, Problem], now: Mapping[Path, Problem]) -> dict[Path, Problem]:
    """What was wrong at two looks."""
    return {path: problem for path, problem in now.items() if path in before}


def unread(paths: RunPaths, journal: Journal | None) -> list[Json]:
    """What can't be read, seen twice; of a run without a fault it costs one look."""
    found = problems(paths, journal)
    if found:
        time.sleep(AGAIN)
        found = lasting(found, problems(paths, journal))
    return listed(found, paths.dir)
