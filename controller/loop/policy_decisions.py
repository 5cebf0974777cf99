"""Decisions of the policy: asked in a child, guarded, journaled with the order they ask for."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from mixloop.common.children import Child, WaitingChild
from mixloop.controller.core import (
    Answer,
    DecisionRow,
    RunState,
    Steering,
    bounded,
    make_decision,
    scores,
)
from mixloop.controller.decisions import (
    UnreadError,
    history_request,
    near,
    read_observed,
    read_reply,
)
from mixloop.controller.journal import queries, records
from mixloop.policies.interface import Evaluation, Observation

from .mixture_file import MixtureFile, is_forced, pinned_shares
from .takeover import OwnedRun

_PROCESS = "mixloop.controller.decisions.policy_process"


@dataclass
class PendingDecision:
    """A policy decision on its way."""

    child: Child
    observation: Observation  # without the history, which the child reads
    started_ms: int
    newest: int  # generation of the newest order when it was asked
    known: int  # experiments that had ended then


@dataclass
class PolicyDecisions:
    """One decision at a time."""

    run: OwnedRun
    mixture_file: MixtureFile
    pending: PendingDecision | None = field(default=None, init=False)
    _ready: WaitingChild | None = field(default=None, init=False)

    @property
    def answered(self) -> bool:
        """Whether the policy's answer waits to be taken."""
        return self.pending is not None and not self.pending.child.running

    def prepare(self) -> None:
        """Have a child import what it needs while the checkpoint is scored."""
        if self._ready is None:
            log = self.run.paths.dir / "policy.log"
            with contextlib.suppress(OSError):  # the decision's own try says what is wrong
                self._ready = WaitingChild(_PROCESS, log=log, clock=self.run.clock)

    def _ask(self, request: str) -> Child:
        ready, self._ready = self._ready, None
        timeout = self.run.config.policy.timeout
        if ready is not None:
            if ready.give(request, timeout):
                return ready
            ready.close()
        log = self.run.paths.dir / "policy.log"
        return Child(_PROCESS, stdin=request, log=log, timeout=timeout, clock=self.run.clock)

    def start(self, state: RunState) -> None:
        """Ask the policy what the newest scored checkpoint calls for."""
        status, step = state.status, state.to_decide
        assert status is not None
        assert step is not None
        known = queries.experiments_ended(self.run.journal)
        observation = near(self.run.journal, self.run.config, self.run.sizes, status, step, known)
        request = {
            "ref": self.run.config.policy.use,
            "options": self.run.config.policy.options,
            "base": str(self.run.base),
            "memory": self.run.config.policy.memory,
            "history": history_request(self.run.journal, self.run.config, observation, known),
        }
        child = self._ask(json.dumps(request))
        newest = queries.highest_generation(self.run.journal)
        self.pending = PendingDecision(child, observation, records.now_ms(), newest, known)

    def take(self, state: RunState) -> None:
        """Guard the answer; journal the decision and, if it changes the mixture, its order."""
        pending, status = self.pending, state.status
        assert pending is not None
        assert status is not None
        self.pending = None
        try:
            answer = read_reply(pending.child)
        finally:
            pending.child.close()
        if answer.kind == "unread":  # no answer of the policy's: asked again, as after any trouble
            raise UnreadError(answer.payload["reason"])
        scored = pending.observation.evaluations[-1]
        observed = read_observed(answer.observed) if answer.observed else None
        if observed is not None:
            self._note_steering(observed.steering, scored)
        elif answer.kind == "proposal":  # the vetoes would be left out
            answer = Answer("failed", {"reason": "it proposed before it had observed anything"})
        guarded = make_decision(
            answer,
            pending.observation,
            self.run.config,
            status=status,
            last_intervention=queries.last_applied_tokens(self.run.journal),
            generation=self.mixture_file.next_generation(status),
            vetoes=observed.vetoes if observed is not None else (),
            standing=observed.standing if observed is not None else None,
            pins=pinned_shares(self.run.journal, self.run.config),
            overtaken=self._overtaken(state, pending),
            forced=is_forced(self.run.journal),
            waiting=self._waiting(),
        )
        evaluation = queries.evaluation(self.run.journal, scored.step)
        decision = replace(
            bounded(guarded, self.run.config.run.id),
            policy=guarded.policy or self.run.config.policy.use,
            step=scored.step,
            tokens=scored.tokens,
            observation_digest=observed.digest if observed is not None else None,
            policy_digest=answer.digest,
            experiments_known=pending.known,
            scored_at=evaluation.finished_at if evaluation is not None else None,
        )
        name = records.decision(
            self.run.journal,
            decision,
            scores=scores(scored),
            started_ms=pending.started_ms,
            seen=pending.observation,
        )
        self.run.say(f"{name} {decision.verdict}: {decision.reason}")

    def _waiting(self) -> DecisionRow | None:
        """The decision that waits for a person; a newer one ends the wait of those before it."""
        waiting = queries.waiting_approvals(self.run.journal)
        return waiting[-1][0] if waiting else None

    def _overtaken(self, state: RunState, pending: PendingDecision) -> str:
        """Why the answer no longer counts; empty if it does."""
        if state.paused:
            return "an operator paused decisions meanwhile"
        if queries.highest_generation(self.run.journal) > pending.newest:
            return "another order was given meanwhile"
        return ""

    def _note_steering(self, chosen: Mapping[str, Steering], newest: Evaluation) -> None:
        """Before the decision that it bears on; a repeat after a crash finds nothing new."""
        changed = records.steering(self.run.journal, newest.step, newest.tokens, chosen)
        for name, steering in changed.items():
            self.run.say(f"from step {newest.step} {steering.metric} steers {name}: {steering.why}")

    def drop(self) -> None:
        """Ask no further: the run is let go, or what the policy looked at is no more."""
        if self.pending is not None:
            self.pending.child.close()
            self.pending = None
        if self._ready is not None:
            self._ready.close()
            self._ready = None
