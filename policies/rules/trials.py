"""Interventions on trial: made and taken back, then judged by how the benchmarks answered.

A run has no control group; going to and fro gives it one (a crossover design). What helps at first
helps less the more there is of it, and at some point harms without any score that falls: a proven
rule goes twice as far as it was tried, and then has to prove itself again from there. Everything is
recomputed from the decisions and evaluations so far; nothing is remembered.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from math import fsum
from statistics import median
from typing import Any, Literal

from mixloop.common.paired import welch, z_of
from mixloop.policies.evidence import objective_metric, objective_weights, trajectory_noise
from mixloop.policies.interface import (
    Evaluation,
    MissingScore,
    Observation,
    PastDecision,
    find_metric,
    finite_metric,
)
from mixloop.policies.mixture import in_force, rules_of, total_variation

from .options import Intervention, Trial
from .response import MIN_EVALUATIONS, response

State = Literal["ready", "running", "ending", "judging", "confirmed", "over"]
UNDO = "undo "
TOLERANCE = 1e-3  # total variation: quantisation, and guards that trim dust
REACH = 2  # times as far as it was tried, that a proven rule may go before it is tried again


@dataclass(frozen=True)
class TrialStatus:
    """Where a rule's trial stands.

    ready: it may fire, on trial. running: its evaluations are not all there. ending: its firing,
    ``decision``, is to be taken back. judging: the evaluations after that are not all there.
    confirmed: it may fire freely. over: it has been tried often enough, without proof.
    ``answered``: not waiting for an answer, or over without one. ``evidence``: the effect on which
    a trial was judged, with its noise, whatever the judgement was.
    """

    state: State
    text: str = ""
    decision: PastDecision | None = None
    answered: bool = True
    evidence: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class TrialVerdict:
    """What an exposure of 1 would have gained on the trend: positive is better."""

    gain: float
    stderr: float
    df: float
    metric: str

    @property
    def z(self) -> float:
        """The gain's normal score."""
        return z_of(self.gain, self.stderr, self.df)

    def __str__(self) -> str:
        return f"gain {self.gain:.2g} ±{self.stderr:.2g} per whole share, z {self.z:.2g}"


@dataclass(frozen=True)
class _TrialPeriod:
    """One firing on trial, and the order that ended it (None while it is in force)."""

    fired: PastDecision
    ended: PastDecision | None = None


def trial_status(rule: Intervention, observation: Observation) -> TrialStatus:
    """Where the trial of a rule that has one stands."""
    trial = rule.trial
    assert trial is not None
    proven, periods = _since_proof(rule, _periods(rule, observation))
    if proven and not periods and _reach(proven, observation) < REACH - TOLERANCE:
        return TrialStatus("confirmed")
    since = proven[-1].fired.tokens if proven else 0
    evaluations = [e for e in observation.evaluations if e.tokens > since]
    if not periods:
        have = len(evaluations)
        few = f"{have} of the {trial.least} evaluations that a trend needs"
        if proven:
            few = f"{REACH} times as far as it was tried: to be tried again, {few}"
        return TrialStatus("ready") if have >= trial.least else TrialStatus("judging", few)
    # an earlier period that had proven the rule would be named by the firings after it
    last = _status_of(trial, periods, evaluations, observation)
    if last.state == "over" and len(periods) < trial.times:
        return TrialStatus("ready", last.text, answered=False, evidence=last.evidence)
    return last


def _since_proof(
    rule: Intervention, periods: Sequence[_TrialPeriod]
) -> tuple[list[_TrialPeriod], list[_TrialPeriod]]:
    """The last trial that proved the rule with the firings that it allowed, and those since."""

    def allowed(period: _TrialPeriod) -> bool:
        names = period.fired.evidence.get("confirmed")
        return isinstance(names, list) and rule.name in names

    free = [index for index, period in enumerate(periods) if allowed(period)]
    if not free:
        return [], list(periods)
    first = last = free[-1]
    while first > 0 and allowed(periods[first]):
        first -= 1
    return list(periods[first : last + 1]), list(periods[last + 1 :])


def _reach(proven: Sequence[_TrialPeriod], observation: Observation) -> float:
    """How many times as far as the trial went any source that it raised is by now."""
    tried, now = proven[0].fired, in_force(observation)
    before, after = tried.weights_before, tried.weights_after or {}
    raised = {name: after[name] - before.get(name, 0.0) for name in _raised(tried)}
    gone = ((now.get(name, 0.0) - before.get(name, 0.0)) / by for name, by in raised.items())
    return max(gone, default=0.0)


def _raised(fired: PastDecision) -> list[str]:
    before, after = fired.weights_before, fired.weights_after or {}
    return [name for name, weight in after.items() if weight > before.get(name, 0.0) + 1e-9]


def _periods(rule: Intervention, observation: Observation) -> list[_TrialPeriod]:
    """The rule's firings up to now, each with the next order of anybody."""
    orders = observation.interventions()
    pairs = zip(orders, [*orders[1:], None], strict=False)
    return [_TrialPeriod(fired, ended) for fired, ended in pairs if rule.name in rules_of(fired)]


