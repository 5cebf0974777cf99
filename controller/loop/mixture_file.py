"""What the trainer accepted from ``mixture.json`` so far."""

from __future__ import annotations

import hashlib
from pathlib import Path

from mixloop.common.files import read_regular
from mixloop.common.json_records import Problem, problem_of
from mixloop.contract import SegmentLine, decode_line, schedule_of

LARGEST_SCHEDULE = 2**28  # bytes worth reading


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
        self._found = (0, 0)
        self.problem: Problem | None = None  # of the file, at the last look

    def now(self) -> tuple[int, int]:
        """``(fence, generation)``; what was found last while the file can't be read."""
        self.problem = None
        try:
            data = read_regular(self._path, LARGEST_SCHEDULE).data
            if not self._grow(data):
                self._start(data)
        except OSError as error:
            self.problem = problem_of(error)
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
        found = schedule_of(self._path)
        self.problem = found.problem
        if found.value is None:
            return
        self._found = found.value.accepted
        self._read = data.rfind(b"\n") + 1
        self._digest = hashlib.sha256(data[: self._read])
