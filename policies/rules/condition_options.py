"""Conditions of ``rules``: what must hold before an intervention is made, and how surely."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from mixloop.common.units import Tokens
from mixloop.policies.interface import Names, OptionsModel, Phases


class Level(OptionsModel):
    """The newest value of a benchmark is above or below a threshold.

    Several benchmarks are pooled over their items. The metric is bits per byte unless one is
    named: a threshold belongs to one metric. With ``z`` the distance must also be that many
    standard errors.
    """

    benchmark: Names
    metric: str = "bits_per_byte"
    above: float | None = None
    below: float | None = None
    z: Annotated[float, Field(ge=0)] = 0.0

    @model_validator(mode="after")
    def _one_side(self) -> Level:
        if (self.above is None) == (self.below is None):
            raise ValueError("give one of above and below")
        return self


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
    over: Annotated[int, Field(ge=1)] = 1
    is_: Literal["flat", "worse", "better", "not-better"] = Field(alias="is")
    z: Annotated[float, Field(ge=0)] = 2.0
    margin: Annotated[float, Field(ge=0)] = 0.0


class Lag(OptionsModel):
    """A benchmark gains less than others over the same evaluations.

    Gains are relative to the older value, so that benchmarks on different scales compare; the
    others' are averaged. All are taken in one metric: the steering one where they share it, else
    bits per byte. Holds when the shortfall is ``z`` standard errors.
    """

    benchmark: str
    than: Names
    over: Annotated[int, Field(ge=1)] = 1
    z: Annotated[float, Field(ge=0)] = 2.0


class TokenSpan(OptionsModel):
    """The run has consumed at least ``above`` and fewer than ``below`` training tokens."""

    above: Tokens | None = None
    below: Tokens | None = None

    @model_validator(mode="after")
    def _some_side(self) -> TokenSpan:
        if self.above is None and self.below is None:
            raise ValueError("give above, below or both")
        return self


class Plateau(OptionsModel):
    """A benchmark has slowed down: over ``over`` evaluations it gained less than ``part`` of what
    it did over as many before, as a gain per doubling of the tokens. ``z`` is the normal score."""

    benchmark: Names
    metric: str | None = None
    over: Annotated[int, Field(ge=1)] = 2
    part: Annotated[float, Field(gt=0, le=1)] = 0.5
    z: Annotated[float, Field(ge=0)] = 2.0


class Regression(OptionsModel):
    """A benchmark is worse than at its best evaluation so far by more than ``margin``.

    The best of many is best by luck in part: ``z`` is raised for the number of evaluations it was
    chosen from (Bonferroni).
    """

    benchmark: str
    metric: str | None = None
    margin: Annotated[float, Field(ge=0)] = 0.0
    z: Annotated[float, Field(ge=0)] = 2.0


class Ratio(OptionsModel):
    """The newest value of ``benchmark`` over that of ``to`` is above or below a threshold.

    ``z`` is the distance in standard errors of the ratio (delta method).
    """

    benchmark: str
    to: str
    metric: str = "bits_per_byte"
    above: float | None = None
    below: float | None = None
    z: Annotated[float, Field(ge=0)] = 0.0

    @model_validator(mode="after")
    def _one_side(self) -> Ratio:
        if (self.above is None) == (self.below is None):
            raise ValueError("give one of above and below")
        return self


class LedgerSpan(OptionsModel):
    """The epochs of a source (of the tags' sources: the most of any) are above or below a number.

    ``at: now`` counts what was drawn; ``at: end`` what the mixture in force and its plan would have
    drawn by the end of the budget.
    """

    source: Names
    above: Annotated[float, Field(ge=0)] | None = None
    below: Annotated[float, Field(gt=0)] | None = None
    at: Literal["now", "end"] = "now"

    @model_validator(mode="after")
    def _some_side(self) -> LedgerSpan:
        if self.above is None and self.below is None:
            raise ValueError("give above, below or both, in epochs")
        return self


class Condition(OptionsModel):
    """One or more tests; all must hold."""

    level: Level | None = None
    trend: Trend | None = None
    lag: Lag | None = None
    plateau: Plateau | None = None
    regression: Regression | None = None
    ratio: Ratio | None = None
    ledger: LedgerSpan | None = None
    tokens: TokenSpan | None = None
    phase: Phases | None = None

    @model_validator(mode="after")
    def _not_empty(self) -> Condition:
        if not self.model_fields_set:
            known = ", ".join(type(self).model_fields)
            raise ValueError(f"an empty condition; give one of {known}")
        return self

    def benchmarks(self) -> list[str]:
        """Every benchmark that a test names."""
        found: list[str] = []
        for spec in (self.level, self.trend, self.plateau):
            found += spec.benchmark if spec else ()
        found += [self.regression.benchmark] if self.regression else []
        found += [self.ratio.benchmark, self.ratio.to] if self.ratio else []
        return found + ([self.lag.benchmark, *self.lag.than] if self.lag else [])
