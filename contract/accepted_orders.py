"""Which orders the trainer has accepted, as far as its files prove it.

A controller numbers its orders above what the trainer accepted, of whomever. ``status.json`` says
what that is, and whoever may write the run folder can forge it: a number near the end of what files
hold would leave no room for another order. So a claim counts as far as other files bear it out, and
with a key nothing counts but orders that are signed with it.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from mixloop.common.files import open_regular, read_regular
from mixloop.common.json_records import Problem, problem_of

from .order_acceptance import order_in
from .orders import LARGEST_JUMP, LARGEST_ORDER, LARGEST_TURN, Order
from .paths import RunPaths
from .schedule import ScheduleError, SegmentLine, decode_line, schedule_bytes, schedule_of
from .status import Status

_NEAR = LARGEST_JUMP // 2  # an order above it is still accepted
_EDGE, _PIECE = 2**12, 2**20  # bytes

Turn = tuple[int, int]
"""Fence and generation."""


class AcceptedOrders:
    """The highest fence and generation that a trainer follows.

    Args:
        paths: the run's files.
        run: its id.
        key: what orders are signed with; None: nothing is signed.

    Attributes:
        problem: what was wrong with the schedule at the last look.
    """

    def __init__(self, paths: RunPaths, run: str, key: bytes | None = None) -> None:
        self._paths, self._run, self._key = paths, run, key
        self._schedule = _RecordedOrders(paths.schedule)
        self._parsed: dict[Path, tuple[bytes, Order | None]] = {}

    @property
    def problem(self) -> Problem | None:
        """What was wrong with the schedule at the last look."""
        return self._schedule.problem

    def examine(self) -> None:
        """Look through the whole schedule for a change that only a look at all of it shows."""
        self._schedule.examine()

    def uid(self) -> str:
        """The run's own, which signed orders name (:attr:`Schedule.uid`)."""
        self.recorded()
        return self._schedule.uid

    def followed(self) -> Order | None:
        """The trainer's own copy of the order it follows; with a key, if it is signed."""
        return self._order(self._paths.accepted)

    def _order(self, path: Path) -> Order | None:
        try:
            data = read_regular(path, LARGEST_ORDER).data
        except (OSError, ValueError):  # ValueError: a NUL in the path
            return None
        if self._parsed.get(path, (b"", None))[0] != data:  # of thousands of sources it takes long
            self._parsed[path] = data, order_in(data, self._run, self._key)
        order = self._parsed[path][1]
        strange = order is not None and self._key is not None and order.uid not in ("", self.uid())
        return None if strange else order  # "": signed before the run had a uid

    def recorded(self) -> Turn:
        """What the schedule says; what it said last while it can't be read."""
        return self._schedule.now()

    def proven(self, status: Status | None) -> Turn:
        """What the trainer has accepted for certain.

        Without a key: what its heartbeat and its other files agree upon. With one: the numbers of
        the signed orders that lie there, followed already or not yet.
        """
        copy = self.followed()
        if self._key is not None:
            return _highest(copy, self._order(self._paths.mixture))
        recorded = self.recorded()
        if status is None:
            return _sound(recorded)
        claimed = (status.accepted.fence, status.accepted.generation)
        # a republished order raises the fence alone: that is in the trainer's copy and not in the
        # schedule; a trainer that keeps none is believed a short way
        fence = _near(claimed[0], recorded[0]) if copy is None else max(recorded[0], copy.fence)
        return _sound((min(claimed[0], fence), min(claimed[1], recorded[1])))

    def above(self, status: Status | None, known: Turn) -> Turn:
        """What a new order has to exceed: ``known`` and all that the trainer may have accepted.

        The schedule is ahead of the heartbeat for a moment, and all that a fork has of the orders
        before: it is believed alone for a short way.
        """
        proven = self.proven(status)
        fence, generation = (max(both) for both in zip(known, proven, strict=True))
        recorded = self.recorded()
        return _near(recorded[0], fence), _near(recorded[1], generation)


def _near(number: int, known: int) -> int:
    """The higher of two numbers, if the first is not far above."""
    return number if 0 < number - known <= _NEAR else known


def _sound(turn: Turn) -> Turn:
    """Without numbers that no order can have."""
    fence, generation = (number if number <= LARGEST_TURN else 0 for number in turn)
    return fence, generation


def _highest(*orders: Order | None) -> Turn:
    found = [order for order in orders if order is not None]
    return (
        max((order.fence for order in found), default=0),
        max((order.generation for order in found), default=0),
    )


class _RecordedOrders:
    """The highest fence and generation of the trainer's schedule, as it grows.

    Of a schedule that only grew, the lines that are new since the last look are all that is read:
    10,000 sources make a quarter of a megabyte of each order. A change before them is seen where it
    reaches the last bytes that were read, and elsewhere by :meth:`examine`.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._read = 0
        self._edge = b""  # the last bytes before that place
        self._digest = hashlib.sha256()  # of all before it
        self._highest = (0, 0)
        self.uid = ""
        self.problem: Problem | None = None  # of the file, at the last look

    def now(self) -> tuple[int, int]:
        """``(fence, generation)``; those read last while the file can't be read."""
        self.problem = None
        try:
            if not self._grow():
                self._start()
        except ScheduleError as error:
            self.problem = error.problem
        except OSError as error:
            self.problem = problem_of(error)
        return self._highest

    def examine(self) -> None:
        """:meth:`now`, and whether what was read before is still what lies there."""
        self.problem = None
        try:
            if self._is_as_read() and self._grow():
                return
            self._start()
        except ScheduleError as error:
            self.problem = error.problem
        except OSError as error:
            self.problem = problem_of(error)

    def _is_as_read(self) -> bool:
        found = hashlib.sha256()
        for start in range(0, self._read, _PIECE):
            length = min(_PIECE, self._read - start)
            found.update(read_regular(self._path, length - 1, start=start).data)
        return found.digest() == self._digest.digest()

    def _grow(self) -> bool:
        """Whether nothing but segments was appended since."""
        known = len(self._edge)
        if not known:
            return False
        data = self._bytes(self._read - known)
        if not data.startswith(self._edge):
            return False
        new = data[known : max(known, data.rfind(b"\n") + 1)]
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
        self._now_read(new)
        return True

    def _start(self) -> None:
        data = self._bytes()
        result = schedule_of(self._path)  # read later: what came meanwhile is read once more
        self.problem = result.problem
        if result.value is None:
            return
        self._highest = result.value.accepted
        self.uid = result.value.uid
        self._read, self._edge, self._digest = 0, b"", hashlib.sha256()
        self._now_read(data[: data.rfind(b"\n") + 1])

    def _bytes(self, start: int = 0) -> bytes:
        handle = open_regular(self._path)
        try:
            return schedule_bytes(handle, self._path, start)
        finally:
            os.close(handle)

    def _now_read(self, new: bytes) -> None:
        self._read += len(new)
        self._edge = (self._edge + new)[-_EDGE:]
        self._digest.update(new)
