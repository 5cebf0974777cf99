"""Standard errors, intervals and the parquet of per-item outcomes, against scipy and simulation."""

from __future__ import annotations

import json
import logging
import math
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from mixloop.common import estimates
from mixloop.evals import BenchmarkScore, Scorecard
from mixloop.evals.scoring import keep_outcomes
from mixloop.evals.scoring.metrics import cluster_of, mean_metrics, ratio_metric
from mixloop.evals.scoring.outcomes import outcomes_path, write_outcomes

values = st.floats(-5, 5)
clustered = st.lists(
    st.tuples(values, st.floats(0.5, 500), st.sampled_from("abcdef")), min_size=2, max_size=40
)

mmlu = partial(cluster_of, "mmlu")


def columns(rows: list[tuple[float, float, str]]) -> tuple[list[float], list[float], list[str]]:
    totals, weights, clusters = zip(*rows, strict=True)
    return list(totals), list(weights), list(clusters)


@given(clustered)
def test_clusters_are_summed_before_they_are_squared(rows):
    totals, weights, clusters = columns(rows)
    if len(set(clusters)) < 2:
        clusters[0] = "g"
    value, stderr = estimates.ratio_of_totals(totals, weights, clusters)
    t, w = np.array(totals), np.array(weights)
    residuals = t - t.sum() / w.sum() * w
    sums = [residuals[np.array(clusters) == c].sum() for c in set(clusters)]
    expected = math.sqrt(len(sums) / (len(sums) - 1) * np.square(sums).sum()) / w.sum()
    assert value == pytest.approx(t.sum() / w.sum(), abs=1e-9)
    assert stderr == pytest.approx(expected, abs=1e-9)
    assert estimates.degrees_of_freedom(len(rows), clusters) == len(sums) - 1


@given(clustered, st.randoms(use_true_random=False))
def test_order_and_names_of_clusters_do_not_matter(rows, rng):
    totals, weights, clusters = columns(rows)
    found = estimates.ratio_of_totals(totals, weights, clusters)
    renamed = dict(zip("abcdef", rng.sample("uvwxyz", 6), strict=True))
    rng.shuffle(rows)
    totals, weights, clusters = columns(rows)
    assert estimates.ratio_of_totals(totals, weights, [renamed[c] for c in clusters]) == found


@given(clustered)
def test_own_clusters_and_a_single_one_give_the_plain_formula(rows):
    totals, weights, _ = columns(rows)
    own, one = [str(k) for k in range(len(rows))], ["anatomy"] * len(rows)
    for estimate in (
        partial(estimates.ratio_of_totals, totals, weights),
        partial(estimates.mean, totals),
    ):
        assert estimate(own) == estimate(one) == estimate()


def test_copies_of_an_item_are_no_evidence():
    rng = np.random.default_rng(3)
    once = rng.normal(size=30).tolist()
    names = [str(k) for k in range(30)]
    assert estimates.mean(once * 4, names * 4)[1] == pytest.approx(estimates.mean(once)[1])
    assert estimates.mean(once * 4)[1] < 0.6 * estimates.mean(once)[1]


