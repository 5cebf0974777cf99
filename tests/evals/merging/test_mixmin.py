"""The mixture of experts' probabilities that predicts best, where the best one is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixloop.evals.merging import mixmin


def loss(mixture: np.ndarray, logprobs: np.ndarray) -> float:
    return float(-np.log(np.exp(logprobs) @ mixture).mean())


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.floats(0, 1), min_size=2, max_size=6).filter(lambda parts: sum(parts) > 0.1),
    st.integers(0, 2**32 - 1),
)
def test_the_mixture_that_made_the_data_is_found(parts: list[float], seed: int) -> None:
    """Symbols in the frequencies that a mixture of linearly independent experts gives them."""
    truth = np.array(parts) / sum(parts)
    rng = np.random.default_rng(seed)
    k = len(truth)
    experts = np.eye(k) * 0.6 + rng.dirichlet(np.ones(k), size=k) * 0.4  # [expert, symbol]
    found = mixmin(np.log(experts.T), truth @ experts, steps=5_000, tolerance=1e-7)
    assert found.sum() == pytest.approx(1)
    assert np.abs(found - truth).max() < 0.02


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 5), st.integers(5, 60), st.integers(0, 2**32 - 1))
def test_no_mixture_is_better(k: int, n: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    logprobs = rng.normal(-3, 2, size=(n, k)).clip(max=0)
    found = mixmin(logprobs, steps=2_000, tolerance=1e-4)
    others = [*np.eye(k), *rng.dirichlet(np.ones(k), size=50)]
    assert all(loss(found, logprobs) <= loss(other, logprobs) + 1e-4 for other in others)


def test_a_long_text_s_probability_does_not_vanish() -> None:
    found = mixmin([[-2000.0, -2001.0], [-3001.0, -3000.0]])
    assert found == pytest.approx([0.5, 0.5])


def test_importance_is_how_often_a_row_counts() -> None:
    rows = np.log([[0.9, 0.1], [0.2, 0.8]])
    assert mixmin(rows, [3, 1]) == pytest.approx(mixmin(rows[[0, 0, 0, 1]]), abs=1e-6)


def test_no_step_stays_at_the_start() -> None:
    assert mixmin([[-1.0, -2.0]], start=[3, 1], steps=0) == pytest.approx([0.75, 0.25])


@pytest.mark.parametrize(
    ("logprobs", "options"),
    [
        ([-1.0, -2.0], {}),
        ([[-math.inf, -math.inf]], {}),
        ([[math.nan, -1.0]], {}),
        ([[-1.0, -2.0]], {"start": [1, 1, 1]}),
        ([[-1.0, -2.0]], {"importance": [1, 1]}),
    ],
)
def test_what_has_no_answer_is_refused(logprobs, options) -> None:
    with pytest.raises(ValueError, match=r"logprobs|observation|importances"):
        mixmin(logprobs, **options)
