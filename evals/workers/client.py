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
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mixloop.common.children import command_pid, end_kept, start_kept
from mixloop.common.errors import one_line
from mixloop.common.types import parse_bounded
from mixloop.evals import EvalSettings, Scorecard

from .launchers import worker_command

_MOST_WARNINGS = 100  # a worker that says more has said enough
_LONGEST_WARNING = 2000  # characters
_LONGEST_LINE = 2**20  # bytes of what a worker says; ours say a few hundred
_AT_A_LOOK = 2**20  # bytes; the rest waits for the next look, and the worker for us


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

    `progress` is the last thing the worker said, `warnings` what it has warned of, each once.

    Args:
        settings: What is measured, and how the worker is started.
        log: Receives what the worker prints, appended.
    """

    def __init__(self, settings: EvalSettings, log: Path) -> None:
        self._settings = settings
        self._log = log
        self._worker: _Worker | None = None
        self._job: _Job | None = None
        self._writing_until: float | None = None
        self.progress = ""
        self.warnings: list[str] = []

    @property
    def busy(self) -> bool:
        """Whether a checkpoint is being scored."""
        return self._job is not None

    @property
    def writing(self) -> bool:
        """Whether the worker still writes the samples of a checkpoint that is scored."""
        return self._writing_until is not None

    @property
    def pid(self) -> int | None:
        """The live worker's process id."""
        return command_pid(self._worker.process) if self._worker is not None else None

    @property
    def _alive(self) -> bool:
        return self._worker is not None and self._worker.exit_code() is None

    def start(self, checkpoint: Path, out: Path, earlier: Sequence[Path] = ()) -> None:
        """Begins scoring `checkpoint`; the scorecard will be in `out`.

        With `earlier` ones, newest first, the mean of their weights and its own is scored.

        Raises:
            RuntimeError: one is being scored already.
            OSError: no process can start.
        """
        if self._job is not None:
            raise RuntimeError(f"{self._job.checkpoint} is still being scored")
        request = {
            "checkpoint": str(checkpoint.resolve()),
            "out": str(out.resolve()),
            "earlier": [str(folder.resolve()) for folder in earlier],
        }
        line = json.dumps(request).encode() + b"\n"
        self._job = _Job(checkpoint, out, time.monotonic() + self._settings.timeout, line)
        self.progress = "starting"
        try:
            if not self._alive or self._worker is None or not self._worker.send(line):
                self._start_worker(line)
        except OSError:
            self.stop()
            raise

    def poll(self) -> Scorecard | Failure | None:
        """What there is to tell, without waiting: a scorecard, a failure, or nothing yet."""
        worker = self._worker
        if worker is None:
            return None
        heard = [self._hear(event) for event in worker.events()]
        if worker.endless and self._job is not None:
            return self._fail(f"the evaluation worker said {_LONGEST_LINE:,} bytes in one line")
        result = next((told for told in heard if told is not None), None)
        if result is not None:
            return result
        if self._job is not None:
            return self._check(worker, self._job)
        overdue = self._writing_until is not None and time.monotonic() > self._writing_until
        if overdue or not self._alive:
            self._end_worker()
        return None

    def _hear(self, event: dict[str, Any]) -> Scorecard | Failure | None:
        kind, job = event["event"], self._job
        if kind == "progress" and (job is None or not self.writing):
            told = f"{event.get('benchmark')} {event.get('state')}"
            self.progress = told[:_LONGEST_WARNING]
        elif kind == "warning":
            self._warned(str(event.get("text")))
        elif kind in ("scored", "done"):
            if kind == "done":
                self._writing_until = None
            # the next checkpoint may have been asked for before the samples were written
            if job is not None and event.get("out") == str(job.out.resolve()):
                return self._finish(job, writing=kind == "scored")
        elif kind in ("failed", "dying") and job is not None:
            return self._fail(str(event.get("reason"))[:_LONGEST_WARNING], kill=kind == "dying")
        return None

    def stop(self) -> None:
        """Ends the worker and forgets what it was doing."""
        self._job = None
        self._end_worker()

    def _warned(self, text: str) -> None:
        text = text[:_LONGEST_WARNING]
        if text not in self.warnings and len(self.warnings) < _MOST_WARNINGS:
            self.warnings.append(text)

    def _check(self, worker: _Worker, job: _Job) -> Failure | None:
        code = worker.exit_code()
        if code == 0 and not job.resent:
            return self._resend(job)
        if code is not None:
            how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
            return self._fail(f"the evaluation worker died ({how}): see {self._log}")
        if time.monotonic() > job.deadline:
            return self._fail(f"no scorecard within {self._settings.timeout:g} s")
        return None

    def _finish(self, job: _Job, writing: bool) -> Scorecard | Failure:
        try:
            card = Scorecard.read(job.out)
        except (OSError, ValueError) as error:
            return self._fail(f"scorecard lost: {one_line(error)}", kill=False)
        self._job = None
        self._writing_until = job.deadline if writing else None
        # what `auto` found is kept: every checkpoint is scored on the same items
        self._settings = self._settings.pinned(card.data_kinds())
        return card

    def _resend(self, job: _Job) -> Failure | None:
        """The worker was ending for want of work as the request came: a fresh one takes it."""
        job.resent = True
        try:
            self._start_worker(job.line)
        except OSError as error:
            return self._fail(f"no worker can be started: {error}")
        return None

    def _fail(self, reason: str, *, kill: bool = True) -> Failure:
        self._job = None
        if kill:
            self._end_worker()
        return Failure(reason)

    def _start_worker(self, request: bytes) -> None:
        self._end_worker()
        self._worker = _Worker(self._settings, self._log)
        self._worker.send(request)

    def _end_worker(self) -> None:
        worker, self._worker, self._writing_until = self._worker, None, None
        if worker is not None:
            worker.kill()


