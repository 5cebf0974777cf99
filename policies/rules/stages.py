"""Declared stages of ``rules``: the mixtures a run was planned with, by tokens or by phase.

SmolLM2's run was four of them (Allal et al. 2025, arXiv 2502.02737, section 4). A stage is
approved in advance and its whole plan travels with the order, so that the trainer itself switches
at the exact token, with or without a controller. An intervention holds until the end of the stage
it was made in; the next stage then comes as declared. So does it after an operator's order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated

from pydantic import Field, model_validator

from mixloop.common.units import Tokens, format_tokens
from mixloop.policies.interface import Observation, OptionsModel, Phases, Proposal
from mixloop.policies.mixture import REACHED, Mixture, in_force, total_variation

Stretch = tuple[int, dict[str, float]]


class Stage(OptionsModel):
    """A mixture for a stretch of the run.

    To ``until`` tokens, or while the learning rate is in ``phase``. The last stage of the ones by
    tokens may leave ``until`` out: to the end. Stages by tokens follow one another from the start
    of the run; while a stage's phase lasts it takes precedence over them.
    """

    name: Annotated[str, Field(min_length=1)] | None = None
    until: Tokens | None = None
    phase: Phases | None = None
    weights: Mixture

    @model_validator(mode="after")
    def _one_span(self) -> Stage:
        if self.until is not None and self.phase is not None:
            raise ValueError("give until or phase, not both")
        if self.phase is not None and not self.phase:
            raise ValueError("phase is empty; name warmup, stable or decay")
        return self


def check_order(stages: Sequence[Stage]) -> None:
    """That the stages' spans follow one another, their phases don't overlap and names differ.

    Raises:
        ValueError: naming the stage, the value and the mend.
    """
    by_tokens = [(name, stage) for name, stage in named(stages) if stage.phase is None]
    last = 0
    for index, (name, stage) in enumerate(by_tokens):
        if stage.until is None:
            if index < len(by_tokens) - 1:
                raise ValueError(f"stage {name!r} has no until but isn't the last; give it one")
            continue
        if stage.until <= last:
            reached = f"{format_tokens(stage.until)}, not after {format_tokens(last)}"
            raise ValueError(f"stage {name!r} ends at {reached}; put the stages in order")
        last = stage.until
    _check_distinct("name", [name for name, _ in named(stages)])
    _check_distinct("phase", [phase for stage in stages for phase in stage.phase or ()])


def _check_distinct(kind: str, values: Sequence[str]) -> None:
    for value in values:
        if values.count(value) > 1:
            raise ValueError(f"two stages have the {kind} {value!r}; change one")


def named(stages: Sequence[Stage]) -> list[tuple[str, Stage]]:
    """The stages with their names; one without is called by its place, from 1."""
    return [(stage.name or str(place), stage) for place, stage in enumerate(stages, 1)]


def declared_stages(stages: Sequence[Stage], observation: Observation) -> list[tuple[str, Stretch]]:
    """Name and stretch of the stage that is due now and of those after it.

    ``until`` are training tokens, cut to the budget; the last stage by tokens holds to the budget.
    A stage by phase has an end only where that is known: decay lasts to the budget, and of the
    others only the tokens to the next evaluation are declared.
    """

    def over_sources(weights: Mapping[str, float]) -> dict[str, float]:
        return {name: weights.get(name, 0.0) for name in observation.sources}

    for name, stage in named(stages):
        if stage.phase and observation.phase in stage.phase:
            until = observation.budget
            if observation.phase != "decay":
                until = min(until, observation.tokens + max(observation.every, 1))
            return [(name, (until, over_sources(stage.weights)))]
    declared = []
    spans = [(name, stage) for name, stage in named(stages) if stage.phase is None]
    start = 0
    for place, (name, stage) in enumerate(spans):
        end = observation.budget if place == len(spans) - 1 else int(stage.until or 0)
        end = min(end, observation.budget)
        if end > max(start, observation.tokens):
            declared.append((name, (end, over_sources(stage.weights))))
        start = max(start, end)
    return declared


def declared_plan(stages: Sequence[Stage], observation: Observation) -> list[Stretch]:
    """What the stages declare from now on, as a proposal's plan; empty without a stage."""
    return [stretch for _, stretch in declared_stages(stages, observation)]


def is_declared(
    stages: Sequence[Stage],
    observation: Observation,
    weights: Mapping[str, float],
    plan: Sequence[tuple[int, Mapping[str, float]]],
) -> bool:
    """Whether a proposal is nothing but declared stages.

    Its plan must be the declared one; the stretch to the end of the current stage may instead keep
    the mixture in force.
    """
    declared = declared_plan(stages, observation)
    if not declared or _untils(plan) != _untils(declared):
        return False
    pairs = [(asked, stage) for (_, asked), (_, stage) in zip(plan, declared, strict=True)]
    first, current = pairs[0]
    allowed = [current, in_force(observation)]
    return (
        all(_same(asked, stage) for asked, stage in pairs[1:])
        and _same(first, weights)
        and any(_same(weights, mixture) for mixture in allowed)
    )


def stage_due(stages: Sequence[Stage], observation: Observation) -> Proposal | None:
    """The declared plan, where the trainer doesn't follow it yet."""
    declared = declared_stages(stages, observation)
    if not declared:
        return None
    (name, (until, weights)), later = declared[0], declared[1:]
    plan = [stretch for _, stretch in declared]
    carried = _untils(observation.plan) == _untils(plan) or not later
    if carried and total_variation(in_force(observation), weights) <= REACHED:
        return None
    if _entered(stages, name, observation):
        if carried:
            return None
        weights = in_force(observation)
        plan[0] = (until, weights)
    names = [name for name, _ in declared]
    reason = f"declared stage {name} to {format_tokens(until)}"
    reason += f", then {', '.join(names[1:])}" if later else ""
    rule = f"stage {name}"
    evidence = {"rule": rule, "rules": [rule], "stages": names}
    return Proposal(weights, reason, plan, evidence, declared=True)


def carry_on(
    stages: Sequence[Stage], observation: Observation, weights: Mapping[str, float]
) -> list[Stretch]:
    """The plan of another mixture for what is left of the current stage."""
    plan = declared_plan(stages, observation)
    return [(plan[0][0], dict(weights)), *plan[1:]] if plan else []


def stage_names(stages: Sequence[Stage], observation: Observation) -> list[str]:
    """Names of the stages that an order made now carries: the current one and those after it."""
    return [name for name, _ in declared_stages(stages, observation)]


def _entered(stages: Sequence[Stage], name: str, observation: Observation) -> bool:
    """Whether the order in force was made in this stage or carried it."""
    orders = observation.interventions()
    if not orders:
        return False
    carried = orders[-1].evidence.get("stages")
    if isinstance(carried, list):
        return name in carried
    place = [other for other, _ in named(stages)].index(name)
    start = max((stage.until or 0 for stage in stages[:place]), default=0)
    # the first stage, and one by phase, have no start to go by
    return stages[place].phase is None and orders[-1].tokens >= start > 0


def _same(first: Mapping[str, float], second: Mapping[str, float]) -> bool:
    return total_variation(first, second) <= 1e-6


def _untils(plan: Sequence[tuple[int, Mapping[str, float]]]) -> list[int]:
    return [until for until, _ in plan]
