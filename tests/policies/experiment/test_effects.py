"""Effects of sources from experiments: what they are, how noisy, and whether there are any."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from mixloop.policies.experiment.effects import (
    Effects,
    certainty,
    effects_of,
    needed_score,
    pool,
    told_by_repeats,
)
from mixloop.policies.interface import (
    BenchmarkScore,
    ExperimentResult,
    Hold,
    MergeFit,
    Metric,
    Observation,
    Proposal,
    Reply,
    ScoredBranch,
    Source,
    load_policy,
)

NAMES = [f"s{i}" for i in range(6)]
BENCHMARKS = ["a", "b", "c", "d"]
METRICS = dict.fromkeys(BENCHMARKS, "bits_per_byte")
EVEN = dict.fromkeys(NAMES, 1 / 6)


def scored(losses: NDArray[np.float64], weights: dict[str, float], stderr: float) -> ScoredBranch:
    scores = {
        name: BenchmarkScore(
            metrics={
                "bits_per_byte": Metric(
                    value=float(loss), stderr=stderr, n=100, higher_is_better=False
                )
            }
        )
        for name, loss in zip(BENCHMARKS, losses, strict=True)
    }
    return ScoredBranch(weights=weights, benchmarks=scores)


def result(
    gain: NDArray[np.float64], noise: float, seed: int, tokens: int = 0, halves: bool = True
) -> ExperimentResult:
    """An experiment that sees ``gain`` (m, k) through the noise of the experts' windows."""
    drawing = np.random.default_rng(seed)
    half = drawing.normal(0, noise / np.sqrt(2), (2, *gain.shape))
    first, second = (gain / 2 + n for n in half)
    parts = {"whole": first + second, "first": first, "second": second}
    fits = tuple(
        MergeFit(
            part=part,  # type: ignore[arg-type]
            weights=EVEN,
            gains=dict.fromkeys(BENCHMARKS, (0.0, 1e-4)),
            slopes={
                name: dict(zip(NAMES, map(float, -row), strict=True))
                for name, row in zip(BENCHMARKS, seen, strict=True)
            },
        )
        for part, seen in parts.items()
        if halves or part == "whole"
    )
    whole = parts["whole"]
    control = scored(np.ones(4), EVEN, 1e-4)
    branches = tuple(
        scored(1 - (whole[:, i] - whole.mean(axis=1)), {name: 1.0}, 1e-4)
        for i, name in enumerate(NAMES)
    )
    return ExperimentResult(
        id=f"x-{seed}", tokens=tokens, weights=EVEN, control=control, branches=branches, fits=fits
    )


def true_gain(size: float = 0.02) -> NDArray[np.float64]:
    gain = np.random.default_rng(9).normal(0, size, (4, 6))
    return np.asarray(gain - gain.mean(axis=1, keepdims=True))


def test_effects_are_the_merges_slopes_and_their_noise_the_halves() -> None:
    gain = true_gain()
    found = [effects_of(result(gain, 0.01, seed), NAMES, METRICS) for seed in range(200)]
    errors = np.array([f.gain - gain for f in found if f is not None])
    told = np.mean([f.noise for f in found if f is not None], axis=0)
    assert np.mean(errors, axis=0) == pytest.approx(0, abs=0.003)
    # centring takes one of six degrees of freedom
    assert told == pytest.approx(np.square(errors).sum(axis=2).mean(axis=0) / 5, rel=0.2)


def test_branches_alone_tell_the_same_effects() -> None:
    gain = true_gain()
    bare = result(gain, 0.0, 1).model_copy(update={"fits": ()})
    found = effects_of(bare, NAMES, METRICS)
    assert found is not None
    assert found.gain == pytest.approx(gain, abs=1e-6)
    assert found.told == 0


def test_sources_that_are_alike_pass_for_different_as_rarely_as_promised() -> None:
    flat, level, alarms, tries = np.zeros((4, 6)), 0.05, 0, 400
    for seed in range(tries):
        found = effects_of(result(flat, 0.01, seed), NAMES, METRICS)
        assert found is not None
        alarms += certainty([found]) > needed_score(level)
    assert alarms / tries < 0.08


def test_without_halves_only_what_shows_twice_counts() -> None:
    def seen(gain: NDArray[np.float64], seed: int) -> list[Effects]:
        pair = [result(gain, 0.01, seed + i).model_copy(update={"fits": ()}) for i in (0, 1)]
        found = [effects_of(one, NAMES, METRICS) for one in pair]
        return [one for one in found if one is not None]

    level, flat = needed_score(0.05), np.zeros((4, 6))
    assert certainty(told_by_repeats(seen(true_gain(), 1)[:1])) == 0
    assert certainty(told_by_repeats(seen(true_gain(), 1))) > level
    alarms = sum(certainty(told_by_repeats(seen(flat, 10 * s))) > level for s in range(100))
    assert alarms <= 10


def test_clear_effects_are_found() -> None:
    found = effects_of(result(true_gain(), 0.005, 3), NAMES, METRICS)
    assert found is not None
    assert certainty([found]) > needed_score(0.001)


