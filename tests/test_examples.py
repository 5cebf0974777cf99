"""The examples work as they stand."""

from __future__ import annotations

from pathlib import Path

import pytest

from mixloop.policies import (
    BenchmarkScore,
    Evaluation,
    Hold,
    Metric,
    Observation,
    PolicyError,
    Proposal,
    Source,
    load_policy,
)

EXAMPLES = Path(__file__).parent.parent / "examples"
REF = "./keep_moving.py:KeepMoving"
OPTIONS = {"to": "maths", "from": "web", "step": 0.05}


def evaluation(step: int, values: list[float]) -> Evaluation:
    items = {f"i{n}": {"bits_per_byte": value, "bytes": 10.0} for n, value in enumerate(values)}
    metric = Metric(
        value=sum(values) / len(values), stderr=0.1, n=len(values), higher_is_better=False
    )
    score = BenchmarkScore(metrics={"bits_per_byte": metric}, items=items)
    return Evaluation(step=step, tokens=step * 10, benchmarks={"gsm8k": score})


def observation(*evaluations: Evaluation) -> Observation:
    sources = {name: Source(unique_tokens=1000) for name in ("web", "maths")}
    return Observation(sources=sources, weights={"web": 0.9, "maths": 0.1}, evaluations=evaluations)


def test_it_waits_then_moves_then_lets_a_gain_stand() -> None:
    policy = load_policy(REF, OPTIONS, base=EXAMPLES)
    first = evaluation(1, [2.0, 2.1, 1.9, 2.2])
    same = evaluation(2, [2.01, 2.09, 1.91, 2.2])
    better = evaluation(3, [1.5, 1.61, 1.39, 1.7])
    waiting = policy.decide(observation(first))
    assert isinstance(waiting, Hold)
    assert waiting.verdict == "inconclusive"
    moving = policy.decide(observation(first, same))
    assert isinstance(moving, Proposal)
    assert moving.weights == pytest.approx({"web": 0.85, "maths": 0.15})
    assert isinstance(policy.decide(observation(same, better)), Hold)


def test_a_wrong_option_is_named() -> None:
    with pytest.raises(PolicyError, match="stepp"):
        load_policy(REF, {**OPTIONS, "stepp": 1}, base=EXAMPLES)
