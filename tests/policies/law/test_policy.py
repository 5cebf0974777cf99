"""The law: its derivatives, its plans, and what it does in worlds and on broken input."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

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
from mixloop.policies.law.models import Ahead, Memory, foresee, values
from mixloop.policies.worlds import World
from mixloop.policies.worlds.families import Dilution, Exponential, Flat, Power
from mixloop.tools.simulate.simulation import SimulatedRun, simulate
from mixloop.tools.simulate.virtual_run import uniform_start, virtual_config

UNIT = 10**9
SEGMENTS = 12


def run(world: World, ref: str, guards: dict[str, Any]) -> SimulatedRun:
    config = virtual_config(world, policy=ref, guards=guards, segments=SEGMENTS)
    start = uniform_start(world, 5, config.budget)
    return simulate(world, load_policy(ref), config, segments=SEGMENTS, start=start)


def observed(n: int = 8, k: int = 3, **changes: Any) -> Observation:
    """A run whose first source alone helps, told without noise."""
    rng = np.random.default_rng(1)
    drawn, evaluations = np.zeros(k), []
    for step in range(1, n + 1):
        weights = rng.dirichlet(np.full(k, 4.0))
        drawn = drawn + weights * UNIT
        value = 0.5 + 0.8 * (drawn[0] / UNIT + 0.2) ** -0.4
        evaluations.append(evaluation(step, weights, drawn, value))
    fields: dict[str, Any] = {
        "tokens": n * UNIT,
        "step": n,
        "budget": 20 * UNIT,
        "every": UNIT,
        "sources": {f"s{i}": Source(unique_tokens=10**15, drawn=int(drawn[i])) for i in range(k)},
        "weights": {f"s{i}": 1 / k for i in range(k)},
        "evaluations": tuple(evaluations),
        "steering": {"b": "bits_per_byte"},
    }
    return Observation(**(fields | changes))


def evaluation(step: int, weights: Any, drawn: Any, value: float) -> Evaluation:
    metric: dict[str, Any] = {"value": value, "stderr": 0.003, "higher_is_better": False}
    return Evaluation(
        step=step,
        tokens=step * UNIT,
        weights={f"s{i}": float(w) for i, w in enumerate(weights)},
        drawn={f"s{i}": float(d) for i, d in enumerate(drawn)},
        benchmarks={"b": BenchmarkScore(metrics={"bits_per_byte": Metric(**metric)})},
    )


@pytest.mark.parametrize("link", ["power", "exponential"])
def test_derivatives_of_the_links_are_exact(link: Any) -> None:
    rng = np.random.default_rng(0)
    p, z = rng.normal(0, 0.5, (3, 6 + 4)), rng.uniform(0.1, 1, (3, 5, 4))
    x, u = np.linspace(0.1, 1, 5), np.linspace(0, 1, 5)
    _, jac = values(link, p, z, x, u)
    for index in range(p.shape[1]):
        nudge = np.zeros_like(p)
        nudge[:, index] = 1e-6
        up, down = (values(link, p + sign * nudge, z, x, u)[0] for sign in (1, -1))
        assert jac[..., index] == pytest.approx((up - down) / 2e-6, abs=1e-6)


@pytest.mark.parametrize("memory", [Memory(), Memory(1.7, 0.03, 3.0)])
def test_foresight_knows_its_slope_by_every_stretch(memory: Memory) -> None:
    rng = np.random.default_rng(0)
    unique = np.array([1e5, 0.05, 0.15])
    ahead = Ahead(rng.uniform(0, 0.2, 3), unique, ((0.4, False), (0.1, True)))
    now, plan = rng.uniform(0, 0.2, 3), rng.dirichlet(np.ones(3), 2)
    slopes = foresee(ahead, memory, now, plan)[1]
    for stretch, source in np.ndindex(2, 3):
        nudge = np.zeros_like(plan)
        nudge[stretch, source] = 1e-6
        up, down = (foresee(ahead, memory, now, plan + sign * nudge)[0] for sign in (1, -1))
        assert slopes[stretch, source] == pytest.approx((up - down)[source] / 2e-6, abs=1e-5)


@pytest.mark.parametrize("family", [Power, Exponential, Dilution])
def test_it_ends_better_than_uniform_in_every_family(family: type[Power]) -> None:
    guards = {"max_epochs": 5, "max_change": 0.2}
    world = family(k=4, segments=SEGMENTS, seed=100)
    uniform = run(world, "static", guards).final
    best = float(world.final(np.array([list(world.optimum().values())]))[0])
    world.reset(100)
    track = run(world, "law", guards)
    assert (uniform - track.final) / (uniform - best) > 0.2
    decisions = [m.decision for m in track.timeline if m.decision]
    assert not any("error" in decision.evidence for decision in decisions)


def test_a_flat_world_is_inconclusive_and_left_as_it_was() -> None:
    world = Flat(k=4, segments=SEGMENTS, seed=100)
    track = run(world, "law", {})
    assert track.timeline[-2].decision is not None
    assert track.timeline[-2].decision.verdict == "inconclusive"
    assert track.timeline[-1].weights == pytest.approx(dict.fromkeys(world.sources, 0.25))


def test_a_run_whose_scores_can_t_tell_its_sources_apart_is_left_alone() -> None:
    world = Power(k=16, segments=SEGMENTS, seed=100, jitter=0.02)
    track = run(world, "law", {"max_epochs": 5, "max_change": 0.2})
    assert not track.orders()
    said = [decision.reason for decision in track.decisions()]
    assert any("can't tell its sources apart" in reason for reason in said)


def test_it_finds_the_source_that_helps_and_says_why() -> None:
    observation = observed()
    before = observation.model_dump_json()
    reply = load_policy("law", {"explore": 0}).decide(observation)
    assert isinstance(reply, Proposal)
    assert reply.weights["s0"] > 0.9
    assert reply.evidence["rule"] == "law"
    assert reply.plan[-1][0] == observation.budget
    assert reply == load_policy("law", {"explore": 0}).decide(observation)
    assert observation.model_dump_json() == before


def test_a_plan_keeps_to_the_cap_on_epochs() -> None:
    scarce = {f"s{i}": Source(unique_tokens=10**15) for i in range(3)}
    scarce["s0"] = Source(unique_tokens=UNIT, drawn=3 * UNIT)
    limits: Any = {"max_epochs": 5, "max_change": 1.0}
    reply = load_policy("law", {"explore": 0}).decide(observed(sources=scarce, limits=limits))
    assert isinstance(reply, Proposal)
    left = 5 * UNIT - sum(e.drawn["s0"] for e in observed().evaluations[-1:])
    assert reply.weights["s0"] * 12 * UNIT <= left + 1e-6 * UNIT


def test_a_source_on_standby_gets_nothing_unless_allowed() -> None:
    sources = {f"s{i}": Source(unique_tokens=10**15, standby=i == 0) for i in range(3)}
    weights = {"s0": 0.0, "s1": 0.5, "s2": 0.5}
    observation = observed(sources=sources, weights=weights)
    reply = load_policy("law").decide(observation)
    assert isinstance(reply, Hold) or reply.weights["s0"] == 0
    brought = load_policy("law", {"explore": 0, "use_standby": True}).decide(observation)
    assert isinstance(brought, Proposal)
    assert brought.weights["s0"] > 0.5


@pytest.mark.parametrize(
    "changes",
    [
        {"evaluations": ()},
        {"tokens": 20 * UNIT},
        {"phase": "warmup"},
        {"sources": {"s0": Source(unique_tokens=10)}, "weights": {"s0": 1.0}},
    ],
)
def test_with_nothing_to_go_by_it_holds(changes: dict[str, Any]) -> None:
    assert isinstance(load_policy("law").decide(observed(**changes)), Hold)


def test_broken_scores_and_changing_sources_are_survived() -> None:
    evaluations = list(observed(n=9).evaluations)
    empty = np.zeros(3)
    evaluations[2] = evaluation(3, empty, empty, math.nan)
    evaluations[4] = evaluations[4].model_copy(update={"benchmarks": {}, "drawn": {}})
    sources = {name: Source(unique_tokens=0) for name in ("s1", "s2", "new")}
    weights = {"s1": 0.5, "s2": 0.5, "new": 0.0}
    observation = observed(evaluations=tuple(evaluations), sources=sources, weights=weights)
    reply = load_policy("law").decide(observation)
    if isinstance(reply, Proposal):
        assert sum(reply.weights.values()) == pytest.approx(1)
        assert set(reply.weights) == set(sources)
        assert min(reply.weights.values()) >= 0


def test_the_decay_that_is_planned_for_is_the_trainers():
    def ends(**changes: Any) -> list[int]:
        options = changes.pop("options", {})
        answer = load_policy("law", options).decide(observed(phase="stable", **changes))
        assert isinstance(answer, Proposal)
        return [until for until, _ in answer.plan]

    assert 14 * UNIT in ends(decay=6 * UNIT)
    assert 18 * UNIT in ends(), "a tenth, where nobody says"
    assert 18 * UNIT in ends(decay=6 * UNIT, options={"decay": 0.1})
    assert ends(decay=0)[-1:] == [20 * UNIT]
