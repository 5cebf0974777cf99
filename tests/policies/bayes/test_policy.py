"""The in-run ``bayes`` policy: what it finds, when it holds, and what it survives."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from mixloop.policies.bayes.forecast import Forecast, best_mixture, shrunk
from mixloop.policies.bayes.optuna_trials import decode, encode
from mixloop.policies.bayes.posterior import Posterior
from mixloop.policies.bayes.trial_data import trial_data
from mixloop.policies.interface import (
    BenchmarkScore,
    Evaluation,
    Goal,
    Hold,
    Limits,
    Metric,
    Observation,
    PolicyError,
    Proposal,
    Source,
    load_policy,
)
from mixloop.policies.worlds.families import Dilution, Exponential, Flat, Power
from mixloop.tools.simulate.simulation import SimulatedRun, simulate
from mixloop.tools.simulate.virtual_run import uniform_start, virtual_config

RANDOM = "tests/support/random_mixtures.py:RandomMixtures"
UNIT = 10**9


def observe(
    slopes: Mapping[str, float],
    *,
    count: int = 12,
    sources: int = 3,
    noise: float = 0.001,
    phase: str | None = None,
    budget: int = 40,
    **fields: Any,
) -> Observation:
    """A run whose mixture wandered; ``slopes``: how much source a's share lowers each benchmark's
    log loss."""
    drawing = np.random.default_rng(7)
    names = [chr(ord("a") + index) for index in range(sources)]
    drawn, evaluations = np.zeros(sources), []
    for index in range(1, count + 1):
        weights = (
            np.full(sources, 1 / sources) if index == 1 else drawing.dirichlet(np.ones(sources))
        )
        drawn = drawn + weights * UNIT
        share = drawn[0] / drawn.sum()
        scores = {
            name: 0.5 + index**-0.3 * math.exp(-slope * share) + drawing.normal(0, noise)
            for name, slope in slopes.items()
        }
        evaluations.append(
            Evaluation(
                step=index,
                tokens=index * UNIT,
                phase=phase,
                weights=dict(zip(names, map(float, weights), strict=True)),
                drawn=dict(zip(names, map(float, drawn), strict=True)),
                benchmarks={name: scored(value, noise) for name, value in scores.items()},
            )
        )
    last = evaluations[-1].weights if evaluations else dict.fromkeys(names, 1 / sources)
    return Observation(
        **{
            "step": count,
            "tokens": count * UNIT,
            "budget": budget * UNIT,
            "every": UNIT,
            "phase": phase,
            "sources": {name: Source(unique_tokens=10**15) for name in names},
            "weights": last,
            "evaluations": tuple(evaluations),
            "steering": dict.fromkeys(slopes, "accuracy"),
            "limits": Limits(max_epochs=5, max_change=0.2),
            **fields,
        }
    )


def scored(value: float, stderr: float | None) -> BenchmarkScore:
    metric = Metric(value=value, stderr=stderr, n=100, higher_is_better=False)
    return BenchmarkScore(metrics={"bits_per_byte": metric})


def decide(observation: Observation, **options: Any) -> Proposal | Hold:
    before = observation.model_dump_json()
    reply = load_policy("bayes", options).decide(observation)
    assert observation.model_dump_json() == before
    if isinstance(reply, Proposal):
        assert set(reply.weights) == set(observation.sources)
        assert min(reply.weights.values()) >= 0
        assert math.fsum(reply.weights.values()) == pytest.approx(1, abs=1e-9)
    return reply


def aim(reply: Proposal | Hold) -> Any:
    assert isinstance(reply, Proposal), reply
    return reply.evidence["aim"]


def run(
    world: Power, ref: str = "bayes", guards: Mapping[str, float] | None = None
) -> SimulatedRun:
    config = virtual_config(world, guards=guards or {"max_epochs": 5, "max_change": 0.2})
    start = uniform_start(world, 5, config.budget)
    return simulate(world, load_policy(ref), config, segments=world.segments, start=start)


# --- what it finds ----------------------------------------------------------------------------


@pytest.mark.parametrize("family", [Power, Exponential, Dilution])
def test_it_closes_more_of_the_gap_than_random_mixtures(family: type[Power]) -> None:
    pairs = []
    for seed in (101, 102, 103):
        world = family(seed=seed, segments=20)
        best = float(world.final(np.array([list(world.optimum().values())]))[0])
        uniform = run(world, "static").final
        gaps = []
        for ref in ("bayes", RANDOM):
            world.reset(seed)
            gaps.append((uniform - run(world, ref).final) / (uniform - best))
        pairs.append(gaps)
    assert float(np.median([by_policy for by_policy, _ in pairs])) > 0.3
    for by_policy, by_chance in pairs:
        assert by_policy > 0
        assert by_policy > by_chance + 0.1


def test_it_goes_where_the_losses_fall() -> None:
    assert aim(decide(observe({"x": 1.5, "y": 1.0})))["a"] > 0.6
    assert aim(decide(observe({"x": -1.5, "y": -1.0})))["a"] < 0.1


@pytest.mark.parametrize("spread", [0.05, 0.3, 0.6, 0.9, 2.0])
def test_it_goes_as_far_as_the_gain_is_sure(spread: float) -> None:
    data = trial_data(observe({"x": 1.5}))
    unit, centre, shares = np.ones(1), np.full(3, 1 / 3), data.shares[-1]
    slope, covariance = np.array([[-1.0, 0.0, 0.0]]), spread**2 * np.eye(3)[None]
    posterior = Posterior(np.zeros(1, int), unit, 0.5 * unit, 0 * unit, slope, covariance, 99.0)
    forecast = Forecast(data, posterior, 28.0, np.ones(3), centre, shares)
    best = best_mixture(forecast, 0.0, 0.4, centre)
    kept = shrunk(forecast, best)
    part = max(0.0, 1 - (best.stderr / best.gain) ** 2) if best.gain > 0 else 0.0
    assert kept.weights - centre == pytest.approx(part * (best.weights - centre), abs=1e-12)
    assert (part > 0.9) == (spread == 0.05)
    assert (part == 0) == (spread >= 0.9)
    assert kept.gain >= part * best.gain - 1e-9  # the first steps gain most


def test_the_objectives_weights_decide_between_benchmarks() -> None:
    torn = {"x": 1.5, "y": -1.5}
    for_x = {"x": Goal(weight=3), "y": Goal(weight=0.1)}
    for_y = {"x": Goal(weight=0.1), "y": Goal(weight=3)}
    assert aim(decide(observe(torn, objective=for_x)))["a"] > 0.38
    assert aim(decide(observe(torn, objective=for_y)))["a"] < 0.2


def test_watched_benchmarks_never_steer() -> None:
    observation = observe({"x": 1.5, "y": -9.0})
    assert (
        aim(decide(observation.model_copy(update={"steering": {"x": ""}, "watch": ("y",)})))["a"]
        > 0.45
    )


def test_the_direction_is_the_metrics_not_the_names() -> None:
    observation = observe({"x": 1.5})
    evaluations = []
    for evaluation in observation.evaluations:
        metric = evaluation.benchmarks["x"].metrics["bits_per_byte"]
        turned = metric.model_copy(update={"value": -metric.value, "higher_is_better": True})
        scores = {"x": BenchmarkScore(metrics={"bits_per_byte": turned})}
        evaluations.append(evaluation.model_copy(update={"benchmarks": scores}))
    turned_seen = observation.model_copy(update={"evaluations": tuple(evaluations)})
    assert aim(decide(turned_seen)) == aim(decide(observation))


def test_a_repeated_source_is_worth_less_and_capped_for_the_rest_of_the_budget() -> None:
    observation = observe({"x": 1.5})
    scarce = {
        "a": Source(unique_tokens=3 * UNIT, drawn=round(observation.evaluations[-1].drawn["a"]))
    }
    bound = (5 * 3 - observation.evaluations[-1].drawn["a"] / UNIT) / (40 - 12)
    wanted = aim(decide(observation.model_copy(update={"sources": observation.sources | scarce})))
    assert 0.8 * bound < wanted["a"] <= bound + 1e-9


def test_proposals_keep_to_the_largest_change() -> None:
    reply = decide(observe({"x": 1.5}, limits=Limits(max_change=0.05)))
    assert isinstance(reply, Proposal)
    moved = observe({"x": 1.5}).weights
    assert sum(abs(reply.weights[n] - moved[n]) for n in moved) / 2 <= 0.05 + 1e-9


def test_live_sources_keep_their_floor() -> None:
    reply = decide(observe({"x": 1.5}, limits=Limits(max_change=1, floor=0.2)), trust=1)
    assert isinstance(reply, Proposal)
    assert min(reply.weights.values()) == pytest.approx(0.2, abs=1e-6)


# --- when it holds ----------------------------------------------------------------------------


def strays(seed: int) -> tuple[float, list[str]]:
    """On a flat world: how far the mean of the last five mixtures is from the start (total
    variation), and the last five verdicts."""
    track = run(Flat(seed=seed), guards={"max_change": 0.1})
    last = [moment.weights for moment in track.timeline[-5:]]
    start = track.timeline[0].weights
    verdicts = [m.decision.verdict for m in track.timeline if m.decision]
    means = {name: float(np.mean([weights[name] for weights in last])) for name in start}
    return sum(abs(means[name] - start[name]) for name in start) / 2, verdicts[-5:]


def test_a_flat_world_ends_where_it_began_and_is_called_inconclusive() -> None:
    distance, verdicts = strays(seed=0)
    assert distance <= 0.05
    assert verdicts == ["inconclusive"] * 5


@pytest.mark.soak
def test_it_strays_on_at_most_one_flat_world_in_twenty() -> None:
    strayed = [strays(seed) for seed in range(100)]
    assert sum(distance <= 0.05 for distance, _ in strayed) >= 95
    assert sum(verdicts == ["inconclusive"] * 5 for _, verdicts in strayed) >= 95


def test_no_effect_goes_back_to_the_runs_first_mixture() -> None:
    observation = observe({"x": 0.0}, noise=0.004)
    for _ in range(12):  # by halves
        reply = decide(observation)
        if isinstance(reply, Hold):
            break
        observation = observation.model_copy(update={"weights": reply.weights})
    assert isinstance(reply, Hold)
    assert reply.verdict == "inconclusive"
    assert observation.weights["a"] == pytest.approx(1 / 3, abs=1e-3)


def test_decay_earns_no_credit() -> None:
    """A fall of every loss while one source is fed, all of it the learning rate's."""
    observation = observe({"x": 0.0}, noise=0.0005, phase="stable")
    fed = {"a": 0.8, "b": 0.1, "c": 0.1}
    decayed, drawn = [], dict(observation.evaluations[-1].drawn)
    for index in range(1, 4):
        drawn = {name: amount + fed[name] * UNIT for name, amount in drawn.items()}
        decayed.append(
            Evaluation(
                step=12 + index,
                tokens=(12 + index) * UNIT,
                phase="decay",
                weights=fed,
                drawn=drawn,
                benchmarks={"x": scored(0.9 - 0.1 * index, 0.0005)},
            )
        )
    whole = (*observation.evaluations, *decayed)
    late = observation.model_copy(
        update={"evaluations": whole, "tokens": 15 * UNIT, "phase": "decay"}
    )
    reply = decide(late)
    assert reply.evidence["log_bayes_factor"] < 3
    credited = [e.model_copy(update={"phase": "stable"}) for e in whole]
    reply = decide(late.model_copy(update={"evaluations": tuple(credited)}))
    assert reply.evidence["log_bayes_factor"] > 3


