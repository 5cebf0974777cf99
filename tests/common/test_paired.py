"""Paired differences: exact against brute force, right against resampling, honest about little."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from mixloop.common.estimates import t_quantile
from mixloop.common.paired import (
    mcnemar,
    paired_difference,
    pooled_cluster,
    unpaired_difference,
    weighted_mean,
)
from mixloop.policies.interface import (
    BenchmarkScore,
    Evaluation,
    Metric,
    MissingScore,
    Observation,
    Source,
    pooled_items,
)

values = st.floats(-5, 5)
weights = st.floats(0.5, 500)
rows = st.lists(st.tuples(values, values, weights), min_size=2, max_size=40)
subjects = st.sampled_from(["anatomy", "law", "physics", "virology"])
clustered = st.lists(st.tuples(values, values, weights, subjects), min_size=2, max_size=40)


def sides(table: list[tuple[float, float, float]]) -> tuple[dict, dict]:
    old = {f"i{k}": (a, w) for k, (a, _, w) in enumerate(table)}
    return old, {f"i{k}": (b, w) for k, (_, b, w) in enumerate(table)}


def mmlu(table: list[tuple[float, float, float, str]], name: str = "mmlu") -> tuple[dict, dict]:
    """Both sides of items of several subjects, ids as `pooled_items` gives them."""
    ids = [f"{name}/{subject}/{k:02}" for k, (*_, subject) in enumerate(table)]
    old = {i: (a, w) for i, (a, _, w, _) in zip(ids, table, strict=True)}
    return old, {i: (b, w) for i, (_, b, w, _) in zip(ids, table, strict=True)}


def score(values_: dict[str, float], metric: str = "bits_per_byte", size: int = 10) -> dict:
    n = len(values_)
    items = {k: {metric: v, "bytes": size + i} for i, (k, v) in enumerate(values_.items())}
    mean, stderr = weighted_mean([(v, size + i) for i, v in enumerate(values_.values())])
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


@given(clustered, st.booleans())
def test_clustered_formula_written_with_numpy(table, higher):
    found = paired_difference(*mmlu(table), higher)
    old, new, w = (np.array(column) for column in list(zip(*table, strict=True))[:3])
    names = np.array([subject for *_, subject in table])
    d = new - old
    mean = (w * d).sum() / w.sum()
    sums = [(w * (d - mean))[names == one].sum() for one in set(names)]
    if len(sums) == 1:  # one subject alone: its items are all there is to learn from
        sums = (w * (d - mean)).tolist()
    g = len(sums)
    stderr = math.sqrt(g / (g - 1) * np.square(sums).sum()) / w.sum()
    assert found.gain == pytest.approx(mean if higher else -mean, abs=1e-9)
    assert found.stderr == pytest.approx(stderr, abs=1e-9)
    assert (found.n, found.df) == (len(table), g - 1)


@given(rows)
def test_a_subject_per_item_is_exactly_the_plain_difference(table):
    spread = [(*row, f"subject{k}") for k, row in enumerate(table)]
    assert paired_difference(*mmlu(spread), True) == paired_difference(*sides(table), True)


@given(clustered)
def test_only_mmlu_is_clustered(table):
    plain = paired_difference(*sides([row[:3] for row in table]), True)
    assert paired_difference(*mmlu(table, "math"), True) == plain


@given(clustered, st.randoms(use_true_random=False))
def test_order_of_items_and_names_of_subjects_do_not_matter(table, rng):
    found = paired_difference(*mmlu(table), True)
    names = ["anatomy", "law", "physics", "virology"]
    renamed = dict(zip(names, rng.sample(names, 4), strict=True))
    other = [(*row, renamed[subject]) for *row, subject in table]
    rng.shuffle(other)
    assert paired_difference(*mmlu(other), True) == found


@given(clustered)
def test_swapping_clustered_sides_turns_the_sign_only(table):
    old, new = mmlu(table)
    there, back = paired_difference(old, new, True), paired_difference(new, old, True)
    assert (there.gain, there.stderr, there.df) == pytest.approx((-back.gain, back.stderr, back.df))
    assert paired_difference(old, new, False).gain == -there.gain


@given(clustered.filter(lambda table: len({subject for *_, subject in table}) > 1))
def test_copies_of_items_within_their_subjects_are_no_evidence(table):
    once, thrice = (paired_difference(*mmlu(table * copies), True) for copies in (1, 3))
    assert (thrice.gain, thrice.stderr) == pytest.approx((once.gain, once.stderr), abs=1e-9)
    assert (thrice.df, thrice.n) == (once.df, 3 * len(table))


def test_clustered_interval_covers_what_it_says_where_subjects_move_together():
    """12 subjects of 10 items, half of the variance shared: items alone would cover far less."""
    rng = np.random.default_rng(17)
    hits = np.zeros(2)
    for _ in range(1200):
        d = (rng.normal(0.2, 1, (12, 1)) + rng.normal(0, 1, (12, 10))).ravel()
        table = [(0.0, d[k], 1.0, f"subject{k // 10}") for k in range(120)]
        for k, name in enumerate(("mmlu", "math")):
            low, high = paired_difference(*mmlu(table, name), True).interval(0.95)
            hits[k] += low <= 0.2 <= high
    assert 0.93 <= hits[0] / 1200 <= 0.97
    assert hits[1] / 1200 < 0.75


def test_an_observation_clusters_mmlu_and_pools_it_with_the_rest():
    gold = {f"{'law' if k < 3 else 'anatomy'}/{k}": 2.0 + 0.1 * k for k in range(6)}
    later = {item: value - (0.3 if "law" in item else 0.1) for item, value in gold.items()}
    seen = observe(
        {"mmlu": score(gold), "math": score({"math/a": 1.0, "math/b": 1.5})},
        {"mmlu": score(later), "math": score({"math/a": 0.8, "math/b": 1.4})},
    )
    assert (seen.difference("mmlu", 0, 1).df, seen.difference("math", 0, 1).df) == (1, 1)
    pooled = seen.pooled_difference(["mmlu", "math"], 0, 1)
    assert (pooled.n, pooled.df) == (8, 3)
    clusters = ["law"] * 3 + ["anatomy"] * 3 + ["a", "b"]
    table = [(v, 10.0 + k) for k, v in enumerate(later.values())] + [(0.8, 10.0), (1.4, 11.0)]
    found = seen.pooled_metric(["mmlu", "math"], 1)
    assert (found.value, found.stderr) == weighted_mean(table, clusters)
    assert found.stderr != pytest.approx(weighted_mean(table)[1], rel=0.05)


def test_policies_and_evals_know_the_same_clusters():
    from mixloop.evals.scoring.metrics import cluster_of

    for benchmark, item in [("mmlu", "law/1"), ("mmlu", "law/a/b"), ("math", "math/1")]:
        assert pooled_cluster(f"{benchmark}/{item}") == f"{benchmark}/{cluster_of(benchmark, item)}"


@given(st.lists(st.tuples(st.sampled_from([0.0, 1.0]), st.sampled_from([0.0, 1.0])), max_size=60))
def test_mcnemar_is_the_binomial_test_of_what_changed(pairs):
    old, new = sides([(a, b, 1.0) for a, b in pairs])
    up, down = sum(b > a for a, b in pairs), sum(b < a for a, b in pairs)
    exact = stats.binomtest(up, up + down).pvalue if up + down else 1.0
    assert mcnemar(old, new) == pytest.approx(exact)
    assert mcnemar(new, old) == mcnemar(old, new)


def test_mcnemar_is_for_outcomes_of_right_or_wrong():
    assert mcnemar(*sides([(0.0, 1.0, 1.0), (0.5, 1.0, 1.0)])) is None
    assert mcnemar(*sides([(0.0, float(k % 3 > 0), 1.0) for k in range(4500)])) == 0.0


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
