"""How a loss answered to an exposure, against the trend it would have followed without.

``value = a + b s^-alpha + e E`` over the evaluations of a run, ``s = t + t0`` in tokens
(``t0`` for what was known before), where ``E`` adds up the exposure (extra share of some sources)
in each stretch, weighed by the stretch's part of the trend:
``sum x ((s_before)^-alpha - (s_after)^-alpha) / alpha``. The coefficients come from least squares
for each of a grid of exponents and offsets and are averaged over it by how well they fit (Bayesian
model averaging with equal priors, Hoeting et al. 1999, *Statistical Science* 14): not knowing the
trend widens the answer as it should. An exposure that goes to and fro (a crossover design) is told
apart from any smooth trend.


Interventions on trial: made and taken back, then judged by how the benchmarks answered.

A run has no control group; going to and fro gives it one (a crossover design). Everything is
recomputed from the decisions and evaluations so far; nothing is remembered.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from math import fsum
from statistics import median
from typing import TYPE_CHECKING, Any, Literal

from mixloop.policies.evidence import objective_metric, objective_weights
from mixloop.policies.interface import (
    Evaluation,
    MissingScore,
    Observation,
    PastDecision,
    find_metric,
)
from mixloop.policies.mixture import in_force, rules_of, total_variation

from .options import Intervention, Trial

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

# close together: what a grid leaves between its points looks like an answer too
EXPONENTS = (0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.6, 0.7, 0.85, 1.0)
# in tokens of the first evaluation; without any, a start less steep than a power law's looks like
# an answer to what was tried first
OFFSETS = (0.0, 0.15, 0.3, 0.45, 0.6, 0.8, 1.0, 1.5)
COEFFICIENTS = 3
LEAST = 6  # evaluations: the coefficients and two more


@dataclass(frozen=True)
class Response:
    """Change of the value per unit of exposure, and its standard error."""

    slope: float
    stderr: float


def response(
    tokens: Sequence[float], values: Sequence[float], exposures: Sequence[float], noise: float
) -> Response | None:
    """The coefficient ``e``; None with too few evaluations or no exposure that can be told.

    Args:
        tokens: training tokens of each evaluation, rising, above 0; shape (n,).
        values: what was measured at each; shape (n,).
        exposures: extra share in the stretch that ends at each; shape (n,), the first is ignored.
        noise: standard deviation of a measurement. Where the model fits worse than that, what it
            leaves over is taken instead.
    """
    import numpy as np

    n = len(values)
    if n < LEAST or max(exposures[1:]) - min(exposures[1:]) < 1e-3:
        return None
    times = np.asarray(tokens) / tokens[0]
    measured, given = np.asarray(values, float), np.asarray(exposures, float)
    shapes = [(exponent, offset) for exponent in EXPONENTS for offset in OFFSETS]
    misfits, slopes, units = _fits(
        np.stack([_design(times, given, *one) for one in shapes]), measured
    )
    least = float(misfits.min())
    variance = max(noise**2, least / (n - COEFFICIENTS), 1e-30)
    trust = np.exp(-(misfits - least) / (2 * variance))
    shares = trust / trust.sum()
    slope = float(shares @ slopes)
    spread = float(shares @ (variance * units + (slopes - slope) ** 2))
    return Response(slope, math.sqrt(spread)) if math.isfinite(spread) else None


def _design(times: Floats, given: Floats, exponent: float, offset: float) -> Floats:
    """Columns of a constant, the trend, and the exposure weighed by it; shape (n, 3)."""
    import numpy as np

    shape = (times + offset) ** -exponent
    steps = np.concatenate([[0.0], given[1:] * (shape[:-1] - shape[1:]) / exponent])
    return np.stack([np.ones(len(times)), shape, np.cumsum(steps)], axis=1)


def _fits(designs: Floats, measured: Floats) -> tuple[Floats, Floats, Floats]:
    """Of designs (G, n, 3): misfits, exposure coefficients, their variances at unit noise; (G,)."""
    import numpy as np

    q, r = np.linalg.qr(designs)
    told = abs(np.diagonal(r, axis1=1, axis2=2)).min(axis=1) >= 1e-12
    inverse = np.linalg.inv(np.where(told[:, None, None], r, np.eye(COEFFICIENTS)))
    found = np.einsum("gij,gnj,n->gi", inverse, q, measured)
    misfits = ((measured - np.einsum("gni,gi->gn", designs, found)) ** 2).sum(axis=1)
    spreads = (inverse[:, -1] ** 2).sum(axis=1)
    # a shape that can't tell the exposure from the trend has no say
    return np.where(told, misfits, 1e30), found[:, -1], spreads


State = Literal["ready", "running", "ending", "judging", "confirmed", "over"]
UNDO = "undo "
# quantisation, and guards that trim dust
SAME = 1e-3


@dataclass(frozen=True)
class TrialStatus:
    """Where a rule's trial stands.

    ready: it may fire, on trial. running: its evaluations are not all there. ending: its firing,
    ``decision``, is to be taken back. judging: the evaluations after that are not all there.
    confirmed: it may fire freely. over: it has been tried often enough, without proof.
    """

    state: State
    text: str = ""
    decision: PastDecision | None = None
    told: bool = True
    evidence: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class TrialVerdict:
    """What an exposure of 1 would have gained on the trend, and whether that is told apart from
    nothing: positive is better."""

    gain: float
    stderr: float
    metric: str

    @property
    def z(self) -> float:
        """The gain in standard errors."""
        return self.gain / self.stderr if self.stderr > 0 else 0.0

    def __str__(self) -> str:
        return f"gain {self.gain:.2g} ±{self.stderr:.2g} per whole share, z {self.z:.2g}"


@dataclass(frozen=True)
class _TrialPeriod:
    """One firing on trial, and the order that ended it (None while it is in force)."""

    fired: PastDecision
    ended: PastDecision | None = None


def standing(rule: Intervention, observation: Observation) -> TrialStatus:
    """Where the trial of a rule that has one stands."""
    trial = rule.trial
    assert trial is not None
    rounds = _rounds(rule, observation)
    if any(rule.name in _proven(one.fired) for one in rounds):
        return TrialStatus("confirmed")
    if not rounds:
        have = len(observation.evaluations)
        few = f"{have} of the {trial.least} evaluations that a trend needs"
        return TrialStatus("ready") if have >= trial.least else TrialStatus("judging", few)
    # an earlier round that had proven the rule would be named by the firings after it
    last = _stands(trial, rounds[-1], rounds, observation)
    if last.state == "over" and len(rounds) < trial.times:
        return TrialStatus("ready", last.text, told=False)
    return last


def _proven(decision: PastDecision) -> list[Any]:
    """The rules that had been confirmed when a decision was made."""
    found = decision.evidence.get("confirmed")
    return found if isinstance(found, list) else []


def _rounds(rule: Intervention, observation: Observation) -> list[_TrialPeriod]:
    """The rule's firings up to now, each with the next order of anybody."""
    ordered = [d for d in observation.decisions if d.verdict == "intervene"]
    found = []
    for place, decision in enumerate(ordered):
        if rule.name in rules_of(decision):
            found.append(_TrialPeriod(decision, next(iter(ordered[place + 1 :]), None)))
    return found


