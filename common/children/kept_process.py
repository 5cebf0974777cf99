"""Commands under a keeper (:mod:`.keeper`): whatever they start ends with them, and with us."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .keeper import children_of

_KEEPER = Path(__file__).with_name("keeper.py")
_GRACE = 5.0
"""Seconds a keeper has to end its family; it takes milliseconds, unless somebody stopped it."""


def kept(
    command: Sequence[str], *, tied: bool = True, log: Path | None = None, answer: int = 0
) -> list[str]:
    """The command with its keeper before it.

    Args:
        command: A program and its arguments.
        tied: Whether it ends when the calling thread's process does. Not so for a command that
            starts something on another machine.
        log: Receives its stderr, appended; a file that never grows beyond
            :data:`~mixloop.common.children.LARGEST_LOG`. None: its stderr is the caller's.
        answer: Bytes of stdout, above which it is ended, one byte later; 0: any number.
    """
    parent = os.getpid() if tied else 0
    told = ("" if log is None else str(log),)
    return [sys.executable, "-I", "-S", str(_KEEPER), str(parent), str(answer), *told, *command]


def start_kept(
    command: Sequence[str],
    *,
    tied: bool = True,
    log: Path | None = None,
    answer: int = 0,
    **options: Any,
) -> subprocess.Popen[bytes]:
    """Start a command under a keeper, in a session of its own.

    Its exit status is the command's; by then nothing of what it started is left, short of what
    runs as another user. End it with :func:`end_kept`.

    Args:
        command: A program and its arguments.
        tied: Whether it ends when we do, however that is.
        log: Receives its stderr, as :func:`kept` has it.
        answer: Bytes of its stdout, likewise.
        options: Those of :class:`subprocess.Popen`.

    Raises:
        OSError: there is no such program, or no process can start.
    """
    if shutil.which(command[0]) is None:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), command[0])
    whole = kept(command, tied=tied, log=log, answer=answer)
    return subprocess.Popen(whole, start_new_session=True, **options)


def command_pid(process: subprocess.Popen[bytes]) -> int | None:
    """The process id of the command itself, below its keeper; None once it has ended."""
    deadline = time.monotonic() + _GRACE
    while process.poll() is None and time.monotonic() < deadline:
        if children := children_of(process.pid):
            return children[0]
        time.sleep(0.002)  # its keeper starts, or ends
    return None


def end_kept(process: subprocess.Popen[bytes]) -> None:
    """Kill what :func:`start_kept` started and everything that this has started."""
    if process.poll() is not None:
        return
    for number in (signal.SIGTERM, signal.SIGCONT):  # somebody may have stopped the keeper
        process.send_signal(number)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(_GRACE)
        return
    process.kill()  # the command itself ends with its keeper
    process.wait()
