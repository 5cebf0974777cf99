"""Child processes, started, polled, never waited for; ends that follow the parent's, and signals.

The daemon stays small and answers at once because everything heavy or untrusted lives here: a
policy may import torch, hang, or be wrong; the MLflow client may block. Each child has a time
limit that the daemon enforces by killing its process group.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import IO

from .types import Json

PARENT = "MIXLOOP_PARENT_PROCESS"
"""Environment variable with the id of the process that a child must not outlive."""

START = "MIXLOOP_START"
"""Environment variable with the descriptor that a waiting child's request comes with the end of."""

_PR_SET_PDEATHSIG = 1


class Child:
    """A child process with JSON lines on stdout, a log for stderr, and a deadline.

    Args:
        module: What ``python -m`` runs.
        argument: Its one argument, or None.
        stdin: Text it reads from standard input, or None.
        log: File that receives its stderr, appended.
        timeout: Seconds until it is killed.
        launcher: A command template in which ``{command}`` stands for the module's own; under
            one it may run on another machine and does not end with us. None: a child of ours.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        module: str,
        *,
        argument: str | None = None,
        stdin: str | None = None,
        log: Path,
        timeout: float,
        launcher: Sequence[str] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self._allow(timeout)
        command = [sys.executable, "-m", module, *([argument] if argument is not None else [])]
        environment = child_environment()
        if launcher is not None:
            place = launcher.index("{command}")
            command = [*launcher[:place], *command, *launcher[place + 1 :]]
            del environment[PARENT]
        with log.open("ab") as errors, tempfile.TemporaryFile() as text:
            text.write((stdin or "").encode())
            text.seek(0)
            self._begin(command, text, errors, environment)

    def _allow(self, timeout: float) -> None:
        self._timeout, self._deadline = timeout, self._clock() + timeout

    def _begin(
        self,
        command: Sequence[str],
        stdin: IO[bytes],
        errors: IO[bytes],
        environment: dict[str, str],
        descriptors: Sequence[int] = (),
    ) -> None:
        self._output: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - lives with the child
        self._read = 0
        self.killed: str | None = None
        self._process = subprocess.Popen(
            command,
            stdin=stdin,
            stdout=self._output,
            stderr=errors,
            start_new_session=True,
            env=environment,
            pass_fds=descriptors,
        )

    @property
    def running(self) -> bool:
        """Whether it still runs; one past its deadline is killed here and counts as ended."""
        if self._process.poll() is not None:
            return False
        if self._clock() < self._deadline:
            return True
        self.killed = f"no answer within {self._timeout:g} seconds"
        self.kill()
        return False

    @property
    def exit_code(self) -> int | None:
        """Its exit status; negative for a signal; None while it runs."""
        return self._process.poll()

    def kill(self) -> None:
        """End it and everything it started."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def messages(self) -> list[Json]:
        """The whole lines it has said since the last call."""
        self._output.seek(self._read)
        whole, newline, _ = self._output.read().rpartition(b"\n")
        self._read += len(whole) + len(newline)
        return [json.loads(line) for line in whole.splitlines() if line.strip()]

    def close(self) -> None:
        """Kill it if it runs and let go of its output."""
        self.kill()
        self._output.close()


class WaitingChild(Child):
    """A child that imports what it needs, and waits for its request with :func:`wait_for_start`.

    Args:
        module: What ``python -m`` runs.
        log: File that receives its stderr, appended.
        clock: Monotonic seconds.
    """

    def __init__(
        self, module: str, *, log: Path, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._clock = clock
        self._allow(math.inf)
        self._request: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - read once it is given
        theirs, ours = os.pipe()
        self._start: IO[bytes] = os.fdopen(ours, "wb")
        environment = {**child_environment(), START: str(theirs)}
        try:
            with log.open("ab") as errors:
                command = [sys.executable, "-m", module]
                self._begin(command, self._request, errors, environment, (theirs,))
        except OSError:
            self._let_go()
            raise
        finally:
            os.close(theirs)

    def give(self, stdin: str, timeout: float) -> bool:
        """Have it begin, on this text; never waits. False if it has ended while it waited."""
        if self._process.poll() is not None:
            return False
        rest, place = memoryview(stdin.encode()), 0
        while rest:  # at a place of its own: the child reads from the same open file's beginning
            written = os.pwrite(self._request.fileno(), rest, place)
            rest, place = rest[written:], place + written
        self._allow(timeout)
        self._let_go()
        return True

    def close(self) -> None:
        """Kill it if it runs and let go of its files."""
        super().close()
        self._let_go()

    def _let_go(self) -> None:
        self._request.close()
        self._start.close()


def wait_for_start(imports: Callable[[], None]) -> None:
    """In a :class:`WaitingChild`, import ahead and return when its standard input is complete."""
    descriptor = os.environ.pop(START, None)
    if descriptor is None:
        return
    imports()
    with os.fdopen(int(descriptor), "rb") as start:
        start.read()


def child_environment() -> dict[str, str]:
    """The caller's environment with one thread per numerical library, and whom not to outlive.

    The daemon's children share a machine with a training job whose cores are not ours.
    """
    quiet = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    return {**os.environ, **quiet, "PYTHONUNBUFFERED": "1", PARENT: str(os.getpid())}


def end_with_parent(number: int = signal.SIGKILL, parent: int | None = None) -> None:
    """Have the kernel send this process a signal when its parent ends, however that ends.

    A policy that hangs, or a drain beside the next controller's, must not outlive the daemon, nor
    a rank its launcher. Only Linux can; elsewhere a parent that is gone already is noticed.

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
