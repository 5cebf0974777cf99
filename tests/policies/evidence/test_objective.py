"""The objective: weights, targets, names checked at load."""

from __future__ import annotations

import pytest

from mixloop.common.errors import BadInput
from mixloop.controller.config import load_config
from mixloop.policies.evidence import objective_weights
from mixloop.policies.interface import (
    BenchmarkScore,
    Evaluation,
    Goal,
    Metric,
    Observation,
)


def score(value: float, *, better: bool = False, metric: str = "bits_per_byte") -> BenchmarkScore:
    entry = Metric(value=value, stderr=0.01, n=100, higher_is_better=better)
    return BenchmarkScore(metrics={metric: entry})


def observe(*scores: dict[str, BenchmarkScore], **changes: object) -> Observation:
    evaluations = tuple(
        Evaluation(step=k, tokens=k, benchmarks=scored) for k, scored in enumerate(scores, 1)
    )
    fields: dict[str, object] = {"steering": dict.fromkeys(["a", "b"], "bits_per_byte")}
    return Observation(sources={}, weights={}, evaluations=evaluations, **fields | changes)


@pytest.mark.parametrize(
    ("objective", "weights"),
    [
        ({}, {"a": 0.5, "b": 0.5}),
        ({"a": Goal(weight=3)}, {"a": 0.75, "b": 0.25}),
        ({"a": Goal(weight=0)}, {"a": 0.0, "b": 1.0}),
        ({"a": Goal(target=1.0)}, {"a": 0.0, "b": 1.0}),
        ({"a": Goal(target=0.8)}, {"a": 0.5, "b": 0.5}),
        ({"a": Goal(target=1.0), "b": Goal(target=2.0)}, {"a": 0.0, "b": 0.0}),
    ],
)
def test_weights(objective, weights):
    observation = observe({"a": score(0.9), "b": score(2.0)}, objective=objective)
    assert objective_weights(observation) == pytest.approx(weights)


def test_a_target_of_an_accuracy_is_reached_from_below():
    steering = {"a": "accuracy", "b": "bits_per_byte"}
    scored = {"a": score(0.6, better=True, metric="accuracy")}
    observation = observe(scored, objective={"a": Goal(target=0.7)}, steering=steering)
    assert objective_weights(observation)["a"] == 0.5
    reached = observe(scored, objective={"a": Goal(target=0.6)}, steering=steering)
    assert objective_weights(reached) == {"a": 0.0, "b": 1.0}


def test_watched_benchmarks_have_no_part():
    observation = observe({"a": score(1), "w": score(1)}, steering={}, watch=("w",))
    assert objective_weights(observation) == {"a": 1.0}


RUN = """
run: {{id: r, dir: r}}
budget: 1M
sources: {{a: {{path: a}}}}
evals: {{benchmarks: {{mmlu: {{}}, gsm8k: {{}}}}, watch: {{hellaswag: {{}}}}}}
objective: {objective}
"""


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        ("{gsm9k: {weight: 1}}", "objective.gsm9k: no such benchmark .*did you mean 'gsm8k'?"),
        ("{hellaswag: {weight: 2}}", "objective.hellaswag: a watch benchmark never steers"),
        ("{mmlu: {weight: 0}, gsm8k: {weight: 0}}", "every weight is 0"),
        (
            "{mmlu: {weight: -1}}",
            "objective.mmlu.weight: input should be greater",
        ),
    ],
)
def test_objective_mistakes_in_a_run_file(tmp_path, objective, message):
    path = tmp_path / "run.yaml"
    path.write_text(RUN.format(objective=objective))
    with pytest.raises(BadInput, match=message):
        load_config(path)


def test_a_watched_benchmark_may_have_a_floor(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(RUN.format(objective="{hellaswag: {max_drop: 0.02}, mmlu: {weight: 2}}"))
    assert load_config(path).objective["hellaswag"].max_drop == 0.02
