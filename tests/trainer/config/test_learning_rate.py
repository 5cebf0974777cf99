"""The learning rate over a budget."""

from __future__ import annotations

from typing import Any

import pytest

from mixloop.trainer.config import LearningRate


@pytest.mark.parametrize("shape", ["linear", "1-sqrt"])
def test_learning_rate(shape: Any) -> None:
    schedule = LearningRate(1.0, 0.1, budget=1000, warmup=100, decay=200, shape=shape)
    rates = [schedule.rate(at, at + 10) for at in range(0, 1000, 10)]
    assert rates[0] == pytest.approx(0.05)
    assert rates[10:80] == [1.0] * 70
    assert sorted(rates[:10]) == rates[:10]
    assert sorted(rates[80:], reverse=True) == rates[80:]
    assert 0.1 < rates[-1] < 0.13
    middle = 0.55 if shape == "linear" else 1 - 0.9 * 0.5**0.5
    assert schedule.rate(900, 900) == pytest.approx(middle)
    assert [schedule.phase(at) for at in (0, 99, 100, 799, 800, 1000)] == [
        "warmup", "warmup", "stable", "stable", "decay", "decay",
    ]  # fmt: skip
    constant = LearningRate(1.0, 0.0, budget=10, warmup=0, decay=0)
    assert (constant.rate(0, 10), constant.phase(10)) == (1.0, "stable")


def test_cosine_warms_up_and_falls_to_its_floor() -> None:
    schedule = LearningRate(1.0, 0.1, budget=1100, warmup=100, decay=1000, shape="cosine")
    assert schedule.rate(40, 60) == pytest.approx(0.5)
    assert schedule.rate(99, 101) == pytest.approx(1.0, abs=1e-5)
    assert schedule.rate(599, 601) == pytest.approx(0.55)
    assert schedule.rate(1099, 1101) == pytest.approx(0.1, abs=1e-5)
    assert schedule.rate(1200, 1300) == pytest.approx(0.1)
    assert [schedule.phase(t) for t in (0, 99, 100, 1100)] == ["warmup", "warmup", "decay", "decay"]
    rates = [schedule.rate(t, t + 1) for t in range(100, 1100)]
    assert rates == sorted(rates, reverse=True)
