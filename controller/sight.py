"""The controller's eyes: run folder and journal in, the facts of a :class:`World` out.

Reads only. Every look opens the files afresh; what cannot be read is no news.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mixloop.controller.config import RunConfig
from mixloop.controller.errors import BadInput
from mixloop.controller.journal import Journal, Row
from mixloop.controller.layouts import layout_of
from mixloop.controller.propose import remaining
from mixloop.controller.reconcile import Applied, FileState, World
from mixloop.trainer.contract import (
    Manifest,
    RunPaths,
    Schedule,
    ScheduleError,
    SegmentLine,
    Status,
    read_schedule,
    read_status,
)
from mixloop.trainer.files import NotRegularError, read_regular
from mixloop.trainer.schedule import decode_line

if TYPE_CHECKING:
    from mixloop.controller.operations import Operations

Json = dict[str, Any]

LARGEST_SCHEDULE = 2**28  # bytes worth reading
CURVE_POINTS = 400  # points of the trainer's curves over a whole run, at most


def highest_fence(paths: RunPaths) -> int:
    """The highest fence the trainer has ever seen, so that a lost journal can't go back."""
    status = read_status(paths.status)
    seen = status.accepted.fence if status is not None else 0
    return max(seen, schedule_of(paths).accepted[0])


def check_same_sources(paths: RunPaths, config: RunConfig) -> None:
    """Refuse a run.yaml whose sources are not the ones the trainer runs on.

    Raises:
        BadInput: naming the difference; every order would be refused.
    """
    opened = schedule_of(paths).latest_open
    if opened is None:
        return
    theirs = {source.name for source in opened.sources}
    ours = set(config.sources)
    if theirs and theirs != ours:
        more = f"more: {', '.join(sorted(ours - theirs)) or 'none'}"
        less = f"missing: {', '.join(sorted(theirs - ours)) or 'none'}"
        raise BadInput(f"sources: not those of the run in {paths.dir} ({more}; {less})")
    length = config.trainer.sequence_length
    if opened.sequence_length != length:
        raise BadInput(
            f"trainer.sequence_length: {length} is not the run's, which is {opened.sequence_length}"
        )


def first_mixture(
    paths: RunPaths, journal: Journal, configured: Mapping[str, float]
) -> dict[str, float]:
    """The mixture before any order of this journal.

    What was recorded at the first start; for a journal that was lost, the mixture in force, since
    going back to run.yaml's would be a change that nobody asked for.
    """
    recorded = journal.value("SELECT value FROM meta WHERE key = 'initial'")
    if recorded is not None:
        return dict(json.loads(recorded))
    status = read_status(paths.status)
    followed = status is not None and status.accepted.generation > 0
    return dict(status.in_force.weights if status is not None and followed else configured)


def schedule_of(paths: RunPaths) -> Schedule:
    """The trainer's schedule; empty (no news) while it can't be read or is damaged.

    A damaged schedule is the trainer's to report; the controller can do without it for a while.
    """
    try:
        return read_schedule(paths.schedule)
    except (OSError, ScheduleError):
        return Schedule()


class Accepted:
    """The highest fence and generation of the trainer's schedule, as it grows.

    Only the lines that are new since the last look are read with care: a schedule of thousands of
    orders takes a quarter of a second. What was read is known by its digest, so that a file that
    was changed in any other way than by appending is read anew.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._read = 0
        self._digest = hashlib.sha256()
        self._found = (0, 0)

    def now(self) -> tuple[int, int]:
        """``(fence, generation)``; what was found last while the file can't be read."""
        try:
            data = read_regular(self._path, LARGEST_SCHEDULE).data
            if not self._grow(data):
                self._start(data)
        except (OSError, ScheduleError):
            return (0, 0) if not self._read else self._found
        return self._found

    def _grow(self, data: bytes) -> bool:
        """Whether nothing but segments was appended since."""
        end = data.rfind(b"\n") + 1
        if not 0 < self._read <= end:
            return False
        if hashlib.sha256(data[: self._read]).digest() != self._digest.digest():
            return False
        new = data[self._read : end]
        try:
            lines = [decode_line(line) for line in new.splitlines()]
        except (ValueError, RecursionError):
            return False
        if not all(isinstance(line, SegmentLine) for line in lines):
            return False
        for line in lines:
            if isinstance(line, SegmentLine):
                fence, generation = self._found
                self._found = max(fence, line.fence), max(generation, line.generation)
        self._read = end
        self._digest.update(new)
        return True

    def _start(self, data: bytes) -> None:
        self._found = read_schedule(self._path).accepted
        self._read = data.rfind(b"\n") + 1
        self._digest = hashlib.sha256(data[: self._read])


