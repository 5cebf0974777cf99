"""The controller: a thin shell around :func:`~mixloop.controller.core.next_action`.

It looks at files and journal, does the one thing that is due, and looks again. Intent is journaled
before an effect and its outcome after; every effect may be repeated. Killed at any instruction, it
picks the run up where files and journal say it is.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import sqlite3
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mixloop.common import text
from mixloop.common.process import StopRequest
from mixloop.controller import views
from mixloop.controller.config import RunConfig
from mixloop.controller.core import Action, JobState, RunState, heartbeat, next_action
from mixloop.controller.journal import (
    FenceLost,
    JournalAltered,
    note_incarnations,
    queries,
    records,
    unreadable_files,
)
from mixloop.controller.tracking import MlflowDrain
from mixloop.controller.watch import Timings

from .checkpoint_queue import CheckpointQueue
from .experiment_jobs import ExperimentJobs
from .mixture_file import MixtureFile
from .observe import RunObserver
from .operator_inbox import OperatorInbox
from .policy_decisions import PolicyDecisions
from .publishing import Publishing
from .scoring import Scoring
from .takeover import distrust, take_over

log = logging.getLogger("mixloop.controller")

RETRY = (1.0, 60.0)  # seconds: first and greatest pause after an unexpected error
GLANCE_INTERVAL = 0.125  # seconds between two glances for news within the pause between looks
BEAT_INTERVAL = 5.0  # seconds between moves of the liveness counter


@dataclass
class Controller:
    """One run's controller: the loop, which holds the jobs.

    Args:
        config: The run, paths absolute.
        base: Folder of run.yaml, which file policies are relative to.
        say: Receives one line for the person who watches, per thing that happened.
        clock: Monotonic seconds.
        timings: Counts how long looks take.
    """

    config: RunConfig
    base: Path
    say: Callable[[str], None]
    clock: Callable[[], float] = time.monotonic
    timings: Timings = field(default_factory=Timings)

    def __post_init__(self) -> None:
        self._stop = StopRequest()
        self._told_end = False
        self.owned = run = take_over(self.config, self.base, self.say, self.clock)
        self.journal, self.say = run.journal, run.say
        mixture_file, queue = MixtureFile(run), CheckpointQueue(run)
        self.mlflow = MlflowDrain(run.config, run.paths, run.journal, run.say, run.clock)
        self.scoring = Scoring(run, queue)
        self.decisions = PolicyDecisions(run, mixture_file)
        self.experiments = ExperimentJobs(run, self.scoring)
        self.publishing = Publishing(run, mixture_file)
        self.inbox = OperatorInbox(run, mixture_file)
        self.observer = RunObserver(run, mixture_file, queue)
        self.actions: dict[Action, Callable[[RunState], None]] = {
            Action.RESTORE: self.publishing.restore,
            Action.PUBLISH: self.publishing.publish,
            Action.ACKNOWLEDGE: self.publishing.acknowledge,
            Action.NOTE_REJECTION: self.publishing.note_rejection,
            Action.NOTE_INCARNATION: self._note_incarnation,
            Action.TAKE_REQUEST: self._take_request,
            Action.EXPIRE: self.inbox.expire,
            Action.RECORD_CHECKPOINT: self.scoring.record,
            Action.SKIP_CHECKPOINTS: self.scoring.skip,
            Action.TAKE_SCORES: self.scoring.take,
            Action.TAKE_PILOT: self.scoring.take_pilot,
            Action.TAKE_DECISION: self._take_decision,
            Action.TAKE_EXPERIMENT: self.experiments.take,
            Action.ABANDON_EXPERIMENT: self.experiments.abandon,
            Action.START_PILOT: self.scoring.start_pilot,
            Action.START_SCORING: self._start_scoring,
            Action.START_DECIDING: self.decisions.start,
            Action.START_EXPERIMENT: self.experiments.start,
            Action.RECORD_CURVES: self.mlflow.record_curves,
            Action.DRAIN: self.mlflow.start,
            Action.CLOSE: self._close_run,
        }
        self._beaten_at = -1e9
        self._heartbeat: heartbeat.Heartbeat | None = None
        self._stalled = False
        self._reported_unknown: tuple[str, ...] = ()
        self._unreadable = unreadable_files.UnreadableFiles()
        self._examined_at = -1e9
        self._paused = queries.paused(run.journal)
        self._busy = False  # what failed once may fail at the second step of the same thing
        self._failures = 0  # in a row
        records.start(run.journal, run.config.run.id, self._params(), run.initial)

    def _params(self) -> dict[str, Any]:
        config = self.config
        # those who look on need them to say when something is due
        cadence = {
            "evaluate_every": config.evals.every,
            "approval_timeout": config.approval.timeout,
            "experiment_tokens": config.experiment_tokens or None,
        }
        objective = {name: goal.model_dump() for name, goal in config.objective.items()}
        return {
            "budget": config.budget,
            **({"objective": json.dumps(objective, sort_keys=True)} if objective else {}),
            "seed": config.run.seed,
            "policy": config.policy.use,
            "policy_options": json.dumps(config.policy.options, sort_keys=True),
            "guards": config.guards.model_dump_json(),
            **{key: tokens for key, tokens in cadence.items() if tokens is not None},
            **{f"unique_tokens.{name}": size for name, size in self.owned.sizes.items()},
        }

    # -- the loop ----------------------------------------------------------------------------

    def run(self) -> None:
        """Until the run has ended, :meth:`stop` is called, or another controller takes over.

        Raises:
            FenceLost: when another controller has taken the run over.
        """
        try:
            while not self._stop.is_set() and self.turn():
                pass
        finally:
            self.close()

    def turn(self) -> bool:
        """One :meth:`step`, survived. Returns whether there is more to come.

        Raises:
            FenceLost: when another controller has taken the run over.
        """
        try:
            more = self.step()
        except FenceLost:
            raise
        except Exception as error:
            # A full disk or a busy file must not end a daemon that runs for weeks: the
            # next look finds the run as it is and the same thing still to do.
            self._retry_later(error, self._failures)
            self._failures += 1
            return True
        self._failures = self._failures if self._busy else 0
        return more

    def _distrust(self, error: JournalAltered) -> None:
        """Others wrote into the journal: nothing is signed that rests on it."""
        self._busy = True
        self.say(f"{error} while this controller runs")
        self.decisions.drop()
        run = self.owned
        run.journal.check()
        assert run.key is not None
        distrust(run.paths, run.journal, run.config.run.id, run.key, run.say, self._paused)

    def _retry_later(self, error: Exception, before: int) -> None:
        """Say what went wrong, count it in the journal if that works, and wait longer each time."""
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        log.error("the controller met trouble", exc_info=error)
        if before == 0:
            self.say(f"trouble: {reason}; trying again")
        with contextlib.suppress(sqlite3.Error):
            self.journal.event("trouble", error=reason, attempt=before + 1)
        first, greatest = RETRY
        self._stop.wait(min(first * 2 ** min(before, 16), greatest))

    def step(self) -> bool:
        """Look once and do one thing. Returns whether there is more to come."""
        try:
            return self._step()
        except JournalAltered as error:
            self._distrust(error)
            return True

    def _step(self) -> bool:
        began = self.clock()
        state = self.look()
        self._report_unknown_sources(state)
        self._report_unreadable_files(state)
        action = next_action(state)
        self._busy = action is not Action.WAIT
        if action is Action.END:
            self._tell_end(state)
            return False
        if action is Action.WAIT:
            self._beat(state)
        else:
            self.actions[action](state)
        self.timings.observe(self.clock() - began)
        if action is Action.WAIT:
            self._wait(state.jobs)
        return True

    def _wait(self, jobs: JobState) -> None:
        """Until the next look is due, or has something to see that a decision waits for."""
        poll = self.config.controller.poll
        pause = min(poll, 0.25) if jobs.working or jobs.draining else poll
        for _ in range(math.ceil(pause / GLANCE_INTERVAL)):
            self._stop.wait(min(pause, GLANCE_INTERVAL))
            if self._stop.is_set() or self._news(jobs):
                return

    def _news(self, jobs: JobState) -> bool:
        """Whether a job has come further, or a checkpoint is there. A look costs far more."""
        self.scoring.poll()
        return self.job_state() != jobs or self.scoring.queue.news()

    def stop(self) -> None:
        """Ask the loop to end after the present action. Safe from a signal handler."""
        self._stop.set()

    def close(self) -> None:
        """End the children and let go of the run."""
        self.scoring.close()
        self.decisions.drop()
        self.experiments.close()
        self.mlflow.close()
        self.owned.close()

    # -- looking -----------------------------------------------------------------------------

    def look(self) -> RunState:
        """The run as files, journal and children show it now."""
        self.scoring.poll()
        self.experiments.poll()
        self.mlflow.poll()
        self.journal.notice()
        state = self.observer.observe(self.job_state())
        self.journal.notice()
        self._paused = state.paused
        self._heartbeat = heartbeat.update(self._heartbeat, state.status, self.clock())
        return state

    def job_state(self) -> JobState:
        """How far the jobs are."""
        scoring, planner = self.scoring, self.scoring.planner
        return JobState(
            scoring=scoring.step is not None,
            scored=scoring.result is not None,
            writing=scoring.evaluator.writing,
            unplanned=planner.needed,
            piloting=planner.running,
            piloted=planner.ended,
            deciding=self.decisions.pending is not None,
            decided=self.decisions.answered,
            experimenting=self.experiments.id or "",
            experimented=self.experiments.result is not None,
            draining=self.mlflow.child is not None,
            drain_due=self.mlflow.due,
            drain_failed=self.mlflow.failed,
            curves_at=self.mlflow.curves_at,
        )

    def _beat(self, state: RunState) -> None:
        if self.clock() - self._beaten_at > BEAT_INTERVAL:
            self._beaten_at = self.clock()
            self._update_heartbeat(state, self._beaten_at)

    def _update_heartbeat(self, state: RunState, now: float) -> None:
        """Move our own liveness counter, and keep how long the trainer's has stood still."""
        beat, status = self._heartbeat, state.status
        limit = heartbeat.stall_limit(beat, status)
        silent = now - beat.since if beat is not None else None
        records.beat(self.journal, beat, silent, limit)
        ended = status is None or status.finished
        stalled = silent is not None and silent > limit and not ended
        if stalled != self._stalled:
            self._stalled = stalled
            word = f"no heartbeat of the trainer for {text.duration(silent or 0.0)}"
            self.journal.event("trainer", stalled=stalled, silent=silent)
            self.say(word if stalled else "the trainer goes on")

    # -- what the person who watches has to mend ---------------------------------------------

    def _report_unknown_sources(self, state: RunState) -> None:
        """Say, once, that the trainer has to be started with run.yaml as it is now."""
        names = state.unknown_sources
        if names and names != self._reported_unknown:
            self.say(
                f"sources.{names[0]}: new in run.yaml, and the trainer was started without it; "
                "restart it with this run.yaml. Nothing is decided until then"
            )
        self._reported_unknown = names

    def _report_unreadable_files(self, state: RunState) -> None:
        """Say which files can't be read, and that in the journal too."""
        now, files, paths = self.clock(), self._unreadable, self.owned.paths
        if now - self._examined_at < unreadable_files.EXAMINE_SECONDS:
            return
        self._examined_at = now
        problems = {**state.problems, **self.observer.examine()}
        for report in files.examine(problems, now):
            self.say(unreadable_files.report_line(report, paths.dir))
        if files.unwritten:
            records.unread(self.journal, files, paths.dir)
            files.written()
        if paths.holds in problems and paths.holds in files.reported:
            self.journal.assert_fence()
            with contextlib.suppress(OSError):  # ours: nobody else will mend it
                self.scoring.hold_anew(state)

    # -- what concerns several jobs ----------------------------------------------------------

    def _note_incarnation(self, state: RunState) -> None:
        """The trainer began anew; what it left behind no longer counts."""
        left = note_incarnations(self.journal, state.began, state.rewinds)
        self.scoring.abandon(left)
        if left:  # what the policy looked at is no more
            self.decisions.drop()
        self.experiments.leave()
        self.scoring.hold(state)
        line = state.began[-1]
        if line.incarnation > 1:
            lost = f"; {len(left)} checkpoints further on are abandoned" if left else ""
            self.say(f"the trainer began again at step {line.step} ({line.incarnation}){lost}")

    def _start_scoring(self, state: RunState) -> None:
        self.scoring.start(state)
        if self.scoring.result is None and not state.paused:
            self.decisions.prepare()

    def _take_decision(self, state: RunState) -> None:
        self.decisions.take(state)
        self.scoring.hold(state)  # what an experiment starts from

    def _close_run(self, state: RunState) -> None:
        self.experiments.leave()  # a controller that was replaced may have left a folder since
        self.mlflow.close_run(state)
        self._tell_end(state)

    def _tell_end(self, state: RunState) -> None:
        """Once, also by a controller that finds the run closed."""
        if self._told_end:
            return
        self._told_end = True
        queue = self.scoring.queue
        told = views.scoring_summary(self.journal, state.rewinds, queue.folder, queue.incomplete())
        self.say(f"the run has ended; {told}")

    def _take_request(self, state: RunState) -> None:
        self.inbox.handle(state)
        self.mlflow.soon()
