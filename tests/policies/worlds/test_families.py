"""Worlds: their laws, their noise, their optimum, and policies run in them."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from mixloop.policies.interface import Proposal, load_policy
from mixloop.policies.mixture import effective
from mixloop.policies.mixture.token_worth import R_STAR
from mixloop.policies.worlds import World
from mixloop.policies.worlds.families import Analytic, Dilution, Exponential, Flat, Power
from mixloop.policies.worlds.interference import Interference
from mixloop.policies.worlds.skills import Skills
from mixloop.tools.simulate.simulation import SimulatedRun, simulate
from mixloop.tools.simulate.virtual_run import uniform_start, virtual_config

FAMILIES = [Power, Exponential, Dilution, Skills, Interference]
GUARDS = {"max_epochs": 5, "max_change": 0.2}


def run(
    world: World, ref: str = "static", options: dict[str, object] | None = None
) -> SimulatedRun:
    config = virtual_config(world, policy=ref, options=options, guards=GUARDS, segments=20)
    start = uniform_start(world, 5, config.budget)
    return simulate(world, load_policy(ref, options), config, segments=20, start=start)


def test_repetition_follows_the_data_constrained_law() -> None:
    unique = np.array([1.0])
    assert effective(np.array([0.7]), unique) == pytest.approx(0.7)
    # four epochs keep about 93% of their tokens' worth, sixteen about two thirds
    assert effective(np.array([4.0]), unique)[0] / 4 == pytest.approx(0.93, abs=0.015)
    assert effective(np.array([16.0]), unique)[0] / 16 == pytest.approx(0.66, abs=0.03)
    assert effective(np.array([1e6]), unique)[0] == pytest.approx(1 + R_STAR)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_world_is_a_function_of_its_seed(family: type[Analytic]) -> None:
    first, same, other = family(seed=3), family(seed=4), family(seed=5)
    same.reset(3)
    for world in (first, same, other):
        world.advance(dict.fromkeys(world.sources, 0.2), world.unit)
    assert first.evaluate() == same.evaluate()
    assert first.evaluate() != other.evaluate()


@pytest.mark.parametrize("family", FAMILIES)
def test_the_optimum_beats_what_random_search_finds(family: type[Analytic]) -> None:
    world = family(k=5, seed=2)
    best = world.optimum()
    weights = np.array(list(best.values()))
    assert math.isclose(weights.sum(), 1.0, abs_tol=1e-9)
    assert (weights * world.segments <= 5 * world.unique + 1e-6).all()
    tries = np.random.default_rng(0).dirichlet(np.full(5, 0.5), 4000)
    legal = tries[(tries * world.segments <= 5 * world.unique).all(axis=1)]
    assert world.final(weights[None])[0] <= world.final(legal).min() + 1e-6


@pytest.mark.parametrize("family", FAMILIES)
def test_constant_mixture_ends_where_the_closed_form_says(family: type[Analytic]) -> None:
    world = family(seed=1, segments=20)
    track = run(world)
    mixture = np.array(list(track.timeline[0].weights.values()))
    assert track.final == pytest.approx(float(world.final(mixture[None])[0]), abs=1e-9)


def test_noise_has_the_standard_error_it_claims() -> None:
    world = Power(seed=0, sigma=0.01)
    truth = world.truth()["bench-0"]
    scores = [world.evaluate()["bench-0"] for _ in range(2000)]
    errors = [value - truth for value, _ in scores]
    assert np.std(errors) == pytest.approx(scores[0][1], rel=0.1)
    assert abs(np.mean(errors)) < 0.001


def test_a_policy_moves_a_simulated_run_within_the_guards() -> None:
    world = Power(seed=1, segments=20)
    target = world.optimum()
    control, track = run(world).final, SimulatedRun()
    world.reset(1)
    track = run(world, "static", {"weights": target})
    assert track.final < control
    steps = [moment.weights for moment in track.timeline]
    for before, after in itertools.pairwise(steps):
        change = sum(abs(after[name] - before[name]) for name in after) / 2
        assert change <= GUARDS["max_change"] + 1e-9
    for name, source in world.sources.items():
        assert track.drawn[name] <= 5 * source.unique_tokens + 1


class Planner:
    """Two stretches: the trainer must switch at the exact token, inside a segment."""

    def decide(self, observation: object) -> Proposal:
        first, second = {"source-00": 1.0}, {"source-01": 1.0}
        weights = {**dict.fromkeys((f"source-{i:02d}" for i in range(5)), 0.0)}
        return Proposal(
            weights | first,
            "a plan",
            plan=[(1_500_000_000, weights | first), (10**10, weights | second)],
        )


def test_plans_switch_at_their_exact_token() -> None:
    world = Power(seed=1, segments=10, scarce=False)
    config = virtual_config(world, guards={"max_change": 1.0, "max_epochs": None}, segments=10)
    track = simulate(world, Planner(), config, segments=10)
    assert track.timeline[0].decision is not None
    assert track.timeline[0].decision.verdict == "intervene"
    # a fifth of the first segment, then half of the second
    assert track.drawn["source-00"] == pytest.approx(0.7e9)


def test_a_policy_that_raises_costs_its_decisions_only() -> None:
    class Broken:
        def decide(self, observation: object) -> Proposal:
            raise ValueError("no idea")

    world = Power(seed=1, segments=5)
    config = virtual_config(world, segments=5)
    track = simulate(world, Broken(), config, segments=5)
    decisions = [moment.decision for moment in track.timeline[:-1]]
    assert all(d is not None and "no idea" in d.reason for d in decisions)
    assert not track.orders()


def test_a_flat_world_answers_every_mixture_alike() -> None:
    world = Flat(seed=4)
    mixtures = np.random.default_rng(0).dirichlet(np.ones(5), 20)
    assert np.ptp(world.final(mixtures)) < 1e-12


def test_jitter_strays_further_than_any_score_says() -> None:
    def steps(jitter: float) -> float:
        world = Power(seed=3, jitter=jitter, segments=400)
        strayed = []
        for _ in range(400):
            world.advance(dict.fromkeys(world.sources, 0.2), world.unit)
            value, stderr = world.evaluate()["bench-1"]
            assert stderr == 0.004
            strayed.append(value - world.truth()["bench-1"])
        return float(np.std(strayed))

    assert steps(0.0) == pytest.approx(0.004, rel=0.15)
    assert steps(0.02) == pytest.approx(math.hypot(0.004, 0.02), rel=0.15)


def test_interference_strays_by_itself() -> None:
    strays = [Interference(seed=seed).jitter for seed in range(20)]
    assert min(strays) >= 0.01
    assert max(strays) <= 0.03
    assert Interference(seed=1, jitter=0.0).jitter == 0


def test_a_skill_waits_for_what_it_needs_first() -> None:
    world = Skills(seed=2, k=4, scarce=False)
    waiting = int(np.flatnonzero(world.prerequisites.any(axis=1))[0])
    first = world.prerequisites[waiting] > 0
    ready = world.start()
    ready[world.k :][first] = 100.0
    shares = np.full(4, 0.25)
    learnt = [world.step(s, shares, 0.1, 0.0)[world.k + waiting] for s in (world.start(), ready)]
    assert learnt[1] > 5 * learnt[0] > 0


def test_a_source_may_undo_what_another_taught() -> None:
    world = Interference(seed=0)
    able = world.start()
    able[world.k :] = 5.0
    bench, source = np.unravel_index(world.hurts.argmax(), world.hurts.shape)
    after = world.step(able, np.eye(world.k)[source], 1.0, 0.0)
    assert world.losses_at(after)[bench] > world.losses_at(able)[bench]
