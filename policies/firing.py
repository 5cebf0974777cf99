"""Looking at one rule: is it awake, do its conditions hold, and what keeps it from firing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .checks import Check
from .conditions import run_checks
from .mixtures import rules_of
from .observation import Observation, PastDecision
from .rules_options import Intervention
from .trials import UNDO, Standing, standing
from .units import format_tokens

# a change that waits for a person, or that a person turned down, must not be asked for again at
# the next checkpoint
FIRED = ("intervene", "awaiting-approval", "rejected", "expired")


@dataclass(frozen=True)
class Finding:
    """One rule looked at: what keeps it from firing, if anything."""

    rule: Intervention
    resting: str = ""
    checks: tuple[Check, ...] = ()
    trial: Standing | None = None

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

    def tested(self) -> list[Check]:
        """The checks that measured a benchmark's change, and could have been wrong by chance."""
        return [check for check in self.checks if "claim" in check.evidence]

    def claims(self) -> list[dict[str, Any]]:
        """What its firing rests on, in the form that ``evidence`` documents. A trial was judged
        when it ended, by its own z."""
        return [{"what": c.text.split(" (")[0], "z": c.evidence["claim"]} for c in self.tested()]

    @property
    def gap(self) -> float:
        return max((check.gap for check in self.checks), default=0.0)


def examine(rule: Intervention, observation: Observation) -> Finding:
    """The rule's conditions, or why it isn't to be looked at now."""
    trial = standing(rule, observation) if rule.trial else None
    resting = _resting(rule, observation) or _waiting(trial)
    if resting:
        return Finding(rule, resting, trial=trial)
    checks = [check for condition in rule.when for check in run_checks(condition, observation)]
    return Finding(rule, "", tuple(checks), trial)


def _waiting(trial: Standing | None) -> str:
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
