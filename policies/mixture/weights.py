"""Small arithmetic on mixtures (source name to share of training tokens)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from math import fsum
from typing import Annotated

from pydantic import AfterValidator

from mixloop.common.errors import suggest
from mixloop.policies.interface import Observation, PastDecision, PolicyError

# well above the quantisation to 2^-24 per source, well below any change worth an order
REACHED = 1e-4


def total_variation(first: Mapping[str, float], second: Mapping[str, float]) -> float:
    """Half the summed absolute difference: the share of tokens that would come from elsewhere."""
    names = dict.fromkeys([*first, *second])  # in order: the sum is the same in every process
    return fsum(abs(first.get(name, 0.0) - second.get(name, 0.0)) for name in names) / 2


def _check_mixture(weights: dict[str, float]) -> dict[str, float]:
    """The weights unchanged, if they lie on the simplex (to 1e-6)."""
    for name, weight in weights.items():
        if not math.isfinite(weight) or weight < 0:
            raise ValueError(f"{name} has weight {weight}; weights are shares from 0 to 1")
    total = fsum(weights.values())
    if abs(total - 1) > 1e-6:
        raise ValueError(f"the weights sum to {total:g}, not 1; scale them")
    return weights


Mixture = Annotated[dict[str, float], AfterValidator(_check_mixture)]


def check_names(
    kind: str, used: Iterable[str], names: Iterable[str], where: str = "policy.with"
) -> None:
    """Raise ``PolicyError`` for the first name used that isn't among ``names``."""
    existing = list(names)
    for name in used:
        if name not in existing:
            raise PolicyError(f"{where}: no {kind} is called {name!r}{suggest(name, existing)}")


def in_force(observation: Observation) -> dict[str, float]:
    """The mixture in force over exactly the observation's sources, summing to 1."""
    weights = {name: observation.weights.get(name, 0.0) for name in observation.sources}
    total = fsum(weights.values())
    if total <= 0:
        raise PolicyError("the observation's mixture gives no source any weight")
    # a source that vanished leaves its share to the others
    return {n: w / total for n, w in weights.items()} if abs(total - 1) > 1e-9 else weights


def first_mixture(observation: Observation) -> Mapping[str, float]:
    """The mixture that the run began with, as far as the observation tells."""
    evaluated = (evaluation.weights for evaluation in observation.evaluations)
    decided = (decision.weights_before for decision in observation.decisions[:1])
    recorded = (m for m in (*evaluated, *decided) if any(weight > 0 for weight in m.values()))
    return next(recorded, None) or in_force(observation)


def rules_of(decision: PastDecision) -> frozenset[str]:
    """Names of the rules behind a decision."""
    listed = decision.evidence.get("rules")
    names = [str(name) for name in listed] if isinstance(listed, list) else []
    return frozenset([*names, *([decision.rule] if decision.rule else [])])


def still_reaching(observation: Observation, target: Mapping[str, float], rule: str) -> bool:
    """Whether a target mixture proposed under ``rule`` is still to be reached.

    Guards may let only part of a change through, so the target is proposed until it was in force
    once. It is given up when somebody else intervened meanwhile (an operator's order isn't undone)
    or when the last attempt got no closer (a hard limit is in the way).
    """
    mixtures = [observation.weights]
    last: PastDecision | None = None
    for decision in observation.interventions():
        if rule not in rules_of(decision):
            return False
        last = decision
        mixtures += [decision.weights_before, decision.weights_after or {}]
    if any(total_variation(weights, target) <= REACHED for weights in mixtures if weights):
        return False
    if last is None:
        return True
    before = total_variation(last.weights_before, target)
    return before - total_variation(last.weights_after or last.weights_before, target) > REACHED
