"""A merge fit stays inside the caps, is never worse than its start, and finds the optimum."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixloop.policies.mixture import Array, best_static, confine
from mixloop.policies.surrogates import fit_merge
from mixloop.policies.surrogates.merge_fit import divergence

shares = st.lists(st.floats(0, 1), min_size=2, max_size=9)


def bowl(seed: int, k: int, curved: float) -> tuple[Array, Array]:
    """A random convex quadratic loss over mixtures: matrix and linear part."""
    drawing = np.random.default_rng(seed)
    root = drawing.normal(size=(k, k)) * curved
    return root @ root.T, drawing.normal(size=k)


def loss_of(matrix: Array, linear: Array):
    return lambda w: (float(w @ matrix @ w / 2 + linear @ w), matrix @ w + linear)


@settings(max_examples=150, deadline=None)
@given(
    shares,
    st.integers(0, 2**31),
    st.floats(0.0, 30.0),
    st.sampled_from([0.0, 0.01, 1.0]),
    st.integers(0, 30),
)
def test_stays_inside_the_caps_and_never_ends_worse_than_it_began(
    caps: list[float], seed: int, curved: float, strength: float, steps: int
) -> None:
    k, drawing = len(caps), np.random.default_rng(seed)
    most = np.array(caps) + 1.1 / k  # so that they leave room
    start, prior = drawing.dirichlet(np.full(k, 0.3)), drawing.dirichlet(np.ones(k))
    start[start < 0.02] = 0.0
    call = loss_of(*bowl(seed, k, curved))
    weights, tried = fit_merge(call, start, prior, most, strength, steps)
    begin = confine(start, np.minimum(most, 1))
    for step in tried:
        assert step.weights.min() >= 0
        assert step.weights.sum() == pytest.approx(1)
        assert (step.weights <= most + 1e-9).all()

    def objective(w: Array) -> float:
        return call(w)[0] + (strength * divergence(w, prior) if strength else 0)

    assert objective(weights) <= objective(begin) + 1e-7
    assert len(tried) <= steps + 2


@pytest.mark.parametrize("strength", [0.0, 0.05])
@pytest.mark.parametrize("seed", range(6))
def test_finds_what_a_general_solver_finds(seed: int, strength: float) -> None:
    k = 8
    matrix, linear = bowl(seed, k, 0.7)
    call = loss_of(matrix, linear)
    prior, most = np.full(k, 1 / k), np.array([0.1, *[0.5] * (k - 1)])
    weights, tried = fit_merge(call, prior, prior, most, strength, 300)

    def batch(rows: Array) -> Array:
        return np.array([call(w)[0] + strength * divergence(w, prior) for w in rows])

    other = batch(best_static(batch, most)[None])[0]
    assert batch(weights[None])[0] <= other + 2e-4
    # and twenty-five passes are enough to have most of what there is to gain
    first = tried[0].objective
    there = min(step.objective for step in tried[:26])
    assert first - there >= 0.9 * (first - other)


def test_a_source_without_a_share_at_the_start_can_get_one() -> None:
    linear = np.array([0.0, -1.0, 0.5])
    call = loss_of(np.zeros((3, 3)), linear)
    weights, tried = fit_merge(
        call, np.array([0.5, 0.0, 0.5]), np.ones(3) / 3, np.ones(3), 0.01, 25
    )
    assert tried[0].weights[1] == 0
    assert weights[1] > 0.9


def test_the_pull_holds_a_fit_that_nothing_speaks_for() -> None:
    flat = loss_of(np.zeros((4, 4)), np.zeros(4))
    prior = np.array([0.4, 0.3, 0.2, 0.1])
    weights, _ = fit_merge(flat, np.full(4, 0.25), prior, np.ones(4), 0.05, 40)
    assert weights == pytest.approx(prior, abs=0.03)


def test_a_source_that_the_prior_excludes_gets_nothing() -> None:
    call = loss_of(np.zeros((3, 3)), np.array([0.0, -5.0, 0.0]))
    prior = np.array([0.5, 0.0, 0.5])
    weights, _ = fit_merge(call, np.ones(3) / 3, prior, np.ones(3), 0.01, 25)
    assert weights[1] == 0


def test_caps_that_hold_less_than_one_leave_one_mixture() -> None:
    call = loss_of(np.zeros((2, 2)), np.array([1.0, 0.0]))
    weights, tried = fit_merge(call, np.ones(2) / 2, np.ones(2) / 2, np.array([0.2, 0.6]), 0.0, 25)
    assert weights == pytest.approx([0.25, 0.75])
    assert len(tried) == 1


def test_a_loss_that_breaks_away_from_the_start_costs_a_step_and_not_the_fit() -> None:
    def call(w: Array) -> tuple[float, Array]:
        if w[0] > 0.9:
            return float("nan"), np.full(2, np.nan)
        return float(-w[0]), np.array([-1.0, 0.0])

    weights, _ = fit_merge(call, np.ones(2) / 2, np.ones(2) / 2, np.ones(2), 0.0, 25)
    assert 0.6 < weights[0] <= 0.9


def test_what_cannot_be_fitted_is_refused() -> None:
    call = loss_of(np.zeros((2, 2)), np.full(2, np.nan))
    with pytest.raises(ValueError, match="the loss at the start"):
        fit_merge(call, np.ones(2) / 2, np.ones(2) / 2, np.ones(2), 0.0, 5)
    with pytest.raises(ValueError, match="no source has room"):
        fit_merge(call, np.ones(2) / 2, np.ones(2) / 2, np.zeros(2), 0.0, 5)
