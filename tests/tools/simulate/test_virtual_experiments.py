"""Experiments of simulated runs: what they cost, when their results come, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from mixloop.policies.interface import Experiment, Hold, MergeDesign, Observation
from mixloop.policies.worlds.families import Analytic, Power
from mixloop.tools.simulate.simulation import SimulatedRun, simulate
from mixloop.tools.simulate.virtual_run import virtual_config

TOKENS = 5 * 10**7


class Curious:
    """Asks at every evaluation, and keeps what it was shown."""

    def __init__(self, ask: Callable[[Observation], Experiment | Hold]) -> None:
        self.ask = ask
        self.seen: list[Observation] = []

    def decide(self, observation: Observation) -> Experiment | Hold:
        self.seen.append(observation)
        return self.ask(observation)


def merges(observation: Observation, tokens: int = TOKENS) -> Experiment:
    names = list(observation.sources)
    design = MergeDesign(prior=dict.fromkeys(names, 1 / len(names)), most={names[0]: 0.3})
    return Experiment([{name: 1.0} for name in names], tokens, "to see", merge=design)


def run(policy: Curious, world: Any = None, budget: Any = 0.02, latency: int = 1) -> SimulatedRun:
    world = world or Power(k=5, seed=1, segments=10)
    config = virtual_config(world, segments=10, experiments=budget)
    return simulate(world, policy, config, segments=10, latency=latency)


def test_results_come_an_evaluation_later_and_the_mixture_stays() -> None:
    policy = Curious(lambda o: Hold("done") if o.experiments else merges(o, 10**7))
    track = run(policy)
    assert policy.seen[1].experiments[0].state == "done"
    assert not track.orders()
    slow = Curious(lambda o: Hold("done") if o.experiments else merges(o, 10**7))
    run(slow, latency=2)
    assert [o.experiments[0].state for o in slow.seen[1:3]] == ["running", "done"]
    assert not slow.seen[1].experiments[0].branches


def test_at_once_where_experiments_take_no_time() -> None:
    policy = Curious(lambda o: Hold("done") if o.experiments else merges(o, 10**7))
    run(policy, latency=0)
    assert [o.step for o in policy.seen[:2]] == [1, 1]


def test_cost_is_charged_and_the_budget_kept() -> None:
    policy = Curious(merges)
    track = run(policy, budget=7 * 10**8)  # two of six branches
    costs = [e.cost for e in track.experiments]
    assert costs[:3] == [3 * 10**8, 3 * 10**8, 0]
    assert track.experiments[2].state == "refused"
    assert "left" in track.experiments[2].reason
    assert policy.seen[-1].experiment_tokens == 10**8


def test_a_fit_stays_inside_the_caps_and_is_told_by_halves() -> None:
    policy = Curious(lambda o: Hold("done") if o.experiments else merges(o))
    track = run(policy, budget=0.1)
    result = track.experiments[0]
    assert [fit.part for fit in result.fits] == ["whole", "first", "second"]
    for fit in result.fits:
        assert fit.weights["source-00"] <= 0.3 + 1e-9
        assert sum(fit.weights.values()) == pytest.approx(1)
        assert set(fit.slopes) == set(fit.gains) == {f"bench-{i}" for i in range(4)}
    assert result.control is not None
    assert len(result.branches) == 5
    assert result.branch_tokens == TOKENS


def test_a_fit_follows_the_slopes() -> None:
    policy = Curious(lambda o: Hold("done") if o.experiments else merges(o))
    fit = run(policy, budget=0.1).experiments[0].fit()
    assert fit is not None
    slopes = [sum(s[n] for s in fit.slopes.values()) for n in list(fit.weights)[1:]]
    shares = list(fit.weights.values())[1:]
    best = slopes.index(min(slopes))
    assert shares[best] == max(shares)


class Closed(Analytic):
    """A world that can't be experimented in."""

    branch: Any = None
    merge: Any = None
    family = "P"
    _draw = Power._draw
    losses_at = Power.losses_at


def test_nothing_may_be_asked_of_a_world_without_branches() -> None:
    policy = Curious(merges)
    track = run(policy, Closed(k=5, seed=1, segments=10))
    assert policy.seen[0].experiment_tokens == 0
    assert {e.state for e in track.experiments} == {"refused"}


class Unmerged(Power):
    """A world whose branches can't be merged."""

    merge: Any = None


def test_branches_are_scored_where_merges_are_not_to_be_had() -> None:
    policy = Curious(lambda o: Hold("done") if o.experiments else merges(o))
    result = run(policy, Unmerged(k=5, seed=1, segments=10), budget=0.1).experiments[0]
    assert not result.fits
    assert result.difference(0, "bench-0").gain != 0
