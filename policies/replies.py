"""What ``rules`` answers, with reasons that read as sentences and the evidence behind them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .checks import Check
from .firing import Finding
from .mixtures import in_force, total_variation
from .moves import Moved
from .observation import Observation
from .protocol import Hold, Proposal, jsonable
from .trials import UNDO


def to_initial(observation: Observation, initial: Mapping[str, float]) -> Proposal:
    left = total_variation(in_force(observation), initial)
    weights = {name: initial.get(name, 0.0) for name in observation.sources}
    reason = f"initial: to the mixture configured, {left:.3g} of the tokens to move"
    evidence = {"rule": "initial", "rules": ["initial"], "distance": left}
    return Proposal(weights, reason, evidence=evidence)


def undo(finding: Finding) -> Proposal:
    """Back to the mixture before a trial, to see the difference."""
    trial = finding.trial
    assert trial is not None
    assert trial.decision is not None
    name = UNDO + finding.rule.name
    before = trial.decision.weights_before
    return Proposal(before, f"{name}: {trial.text}", evidence={"rule": name, "rules": [name]})


def propose(moved: list[tuple[Finding, Moved]], tests: int = 0) -> Proposal:
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


def hold(findings: list[Finding], stuck: list[tuple[Finding, str]]) -> Hold:
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


def _of(finding: Finding) -> dict[str, Any]:
    """A hold's evidence. ``nearest`` rather than ``rule``: nothing fired."""
    checks = [check.evidence for check in finding.checks]
    evidence = {**_leading(finding.checks), "nearest": finding.rule.name, "conditions": checks}
    return dict(jsonable(evidence))


def _leading(checks: Sequence[Check]) -> dict[str, Any]:
    """The evidence of the first check that measured a benchmark."""
    return next((check.evidence for check in checks if "benchmark" in check.evidence), {})
