"""Experiments in worlds: what a branch or a merge shows, how it errs, and that it moves nothing."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from mixloop.policies.worlds.branching import BranchErrors
from mixloop.policies.worlds.families import Analytic, Dilution, Exponential, Flat, Power
from mixloop.policies.worlds.interference import Interference
from mixloop.policies.worlds.skills import Skills

FAMILIES = [Power, Exponential, Dilution, Skills, Interference]
TOKENS = 10**8
EXACT = BranchErrors(zoom=1.0, paired=0.0, windows=0.0, bend=0.0, blind=0.0)


def world_at(
    family: type[Analytic], segments: float, errors: BranchErrors | None = None
) -> Analytic:
    world = family(k=6, seed=1)
    if errors is not None:
        world.branch_errors = errors  # type: ignore[misc]
    world.advance(dict.fromkeys(world.sources, 1 / 6), round(segments * world.unit))
    return world


def losses(scores: dict[str, tuple[float, float]]) -> NDArray[np.float64]:
    return np.array([value for value, _ in scores.values()])


@pytest.mark.parametrize("family", FAMILIES)
def test_a_branch_without_errors_is_the_run_going_on(family: type[Analytic]) -> None:
    world, goes_on = (world_at(family, 8, EXACT) for _ in range(2))
    mixture = {"source-01": 0.7, "source-03": 0.3}
    seen = losses(world.branch(mixture, TOKENS, "as the run"))
    goes_on.advance(mixture, TOKENS)
    jitterless = np.array(list(goes_on.truth().values())) + world.wobble
    assert seen == pytest.approx(jitterless, abs=1e-12)


@pytest.mark.parametrize("family", FAMILIES)
def test_branches_rank_sources_the_better_the_longer(family: type[Analytic]) -> None:
    def agreement(tokens: int) -> float:
        found = []
        for seed in range(6):
            world = family(k=6, seed=seed)
            world.advance(dict.fromkeys(world.sources, 1 / 6), 6 * world.unit)
            singles = [{name: 1.0} for name in world.sources]
            seen = [losses(world.merge(single, tokens)).mean() for single in singles]
            world.branch_errors = EXACT  # type: ignore[misc]
            world.__dict__.pop("_branches")
            true = [losses(world.branch(single, tokens)).mean() for single in singles]
            found.append(float(np.corrcoef(seen, true)[0, 1]))
        return float(np.mean(found))

    assert agreement(4 * 10**8) > 0.8
    assert agreement(4 * 10**8) > agreement(10**6)


@pytest.mark.parametrize("family", [Power, Flat])
def test_halves_tell_the_noise_of_the_experts_windows(family: type[Analytic]) -> None:
    """The whole's noise is the halves' mean: their difference estimates it."""
    apart, off = [], []
    for seed in range(40):
        world = family(k=6, seed=seed)
        world.branch_errors = BranchErrors(paired=0.0, bend=0.0, blind=0.0)  # type: ignore[misc]
        world.advance(dict.fromkeys(world.sources, 1 / 6), 6 * world.unit)
        merge = {
            part: losses(world.merge({"source-02": 1.0}, TOKENS, part))
            for part in ("whole", "first", "second")
        }
        exact = family(k=6, seed=seed)
        exact.branch_errors = BranchErrors(paired=0, windows=0, bend=0, blind=0)  # type: ignore[misc]
        exact.advance(dict.fromkeys(exact.sources, 1 / 6), 6 * exact.unit)
        true = losses(exact.merge({"source-02": 1.0}, TOKENS))
        apart.append(np.mean((merge["first"] - merge["second"]) ** 2))
        off.append(np.mean((merge["whole"] - true) ** 2))
    assert np.sqrt(np.mean(apart) / np.mean(off)) == pytest.approx(1.0, abs=0.15)


def test_a_merge_is_smooth_and_exact_only_at_the_present_mixture() -> None:
    world = world_at(Power, 6, BranchErrors(paired=0.0))
    present = dict.fromkeys(world.sources, 1 / 6)
    world.branch_errors = EXACT  # type: ignore[misc]
    true = {
        n: losses(world.merge({**present, "source-00": 1 / 6 + s}, TOKENS))
        for n, s in (("here", 0.0), ("near", 0.05), ("far", 0.6))
    }
    world.__dict__.pop("_branches")
    world.branch_errors = BranchErrors(zoom=1.0, paired=0.0, windows=0.0, blind=0.0)  # type: ignore[misc]
    seen = {
        n: losses(world.merge({**present, "source-00": 1 / 6 + s}, TOKENS))
        for n, s in (("here", 0.0), ("near", 0.05), ("far", 0.6))
    }
    error = {name: float(np.abs(seen[name] - true[name]).max()) for name in seen}
    assert error["here"] == pytest.approx(0, abs=1e-12)
    # of second order: a twelfth of the way, a hundred-and-forty-fourth of the error
    assert error["near"] == pytest.approx(error["far"] / 144, rel=1e-3)


def test_experiments_leave_the_run_as_it_would_have_been() -> None:
    asked, left = world_at(Interference, 5), world_at(Interference, 5)
    asked.branch({"source-01": 1.0}, TOKENS)
    asked.merge({"source-02": 1.0}, TOKENS, "first")
    for world in (asked, left):
        world.advance({"source-03": 1.0}, world.unit)
    assert asked.evaluate() == left.evaluate()


def test_in_a_flat_world_only_noise_tells_sources_apart() -> None:
    found = []
    for seed in range(30):
        world = Flat(k=6, seed=seed)
        world.advance(dict.fromkeys(world.sources, 1 / 6), 6 * world.unit)
        values = [losses(world.merge({name: 1.0}, TOKENS)) for name in world.sources]
        found.append(
            np.mean([v.mean() for v in values])
            - losses(world.merge(dict.fromkeys(world.sources, 1 / 6), TOKENS)).mean()
        )
    assert np.std(found) > 0
    assert abs(np.mean(found)) < 3 * np.std(found) / np.sqrt(30)
