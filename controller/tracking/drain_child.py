"""MLflow from the controller's side: what enters the outbox, and the child that drains it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field

from mixloop.common.children import Child
from mixloop.contract import RunPaths, Status
from mixloop.controller.config import RunConfig
from mixloop.controller.core import RunState
from mixloop.controller.journal import Journal, records

DRAIN_TIMEOUT = 300.0  # seconds one drain may take before it is killed and tried again
DRAIN_PAUSE = 10.0  # seconds between drains: each one costs the import of the MLflow client
BACKOFF = (5.0, 300.0)  # seconds: first and greatest pause after a drain that failed


def start_drain(
    config: RunConfig, paths: RunPaths, uid: str, *, timeout: float, clock: Callable[[], float]
) -> Child:
    """The process that tells MLflow what waits in the outbox.

    Args:
        config: The run.
        paths: Its files.
        uid: Ties the journal to its run in MLflow.
        timeout: Seconds after which it is killed.
        clock: Monotonic seconds.
    """
    uri = str(config.tracking.uri)
    request = {
        "journal": str(paths.journal),
        "uri": uri,
        "experiment": config.tracking.experiment,
        "uid": uid,
        "folder": str(paths.dir),
        "artifacts": str(paths.dir / "mlartifacts") if uri.startswith("sqlite:") else None,
    }
    return Child(
        "mixloop.controller.tracking.mlflow_sink",
        argument=json.dumps(request),
        log=paths.dir / "mlflow.log",
        timeout=timeout,
        clock=clock,
    )


@dataclass
class MlflowDrain:
    """One drain at a time. That MLflow can't be reached delays nothing else.

    Args:
        config: The run.
        paths: Its files.
        journal: Its journal, claimed.
        say: Receives one line per thing that happened.
        clock: Monotonic seconds.

    Attributes:
        child: The drain that runs, or None.
        not_before: When the next may start, by the clock.
        curves_at: Tokens of the heartbeat whose curves were recorded last; -1 for none.
    """

    config: RunConfig
    paths: RunPaths
    journal: Journal
    say: Callable[[str], None]
    clock: Callable[[], float]
    child: Child | None = field(default=None, init=False)
    not_before: float = field(default=0.0, init=False)
    curves_at: int = field(default=-1, init=False)

    def __post_init__(self) -> None:
        self._uid = records.run_uid(self.journal)
        self._failures = 0  # in a row
        self._last_failure: str | None = None
        self._failing: str | None = None  # what the running drain said it failed on
        self._closed_at: float | None = None
        self._recorded: Status | None = None  # the heartbeat whose curves were recorded last

    @property
    def due(self) -> bool:
        """Whether the next drain may start."""
        return self.clock() >= self.not_before

    @property
    def failed(self) -> bool:
        """Whether the last attempt got nothing through.

        Once the run is closed, for so long that nobody need wait for MLflow any more.
        """
        patience = self.config.controller.patience
        waited = self._closed_at is None or self.clock() - self._closed_at > patience
        return self._failures > 0 and waited

    # -- what MLflow is told -----------------------------------------------------------------

    def record_curves(self, state: RunState) -> None:
        """The trainer's curves up to its newest heartbeat."""
        status = state.status
        assert status is not None
        before, self._recorded = self._recorded, status
        self.curves_at = status.tokens
        records.curves(self.journal, status, before, self.config.guards.max_epochs)

    def close_run(self, state: RunState) -> None:
        """The run's end; from now on there is nothing else to do."""
        records.closed(self.journal, state.status.tokens if state.status is not None else 0)
        self._closed_at, self.not_before = self.clock(), 0.0

    # -- the child ---------------------------------------------------------------------------

    def start(self, state: RunState) -> None:
        """Drain the outbox."""
        self.child = start_drain(
            self.config, self.paths, self._uid, timeout=DRAIN_TIMEOUT, clock=self.clock
        )

    def soon(self) -> None:
        """A person waits for the next drain."""
        self.not_before = min(self.not_before, self.clock())

    def poll(self) -> None:
        """Mark what has arrived, without waiting; an attempt that failed is made again later."""
        child = self.child
        if child is None:
            return
        ended = not child.running
        messages = child.messages()
        self._failing = records.drained(self.journal, messages) or self._failing
        if any("done" in message for message in messages):
            self._failures = 0
        if not ended:
            return
        failure, self._failing = self._failing, None
        self.child = None
        if failure is None and child.exit_code != 0:
            failure = child.killed or f"the MLflow child ended with status {child.exit_code}"
        child.close()
        self._pause(failure)

    def _pause(self, failure: str | None) -> None:
        closing = self._closed_at is not None  # nothing else is left to do
        if failure is None:
            self._failures, self._last_failure = 0, None
            self.not_before = self.clock() + (0.0 if closing else DRAIN_PAUSE)
            return
        first, greatest = (BACKOFF[0], BACKOFF[0]) if closing else BACKOFF
        self.not_before = self.clock() + min(first * 2**self._failures, greatest)
        self._failures += 1
        if failure != self._last_failure:
            self.say(f"MLflow is behind: {failure}; the journal keeps everything, will retry")
        self._last_failure = failure
        self.journal.event("tracking-failed", error=failure)

    def close(self) -> None:
        """End the child."""
        if self.child is not None:
            self.child.close()
