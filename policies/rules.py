"""``rules``: interventions as a person would make them, written down in advance.

SmolLM2's authors watched the benchmarks of a run and moved points between sources by hand
(Allal et al. 2025); this is that method as a policy. The language is in ``rules_options``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .conditions import Check, run_checks
from .mixtures import check_names, in_force, rules_of, still_reaching, total_variation
from .moves import CannotMove, Moved, carry_out, check_move, giving, receiving, takes_rest
from .observation import Observation, PastDecision
from .protocol import Hold, Proposal, jsonable
from .rules_options import Condition, Intervention, RulesOptions
from .stages import carry_on, is_declared, stage_due, stage_names
from .units import format_tokens

# a change that waits for a person, or that a person turned down, must not be asked for again at
# the next checkpoint
_FIRED = ("intervene", "awaiting-approval", "rejected", "expired")


@dataclass(frozen=True)
class Finding:
    """One rule looked at: what keeps it from firing, if anything."""

    rule: Intervention
    resting: str = ""
    checks: tuple[Check, ...] = ()

    @property
    def holds(self) -> bool:
        return not self.resting and all(check.outcome == "holds" for check in self.checks)

    @property
    def undecided(self) -> bool:
        """Nothing speaks against it, but something couldn't be told."""
        outcomes = {check.outcome for check in self.checks}
        return not self.resting and "inconclusive" in outcomes and "fails" not in outcomes

    @property
    def gap(self) -> float:
        return max((check.gap for check in self.checks), default=0.0)


class Rules:
    """The first intervention whose conditions hold makes its move; otherwise hold."""

    Options = RulesOptions

    def __init__(self, options: RulesOptions | None = None) -> None:
        self.options = options or RulesOptions()

    def check(self, sources: Mapping[str, Sequence[str]], benchmarks: Sequence[str]) -> None:
        """Raise ``PolicyError`` for a source, tag (``sources``: name to tags) or benchmark that
        the run doesn't have."""
        check_names("source", self.options.initial or {}, sources, "policy.with.initial")
        for index, stage in enumerate(self.options.stages):
            check_names("source", stage.weights, sources, f"policy.with.stages.{index}.weights")
        for index, rule in enumerate(self.options.interventions):
            where = f"policy.with.interventions.{index}"
            check_move(rule.move, sources, f"{where}.move")
            for condition in rule.when:
                check_names("benchmark", _benchmarks(condition), benchmarks, f"{where}.when")

    def decide(self, observation: Observation) -> Proposal | Hold:
        """The move of the first rule that holds, with its evidence; or a hold that says which
        rule was nearest."""
        tags = {name: source.tags for name, source in observation.sources.items()}
        # before the first score nobody knows which benchmarks there are
        known = observation.benchmarks()
        self.check(tags, sorted(known or self._named_benchmarks()))
        initial = self.options.initial
        if initial is not None and still_reaching(observation, initial, "initial"):
            return _to_initial(observation, initial)
        stages = self.options.stages
        due = stage_due(stages, observation) if stages else None
        if due is not None:
            return due
        reply = self._intervene(observation)
        if not stages:
            return reply
        # whatever is ordered now, by this policy or the guards, carries the later stages along
        evidence = {**reply.evidence, "stages": stage_names(stages, observation)}
        if isinstance(reply, Hold):
            return Hold(reply.reason, evidence, reply.verdict)
        plan = carry_on(stages, observation, reply.weights)
        return Proposal(reply.weights, reply.reason, plan, evidence)

    def declares(
        self,
        observation: Observation,
        weights: Mapping[str, float],
        plan: Sequence[tuple[int, Mapping[str, float]]],
    ) -> bool:
        """Whether a proposal is nothing but what the configured stages declare."""
        return is_declared(self.options.stages, observation, weights, plan)

    def _intervene(self, observation: Observation) -> Proposal | Hold:
        findings = [_examine(rule, observation) for rule in self.options.interventions]
        firing = [finding for finding in findings if finding.holds]
        moved, stuck = self._move(firing, observation)
        return _propose(moved) if moved else _hold(findings, stuck)

    def _named_benchmarks(self) -> set[str]:
        conditions = (c for rule in self.options.interventions for c in rule.when)
        return {name for condition in conditions for name in _benchmarks(condition)}

    def _move(
        self, firing: list[Finding], observation: Observation
    ) -> tuple[list[tuple[Finding, Moved]], list[tuple[Finding, str]]]:
        """The moves to make, and the rules that hold but can't move, with the reason."""
        weights = in_force(observation)
        moved: list[tuple[Finding, Moved]] = []
        stuck: list[tuple[Finding, str]] = []
        given: set[str] = set()
        taken: set[str] = set()
        # "rest" spares every source that some move of this decision gives to
        spared = set() if not self.options.combine else _receivers(firing, observation)
        for finding in firing:
            move, rest = finding.rule.move, takes_rest(finding.rule.move)
            to = set(receiving(move, weights, observation.sources))
            named = set() if rest else {*giving(move, weights, observation.sources)}
            if to & taken or (named - to) & given:
                stuck.append((finding, "another rule's move goes the other way"))
                continue
            done = carry_out(move, weights, observation.sources, spared if rest else ())
            if isinstance(done, CannotMove):
                stuck.append((finding, done.why))
                continue
            moved.append((finding, done))
            if not self.options.combine:
                break
            weights = done.weights
            given |= {name for name, gain in done.gains.items() if gain > 0}
            taken |= {name for name, gain in done.gains.items() if gain < 0}
        return moved, stuck


