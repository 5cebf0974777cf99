"""Which metric steers: latched, a function of history alone, and never one that is at chance."""

from __future__ import annotations

import statistics
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from mixloop.common.paired import weighted_mean
from mixloop.controller.core import Steering, wording
from mixloop.controller.core.steering_metric import CHANCE, HEADLINES, WINDOW, above_chance, steer
from mixloop.controller.journal import Journal, queries, records
from mixloop.controller.views.decision_history import steering_at
from mixloop.policies.interface import BenchmarkScore, Evaluation, Metric, Observation

ITEMS = 40


def evaluation(step: int, right: float, bits: float, seed: int, **kept: str) -> Evaluation:
    """One scored checkpoint: a share of right answers and bits per byte, both with item noise.

    ``kept`` names, per benchmark, which of its two metrics it has: ``both`` by default.
    """
    benchmarks = {}
    for name, headline in HEADLINES.items():
        rng = np.random.default_rng([seed, step])
        luck = np.random.default_rng(seed).random(ITEMS)
        outcomes = {
            headline: (luck < right).astype(float),
            "bits_per_byte": bits + rng.normal(0, 0.1, ITEMS),
        }
        if (only := kept.get(name, "both")) != "both":
            outcomes.pop("bits_per_byte" if only == "headline" else headline)
        benchmarks[name] = BenchmarkScore(
            metrics={metric: measured(metric, list(v)) for metric, v in outcomes.items()},
            items={
                f"i{i}": {"bytes": 10.0} | {m: float(v[i]) for m, v in outcomes.items()}
                for i in range(ITEMS)
            },
        )
    return Evaluation(step=step, tokens=1000 * step, benchmarks=benchmarks)


def measured(metric: str, values: list[float]) -> Metric:
    value, stderr = weighted_mean([(float(v), 1.0) for v in values])
    better = metric != "bits_per_byte"
    return Metric(value=value, stderr=stderr, n=len(values), higher_is_better=better)


def run(rights: list[float], bits: list[float], seed: int = 1, **kept: str) -> list[Evaluation]:
    return [
        evaluation(10 * k, right, bit, seed, **kept)
        for k, (right, bit) in enumerate(zip(rights, bits, strict=True), 1)
    ]


shares = st.sampled_from([0.0, 0.05, 0.25, 0.3, 0.45, 0.6, 0.8, 1.0])
bit_values = st.sampled_from([1.0, 1.02, 1.1, 1.5])
histories = st.lists(
    st.tuples(shares, bit_values, st.sampled_from(["both", "both", "headline"])),
    min_size=1,
    max_size=12,
)
names = st.sampled_from(sorted(HEADLINES))


def drawn(history: list[tuple[float, float, str]], name: str, seed: int) -> list[Evaluation]:
    return [
        evaluation(10 * k, right, bit, seed, **{name: kept})
        for k, (right, bit, kept) in enumerate(history, 1)
    ]


@settings(max_examples=60, deadline=None)
@given(histories, names, st.integers(0, 99))
def test_once_taken_over_it_stays_and_the_past_is_never_rewritten(history, name, seed):
    scored = drawn(history, name, seed)
    final = steer(name, scored)
    for end in range(1, len(scored) + 1):
        then = steer(name, scored[:end])
        if then.since is not None:
            assert then == final, "the latch opened, or its story changed"
        elif final.since is not None:
            assert scored[end - 1].step < final.since


@settings(max_examples=60, deadline=None)
@given(histories, names, st.integers(0, 99))
def test_a_headline_steers_only_from_an_evaluation_that_earned_it(history, name, seed):
    scored = drawn(history, name, seed)
    steering = steer(name, scored)
    if steering.since is None:
        return
    headline = HEADLINES[name]
    whole = [e for e in scored if len(e.benchmarks[name].metrics) == 2 and e.step <= steering.since]
    assert whole[-1].step == steering.since
    chance = CHANCE.get(name, 0.0)
    for evaluation in whole[-2:]:
        metric = evaluation.benchmarks[name].metrics[headline]
        assert metric.stderr is not None
        assert (metric.value - chance) > 2 * metric.stderr
    lens = Observation(sources={}, weights={}, evaluations=tuple(whole[-WINDOW - 1 :]))
    ours, bits = (
        statistics.median(abs(lens.difference(name, k, k + 1, m).z) for k in range(WINDOW))
        for m in (headline, "bits_per_byte")
    )
    assert ours > bits


RISING = [0.30, 0.5, 0.7, 0.9, 1.0, 1.0]
FLAT = [1.0] * 6
FALLING = [2.0, 1.8, 1.6, 1.4, 1.2, 1.0]


def test_a_headline_that_separates_better_takes_over_when_the_window_is_full():
    scored = run(RISING, FLAT)
    steering = steer("gsm8k", scored)
    assert (steering.metric, steering.since) == ("exact_match", 50)
    assert "median |z|" in steering.why
    assert steer("gsm8k", scored[:4]).metric == "bits_per_byte"


def test_bits_per_byte_steer_while_they_separate_better():
    assert steer("gsm8k", run(RISING, FALLING)).metric == "bits_per_byte"


def test_at_chance_a_headline_never_steers_however_much_it_moves():
    at_chance = [0.25, 0.30, 0.2, 0.32, 0.22, 0.31]
    assert steer("mmlu", run(at_chance, FLAT)).metric == "bits_per_byte"
    # the same answers are far above what free text gets right by guessing
    assert steer("gsm8k", run(at_chance, FLAT)).metric == "exact_match"


def test_one_evaluation_above_chance_is_not_enough():
    metric = measured("accuracy", [1.0] * 24 + [0.0] * 16)
    assert above_chance("mmlu", metric)
    once = [0.25, 0.3, 0.2, 0.3, 0.2, 0.9]
    assert steer("mmlu", run(once, FLAT)).metric == "bits_per_byte"
    assert steer("mmlu", run([*once, 1.0], [*FLAT, 1.0])).metric == "accuracy"


def test_the_override_keeps_bits_per_byte():
    assert steer("gsm8k", run(RISING, FLAT), "bits_per_byte").metric == "bits_per_byte"


def test_a_benchmark_that_gives_no_bits_per_byte_is_steered_by_its_headline():
    assert steer("gsm8k", run(RISING, FLAT, gsm8k="headline")).metric == "exact_match"
    assert steer("gsm8k", []).metric == "bits_per_byte"


def test_a_change_is_journaled_once_and_shown(tmp_path: Path):
    journal = Journal(tmp_path / "journal.db", create=True)
    journal.claim("r")
    bits = {"gsm8k": Steering("bits_per_byte", None, "so")}
    headline = {"gsm8k": Steering("exact_match", 50, "better")}
    assert records.steering(journal, 10, 100, bits) == {}
    assert records.steering(journal, 20, 200, bits) == {}
    assert records.steering(journal, 50, 500, headline) == headline
    assert records.steering(journal, 50, 500, headline) == {}
    changes = queries.events(journal, "steering")
    assert [event.detail["step"] for event in changes] == [10, 50]
    assert steering_at(changes, 49)["gsm8k"]["metric"] == "bits_per_byte"
    assert (
        wording.steering({n: Steering(**s) for n, s in steering_at(changes, 50).items()})
        == "gsm8k by exact_match since step 50"
    )
    journal.close()