# --- the prior --------------------------------------------------------------------------------


def test_the_prior_is_what_it_starts_from_and_goes_back_to() -> None:
    observation = observe({"x": 0.0}, noise=0.004, weights={"a": 0.5, "b": 0.3, "c": 0.2})
    prior = {"weights": {"a": 0.5, "b": 0.3, "c": 0.2}}
    assert isinstance(decide(observation, prior=prior), Hold)
    half = decide(observation, prior=prior | {"strength": 0.5})
    assert isinstance(half, Proposal)
    centre = (0.5 + 1 / 3) / 2
    # half of the way at a time
    assert half.weights["a"] == pytest.approx((0.5 + centre) / 2, abs=1e-3)


def test_points_of_a_search_tell_which_source_helps_before_the_run_does() -> None:
    points = [
        {"weights": {"a": a, "b": (1 - a) / 2, "c": (1 - a) / 2}, "value": loss, "stderr": 0.01}
        for a, loss in ((0.1, 2.8), (0.3, 2.3), (0.5, 1.9), (0.7, 1.6))
    ]
    observation = observe({"x": 0.7, "y": 0.7}, count=4, noise=0.05)
    options = {"explore": 0, "evidence": -9}
    with_points = aim(
        decide(observation, prior={"points": points, "schema": "mixloop/prior/1"}, **options)
    )
    doubted = decide(observation, prior={"points": points, "strength": 0.0}, **options)
    assert with_points["a"] > 0.36
    assert doubted == decide(observation, **options)
    assert isinstance(doubted, Hold) or doubted.weights["a"] < with_points["a"] - 0.03


