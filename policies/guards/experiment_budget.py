"""The guard of experiments: mixtures of the run's sources, whole steps, within the budget."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import fsum, isfinite

from mixloop.common.errors import suggest
from mixloop.common.units import format_tokens
from mixloop.policies.interface import Experiment, PolicyError

from .guard_state import TOLERANCE

MOST_BRANCHES = 128
NONE_ALLOWED = "experiments.budget is 0: give it a share of the run's tokens, such as 2%"


def planned_cost(asked: Experiment) -> int:
    """Training tokens of all its branches, the control among them."""
    return (len(asked.branches) + 1) * asked.tokens


def bound_experiment(
    asked: Experiment, sources: Iterable[str], *, left: int, step_tokens: int
) -> Experiment:
    """The experiment as it may be made: every source named, shares that sum to 1, whole steps.

    Unlike a proposal it is never made smaller to fit a bound: fewer branches would be another
    experiment.

    Args:
        asked: what the policy asks for.
        sources: the run's.
        left: tokens that the budget of experiments has left.
        step_tokens: of one optimizer step of the run; a branch trains no part of one.

    Raises:
        PolicyError: why it is refused, in one line.
    """
    if left <= 0:
        raise PolicyError(f"{format_tokens(planned_cost(asked))} tokens: the budget is spent")
    if len(asked.branches) > MOST_BRANCHES:
        raise PolicyError(f"{len(asked.branches)} branches are too many: {MOST_BRANCHES} at most")
    if asked.tokens < step_tokens:
        raise PolicyError(f"{asked.tokens} tokens a branch are less than one step of {step_tokens}")
    names = list(sources)
    merge = asked.merge
    if merge is not None:
        for name, most in merge.most.items():
            if name not in names or not (isfinite(most) and 0 <= most <= 1):
                raise PolicyError(f"merge.most: {name} {most:g} is no bound on a source's share")
        merge = merge.model_copy(update={"prior": _mixture(merge.prior, names, "merge.prior")})
    bounded = asked.model_copy(
        update={
            "branches": tuple(
                _mixture(weights, names, f"branch {number}")
                for number, weights in enumerate(asked.branches, start=1)
            ),
            "tokens": asked.tokens - asked.tokens % step_tokens,
            "merge": merge,
        }
    )
    cost = planned_cost(bounded)
    if cost > left:
        count = len(asked.branches)
        raise PolicyError(
            f"{count} branch{'es' * (count != 1)} and a control of {format_tokens(bounded.tokens)} "
            f"tokens are {format_tokens(cost)}, the budget has {format_tokens(left)} left"
        )
    return bounded


def bound_receipt(weights: Mapping[str, float], *, tokens: int, left: int) -> Experiment:
    """The twin of a change that goes on without it, on ``weights`` and as the run.

    Args:
        weights: the mixture in force before the change.
        tokens: how long, in whole steps.
        left: tokens that the budget of experiments has left.

    Raises:
        PolicyError: why there is none, in one line.
    """
    if tokens > left:
        raise PolicyError(f"a twin of {tokens:,} tokens, the budget has {left:,} left")
    return Experiment([weights], tokens, "a twin without the change", schedule="as the run")


def _mixture(weights: Mapping[str, float], names: list[str], where: str) -> dict[str, float]:
    for name, weight in weights.items():
        if name not in names:
            raise PolicyError(f"{where}: no source is called {name!r}{suggest(name, names)}")
        if not isfinite(weight) or weight < 0:
            raise PolicyError(f"{where}: {name} has weight {weight}, which is no share")
    total = fsum(weights.values())
    if abs(total - 1) > TOLERANCE:
        raise PolicyError(f"{where}: the weights sum to {total:g}, not 1")
    return {name: weights.get(name, 0.0) / total for name in names}
