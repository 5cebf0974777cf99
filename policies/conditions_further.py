"""More tests of ``rules``: plateau, regression, ratio of two benchmarks, ledger."""

from __future__ import annotations

import math
from typing import Any

from .checks import Check, directed, measured, span, tokens_of
from .condition_options import LedgerSpan, Plateau, Ratio, Regression
from .errors import PolicyError, suggest
from .ledger import GuardSource, epochs, project
from .mixtures import in_force
from .observation import MissingScore, Observation, find_metric
from .paired import Difference


def check_plateau(spec: Plateau, observation: Observation) -> Check:
    """Did the benchmark gain less per doubling of the tokens than ``part`` of what it did before?

    The two spans share an evaluation, whose noise enters both: the standard errors are added, which
    bounds what any correlation can make of them.
    """
    metric = spec.metric or observation.common_metric(spec.benchmark)
    older, newer = span(observation, spec.benchmark, metric, 2 * spec.over)
    middle, _ = span(observation, spec.benchmark, metric, spec.over)
    before = _pace(observation, spec, older, middle, metric)
    after = _pace(observation, spec, middle, newer, metric)
    short = spec.part * before[0] - after[0]
    spread = spec.part * before[1] + after[1]
    if not math.isfinite(spread) or spread <= 0:
        return Check("inconclusive", f"{'+'.join(spec.benchmark)} has no standard error", math.inf)
    z = short / spread
    outcome, gap = directed(z, spec.z)
    name = f"{'+'.join(spec.benchmark)} {metric}"
    shown = {"holds": "is on a plateau", "fails": "is on no plateau"}.get(outcome, "may level off")
    text = f"{name} {shown} (gain per doubling {after[0]:.2g} after {before[0]:.2g}, z {z:.2g})"
    evidence = {
        "condition": "plateau",
        "benchmark": "+".join(spec.benchmark),
        "metric": metric,
        "values": [before[0], after[0]],
        "stderr": spread,
        "z": z,
        "claim": z,
        "tokens": tokens_of(observation, older, middle, newer),
    }
    return Check(outcome, text, gap, evidence)


def check_regression(spec: Regression, observation: Observation) -> Check:
    """Is the newest evaluation worse than the best so far, beyond the margin?"""
    from scipy.special import ndtr, ndtri

    metric = spec.metric or observation.metric_for(spec.benchmark)
    _, newest = span(observation, [spec.benchmark], metric, 1)
    earlier = [i for i in observation.scored(spec.benchmark, metric) if i < newest]
    best = max(earlier, key=lambda index: _goodness(observation, spec.benchmark, index, metric))
    found = observation.difference(spec.benchmark, best, newest, metric)
    # one of several tests: the tail is shared among the evaluations it could have been
    needed = -float(ndtri(float(ndtr(-spec.z)) / len(earlier))) if spec.z > 0 else 0.0
    if not math.isfinite(found.stderr):
        return Check("inconclusive", f"{spec.benchmark} has no standard error", math.inf)
    lost = Difference(-found.gain - spec.margin, found.stderr, found.df, found.n)
    outcome, gap = directed(lost.z, needed)
    shown = {"holds": "fell", "fails": "did not fall"}.get(outcome, "may have fallen")
    text = (
        f"{spec.benchmark} {metric} {shown} from its best by {-found.gain:.2g} ±{found.stderr:.2g}"
        f" (z {lost.z:.2g} of {needed:.2g}, n={found.n})"
    )
    # as one test of one hypothesis, the choice of the best paid for
    claim = -float(ndtri(min(0.5, float(ndtr(-lost.z)) * len(earlier))))
    evidence = {"condition": "regression", **measured(found), "needed": needed, "claim": claim}
    return Check(outcome, text, gap, evidence | {"tokens": tokens_of(observation, best, newest)})


