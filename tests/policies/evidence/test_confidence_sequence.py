"""Receipts: intervals that hold at every point at once, whatever the jitter's correlation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixloop.policies.evidence.confidence_sequence import (
    Receipt,
    ReceiptPoint,
    receipt,
    receipts,
)
from mixloop.policies.evidence.trajectory_noise import Jitter

KNOWN = Jitter(stderr=0.02, n=10**6, df=10**6, total=0.02)
ITEMS = 0.006


def streams(seed: int, count: int, points: int, correlation: float) -> np.ndarray:
    """Differences of twins without any change, (count, points): items' and trajectories' part."""
    drawing = np.random.default_rng(seed)
    fresh = drawing.normal(size=(count, points)) * math.sqrt(2) * KNOWN.stderr
    jitter = fresh.copy()
    for place in range(1, points):
        kept = correlation * jitter[:, place - 1]
        jitter[:, place] = kept + math.sqrt(1 - correlation**2) * fresh[:, place]
    return jitter + drawing.normal(size=(count, 1)) * ITEMS


def told(gains: np.ndarray, correlation: float, jitter: Jitter = KNOWN) -> list[Receipt]:
    points = [ReceiptPoint(float(gain), ITEMS) for gain in gains]
    return receipts(points, jitter, correlation)


@pytest.mark.parametrize("correlation", [0.0, 0.3, 0.6])
def test_twins_without_a_change_are_told_apart_in_at_most_one_run_of_twenty(
    correlation: float,
) -> None:
    """Looked at after every one of 20 points; and at the last alone, the plain interval is 95%."""
    runs = [told(gains, correlation) for gains in streams(1, 400, 20, correlation)]
    alarmed = sum(any(each.conclusive for each in run) for run in runs)
    assert alarmed <= 0.05 * len(runs)
    covered = sum(run[-1].interval()[0] <= 0 <= run[-1].interval()[1] for run in runs)
    assert 0.92 <= covered / len(runs) <= 0.98


def test_the_plain_interval_would_not_do() -> None:
    """Looked at after every point it is wrong in far more than one run of twenty."""
    runs = [told(gains, 0.0) for gains in streams(2, 200, 20, 0.0)]
    fooled = sum(any(abs(each.effect) > 1.96 * each.stderr for each in run) for run in runs)
    assert fooled > 0.1 * len(runs)


def test_a_jitter_estimated_from_few_differences_still_holds() -> None:
    drawing = np.random.default_rng(3)
    alarmed = 0
    gains = streams(4, 400, 12, 0.0)
    for row in gains:
        stderr = KNOWN.stderr * math.sqrt(drawing.chisquare(6) / 6)
        known = Jitter(stderr=stderr, n=12, df=6.0, total=stderr)
        alarmed += any(each.conclusive for each in told(row, 0.0, known))
    assert alarmed <= 0.05 * len(gains)


def test_an_effect_that_is_there_is_found() -> None:
    gains = streams(5, 200, 12, 0.1) - 0.06
    found = [told(row, 0.1)[-1] for row in gains]
    assert sum(each.high < 0 for each in found) > 0.8 * len(found)
    assert np.mean([each.effect for each in found]) == pytest.approx(-0.06, abs=0.005)


@given(
    st.lists(st.floats(-1, 1), min_size=1, max_size=20),
    st.floats(-1, 1),
    st.floats(0, 0.5),
)
def test_the_interval_moves_with_the_gains(
    gains: list[float], by: float, correlation: float
) -> None:
    points = [ReceiptPoint(gain, ITEMS) for gain in gains]
    moved = [ReceiptPoint(gain + by, ITEMS) for gain in gains]
    one, other = receipt(points, KNOWN, correlation), receipt(moved, KNOWN, correlation)
    assert other.low - one.low == pytest.approx(by, abs=1e-9)
    assert other.high - one.high == pytest.approx(by, abs=1e-9)
    assert one.low < one.effect < one.high
    assert one.conclusive == (not one.low <= 0 <= one.high)


def test_nothing_is_concluded_without_a_known_jitter() -> None:
    alone = receipt([ReceiptPoint(5.0, 0.001)], Jitter())
    assert not alone.conclusive
    with pytest.raises(ValueError, match="at least one point"):
        receipt([], KNOWN)
