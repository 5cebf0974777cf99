"""The language of ``rules``: what a user writes under ``policy: {use: rules, with: …}``.

```yaml
initial: {web: 0.70, code: 0.15, maths: 0.15}     # moved to first, if given
interventions:                                    # the first whose conditions hold fires
  - name: repair-maths
    when:                                         # all must hold
      - level: {benchmark: gsm8k, above: 1.60}    # bits per byte of the newest checkpoint
      - trend: {benchmark: [gsm8k, math], over: 2, is: not-better}
    move: {to: maths, from: web, step: 0.05, cap: 0.40}
    cooldown: 2 evaluations                       # or tokens: 200B
    max_times: 4
    after: 1T
    until: 9T
    phases: [stable]
```
"""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, field_validator, model_validator

from .mixtures import Mixture
from .observation import Phase
from .protocol import OptionsModel
from .stages import Stage, check_order
from .units import Tokens, parse_tokens


def _listed(value: object) -> object:
    """One of a thing may be written without the list around it."""
    return value if isinstance(value, list | tuple) else [value]


def _nonempty(value: tuple[str, ...]) -> tuple[str, ...]:
    if not value or any(not name for name in value):
        raise ValueError("name at least one")
    return value


Names = Annotated[tuple[str, ...], BeforeValidator(_listed), AfterValidator(_nonempty)]
Phases = Annotated[tuple[Phase, ...], BeforeValidator(_listed)]
Share = Annotated[float, Field(ge=0, le=1)]


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


class Condition(OptionsModel):
    """One or more tests; all must hold."""

    level: Level | None = None
    trend: Trend | None = None
    lag: Lag | None = None
    tokens: TokenSpan | None = None
    phase: Phases | None = None

    @model_validator(mode="after")
    def _not_empty(self) -> Condition:
        if not self.model_fields_set:
            raise ValueError("an empty condition; give level, trend, lag, tokens or phase")
        return self


class Move(OptionsModel):
    """``step`` of all training tokens goes to ``to``, taken from ``from`` in proportion.

    Both are sources or tags, or lists of them; ``from: rest`` is every other source that has
    weight. ``to`` (together) never exceeds ``cap``; no source of ``from`` falls below ``floor``.
    A source on standby is brought in only by its own name.
    """

    to: Names
    from_: Names = Field(default=("rest",), alias="from")
    step: Annotated[float, Field(gt=0, le=1)] = 0.05
    cap: Annotated[float, Field(gt=0, le=1)] = 1.0
    floor: Share = 0.0


class Cooldown(OptionsModel):
    """How long a rule rests after it fired: tokens, evaluations, or both."""

    tokens: Tokens = 0
    evaluations: Annotated[int, Field(ge=0)] = 0


def _cooldown(value: object) -> object:
    """``200B`` and ``2 evaluations`` are short for the mappings."""
    if isinstance(value, Cooldown | dict):
        return value
    counted = re.fullmatch(r"\s*(\d+)\s*(evaluations?|evals?)\s*", str(value))
    if counted:
        return {"evaluations": int(counted[1])}
    try:
        return {"tokens": parse_tokens(value)}
    except ValueError:
        forms = "write tokens such as 200B, or 2 evaluations"
        raise ValueError(f"{value!r} is no cooldown; {forms}") from None


class Intervention(OptionsModel):
    """A rule: when its conditions hold, make its move."""

    name: Annotated[str, Field(min_length=1)]
    when: Annotated[tuple[Condition, ...], BeforeValidator(_listed)] = ()
    move: Move
    cooldown: Annotated[Cooldown, BeforeValidator(_cooldown)] = Cooldown()
    max_times: Annotated[int, Field(ge=1)] | None = None
    after: Tokens = 0
    until: Tokens | None = None
    phases: Phases | None = None


class RulesOptions(OptionsModel):
    """``initial``: a mixture to move to first. ``stages``: mixtures declared in advance, instead.
    ``combine``: all rules that hold fire together, except where one would take what another
    gives."""

    initial: Mixture | None = None
    stages: tuple[Stage, ...] = ()
    interventions: tuple[Intervention, ...] = ()
    combine: bool = False

    @field_validator("interventions")
    @classmethod
    def _distinct(cls, value: tuple[Intervention, ...]) -> tuple[Intervention, ...]:
        seen: set[str] = {"initial"}
        for rule in value:
            if rule.name in seen:
                taken = "is reserved" if rule.name == "initial" else "is used twice"
                raise ValueError(f"the name {rule.name!r} {taken}; rename one")
            seen.add(rule.name)
        return value

    @model_validator(mode="after")
    def _stages_in_order(self) -> RulesOptions:
        check_order(self.stages)
        if self.stages and self.initial is not None:
            raise ValueError("give initial or stages, not both: the first stage is the initial one")
        return self
