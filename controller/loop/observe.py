"""The controller's eyes: run folder and journal in, the facts of a :class:`World` out.

Reads only. Every look opens the files afresh; what cannot be read is no news.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from mixloop.common.files import NotRegularError, read_regular
from mixloop.common.json_records import Problem
from mixloop.common.types import Json
from mixloop.contract import (
    Manifest,
    OpenLine,
    RunPaths,
    Schedule,
    Status,
    is_signed,
    read_holds,
    read_status,
    schedule_of,
)
from mixloop.controller.config import RunConfig, layout_of
from mixloop.controller.core import (
    Applied,
    FileState,
    Rewind,
    RunState,
    find_rewinds,
    left_by,
    opened,
    remaining,
)
from mixloop.controller.journal import Journal, Row
from mixloop.trainer.config import SUM_TOLERANCE

from .mixture_file import AcceptedOrders

BACKLOG = 2  # checkpoints that may wait before evaluation counts as behind
CURVE_POINTS = 400  # points of the trainer's curves over a whole run, at most


class RunObserver:
    """What this controller can see of one run.

    Attributes:
        status: The trainer's newest heartbeat, or None.
        stranger: What was last found, in ``mixture.json`` or followed by the trainer, that no
            controller of this journal wrote; empty when there is nothing to tell.
        unknown: Sources of run.yaml that the trainer has not been started with: until it is,
            nothing is decided.
        begun: Incarnations of the trainer that the journal does not know of, oldest first.
        problems: The files that could not be read, each with what is wrong with it.
    """

    def __init__(
        self, paths: RunPaths, journal: Journal, config: RunConfig, key: bytes | None = None
    ) -> None:
        self._key = key
        self._paths = paths
        self._journal = journal
        self._config = config
        self.layout = layout_of(config, paths.checkpoints)
        self._manifests: dict[str, Manifest] = {}
        self.status: Status | None = None
        self.problems: dict[Path, Problem] = {}
        self.stranger = ""
        self.unknown: tuple[str, ...] = ()
        self.begun: tuple[OpenLine, ...] = ()
        self._incarnation = int(
            journal.value("SELECT value FROM meta WHERE key = 'incarnation'") or 0
        )
        self.cuts: tuple[Rewind, ...] = ()
        self._cuts_until = -1  # the incarnation up to which they are known
        self._opened: tuple[OpenLine, ...] = ()
        self._known: set[int] = set()  # steps in the folder that are in the journal
        # step and tokens of the last checkpoint up to which none will ever be due again
        self._settled: tuple[int, int] | None = None
        self._learn_cuts()
        self._curves_at = -1
        self._told: Json | None = None
        self._schedule = AcceptedOrders(paths.schedule)

    def look(self, *, paused: bool, **facts: Any) -> RunState:
        """The world now; ``facts`` are those about child processes and operators."""
        self.problems = {}
        self._take_heartbeat()
        decides = self.status is not None and not paused and not self.unknown
        self._notice_incarnation()
        newest = self._newest_order()
        finished = self._finished()
        to_score, waiting = self._to_score(finished)
        busy = facts["scoring"] or facts["trying"]
        unrecorded = self._unrecorded()
        idle = to_score is None and not unrecorded
        return RunState(
            file=self._file_state(newest),
            asked=newest["generation"] if newest else None,
            newly_applied=tuple(self._newly_applied()),
            newly_rejected=self._newly_rejected(),
            unrecorded=unrecorded,
            to_score=None if facts["scoring"] else to_score,
            to_skip=self._abandoned() or ({} if busy or finished else self._behind(waiting)),
            began=bool(self.begun),
            to_decide=self._to_decide() if decides else None,
            finished=finished and idle and not waiting,
            status_changed=self._curves_due(),
            closed=self._closed(),
            **facts,
        )

    def examine(self) -> None:
        """Look at what :meth:`look` need not read, for the sake of :attr:`problems` alone."""
        self._schedule.now()
        self._note(self._paths.schedule, self._schedule.problem)
        self._note(self._paths.holds, read_holds(self._paths.holds).problem)

    def _note(self, path: Path, problem: Problem | None) -> None:
        if problem is not None:
            self.problems[path] = problem

    def _take_heartbeat(self) -> None:
        """Read the heartbeat; its mixture is told by run.yaml's sources, if the rest has none."""
        found = read_status(self._paths.status)
        self._note(self._paths.status, found.problem)
        status = found.value
        if status is None:
            return
        weights = status.in_force.weights  # of all sources that the trainer was started with
        self.unknown = tuple(name for name in self._config.sources if name not in weights)
        own = self._shares(weights)
        if set(weights) != set(own) and sum(own.values()) > 1 - SUM_TOLERANCE:
            status = replace(status, in_force=replace(status.in_force, weights=own))
        self.status = status

    # -- incarnations ------------------------------------------------------------------------

    def _learn_cuts(self) -> None:
        """Read where the trainer left branches; a step of such a one may come again."""
        schedule = schedule_of(self._paths.schedule).value or Schedule()
        if not schedule.lines:
            return  # there is none yet, or it can't be read now: at the next look
        self.cuts, self._cuts_until = find_rewinds(schedule), schedule.incarnation
        self._opened = opened(schedule)
        self._settled = None
        self._known = {
            row["step"]
            for row in self._journal.rows("SELECT step, sample, incarnation FROM checkpoints")
            if self._on_branch(row)
        }

    def _notice_incarnation(self) -> None:
        newest = self.status.incarnation if self.status is not None else 0
        if newest > self._cuts_until:
            self._learn_cuts()
        # by one reading of the schedule, which may know of more than the heartbeat
        self.begun = tuple(line for line in self._opened if line.incarnation > self._incarnation)

    def incarnation_noted(self, abandoned: Iterable[int]) -> None:
        """The journal knows of :attr:`begun`; these steps may come again."""
        self._incarnation = max(line.incarnation for line in self.begun)
        self._known -= set(abandoned)

    def _on_branch(self, row: Row) -> bool:
        return left_by(self.cuts, row["sample"], row["incarnation"]) is None

    def _abandoned(self) -> dict[int, str]:
        """Checkpoints of a branch the trainer has left, found only after it had."""
        if not self.cuts:
            return {}
        rows = self._journal.rows(
            "SELECT c.step, c.sample, c.incarnation FROM checkpoints c "
            "LEFT JOIN evaluations e USING (step) WHERE e.state IS NULL"
        )
        found = {row["step"]: left_by(self.cuts, row["sample"], row["incarnation"]) for row in rows}
        return {step: f"abandoned: {cut}" for step, cut in found.items() if cut is not None}

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
            return self._shares(initial), []
        asked, left = remaining(newest["weights"], self.plan_of(newest), tokens)
        return self._shares(asked), [[until, self._shares(weights)] for until, weights in left]

    def plan_of(self, order: Row) -> list[tuple[int, dict[str, float]]]:
        """What is left of an order's plan when it draws from sources that run.yaml no longer has:
        the stretches up to the first that does."""
        plan: list[tuple[int, dict[str, float]]] = []
        for until, weights in order["plan"]:
            if any(share for name, share in weights.items() if name not in self._config.sources):
                break
            plan.append((until, weights))
        return plan

    def _shares(self, weights: Mapping[str, float]) -> dict[str, float]:
        """A mixture by run.yaml's sources; one that was retired has no share in it."""
        return {name: weights.get(name, 0.0) for name in self._config.sources}

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
        signed = self._key is None or is_signed(self._key, found)
        current = ours and recorded and signed and fence == self._journal.fence
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
        segments = (schedule_of(self._paths.schedule).value or Schedule()).segments
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
            manifest = self._manifest_of(name)
            if manifest is None:
                continue
            known = self._journal.row(
                "SELECT sample, incarnation FROM checkpoints WHERE step = ?", manifest.step
            )
            # a step is repeated by a resume, which makes the same checkpoint, or after a rewind
            if known is not None and self._on_branch(known):
                self._known.add(manifest.step)
                continue
            left = left_by(self.cuts, manifest.sample, manifest.incarnation)
            if known is not None and left is not None:
                continue  # the folder may yet be replaced by one of the branch that goes on
            if self._settled is not None and manifest.step <= self._settled[0]:
                self._settled = None  # older than what is settled: all is looked through again
            self._manifests[name] = manifest
            found.append(name)
        return tuple(found)

    def _manifest_of(self, name: str) -> Manifest | None:
        found = self.layout.find(name)
        self._note(self.layout.file(name), found.problem)
        return found.value

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
            "SELECT c.step, c.tokens, c.sample, c.incarnation, e.state FROM checkpoints c "
            "LEFT JOIN evaluations e USING (step) WHERE c.step > ? ORDER BY c.step",
            step,
        )
        rows = [row for row in rows if self._on_branch(row)]
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
            elif not waiting:
                self._settled = (row["step"], tokens)
        return (waiting[0] if waiting else None), waiting

    def _behind(self, waiting: list[int]) -> dict[int, str]:
        """What is passed over so that the newest is scored next; a short queue is no backlog.

        What was begun is finished all the same. After the end of the training nothing waits for a
        score, and all are scored.
        """
        if self._config.evals.backlog == "all" or len(waiting) <= BACKLOG:
            return {}
        begun = self._journal.rows("SELECT step FROM evaluations WHERE state = 'running'")
        passed = set(waiting[:-1]) - {row["step"] for row in begun}
        why = (
            f"evaluation is behind: {len(waiting)} checkpoints waited, and the newest "
            f"(step {waiting[-1]}) is scored next"
        )
        return dict.fromkeys(sorted(passed), why)

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
        decided = self._journal.value(
            "SELECT MAX(step) FROM decisions WHERE asked_by = 'policy' AND abandoned_by IS NULL"
        )
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