def _receivers(firing: list[Finding], observation: Observation) -> set[str]:
    weights, sources = in_force(observation), observation.sources
    return {name for f in firing for name in receiving(f.rule.move, weights, sources)}


def _to_initial(observation: Observation, initial: Mapping[str, float]) -> Proposal:
    left = total_variation(in_force(observation), initial)
    weights = {name: initial.get(name, 0.0) for name in observation.sources}
    reason = f"initial: to the mixture configured, {left:.3g} of the tokens to move"
    evidence = {"rule": "initial", "rules": ["initial"], "distance": left}
    return Proposal(weights, reason, evidence=evidence)


def _examine(rule: Intervention, observation: Observation) -> Finding:
    resting = _resting(rule, observation)
    if resting:
        return Finding(rule, resting)
    checks = [check for condition in rule.when for check in run_checks(condition, observation)]
    return Finding(rule, "", tuple(checks))


def _resting(rule: Intervention, observation: Observation) -> str:
    """Why a rule isn't to be looked at now; empty when it is."""
    now = observation.tokens
    if now < rule.after:
        return f"starts at {format_tokens(rule.after)} tokens"
    if rule.until is not None and now >= rule.until:
        return f"ended at {format_tokens(rule.until)} tokens"
    if rule.phases is not None and observation.phase not in rule.phases:
        return f"only in {' or '.join(rule.phases)}, now {observation.phase or 'unknown'}"
    past = [d for d in observation.decisions if rule.name in rules_of(d) and d.verdict in _FIRED]
    times = sum(decision.verdict == "intervene" for decision in past)
    if rule.max_times is not None and times >= rule.max_times:
        return f"fired {times} of {rule.max_times} times"
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


def _propose(moved: list[tuple[Finding, Moved]]) -> Proposal:
    reasons = []
    for finding, done in moved:
        seen = " and ".join(check.text for check in finding.checks) or finding.rule.name
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
    return Proposal(moved[-1][1].weights, "; ".join(reasons), evidence=jsonable(evidence))


def _hold(findings: list[Finding], stuck: list[tuple[Finding, str]]) -> Hold:
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
    if awake:
        nearest = min(awake, key=lambda finding: finding.gap)
        failing = max((c for c in nearest.checks if c.outcome != "holds"), key=lambda c: c.gap)
        return Hold(f"no rule holds; nearest {nearest.rule.name}: {failing.text}", _of(nearest))
    if findings:
        resting = "; ".join(f"{f.rule.name} {f.resting}" for f in findings)
        return Hold(f"every rule rests: {resting}", {"resting": resting})
    return Hold("rules: no interventions are configured")


def _of(finding: Finding) -> dict[str, Any]:
    """A hold's evidence. ``nearest`` rather than ``rule``: nothing fired."""
    checks = [check.evidence for check in finding.checks]
    evidence = {**_leading(finding.checks), "nearest": finding.rule.name, "conditions": checks}
    return dict(jsonable(evidence))


def _leading(checks: Sequence[Check]) -> dict[str, Any]:
    """The evidence of the first check that measured a benchmark."""
    return next((check.evidence for check in checks if "benchmark" in check.evidence), {})


def _benchmarks(condition: Condition) -> list[str]:
    names: list[str] = []
    for spec in (condition.level, condition.trend):
        names += spec.benchmark if spec else ()
    return names + ([condition.lag.benchmark, *condition.lag.than] if condition.lag else [])