def _stands(
    trial: Trial, one: _TrialPeriod, rounds: Sequence[_TrialPeriod], observation: Observation
) -> TrialStatus:
    since = _after(one.ended or one.fired, observation)
    if one.ended is None:
        return _under_way(trial, one.fired, len(since), observation)
    if len(since) < trial.over:
        done = f"back from its trial: {len(since)} of {trial.over} evaluations"
        return TrialStatus("judging", done, told=False)
    try:
        until = since[trial.over - 1]
        verdict = judge(trial, rounds, until, observation)
    except MissingScore as missing:
        return TrialStatus("over", f"the trial can't be judged: {missing}", told=False)
    evidence = {"gain": verdict.gain, "stderr": verdict.stderr, "z": verdict.z,
                "metric": verdict.metric}  # fmt: skip
    if verdict.z >= trial.z:
        return TrialStatus("confirmed", f"tried, {verdict}", evidence=evidence)
    told = verdict.z <= -trial.z
    return TrialStatus("over", f"tried, {verdict}", told=told, evidence=evidence)


def _under_way(
    trial: Trial, fired: PastDecision, scored: int, observation: Observation
) -> TrialStatus:
    if scored < trial.over or not observation.in_force:
        done = f"on trial: {scored} of {trial.over} evaluations"
        return TrialStatus("running", done, fired, told=False)
    if total_variation(in_force(observation), fired.weights_after or {}) > SAME:
        return TrialStatus("over", "on trial when another mixture came", told=False)
    return TrialStatus("ending", f"{trial.over} evaluations on trial are made", fired)