class Eyes:
    """What this controller can see of one run.

    Attributes:
        status: The trainer's newest heartbeat, or None.
        stranger: What was last found, in ``mixture.json`` or followed by the trainer, that no
            controller of this journal wrote; empty when there is nothing to tell.
    """

    def __init__(self, paths: RunPaths, journal: Journal, config: RunConfig) -> None:
        self._paths = paths
        self._journal = journal
        self._config = config
        self.layout = layout_of(config, paths.checkpoints)
        self._manifests: dict[str, Manifest] = {}
        self._known: set[int] = set()  # steps in the folder that are in the journal
        self.status: Status | None = None
        self.stranger = ""
        self._curves_at = -1
        self._told: Json | None = None
        self._schedule = Accepted(paths.schedule)
        self._settled: tuple[int, int] | None = None

    def look(self, operations: Operations, **children: Any) -> World:
        """The world now; ``children`` are the facts about child processes."""
        self.status = read_status(self._paths.status) or self.status
        decides = self.status is not None and not operations.paused
        newest = self._newest_order()
        finished = self._finished()
        to_score, waiting = self._to_score(finished)
        unrecorded = self._unrecorded()
        idle = to_score is None and not unrecorded
        return World(
            file=self._file_state(newest),
            asked=newest["generation"] if newest else None,
            newly_applied=tuple(self._newly_applied()),
            newly_rejected=self._newly_rejected(),
            unrecorded=unrecorded,
            to_score=None if children["scoring"] else to_score,
            requested=operations.next_request() is not None,
            overdue=operations.ended() is not None,
            to_decide=self._to_decide() if decides else None,
            finished=finished and idle and not waiting,
            status_changed=self._curves_due(),
            closed=self._closed(),
            **children,
        )

    # -- orders ------------------------------------------------------------------------------

    def _newest_order(self) -> Row | None:
        return self._journal.row(
            "SELECT * FROM orders WHERE rejected IS NULL ORDER BY generation DESC LIMIT 1"
        )

    def asked_mixture(
        self, initial: Mapping[str, float], tokens: int
    ) -> tuple[dict[str, float], list[list[Any]]]:
        """The mixture last asked for and what is left of its plan; before any order the first."""
        newest = self._newest_order()
        if newest is None:
            return dict(initial), []
        return remaining(newest["weights"], newest["plan"], tokens)

    def next_generation(self) -> int:
        """Above every generation this journal or the trainer has seen."""
        known = self._journal.value("SELECT MAX(generation) FROM orders") or 0
        accepted = self.status.accepted.generation if self.status is not None else 0
        return max(known, accepted, self._schedule.now()[1]) + 1

    def weights_before(self, generation: int, initial: Mapping[str, float]) -> dict[str, float]:
        """The mixture that was in force when this order came into force."""
        row = self._journal.row(
            "SELECT weights FROM orders WHERE generation < ? AND applied_step IS NOT NULL "
            "ORDER BY generation DESC LIMIT 1",
            generation,
        )
        return dict(row["weights"] if row else initial)

    def _file_state(self, newest: Row | None) -> FileState:
        if self._overtaken():
            return FileState.STRANGER
        state = self._held(newest)
        if state is FileState.STRANGER and newest is not None:
            return FileState.STALE  # the trainer did not take it: our order, as it was, replaces it
        return state

    def _accepted(self) -> tuple[int, int]:
        if self.status is None:
            return (0, 0)
        return self.status.accepted.fence, self.status.accepted.generation

    def _overtaken(self) -> bool:
        """The trainer follows an order that this journal never published."""
        known = self._journal.value("SELECT MAX(generation) FROM orders") or 0
        fence, generation = self._accepted()
        if generation <= known and fence <= (self._journal.fence or 0):
            return False
        self.stranger = f"an order of generation {generation} under fence {fence}"
        return True

    def _held(self, newest: Row | None) -> FileState:
        try:
            data = read_regular(self._paths.mixture).data
        except (FileNotFoundError, NotRegularError):  # a link, a pipe: replaced by the rename
            return FileState.ABSENT
        except OSError:  # unreadable now: no news
            return FileState.CURRENT
        return self._compare(data, newest)

    def _compare(self, data: bytes, newest: Row | None) -> FileState:
        try:
            found = json.loads(data)
            generation, fence = int(found["generation"]), int(found["fence"])
            weights, decision = found["weights"], found["decision"]
            if not 0 <= generation < 2**63:
                raise ValueError("no generation")
        except (ValueError, KeyError, TypeError, RecursionError, OverflowError):
            self.stranger = f"{len(data)} bytes that are no order"
            return FileState.STRANGER
        known = self._journal.row("SELECT * FROM orders WHERE generation = ?", generation)
        if known is None or known["weights"] != weights or known["decision"] != decision:
            self.stranger = f"an order of generation {generation}"
            return FileState.STRANGER
        ours = newest is not None and newest["generation"] == generation
        recorded = newest is not None and newest["published_fence"] == self._journal.fence
        current = ours and recorded and fence == self._journal.fence
        return FileState.CURRENT if current else FileState.STALE

    def _newly_applied(self) -> Iterable[Applied]:
        if self.status is None:
            return
        in_force = self.status.in_force
        rows = self._journal.rows(
            "SELECT generation, plan FROM orders WHERE applied_step IS NULL AND generation <= ? "
            "ORDER BY generation",
            in_force.generation,
        )
        if not rows:
            return
        if [(row["generation"], row["plan"]) for row in rows] == [(in_force.generation, [])]:
            # the only stretch of this order: the heartbeat says itself where it began
            yield Applied(in_force.generation, in_force.sample, in_force.step)
            return
        segments = schedule_of(self._paths).segments
        for row in rows:
            first = next((s for s in segments if s.generation == row["generation"]), None)
            if first is not None and first.sample <= self.status.sample:
                yield Applied(row["generation"], first.sample, first.step)

    def _newly_rejected(self) -> dict[int, str]:
        if self.status is None:
            return {}
        refused = {
            (entry.fence, entry.generation): entry.reason
            for entry in self.status.rejected
            if entry.generation is not None
        }
        rows = self._journal.rows(
            "SELECT generation, published_fence FROM orders "
            "WHERE rejected IS NULL AND applied_step IS NULL "
            "AND published_at IS NOT NULL AND generation > ?",
            self.status.accepted.generation,
        )
        named = {row["generation"]: (row["published_fence"], row["generation"]) for row in rows}
        return {generation: refused[key] for generation, key in named.items() if key in refused}

    # -- checkpoints -------------------------------------------------------------------------

    def _unrecorded(self) -> tuple[str, ...]:
        try:
            names = [entry.name for entry in self.layout.folder.iterdir()]
        except OSError:
            return ()
        found = []
        steps = ((self.layout.step(name), name) for name in names)
        there = sorted((step, name) for step, name in steps if step is not None)
        self._known.intersection_update(step for step, _ in there)
        for step, name in there:
            if step in self._known:
                continue
            manifest = self.layout.manifest(name)
            if manifest is None:
                continue
            if self._journal.row("SELECT 1 FROM checkpoints WHERE step = ?", manifest.step):
                self._known.add(manifest.step)
                continue
            if self._settled is not None and manifest.step <= self._settled[0]:
                self._settled = None  # older than what is settled: all is looked through again
            self._manifests[name] = manifest
            found.append(name)
        return tuple(found)

    def manifest(self, name: str) -> Manifest:
        """The manifest of a checkpoint that the last look found."""
        return self._manifests.pop(name)

    def losses(self) -> dict[str, float]:
        """The training loss per source of the newest heartbeat, where it has one."""
        known = self.status.sources.items() if self.status is not None else ()
        return {name: source.loss for name, source in known if source.loss is not None}

    def _to_score(self, finished: bool) -> tuple[int | None, list[int]]:
        """The next checkpoint to score, and all that wait."""
        step, tokens = self._settled or (-1, None)
        rows = self._journal.rows(
            "SELECT c.step, c.tokens, e.state FROM checkpoints c "
            "LEFT JOIN evaluations e USING (step) WHERE c.step > ? ORDER BY c.step",
            step,
        )
        every = self._config.evals.every or 0
        waiting: list[int] = []
        for row in rows:
            last = finished and row is rows[-1]
            far_enough = tokens is None or row["tokens"] - tokens >= every
            if not (row["state"] is not None or far_enough or last):
                continue
            tokens = row["tokens"]
            if row["state"] in (None, "running"):
                waiting.append(row["step"])
            elif not waiting:  # nothing up to here will ever be due again
                self._settled = (row["step"], tokens)
        return (waiting[0] if waiting else None), waiting

    def waiting(self) -> list[int]:
        """Steps of the checkpoints that are still to be scored."""
        return self._to_score(self._finished())[1]

    def _finished(self) -> bool:
        """Whether the trainer has spent *this* budget: one that was raised goes on."""
        status = self.status
        if status is None or not status.finished:
            return False
        return max(status.tokens, status.budget) >= self._config.budget

    def _to_decide(self) -> int | None:
        """The newest scored checkpoint, unless it or a newer one was decided on."""
        scored = self._journal.value("SELECT MAX(step) FROM evaluations WHERE state = 'scored'")
        decided = self._journal.value("SELECT MAX(step) FROM decisions WHERE asked_by = 'policy'")
        if scored is None or (decided is not None and scored <= decided):
            return None
        return int(scored)

    # -- decisions and their outcomes --------------------------------------------------------

    def interventions_without_outcome(self) -> list[Row]:
        """Interventions in force whose outcome MLflow has not been told."""
        return self._journal.rows(
            "SELECT d.* FROM decisions d JOIN orders o ON o.generation = d.generation "
            "WHERE d.verdict = 'intervene' AND o.applied_step IS NOT NULL "
            "AND NOT EXISTS (SELECT 1 FROM outbox WHERE key = 'outcome:' || d.id)"
        )

    def last_applied_tokens(self) -> int | None:
        """Tokens at which the last intervention came into force, or None."""
        found = self._journal.value("SELECT MAX(applied_tokens) FROM orders")
        return None if found is None else int(found)

    # -- curves and outbox -------------------------------------------------------------------

    def _curves_due(self) -> bool:
        if self.status is None or self.status.loss is None:
            return False
        gap = self._config.budget // CURVE_POINTS
        return self.status.tokens > self._curves_at + gap or (
            self.status.finished and self.status.tokens > self._curves_at
        )

    def take_curves(self) -> tuple[Json | None, Json]:
        """The heartbeat told last (None after a start) and the newest, as JSON, for the curves."""
        assert self.status is not None
        self._curves_at = self.status.tokens
        before, self._told = self._told, asdict(self.status)
        return before, self._told

    def outbox(self) -> int:
        """Entries that MLflow has not got yet."""
        return int(self._journal.value("SELECT COUNT(*) FROM outbox WHERE done_at IS NULL"))

    def _closed(self) -> bool:
        """Whether the run's end is told; a run that goes on with a larger budget ends again."""
        key = f"end:{self.status.tokens if self.status is not None else 0}"
        return self._journal.value("SELECT 1 FROM outbox WHERE key = ?", key) is not None
