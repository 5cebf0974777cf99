"""The controller: a thin shell around :func:`~mixloop.controller.core.next_action`.

It looks at files and journal, does the one thing that is due, and looks again. Intent is journaled
before an effect and its outcome after; every effect may be repeated. Killed at any instruction, it
picks the run up where files and journal say it is.
"""

from __future__ import annotations

import contextlib
import json
import logging
import sqlite3
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mixloop.common import text
from mixloop.common.process import Child
from mixloop.contract import Order, RunPaths, write_holds, write_order
from mixloop.controller.config import RunConfig
from mixloop.controller.core import (
    NOTHING,
    Action,
    Answer,
    DecisionRecord,
    OrderRecord,
    RunState,
    Steering,
    headline,
    heartbeat,
    make_decision,
    next_action,
    scores,
    stages,
)
from mixloop.controller.decisions import (
    UnreadError,
    history_request,
    near,
    observation_builder,
    read_answer,
    read_observed,
)
from mixloop.controller.journal import FenceLost, Journal, records, take_lock, unreadable_files
from mixloop.controller.tracking import DRAIN_TIMEOUT, DrainState, drain_request
from mixloop.controller.watch import Timings
from mixloop.evals import EvalSettings, Scorecard
from mixloop.evals.workers import Evaluator, Failure
from mixloop.policies.interface import Evaluation, Observation
from mixloop.policies.mixture import total_variation

from . import observe, rewind_records, takeover
from .eval_planner import Planner
from .operator_inbox import OperatorInbox

log = logging.getLogger("mixloop.controller")

SCORING_ATTEMPTS = 2
DRAIN_PAUSE = 10.0  # seconds between drains: each one costs the import of the MLflow client
BACKOFF = (5.0, 300.0)  # seconds: first and greatest pause after a drain that failed
TROUBLE = (1.0, 60.0)  # seconds: first and greatest pause after an unexpected error
BEAT = 5.0  # seconds between moves of the liveness counter


@dataclass
class PendingDecision:
    """A policy decision on its way."""

    child: Child
    seen: Observation  # without the history, which the child reads
    started_ms: int
    newest: int  # generation of the newest order when it was asked


