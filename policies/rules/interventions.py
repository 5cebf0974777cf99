"""Looking at one rule: is it awake, do its conditions hold; and what ``rules`` answers then.

Answers come with reasons that read as sentences and the evidence behind them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mixloop.common.units import format_tokens
from mixloop.policies.interface import Hold, Observation, PastDecision, Proposal, jsonable
from mixloop.policies.mixture import rules_of

from .condition_result import ConditionResult
from .moves import Moved
from .options import Intervention
from .trials import UNDO, TrialStatus, trial_status

# a change that waits for a person, or that a person turned down, must not be asked for again at
# the next checkpoint
FIRED = ("intervene", "awaiting-approval", "rejected", "expired")


@dataclass(frozen=True)
class RuleStatus:
    """One rule looked at: what keeps it from firing, if anything."""

    rule: Intervention
    inactive: str = ""
    results: tuple[ConditionResult, ...] = ()
    trial: TrialStatus | None = None

    @property
    def holds(self) -> bool:
        """Whether it may fire."""
        return not self.inactive and all(result.outcome == "holds" for result in self.results)

    @property
    def undecided(self) -> bool:
        """Nothing speaks against it, but something couldn't be told."""
        outcomes = {result.outcome for result in self.results}
        return not self.inactive and "inconclusive" in outcomes and "fails" not in outcomes

    def in_trial(self, *states: str) -> bool:
        """Whether it has a trial in one of these states."""
        return self.trial is not None and self.trial.state in states

    def tested(self) -> list[ConditionResult]:
        """The results that measured a benchmark's change, and could have been wrong by chance."""
        return [result for result in self.results if "claim" in result.evidence]

    def claims(self) -> list[dict[str, Any]]:
        """What its firing rests on, as ``evidence.significance`` documents it.

        A trial was judged when it ended, by its own z.
        """
        return [{"what": r.text.split(" (")[0], "z": r.evidence["claim"]} for r in self.tested()]

    def evidence(self) -> dict[str, Any]:
        """That of the first result that measured a benchmark."""
        each = (result.evidence for result in self.results)
        return next((evidence for evidence in each if "benchmark" in evidence), {})

    @property
    def gap(self) -> float:
        """How far from holding it is."""
        return max((result.gap for result in self.results), default=0.0)


def check_rule(rule: Intervention, observation: Observation) -> RuleStatus:
    """The rule's conditions, or why it isn't to be looked at now."""
    trial = trial_status(rule, observation) if rule.trial else None
    inactive = why_inactive(rule, observation)
    if not inactive and trial is not None and trial.state not in ("ready", "confirmed"):
        inactive = trial.text
    if inactive:
        return RuleStatus(rule, inactive, trial=trial)
    results = [result for condition in rule.when for result in condition.check(observation)]
    return RuleStatus(rule, "", tuple(results), trial)


def why_inactive(rule: Intervention, observation: Observation) -> str:
    """Why a rule isn't to be looked at now; empty when it is."""
    now = observation.tokens
    if now < rule.after:
        return f"starts at {format_tokens(rule.after)} tokens"
    if rule.until is not None and now >= rule.until:
        return f"ended at {format_tokens(rule.until)} tokens"
    if rule.phases is not None and observation.phase not in rule.phases:
        return f"only in {' or '.join(rule.phases)}, now {observation.phase or 'unknown'}"
    names = {rule.name, UNDO + rule.name}
    past = [d for d in observation.decisions if rules_of(d) & names and d.verdict in FIRED]
    fired = [d for d in past if rule.name in rules_of(d)]
    times = sum(decision.verdict == "intervene" for decision in fired)
    most = 1 if rule.once else rule.max_times
    if most is not None and times >= most:
        return f"fired {times} of {most} times"
    return _cooling(rule, past[-1], observation) if past else ""


def _cooling(rule: Intervention, last: PastDecision, observation: Observation) -> str:
    since = observation.tokens - last.tokens
    if since < rule.cooldown.tokens:
        least = format_tokens(rule.cooldown.tokens)
        return f"cooling down: {format_tokens(since)} of {least} tokens"
    scored = sum(evaluation.step > last.step for evaluation in observation.evaluations)
    if scored < rule.cooldown.evaluations:
        return f"cooling down: {scored} of {rule.cooldown.evaluations} evaluations"
    return ""


