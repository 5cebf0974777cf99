"""More tests of ``rules``: plateau, regression, ratio of two benchmarks, ledger."""

from __future__ import annotations

import math

from mixloop.common.paired import Difference
from mixloop.policies.interface import MissingScore, Observation, find_metric

from .condition_options import Lag, Level, Plateau, Ratio, Regression, Trend
from .condition_result import ConditionResult, Outcome, directed, measured, span, tokens_of
from .run_conditions import _pace


def check_plateau(spec: Plateau, observation: Observation) -> ConditionResult:
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
        return ConditionResult(
            "inconclusive", f"{'+'.join(spec.benchmark)} has no standard error", math.inf
        )
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
    return ConditionResult(outcome, text, gap, evidence)


def check_regression(spec: Regression, observation: Observation) -> ConditionResult:
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
        return ConditionResult("inconclusive", f"{spec.benchmark} has no standard error", math.inf)
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
    return ConditionResult(
        outcome, text, gap, evidence | {"tokens": tokens_of(observation, best, newest)}
    )


def check_ratio(spec: Ratio, observation: Observation) -> ConditionResult:
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
    said = f"{name} {ratio:.4g} {shown} {limit:g} (z {z:.2g})"
    return ConditionResult(outcome, said, gap, evidence)  # type: ignore[arg-type]


def _goodness(observation: Observation, benchmark: str, index: int, metric: str) -> float:
    found = find_metric(observation.evaluation(index), benchmark, metric)
    return found.value if found.higher_is_better else -found.value


def check_level(spec: Level, observation: Observation) -> ConditionResult:
    """Is the newest value beyond the threshold, by ``z`` standard errors?"""
    newest = observation.evaluation(span(observation, spec.benchmark, spec.metric, 0)[1])
    metric = observation.pooled_metric(spec.benchmark, newest, spec.metric)
    side, limit = ("above", spec.above) if spec.above is not None else ("below", spec.below)
    assert limit is not None  # the options model sees to one side
    beyond = metric.value - limit if side == "above" else limit - metric.value
    stderr = metric.stderr if metric.stderr and math.isfinite(metric.stderr) else None
    outcome: Outcome = "fails" if beyond <= 0 else "holds"
    z = beyond / stderr if stderr else None
    if beyond > 0 and spec.z > 0 and (z is None or z < spec.z):
        outcome = "inconclusive"
    name = f"{'+'.join(spec.benchmark)} {spec.metric}"
    spread = f", ±{stderr:.2g}" if stderr else ""
    shown = side if outcome != "fails" else f"not {side}"
    weak = f", needs z {spec.z:g}" if outcome == "inconclusive" else ""
    text = f"{name} {metric.value:.4g} {shown} {limit:g} (n={metric.n}{spread}{weak})"
    claim = {"claim": z} if spec.z > 0 and z is not None else {}
    scale = stderr or max(abs(limit), 1e-9)
    gap = 0.0 if outcome == "holds" else spec.z - beyond / scale
    evidence = {
        "condition": "level",
        "benchmark": "+".join(spec.benchmark),
        "metric": spec.metric,
        "values": [metric.value],
        "stderr": stderr,
        "z": z,
        "n": metric.n,
        "tokens": [newest.tokens],
        side: limit,
    }
    return ConditionResult(outcome, text, gap, evidence | claim)


def check_trend(spec: Trend, observation: Observation) -> ConditionResult:
    """Did the benchmark get better, worse or neither over the span?"""
    metric = spec.metric or observation.common_metric(spec.benchmark)
    older, newer = span(observation, spec.benchmark, metric, spec.over)
    if len(spec.benchmark) == 1:
        found = observation.difference(spec.benchmark[0], older, newer, metric)
    else:
        found = observation.pooled_difference(spec.benchmark, older, newer, metric)
    outcome, gap = _trend_outcome(spec, found)
    old, new = (observation.pooled_metric(spec.benchmark, i, metric) for i in (older, newer))
    unit = "evaluation" if spec.over == 1 else "evaluations"
    shown = {"holds": spec.is_, "fails": f"not {spec.is_}", "inconclusive": f"not yet {spec.is_}"}
    # "not better" fails by being better: two negations would hide that
    said = shown[outcome].replace("not not-", "")
    text = (
        f"{'+'.join(spec.benchmark)} {metric} {said} over {spec.over} {unit}"
        f" ({old.value:.4g} to {new.value:.4g}, gain {found.gain:.2g} ±{found.stderr:.2g},"
        f" z {found.z:.2g}, n={found.n})"
    )
    values, tokens = [old.value, new.value], tokens_of(observation, older, newer)
    evidence = {"condition": "trend", **measured(found), "values": values, "tokens": tokens}
    score = claimed(spec, found)
    claim = {} if score is None else {"claim": score}
    return ConditionResult(
        outcome, text, gap, evidence | claim | {"is": spec.is_, "over": spec.over}
    )


