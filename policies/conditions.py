"""Testing one condition of ``rules`` on an observation."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from .checks import Check, Outcome, directed, measured, span, tokens_of
from .condition_options import Condition, Lag, Level, TokenSpan, Trend
from .conditions_further import check_ledger, check_plateau, check_ratio, check_regression
from .observation import MissingScore, Observation
from .paired import Difference
from .units import format_tokens


def run_checks(condition: Condition, observation: Observation) -> list[Check]:
    """The outcome of each test in a condition, in a fixed order."""
    tests: list[tuple[Any, Callable[[Any, Observation], Check]]] = [
        (condition.level, check_level),
        (condition.trend, check_trend),
        (condition.lag, check_lag),
        (condition.tokens, check_tokens),
        (condition.phase, check_phase),
        (condition.plateau, check_plateau),
        (condition.regression, check_regression),
        (condition.ratio, check_ratio),
        (condition.ledger, check_ledger),
    ]
    return [_guarded(test, spec, observation) for spec, test in tests if spec is not None]


def _guarded(test: Callable[[Any, Observation], Check], spec: Any, seen: Observation) -> Check:
    try:
        return test(spec, seen)
    except MissingScore as missing:
        return Check("inconclusive", str(missing), math.inf, {"missing": str(missing)})


def check_level(spec: Level, observation: Observation) -> Check:
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
    return Check(outcome, text, gap, evidence | claim)


def check_trend(spec: Trend, observation: Observation) -> Check:
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
    score = _claimed(spec, found)
    claim = {} if score is None else {"claim": score}
    return Check(outcome, text, gap, evidence | claim | {"is": spec.is_, "over": spec.over})


def check_lag(spec: Lag, observation: Observation) -> Check:
    """Does the benchmark's relative gain fall short of the others'?"""
    names = [spec.benchmark, *spec.than]
    # a relative gain in accuracy and one in bits per byte can't be held against each other
    metric = observation.common_metric(names)
    spans = [span(observation, [name], metric, spec.over) for name in names]
    if len(set(spans)) > 1:
        raise MissingScore(f"{' and '.join(names)} were not scored by the same evaluations")
    older, newer = spans[0]
    gains = [_relative(observation, name, older, newer, metric) for name in names]
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
    return Check(outcome, text, gap, evidence)


def check_tokens(spec: TokenSpan, observation: Observation) -> Check:
    """Is the run within the span of tokens?"""
    now = observation.tokens
    evidence = {"condition": "tokens", "tokens": [now]}
    if spec.above is not None and now < spec.above:
        text = f"{format_tokens(now)} tokens, below {format_tokens(spec.above)}"
        return Check("fails", text, math.inf, evidence)
    if spec.below is not None and now >= spec.below:
        text = f"{format_tokens(now)} tokens, past {format_tokens(spec.below)}"
        return Check("fails", text, math.inf, evidence)
    return Check("holds", f"at {format_tokens(now)} tokens", 0.0, evidence)


def check_phase(spec: Sequence[str], observation: Observation) -> Check:
    """Is the learning rate in one of these phases?"""
    evidence = {"condition": "phase", "phase": observation.phase}
    if observation.phase is None:
        return Check("inconclusive", "the learning-rate phase is unknown", math.inf, evidence)
    if observation.phase in spec:
        return Check("holds", f"in {observation.phase}", 0.0, evidence)
    text = f"in {observation.phase}, not {' or '.join(spec)}"
    return Check("fails", text, math.inf, evidence)


def _claimed(spec: Trend, found: Difference) -> float | None:
    """The normal score of what the trend says; none where it says that nothing was seen."""
    if not math.isfinite(found.stderr) or (spec.margin == 0 and spec.is_ in ("flat", "not-better")):
        return None
    up, down = _score(found, spec.margin), _score(found, -spec.margin)
    said = {"better": up, "worse": -down, "not-better": -up, "flat": min(-up, down)}
    return said[spec.is_]


def _trend_outcome(spec: Trend, found: Difference) -> tuple[Outcome, float]:
    """Whether the trend holds, and how many standard errors it is from holding."""
    if not math.isfinite(found.stderr):
        return "inconclusive", math.inf
    up, down = _score(found, spec.margin), _score(found, -spec.margin)
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


def _score(found: Difference, margin: float) -> float:
    """Normal score of the gain against a margin."""
    shifted = Difference(found.gain - margin, found.stderr, found.df, found.n)
    return shifted.z


def _relative(
    observation: Observation, benchmark: str, older: int, newer: int, metric: str
) -> tuple[float, float]:
    """Gain and standard error as parts of the older value."""
    found = observation.difference(benchmark, older, newer, metric)
    base = observation.pooled_metric([benchmark], older, metric).value
    if base == 0:
        raise MissingScore(f"{benchmark} was 0: its relative gain is undefined")
    return found.gain / abs(base), found.stderr / abs(base)
