"""MLflow from the controller's side: what enters the outbox, and the child that drains it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field

from mixloop.common.children import Child
from mixloop.common.types import Json
from mixloop.contract import RunPaths, Status
from mixloop.controller.config import RunConfig
from mixloop.controller.core import RunState
from mixloop.controller.journal import Journal, queries, records

DRAIN_TIMEOUT = 300.0  # seconds one drain may take before it is killed and tried again
DRAIN_PAUSE = 10.0  # seconds between drains: each one costs the import of the MLflow client
BACKOFF = (5.0, 300.0)  # seconds: first and greatest pause after a drain that failed


def start_drain(
    config: RunConfig,
    paths: RunPaths,
    uid: str,
    *,
    after: int,
    timeout: float,
    clock: Callable[[], float],
) -> Child:
    """The process that tells MLflow what waits in the outbox.

    Args:
        config: The run.
        paths: Its files.
        uid: Ties the journal to its run in MLflow.
        after: Entries up to this number are left for a later one.
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
        "after": after,
        "artifacts": str(paths.dir / "mlartifacts") if uri.startswith("sqlite:") else None,
    }
    return Child(
        "mixloop.controller.tracking.drain_process",
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
        self._failures = 0  # in a row, in which nothing arrived
        self._failing: Json | None = None  # what the running drain said it failed on
        self._said: tuple[Json, float] | None = None  # the failure journaled last, and when
        self._resume = 0  # the entry that the last drain could not go beyond
        self._tried = 0  # the newest entry when a drain began last
        self._answers = False  # whether only some entries failed in the last drain
        self._rested = 0.0  # when the next drain may start for an entry that none has tried
        self._closed_at: float | None = None
        self._recorded: Status | None = None  # the heartbeat whose curves were recorded last

    @property
    def due(self) -> bool:
        """Whether the next drain may start: what can't be sent keeps nothing new waiting."""
        now = self.clock()
        if now >= self.not_before:
            return True
        if not self._answers or now < self._rested:
            return False
        return queries.newest_entry_number(self.journal) > self._tried

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
        self._tried = queries.newest_entry_number(self.journal)
        self.child = start_drain(
            self.config,
            self.paths,
            self._uid,
            after=self._resume,
            timeout=DRAIN_TIMEOUT,
            clock=self.clock,
        )
        self._resume = 0

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
        for message in messages:
            if "done" in message:
                self._failures = 0
            for word in message.keys() & {"resume", "away"}:
                self._resume = message[word]
        if not ended:
            return
        failure, self._failing = self._failing, None
        self.child = None
        if failure is None and child.exit_code != 0:
            error = child.killed or f"the MLflow child ended with status {child.exit_code}"
            failure = {"entry": None, "error": error}
        child.close()
        self._pause(failure)

    def _pause(self, failure: Json | None) -> None:
        closing, now = self._closed_at is not None, self.clock()  # then nothing else is left to do
        self._rested = now + DRAIN_PAUSE
        if failure is None:
            self._failures, self._said, self._answers = 0, None, False
            self.not_before = now if closing else self._rested
            return
        first, greatest = (BACKOFF[0], BACKOFF[0]) if closing else BACKOFF
        self.not_before = now + min(first * 2**self._failures, greatest)
        self._failures += 1
        self._answers = failure["entry"] is not None
        before, at = self._said or (None, 0.0)
        if failure == before and now - at < BACKOFF[1]:
            return
        self._said = failure, now
        if failure != before:
            what = ": ".join(filter(None, (failure["entry"], failure["error"])))
            self.say(f"MLflow is behind: {what}; the journal keeps everything, will retry")
        self.journal.event("tracking-failed", **failure)

    def close(self) -> None:
        """End the child."""
        if self.child is not None:
            self.child.close()
