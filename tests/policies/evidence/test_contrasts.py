"""Contrasts: that they cancel, and that what they are said to tell is what scores then tell."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mixloop.policies.evidence.contrasts import (
    COURSE,
    EFFECT,
    Contrasts,
    contrast,
    tilted,
)
from mixloop.policies.interface import BenchmarkScore, Evaluation, Metric, Observation, Source
from mixloop.policies.mixture import run_arrays

UNIT = 10**9


def test_exploring_mixtures_cancel_and_stay_in_reach() -> None:
    live = np.array([True, True, True, False, True])
    centre = np.where(live, 0.25, 0.0)
    four = [contrast(turn, live, seed=3) for turn in range(4)]
    assert np.sum(four, axis=0) == pytest.approx(np.zeros(5))
    for direction in four:
        away = tilted(centre, live, direction, 0.1)
        assert away.sum() == pytest.approx(1)
        assert away[3] == 0
        assert np.abs(away - centre).sum() / 2 <= 0.1 + 1e-9


def contrasts(k: int = 5, jitter: float = 0.01, budget: int = 40, scored: int = 6) -> Contrasts:
    """A run that drew evenly from k sources, of which some scores are there."""
    drawing, evaluations = np.random.default_rng(0), []
    names = [f"s{index}" for index in range(k)]
    for step in range(1, scored + 1):
        value = 1.0 + step**-0.3 + float(drawing.normal(0, jitter))
        metric: Any = Metric(value=value, stderr=0.004, higher_is_better=False)
        evaluations.append(
            Evaluation(
                step=step,
                tokens=step * UNIT,
                drawn=dict.fromkeys(names, step * UNIT / k),
                benchmarks={"b": BenchmarkScore(metrics={"bits_per_byte": metric})},
            )
        )
    observation = Observation(
        tokens=scored * UNIT,
        budget=budget * UNIT,
        every=UNIT,
        sources={name: Source(unique_tokens=10**15) for name in names},
        weights=dict.fromkeys(names, 1 / k),
        evaluations=tuple(evaluations),
        steering={"b": "bits_per_byte"},
    )
    arrays = run_arrays(observation, budget * UNIT)
    return Contrasts(observation, arrays, np.full(k, 1 / k), np.full(k, True))


def test_noise_sources_and_a_short_run_leave_less_to_be_told() -> None:
    usual = contrasts().told(0.2, 0.5)
    assert 0.1 < usual < 1
    assert contrasts(jitter=0.05).told(0.2, 0.5) < usual / 2
    assert contrasts(k=16).told(0.2, 0.5) < usual / 2
    assert contrasts(budget=12).told(0.2, 0.5) < usual
    assert contrasts().told(0.05, 0.5) < usual / 2
    assert contrasts().told() == pytest.approx(0, abs=1e-6), "nothing was tried yet"
    assert contrasts(scored=1, budget=3).told(0.2, 0.5) == 0, "fewer scores than a course takes"


def test_what_is_said_to_be_told_is_what_regression_then_explains() -> None:
    run = contrasts(jitter=0.02)
    signal = np.sqrt(run._signal())
    design = run._design(0.2, 0.5)
    total = design.sum(axis=1)
    off = design / total[:, None] - 1 / 5
    bases = np.power.outer(total, COURSE)
    drawing, explained = np.random.default_rng(1), []
    for _ in range(400):
        effects = EFFECT * drawing.normal(size=5)
        scores = off @ effects + bases @ [1, 1, 1] + EFFECT / signal * drawing.normal(size=len(off))
        flat = np.hstack([off, 1e3 * bases])  # ridge with a course as free as it likes
        found = flat.T @ np.linalg.solve(flat @ flat.T + np.eye(len(off)) / signal**2, scores)
        apart, true = found[:5] - found[:5].mean(), effects - effects.mean()
        explained.append((float(apart @ true), float(true @ true)))
    with_true, variance = np.sum(explained, axis=0)
    assert with_true / variance == pytest.approx(run.told(0.2, 0.5), abs=0.05)


def test_a_design_that_was_begun_is_given_up_later() -> None:
    fresh = contrasts()
    moved: Any = {"id": "d-1", "step": 1, "tokens": UNIT, "verdict": "intervene"}
    begun = Observation(**{**fresh.observation.model_dump(), "decisions": [moved]})
    after = Contrasts(begun, fresh.arrays, fresh.centre, fresh.live)
    assert after.needed < fresh.needed
