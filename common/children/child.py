"""Child processes with answers: started, polled, never waited for.

The daemon stays small and answers at once because everything heavy or untrusted lives here: a
policy may import torch, hang, or be wrong; the MLflow client may block. Each child has a time
limit, after which the daemon has it ended with all that it started, and a limit on what it answers:
whatever it says, the daemon's memory and the disk hold no more than that.
"""

from __future__ import annotations

import math
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO

from mixloop.common.errors import one_line
from mixloop.common.process import PARENT
from mixloop.common.types import Json, parse_bounded

from .kept_process import end_kept, start_kept

START = "MIXLOOP_START"
"""Environment variable with the descriptor that a waiting child's request comes with the end of."""
LARGEST_ANSWER = 2**23
"""Bytes of all that a child says."""


class Child:
    """A child process with JSON lines on stdout, a log for stderr, and a deadline.

    Args:
        module: What ``python -m`` runs.
        argument: Its one argument, or None.
        stdin: Text it reads from standard input, or None.
        log: File that receives its stderr, appended, and stays small (:func:`start_kept`).
        timeout: Seconds until it is killed.
        answer: Bytes it may say in all, above which it is killed.
        launcher: A command template in which ``{command}`` stands for the module's own; under
            one it may run on another machine and does not end with us. None: a child of ours.
        clock: Monotonic seconds.

    Attributes:
        killed: Why it was ended, if it was.
        strange: Why the last thing it said that was no message was none, if there was any.
    """

    def __init__(
        self,
        module: str,
        *,
        argument: str | None = None,
        stdin: str | None = None,
        log: Path,
        timeout: float,
        answer: int = LARGEST_ANSWER,
        launcher: Sequence[str] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self._answer = answer
        self._allow(timeout)
        command = [sys.executable, "-m", module, *([argument] if argument is not None else [])]
        if launcher is not None:
            place = launcher.index("{command}")
            command = [*launcher[:place], *command, *launcher[place + 1 :]]
        with tempfile.TemporaryFile() as text:
            text.write((stdin or "").encode())
            text.seek(0)
            self._begin(command, text, log, child_environment(), tied=launcher is None)

    def _allow(self, timeout: float) -> None:
        self._timeout, self._deadline = timeout, self._clock() + timeout

    def _begin(
        self,
        command: Sequence[str],
        stdin: IO[bytes],
        log: Path,
        environment: dict[str, str],
        descriptors: Sequence[int] = (),
        *,
        tied: bool = True,
    ) -> None:
        self._output: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - lives with the child
        self._read = 0
        self.killed: str | None = None
        self.strange: str | None = None
        self._process = start_kept(
            command,
            tied=tied,
            log=log,
            answer=self._answer,
            stdin=stdin,
            stdout=self._output,
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
        end_kept(self._process)

    def messages(self) -> list[Json]:
        """What it has said since the last call, line by line; what is no message is left out."""
        self._output.seek(self._read)
        whole, newline, rest = self._output.read(self._answer + 1 - self._read).rpartition(b"\n")
        self._read += len(whole) + len(newline)
        if self._read + len(rest) > self._answer:
            self.killed = f"it said more than {self._answer / 2**20:g} MiB"
            return []
        lines = (line for line in whole.splitlines() if line.strip())
        return [message for line in lines if (message := self._message(line)) is not None]

    def _message(self, line: bytes) -> Json | None:
        try:
            message = parse_bounded(line)
        except ValueError as error:
            self.strange = one_line(error)
            return None
        if isinstance(message, dict):
            return message
        self.strange = "it is no JSON object"
        return None

    def close(self) -> None:
        """Kill it if it runs and let go of its output."""
        self.kill()
        self._output.close()


class WaitingChild(Child):
    """A child that imports what it needs, and waits for its request with :func:`wait_for_start`.

    Args:
        module: What ``python -m`` runs.
        log: File that receives its stderr, appended, and stays small.
        clock: Monotonic seconds.
    """

    def __init__(
        self, module: str, *, log: Path, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._clock = clock
        self._answer = LARGEST_ANSWER
        self._allow(math.inf)
        self._request: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - read once it is given
        theirs, ours = os.pipe()
        self._start: IO[bytes] = os.fdopen(ours, "wb")
        environment = {**child_environment(), START: str(theirs)}
        try:
            command = [sys.executable, "-m", module]
            self._begin(command, self._request, log, environment, (theirs,))
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
    """The caller's environment with one thread per numerical library.

    The daemon's children share a machine with a training job whose cores are not ours.
    """
    quiet = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    ours = {name: value for name, value in os.environ.items() if name != PARENT}
    return {**ours, **quiet, "PYTHONUNBUFFERED": "1"}