def test_a_prior_of_unknown_sources_is_refused() -> None:
    policy: Any = load_policy("bayes", {"prior": {"weights": {"z": 1.0}}})
    with pytest.raises(PolicyError, match=r"policy.with.prior: no source is called 'z'"):
        policy.check({"a": ()}, ["x"])
    with pytest.raises(PolicyError, match="strenght"):
        load_policy("bayes", {"prior": {"strenght": 0.5}})


# --- what it survives -------------------------------------------------------------------------


def test_the_same_history_gives_the_same_answer_and_the_seed_matters() -> None:
    early = observe({"x": 1.0}, count=2)
    assert decide(early) == decide(early)
    assert decide(early) != decide(early.model_copy(update={"seed": 1}))


def test_nothing_to_go_by() -> None:
    empty = observe({"x": 1.0}, count=0)
    assert decide(empty).kind == "hold"
    assert decide(observe({"x": 1.0}, sources=1)).kind == "hold"
    assert decide(observe({})).kind == "hold"
    assert decide(observe({"x": 1.0}, budget=12)).kind == "hold"


def test_missing_and_broken_scores_are_passed_over() -> None:
    observation = observe({"x": 1.5, "y": 1.0})
    broken = list(observation.evaluations)
    broken[3] = broken[3].model_copy(update={"benchmarks": {"x": scored(math.nan, 0.001)}})
    broken[5] = broken[5].model_copy(update={"benchmarks": {}})
    y = broken[7].benchmarks["y"].metrics["bits_per_byte"].value
    broken[7] = broken[7].model_copy(update={"benchmarks": {"y": scored(y, None)}})
    assert aim(decide(observation.model_copy(update={"evaluations": tuple(broken)})))["a"] > 0.55


