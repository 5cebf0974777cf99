"""The conformance suite: what ships passes it, and each way of being wrong fails its check."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from typing import Any

import numpy as np
import pytest

from mixloop.policies.interface import (
    Hold,
    Observation,
    PolicyError,
    Proposal,
    load_policy,
    policy_names,
)
from mixloop.policies.testing import subject
from mixloop.policies.testing.edge_cases import SITUATIONS
from mixloop.policies.testing.sample_runs import BENCHMARKS, SOURCES, run_so_far
from mixloop.policies.testing.suite import PolicyConformance, check_policy, conformance_checks


def proxies(count: int) -> list[dict[str, Any]]:
    """Proxy runs of a log-linear law: each benchmark falls with its own source's share."""
    drawing = np.random.default_rng(0)
    runs = []
    for shares in drawing.dirichlet(np.ones(len(SOURCES)), count):
        losses = 0.5 + np.exp(-shares[: len(BENCHMARKS)] + drawing.normal(0, 0.004, 4))
        scores = {n: {"value": float(v)} for n, v in zip(BENCHMARKS, losses, strict=True)}
        weights = dict(zip(SOURCES, map(float, shares), strict=True))
        runs.append({"weights": weights, "benchmarks": scores})
    return runs


# what a policy is tried with besides no options at all; one that can't do without, only with these
OPTIONS: dict[str, list[dict[str, Any]]] = {
    "olmix": [{"points": proxies(18)}],
    "static": [{}, {"weights": {"web": 0.5, "maths": 0.5}}],
    "rules": [
        {},
        {
            "initial": {"web": 0.4, "code": 0.3, "maths": 0.3},
            "interventions": [
                {
                    "name": "maths",
                    "when": {"trend": {"benchmark": ["gsm8k", "math"], "is": "not-better"}},
                    "move": {"to": "maths", "from": "web"},
                },
                {
                    "name": "code",
                    "when": {"level": {"benchmark": "humaneval", "above": 0.5}},
                    "move": {"to": "code", "from": "rest"},
                },
            ],
        },
    ],
}
TRIALS = [(name, options) for name in policy_names() for options in OPTIONS.get(name, [{}])]


@pytest.mark.parametrize(("name", "options"), TRIALS)
def test_every_policy_that_ships_conforms(name: str, options: dict[str, Any]) -> None:
    report = check_policy(name, options)
    assert [f"{result.name}: {result.detail}" for result in report.failures()] == []
    assert len(report.results) == len(conformance_checks())


class Base:
    """Keeps what is in force, as a proposal."""

    def weights(self, observation: Observation) -> dict[str, float]:
        total = sum(observation.weights.get(name, 0.0) for name in observation.sources)
        return {name: observation.weights.get(name, 0.0) / total for name in observation.sources}

    def decide(self, observation: Observation) -> Any:
        return Proposal(self.weights(observation), "going on")


class Strange(Base):
    def weights(self, observation):
        return super().weights(observation) | {"elsewhere": 0.0}


class Unscaled(Base):
    def weights(self, observation):
        return dict.fromkeys(observation.sources, 1.0)


class Negative(Base):
    def weights(self, observation):
        first, *_ = observation.sources
        return dict.fromkeys(observation.sources, 0.0) | {"papers": -1.0, first: 2.0}


class Backwards(Base):
    def decide(self, observation):
        weights = self.weights(observation)
        return Proposal(weights, "planned", plan=[(observation.tokens - 1, weights)])


class OtherPlan(Base):
    def decide(self, observation):
        weights = self.weights(observation)
        first, *_ = weights
        later = dict.fromkeys(weights, 0.0) | {first: 1.0}
        return Proposal(weights, "planned", plan=[(observation.tokens + 1, later)])


class Uniform(Base):
    def weights(self, observation):
        return dict.fromkeys(observation.sources, 1 / len(observation.sources))


class Counting(Base):
    calls = 0

    def decide(self, observation):
        Counting.calls += 1
        return Hold(f"call {Counting.calls}")


class Remembering(Base):
    def __init__(self):
        self.seen = 0

    def decide(self, observation):
        self.seen += 1
        return Hold(f"call {self.seen}")


class Scribbling(Base):
    def decide(self, observation):
        observation.weights["web"] = 0.123
        return Hold("scribbled")


class IdentityBound(Base):
    """Works with the object it was given and with no other of the same content."""

    def decide(self, observation):
        kind = type(observation.evaluations[-1].benchmarks) if observation.evaluations else dict
        return Hold(f"{kind.__name__} {id(observation.sources)}")


class Unseeded(Base):
    def decide(self, observation):
        return Hold(f"{random.Random(random.getrandbits(60)).random()}")


class UnseededNumpy(Base):
    def decide(self, observation):
        np.random.random()
        return Hold("drew")


class Timed(Base):
    def decide(self, observation):
        return Hold(f"year {1970 + int(time.time() // 31_557_600)}")


class Speechless(Base):
    def decide(self, observation):
        return Hold(" ")


class Returning(Base):
    def decide(self, observation):
        return {"weights": self.weights(observation)}


