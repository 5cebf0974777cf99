"""Never worse than left alone: what the run's history says of the policy's own changes. Pure.

A significant fall since a change (see ``regression``) sends the mixture back to the last good one,
and the policy on probation: its steps are smaller for some evaluations. After a second fall it is
held, until a person says otherwise (``resume``, or an order of theirs) or a new experiment has
ended. The ways back are decisions as all others, so that the whole state follows from the
decisions and evaluations of an observation: a restart, a replay and a back-test agree.

What a person decided isn't undone: their orders, and stages declared in advance. A fall since one
of those is only flagged.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal

from pydantic import Field

from mixloop.policies.interface import (
    ExperimentResult,
    Observation,
    OptionsModel,
    PastDecision,
)
from mixloop.policies.mixture import REACHED, total_variation

from .receipts import receipts_of
from .regression import Change, Fall, worst_fall

RULE = "regression"  # the rule of a way back, in its evidence
LOOKED_AT = 24  # newest changes that may be to blame

GOING_ON = "going on"  # the state of a way back that carries on an earlier one

State = Literal["free", "probation", "held"]


class RegressionSettings(OptionsModel):
    """``guards.regression`` of run.yaml: never worse than left alone.

    ``level``: probability of a false alarm in a whole run. ``step``: part of ``max_change`` that a
    policy on probation may take, for ``evaluations`` after the mixture went back.
    """

    level: Annotated[float, Field(gt=0, lt=0.5)] = 0.05
    step: Annotated[float, Field(gt=0, le=1)] = 0.5
    evaluations: Annotated[int, Field(ge=0)] = 8


@dataclass(frozen=True)
class PolicyStanding:
    """How a policy stands with the guard.

    Attributes:
        state: ``probation``: its steps are the part ``step`` of what they might be; ``held``: it
            may change nothing.
        since: the decision that brought it there; empty when free.
        step: part of ``max_change``.
        back_to: the mixture to go back to now, because of ``why``; None: nothing is to be undone.
        flagged: a fall since a person's order, which stays; empty for none.
        evidence: of the way back.
    """

    state: State = "free"
    since: str = ""
    step: float = 1.0
    back_to: dict[str, float] | None = None
    why: str = ""
    flagged: str = ""
    evidence: dict[str, Any] | None = None


def policy_standing(
    observation: Observation, settings: RegressionSettings | None
) -> PolicyStanding:
    """How the policy stands, and whether the mixture is to go back now.

    ``settings`` None: the guard is off.
    """
    if settings is None or len(observation.evaluations) < 2:
        return PolicyStanding()
    state, since, before = _sentence(observation, settings)
    step = settings.step if state == "probation" else 1.0
    floor, changes = _changes(observation)
    if (rest := _rest(observation)) is not None:
        return rest
    fall = _fall(observation, changes, settings)
    if fall is not None:
        further: State = "held" if before else "probation"
        why = f"{fall}; back to the mixture before {fall.change.decision}"
        back_to = dict(fall.change.back_to)
        evidence = {"rule": RULE, "state": further, "since": fall.change.decision} | _figures(fall)
        return PolicyStanding(state, since, step, back_to, why, evidence=evidence)
    flagged = _fall(observation, floor, settings)
    return PolicyStanding(state, since, step, flagged=str(flagged) if flagged else "")


def _rest(observation: Observation) -> PolicyStanding | None:
    """The rest of a way back that the trainer's own limit cut; None where there is none."""
    orders = observation.interventions()
    if not orders or not is_way_back(orders[-1]) or not observation.in_force:
        return None
    last = orders[-1]
    back_to = _over_sources(observation, last.evidence.get("back_to") or {})
    if not back_to or total_variation(back_to, observation.weights) <= REACHED:
        return None
    evidence = {"rule": RULE, "state": GOING_ON, "since": last.evidence.get("since")}
    why = f"the rest of the way back that {last.id} began"
    return PolicyStanding("probation", last.id, 1.0, back_to, why, evidence=evidence)


def _figures(fall: Fall) -> dict[str, Any]:
    figures = asdict(fall)
    del figures["change"]
    return figures


def _fall(
    observation: Observation,
    changes: Sequence[tuple[PastDecision, Change]],
    settings: RegressionSettings,
) -> Fall | None:
    receipts = {
        decision.id: receipts_of(observation, decision)
        for decision, _ in changes
        if observation.experiments or observation.receipts
    }
    blamed = [change for _, change in changes]
    return worst_fall(observation, blamed, settings.level, receipts)


def is_way_back(decision: PastDecision) -> bool:
    """Whether a decision took the mixture back because the run had become worse."""
    return decision.evidence.get("rule") == RULE and "state" in decision.evidence


