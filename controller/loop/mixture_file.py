"""``mixture.json`` as it lies there, and what the journal has asked for."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from itertools import takewhile
from pathlib import Path

from mixloop.common.files import NotRegularError, read_regular
from mixloop.common.json_records import Problem, problem_of
from mixloop.contract import SegmentLine, Status, decode_line, is_signed, schedule_of
from mixloop.controller.config import RunConfig
from mixloop.controller.core import FileState, OrderRow, Plan, remaining
from mixloop.controller.journal import Journal, queries

from .takeover import OwnedRun

LARGEST_SCHEDULE = 2**28  # bytes worth reading


class MixtureFile:
    """Reads the shared state file and the journal's orders.

    Attributes:
        accepted: What the trainer's schedule says it accepted.
    """

    def __init__(self, run: OwnedRun) -> None:
        self._run = run
        self._journal = run.journal
        self.accepted = AcceptedOrders(run.paths.schedule)

    # -- the file ----------------------------------------------------------------------------

    def look(self, status: Status | None, newest: OrderRow | None) -> tuple[FileState, str]:
        """The file beside the newest order, and what there is that this journal never published.

        That is, in the file or followed by the trainer; empty for nothing.
        """
        if followed := self._followed(status):
            return FileState.FOREIGN, followed
        state, foreign = self._held(newest)
        if state is FileState.FOREIGN and newest is not None:
            state = FileState.STALE  # the trainer did not take it: ours, as it was, replaces it
        return state, foreign

    def _followed(self, status: Status | None) -> str:
        """An order that the trainer follows and this journal never published."""
        if status is None:
            return ""
        fence, generation = status.accepted.fence, status.accepted.generation
        ours = generation <= queries.highest_generation(self._journal)
        if ours and fence <= (self._journal.fence or 0):
            return ""
        return f"an order of generation {generation} under fence {fence}"

    def _held(self, newest: OrderRow | None) -> tuple[FileState, str]:
        try:
            data = read_regular(self._run.paths.mixture).data
        except (FileNotFoundError, NotRegularError):  # a link, a pipe: replaced by the rename
            return FileState.ABSENT, ""
        except OSError:  # unreadable now: no news
            return FileState.CURRENT, ""
        return self._compare(data, newest)

    def _compare(self, data: bytes, newest: OrderRow | None) -> tuple[FileState, str]:
        try:
            order = json.loads(data)
            generation, fence = int(order["generation"]), int(order["fence"])
            weights, decision = order["weights"], order["decision"]
            if not 0 <= generation < 2**63:
                raise ValueError("no generation")
        except (ValueError, KeyError, TypeError, RecursionError, OverflowError):
            return FileState.FOREIGN, f"{len(data)} bytes that are no order"
        row = queries.order(self._journal, generation)
        if row is None or row.weights != weights or row.decision != decision:
            return FileState.FOREIGN, f"an order of generation {generation}"
        ours = newest is not None and newest.generation == generation
        recorded = newest is not None and newest.published_fence == self._journal.fence
        signed = self._run.key is None or is_signed(self._run.key, order)
        current = ours and recorded and signed and fence == self._journal.fence
        return (FileState.CURRENT if current else FileState.STALE), ""

    # -- orders ------------------------------------------------------------------------------

    def next_generation(self, status: Status | None) -> int:
        """Above every generation this journal or the trainer has seen."""
        accepted = status.accepted.generation if status is not None else 0
        return max(queries.highest_generation(self._journal), accepted, self.accepted.now()[1]) + 1

    def asked_mixture(self, tokens: int) -> tuple[dict[str, float], Plan]:
        """The mixture last asked for and what is left of its plan; before any order the first."""
        newest = queries.newest_order(self._journal)
        if newest is None:
            return by_sources(self._run.initial, self._run.config), ()
        asked, left = remaining(newest.weights, self.plan_of(newest), tokens)
        plan = tuple((until, by_sources(weights, self._run.config)) for until, weights in left)
        return by_sources(asked, self._run.config), plan

    def plan_of(self, order: OrderRow) -> Plan:
        """What is left of an order's plan when run.yaml no longer has all of its sources.

        The stretches up to the first that draws from one that is gone.
        """
        kept = takewhile(lambda stretch: self._has_sources(stretch[1]), order.plan)
        return tuple(kept)

    def _has_sources(self, weights: Mapping[str, float]) -> bool:
        return all(name in self._run.config.sources for name, share in weights.items() if share)


def is_forced(journal: Journal) -> bool:
    """Whether the newest order is one that a person forced past the hard guards."""
    order = queries.newest_order(journal)
    decision = queries.decision(journal, order.decision) if order is not None else None
    return decision is not None and decision.evidence.get("forced") is True


def pinned_shares(journal: Journal, config: RunConfig) -> dict[str, float]:
    """Shares that operators hold fixed, of sources that the run still has."""
    return {name: share for name, share in queries.pins(journal).items() if name in config.sources}


def by_sources(weights: Mapping[str, float], config: RunConfig) -> dict[str, float]:
    """A mixture by run.yaml's sources; one that was retired has no share in it."""
    return {name: weights.get(name, 0.0) for name in config.sources}


class AcceptedOrders:
    """The highest fence and generation of the trainer's schedule, as it grows.

    Only the lines that are new since the last look are read with care: a schedule of thousands of
    orders takes a quarter of a second. What was read is known by its digest, so that a file that
    was changed in any other way than by appending is read anew.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._read = 0
        self._digest = hashlib.sha256()
        self._highest = (0, 0)
        self.problem: Problem | None = None  # of the file, at the last look

    def now(self) -> tuple[int, int]:
        """``(fence, generation)``; those read last while the file can't be read."""
        self.problem = None
        try:
            data = read_regular(self._path, LARGEST_SCHEDULE).data
            if not self._grow(data):
                self._start(data)
        except OSError as error:
            self.problem = problem_of(error)
        return self._highest

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
        segments = [line for line in lines if isinstance(line, SegmentLine)]
        if len(segments) < len(lines):
            return False
        for line in segments:
            fence, generation = self._highest
            self._highest = max(fence, line.fence), max(generation, line.generation)
        self._read = end
        self._digest.update(new)
        return True

    def _start(self, data: bytes) -> None:
        result = schedule_of(self._path)
        self.problem = result.problem
        if result.value is None:
            return
        self._highest = result.value.accepted
        self._read = data.rfind(b"\n") + 1
        self._digest = hashlib.sha256(data[: self._read])
