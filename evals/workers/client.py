"""The controller's side of evaluation: start a checkpoint, look in now and then, get a scorecard.

Light: no torch, no lm-eval, no threads. The worker process is kept between checkpoints and ends
by itself when idle; a crash, a hang or too much memory costs that checkpoint and nothing else.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from mixloop.evals import EvalSettings, Scorecard

from .launchers import worker_command


@dataclass(frozen=True)
class Failure:
    """A checkpoint that could not be scored at all, and why, in one line."""

    reason: str


@dataclass
class _Job:
    checkpoint: Path
    out: Path
    deadline: float
    line: bytes
    resent: bool = False


class Evaluator:
    """Runs evaluations in a worker process, one at a time, without ever blocking the caller.

    `progress` is the last thing the worker said.

    Args:
        settings: What is measured, and how the worker is started.
        log: Receives what the worker prints, appended.
    """

    def __init__(self, settings: EvalSettings, log: Path) -> None:
        self._settings = settings
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None
        self._job: _Job | None = None
        self._unread = b""
        self._scratch: Path | None = None
        self.progress = ""

    @property
    def busy(self) -> bool:
        """Whether a checkpoint is being scored."""
        return self._job is not None

    @property
    def pid(self) -> int | None:
        """The live worker's process id."""
        alive = self._process is not None and self._process.poll() is None
        return self._process.pid if alive and self._process is not None else None

    def start(self, checkpoint: Path, out: Path) -> None:
        """Begins scoring `checkpoint`; the scorecard will be in `out`.

        Raises:
            RuntimeError: one is being scored already.
            OSError: no process can start.
        """
        if self._job is not None:
            raise RuntimeError(f"{self._job.checkpoint} is still being scored")
        request = {"checkpoint": str(checkpoint.resolve()), "out": str(out.resolve())}
        line = json.dumps(request).encode() + b"\n"
        self._job = _Job(checkpoint, out, time.monotonic() + self._settings.timeout, line)
        self.progress = "starting"
        try:
            if self.pid is None or not self._send(line):
                self._spawn()
                self._send(line)
        except OSError:
            self.stop()
            raise

    def poll(self) -> Scorecard | Failure | None:
        """What there is to tell, without waiting: a scorecard, a failure, or nothing yet."""
        if self._job is None:
            self._reap_idle()
            return None
        for event in self._events():
            if event["event"] == "progress":
                self.progress = f"{event['benchmark']} {event['state']}"
            elif event["event"] == "done":
                return self._finish()
            elif event["event"] in ("failed", "dying"):
                return self._fail(str(event["reason"]), kill=event["event"] == "dying")
        return self._check_worker()

    def stop(self) -> None:
        """Ends the worker and forgets what it was doing."""
        self._job = None
        self._kill()

    def _finish(self) -> Scorecard | Failure:
        assert self._job is not None
        out = self._job.out
        try:
            card = Scorecard.read(out)
        except (OSError, ValueError) as error:
            return self._fail(f"scorecard lost: {error}".splitlines()[0], kill=False)
        self._job = None
        # what `auto` found is kept: every checkpoint is scored on the same items
        self._settings = self._settings.pinned(card.data_kinds())
        return card

    def _check_worker(self) -> Failure | None:
        assert self._job is not None
        if self._process is None:
            return self._fail("the evaluation worker could not be started")
        code = self._process.poll()
        if code == 0 and not self._job.resent:
            return self._resend()
        if code is not None:
            exit_ = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
            return self._fail(f"the evaluation worker died ({exit_}): see {self._log}")
        if time.monotonic() > self._job.deadline:
            return self._fail(f"no scorecard within {self._settings.timeout:g} s")
        return None

    def _resend(self) -> Failure | None:
        """The worker was ending for want of work as the request came: a fresh one takes it."""
        assert self._job is not None
        self._job.resent = True
        try:
            self._spawn()
        except OSError as error:
            return self._fail(f"no worker can be started: {error}")
        self._send(self._job.line)
        return None

    def _fail(self, reason: str, *, kill: bool = True) -> Failure:
        self._job = None
        if kill:
            self._kill()
        return Failure(reason)

    def _spawn(self) -> None:
        self._kill()
        self._log.parent.mkdir(parents=True, exist_ok=True)
        self._unread = b""
        # a worker that is killed can't tidy up, so its temporary files lie where we can
        self._scratch = Path(tempfile.mkdtemp(prefix="mixloop-evals-"))
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                worker_command(self._settings.launcher),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env={**os.environ, "TMPDIR": str(self._scratch), "PYTHONUNBUFFERED": "1"},
                start_new_session=True,
            )
        os.set_blocking(_stream(self._process.stdout).fileno(), False)
        self._send(self._settings.model_dump_json().encode() + b"\n")

    def _send(self, line: bytes) -> bool:
        assert self._process is not None
        pipe = _stream(self._process.stdin)
        try:
            pipe.write(line)
            pipe.flush()
        except OSError:
            return False
        return True

    def _events(self) -> list[dict[str, Any]]:
        if self._process is None:
            return []
        with contextlib.suppress(BlockingIOError):
            while part := os.read(_stream(self._process.stdout).fileno(), 65536):
                self._unread += part
        *lines, self._unread = self._unread.split(b"\n")
        return [event for line in lines if (event := _event(line)) is not None]

    def _reap_idle(self) -> None:
        if self._process is not None and self._process.poll() is not None:
            self._kill()

    def _kill(self) -> None:
        process, self._process = self._process, None
        scratch, self._scratch = self._scratch, None
        if process is not None:
            self._end(process)
        if scratch is not None:
            shutil.rmtree(scratch, ignore_errors=True)

    @staticmethod
    def _end(process: subprocess.Popen[bytes]) -> None:
        # the group: the sandbox's server goes with the worker
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for pipe in (process.stdin, process.stdout):
            with contextlib.suppress(OSError):
                _stream(pipe).close()


def _stream(pipe: IO[bytes] | None) -> IO[bytes]:
    assert pipe is not None
    return pipe


def _event(line: bytes) -> dict[str, Any] | None:
    """What the worker said; None for a line that a launcher's command printed among its."""
    try:
        content = json.loads(line)
    except ValueError:
        return None
    return content if isinstance(content, dict) and "event" in content else None


class EvaluationError(Exception):
    """No scorecard: one line with the reason."""


def evaluate(
    checkpoint: Path,
    settings: EvalSettings,
    out: Path | None = None,
    log: Path | None = None,
    progress: Callable[[str], None] = lambda state: None,
) -> Scorecard:
    """Scores one checkpoint and waits for it.

    Args:
        checkpoint: Its folder.
        settings: What is measured, and how the worker is started.
        out: Where the scorecard is written, if anywhere.
        log: Where the worker's prints go, if anywhere.
        progress: Hears what is being run.

    Raises:
        EvaluationError: there is no scorecard; one line with the reason.
    """
    with tempfile.TemporaryDirectory(prefix="mixloop-eval-") as folder:
        target = out or Path(folder) / "scorecard.json"
        evaluator = Evaluator(settings, log or Path(folder) / "worker.log")
        try:
            evaluator.start(checkpoint, target)
            return _wait(evaluator, progress)
        finally:
            evaluator.stop()


def _wait(evaluator: Evaluator, progress: Callable[[str], None]) -> Scorecard:
    said = ""
    while True:
        result = evaluator.poll()
        if isinstance(result, Failure):
            raise EvaluationError(result.reason)
        if result is not None:
            return result
        if evaluator.progress != said:
            said = evaluator.progress
            progress(said)
        time.sleep(0.05)