def test_pooling_narrows_and_shrinks() -> None:
    gain, tries = true_gain(), range(30)
    errors: dict[str, list[float]] = {"one": [], "two": [], "raw": []}
    for seed in tries:
        pair = [
            effects_of(result(gain, 0.03, seed + 1000 * i, tokens=i), NAMES, METRICS)
            for i in (0, 1)
        ]
        both = [found for found in pair if found is not None]
        one, two = pool(both[1:], 0.0, 1000), pool(both, 0.0, 1000)
        errors["raw"].append(float(np.square(both[1].gain - gain).mean()))
        errors["one"].append(float(np.square(one.gain - gain).mean()))
        errors["two"].append(float(np.square(two.gain - gain).mean()))
    assert np.mean(errors["two"]) < np.mean(errors["one"]) < np.mean(errors["raw"])


def test_a_source_that_stands_out_keeps_its_effect_and_the_others_are_shrunk_as_without_it() -> (
    None
):
    gain = np.tile(np.array([1.0, 0.01, -0.01, 0.01, -0.01, 0.0]), (4, 1))
    errors: dict[str, list[float]] = {"pooled": [], "raw": []}
    for seed in range(30):
        found = effects_of(result(gain, 0.05, seed), NAMES, METRICS)
        assert found is not None
        pooled = pool([found], 0.0, 1000)
        assert pooled.gain[:, 0] == pytest.approx(gain[:, 0], rel=0.2)
        many = np.s_[:, 1:]
        errors["pooled"].append(float(np.square(np.diff(pooled.gain - gain)[many]).mean()))
        errors["raw"].append(float(np.square(np.diff(found.gain - gain)[many]).mean()))
    assert np.mean(errors["pooled"]) < 0.7 * np.mean(errors["raw"])


def test_what_is_old_counts_less() -> None:
    old, new = true_gain(), -true_gain()
    both = [
        effects_of(result(gain, 0.002, i, tokens=tokens), NAMES, METRICS)
        for i, (gain, tokens) in enumerate([(old, 0), (new, 500)])
    ]
    pooled = pool([found for found in both if found is not None], 0.0, 1000)
    assert np.corrcoef(pooled.gain.ravel(), new.ravel())[0, 1] > 0.9


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), noise=st.floats(0, 1), blind=st.floats(0, 2))
def test_pooled_effects_are_finite_and_shrunk(seed: int, noise: float, blind: float) -> None:
    found = effects_of(result(true_gain(), noise, seed), NAMES, METRICS)
    assert found is not None
    pooled = pool([found], blind, 1000)
    assert np.isfinite(pooled.gain).all()
    assert (pooled.variance >= 0).all()
    around = found.gain - np.median(found.gain, axis=1, keepdims=True)
    assert (np.abs(pooled.gain) <= np.abs(around) + 1e-12).all()


def decided(
    gain: NDArray[np.float64], tagged: dict[str, tuple[str, ...]], **options: float
) -> Reply:
    """What the policy makes of one clear experiment and of tags."""
    seen = Observation(
        run="r",
        step=2,
        tokens=10**9,
        budget=4 * 10**9,
        every=10**8,
        sources={n: Source(unique_tokens=10**12, tags=tagged.get(n, ())) for n in NAMES},
        weights=EVEN,
        steering=METRICS,
        experiments=[result(gain, 0.002, 1, tokens=10**9)],
    )
    return load_policy("experiment", {"step": 9.0, **options}).decide(seen)


def test_tags_that_are_borne_out_get_their_part_and_others_none() -> None:
    gain = np.zeros((4, 6))
    gain[0, 0] = gain[1, 1] = gain[2, 2] = 0.3
    gain[:, 5] = -0.3
    right = {"s0": ("a",), "s1": ("b",), "s2": ("c",), "s3": ("d",), "s5": ("d",)}
    untold, told = decided(gain, {}), decided(gain, right)
    assert isinstance(untold, Proposal)
    assert isinstance(told, Proposal)
    assert "of the mixture goes by tags" in told.reason
    # no branch shows that s3 does anything; s5 is useless, whatever is said of it
    part = told.evidence["tags"]
    assert 0.2 < part < 0.75
    assert told.weights["s3"] == pytest.approx(
        (1 - part) * untold.weights["s3"] + part / 4, abs=0.01
    )
    assert told.weights["s5"] == pytest.approx(untold.weights["s5"], abs=0.01)
    assert decided(gain, right, tags=0.0).weights == untold.weights
    twice = decided(gain, right | {"s1": ("b", "c")}).evidence["tagged"]
    assert twice["s1"] == pytest.approx(twice["s2"])
    wrong = {"s0": ("d",), "s1": ("c",), "s3": ("a",), "s4": ("b",)}
    assert decided(gain, wrong).weights == untold.weights


def test_tags_alone_move_nothing() -> None:
    assert isinstance(decided(np.zeros((4, 6)), {"s1": ("a",)}), Hold)


def test_a_source_without_an_expert_has_no_effect() -> None:
    some = result(true_gain(), 0.001, 1)
    some = some.model_copy(update={"branches": some.branches[:5]})
    found = effects_of(some, NAMES, METRICS)
    assert found is not None
    assert found.tried.tolist() == [1, 1, 1, 1, 1, 0]
    assert not found.gain[:, 5].any()
