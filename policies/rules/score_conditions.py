"""Conditions on scores: level, trend, lag, plateau, regression, ratio of two benchmarks."""

from __future__ import annotations

import math
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from mixloop.common.paired import Difference, welch, z_of
from mixloop.policies.evidence import (
    Jitter,
    honest_difference,
    pooled_noise,
    trajectory_noise,
)
from mixloop.policies.interface import (
    BITS_PER_BYTE,
    Metric,
    MissingScore,
    Names,
    Observation,
    OptionsModel,
    find_metric,
)

from .condition_result import (
    ConditionResult,
    Outcome,
    changed,
    directed,
    measured,
    span,
    tokens_of,
)

Z = Annotated[float, Field(ge=0)]
Over = Annotated[int, Field(ge=1)]


class _Threshold(OptionsModel):
    """A value above or below a threshold: one of its fields ``above`` and ``below`` is given."""

    @model_validator(mode="after")
    def _one_side(self) -> Self:
        if (self._limit("above") is None) == (self._limit("below") is None):
            raise ValueError("give one of above and below")
        return self

    def _limit(self, side: str) -> float | None:
        limit: float | None = getattr(self, side)
        return limit

    def _beyond(self, value: float) -> tuple[str, float, float]:
        """The side that is asked for, the threshold, and how far the value is beyond it."""
        above, below = self._limit("above"), self._limit("below") or 0.0
        if above is not None:
            return "above", above, value - above
        return "below", below, below - value


class Level(_Threshold):
    """The newest value of a benchmark is above or below a threshold.

    Several benchmarks are pooled over their items. The metric is bits per byte unless one is
    named: a threshold belongs to one metric. With ``z`` the distance must also have that normal
    score.
    """

    benchmark: Names
    metric: str = BITS_PER_BYTE
    above: float | None = None
    below: float | None = None
    z: Z = 0.0

    def check(self, observation: Observation) -> ConditionResult:
        """Is the newest value beyond the threshold, by a normal score of ``z``?"""
        newest = observation.evaluation(span(observation, self.benchmark, self.metric, 0)[1])
        metric = observation.pooled_metric(self.benchmark, newest, self.metric)
        side, limit, beyond = self._beyond(metric.value)
        jitter = pooled_noise(observation, self.benchmark, newest, self.metric)
        stderr, df = off_course(metric, jitter)
        outcome: Outcome = "fails" if beyond <= 0 else "holds"
        z = z_of(beyond, stderr, df) if stderr else None
        if beyond > 0 and self.z > 0 and (z is None or z < self.z):
            outcome = "inconclusive"
        name = "+".join(self.benchmark)
        spread = f", ±{stderr:.2g}" if stderr else ""
        shown = side if outcome != "fails" else f"not {side}"
        weak = f", needs z {self.z:g}" if outcome == "inconclusive" else ""
        value, n, tokens = metric.value, metric.n, [newest.tokens]
        text = f"{name} {self.metric} {value:.4g} {shown} {limit:g} (n={n}{spread}{weak})"
        away = beyond / max(abs(limit), 1e-9) if z is None else z
        gap = 0.0 if outcome == "holds" else self.z - away
        evidence = measured("level", name, self.metric, values=[value], stderr=stderr, z=z, n=n)
        evidence |= {"stderr_trajectory": jitter.stderr, "tokens": tokens, side: limit}
        evidence |= {"claim": z} if self.z > 0 and z is not None else {}
        return ConditionResult(outcome, text, gap, evidence)


def off_course(metric: Metric, jitter: Jitter) -> tuple[float | None, float]:
    """Standard error of a score as the run's level there, and its df; None: none is stated."""
    stated = metric.stderr if metric.stderr and math.isfinite(metric.stderr) else None
    if stated is None or jitter.df <= 0:
        return stated, metric.n - 1
    both = (stated**2, jitter.stderr**2)
    return math.sqrt(math.fsum(both)), welch(both, (max(metric.n - 1, 1), jitter.df))


