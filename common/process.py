"""Child processes: one policy decision, one MLflow drain. Started, polled, never waited for.

The daemon stays small and answers at once because everything heavy or untrusted lives here: a
policy may import torch, hang, or be wrong; the MLflow client may block. Each child has a time
limit that the daemon enforces by killing its process group.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO

from .types import Json

_PARENT = "MIXLOOP_PARENT_PROCESS"


class Child:
    """A child process with JSON lines on stdout, a log for stderr, and a deadline.

    Args:
        module: What ``python -m`` runs.
        argument: Its one argument, or None.
        stdin: Text it reads from standard input, or None.
        log: File that receives its stderr, appended.
        timeout: Seconds until it is killed.
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
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self._deadline = clock() + timeout
        self._timeout = timeout
        self._output: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - lives with the child
        self._read = 0
        self.killed: str | None = None
        command = [sys.executable, "-m", module, *([argument] if argument is not None else [])]
        with log.open("ab") as errors, tempfile.TemporaryFile() as given:
            given.write((stdin or "").encode())
            given.seek(0)
            self._process = subprocess.Popen(
                command,
                stdin=given,
                stdout=self._output,
                stderr=errors,
                start_new_session=True,
                env=child_environment(),
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


def child_environment() -> dict[str, str]:
    """The caller's environment with one thread per numerical library.

    The daemon's children share a machine with a training job whose cores are not ours.
    """
    quiet = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    own = {"PYTHONUNBUFFERED": "1", _PARENT: str(os.getpid())}
    return {**os.environ, **quiet, **own}


def die_with_parent() -> None:
    """In a child: end when the daemon does, however it ends.

    A policy that hangs, or a drain beside the next controller's, must not outlive it.
    """
    if _PARENT in os.environ:
        die_with(int(os.environ[_PARENT]))


_PR_SET_PDEATHSIG = 1


def follow_launcher() -> None:
    """In a rank started by `run_ranks`: end, with a checkpoint, when the launcher dies."""
    launcher = os.environ.get("MIXLOOP_LAUNCHER")
    if launcher is None or sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM))
    if os.getppid() != int(launcher):  # it died before we asked
        os.kill(os.getpid(), signal.SIGTERM)


def resident() -> float | None:
    """Resident memory of this process in 10^9 bytes; None where /proc doesn't tell."""
    try:
        pages = int(Path("/proc/self/statm").read_text("ascii").split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 1e9
    except (OSError, ValueError, IndexError):
        return None


def die_with(parent: int) -> None:
    """Has the kernel end this process when its parent does (Linux; elsewhere input's end does)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    # the parent may have died before the kernel was asked
    if os.getppid() != parent:
        sys.exit(0)
