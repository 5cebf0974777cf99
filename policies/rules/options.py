"""The language of ``rules``: what a user writes under ``policy: {use: rules, with: …}``.

```yaml
initial: {web: 0.70, code: 0.15, maths: 0.15}     # moved to first, if given
stages:                                           # or: mixtures declared and approved in advance
  - {name: base, until: 6T, weights: {web: 0.9, code: 0.1}}
  - {name: late, weights: {web: 0.7, code: 0.2, maths: 0.1}}
introduce: {source: owm, after: 6T, share: 0.05}  # enters late, sized to last to the end
anneal: {to: [math, code], by: 1.5, cap: 0.4}     # raised while the learning rate decays
interventions:                                    # the first whose conditions hold is made
  - name: repair-maths
    when:                                         # all must hold
      - level: {benchmark: gsm8k, above: 1.60}    # bits per byte of the newest checkpoint
      - trend: {benchmark: [gsm8k, math], over: 2, is: not-better}
    move: {to: maths, from: web, step: 0.05, cap: 0.40}   # or scale, set, swap
    cooldown: 2 evaluations                       # or tokens: 200B
    priority: 1
    max_times: 4
    after: 1T
    until: 9T
    phases: [stable]
  - name: help-{benchmark}                        # one for each benchmark that steers
    for_each: benchmark
    when: {plateau: {benchmark: "{benchmark}"}}
    move: {to: "{benchmark}"}                     # sources tagged with it
    trial: {over: 2}                              # has to prove itself first
```
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from mixloop.common.units import Tokens, parse_tokens
from mixloop.policies.interface import (
    Names,
    Observation,
    OptionsModel,
    Phases,
    PolicyError,
    Share,
    listed,
)
from mixloop.policies.mixture import Mixture, lasting_shares

from .conditions import Condition
from .moves import REST, Action
from .stages import Stage, check_order

ONE, ALL = "{benchmark}", "{benchmarks}"


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


class Trial(OptionsModel):
    """The rule has to prove itself before it may go on.

    It is made for ``over`` evaluations and taken back for as many; then the benchmarks ``of``
    (default: the objective's) are held against the run's own trend, which needs ``least``
    evaluations before. Better by ``z``: the rule is confirmed and fires freely, until some source
    is twice as far up as it was tried: from there it has to prove itself again. Otherwise it is
    tried again after its cooldown, ``times`` in all. No other rule fires during a trial.
    """

    over: Annotated[int, Field(ge=1)] = 3
    least: Annotated[int, Field(ge=2)] = 4
    times: Annotated[int, Field(ge=1)] = 3
    of: Names | None = None
    z: Annotated[float, Field(gt=0)] = 2.5


class Intervention(Action):
    """A rule: when its conditions hold, act. Higher ``priority`` goes first, then the order given.

    ``once``: never again after it fired. ``for_each: benchmark`` makes one rule of it for every
    benchmark that steers, ``{benchmark}`` in its names replaced; those whose sources or tags don't
    exist are left out. ``{benchmarks}`` stands for all of them that are a source or a tag.
    """

    name: Annotated[str, Field(min_length=1)]
    when: Annotated[tuple[Condition, ...], BeforeValidator(listed)] = ()
    for_each: Literal["benchmark"] | None = None
    priority: int = 0
    once: bool = False
    trial: Trial | None = None
    cooldown: Annotated[Cooldown, BeforeValidator(_cooldown)] = Cooldown()
    max_times: Annotated[int, Field(ge=1)] | None = None
    after: Tokens = 0
    until: Tokens | None = None
    phases: Phases | None = None

    @property
    def evaluations_needed(self) -> int:
        """Evaluations before it may be made, or, of one on trial, before that is judged."""
        looked_at = max((condition.evaluations_needed() for condition in self.when), default=0)
        if self.trial is None:
            return looked_at
        return max(looked_at, self.trial.least) + 2 * self.trial.over

    @model_validator(mode="after")
    def _consistent(self) -> Intervention:
        if self.once and self.max_times is not None:
            raise ValueError("once and max_times contradict each other; give one")
        if self.for_each and ONE not in self.name:
            raise ValueError(f"for_each needs names that differ: write {self.name}-{ONE}")
        if self.until is not None and self.until <= self.after:
            raise ValueError("until is not after after; give a later one")
        return self


class Introduction(OptionsModel):
    """A source that enters only ``after`` so many tokens, sized to last to the end of the budget.

    Its share is what is left of ``max_epochs`` (default: the guards') of it over the tokens left,
    at most ``share``; taken ``from`` (sources or tags) in proportion.
    """

    source: Annotated[str, Field(min_length=1)]
    after: Tokens
    share: Annotated[float, Field(gt=0, le=1)] = 1.0
    max_epochs: Annotated[float, Field(gt=0)] | None = None
    from_: Names = Field(default=(REST,), alias="from")


class Annealing(OptionsModel):
    """Up-sampling in the decay phase, once.

    ``to`` (sources or tags) together to ``share``, or to ``by`` times what they had (at most
    ``cap``), from ``from`` in proportion.
    """

    to: Names
    share: Annotated[float, Field(gt=0, le=1)] | None = None
    by: Annotated[float, Field(gt=1)] | None = None
    cap: Annotated[float, Field(gt=0, le=1)] = 1.0
    from_: Names = Field(default=(REST,), alias="from")
    floor: Share = 0.0

    @model_validator(mode="after")
    def _one_target(self) -> Annealing:
        if (self.share is None) == (self.by is None):
            raise ValueError("give one of share and by")
        return self


class RulesOptions(OptionsModel):
    """What is done, and when.

    ``initial``: a mixture to move to first. ``stages``: mixtures declared in advance, instead.
    ``introduce``: sources that enter late. ``anneal``: up-sampling in the decay phase.
    ``combine``: all rules that hold fire together, except where one would take what another gives.
    ``exhaust``: moves may raise a source so far that its epochs (the guards' ``max_epochs``) are
    used up before the end. By default none is: what was learnt from it would be unlearnt.
    """

    initial: Mixture | None = None
    stages: tuple[Stage, ...] = ()
    interventions: tuple[Intervention, ...] = ()
    introduce: Annotated[tuple[Introduction, ...], BeforeValidator(listed)] = ()
    anneal: Annotated[tuple[Annealing, ...], BeforeValidator(listed)] = ()
    combine: bool = False
    exhaust: bool = False

    @field_validator("interventions")
    @classmethod
    def _distinct(cls, value: tuple[Intervention, ...]) -> tuple[Intervention, ...]:
        names = {"initial"}
        for rule in value:
            if rule.name in names:
                taken = "is reserved" if rule.name == "initial" else "is used twice"
                raise ValueError(f"the name {rule.name!r} {taken}; rename one")
            names.add(rule.name)
        return value

    @model_validator(mode="after")
    def _stages_in_order(self) -> RulesOptions:
        check_order(self.stages)
        if self.stages and self.initial is not None:
            raise ValueError("give initial or stages, not both: the first stage is the initial one")
        sources = [entry.source for entry in self.introduce]
        if twice := next((name for name in sources if sources.count(name) > 1), None):
            raise ValueError(f"introduce names {twice!r} twice; drop one")
        return self

    def lasting(self, observation: Observation) -> dict[str, float] | None:
        """The share by source that no move passes: at which it lasts to the end of the budget."""
        limit = observation.limits.max_epochs
        if self.exhaust or limit is None:
            return None
        left = observation.budget - observation.tokens
        return lasting_shares(observation.sources, limit, left)


def expand(
    rules: Sequence[Intervention], benchmarks: Sequence[str], places: Collection[str]
) -> list[Intervention]:
    """The rules with every ``for_each`` written out, highest priority first.

    Args:
        rules: as they are configured.
        benchmarks: those that steer.
        places: sources and tags of the run; a rule for a benchmark that is neither is left out.
    """
    expanded: list[Intervention] = []
    placed = [benchmark for benchmark in benchmarks if benchmark in places]
    for rule in rules:
        action = str([getattr(rule, key) for key in Action.model_fields])
        if rule.for_each:
            each = placed if ONE in action else benchmarks
            expanded += [_filled(rule, {ONE: [name]}, benchmarks, placed) for name in each]
        elif ALL not in rule.model_dump_json(by_alias=True):
            expanded.append(rule)
        elif placed or ALL not in action:
            expanded.append(_filled(rule, {}, benchmarks, placed))
    return sorted(expanded, key=lambda rule: -rule.priority)


def _filled(
    rule: Intervention,
    names: Mapping[str, Sequence[str]],
    benchmarks: Sequence[str],
    placed: Sequence[str],
) -> Intervention:
    data = rule.model_dump(by_alias=True, exclude_none=True, exclude={"for_each"})
    filled = {}
    for key, value in data.items():
        # all benchmarks as places are those that are places
        every = placed if key in Action.model_fields else benchmarks
        filled[key] = _replaced(value, {ALL: every, **names})
    try:
        return Intervention.model_validate(filled)
    except ValueError as error:
        first = str(error).splitlines()[0]
        raise PolicyError(f"policy.with.interventions: {rule.name}: {first}") from None


def _replaced(value: Any, names: Mapping[str, Sequence[str]]) -> Any:
    """Placeholders in every text replaced; one alone in a list becomes all it stands for."""
    if isinstance(value, dict):
        return {key: _replaced(entry, names) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        entries: list[Any] = []
        for entry in value:
            alone = isinstance(entry, str) and entry in names
            entries += names[entry] if alone else [_replaced(entry, names)]
        return entries
    if isinstance(value, str) and ONE in names:
        return value.replace(ONE, ", ".join(names[ONE]))
    return value