class Newest(Base):
    """Takes it that there is an evaluation with every benchmark."""

    def decide(self, observation):
        scores = observation.evaluations[-1].benchmarks
        return Hold(f"{scores['mmlu'].metrics['bits_per_byte'].value}")


class Looking(Base):
    """Takes it that a source of history is still there, and what is there was in history."""

    def decide(self, observation):
        for evaluation in observation.evaluations:
            for name in evaluation.drawn:
                _ = observation.sources[name]
            for name in observation.sources:
                _ = evaluation.drawn[name]
        return Hold("looked")


class Rounding(Base):
    """Turns a score into an integer."""

    def decide(self, observation):
        for evaluation in observation.evaluations:
            for score in evaluation.benchmarks.values():
                int(score.metrics["bits_per_byte"].value)
        return Hold("rounded")


FAULTS = [
    (Strange, "sources"),
    (Unscaled, "simplex"),
    (Negative, "simplex"),
    (Backwards, "plan"),
    (OtherPlan, "plan"),
    (OtherPlan, "bounds"),
    (Uniform, "standby"),
    (Counting, "instances"),
    (Remembering, "stateless"),
    (Scribbling, "untouched"),
    (IdentityBound, "json"),
    (Unseeded, "random"),
    (UnseededNumpy, "random"),
    (Timed, "clock"),
    (Speechless, "ordinary"),
    (Returning, "survives one source"),
    (Newest, "survives an empty history"),
    (Newest, "survives missing benchmarks"),
    (Newest, "survives no benchmark ever scored"),
    (Looking, "survives a new source"),
    (Looking, "survives a vanished source"),
    (Rounding, "survives NaN and infinite scores"),
]


@pytest.mark.parametrize(("fault", "check"), FAULTS)
def test_each_fault_fails_its_check(fault: type[Base], check: str) -> None:
    (broken,) = (
        candidate
        for candidate in conformance_checks()
        if check in (candidate.name, candidate.title)
    )
    with pytest.raises(AssertionError, match=r"^in "):
        broken(subject(fault))


def test_the_policy_that_the_faults_are_made_of_has_none() -> None:
    assert check_policy(Base).failures() == []


def test_a_failure_is_one_line_that_names_the_situation() -> None:
    details = {failure.name: failure.detail for failure in check_policy(Newest).failures()}
    assert details["an-empty-history"].startswith("in an empty history: raised IndexError: ")
    assert all("\n" not in detail for detail in details.values())


def test_standby_is_brought_in_where_the_options_say_so() -> None:
    mixture = dict.fromkeys(run_so_far().sources, 0.2)
    assert check_policy("static", {"weights": mixture}).passed
    weights = {"web": 0.9, "papers": 0.1}
    assert check_policy("static", {"weights": weights}).passed
    assert "standby" in {failure.name for failure in check_policy(Uniform).failures()}


def test_a_run_that_the_options_refuse_is_no_failure_unless_it_is_the_ordinary_one() -> None:
    report = check_policy("static", {"weights": {"maths": 1.0}})
    assert report.passed
    assert set(report.not_for) == {"one source"}
    names = {"sources": {"a": ["web"], "b": []}, "benchmarks": ["gsm8k"]}
    wrong = check_policy("static", {"weights": {"maths": 1.0}}, **names)
    assert "no source is called 'maths'" in wrong.failures()[0].detail
    assert check_policy("static", {"weights": {"b": 1.0}}, **names).passed


def test_a_policy_that_cannot_be_built_is_no_report() -> None:
    with pytest.raises(PolicyError, match="no policy is called 'ruls'"):
        check_policy("ruls")
    with pytest.raises(PolicyError, match=r"policy.with.weight: unknown"):
        check_policy("static", {"weight": {}})


def test_the_time_of_a_decision_is_measured_not_asserted() -> None:
    class Clock:
        now = 0.0

        def __call__(self) -> float:
            Clock.now += 0.5
            return Clock.now

    report = check_policy("static", clock=Clock())
    assert report.passed
    assert report.slowest == 0.5


class TestAsAClass(PolicyConformance):
    """As a third party would use it."""

    policy = "static"
    options = {"weights": {"web": 0.7, "code": 0.3}}  # noqa: RUF012 (as users will write it)


RULES = subject(lambda: load_policy("rules"))


@pytest.mark.parametrize("check", conformance_checks(), ids=str)
def test_as_parameters(check: Any) -> None:
    check(RULES)


def test_the_class_has_a_test_for_every_check() -> None:
    tests = {name for name in dir(PolicyConformance) if name.startswith("test_")}
    assert len(tests) == len(conformance_checks())
    assert len({check.name for check in conformance_checks()}) == len(tests)


def test_situations_are_the_same_every_time() -> None:
    trial = subject("static")
    for name in SITUATIONS:
        first, second = (trial.observation(name).model_dump_json() for _ in range(2))
        assert first == second


def test_the_suite_needs_neither_pytest_nor_anything_heavy() -> None:
    code = (
        "import sys, mixloop.policies.testing as t; assert t.check_policy('static').passed;"
        "heavy = {'pytest', 'torch', 'optuna', 'scipy', 'numpy'} & set(sys.modules);"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
