"""Stands between a process and a child of its, and ends all that the child has started with it.

Started by its path, as ``python -I -S keeper.py PARENT COMMAND…``: the standard library alone, some
30 ms and 4 MB. The command runs in a session of its own. Once it ends, once the parent ends
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
import sys
import time
from pathlib import Path
from typing import NoReturn

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_STRAGGLERS = 2.0
"""Seconds for those that left the group. What runs as another user can't be killed."""


class _Asked(Exception):  # noqa: N818 - a request
    """SIGTERM, from a parent that lives or that has just ended."""


def main() -> NoReturn:
    """Entry of the script."""
    parent, command = int(sys.argv[1]), sys.argv[2:]
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    signal.signal(signal.SIGTERM, _ask)
    _control(_PR_SET_CHILD_SUBREAPER, 1)
    leader = os.fork()
    if leader == 0:
        _become(command, before)
    _let_go_of_pipes()
    status = None
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        if parent:
            _end_with(parent, signal.SIGTERM)
        status = _wait(leader)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    except _Asked:
        pass
    _end_family(leader)
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


def _let_go_of_pipes() -> None:
    """The other ends are to see the command's end, not ours."""
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
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
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has just ended
            # the name in parentheses may hold anything: state and parent follow its last
            fields = stat.read_bytes().rpartition(b")")[2].split()
            if int(fields[1]) == parent:
                found.append((int(fields[19]), int(stat.parent.name)))
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