class _Worker:
    """A worker process and the pipes to it."""

    def __init__(self, settings: EvalSettings, log: Path) -> None:
        self._unread = b""
        self.endless = False  # whether it says a line that no worker says
        log.parent.mkdir(parents=True, exist_ok=True)
        # a worker that is killed can't tidy up, so its temporary files lie where we can
        self._scratch = tempfile.TemporaryDirectory(
            prefix="mixloop-evals-", ignore_cleanup_errors=True
        )
        try:
            self.process = start_kept(
                worker_command(settings.launcher),
                tied=isinstance(settings.launcher, str),
                log=log,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env={**os.environ, "TMPDIR": self._scratch.name, "PYTHONUNBUFFERED": "1"},
            )
        except OSError:
            self._scratch.cleanup()
            raise
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self._requests, self._answers = self.process.stdin, self.process.stdout
        os.set_blocking(self._answers.fileno(), False)
        self.send(settings.model_dump_json().encode() + b"\n")

    def exit_code(self) -> int | None:
        """None while it lives; negative for a signal."""
        return self.process.poll()

    def send(self, line: bytes) -> bool:
        """Whether the line could be written."""
        try:
            self._requests.write(line)
            self._requests.flush()
        except OSError:
            return False
        return True

    def events(self) -> list[dict[str, Any]]:
        """What it has said since the last look, or the first part of very much."""
        parts, size = [self._unread], 0
        with contextlib.suppress(BlockingIOError):
            while size < _AT_A_LOOK and (part := os.read(self._answers.fileno(), 65536)):
                parts.append(part)
                size += len(part)
        *lines, self._unread = b"".join(parts).split(b"\n")
        self.endless = len(self._unread) > _LONGEST_LINE
        return [event for line in lines if (event := _event(line)) is not None]

    def kill(self) -> None:
        """Ends it, what it started, and what it left behind."""
        end_kept(self.process)
        for pipe in (self._requests, self._answers):
            with contextlib.suppress(OSError):
                pipe.close()
        self._scratch.cleanup()


def _event(line: bytes) -> dict[str, Any] | None:
    """What the worker said; None for a line that a launcher's command printed among its."""
    try:
        content = parse_bounded(line)
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
    warn: Callable[[str], None] = lambda text: None,
) -> Scorecard:
    """Scores one checkpoint and waits for it and its samples.

    Args:
        checkpoint: Its folder.
        settings: What is measured, and how the worker is started.
        out: Where the scorecard is written, if anywhere.
        log: Where the worker's prints go; without one they are kept only where a reason names them.
        progress: Hears what is being run.
        warn: Hears what the worker warns of.

    Raises:
        EvaluationError: there is no scorecard; one line with the reason.
    """
    folder = Path(tempfile.mkdtemp(prefix="mixloop-eval-"))
    evaluator = Evaluator(settings, log or folder / "worker.log")
    kept = False
    try:
        evaluator.start(checkpoint, out or folder / "scorecard.json")
        return _wait(evaluator, progress, warn)
    except EvaluationError as error:
        kept = str(folder) in str(error)
        raise
    finally:
        evaluator.stop()
        if not kept:
            shutil.rmtree(folder, ignore_errors=True)


def _wait(
    evaluator: Evaluator, progress: Callable[[str], None], warn: Callable[[str], None]
) -> Scorecard:
    said, warned, result = "", 0, None
    while True:
        result = evaluator.poll() or result
        for text in evaluator.warnings[warned:]:
            warn(text)
        warned = len(evaluator.warnings)
        if isinstance(result, Failure):
            raise EvaluationError(result.reason)
        if result is not None and not evaluator.writing:
            return result
        if evaluator.progress != said:
            said = evaluator.progress
            progress(said)
        time.sleep(0.05)