def test_without_standard_errors_the_scatter_stands_for_them() -> None:
    observation = observe({"x": 1.5, "y": 1.0}, count=16)
    bare = []
    for evaluation in observation.evaluations:
        values = {
            name: scored(score.metrics["bits_per_byte"].value, None)
            for name, score in evaluation.benchmarks.items()
        }
        bare.append(evaluation.model_copy(update={"benchmarks": values}))
    assert aim(decide(observation.model_copy(update={"evaluations": tuple(bare)})))["a"] > 0.5


def test_what_items_share_is_no_noise_between_checkpoints() -> None:
    """Scores with a standard error that hides everything, on items that all move together."""
    plain = observe({"x": 1.5}, noise=0.001)
    hard = np.random.default_rng(3).normal(0, 1.0, 40)
    vague, paired = [], []
    for evaluation in plain.evaluations:
        value = evaluation.benchmarks["x"].metrics["bits_per_byte"].value
        score = scored(value, 0.16)
        flicker = np.random.default_rng(evaluation.step).normal(0, 0.005, 40)
        shifts = hard - hard.mean() + flicker - flicker.mean()
        outcomes = {
            f"i{index}": {"bits_per_byte": value + float(shift), "bytes": 1.0}
            for index, shift in enumerate(shifts)
        }
        for kept, items in ((vague, {}), (paired, outcomes)):
            scores = {"x": score.model_copy(update={"items": items})}
            kept.append(evaluation.model_copy(update={"benchmarks": scores}))
    blind = decide(plain.model_copy(update={"evaluations": tuple(vague)}))
    assert blind.evidence["log_bayes_factor"] < 3
    assert aim(decide(plain.model_copy(update={"evaluations": tuple(paired)})))["a"] > 0.65


