"""Appending to ``schedule.jsonl``: one process at a time, each line fsynced."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

from mixloop.common.files import fsync_folder, lock, open_regular, write_all

from .schedule import (
    LARGEST_SCHEDULE,
    Line,
    OpenLine,
    ScheduleError,
    ScheduleTaken,
    SegmentLine,
    encode_line,
    read_schedule,
    scan,
    schedule_bytes,
)

_LOCK_SECONDS = 10.0
_FOR_STARTS = LARGEST_SCHEDULE // 4  # bytes that orders leave, so that a trainer can begin again


@contextlib.contextmanager
def _locked(handle: int) -> Iterator[None]:
    """Hold the file's advisory lock, where the file system has one."""
    deadline = time.monotonic() + _LOCK_SECONDS
    while True:
        try:
            lock(handle)
            break  # or there is none: the incarnation check alone must do
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES, errno.EINTR):
                raise
            if time.monotonic() > deadline:
                raise
        time.sleep(0.02)
    yield  # closing the file ends the lock


class ScheduleWriter:
    """Appends to the schedule for one trainer incarnation.

    The file is opened afresh for every append and looked through first, so that a newer
    incarnation (on whatever machine) is seen before anything is written. Once this writer has
    appended, a file that is gone or shorter than it left it is never made anew or written on: a
    schedule without its beginning could not be resumed from.

    Args:
        path: the run's `schedule.jsonl`; made if missing. A torn last line is cut.

    Raises:
        ScheduleError: a line other than the last is damaged.
        OSError: the disk does not let us.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = Path(path)
        self._incarnation: int | None = None
        self._end = 0
        self._digest = hashlib.sha256()  # of all before it
        self._newest = 0  # incarnation in it
        self._ended = True  # with a newline, which whoever edited the file may have left out
        with self._open(make=True) as handle:
            self._settle(handle)

    def reopen(self) -> None:
        """Look through the file again and cut a torn last line (one of a failed append, say).

        Raises:
            ScheduleTaken: a newer incarnation writes here; nothing is cut.
            ScheduleError: the file is lost or has shrunk.
        """
        with self._open() as handle:
            self._settle(handle)

    def append(self, line: Line) -> None:
        """Append a line; on return it is on the disk.

        The first `open` line makes this writer that incarnation's.

        Raises:
            ScheduleTaken: the file holds a newer incarnation (for an `open` line: or the same).
            ScheduleError: the file is lost or has shrunk, or would be longer than any reader takes.
            OSError: the disk did not take it; half a line may be there, `reopen` cuts it.
        """
        with self._open() as handle:
            self._settle(handle, line.incarnation)
            if isinstance(line, OpenLine) and self._newest >= line.incarnation:
                raise ScheduleTaken(self._taken(self._newest))
            data = (b"" if self._ended else b"\n") + encode_line(line)
            most = LARGEST_SCHEDULE - (_FOR_STARTS if isinstance(line, SegmentLine) else 0)
            if self._end + len(data) > most:
                raise ScheduleError(f"{self._path}: {self._end:,} bytes: no more orders fit in it")
            write_all(handle, data)
            self._ended = True
            self._end += len(data)
            self._digest.update(data)
            self._newest = max(self._newest, line.incarnation)
            self._incarnation = line.incarnation

    def check(self) -> None:
        """See whether a newer incarnation has taken over, or the file was lost.

        Raises:
            ScheduleTaken: it has.
            ScheduleError: the file is gone or has shrunk.
        """
        with self._open() as handle:
            size = os.fstat(handle).st_size
        if size != self._end:
            schedule = read_schedule(self._path)
            if self._incarnation is not None and schedule.incarnation > self._incarnation:
                raise ScheduleTaken(self._taken(schedule.incarnation))

    @contextlib.contextmanager
    def _open(self, make: bool = False) -> Iterator[int]:
        flags = os.O_RDWR | os.O_APPEND | (os.O_CREAT if make else 0)
        fresh = make and not self._path.exists()
        try:
            handle = open_regular(self._path, flags)
        except FileNotFoundError as error:
            if self._incarnation is None:
                raise
            raise ScheduleError(self._lost("gone")) from error
        try:
            if fresh:
                fsync_folder(self._path.parent)
            with _locked(handle):
                if self._incarnation is not None and os.fstat(handle).st_size < self._end:
                    raise ScheduleError(self._lost("cut short"))
                yield handle
        finally:
            os.close(handle)

    def _lost(self, how: str) -> str:
        return f"{self._path}: {how} while the run writes it; restore it from a copy"

    def _settle(self, handle: int, incarnation: int | None = None) -> None:
        """Read the open file, refuse if it is someone else's by now, cut a torn last line."""
        incarnation = self._incarnation if incarnation is None else incarnation
        size = os.fstat(handle).st_size  # before it is read: what another appends is never cut
        data = schedule_bytes(handle, self._path)
        newest, sound = self._scanned(data)
        if incarnation is not None and newest > incarnation:
            raise ScheduleTaken(self._taken(newest))
        if sound < size:
            os.ftruncate(handle, sound)
            os.fsync(handle)
        self._newest, self._end = newest, sound
        self._digest = hashlib.sha256(memoryview(data)[:sound])
        self._ended = not sound or data[sound - 1 : sound] == b"\n"

    def _scanned(self, data: bytes) -> tuple[int, int]:
        """The newest incarnation in the file, and the length of its sound part.

        What is as it was left is not parsed again: thousands of orders would keep the training
        thread waiting for the interpreter.
        """
        known = memoryview(data)[: self._end]
        if self._end and hashlib.sha256(known).digest() == self._digest.digest():
            with contextlib.suppress(ScheduleError):  # told below, with the number of its line
                lines, sound = scan(data[self._end :], self._path)
                newest = max((line.incarnation for line in lines), default=0)
                return max(self._newest, newest), self._end + sound
        lines, sound = scan(data, self._path)
        return max((line.incarnation for line in lines), default=0), sound

    def _taken(self, incarnation: int) -> str:
        return f"{self._path}: trainer incarnation {incarnation} writes this schedule"
