"""Paired differences: exact against brute force, right against resampling, honest about little."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from mixloop.policies import (
    BenchmarkScore,
    Evaluation,
    Metric,
    MissingScore,
    Observation,
    Source,
    paired_difference,
    pooled_items,
)
from mixloop.policies.paired import ratio, t_quantile, unpaired_difference

values = st.floats(-5, 5)
weights = st.floats(0.5, 500)
rows = st.lists(st.tuples(values, values, weights), min_size=2, max_size=40)


def sides(table: list[tuple[float, float, float]]) -> tuple[dict, dict]:
    old = {f"i{k}": (a, w) for k, (a, _, w) in enumerate(table)}
    return old, {f"i{k}": (b, w) for k, (_, b, w) in enumerate(table)}


def score(values_: dict[str, float], metric: str = "bits_per_byte", size: int = 10) -> dict:
    n = len(values_)
    items = {k: {metric: v, "bytes": size + i} for i, (k, v) in enumerate(values_.items())}
    mean, stderr = ratio([(v, size + i) for i, v in enumerate(values_.values())])
    shown = Metric(value=mean, stderr=stderr if n > 1 else None, n=n, higher_is_better=False)
    return {"metrics": {metric: shown}, "items": items}


def observe(*evaluations: dict[str, dict]) -> Observation:
    return Observation(
        sources={"a": Source(unique_tokens=10)},
        weights={"a": 1.0},
        evaluations=tuple(
            Evaluation(step=10 * k, tokens=1000 * k, benchmarks=b)
            for k, b in enumerate(evaluations, 1)
        ),
    )


@given(rows, st.booleans())
def test_matches_the_formula_written_with_numpy(table, higher):
    found = paired_difference(*sides(table), higher)
    old, new, w = (np.array(column) for column in zip(*table, strict=True))
    d, n = new - old, len(table)
    mean = (w * d).sum() / w.sum()
    stderr = math.sqrt(n / (n - 1) * (w**2 * (d - mean) ** 2).sum()) / w.sum()
    assert found.gain == pytest.approx(mean if higher else -mean, abs=1e-9)
    assert found.stderr == pytest.approx(stderr, abs=1e-9)
    assert (found.n, found.df, found.paired) == (n, n - 1, True)


@given(rows)
def test_equal_weights_are_the_paired_t_test(table):
    table = [(a, b, 1.0) for a, b, _ in table]
    found = paired_difference(*sides(table), True)
    old, new = np.array([a for a, _, _ in table]), np.array([b for _, b, _ in table])
    if np.ptp(new - old) > 1e-6:
        usual = stats.ttest_rel(new, old)
        assert found.t == pytest.approx(usual.statistic, rel=1e-6)
        low, high = found.interval(0.9)
        assert (low, high) == pytest.approx(tuple(usual.confidence_interval(0.9)), rel=1e-6)


@given(rows, st.booleans())
def test_swapping_the_sides_turns_the_sign(table, higher):
    old, new = sides(table)
    there, back = paired_difference(old, new, higher), paired_difference(new, old, higher)
    assert there.gain == pytest.approx(-back.gain, abs=1e-12)
    assert there.stderr == pytest.approx(back.stderr, abs=1e-12)


def test_standard_error_agrees_with_a_bootstrap_over_items():
    rng = np.random.default_rng(5)
    w = rng.integers(20, 400, 150).astype(float)
    old = rng.normal(1.5, 0.4, 150)
    new = old - 0.05 + rng.normal(0, 0.1, 150)
    found = paired_difference(*sides(list(zip(old, new, w, strict=True))), False)
    picks = rng.integers(0, 150, (4000, 150))
    resampled = (w * (old - new))[picks].sum(1) / w[picks].sum(1)
    assert found.stderr == pytest.approx(resampled.std(), rel=0.06)
    assert found.z > 5


def test_t_interval_covers_what_it_says_at_eight_items():
    rng = np.random.default_rng(11)
    hits = 0
    for _ in range(600):
        table = [(0.0, d, 1.0) for d in rng.normal(0.2, 1.0, 8)]
        low, high = paired_difference(*sides(table), True).interval(0.95)
        hits += low <= 0.2 <= high
    assert 0.93 <= hits / 600 <= 0.97


def test_z_has_the_tail_of_t():
    found = paired_difference(*sides([(0, d, 1.0) for d in (0.1, 0.3, 0.2, 0.5)]), True)
    assert stats.norm.sf(found.z) == pytest.approx(stats.t.sf(found.t, 3), rel=1e-9)
    assert 0 < found.z < found.t


def test_only_items_both_sides_have_with_the_same_weight_count():
    old = {"a": (1.0, 5.0), "b": (1.0, 5.0), "c": (1.0, 5.0), "d": (math.nan, 5.0)}
    new = {"a": (2.0, 5.0), "b": (2.0, 6.0), "d": (2.0, 5.0), "e": (2.0, 5.0)}
    found = paired_difference(old, new, True)
    assert (found.n, found.gain) == (1, 1.0)
    with pytest.raises(ValueError, match="no item is scored on both sides"):
        paired_difference({"a": (1.0, 1.0)}, {"b": (1.0, 1.0)}, True)


def test_one_item_concludes_nothing():
    found = paired_difference({"a": (1.0, 1.0)}, {"a": (2.0, 1.0)}, True)
    assert (found.stderr, found.df, found.z) == (math.inf, 0, 0.0)
    assert found.interval() == (-math.inf, math.inf)


def test_identical_changes_are_certain_and_no_change_is_none():
    sure = paired_difference(*sides([(0.0, 1.0, 1.0)] * 3), True)
    none = paired_difference(*sides([(1.0, 1.0, 1.0)] * 3), True)
    assert (sure.z, none.z, none.interval()) == (math.inf, 0.0, (0.0, 0.0))


def test_unpaired_is_welch():
    found = unpaired_difference((0.3, 0.04, 100), (0.4, 0.03, 50), True)
    assert found.stderr == pytest.approx(0.05)
    assert found.df == pytest.approx(0.05**4 / (0.04**4 / 99 + 0.03**4 / 49))
    assert not found.paired
    assert unpaired_difference((1, math.inf, 3), (2, 0.1, 3), True).z == 0.0


def test_extreme_t_stays_finite_and_ordered():
    table = [(0.0, 1.0 + 1e-4 * (k % 2), 1.0) for k in range(400)]
    found = paired_difference(*sides(table), True)
    assert 30 < found.z < math.inf
    assert t_quantile(0.975, 7) == pytest.approx(2.3646, abs=1e-4)


def test_lower_bits_per_byte_is_a_gain():
    seen = observe(
        {"gsm8k": score({"a": 2.0, "b": 1.8, "c": 1.9})},
        {"gsm8k": score({"a": 1.7, "b": 1.6, "c": 1.6})},
    )
    found = seen.difference("gsm8k", -2, -1)
    assert found.gain > 0.2
    assert (found.metric, found.benchmark, found.n) == ("bits_per_byte", "gsm8k", 3)
    assert seen.difference("gsm8k", seen.evaluations[0], 1) == found


def test_pooling_is_one_difference_over_all_items():
    seen = observe(
        {"gsm8k": score({"a": 2.0, "b": 1.8}), "math": score({"a": 1.0, "b": 1.2}, size=50)},
        {"gsm8k": score({"a": 1.7, "b": 1.6}), "math": score({"a": 1.1, "b": 1.0}, size=50)},
    )
    found = seen.pooled_difference(["gsm8k", "math"], 0, 1)
    table = [(2.0, 1.7, 10.0), (1.8, 1.6, 11.0), (1.0, 1.1, 50.0), (1.2, 1.0, 51.0)]
    by_hand = paired_difference(*sides(table), False)
    assert (found.gain, found.stderr, found.n) == (by_hand.gain, by_hand.stderr, 4)
    pooled = seen.pooled_metric(["gsm8k", "math"], -1)
    assert pooled.value == pytest.approx((17 + 17.6 + 55 + 51) / 122)
    assert set(pooled_items(seen.evaluations[0], ["gsm8k", "math"], "bits_per_byte")) == {
        "gsm8k/a", "gsm8k/b", "math/a", "math/b",
    }  # fmt: skip


def test_a_missing_score_is_said_never_a_zero():
    seen = observe({"gsm8k": score({"a": 1.0, "b": 2.0})}, {"math": score({"a": 1.0, "b": 1.0})})
    for call, message in [
        (lambda: seen.difference("gsm8k", 0, 1), "gsm8k has no score at step 20"),
        (lambda: seen.difference("gsm8k", 0, 0, "accuracy"), "gsm8k has no accuracy at step 10"),
        (lambda: seen.difference("gsm8k", -3, 0), "no evaluation -3: the run has 2"),
        (lambda: seen.pooled_difference(["math", "gsm8k"], 0, 1), "math has no score at step 10"),
    ]:
        with pytest.raises(MissingScore, match=message):
            call()
    assert seen.scored("gsm8k") == [0]


def test_without_items_the_standard_errors_are_added():
    def bare(value: float, stderr: float | None) -> dict:
        return {"m": BenchmarkScore(metrics={"acc": Metric(value=value, stderr=stderr, n=50)})}

    seen = observe(bare(0.3, 0.03), bare(0.4, 0.04), bare(0.5, None))
    found = seen.difference("m", 0, 1, "acc")
    assert (found.gain, found.stderr, found.paired) == (
        pytest.approx(0.1), pytest.approx(0.05), False,
    )  # fmt: skip
    assert seen.difference("m", 1, 2, "acc").z == 0.0


@settings(max_examples=30)
@given(st.floats(allow_nan=True, allow_infinity=True), st.integers(0, 10**13))
def test_observation_survives_json(value, tokens):
    metric = Metric(value=value, stderr=None, n=3)
    scored = BenchmarkScore(metrics={"acc": metric}, items={"x": {"acc": value}})
    seen = observe({"m": scored}).model_copy(update={"tokens": tokens, "budget": 11 * 10**12})
    text = seen.model_dump_json()
    again = Observation.model_validate_json(text)
    assert again.model_dump_json() == text
    assert repr(again.evaluations[0].benchmarks["m"].metrics["acc"].value) == repr(value)


def test_observation_is_frozen():
    with pytest.raises(ValueError, match="frozen"):
        observe().tokens = 3