def test_clustered_error_is_the_spread_between_samples_of_clusters():
    """40 subjects of 10 items whose shared part is as large as their own."""
    rng = np.random.default_rng(8)
    samples = rng.normal(size=(400, 40, 1)) + rng.normal(size=(400, 40, 10))
    names = [str(k // 10) for k in range(400)]
    errors = [estimates.mean(one.ravel().tolist(), names)[1] for one in samples]
    assert np.mean(errors) == pytest.approx(samples.mean((1, 2)).std(), rel=0.08)
    assert estimates.mean(samples[0].ravel().tolist())[1] < 0.6 * np.mean(errors)


@given(st.lists(st.sampled_from([0.0, 1.0]), min_size=1, max_size=60))
def test_interval_of_outcomes_is_clopper_pearson(outcomes):
    found = estimates.proportion_interval(outcomes)
    exact = stats.binomtest(int(sum(outcomes)), len(outcomes)).proportion_ci(method="exact")
    assert found == pytest.approx((exact.low, exact.high), abs=1e-12)


@pytest.mark.parametrize(("n", "p"), [(10, 0.03), (30, 0.5), (164, 0.9)])
def test_interval_of_outcomes_covers_at_least_what_it_says(n, p):
    inside = 0.0
    for k in range(n + 1):
        low, high = estimates.clopper_pearson(k, n)
        inside += stats.binom.pmf(k, n, p) if low <= p <= high else 0.0
    assert 0.95 <= inside <= 1


def test_interval_of_clustered_outcomes_covers_what_it_says():
    """20 subjects of 12 items; subjects differ as beta(4, 4) does. Items alone cover far less."""
    rng = np.random.default_rng(21)
    names = [str(k // 12) for k in range(240)]
    hits = np.zeros(2)
    for _ in range(300):
        outcomes = (rng.random((20, 12)) < rng.beta(4, 4, (20, 1))).astype(float).ravel().tolist()
        for k, clusters in enumerate((names, None)):
            low, high = estimates.proportion_interval(outcomes, clusters)
            hits[k] += low <= 0.5 <= high
    assert 0.93 <= hits[0] / 300 <= 0.99
    assert hits[1] / 300 < 0.85


def test_interval_of_clustered_outcomes_at_the_edges():
    names = [str(k // 5) for k in range(20)]
    assert estimates.proportion_interval([1.0] * 20, names) == estimates.clopper_pearson(4, 4)
    even = [1.0, 1.0, 0.0, 0.0] * 5  # every cluster is at one half: more than independent
    alike = [str(k // 4) for k in range(20)]
    assert estimates.proportion_interval(even, alike) == estimates.clopper_pearson(10, 20)


def test_t_interval_is_scipys():
    sample = np.random.default_rng(2).normal(size=9)
    value, stderr = estimates.mean(sample.tolist())
    usual = stats.ttest_1samp(sample, 0).confidence_interval(0.95)
    found = estimates.t_interval(value, stderr, 8)
    assert found == pytest.approx((usual.low, usual.high))


def test_metrics_are_clustered_over_subjects_of_mmlu_only():
    outcomes = {
        f"{'anatomy' if k < 6 else 'law'}{k // 3}/{k:02}": {
            "accuracy": float(k % 3 == 0),
            "bits_per_byte": 1.0 + k,
            "bytes": 10.0,
        }
        for k in range(12)
    }
    gold = ratio_metric(outcomes, 14, mmlu)
    answers = mean_metrics(outcomes, 12, mmlu)
    totals = [10 * one["bits_per_byte"] for one in outcomes.values()]
    subjects = [item.split("/")[0] for item in outcomes]
    assert (gold.value, gold.stderr) == estimates.ratio_of_totals(totals, [10.0] * 12, subjects)
    assert (gold.n, gold.asked, gold.excluded) == (12, 14, 2)
    half = stats.t.ppf(0.975, 3) * gold.stderr
    assert gold.interval == pytest.approx((gold.value - half, gold.value + half))
    assert gold.stderr > 1.5 * ratio_metric(outcomes, 14).stderr
    low, high = answers["accuracy"].interval
    assert 0 < low < answers["accuracy"].value < high < 1
    items = partial(cluster_of, "gsm8k")
    assert ratio_metric(outcomes, 14, items) == ratio_metric(outcomes, 14)


def test_a_metric_over_one_item_has_no_error_and_an_honest_interval():
    one = {"gsm8k/1": {"exact_match": 1.0, "soft": 0.4, "bits_per_byte": 2.0, "bytes": 7.0}}
    found = mean_metrics(one, 1)
    assert found["exact_match"].interval == pytest.approx((0.025, 1.0))
    assert (found["exact_match"].stderr, found["soft"].interval) == (None, None)
    assert ratio_metric(one, 1).interval is None


def test_a_scorecard_without_intervals_is_still_read(tmp_path: Path):
    made = card({"gsm8k/1": {"exact_match": 1.0}, "gsm8k/2": {"exact_match": 0.0}})
    text = json.loads(made.to_json())
    for score in text["benchmarks"].values():
        for metric in score["metrics"].values():
            assert "interval" in metric
            del metric["interval"]
    (tmp_path / "old.json").write_text(json.dumps(text))
    old = Scorecard.read(tmp_path / "old.json").benchmarks["gsm8k"].metrics["exact_match"]
    assert old.interval is None
    assert Scorecard.model_validate_json(made.to_json()) == made


# --- per-item outcomes


def card(gsm8k: dict[str, dict[str, float]], **changes) -> Scorecard:
    anatomy = {"anatomy/01": {"bits_per_byte": 1.25, "bytes": 12.0, "accuracy": 1.0}}
    scores = {
        name: BenchmarkScore(status="ok", metrics=mean_metrics(items, len(items)), items=items)
        for name, items in (("mmlu", anatomy), ("gsm8k", gsm8k))
    }
    scores["math"] = BenchmarkScore(status="missing", reason="no items")
    given_ = {"checkpoint": "runs/a/step-1", "step": 1, "tokens": 11 * 10**12} | changes
    return Scorecard(benchmarks=scores, seconds=1.0, settings_digest="sha256:1", **given_)


def rows_of(path: Path) -> list[tuple[object, ...]]:
    columns = pq.read_table(path).columns
    return list(zip(*(column.to_pylist() for column in columns), strict=True))


GSM8K = {"gsm8k/a": {"exact_match": 0.0}, "gsm8k/b": {"bits_per_byte": 0.1 + 0.2, "bytes": 3.0}}


def test_outcomes_come_back_as_they_were_scored(tmp_path: Path):
    path = tmp_path / "new" / "card.items.parquet"
    write_outcomes(card(GSM8K), path)
    where = ("runs/a/step-1", 1, 11 * 10**12)
    assert rows_of(path) == [
        (*where, "mmlu", "anatomy/01", "anatomy", "bits_per_byte", 1.25, 12),
        (*where, "mmlu", "anatomy/01", "anatomy", "accuracy", 1.0, 12),
        (*where, "gsm8k", "gsm8k/a", "gsm8k/a", "exact_match", 0.0, None),
        (*where, "gsm8k", "gsm8k/b", "gsm8k/b", "bits_per_byte", 0.1 + 0.2, 3),
    ]
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_equal_scorecards_give_equal_files(tmp_path: Path):
    contents = []
    for seconds in (1.0, 2.0):
        write_outcomes(card(GSM8K).model_copy(update={"seconds": seconds}), tmp_path / "x")
        contents.append((tmp_path / "x").read_bytes())
    write_outcomes(card(GSM8K, step=2), tmp_path / "x")
    assert contents[0] == contents[1] != (tmp_path / "x").read_bytes()


def test_a_card_without_outcomes_is_an_empty_table_of_the_same_columns(tmp_path: Path):
    import pandas as pd

    for name, made in (("some", card(GSM8K)), ("none", card({}))):
        empty = made.model_copy(update={"benchmarks": {}}) if name == "none" else made
        write_outcomes(empty, tmp_path / name)
    some, none = (pd.read_parquet(tmp_path / name) for name in ("some", "none"))
    assert (len(some), len(none), list(some)) == (4, 0, list(none))
    assert rows_of(tmp_path / "none") == []


@contextmanager
def no_file_above(size: int) -> Iterator[None]:
    """The kernel refuses to write more, as it does on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_costs_the_outcomes_only(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """And the file of an earlier scoring must not pass for this one's."""
    scorecard = tmp_path / "step-1.json"
    card(GSM8K).write(scorecard)
    keep_outcomes(card(GSM8K), scorecard)
    path = outcomes_path(scorecard)
    assert path.name == "step-1.items.parquet"
    assert len(rows_of(path)) == 4
    with no_file_above(100):
        keep_outcomes(card(GSM8K, step=2), scorecard)
    assert "per-item outcomes are not written: [Errno 27] File too large" in caplog.text
    assert [p.name for p in tmp_path.iterdir()] == ["step-1.json"]


def test_what_lies_in_the_way_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    outcomes_path(tmp_path / "card.json").mkdir()
    with caplog.at_level(logging.WARNING):
        keep_outcomes(card(GSM8K), tmp_path / "card.json")
    assert "per-item outcomes are not written" in caplog.text
    assert [p.name for p in tmp_path.iterdir()] == ["card.items.parquet"]
