"""The jitter of a trajectory: found where it is, apart from the items' noise and the course."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping

import numpy as np
import pytest

from mixloop.policies.evidence import trajectory_noise
from mixloop.policies.interface import (
    BITS_PER_BYTE,
    BenchmarkScore,
    Evaluation,
    Metric,
    Observation,
    Phase,
    Source,
)

EVERY = 1_000_000
EVEN = {"code": 0.5, "prose": 0.5}


def run_of(
    values: Mapping[str, np.ndarray],
    *,
    stderr: float | None = 0.004,
    weights: list[dict[str, float]] | None = None,
    phases: list[Phase] | None = None,
    tokens: list[int] | None = None,
) -> Observation:
    """A run whose benchmarks took these bits per byte, one after another."""
    count = len(next(iter(values.values())))
    tokens = tokens or [EVERY * (i + 1) for i in range(count)]
    evaluations = tuple(
        Evaluation(
            step=i + 1,
            tokens=tokens[i],
            phase=phases[i] if phases else "stable",
            weights=weights[i] if weights else EVEN,
            benchmarks={
                name: BenchmarkScore(
                    metrics={
                        BITS_PER_BYTE: Metric(
                            value=float(row[i]), stderr=stderr, n=200, higher_is_better=False
                        )
                    }
                )
                for name, row in values.items()
            },
        )
        for i in range(count)
    )
    sources = {name: Source(unique_tokens=10**9) for name in EVEN}
    return Observation(sources=sources, weights=EVEN, evaluations=evaluations)


def course(count: int, exponent: float = 0.3) -> np.ndarray:
    """A power law over as many evaluations."""
    return 1.2 + 0.9 * (np.arange(1, count + 1) / 4.0) ** -exponent


def noisy(count: int, jitter: float, seed: int, items: float = 0.004) -> np.ndarray:
    drawing = np.random.default_rng(seed)
    return course(count) + math.hypot(jitter, items) * drawing.standard_normal(count)


def test_fewer_than_three_evaluations_say_nothing() -> None:
    for count in (0, 1, 2):
        run = run_of({"math": course(count)})
        assert trajectory_noise(run, "math").stderr == 0
        assert trajectory_noise(run, "math").n == 0
    assert trajectory_noise(run, "unheard").n == 0


@pytest.mark.parametrize("exponent", [0.1, 0.3, 0.5])
def test_a_smooth_course_has_no_jitter(exponent: float) -> None:
    found = trajectory_noise(run_of({"math": course(30, exponent)}), "math")
    assert found.n == 28
    assert found.stderr < 0.001


@pytest.mark.parametrize("jitter", [0.01, 0.03])
@pytest.mark.parametrize("count", [12, 40])
def test_the_jitter_is_found_beside_the_items_noise(jitter: float, count: int) -> None:
    found = [
        trajectory_noise(run_of({"math": noisy(count, jitter, seed)}), "math") for seed in range(60)
    ]
    mean_square = math.sqrt(np.mean([entry.stderr**2 for entry in found]))
    # raised by a fifteenth for an autocorrelation that isn't there
    assert 0.9 * jitter < mean_square < 1.2 * jitter
    spread = np.std([entry.stderr**2 for entry in found]) / jitter**2
    assert spread < 1.4 * math.sqrt(2 / found[0].df)


def test_what_the_items_explain_is_not_jitter() -> None:
    found = [trajectory_noise(run_of({"math": noisy(40, 0, s)}), "math").stderr for s in range(40)]
    assert np.median(found) < 0.002
    assert max(found) < 0.005


def test_without_standard_errors_all_of_it_is_the_trajectory() -> None:
    run = run_of({"math": noisy(40, 0.02, 1)}, stderr=None)
    assert trajectory_noise(run, "math").stderr == pytest.approx(0.02, rel=0.4)


def test_uneven_spacing_changes_nothing() -> None:
    drawing = np.random.default_rng(3)
    places = np.cumsum(drawing.uniform(0.2, 3, 60)) + 3
    found = []
    for _ in range(20):
        values = 1.2 + 0.9 * places**-0.3 + 0.02 * drawing.standard_normal(60)
        run = run_of({"math": values}, tokens=[int(EVERY * place) for place in places])
        found.append(trajectory_noise(run, "math").stderr)
    assert np.mean(found) == pytest.approx(0.0205, abs=0.0025)


def test_bends_at_a_change_of_mixture_or_phase_are_no_jitter() -> None:
    values = course(24)
    values[12:] -= 0.05 * np.arange(1, 13)  # a new mixture helps from there on
    weights = [EVEN] * 13 + [{"code": 0.8, "prose": 0.2}] * 11
    blind = trajectory_noise(run_of({"math": values}), "math").stderr
    told = trajectory_noise(run_of({"math": values}, weights=weights), "math").stderr
    phases: list[Phase] = [*["stable"] * 12, *["decay"] * 12]
    falling = trajectory_noise(run_of({"math": values}, phases=phases), "math").stderr
    assert blind < 0.003  # one bend in two dozen differences is cut
    assert max(told, falling) < 1e-9


def test_a_wild_score_is_no_jitter() -> None:
    calm = noisy(30, 0.01, 5)
    wild = calm.copy()
    wild[14] += 1.0
    before, after = (trajectory_noise(run_of({"math": v}), "math").stderr for v in (calm, wild))
    assert after < 2 * before


def test_few_differences_lean_on_the_other_benchmarks() -> None:
    shaky = {f"b{i}": noisy(5, 0.03, 100 + i) for i in range(3)}
    alone = [trajectory_noise(run_of({"math": noisy(5, 0.03, s)}), "math") for s in range(80)]
    among = [
        trajectory_noise(run_of({"math": noisy(5, 0.03, s), **shaky}), "math") for s in range(80)
    ]
    assert among[0].df > alone[0].df
    assert np.std([e.stderr for e in among]) < 0.8 * np.std([e.stderr for e in alone])


def test_a_change_of_units_changes_nothing() -> None:
    values = noisy(20, 0.02, 2, 0)
    small = trajectory_noise(run_of({"math": values}, stderr=0.004), "math")
    large = trajectory_noise(run_of({"math": 1000 * values}, stderr=4), "math")
    assert large.stderr == pytest.approx(1000 * small.stderr)
    assert large.df == small.df


def test_thousands_of_evaluations_take_no_time() -> None:
    run = run_of({f"b{i}": noisy(2000, 0.02, i) for i in range(4)})
    begun = time.perf_counter()
    found = trajectory_noise(run, "b0")
    assert time.perf_counter() - begun < 2
    assert found.stderr == pytest.approx(0.0214, abs=0.002)
