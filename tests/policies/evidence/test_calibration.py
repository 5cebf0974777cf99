"""On runs whose mixture never changes, what is said of noise is true."""

from __future__ import annotations

from itertools import combinations

import pytest

from mixloop.policies.evidence import honest_difference, trajectory_noise, vetoes
from mixloop.policies.interface import BITS_PER_BYTE, Goal, Observation
from mixloop.policies.law.averaging import cut_points, weigh
from mixloop.policies.law.fit import fit_with_null
from mixloop.policies.law.law_data import law_data
from mixloop.policies.law.models import LAWS
from mixloop.policies.testing import UnchangedRun, unchanged_run

KINDS = [(jitter, rho, items) for jitter in (0.01, 0.03) for rho in (0.0, 0.2)
         for items in (0.004, 0.01)]  # fmt: skip


def covered(run: UnchangedRun) -> tuple[int, int]:
    """How many 95% intervals between checkpoints hold the course's change, of how many."""
    held = asked = 0
    observation = run.observation
    for benchmark, course in run.courses.items():
        jitter = trajectory_noise(observation, benchmark)
        for older, newer in combinations(range(len(course)), 2):
            plain = observation.difference(benchmark, older, newer)
            low, high = plain.beside(2**0.5 * jitter.stderr, jitter.df).interval()
            held += low <= course[older] - course[newer] <= high
            asked += 1
    return held, asked


@pytest.mark.parametrize("count", [8, 12, pytest.param(24, marks=pytest.mark.soak)])
def test_intervals_between_checkpoints_hold_what_they_say(count: int) -> None:
    runs = [
        unchanged_run(count, jitter, seed, autocorrelation=rho, items=items)
        for jitter, rho, items in KINDS
        for seed in range(12)
    ]
    held, asked = map(sum, zip(*map(covered, runs), strict=True))
    assert 0.93 <= held / asked <= 0.97


def test_items_alone_hold_far_less() -> None:
    run = unchanged_run(20, 0.02, 1)
    held = [
        low <= course[i] - course[j] <= high
        for name, course in run.courses.items()
        for i, j in combinations(range(20), 2)
        for low, high in [run.observation.difference(name, i, j).interval()]
    ]
    assert sum(held) / len(held) < 0.7


@pytest.mark.parametrize(("count", "each"), [(8, 4), (16, 2), (40, 1)])
def test_the_laws_misfit_is_about_one(count: int, each: int) -> None:
    found = []
    for seed, (jitter, rho, items) in enumerate(KINDS * each):
        run = unchanged_run(count, jitter, seed, autocorrelation=rho, items=items)
        data = law_data(run.observation)
        assert data is not None
        cuts = cut_points(count)
        found.append(weigh(data, fit_with_null(data, LAWS, cuts), cuts, 0.5).misfit)
    assert 0.8 <= sum(found) / len(found) <= 1.3


def test_floors_stand_on_unchanged_runs() -> None:
    """At a level of 5%, a floor of nothing at all is broken seldom, asked at every evaluation."""
    broken = asked = 0
    for seed in range(30):
        run = unchanged_run(16, 0.02, seed).observation
        for count in range(4, 17):
            so_far = seen(run, count)
            broken += bool(vetoes(so_far, 0.05))
            asked += 1
    assert broken / asked < 0.05


def seen(run: Observation, count: int) -> Observation:
    """The run up to an evaluation, no benchmark to fall below its best."""
    names = list(run.benchmarks())
    changes = {
        "evaluations": run.evaluations[:count],
        "objective": {name: Goal(max_drop=0.0) for name in names},
        "steering": dict.fromkeys(names, BITS_PER_BYTE),
    }
    return run.model_copy(update=changes)


def test_the_one_function_says_both_parts() -> None:
    run = unchanged_run(20, 0.03, 4).observation
    difference = honest_difference(run, "bench-0", 3, 9)
    plain = run.difference("bench-0", 3, 9)
    assert difference.gain == plain.gain
    assert difference.items == pytest.approx(plain.stderr)
    jitter = trajectory_noise(run, "bench-0")
    assert difference.trajectory == pytest.approx(2**0.5 * jitter.stderr)
    assert difference.df < plain.df
    assert f"±{difference.items:.2g} items, ±{difference.trajectory:.2g} trajectory" == (
        difference.spread
    )