@dataclass
class Controller:
    """One run's controller.

    Args:
        config: The run, paths absolute.
        base: Folder of run.yaml, which file policies are relative to.
        say: Receives one line for the person who watches, per thing that happened.
        clock: Monotonic seconds.
    """

    config: RunConfig
    base: Path
    say: Callable[[str], None]
    clock: Callable[[], float] = time.monotonic
    tracking: DrainState = field(default_factory=DrainState)
    timings: Timings = field(default_factory=Timings)

    def __post_init__(self) -> None:
        self.paths = RunPaths(self.config.run.dir)
        self._stop = threading.Event()
        self.say = _quietly(self.say)
        self._key = self.config.key()
        self.sizes = observation_builder.unique_tokens(self.config)
        self.initial = self.config.start_weights(self.sizes)
        self.paths.dir.mkdir(parents=True, exist_ok=True)
        self._lock = take_lock(self.paths.dir / "controller.lock")
        takeover.check_sources(self.paths, self.config)
        self.journal = Journal(self.paths.journal, create=True)
        self.initial = takeover.first_mixture(self.paths, self.journal, self.initial)
        self.journal.claim(self.config.run.id, above=takeover.highest_fence(self.paths))
        if wrong := self.journal.check():  # it may go on for long before it reads that
            self.say(wrong)
        self.uid = records.run_uid(self.journal)
        # What `data: auto` once found stays: every checkpoint is scored on the same items.
        pinned = self.config.evals.pinned(observation_builder.data_kinds(self.journal))
        self.planner = Planner(self.config, self.journal, pinned, self._evaluator, self.clock)
        self.evaluator = self._evaluator(self.planner.settings)
        self.scoring: int | None = None
        self.result: Scorecard | Failure | None = None
        self.running: PendingDecision | None = None
        self._beaten = self._closed_at = -1e9
        self.pulse: heartbeat.Heartbeat | None = None
        self._stalled = False
        self._eyes = observe.RunObserver(self.paths, self.journal, self.config, self._key)
        self.operations = OperatorInbox(
            self.paths, self.journal, self.config, self._eyes, self.sizes, self.initial, self._key
        )
        self._holds: frozenset[int] | None = None
        self._told_unknown: tuple[str, ...] = ()
        self._unreadable = unreadable_files.UnreadableFiles()
        self._examined = -1e9
        self._busy = False  # what failed once may fail at the second step of the same thing
        self._troubles = 0  # in a row
        records.start(self.journal, self.config.run.id, self._params(), self.initial)

    def _evaluator(self, settings: EvalSettings) -> Evaluator:
        return Evaluator(settings, self.paths.dir / "evals.log")

    def _params(self) -> dict[str, Any]:
        config = self.config
        return {
            "budget": config.budget,
            "seed": config.run.seed,
            "policy": config.policy.use,
            "policy_options": json.dumps(config.policy.options, sort_keys=True),
            "guards": config.guards.model_dump_json(),
            **{key: one for key, one in self._cadence().items() if one is not None},
            **{f"unique_tokens.{name}": size for name, size in self.sizes.items()},
        }

    def _cadence(self) -> dict[str, int | None]:
        """Tokens between two of a thing, which those who look on need to say when it is due."""
        return {
            "evaluate_every": self.config.evals.every,
            "approval_timeout": self.config.approval.timeout,
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
            # next look finds the world as it is and the same thing still to do.
            self._trouble(error, self._troubles)
            self._troubles += 1
            return True
        self._troubles = self._troubles if self._busy else 0
        return more

    def _trouble(self, error: Exception, before: int) -> None:
        """Say what went wrong, count it in the journal if that works, and wait longer each time."""
        text = f"{type(error).__name__}: {error}".splitlines()[0]
        log.error("the controller met trouble", exc_info=error)
        if before == 0:
            self.say(f"trouble: {text}; trying again")
        with contextlib.suppress(sqlite3.Error):
            self.journal.event("trouble", error=text, attempt=before + 1)
        first, greatest = TROUBLE
        self._stop.wait(min(first * 2 ** min(before, 16), greatest))

    def step(self) -> bool:
        """Look once and do one thing. Returns whether there is more to come."""
        began = self.clock()
        world = self.look()
        self._tell_unknown()
        self._tell_unread()
        action = next_action(world)
        self._busy = action is not Action.WAIT
        if action is Action.WAIT:
            self._beat()
            self.timings.observe(self.clock() - began)
            self._stop.wait(self._pause(world))
            return True
        if action is Action.END:
            return False
        getattr(self, "_do_" + action.value.replace("-", "_"))(world)
        self.timings.observe(self.clock() - began)
        return True

    def _tell_unknown(self) -> None:
        """Say, once, that the trainer has to be started with run.yaml as it is now."""
        names = self._eyes.unknown
        if names and names != self._told_unknown:
            self.say(
                f"sources.{names[0]}: new in run.yaml, and the trainer was started without it; "
                "restart it with this run.yaml. Nothing is decided until then"
            )
        self._told_unknown = names

    def _tell_unread(self) -> None:
        """Say which files can't be read, and that in the journal too."""
        now, files = self.clock(), self._unreadable
        if now - self._examined < unreadable_files.EXAMINE_SECONDS:
            return
        self._examined = now
        self._eyes.examine()
        for report in files.examine(self._eyes.problems, now):
            self.say(unreadable_files.report_line(report, self.paths.dir))
        if files.unwritten:
            records.unread(self.journal, files, self.paths.dir)
            files.written()
        if self.paths.holds in self._eyes.problems and self.paths.holds in files.reported:
            self.journal.assert_fence()
            self._holds = None  # ours: nobody else will mend it
            with contextlib.suppress(OSError):
                self._hold()

    def stop(self) -> None:
        """Ask the loop to end after the present action. Safe from a signal handler."""
        self._stop.set()

    def close(self) -> None:
        """End the children and let go of the run."""
        self.evaluator.stop()
        self.planner.stop()
        if self.running is not None:
            self.running.child.close()
        if self.tracking.child is not None:
            self.tracking.child.close()
        self.journal.close()
        self._lock.close()

    def _pause(self, world: RunState) -> float:
        busy = world.scoring or world.trying or world.deciding or world.draining
        return min(self.config.controller.poll, 0.25) if busy else self.config.controller.poll

    def _beat(self) -> None:
        if self.clock() - self._beaten > BEAT:
            self._beaten = self.clock()
            self._feel_pulse(self._beaten)

    def _feel_pulse(self, now: float) -> None:
        """Move our own liveness counter, and keep how long the trainer's has stood still."""
        found, status = self.pulse, self._eyes.status
        limit = heartbeat.stall_limit(found, status)
        silent = now - found.since if found is not None else None
        records.beat(self.journal, found, silent, limit)
        ended = status is None or status.finished
        stalled = silent is not None and silent > limit and not ended
        if stalled != self._stalled:
            self._stalled = stalled
            word = f"no heartbeat of the trainer for {text.duration(silent or 0.0)}"
            self.journal.event("trainer", stalled=stalled, silent=silent)
            self.say(word if stalled else "the trainer goes on")

    # -- looking -----------------------------------------------------------------------------

    def look(self) -> RunState:
        """The world as files, journal and children show it now."""
        self._poll_scoring()
        self._poll_drain()
        self.planner.poll()
        tracked = self.config.tracking.enabled
        outbox = self._eyes.outbox() if tracked else 0
        now = self.clock()
        patience = self.config.controller.patience
        world = self._eyes.look(
            scoring=self.scoring is not None,
            scored=self.result is not None,
            unplanned=self.planner.needed,
            trying=self.planner.running,
            tried=self.planner.ended,
            deciding=self.running is not None,
            decided=self.running is not None and not self.running.child.running,
            outbox=outbox,
            draining=self.tracking.child is not None,
            drain_due=now >= self.tracking.not_before,
            paused=self.operations.paused,
            requested=self.operations.next_request() is not None,
            overdue=self.operations.ended() is not None,
            drain_failed=self.tracking.failures > 0 and now - self._closed_at > patience,
        )
        self.pulse = heartbeat.update(self.pulse, self._eyes.status, now)
        return world

    def _poll_scoring(self) -> None:
        if self.scoring is not None and self.result is None:
            self.result = self.evaluator.poll()

    def _poll_drain(self) -> None:
        child = self.tracking.child
        if child is None:
            return
        ended = not child.running
        said = child.messages()
        self.tracking.failing = records.drained(self.journal, said) or self.tracking.failing
        if any("done" in message for message in said):
            self.tracking.failures = 0
        if not ended:
            return
        failure, self.tracking.failing = self.tracking.failing, None
        self.tracking.child = None
        if failure is None and child.exit_code != 0:
            failure = child.killed or f"the MLflow child ended with status {child.exit_code}"
        child.close()
        self._after_drain(failure)

    def _after_drain(self, failure: str | None) -> None:
        tracking = self.tracking
        closing = self._closed_at >= 0  # nothing else is left to do
        if failure is None:
            tracking.failures, tracking.last_error = 0, None
            tracking.not_before = self.clock() + (0.0 if closing else DRAIN_PAUSE)
            return
        first, greatest = (BACKOFF[0], BACKOFF[0]) if closing else BACKOFF
        tracking.not_before = self.clock() + min(first * 2**tracking.failures, greatest)
        tracking.failures += 1
        if failure != tracking.last_error:
            self.say(f"MLflow is behind: {failure}; the journal keeps everything, will retry")
        tracking.last_error = failure
        self.journal.event("tracking-failed", error=failure)

    # -- the shared state file ---------------------------------------------------------------

    def _do_publish(self, world: RunState) -> None:
        row = self.journal.row("SELECT * FROM orders WHERE generation = ?", world.asked)
        assert row is not None
        order = Order(
            run=self.config.run.id,
            fence=self.journal.fence or 0,
            generation=row["generation"],
            weights=row["weights"],
            then=tuple(stages(self._eyes.plan_of(row))),
            decision=row["decision"],
            policy=row["policy"],
            reason=row["reason"],
            issued_at=row["issued_at"],
        )
        if self._eyes.stranger:
            self.journal.event("stranger", found=self._eyes.stranger, replaced_by=order.generation)
            self.say(f"mixture.json held {self._eyes.stranger}, not ours; replaced")
            self._eyes.stranger = ""
        self.journal.assert_fence()
        write_order(self.paths.mixture, order, self._key)
        records.published(self.journal, order.generation)
        if row["published_at"] is None:
            self.say(f"published generation {order.generation} ({order.decision})")

    def _do_restore(self, world: RunState) -> None:
        """A file we did not write: put what was asked for back, above whatever it started."""
        status = self._eyes.status
        tokens = status.tokens if status is not None else 0
        asked, plan = self._eyes.asked_mixture(self.initial, tokens)
        if status is not None and status.accepted.fence >= (self.journal.fence or 0):
            self.journal.raise_fence(status.accepted.fence)
        before = dict(status.in_force.weights) if status is not None else asked
        generation = self._eyes.next_generation()
        reason = (
            f"found {self._eyes.stranger}, which this controller did not write; "
            f"the mixture it asked for was published again as generation {generation}"
        )
        changed = total_variation(before, asked) > NOTHING
        decision = DecisionRecord(
            verdict="intervene" if changed else "hold",
            reason=reason,
            weights_before=before,
            weights_proposed=asked,
            weights_after=asked,
            plan=tuple((until, weights) for until, weights in plan),
            against_generation=status.in_force.generation if status is not None else 0,
            order=OrderRecord(generation, "controller"),
            asked_by="controller",
            policy="controller",
            step=status.step if status is not None else 0,
            tokens=tokens,
        )
        records.decision(self.journal, decision, scores={}, started_ms=records.now_ms())
        self._eyes.stranger = ""
        self.say(reason)

    def _do_acknowledge(self, world: RunState) -> None:
        for found in world.newly_applied:
            before = self._eyes.weights_before(found.generation, self.initial)
            tokens = found.sample * self.config.trainer.sequence_length
            records.applied(self.journal, found, tokens, before)
            self.say(f"generation {found.generation} in force at step {found.step}")

    def _do_note_rejection(self, world: RunState) -> None:
        records.rejected(self.journal, world.newly_rejected)
        for generation, reason in world.newly_rejected.items():
            self.say(f"the trainer refused generation {generation}: {reason}")

    def _do_note_incarnation(self, world: RunState) -> None:
        begun = self._eyes.begun
        left = rewind_records.incarnations(self.journal, begun, self._eyes.cuts)
        self._eyes.incarnation_noted(left)
        if self.scoring in left:
            self.evaluator.stop()
            self.scoring = self.result = None
        if left and self.running is not None:  # what it looked at is no more
            self.running.child.close()
            self.running = None
        self._hold()
        line = begun[-1]
        if line.incarnation > 1:
            lost = f"; {len(left)} checkpoints further on are abandoned" if left else ""
            self.say(f"the trainer began again at step {line.step} ({line.incarnation}){lost}")

    # -- operators ---------------------------------------------------------------------------

    def _do_take_request(self, world: RunState) -> None:
        path = self.operations.next_request()
        if path is None:
            return
        said = self.operations.take(path)
        self.tracking.not_before = min(self.tracking.not_before, self.clock())
        if said:
            self.say(said)

    def _do_expire(self, world: RunState) -> None:
        row = self.operations.ended()
        if row is not None:
            self.say(self.operations.expire(row))

    # -- checkpoints and their scores --------------------------------------------------------

    def _do_record_checkpoint(self, world: RunState) -> None:
        name = world.unrecorded[0]
        path = self._eyes.layout.folder / name
        manifest = self._eyes.manifest(name)
        known = self.journal.row(
            "SELECT incarnation FROM checkpoints WHERE step = ?", manifest.step
        )
        if known is not None:
            self._set_aside(manifest.step, known["incarnation"])
        records.checkpoint(self.journal, manifest, str(path), self._eyes.losses())
        self._hold()
        self.say(f"checkpoint at step {manifest.step} ({manifest.tokens:,} tokens)")

    def _set_aside(self, step: int, incarnation: int) -> None:
        """The files of a step that was scored on an abandoned branch: they are not this one's."""
        for path in (self.paths.dir / "scorecards").glob(f"step-{step:08d}.*"):
            path.rename(path.with_name(f"abandoned-{incarnation}-{path.name}"))

    def _do_skip_checkpoints(self, world: RunState) -> None:
        records.skipped(self.journal, world.to_skip)
        self._hold()
        reasons = set(world.to_skip.values())
        steps = ", ".join(map(str, world.to_skip))
        self.say(f"not scored: step {steps}: {'; '.join(sorted(reasons))}")

    def _do_start_trial(self, world: RunState) -> None:
        path = Path(
            self.journal.value("SELECT path FROM checkpoints WHERE step = ?", world.to_score)
        )
        if not path.is_dir():
            self._do_start_scoring(world)  # which says that it is gone; the next one is tried
            return
        status = self._eyes.status
        self.planner.start(path, status.tokens_per_second if status is not None else None)

    def _do_take_trial(self, world: RunState) -> None:
        self.say(self.planner.take())
        if not self.planner.needed:
            self.evaluator.stop()
            self.evaluator = self._evaluator(self.planner.settings)

    def _do_start_scoring(self, world: RunState) -> None:
        step = world.to_score
        assert step is not None
        begun = self.journal.value("SELECT state FROM evaluations WHERE step = ?", step)
        records.scoring_started(self.journal, step)
        path = Path(self.journal.value("SELECT path FROM checkpoints WHERE step = ?", step))
        out = self.paths.dir / "scorecards" / f"step-{step:08d}.json"
        out.parent.mkdir(exist_ok=True)
        self.scoring = step
        if not path.is_dir():
            self.result = Failure("the checkpoint is gone (removed before it was scored)")
            return
        if begun == "running":
            self.result = self._scored_before(path, out)
        if self.result is not None:
            return
        try:
            self.evaluator.start(path, out)
        except OSError as error:
            self.result = Failure(f"no worker can be started: {error}")

    def _scored_before(self, checkpoint: Path, out: Path) -> Scorecard | None:
        """A scorecard that was finished when an earlier controller died before recording it.

        Of an evaluation that was begun, that is: what lies there otherwise may be of a checkpoint
        of that name on a branch that the trainer has left.
        """
        try:
            card = Scorecard.read(out)
        except (OSError, ValueError):
            return None
        same = card.checkpoint == str(checkpoint.resolve())
        return card if same and card.settings_digest == self.planner.settings.digest() else None

    def _hold(self) -> None:
        """Ask the trainer's retention to spare what is still to be scored."""
        steps = frozenset(self._eyes.waiting())
        if steps != self._holds:
            write_holds(self.paths.holds, steps)
            self._holds = steps

    def _do_take_scores(self, world: RunState) -> None:
        step, result = self.scoring, self.result
        assert step is not None
        if isinstance(result, Scorecard):
            records.scored(self.journal, step, json.loads(result.to_json()))
            self.scoring = self.result = None
            self._hold()
            self._tell_outcomes()
            self.say(f"step {step}: {headline(result)}")
            return
        assert isinstance(result, Failure)
        attempts = self.journal.value("SELECT attempts FROM evaluations WHERE step = ?", step)
        gone = not Path(
            self.journal.value("SELECT path FROM checkpoints WHERE step = ?", step)
        ).is_dir()
        final = gone or attempts >= SCORING_ATTEMPTS
        records.scoring_failed(self.journal, step, result.reason, final=final)
        self.scoring = self.result = None
        self._hold()
        self.say(f"step {step} was not scored: {result.reason}{'' if final else '; once more'}")

    def _tell_outcomes(self) -> None:
        """Interventions whose effect this score shows for the first time."""
        for row in self._eyes.interventions_without_outcome():
            order = self.journal.row("SELECT * FROM orders WHERE generation = ?", row["generation"])
            assert order is not None
            scored = observation_builder.around(self.journal, order["applied_tokens"])
            found = observation_builder.outcome(order["applied_tokens"], scored)
            if found is not None:
                records.outcome(self.journal, row["id"], *found)

    # -- deciding ----------------------------------------------------------------------------

    def _do_start_deciding(self, world: RunState) -> None:
        status, step = self._eyes.status, world.to_decide
        assert status is not None
        assert step is not None
        seen = near(self.journal, self.config, self.sizes, status, step)
        request = {
            "ref": self.config.policy.use,
            "options": self.config.policy.options,
            "base": str(self.base),
            "memory": self.config.policy.memory,
            "history": history_request(self.journal, self.config, seen),
        }
        child = Child(
            "mixloop.controller.decisions.policy_process",
            stdin=json.dumps(request),
            log=self.paths.dir / "policy.log",
            timeout=self.config.policy.timeout,
            clock=self.clock,
        )
        self.running = PendingDecision(child, seen, records.now_ms(), self._newest())

    def _newest(self) -> int:
        return int(self.journal.value("SELECT COALESCE(MAX(generation), 0) FROM orders"))

    def _overtaken(self, running: PendingDecision) -> str:
        if self.operations.paused:
            return "an operator paused decisions meanwhile"
        if self._newest() > running.newest:
            return "another order was given meanwhile"
        return ""

    def _note_steering(self, chosen: Mapping[str, Steering], newest: Evaluation) -> None:
        """Before the decision that it bears on; a repeat after a crash finds nothing new."""
        for name, one in records.steering(self.journal, newest.step, newest.tokens, chosen).items():
            self.say(f"from step {newest.step} {one.metric} steers {name}: {one.why}")

    def _do_take_decision(self, world: RunState) -> None:
        running = self.running
        assert running is not None
        self.running = None
        try:
            answer = read_answer(running.child)
        finally:
            running.child.close()
        if answer.kind == "unread":  # no answer of the policy's: asked again, as after any trouble
            raise UnreadError(answer.payload["reason"])
        scored = running.seen.evaluations[-1]
        observed = read_observed(answer.observed) if answer.observed else None
        if observed is not None:
            self._note_steering(observed.steering, scored)
        elif answer.kind == "proposal":  # the vetoes would be left out
            answer = Answer("failed", {"reason": "it proposed before it had observed anything"})
        made = make_decision(
            answer,
            running.seen,
            self.config,
            status=self._eyes.status,
            last_intervention=self._eyes.last_applied_tokens(),
            generation=self._eyes.next_generation(),
            against=observed.vetoes if observed is not None else (),
            pins=self.operations.pins,
            overtaken=self._overtaken(running),
            forced=self.operations.forced,
        )
        decision = replace(
            made,
            policy=self.config.policy.use,
            step=scored.step,
            tokens=scored.tokens,
            observation_digest=observed.digest if observed is not None else None,
            policy_digest=answer.digest,
            scored_at=self.journal.value(
                "SELECT finished_at FROM evaluations WHERE step = ?", scored.step
            ),
        )
        name = records.decision(
            self.journal,
            decision,
            scores=scores(scored),
            started_ms=running.started_ms,
            seen=running.seen,
        )
        self.say(f"{name} {decision.verdict}: {decision.reason}")

    # -- MLflow ------------------------------------------------------------------------------

    def _do_record_curves(self, world: RunState) -> None:
        before, now = self._eyes.take_curves()
        records.curves(self.journal, now, before, self.config.guards.max_epochs)

    def _do_drain(self, world: RunState) -> None:
        request = drain_request(self.config, self.paths, self.uid)
        self.tracking.child = Child(
            "mixloop.controller.tracking.mlflow_sink",
            argument=json.dumps(request),
            log=self.paths.dir / "mlflow.log",
            timeout=DRAIN_TIMEOUT,
            clock=self.clock,
        )

    def _do_close(self, world: RunState) -> None:
        status = self._eyes.status
        records.closed(self.journal, status.tokens if status is not None else 0)
        self._closed_at = self.clock()
        self.tracking.not_before = 0.0
        self.say("the run has ended and every checkpoint is scored")


def _quietly(say: Callable[[str], None]) -> Callable[[str], None]:
    """Nobody listening (a full disk under the log, a closed pipe) is no reason to stop."""

    def quiet(line: str) -> None:
        with contextlib.suppress(OSError, ValueError):
            say(line)

    return quiet