def check_lag(spec: Lag, observation: Observation) -> ConditionResult:
    """Does the benchmark's relative gain fall short of the others'?"""
    names = [spec.benchmark, *spec.than]
    # a relative gain in accuracy and one in bits per byte can't be held against each other
    metric = observation.common_metric(names)
    spans = [span(observation, [name], metric, spec.over) for name in names]
    if len(set(spans)) > 1:
        raise MissingScore(f"{' and '.join(names)} were not scored by the same evaluations")
    older, newer = spans[0]
    gains = [relative(observation, name, older, newer, metric) for name in names]
    others = sum(gain for gain, _ in gains[1:]) / len(spec.than)
    short = others - gains[0][0]
    spread = math.hypot(gains[0][1], *(error / len(spec.than) for _, error in gains[1:]))
    z = short / spread if spread > 0 else math.copysign(math.inf, short) if short else 0.0
    outcome, gap = directed(z, spec.z) if math.isfinite(spread) else ("inconclusive", math.inf)
    verb = {"holds": "lags", "fails": "doesn't lag", "inconclusive": "may lag"}[outcome]
    text = (
        f"{spec.benchmark} {verb} {', '.join(spec.than)}"
        f" (relative gain {gains[0][0]:.2g} against {others:.2g}, z {z:.2g})"
    )
    evidence = {
        "condition": "lag",
        "benchmark": spec.benchmark,
        "metric": metric,
        "than": list(spec.than),
        "values": [gains[0][0], others],
        "stderr": spread,
        "z": z,
        "claim": z,
        "tokens": tokens_of(observation, older, newer),
    }
    return ConditionResult(outcome, text, gap, evidence)


def claimed(spec: Trend, found: Difference) -> float | None:
    """The normal score of what the trend says; none where it says that nothing was seen."""
    if not math.isfinite(found.stderr) or (spec.margin == 0 and spec.is_ in ("flat", "not-better")):
        return None
    up, down = score(found, spec.margin), score(found, -spec.margin)
    said = {"better": up, "worse": -down, "not-better": -up, "flat": min(-up, down)}
    return said[spec.is_]


def _trend_outcome(spec: Trend, found: Difference) -> tuple[Outcome, float]:
    """Whether the trend holds, and how many standard errors it is from holding."""
    if not math.isfinite(found.stderr):
        return "inconclusive", math.inf
    up, down = score(found, spec.margin), score(found, -spec.margin)
    if spec.is_ == "better":
        return directed(up, spec.z)
    if spec.is_ == "worse":
        return directed(-down, spec.z)
    if spec.margin == 0:
        # nothing significant was seen: all that can be said without a margin
        size = up if spec.is_ == "not-better" else abs(up)
        return ("holds", 0.0) if size < spec.z else ("fails", size - spec.z)
    if spec.is_ == "not-better":
        return directed(-up, spec.z)
    # equivalence: two one-sided tests (Schuirmann 1987)
    return directed(min(-up, down), spec.z)


def score(found: Difference, margin: float) -> float:
    """Normal score of the gain against a margin."""
    shifted = Difference(found.gain - margin, found.stderr, found.df, found.n)
    return shifted.z


def relative(
    observation: Observation, benchmark: str, older: int, newer: int, metric: str
) -> tuple[float, float]:
    """Gain and standard error as parts of the older value."""
    found = observation.difference(benchmark, older, newer, metric)
    base = observation.pooled_metric([benchmark], older, metric).value
    if base == 0:
        raise MissingScore(f"{benchmark} was 0: its relative gain is undefined")
    return found.gain / abs(base), found.stderr / abs(base)