def _status_of(
    trial: Trial,
    periods: Sequence[_TrialPeriod],
    evaluations: Sequence[Evaluation],
    observation: Observation,
) -> TrialStatus:
    """Where the last period stands; it is judged on ``evaluations``."""
    last = periods[-1]
    begun = last.ended or last.fired
    since = [e for e in evaluations if e.tokens > begun.tokens]
    if last.ended is None:
        return _under_way(trial, last.fired, len(since), observation)
    if len(since) < trial.over:
        done = f"back from its trial: {len(since)} of {trial.over} evaluations"
        return TrialStatus("judging", done, answered=False)
    try:
        known = [e for e in evaluations if 0 < e.tokens <= since[trial.over - 1].tokens]
        verdict = _judge(trial, periods, known, observation)
    except MissingScore as missing:
        return TrialStatus("over", f"the trial can't be judged: {missing}", answered=False)
    evidence = {"gain": verdict.gain, "stderr": verdict.stderr, "z": verdict.z,
                "metric": verdict.metric}  # fmt: skip
    if verdict.z >= trial.z:
        return TrialStatus("confirmed", f"tried, {verdict}", evidence=evidence)
    answered = verdict.z <= -trial.z
    return TrialStatus("over", f"tried, {verdict}", answered=answered, evidence=evidence)


def _under_way(
    trial: Trial, fired: PastDecision, scored: int, observation: Observation
) -> TrialStatus:
    if scored < trial.over or not observation.in_force:
        done = f"on trial: {scored} of {trial.over} evaluations"
        return TrialStatus("running", done, fired, answered=False)
    if total_variation(in_force(observation), fired.weights_after or {}) > TOLERANCE:
        return TrialStatus("over", "on trial when another mixture came", answered=False)
    return TrialStatus("ending", f"{trial.over} evaluations on trial are made", fired)


def _judge(
    trial: Trial,
    periods: Sequence[_TrialPeriod],
    evaluations: Sequence[Evaluation],
    observation: Observation,
) -> TrialVerdict:
    """How the benchmarks answered to all trials so far.

    Raises:
        MissingScore: when no benchmark has enough scores, or the exposure can't be told.
    """
    first = periods[0].fired
    before, raised = first.weights_before, _raised(first)
    weights = dict.fromkeys(trial.of, 1.0) if trial.of else objective_weights(observation)
    metric = observation.common_metric(trial.of) if trial.of else objective_metric(observation)
    parts = []
    for benchmark, weight in weights.items():
        scored = [e for e in evaluations if finite_metric(e, benchmark, metric) is not None]
        if weight <= 0 or len(scored) < MIN_EVALUATIONS:
            continue
        answer = response(
            [float(e.tokens) for e in scored],
            [find_metric(e, benchmark, metric).loss for e in scored],
            _exposures(scored, raised, before),
            _noise(observation, benchmark, metric, scored),
        )
        if answer is not None:
            parts.append((weight, answer))
    if not parts:
        raise MissingScore(f"no benchmark has {metric} often enough")
    total = fsum(weight for weight, _ in parts)
    gain = -fsum(weight * answer.slope for weight, answer in parts) / total
    errors = [weight * answer.stderr / total for weight, answer in parts]
    df = welch([error**2 for error in errors], [answer.df for _, answer in parts])
    return TrialVerdict(gain, math.hypot(*errors), df, metric)


def _exposures(
    scored: Sequence[Evaluation], raised: Sequence[str], usual: Mapping[str, float]
) -> list[float]:
    """The raised sources' share of the tokens up to each evaluation, above the usual one."""
    base = fsum(usual.get(name, 0.0) for name in raised)
    exposures = [0.0]
    for older, newer in pairwise(scored):
        spent = newer.tokens - older.tokens
        if older.drawn and newer.drawn and spent > 0:
            drawn = (newer.drawn.get(n, 0.0) - older.drawn.get(n, 0.0) for n in raised)
            exposures.append(fsum(drawn) / spent - base)
        else:
            exposures.append(fsum(newer.weights.get(name, 0.0) for name in raised) - base)
    return exposures


def _noise(
    observation: Observation, benchmark: str, metric: str, evaluations: Sequence[Evaluation]
) -> float:
    """Standard deviation of one evaluation's noise: the items' and the trajectory's.

    What makes an item hard is in all of them and cancels: the items' part is taken from paired
    differences of neighbours.
    """
    spreads = []
    for older, newer in pairwise(evaluations):
        try:
            spreads.append(observation.difference(benchmark, older, newer, metric).stderr)
        except MissingScore:
            continue
    finite = [spread for spread in spreads if math.isfinite(spread)]
    items = median(finite) / math.sqrt(2) if finite else 0.0
    return math.hypot(items, trajectory_noise(observation, benchmark, metric).stderr)
