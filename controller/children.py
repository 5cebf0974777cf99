"""Child processes: one policy decision, one MLflow drain. Started, polled, never waited for.

The daemon stays small and answers at once because everything heavy or untrusted lives here: a
policy may import torch, hang, or be wrong; the MLflow client may block. Each child has a time
limit that the daemon enforces by killing its process group.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

Json = dict[str, Any]

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
        from mixloop.evals.worker import die_with

        die_with(int(os.environ[_PARENT]))


KINDS = ("proposal", "hold", "failed", "unread")


@dataclass(frozen=True)
class Answer:
    """What the policy child said: ``kind`` is ``proposal``, ``hold``, ``failed`` or ``unread``.

    ``unread``: the history could not be read, so the policy was not asked; that says nothing of it.
    ``digest`` is the policy's; ``observed`` what it had said of the observation, if it came to it.
    """

    kind: str
    payload: Mapping[str, Any]
    digest: str | None = None
    observed: Mapping[str, Any] | None = None


def read_answer(child: Child) -> Answer:
    """The answer of a policy child that has ended; anything strange is ``failed``."""
    messages = child.messages()
    observed = messages.pop(0) if messages and messages[0].get("kind") == "observed" else None
    if child.killed is not None:
        return Answer("failed", {"reason": child.killed}, observed=observed)
    if len(messages) != 1 or messages[0].get("kind") not in KINDS:
        reason = f"no answer (exit status {child.exit_code})"
        return Answer("failed", {"reason": reason}, observed=observed)
    found = messages[0]
    return Answer(found["kind"], found["payload"], found.get("digest"), observed)
