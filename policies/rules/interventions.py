"""Looking at one rule: is it awake, do its conditions hold, and what keeps it from firing.

What ``rules`` answers, with reasons that read as sentences and the evidence behind them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mixloop.common.units import format_tokens
from mixloop.policies.interface import Hold, Observation, PastDecision, Proposal, jsonable
from mixloop.policies.mixture import in_force, rules_of, total_variation

from .condition_result import ConditionResult
from .conditions import run_checks
from .moves import Moved
from .options import Intervention
from .trials import UNDO, TrialStatus, standing

# a change that waits for a person, or that a person turned down, must not be asked for again at
# the next checkpoint
FIRED = ("intervene", "awaiting-approval", "rejected", "expired")


@dataclass(frozen=True)
class RuleStatus:
    """One rule looked at: what keeps it from firing, if anything."""

    rule: Intervention
    resting: str = ""
    checks: tuple[ConditionResult, ...] = ()
    trial: TrialStatus | None = None

    @property
    def holds(self) -> bool:
        return not self.resting and all(check.outcome == "holds" for check in self.checks)

    @property
    def undecided(self) -> bool:
        """Nothing speaks against it, but something couldn't be told."""
        outcomes = {check.outcome for check in self.checks}
        return not self.resting and "inconclusive" in outcomes and "fails" not in outcomes

    @property
    def untold(self) -> bool:
        """Its trial ended, or goes on, without an answer."""
        return self.trial is not None and not self.trial.told

    def tested(self) -> list[ConditionResult]:
        """The checks that measured a benchmark's change, and could have been wrong by chance."""
        return [check for check in self.checks if "claim" in check.evidence]

    def claims(self) -> list[dict[str, Any]]:
        """What its firing rests on, in the form that ``evidence`` documents. A trial was judged
        when it ended, by its own z."""
        return [{"what": c.text.split(" (")[0], "z": c.evidence["claim"]} for c in self.tested()]

    @property
    def gap(self) -> float:
        return max((check.gap for check in self.checks), default=0.0)


def check_rule(rule: Intervention, observation: Observation) -> RuleStatus:
    """The rule's conditions, or why it isn't to be looked at now."""
    trial = standing(rule, observation) if rule.trial else None
    resting = _resting(rule, observation) or _waiting(trial)
    if resting:
        return RuleStatus(rule, resting, trial=trial)
    checks = [check for condition in rule.when for check in run_checks(condition, observation)]
    return RuleStatus(rule, "", tuple(checks), trial)


def _waiting(trial: TrialStatus | None) -> str:
    """Why a rule with a trial may not fire now."""
    if trial is None or trial.state in ("ready", "confirmed"):
        return ""
    return trial.text


def _resting(rule: Intervention, observation: Observation) -> str:
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


def to_initial(observation: Observation, initial: Mapping[str, float]) -> Proposal:
    left = total_variation(in_force(observation), initial)
    weights = {name: initial.get(name, 0.0) for name in observation.sources}
    reason = f"initial: to the mixture configured, {left:.3g} of the tokens to move"
    evidence = {"rule": "initial", "rules": ["initial"], "distance": left}
    return Proposal(weights, reason, evidence=evidence)


def undo(finding: RuleStatus) -> Proposal:
    """Back to the mixture before a trial, to see the difference."""
    trial = finding.trial
    assert trial is not None
    assert trial.decision is not None
    name = UNDO + finding.rule.name
    before = trial.decision.weights_before
    return Proposal(before, f"{name}: {trial.text}", evidence={"rule": name, "rules": [name]})


def propose(moved: list[tuple[RuleStatus, Moved]], tests: int = 0) -> Proposal:
    """The moves of one decision; ``tests`` are the findings that were looked for at it."""
    reasons = []
    for finding, done in moved:
        trial = finding.trial.text if finding.trial and finding.trial.state == "confirmed" else ""
        texts = [text for text in (trial, *(check.text for check in finding.checks)) if text]
        seen = " and ".join(texts) or finding.rule.name
        reasons.append(f"{seen}: {done}")
    first = moved[0][0]
    names = [finding.rule.name for finding, _ in moved]
    checks = [check.evidence for finding, _ in moved for check in finding.checks]
    evidence = {
        **_leading(first.checks),
        "rule": first.rule.name,
        "rules": names,
        "conditions": checks,
        "moves": [done.gains for _, done in moved],
    }
    claims = [claim for finding, _ in moved for claim in finding.claims()]
    if claims:
        evidence |= {"claims": claims, "tests": max(tests, len(claims))}
    confirmed = [f for f, _ in moved if f.trial is not None and f.trial.state == "confirmed"]
    if confirmed:
        evidence["confirmed"] = [finding.rule.name for finding in confirmed]
        evidence["trial"] = confirmed[0].trial.evidence if confirmed[0].trial else {}
    return Proposal(moved[-1][1].weights, "; ".join(reasons), evidence=jsonable(evidence))


def hold(findings: list[RuleStatus], stuck: list[tuple[RuleStatus, str]]) -> Hold:
    """Says the nearest thing to an intervention there was."""
    if stuck:
        finding, why = stuck[0]
        seen = " and ".join(check.text for check in finding.checks) or finding.rule.name
        return Hold(f"{finding.rule.name}: {seen}, but {why}", _of(finding))
    awake = [finding for finding in findings if not finding.resting]
    undecided = [finding for finding in awake if finding.undecided]
    if undecided:
        nearest = min(undecided, key=lambda finding: finding.gap)
        open_ = next(c for c in nearest.checks if c.outcome == "inconclusive")
        return Hold(f"{nearest.rule.name}: {open_.text}", _of(nearest), "inconclusive")
    untold = [finding for finding in findings if finding.untold and finding.trial]
    if untold:
        text = "; ".join(f"{f.rule.name} {f.trial.text}" for f in untold if f.trial)
        return Hold(text, {"trials": [f.rule.name for f in untold]}, "inconclusive")
    if awake:
        nearest = min(awake, key=lambda finding: finding.gap)
        failing = max((c for c in nearest.checks if c.outcome != "holds"), key=lambda c: c.gap)
        return Hold(f"no rule holds; nearest {nearest.rule.name}: {failing.text}", _of(nearest))
    if findings:
        resting = "; ".join(f"{f.rule.name} {f.resting}" for f in findings)
        return Hold(f"every rule rests: {resting}", {"resting": resting})
    return Hold("rules: no interventions are configured")


def _of(finding: RuleStatus) -> dict[str, Any]:
    """A hold's evidence. ``nearest`` rather than ``rule``: nothing fired."""
    checks = [check.evidence for check in finding.checks]
    evidence = {**_leading(finding.checks), "nearest": finding.rule.name, "conditions": checks}
    return dict(jsonable(evidence))


def _leading(checks: Sequence[ConditionResult]) -> dict[str, Any]:
    """The evidence of the first check that measured a benchmark."""
    return next((check.evidence for check in checks if "benchmark" in check.evidence), {})
