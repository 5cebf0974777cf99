"""The controller's side of an experiment: start it, look in now and then, get what came of it.

Light: no torch, no threads, nothing waits. The process may be killed at any moment, with the
controller or without; started again with the same spec, it goes on from what lies on the disk, and
what has ended is told at once.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

from mixloop.common.children import Child
from mixloop.common.files import read_end
from mixloop.evals import COMMAND, Launcher
from mixloop.evals.workers import Failure
from mixloop.policies.interface import ExperimentResult

from .spec import ExperimentSpec
from .workspace import ExperimentProgress, Workspace

MODULE = "mixloop.controller.experiments.runner"


class ExperimentRunner:
    """Carries out experiments in a child process, one at a time, without blocking the caller.

    Args:
        log: receives what the child prints, appended; it stays small (:func:`start_kept`).
        launcher: ``local``, or a command template with ``{command}`` in it, as ``evals.launcher``.
            The folder of the experiment and the run's must be seen where that runs.

    Attributes:
        progress: how far the experiment is, as it last said.
        spec: of the experiment under way, or None.
    """

    def __init__(self, log: Path, launcher: Launcher = "local") -> None:
        self._log = log
        self._launcher = launcher
        self._begun = 0  # where the log of this process begins
        self._child: Child | None = None
        self.progress = ExperimentProgress()
        self.spec: ExperimentSpec | None = None

    @property
    def busy(self) -> bool:
        """Whether an experiment is under way, or its result waits to be taken."""
        return self.spec is not None

    def start(self, spec: ExperimentSpec) -> None:
        """Begin an experiment, or go on with one that was begun before.

        Raises:
            RuntimeError: another is under way.
            OSError: its folder can't be written, or no process can start.
        """
        if self.spec is not None:
            raise RuntimeError(f"experiment {self.spec.id} is still under way")
        self.progress = ExperimentProgress(branches=len(spec.mixtures))
        place = Workspace(spec.out)
        if place.ended(spec.identity()) is None:
            place.begin(spec)
            self._begun = self._size()
            self._child = Child(
                MODULE,
                argument=str(place.spec),
                log=self._log,
                timeout=spec.timeout,
                launcher=command_before(self._launcher),
            )
        self.spec = spec

    def poll(self) -> ExperimentResult | Failure | None:
        """What there is to tell, without waiting: what came of it, or nothing yet.

        An experiment that failed is an :class:`ExperimentResult` whose ``state`` and ``reason`` say
        so; a :class:`Failure` is a process that died without a word, which may be started again.
        """
        spec, child = self.spec, self._child
        if spec is None:
            return None
        if child is not None:
            # before the messages: what it says last is said before it ends
            running = child.running
            with contextlib.suppress(TypeError):  # a launcher's command may print too
                for message in child.messages():
                    self.progress = ExperimentProgress(**message)
            if running:
                return None
        result = Workspace(spec.out).ended(spec.identity())
        if result is None:
            return self._fail(child)
        self.stop()
        return result

    def stop(self) -> None:
        """End the process, if one runs; what it has on the disk stays for the next start."""
        if self._child is not None:
            self._child.close()
        self._child = self.spec = None

    def _fail(self, child: Child | None) -> Failure:
        reason = "its result is gone"
        if child is not None:
            reason = child.killed or f"its process left no result (status {child.exit_code})"
        self.stop()
        said = self._last_line()
        return Failure(f"{reason}{': ' if said else ''}{said}; see {self._log}")

    def _last_line(self) -> str:
        """What the log ends with, which is where a process that failed says why."""
        lines = read_end(self._log, after=self._begun).strip().splitlines()
        return lines[-1][:300] if lines else ""

    def _size(self) -> int:
        """The log's."""
        with contextlib.suppress(OSError):
            return self._log.stat().st_size
        return 0


def command_before(launcher: Launcher) -> tuple[str, ...] | None:
    """A launcher's arguments with ``{command}`` in its place; None: a child of ours.

    Raises:
        OSError: Ray, which starts actors and no commands.
    """
    if launcher == "local":
        return None
    if isinstance(launcher, str):
        raise OSError(
            f"experiments.launcher: {launcher} is not for experiments; give a command such as "
            f"[srun, -G1, '{COMMAND}']"
        )
    return launcher