class Trend(OptionsModel):
    """The newest evaluation against the one ``over`` evaluations back, paired over the items.

    ``margin`` is the smallest gain that counts, over the whole span and in the metric's unit;
    ``z`` the normal score it must be exceeded by. better: the gain is above the margin. worse: the
    loss is. flat: the change lies within the margin. not-better: the gain is below the margin.
    Where neither that nor its opposite is significant, the outcome is inconclusive. Without a
    margin, flat and not-better mean that no significant change or gain was seen, which with few
    items is weak: give a margin. The metric is the steering one unless one is named.
    """

    benchmark: Names
    metric: str | None = None
    over: Over = 1
    is_: Literal["flat", "worse", "better", "not-better"] = Field(alias="is")
    z: Z = 2.0
    margin: Annotated[float, Field(ge=0)] = 0.0

    def check(self, observation: Observation) -> ConditionResult:
        """Did the benchmark get better, worse or neither over the span?"""
        metric = self.metric or observation.common_metric(self.benchmark)
        older, newer = span(observation, self.benchmark, metric, self.over)
        change = honest_difference(observation, self.benchmark, older, newer, metric)
        outcome, gap = self._outcome(change)
        old, new = (observation.pooled_metric(self.benchmark, i, metric) for i in (older, newer))
        unit = "evaluation" if self.over == 1 else "evaluations"
        said = {"holds": "", "fails": "not ", "inconclusive": "not yet "}[outcome] + self.is_
        # "not better" fails by being better: two negations would hide that
        said = said.replace("not not-", "")
        text = (
            f"{'+'.join(self.benchmark)} {metric} {said} over {self.over} {unit}"
            f" ({old.value:.4g} to {new.value:.4g}, gain {change.gain:.2g} {change.spread},"
            f" z {change.z:.2g}, n={change.n})"
        )
        tokens = tokens_of(observation, older, newer)
        evidence = changed("trend", change, values=[old.value, new.value], tokens=tokens)
        evidence |= {**self._claim(change), "is": self.is_, "over": self.over}
        return ConditionResult(outcome, text, gap, evidence)

    def _scores(self, change: Difference) -> tuple[float, float]:
        """Normal scores of the gain against the margin, above and below nothing."""
        gain, rest = change.gain, (change.stderr, change.df, change.n)
        return Difference(gain - self.margin, *rest).z, Difference(gain + self.margin, *rest).z

    def _outcome(self, change: Difference) -> tuple[Outcome, float]:
        """Whether the trend holds, and how many standard errors it is from holding."""
        if not math.isfinite(change.stderr):
            return "inconclusive", math.inf
        up, down = self._scores(change)
        if self.is_ == "better":
            return directed(up, self.z)
        if self.is_ == "worse":
            return directed(-down, self.z)
        if self.margin == 0:
            # nothing significant was seen: all that can be said without a margin
            size = up if self.is_ == "not-better" else abs(up)
            return ("holds", 0.0) if size < self.z else ("fails", size - self.z)
        if self.is_ == "not-better":
            return directed(-up, self.z)
        # equivalence: two one-sided tests (Schuirmann 1987)
        return directed(min(-up, down), self.z)

    def _claim(self, change: Difference) -> dict[str, float]:
        """The normal score of what the trend says; none where it says that nothing was seen."""
        nothing_seen = self.margin == 0 and self.is_ in ("flat", "not-better")
        if nothing_seen or not math.isfinite(change.stderr):
            return {}
        up, down = self._scores(change)
        said = {"better": up, "worse": -down, "not-better": -up, "flat": min(-up, down)}
        return {"claim": said[self.is_]}


