"""What a condition of ``rules`` answers, and what the conditions share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from mixloop.common.paired import Difference
from mixloop.policies.interface import MissingScore, Observation

Outcome = Literal["holds", "fails", "inconclusive"]


@dataclass(frozen=True)
class ConditionResult:
    """What a condition gave: ``text`` is readable either way, ``gap`` how far from holding it is.

    The gap is in standard errors where there are any; infinite when nothing could be measured.
    """

    outcome: Outcome
    text: str
    gap: float = 0.0
    evidence: dict[str, Any] = field(default_factory=dict)


def directed(score: float, z: float) -> tuple[Outcome, float]:
    """Holds from ``z``, fails from ``-z``, and in between nothing can be said."""
    if score >= z and score > 0:
        return "holds", 0.0
    return ("fails" if score <= -z else "inconclusive"), z - score


def span(
    observation: Observation, benchmarks: Sequence[str], metric: str | None, over: int
) -> tuple[int, int]:
    """Indices of the newest evaluation and the one ``over`` back among those with a score.

    Raises:
        MissingScore: when the newest has none, or there are too few.
    """
    name = "+".join(benchmarks)
    each = [set(observation.scored(benchmark, metric)) for benchmark in benchmarks]
    scored = sorted(set.intersection(*each))
    newest = len(observation.evaluations) - 1
    if not scored or scored[-1] != newest:
        at = f" at step {observation.evaluations[-1].step}" if observation.evaluations else ""
        raise MissingScore(f"{name} has no score{at}" if at else "no evaluation yet")
    if len(scored) <= over:
        raise MissingScore(f"{name} has {len(scored)} of the {over + 1} evaluations needed")
    return scored[-1 - over], newest


def tokens_of(observation: Observation, *indices: int) -> list[int]:
    """Tokens at evaluations."""
    return [observation.evaluations[index].tokens for index in indices]


def measured(condition: str, benchmark: str, metric: str, **values: Any) -> dict[str, Any]:
    """What a condition measured, as evidence."""
    return {"condition": condition, "benchmark": benchmark, "metric": metric, **values}


def changed(condition: str, change: Difference, **values: Any) -> dict[str, Any]:
    """A difference that a condition measured, as evidence."""
    numbers = {key: getattr(change, key) for key in ("gain", "stderr", "z", "n", "paired")}
    numbers |= {"stderr_items": change.items, "stderr_trajectory": change.trajectory}
    return measured(condition, change.benchmark, change.metric, **numbers, **values)