def check_ratio(spec: Ratio, observation: Observation) -> Check:
    """Is one benchmark's newest value over another's beyond the threshold?"""
    newest = observation.evaluation(span(observation, [spec.benchmark, spec.to], spec.metric, 0)[1])
    one, other = (find_metric(newest, name, spec.metric) for name in (spec.benchmark, spec.to))
    if other.value == 0:
        raise MissingScore(f"{spec.to} is 0: nothing has a ratio to it")
    ratio = one.value / other.value
    spread = math.hypot(one.stderr or 0.0, ratio * (other.stderr or 0.0)) / abs(other.value)
    side, limit = ("above", spec.above) if spec.above is not None else ("below", spec.below)
    assert limit is not None  # the options model sees to one side
    beyond = ratio - limit if side == "above" else limit - ratio
    z = beyond / spread if spread > 0 else math.copysign(math.inf, beyond)
    outcome, gap = ("holds", 0.0) if z > 0 and z >= spec.z else ("fails", spec.z - z)
    if outcome == "fails" and beyond > 0:
        outcome = "inconclusive"
    shown = side if beyond > 0 else f"not {side}"
    name = f"{spec.benchmark}/{spec.to} {spec.metric}"
    evidence = {
        "condition": "ratio",
        "benchmark": spec.benchmark,
        "to": spec.to,
        "metric": spec.metric,
        "values": [ratio],
        "stderr": spread,
        "z": z,
        "tokens": [newest.tokens],
        side: limit,
    }
    evidence |= {"claim": z} if spec.z > 0 else {}
    return Check(outcome, f"{name} {ratio:.4g} {shown} {limit:g} (z {z:.2g})", gap, evidence)  # type: ignore[arg-type]


def check_ledger(spec: LedgerSpan, observation: Observation) -> Check:
    """Are a source's epochs, now or at the end of the budget, within the span?"""
    sources = {n: GuardSource(s.unique_tokens) for n, s in observation.sources.items()}
    drawn: dict[str, float] = {name: float(s.drawn) for name, s in observation.sources.items()}
    if spec.at == "end":
        plan = [*observation.plan]
        last = plan[-1][1] if plan else in_force(observation)
        drawn = project(drawn, observation.tokens, [*plan, (observation.budget, last)])
    reached = epochs(sources, drawn)
    names = [n for n, s in observation.sources.items() if {n, *s.tags} & set(spec.source)]
    if not names:
        known = {*observation.sources, *(t for s in observation.sources.values() for t in s.tags)}
        raise PolicyError(f"ledger.source: no source or tag {spec.source[0]!r}"
                          f"{suggest(spec.source[0], known)}")  # fmt: skip
    name = max(names, key=lambda one: reached[one])
    value = reached[name]
    when = "now" if spec.at == "now" else "at the end of the budget"
    evidence: dict[str, Any] = {"condition": "ledger", "source": name, "epochs": value}
    text = f"{name} at {value:.3g} epochs {when}"
    if spec.above is not None and value <= spec.above:
        return Check("fails", f"{text}, not above {spec.above:g}", math.inf, evidence)
    if spec.below is not None and value >= spec.below:
        return Check("fails", f"{text}, not below {spec.below:g}", math.inf, evidence)
    return Check("holds", text, 0.0, evidence)


def _pace(
    observation: Observation, spec: Plateau, older: int, newer: int, metric: str
) -> tuple[float, float]:
    """Gain per doubling of the tokens, and its standard error."""
    if len(spec.benchmark) == 1:
        found = observation.difference(spec.benchmark[0], older, newer, metric)
    else:
        found = observation.pooled_difference(spec.benchmark, older, newer, metric)
    before, after = tokens_of(observation, older, newer)
    if not 0 < before < after:
        raise MissingScore("two evaluations at the same tokens have no pace")
    doublings = math.log2(after / before)
    return found.gain / doublings, found.stderr / doublings


def _goodness(observation: Observation, benchmark: str, index: int, metric: str) -> float:
    found = find_metric(observation.evaluation(index), benchmark, metric)
    return found.value if found.higher_is_better else -found.value