class Lag(OptionsModel):
    """A benchmark gains less than others over the same evaluations.

    Gains are relative to the older value, so that benchmarks on different scales compare; the
    others' are averaged. All are taken in one metric: the steering one where they share it, else
    bits per byte. Holds when the shortfall has a normal score of ``z``.
    """

    benchmark: str
    than: Names
    over: Over = 1
    z: Z = 2.0

    def check(self, observation: Observation) -> ConditionResult:
        """Does the benchmark's relative gain fall short of the others'?"""
        names = [self.benchmark, *self.than]
        # a relative gain in accuracy and one in bits per byte can't be held against each other
        metric = observation.common_metric(names)
        spans = [span(observation, [name], metric, self.over) for name in names]
        if len(set(spans)) > 1:
            raise MissingScore(f"{' and '.join(names)} were not scored by the same evaluations")
        older, newer = spans[0]
        gains = [_relative_gain(observation, name, older, newer, metric) for name in names]
        others = sum(gain.gain for gain in gains[1:]) / len(self.than)
        short = others - gains[0].gain
        errors = [gains[0].stderr, *(gain.stderr / len(self.than) for gain in gains[1:])]
        spread = math.hypot(*errors)
        z = z_of(short, spread, welch([e**2 for e in errors], [max(g.df, 1) for g in gains]))
        outcome, gap = directed(z, self.z) if math.isfinite(spread) else ("inconclusive", math.inf)
        verb = {"holds": "lags", "fails": "doesn't lag", "inconclusive": "may lag"}[outcome]
        text = (
            f"{self.benchmark} {verb} {', '.join(self.than)}"
            f" (relative gain {gains[0].gain:.2g} against {others:.2g}, z {z:.2g})"
        )
        evidence = measured("lag", self.benchmark, metric, than=list(self.than), z=z, claim=z)
        evidence |= {"values": [gains[0].gain, others], "stderr": spread}
        evidence |= {"tokens": tokens_of(observation, older, newer)}
        return ConditionResult(outcome, text, gap, evidence)


def _relative_gain(
    observation: Observation, benchmark: str, older: int, newer: int, metric: str
) -> Difference:
    """The difference in parts of the older value."""
    change = honest_difference(observation, benchmark, older, newer, metric)
    base = abs(find_metric(observation.evaluation(older), benchmark, metric).value)
    if base == 0:
        raise MissingScore(f"{benchmark} was 0: its relative gain is undefined")
    return change.times(1 / base)


class Plateau(OptionsModel):
    """A benchmark has slowed down.

    Over ``over`` evaluations it gained less than ``part`` of what it did over as many before, as a
    gain per doubling of the tokens. ``z`` is the normal score.
    """

    benchmark: Names
    metric: str | None = None
    over: Over = 2
    part: Annotated[float, Field(gt=0, le=1)] = 0.5
    z: Z = 2.0

    def check(self, observation: Observation) -> ConditionResult:
        """Did it gain less per doubling of the tokens than ``part`` of what it did before?

        The two spans share an evaluation, whose noise enters both: the standard errors are added,
        which bounds what any correlation can make of them.
        """
        metric = self.metric or observation.common_metric(self.benchmark)
        older, newer = span(observation, self.benchmark, metric, 2 * self.over)
        middle, _ = span(observation, self.benchmark, metric, self.over)
        before = self._pace(observation, older, middle, metric)
        after = self._pace(observation, middle, newer, metric)
        short = self.part * before.gain - after.gain
        spread = self.part * before.stderr + after.stderr
        name = "+".join(self.benchmark)
        if not math.isfinite(spread) or spread <= 0:
            return ConditionResult("inconclusive", f"{name} has no standard error", math.inf)
        z = z_of(short, spread, min(before.df, after.df))
        outcome, gap = directed(z, self.z)
        shown = {"holds": "is on a plateau", "fails": "is on no plateau"}
        text = (
            f"{name} {metric} {shown.get(outcome, 'may level off')}"
            f" (gain per doubling {after.gain:.2g} after {before.gain:.2g}, z {z:.2g})"
        )
        evidence = measured("plateau", name, metric, stderr=spread, z=z, claim=z)
        evidence |= {"values": [before.gain, after.gain]}
        evidence |= {"tokens": tokens_of(observation, older, middle, newer)}
        return ConditionResult(outcome, text, gap, evidence)

    def _pace(self, observation: Observation, older: int, newer: int, metric: str) -> Difference:
        """The difference per doubling of the tokens."""
        change = honest_difference(observation, self.benchmark, older, newer, metric)
        before, after = tokens_of(observation, older, newer)
        if not 0 < before < after:
            raise MissingScore("two evaluations at the same tokens have no pace")
        doublings = math.log2(after / before)
        return change.times(1 / doublings)