def _after(decision: PastDecision, observation: Observation) -> list[Evaluation]:
    return [e for e in observation.evaluations if e.tokens > decision.tokens]


def judge(
    trial: Trial, rounds: Sequence[_TrialPeriod], until: Evaluation, observation: Observation
) -> TrialVerdict:
    """How the benchmarks answered to all trials so far.

    Raises:
        MissingScore: when no benchmark has enough scores, or the exposure can't be told.
    """
    seen = [e for e in observation.evaluations if 0 < e.tokens <= until.tokens]
    first = rounds[0].fired
    raised = _raised(first.weights_before, first.weights_after or {})
    weights = dict.fromkeys(trial.of, 1.0) if trial.of else objective_weights(observation)
    metric = observation.common_metric(trial.of) if trial.of else objective_metric(observation)
    parts = []
    for benchmark, weight in weights.items():
        scored = [e for e in seen if _has(e, benchmark, metric)]
        if weight <= 0 or len(scored) < LEAST:
            continue
        found = response(
            [float(e.tokens) for e in scored],
            [find_metric(e, benchmark, metric).value for e in scored],
            _exposures(scored, raised, first.weights_before),
            _noise(observation, benchmark, metric, scored),
        )
        if found is not None:
            better = find_metric(scored[-1], benchmark, metric).higher_is_better
            parts.append((weight, found.slope if better else -found.slope, found.stderr))
    if not parts:
        raise MissingScore(f"no benchmark has {metric} often enough")
    total = fsum(weight for weight, _, _ in parts)
    gain = fsum(weight * slope for weight, slope, _ in parts) / total
    stderr = math.hypot(*(weight * spread for weight, _, spread in parts)) / total
    return TrialVerdict(gain, stderr, metric)


def _raised(before: Mapping[str, float], after: Mapping[str, float]) -> list[str]:
    """The sources that a firing gave to."""
    return [name for name, weight in after.items() if weight > before.get(name, 0.0) + 1e-9]


def _exposures(
    scored: Sequence[Evaluation], raised: Sequence[str], usual: Mapping[str, float]
) -> list[float]:
    """The raised sources' share of the tokens up to each evaluation, above the usual one."""
    base = fsum(usual.get(name, 0.0) for name in raised)
    found = [0.0]
    for older, newer in pairwise(scored):
        spent = newer.tokens - older.tokens
        if older.drawn and newer.drawn and spent > 0:
            gone = (newer.drawn.get(n, 0.0) - older.drawn.get(n, 0.0) for n in raised)
            found.append(fsum(gone) / spent - base)
        else:
            found.append(fsum(newer.weights.get(name, 0.0) for name in raised) - base)
    return found


def _has(evaluation: Evaluation, benchmark: str, metric: str) -> bool:
    score = evaluation.benchmarks.get(benchmark)
    found = score.metrics.get(metric) if score is not None else None
    return found is not None and math.isfinite(found.value)


def _noise(
    observation: Observation, benchmark: str, metric: str, evaluations: Sequence[Evaluation]
) -> float:
    """Standard deviation of one evaluation's noise: what makes an item hard is in all of them and
    cancels, so it is taken from paired differences of neighbours."""
    spreads = []
    for older, newer in pairwise(evaluations):
        try:
            spreads.append(observation.difference(benchmark, older, newer, metric).stderr)
        except MissingScore:
            continue
    finite = [spread for spread in spreads if math.isfinite(spread)]
    return median(finite) / math.sqrt(2) if finite else 0.0
