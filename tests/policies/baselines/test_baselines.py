"""Published methods to compare with: their update rules, worked by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from mixloop.policies.baselines.ado import AdoOptions, fit_laws, mixture
from mixloop.policies.baselines.odm import distribution, exploration
from mixloop.policies.baselines.source_losses import consumption, source_losses
from mixloop.policies.interface import (
    BenchmarkScore,
    Evaluation,
    Hold,
    Metric,
    Observation,
    Proposal,
    Source,
    load_policy,
)

UNIT = 10**9


def score(value: float, higher: bool = False) -> BenchmarkScore:
    name = "accuracy" if higher else "bits_per_byte"
    return BenchmarkScore(metrics={name: Metric(value=value, higher_is_better=higher)})


def evaluation(step: int, **fields: Any) -> Evaluation:
    return Evaluation(step=step, tokens=step * UNIT, **fields)


def run(*evaluations: Evaluation, **fields: Any) -> Observation:
    sources = {
        "web": Source(unique_tokens=6 * UNIT, tags=("mmlu",)),
        "maths": Source(unique_tokens=2 * UNIT, tags=("gsm8k", "numbers")),
        "later": Source(unique_tokens=9 * UNIT, standby=True),
    }
    weights = {"web": 0.75, "maths": 0.25, "later": 0.0}
    return Observation(**{"sources": sources, "weights": weights, "evaluations": evaluations}
                       | fields)  # fmt: skip


def proposal(ref: str, observation: Observation, **options: Any) -> Proposal:
    reply = load_policy(ref, options).decide(observation)
    assert isinstance(reply, Proposal)
    return reply


def test_proportional_follows_size_and_leaves_standby_out() -> None:
    observation = run(weights={"web": 0.5, "maths": 0.5})
    assert proposal("proportional", observation).weights == {
        "web": 0.75,
        "maths": 0.25,
        "later": 0.0,
    }
    assert isinstance(load_policy("proportional").decide(run()), Hold)
    empty = run(sources={"web": Source(unique_tokens=0)}, weights={"web": 1.0})
    assert isinstance(load_policy("proportional").decide(empty), Hold)


def test_the_loss_of_a_source_is_its_own_training_loss_where_there_is_one() -> None:
    recorded = evaluation(
        1, losses={"web": 2.0, "maths": math.nan}, benchmarks={"mmlu": score(1.0)}
    )
    other = evaluation(2, benchmarks={"mmlu": score(1.0)})
    assert source_losses(run(recorded, other), ["web", "maths"]) == [{"web": 2.0}, {}]


def test_else_it_is_that_of_the_benchmarks_it_is_tagged_with() -> None:
    scores = {
        "mmlu": score(1.0),
        "gsm8k": score(2.0),
        "numbers": score(4.0),
        "code": score(0.9, higher=True),
        "seen": score(9.0),
        "odd": score(math.nan),
    }
    observation = run(evaluation(1, benchmarks=scores), watch=("seen",))
    losses = source_losses(observation, ["web", "maths", "later"])[0]
    assert losses == {"web": 1.0, "maths": 3.0, "later": pytest.approx(7 / 3)}
    assert source_losses(run(evaluation(1)), ["web"]) == [{}]


def test_the_share_that_was_consumed_comes_from_the_ledger() -> None:
    observation = run(
        evaluation(1, drawn={"web": 3.0, "maths": 1.0}, weights={"web": 0.5, "maths": 0.5}),
        evaluation(2, drawn={"web": 3.0, "maths": 4.0}),
        evaluation(3, weights={"web": 0.2, "maths": 0.2}),
    )
    drawn, shares = consumption(observation, ["web", "maths"])
    assert shares == pytest.approx(np.array([[0.75, 0.25], [0.0, 1.0], [0.5, 0.5]]))
    assert drawn[:2] == pytest.approx(np.array([[3.0, 1.0], [3.0, 4.0]]))


def test_odm_follows_exp3_by_hand() -> None:
    shares = {"web": 0.8, "maths": 0.2}
    past = [evaluation(t, losses={"web": 2.0, "maths": 1.0}, weights=shares) for t in (1, 2, 3)]
    reply = proposal("odm", run(*past))
    rewards = {"web": 3 * 2.0 / 0.8, "maths": 3 * 1.0 / 0.2}
    assert reply.evidence["rewards"] == pytest.approx(rewards)
    last, now = math.sqrt(math.log(2) / 6), math.sqrt(math.log(2) / 8)
    power = math.exp(last * (rewards["web"] - rewards["maths"]))
    expected = (1 - 2 * now) * power / (1 + power) + now
    assert reply.weights == pytest.approx({"web": expected, "maths": 1 - expected, "later": 0.0})


def test_odm_smooths_or_counts_several_updates() -> None:
    shares = {"web": 0.5, "maths": 0.5}
    past = [evaluation(t, losses={"web": 2.0, "maths": 1.0}, weights=shares) for t in (1, 2)]
    smoothed = proposal("odm", run(*past), smoothing=0.9).evidence["rewards"]
    assert smoothed == pytest.approx({"web": 4.0 * 0.19, "maths": 2.0 * 0.19})
    counted = proposal("odm", run(*past), updates=50).evidence
    assert counted["updates"] == 100
    assert counted["rewards"] == pytest.approx({"web": 400.0, "maths": 200.0})
    assert isinstance(load_policy("odm").decide(run(evaluation(1))), Hold)


def test_exploration_is_uniform_at_first_and_shrinks() -> None:
    assert exploration(5, 1) == 1 / 5
    assert exploration(5, 10_000) == pytest.approx(math.sqrt(math.log(5) / 50_000))
    assert distribution({"a": 9.0, "b": 1.0, "c": 1.0}, 1) == pytest.approx(
        dict.fromkeys("abc", 1 / 3)
    )
    late = distribution({"a": 1e6, "b": 1.0}, 10**6)
    assert late["a"] == pytest.approx(1 - exploration(2, 10**6 + 1))
    assert distribution({"a": 3.0}, 1) == {"a": 1.0}


@pytest.mark.parametrize("unit", [1.0, 1e9])
def test_ado_finds_a_planted_law(unit: float) -> None:
    tokens = np.arange(1, 31)[:, None] * np.array([0.6, 0.3, 0.1]) * unit
    floor, scale = np.array([1.5, 2.0, 0.0]), np.array([1.0, 0.5, 2.0])
    alpha = np.array([0.3, 0.5, 0.15])
    losses = floor + scale * (tokens / unit) ** -alpha
    law = fit_laws(tokens, losses, least=4)
    assert law.fitted.all()
    assert law.alpha == pytest.approx(alpha)
    assert law.floor == pytest.approx(floor, abs=1e-6)
    true_slopes = alpha * (losses - floor)[-1] / tokens[-1]
    assert law.slopes(tokens[-1]) == pytest.approx(true_slopes, rel=1e-4)


def test_ado_gives_a_loss_that_rises_no_slope_and_an_unknown_one_the_mean() -> None:
    tokens = np.arange(1, 11)[:, None] * np.ones(3)
    losses = np.stack([2 + tokens[:, 0] ** -0.4, 2 + 0.1 * tokens[:, 1], np.full(10, np.nan)], 1)
    law = fit_laws(tokens, losses, least=4)
    slopes = law.slopes(tokens[-1])
    assert list(law.fitted) == [True, True, False]
    assert slopes[1] == 0
    assert slopes[0] > 0
    assert slopes[2] == pytest.approx(slopes[0] / 2)


def test_ado_mixes_by_hand() -> None:
    tokens = np.array([[1.0, 1.0], [2.0, 2.0], [3.0, 3.0], [4.0, 4.0]])
    losses = np.stack([2 + tokens[:, 0] ** -0.5, 1 + 3 * tokens[:, 1] ** -0.5], 1)
    law = fit_laws(tokens, losses, least=4)
    prior, shares = np.array([0.5, 0.5]), np.full((4, 2), 0.5)
    chosen = mixture(law, tokens, shares, prior, AdoOptions())
    # the slopes are 1 to 3 throughout, so every preference is (1/4, 3/4)
    preferred = np.array([0.25, 0.75])
    mean = (prior + 3 * preferred) / 4
    assert chosen == pytest.approx(0.9 * mean + 0.1 * preferred, rel=1e-6)
    floored = mixture(law, tokens, shares, prior, AdoOptions(floor=0.4, smoothing=0.0))
    assert floored.min() == pytest.approx(0.25 / 1.0, abs=1e-6)  # at most half an even share


def test_ado_waits_for_losses_and_then_follows_the_steeper_law() -> None:
    def past(count: int) -> list[Evaluation]:
        drawn = [{"web": t * UNIT / 2.0, "maths": t * UNIT / 2.0} for t in range(1, count + 1)]
        return [
            evaluation(
                t,
                drawn=spent,
                weights={"web": 0.5, "maths": 0.5},
                losses={"web": 2 + 0.1 * t**-0.3, "maths": 1 + 2.0 * t**-0.3},
            )
            for t, spent in enumerate(drawn, start=1)
        ]

    waiting = load_policy("ado").decide(run(*past(3)))
    assert isinstance(waiting, Hold)
    assert waiting.verdict == "inconclusive"
    reply = proposal("ado", run(*past(12)))
    assert reply.weights["maths"] > 0.7
    assert reply.weights["later"] == 0
    by_size = proposal("ado", run(*past(12)), prior="size")
    assert by_size.weights["maths"] < reply.weights["maths"]