class Regression(OptionsModel):
    """A benchmark is worse than at its best evaluation so far by more than ``margin``.

    The best of many is best by luck in part: ``z`` is raised for the number of evaluations it was
    chosen from (Bonferroni).
    """

    benchmark: str
    metric: str | None = None
    margin: Annotated[float, Field(ge=0)] = 0.0
    z: Z = 2.0

    def check(self, observation: Observation) -> ConditionResult:
        """Is the newest evaluation worse than the best so far, beyond the margin?"""
        from scipy.special import ndtr, ndtri

        name, metric = self.benchmark, self.metric or observation.metric_for(self.benchmark)
        _, newest = span(observation, [name], metric, 1)
        earlier = [i for i in observation.scored(name, metric) if i < newest]
        losses = [find_metric(observation.evaluations[i], name, metric).loss for i in earlier]
        best = earlier[losses.index(min(losses))]
        change = honest_difference(observation, name, best, newest, metric)
        # one of several tests: the tail is shared among the evaluations it could have been
        needed = -float(ndtri(float(ndtr(-self.z)) / len(earlier))) if self.z > 0 else 0.0
        if not math.isfinite(change.stderr):
            return ConditionResult("inconclusive", f"{name} has no standard error", math.inf)
        lost = Difference(-change.gain - self.margin, change.stderr, change.df, change.n)
        outcome, gap = directed(lost.z, needed)
        shown = {"holds": "fell", "fails": "did not fall", "inconclusive": "may have fallen"}
        text = (
            f"{name} {metric} {shown[outcome]} from its best by {-change.gain:.2g}"
            f" {change.spread} (z {lost.z:.2g} of {needed:.2g}, n={change.n})"
        )
        # as one test of one hypothesis, the choice of the best paid for
        claim = -float(ndtri(min(0.5, float(ndtr(-lost.z)) * len(earlier))))
        tokens = tokens_of(observation, best, newest)
        evidence = changed("regression", change, needed=needed, claim=claim, tokens=tokens)
        return ConditionResult(outcome, text, gap, evidence)


class Ratio(_Threshold):
    """The newest value of ``benchmark`` over that of ``to`` is above or below a threshold.

    ``z`` is the distance's normal score, by the standard error of the ratio (delta method).
    """

    benchmark: str
    to: str
    metric: str = BITS_PER_BYTE
    above: float | None = None
    below: float | None = None
    z: Z = 0.0

    def check(self, observation: Observation) -> ConditionResult:
        """Is one benchmark's newest value over another's beyond the threshold?"""
        names = (self.benchmark, self.to)
        newest = observation.evaluation(span(observation, names, self.metric, 0)[1])
        over, under = (find_metric(newest, name, self.metric) for name in names)
        if under.value == 0:
            raise MissingScore(f"{self.to} is 0: nothing has a ratio to it")
        ratio = over.value / under.value
        noise = [trajectory_noise(observation, name, self.metric) for name in names]
        (first, df_over), (second, df_under) = map(off_course, (over, under), noise)
        errors = (first or 0.0, ratio * (second or 0.0))
        spread = math.hypot(*errors) / abs(under.value)
        side, limit, beyond = self._beyond(ratio)
        df = welch([e**2 for e in errors], [max(df_over, 1), max(df_under, 1)])
        z = z_of(beyond, spread, df)
        outcome: Outcome = "inconclusive" if beyond > 0 else "fails"
        if z > 0 and z >= self.z:
            outcome = "holds"
        shown = side if beyond > 0 else f"not {side}"
        name = f"{self.benchmark}/{self.to} {self.metric}"
        text = f"{name} {ratio:.4g} {shown} {limit:g} (z {z:.2g})"
        evidence = measured("ratio", self.benchmark, self.metric, to=self.to, values=[ratio])
        evidence |= {"stderr": spread, "z": z, "tokens": [newest.tokens], side: limit}
        evidence |= {"claim": z} if self.z > 0 else {}
        return ConditionResult(outcome, text, 0.0 if outcome == "holds" else self.z - z, evidence)
