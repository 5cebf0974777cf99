"""Appending to ``schedule.jsonl``: one process at a time, each line fsynced."""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Iterator
from pathlib import Path

from mixloop.common.files import fsync_folder, lock, write_all

from .schedule import (
    Line,
    OpenLine,
    Schedule,
    ScheduleError,
    ScheduleTaken,
    encode_line,
    read_schedule,
    scan,
)

_LOCK_SECONDS = 10.0


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
        self._ended = True  # with a newline, which whoever edited the file may have left out
        with self._open(make=True) as handle:
            self._settle(handle)

    def reopen(self) -> Schedule:
        """Look through the file again and cut a torn last line (one of a failed append, say).

        Raises:
            ScheduleTaken: a newer incarnation writes here; nothing is cut.
            ScheduleError: the file is lost or has shrunk.
        """
        with self._open() as handle:
            return self._settle(handle)

    def append(self, line: Line) -> None:
        """Append a line; on return it is on the disk.

        The first `open` line makes this writer that incarnation's.

        Raises:
            ScheduleTaken: the file holds a newer incarnation (for an `open` line: or the same).
            ScheduleError: the file is lost or has shrunk.
            OSError: the disk did not take it; half a line may be there, `reopen` cuts it.
        """
        with self._open() as handle:
            before = self._settle(handle, line.incarnation)
            if isinstance(line, OpenLine) and before.incarnation >= line.incarnation:
                raise ScheduleTaken(self._taken(before.incarnation))
            data = (b"" if self._ended else b"\n") + encode_line(line)
            write_all(handle, data)
            self._ended = True
            self._end += len(data)
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
        flags = os.O_RDWR | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
        fresh = make and not self._path.exists()
        try:
            handle = os.open(self._path, flags | (os.O_CREAT if make else 0), 0o644)
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

    def _settle(self, handle: int, incarnation: int | None = None) -> Schedule:
        """Read the open file, refuse if it is someone else's by now, cut a torn last line."""
        incarnation = self._incarnation if incarnation is None else incarnation
        with os.fdopen(os.dup(handle), "rb") as stream:
            stream.seek(0)
            data = stream.read()
        lines, sound = scan(data, self._path)
        schedule = Schedule(tuple(lines))
        if incarnation is not None and schedule.incarnation > incarnation:
            raise ScheduleTaken(self._taken(schedule.incarnation))
        if sound < len(data):
            os.ftruncate(handle, sound)
            os.fsync(handle)
        self._end = sound
        self._ended = data[:sound].endswith(b"\n") or not sound
        return schedule

    def _taken(self, incarnation: int) -> str:
        return f"{self._path}: trainer incarnation {incarnation} writes this schedule"
