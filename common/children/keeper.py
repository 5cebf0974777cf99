"""Stands between a process and a child of its, and ends all that the child has started with it.

Started by its path, as ``python -I -S keeper.py PARENT ANSWER LOG COMMAND…``: the standard library
alone, some 30 ms and 4 MB. With LOG the command's stderr goes through here into a
:class:`CappedLog`; with an ANSWER other than 0 no more than so many bytes of its stdout go on, and
one by which the reader knows that there were more, and it is ended. So nothing that a command
prints fills a disk, and what can't be logged costs it nothing.

The command runs in a session of its own. Once it ends, once the parent ends
(PARENT is its process id; 0: that may outlive it), or upon SIGTERM, its group is killed, and so is
whatever has left the group: orphans come to this process, which is their subreaper (prctl(2)), and
it goes on until it has none. The exit status is the command's.

Only Linux knows subreapers and the parent's death; elsewhere the group ends with the command and
upon SIGTERM, which is what can be done there.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import stat
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_STRAGGLERS = 2.0
"""Seconds for those that left the group. What runs as another user can't be killed."""
_LINGER = 0.5
"""Seconds for the rest of what was printed, where such a one still holds the pipe."""

LARGEST_LOG = 2**23
"""Bytes of a log, after which it is begun anew; the one before is kept beside it, as ``….1``."""
_LOG_RATE = 2**16
"""Bytes a second that a command may print for good; before that, :data:`LARGEST_LOG` at once."""
_LOG_END = 2**12
"""Bytes of what was left out that are kept all the same: the last, where an end says why."""


class CappedLog:
    """A log that several processes may append to and none can fill a disk with.

    It is begun anew at :data:`LARGEST_LOG`, with one older part beside it, and of what comes faster
    than is worth keeping only the end is kept. What can't be written is lost: a full disk, or
    something at its place that is no file, is no reason to fail, nor to wait.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._handle: int | None = None
        self._allowed, self._at = float(LARGEST_LOG), time.monotonic()
        self._left_out, self._end = 0, b""

    def write(self, data: bytes) -> None:
        """Append what a command has printed."""
        now = time.monotonic()
        self._allowed = min(LARGEST_LOG, self._allowed + (now - self._at) * _LOG_RATE)
        self._at = now
        if len(data) > self._allowed:
            self._left_out += len(data)
            self._end = (self._end + data)[-_LOG_END:]
            return
        self._allowed -= len(data)
        self.told()
        self._append(data)

    def told(self) -> None:
        """Say how much was left out, if any was, and the end of it."""
        if self._left_out:
            gap = f"\n[{self._left_out - len(self._end):,} bytes are left out here]\n"
            self._append(gap.encode() + self._end)
            self._left_out, self._end = 0, b""

    def _append(self, data: bytes) -> None:
        with contextlib.suppress(OSError, ValueError):
            handle = self._opened()
            if os.fstat(handle).st_size + len(data) > LARGEST_LOG:
                begin_anew(self._path)
                handle = self._opened()
            while data:
                data = data[os.write(handle, data) :]

    def _opened(self) -> int:
        """The log as it lies there now: another process may have begun it anew."""
        if self._handle is not None:
            with contextlib.suppress(OSError):
                if os.path.samestat(os.fstat(self._handle), os.lstat(self._path)):
                    return self._handle
            os.close(self._handle)
            self._handle = None
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
        flags |= os.O_NONBLOCK | os.O_NOFOLLOW | os.O_NOCTTY | os.O_CLOEXEC
        handle = os.open(self._path, flags, 0o644)
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            os.close(handle)
            raise OSError("no file")
        self._handle = handle
        return handle


def begin_anew(log: str) -> None:
    """Put a log aside, as ``….1``, in place of the one before; where that can't be, empty it.

    Raises:
        OSError: neither can be done.
    """
    try:
        Path(log).replace(f"{log}.1")
    except OSError:
        os.truncate(log, 0)


class _Pump:
    """A pipe that a command writes to, read to its end by a thread."""

    def __init__(self, descriptor: int, take: Callable[[bytes], object]) -> None:
        """``descriptor``: of the command, that the pipe takes the place of."""
        self.descriptor, self._take = descriptor, take
        self._ours, self._theirs = os.pipe()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def become(self) -> None:
        """In the command's process."""
        os.dup2(self._theirs, self.descriptor)

    def start(self) -> None:
        os.close(self._theirs)
        self._thread.start()

    def end(self) -> None:
        self._thread.join(_LINGER)

    def _run(self) -> None:
        with contextlib.suppress(OSError):
            while data := os.read(self._ours, 2**16):
                self._take(data)


