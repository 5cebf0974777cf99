"""What branches say to policies that plan by the run's scores, and what those make of it."""

from __future__ import annotations

import numpy as np
import pytest

from mixloop.policies.experiment.branch_aim import BranchAim, BranchGuidance
from mixloop.policies.interface import load_policy
from mixloop.policies.worlds.families import Exponential
from mixloop.tools.simulate.simulation import simulate
from mixloop.tools.simulate.virtual_run import uniform_start, virtual_config

EVEN = {"web": 0.5, "code": 0.5}
CODE = {"web": 0.2, "code": 0.8}


def aim(experiments: int = 1) -> BranchAim:
    return BranchAim(CODE, {"web": -0.01, "code": 0.01}, 3.0, experiments)


def test_what_branches_confirm_of_another_plan() -> None:
    assert aim().confirms(CODE, EVEN) == pytest.approx(1)
    assert aim().confirms({"web": 0.35, "code": 0.65}, EVEN) == pytest.approx(0.5)
    assert aim().confirms({"web": 0.8, "code": 0.2}, EVEN) == 0
    # further than the branches say: less
    assert aim().confirms({"web": 0.0, "code": 1.0}, EVEN) == pytest.approx((3 / 5) ** 2)


def test_each_experiment_is_followed_half_of_the_way_that_is_left() -> None:
    centres = [BranchGuidance(EVEN, made=True, aim=aim(n)).centre["code"] for n in (1, 2, 3)]
    assert centres == pytest.approx([0.65, 0.725, 0.7625])
    assert BranchGuidance(EVEN, made=True).centre == EVEN


def test_a_plan_goes_half_way_as_far_as_it_is_confirmed() -> None:
    unsure, sure = BranchGuidance(EVEN, made=True), BranchGuidance(EVEN, made=True, aim=aim())
    assert BranchGuidance(EVEN).part(CODE) == 1, "no branches were made"
    assert unsure.part(CODE, told=0.9) == 0, "they can't tell the sources apart"
    assert sure.part(CODE) == pytest.approx(0.5)
    assert sure.part(CODE, told=0.9) == pytest.approx(0.9), "the run's scores say so too"
    assert sure.part({"web": 0.8, "code": 0.2}, told=0.9) == 0


@pytest.mark.parametrize("name", ["law", "bayes"])
def test_others_ask_first_and_follow(name: str) -> None:
    world = Exponential(k=5, seed=1, segments=20, jitter=0.02)
    guards = {"max_epochs": 5, "max_change": 0.2}
    config = virtual_config(world, policy=name, guards=guards, segments=20, experiments=0.1)
    start = uniform_start(world, 5, config.budget)
    track = simulate(world, load_policy(name), config, segments=20, start=start)
    points = [(point.tokens, point.decision) for point in track.timeline]
    moved = [tokens for tokens, decision in points if decision and decision.verdict == "intervene"]
    assert moved[0] > track.experiments[0].tokens, "the run was moved to look around"
    ends = np.array([list(start.values()), list(world.optimum().values())])
    uniform, best = map(float, world.final(ends))
    assert (uniform - track.final) / (uniform - best) > 0.4


def test_they_ask_for_nothing_where_they_are_not_to() -> None:
    world = Exponential(k=3, seed=1, segments=5)
    config = virtual_config(world, policy="bayes", segments=5, experiments=0.1)
    for wanted in (True, False):
        world.reset(1)
        policy = load_policy("bayes", {"branches": wanted})
        assert bool(simulate(world, policy, config, segments=5).experiments) == wanted
