"""The trainer of a toy run, held in step with its controller.

A toy's trainer would be through most of an interval before its checkpoint is scored, while at scale
an interval takes hours and scoring minutes. So the trainer is stopped (SIGSTOP) once it is ``LAG``
of an interval past a checkpoint that is not decided on, and goes on with the decision. The most an
order can be late, and so the outcome, then doesn't depend on how busy the machine is.
"""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from mixloop.common.process import StopRequest
from mixloop.contract import RunPaths, read_status
from mixloop.controller.journal import Journal, JournalError, queries
from mixloop.trainer.run import list_steps

LAG = 0.5  # of an interval between two evaluations
LOOK = 0.1  # seconds between two looks at trainer and journal
LONGEST_STOP = 3600.0  # seconds; a controller that is silent for so long is not waited for
EXPERIMENT = "experiment"  # the verdict of a decision that only asks for one

STOPPING = StopRequest()
"""Set when the bench is to end: no trainer is held any more, so that all can end in order."""


class Pace:
    """Keeps a trainer from running ahead of its controller.

    Args:
        run: The run's folder.
        every: Steps between two evaluations.
    """

    def __init__(self, run: Path, every: int) -> None:
        self.paths, self.every, self.lag = RunPaths(run), every, max(1, round(LAG * every))
        self.stopped_seconds = 0.0

    @contextmanager
    def kept(self, process: subprocess.Popen[bytes]) -> Iterator[None]:
        """While the block runs, the trainer below ``process`` is kept in step."""
        ended = threading.Event()
        thread = threading.Thread(target=self._keep, args=(process, ended), daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def _keep(self, process: subprocess.Popen[bytes], ended: threading.Event) -> None:
        trainer, since = None, None
        while not ended.wait(LOOK):
            trainer = trainer if trainer and _alive(trainer) else self._trainer(process.pid)
            if trainer is None:
                continue
            ahead = not STOPPING.is_set() and self._ahead()
            if ahead and since is None:
                since = time.monotonic()
                _send(trainer, signal.SIGSTOP)
            elif since is not None and (not ahead or time.monotonic() - since > LONGEST_STOP):
                if ahead:
                    self.lag = sys.maxsize  # nothing comes any more
                self.stopped_seconds += time.monotonic() - since
                since = None
                _send(trainer, signal.SIGCONT)
        if since is not None and trainer is not None:
            _send(trainer, signal.SIGCONT)

    def _ahead(self) -> bool:
        """Whether the trainer is the lag past a checkpoint that is not decided on."""
        status = read_status(self.paths.status).value
        # a trainer that was stopped leaves one between two evaluations, which nobody scores
        steps = [step for step in list_steps(self.paths.checkpoints) if step % self.every == 0]
        if status is None or not steps or status.step >= _last_step(self.paths):
            return False
        return status.step - max(steps) >= self.lag and max(steps) > self._decided()

    def _decided(self) -> int:
        """The newest step with a decision; one that asked for an experiment is not one yet."""
        if not self.paths.journal.exists():
            return -1
        try:
            with closing(Journal(self.paths.journal)) as journal:
                newest = queries.last_decisions(journal, 1)
        except (JournalError, sqlite3.Error):  # busy or half made: the next look will tell
            return sys.maxsize
        waits = not newest or newest[0].verdict == EXPERIMENT
        return -1 if waits else newest[0].step

    def _trainer(self, ancestor: int) -> int | None:
        """The process that writes the heartbeat, where it is below ours; no other is signalled."""
        status = read_status(self.paths.status).value
        return status.pid if status is not None and _below(status.pid, ancestor) else None


def _last_step(paths: RunPaths) -> int:
    job = json.loads(paths.job.read_text())
    settings = job["settings"]
    window = settings["sequence_length"] * settings["micro_batch"] * settings["accumulation"]
    return int(job["budget"]) // int(window)


def _below(pid: int, ancestor: int) -> bool:
    """Whether a process is a descendant of another."""
    while pid > 1:
        try:
            pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError):
            return False
        if pid == ancestor:
            return True
    return False


def _alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def _send(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)
