"""What a process does about others and itself: ends that follow the parent's, signals, memory."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import FrameType

PARENT = "MIXLOOP_PARENT_PROCESS"
"""Environment variable with the id of the process that a child must not outlive."""

_PR_SET_PDEATHSIG = 1


def end_with_parent(number: int = signal.SIGKILL, parent: int | None = None) -> None:
    """Have the kernel send this process a signal when its parent ends, however that ends.

    A trainer must not outlive `mixloop run`, nor a rank its launcher. Only Linux can; elsewhere a
    parent that is gone already is noticed.

    Args:
        number: the signal.
        parent: its process id. None: as the environment says (:data:`PARENT`), if it does.
    """
    if parent is None:
        named = os.environ.pop(PARENT, None)  # this process's own children have another parent
        if named is None:
            return
        parent = int(named)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(number))
    if os.getppid() != parent:  # it ended before the kernel was asked
        os.kill(os.getpid(), number)


Handler = Callable[[int, FrameType | None], object]


def stop_signals() -> tuple[signal.Signals, ...]:
    """What asks a process to end: SIGTERM, SIGINT, and SIGHUP when its terminal is gone.

    Under `nohup`, which has SIGHUP ignored, that stays so.
    """
    asked = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    return asked[:2] if ignored else asked


class StopRequest:
    """A wish to stop that a signal's handler may voice at any moment.

    A `threading.Event` must not be set there: the handler runs on the thread that may hold the
    event's lock in its `wait`, and would wait for itself.
    """

    def __init__(self) -> None:
        self._asked = False
        # held until somebody asks: a lock may be released where its acquire() is interrupted, and
        # its timeout outlives a process that was stopped meanwhile (a SimpleQueue's may not end)
        self._wake = threading.Lock()
        self._wake.acquire()

    def set(self) -> None:
        """Ask to stop."""
        self._asked = True
        with contextlib.suppress(RuntimeError):  # somebody asked already
            self._wake.release()

    def is_set(self) -> bool:
        """Whether somebody asked."""
        return self._asked

    def wait(self, seconds: float) -> None:
        """Wait this long, or until somebody asks."""
        if not self._asked:
            self._wake.acquire(timeout=max(0.0, seconds))


@contextlib.contextmanager
def handling(numbers: Iterable[int], handler: Handler) -> Iterator[None]:
    """Have a handler take these signals within the block. For the main thread."""
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


def interrupt(number: int, frame: FrameType | None) -> None:
    """A handler: the signal ends what runs as Ctrl-C does."""
    raise KeyboardInterrupt


def resident() -> float | None:
    """Resident memory of this process in 10^9 bytes; None where /proc doesn't tell."""
    try:
        pages = int(Path("/proc/self/statm").read_text("ascii").split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 1e9
    except (OSError, ValueError, IndexError):
        return None