def test_sources_come_and_go_and_stand_by() -> None:
    observation = observe({"x": 1.5})
    sources = {n: s for n, s in observation.sources.items() if n != "c"}
    sources |= {"d": Source(unique_tokens=10**15)}
    sources |= {"e": Source(unique_tokens=10**15, standby=True)}
    changed = observation.model_copy(update={"sources": sources})
    reply = decide(changed)
    assert isinstance(reply, Proposal)
    assert reply.weights["e"] == 0
    assert aim(reply)["a"] > 0.55
    early = observe({"x": 1.5}, count=2).model_copy(update={"sources": sources})
    tried = decide(early, standby=True, radius=1)
    assert isinstance(tried, Proposal)


@pytest.mark.parametrize("count", [3, 110])
def test_sixty_four_sources_fit_into_the_time(count: int) -> None:
    slopes = {f"bench-{index}": 0.5 * index for index in range(4)}
    decide(observe(slopes, sources=64, count=count, budget=400))


def test_every_trial_lies_near_the_centre_and_they_differ() -> None:
    track = run(Power(seed=3, segments=20))
    start = track.timeline[0].weights
    explored = [m.weights for m in track.timeline[1:4]]
    for weights in explored:
        assert sum(abs(weights[n] - start[n]) for n in start) / 2 <= 0.35 + 1e-6
    assert all(first != other for first, other in pairwise(explored))


@pytest.mark.parametrize("seed", range(4))
def test_the_trials_raise_nearly_every_source(seed: int) -> None:
    world = Dilution(k=12, seed=seed)
    moments = run(world).timeline
    start = moments[0].weights
    tried = [moment.weights for moment in moments[1:13]]
    # what jitter there may be is part of a trial's noise: some directions are worth a second look
    raised = [max(weights[name] for weights in tried) > 1.5 * start[name] for name in start]
    assert sum(raised) >= len(start) - 2


# --- the simplex as a box ---------------------------------------------------------------------


def test_every_point_of_the_box_is_a_mixture_and_comes_back() -> None:
    for box in np.random.default_rng(1).random((50, 5)):
        mixture = decode(box)
        assert mixture.sum() == pytest.approx(1)
        assert mixture.min() >= 0
        assert decode(encode(mixture)) == pytest.approx(mixture, abs=1e-6)
    for corner in (np.zeros(5), np.ones(5)):
        assert decode(corner).sum() == pytest.approx(1)


def test_uniform_points_are_uniform_mixtures() -> None:
    boxes = np.random.default_rng(1).random((4000, 4))
    mixtures = np.array([decode(box) for box in boxes])
    assert mixtures.mean(axis=0) == pytest.approx(0.25, abs=0.015)
    # the variance of a share under the flat Dirichlet distribution
    assert mixtures.var(axis=0) == pytest.approx(3 / 16 / 5, abs=0.004)


@pytest.mark.soak
def test_optuna_can_propose_the_trials() -> None:
    observation = observe({"x": 1.5, "y": 1.0}, count=4)
    first, same = (decide(observation, proposals="optuna") for _ in range(2))
    assert isinstance(first, Proposal)
    assert first == same