def by_person(decision: PastDecision) -> bool:
    """Whether a decision is a person's: an operator's own order, or a stage declared in advance.

    A proposal of the policy's that a person approved stays the policy's.
    """
    evidence = decision.evidence
    if evidence.get("declared") is True or evidence.get("restored") is not None:
        return True
    return "operator" in evidence and "approves" not in evidence


def _speaks(decision: PastDecision) -> bool:
    """Whether a person said with it that the policy may go on."""
    return "operator" in decision.evidence and decision.verdict in ("intervene", "hold")


def _sentence(observation: Observation, settings: RegressionSettings) -> tuple[State, str, int]:
    """The policy's state, the decision that it is of, and the falls that still count."""
    counted, held, last = _counted(observation.decisions)
    if held is not None:
        return (
            ("free", "", 0)
            if _tried_since(held, observation.experiments)
            else ("held", held.id, counted)
        )
    since = 0 if last is None else sum(e.tokens > last.tokens for e in observation.evaluations)
    if last is not None and since < settings.evaluations:
        return "probation", last.id, counted
    return "free", "", counted


def held_since(
    decisions: Iterable[PastDecision], experiments: Iterable[ExperimentResult] = ()
) -> str:
    """The decision that the policy is held since; empty when it isn't."""
    _, held, _ = _counted(decisions)
    return held.id if held is not None and not _tried_since(held, experiments) else ""


def _counted(
    decisions: Iterable[PastDecision],
) -> tuple[int, PastDecision | None, PastDecision | None]:
    """The falls that still count, the one that the policy is held since, and the last."""
    counted = 0
    held: PastDecision | None = None
    last: PastDecision | None = None
    for decision in decisions:
        if is_way_back(decision) and decision.evidence["state"] != GOING_ON:
            last = decision
            held = decision if decision.evidence["state"] == "held" else None
            counted = 2 if held is not None else 1
        elif held is not None and _speaks(decision):
            counted, held, last = 0, None, None
    return counted, held, last


def _tried_since(held: PastDecision, experiments: Iterable[ExperimentResult]) -> bool:
    """Whether an experiment from a later checkpoint is done."""
    return any(e.state == "done" and e.tokens > held.tokens for e in experiments)


def _changes(
    observation: Observation,
) -> tuple[list[tuple[PastDecision, Change]], list[tuple[PastDecision, Change]]]:
    """The person's order that the newest stretch began with, if one did; the policy's own since."""
    orders = [d for d in observation.interventions() if d.generation is not None]
    floors = [i for i, order in enumerate(orders) if is_way_back(order) or by_person(order)]
    newest = floors[-1] if floors else -1
    generation = orders[newest].generation if floors else 0
    floor: list[tuple[PastDecision, Change]] = []
    if floors and by_person(orders[newest]):
        before = orders[floors[-2]].generation if len(floors) > 1 else 0
        floor = _split(observation, [orders[newest]], before or 0)
    own = orders[newest + 1 :][-LOOKED_AT:]
    return floor, _split(observation, own, generation or 0)


def _split(
    observation: Observation, orders: Sequence[PastDecision], since: int
) -> list[tuple[PastDecision, Change]]:
    """These orders among the evaluations, those before ``since`` not looked at.

    Of several that came between the same two evaluations, the first stands for all.
    """
    generations = [evaluation.generation for evaluation in observation.evaluations]
    first = next((i for i, g in enumerate(generations) if g >= since), len(generations))
    asked = _asked(observation)
    found: dict[int, tuple[PastDecision, Change]] = {}
    for order in orders:
        assert order.generation is not None
        good = next((i for i, g in enumerate(generations) if g >= order.generation), 0) - 1
        if good < first or good in found:
            continue
        back_to = _over_sources(observation, observation.evaluations[good].weights)
        back_to = back_to or _over_sources(observation, order.weights_before)
        if back_to and total_variation(back_to, asked) > REACHED:
            found[good] = (order, Change(order.id, first, good, back_to))
    return list(found.values())


def _over_sources(observation: Observation, weights: Mapping[str, float]) -> dict[str, float]:
    """The mixture over the run's sources of now; empty where it has weight on none of them."""
    total = math.fsum(weights.get(name, 0.0) for name in observation.sources)
    return {n: weights.get(n, 0.0) / total for n in observation.sources} if total > 0 else {}


def _asked(observation: Observation) -> dict[str, float]:
    """The mixture last asked for, in force or not."""
    orders = observation.interventions()
    if observation.in_force or not orders or not orders[-1].weights_after:
        return observation.weights
    return orders[-1].weights_after