class _Answer:
    """What a command says on stdout, up to a limit."""

    def __init__(self, limit: int) -> None:
        self._left = limit + 1  # the one says that there was more

    def take(self, data: bytes) -> None:
        part = data[: self._left]
        self._left -= len(part)
        with contextlib.suppress(OSError):  # of a full disk: it has no answer then
            while part:
                part = part[os.write(1, part) :]
        if not self._left:
            os.kill(os.getpid(), signal.SIGTERM)


class _Asked(Exception):  # noqa: N818 - a request
    """SIGTERM, from a parent that lives or that has just ended."""


def main() -> NoReturn:
    """Entry of the script."""
    parent, answer, log, *command = sys.argv[1:]
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    signal.signal(signal.SIGTERM, _ask)
    _control(_PR_SET_CHILD_SUBREAPER, 1)
    said = CappedLog(log)
    pumps = [_Pump(1, _Answer(int(answer)).take)] if int(answer) else []
    pumps += [_Pump(2, said.write)] if log else []
    leader = os.fork()
    if leader == 0:
        for pump in pumps:
            pump.become()
        _become(command, before)
    for pump in pumps:
        pump.start()
    _let_go_of_pipes(stdout=not int(answer))
    status = None
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        if int(parent):
            _end_with(int(parent), signal.SIGTERM)
        status = _wait(leader)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    except _Asked:
        pass
    _end_family(leader)
    for pump in pumps:
        pump.end()
    said.told()
    _exit(status)


def _ask(number: int, frame: object) -> NoReturn:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise _Asked


def _become(command: list[str], mask: set[int | signal.Signals]) -> NoReturn:
    """The command, which does not outlive this process should somebody kill that."""
    try:
        keeper = os.getppid()
        os.setsid()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        _end_with(keeper, signal.SIGKILL)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        os.execvp(command[0], command)
    except OSError as error:
        os.write(2, f"{command[0]}: {error.strerror}\n".encode())
    os._exit(127)


def _end_with(parent: int, number: int) -> None:
    _control(_PR_SET_PDEATHSIG, number)
    if os.getppid() != parent:  # it ended before the kernel was asked
        os.kill(os.getpid(), number)


def _control(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, int(value))


def _let_go_of_pipes(*, stdout: bool) -> None:
    """The other ends are to see the command's end, not ours."""
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    if stdout:
        os.dup2(null, 1)
    os.close(null)


def _wait(leader: int) -> int:
    while True:
        process, status = os.wait()
        if process == leader:
            return status


def _end_family(leader: int) -> None:
    with contextlib.suppress(OSError):  # at once, however fast it forks
        os.killpg(leader, signal.SIGKILL)
    deadline = time.monotonic() + _STRAGGLERS
    while time.monotonic() < deadline:
        for process in children_of(os.getpid()):
            with contextlib.suppress(OSError):
                os.kill(process, signal.SIGKILL)
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:  # none is left, and what each had started had come here
            return
        time.sleep(0.002)


def children_of(parent: int) -> list[int]:
    """A process's children by /proc, the eldest first; none where there is no such thing."""
    found = []
    for facts in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has just ended
            # the name in parentheses may hold anything: state and parent follow its last
            fields = facts.read_bytes().rpartition(b")")[2].split()
            if int(fields[1]) == parent:
                found.append((int(fields[19]), int(facts.parent.name)))
    return [process for _, process in sorted(found)]


def _exit(status: int | None) -> NoReturn:
    """As the command did."""
    if status is not None and os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        if number != signal.SIGKILL:
            signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    os._exit(128 + signal.SIGTERM if status is None else os.waitstatus_to_exitcode(status))


if __name__ == "__main__":
    main()