def undo(status: RuleStatus) -> Proposal:
    """Back to the mixture before a trial, to see the difference."""
    trial = status.trial
    assert trial is not None
    assert trial.decision is not None
    name = UNDO + status.rule.name
    before = trial.decision.weights_before
    return Proposal(before, f"{name}: {trial.text}", evidence={"rule": name, "rules": [name]})


def propose(moved: Sequence[tuple[RuleStatus, Moved]], tests: int) -> Proposal:
    """The moves of one decision; ``tests`` are the findings that were looked for at it."""
    reasons = []
    for status, move in moved:
        tried = [status.trial.text] if status.trial and status.in_trial("confirmed") else []
        texts = [text for text in (*tried, *(r.text for r in status.results)) if text]
        reasons.append(f"{' and '.join(texts) or status.rule.name}: {move}")
    first = moved[0][0]
    evidence = {
        **first.evidence(),
        "rule": first.rule.name,
        "rules": [status.rule.name for status, _ in moved],
        "conditions": [result.evidence for status, _ in moved for result in status.results],
        "moves": [move.gains for _, move in moved],
    }
    claims = [claim for status, _ in moved for claim in status.claims()]
    if claims:
        evidence |= {"claims": claims, "tests": max(tests, len(claims))}
    confirmed = [status for status, _ in moved if status.in_trial("confirmed")]
    if confirmed:
        evidence["confirmed"] = [status.rule.name for status in confirmed]
        evidence["trial"] = confirmed[0].trial.evidence if confirmed[0].trial else {}
    return Proposal(moved[-1][1].weights, "; ".join(reasons), evidence=jsonable(evidence))


def with_judgements(
    reply: Proposal | Hold, statuses: Sequence[RuleStatus], observation: Observation
) -> Proposal | Hold:
    """The answer, with what the trials that were judged showed: each is told once in words."""
    judged = {s.rule.name: s.trial for s in statuses if s.trial and s.trial.evidence}
    if not judged:
        return reply
    told = [d.evidence.get("judged") for d in observation.decisions]
    evidence = {name: {**trial.evidence, "text": trial.text} for name, trial in judged.items()}
    news = [
        f"{name} {trial.text}"
        for name, trial in judged.items()
        if trial.text not in reply.reason
        and not any(isinstance(old, dict) and old.get(name) == evidence[name] for old in told)
    ]
    reason = "; ".join([reply.reason, *news])
    shown = jsonable({**reply.evidence, "judged": evidence})
    return reply.model_copy(update={"reason": reason, "evidence": shown})


def hold(statuses: Sequence[RuleStatus], stuck: Sequence[tuple[RuleStatus, str]]) -> Hold:
    """Says the nearest thing to an intervention there was."""
    if stuck:
        status, why = stuck[0]
        holds = " and ".join(result.text for result in status.results) or status.rule.name
        return Hold(f"{status.rule.name}: {holds}, but {why}", _nearest(status))
    active = [status for status in statuses if not status.inactive]
    undecided = [status for status in active if status.undecided]
    if undecided:
        nearest = min(undecided, key=lambda status: status.gap)
        open_ = next(r for r in nearest.results if r.outcome == "inconclusive")
        return Hold(f"{nearest.rule.name}: {open_.text}", _nearest(nearest), "inconclusive")
    trials = [(s.rule.name, s.trial) for s in statuses if s.trial and not s.trial.answered]
    if trials:
        text = "; ".join(f"{name} {trial.text}" for name, trial in trials)
        return Hold(text, {"trials": [name for name, _ in trials]}, "inconclusive")
    if active:
        nearest = min(active, key=lambda status: status.gap)
        failing = max((r for r in nearest.results if r.outcome != "holds"), key=lambda r: r.gap)
        reason = f"no rule holds; nearest {nearest.rule.name}: {failing.text}"
        return Hold(reason, _nearest(nearest))
    if statuses:
        resting = "; ".join(f"{status.rule.name} {status.inactive}" for status in statuses)
        return Hold(f"every rule rests: {resting}", {"resting": resting})
    return Hold("rules: no interventions are configured")


def _nearest(status: RuleStatus) -> dict[str, Any]:
    """A hold's evidence. ``nearest`` rather than ``rule``: nothing fired."""
    conditions = [result.evidence for result in status.results]
    evidence = {**status.evidence(), "nearest": status.rule.name, "conditions": conditions}
    return dict(jsonable(evidence))
