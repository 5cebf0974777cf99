"""Selection against its rule, quantum after quantum and sample after sample in plain integers."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from mixloop.contract import SCALE
from mixloop.trainer.mixing.quota import SourceQuotas

Ints = npt.NDArray[np.int64]


def by_the_rule(weights: list[int], owed: list[int], end: int, given: list[int]) -> list[int]:
    """Draws after the quantum that ends at `end`, from those before it."""
    entitled = [w * end + o for w, o in zip(weights, owed, strict=True)]
    floor = [e // SCALE for e in entitled]
    active = [i for i, w in enumerate(weights) if w]
    due = [max(g, f) if w else g for g, f, w in zip(given, floor, weights, strict=True)]
    free = end - sum(due)
    if free < 0:  # more is due than there is: the most entitled first
        waiting = []
        for i in active:
            for number in range(due[i] - given[i]):
                waiting.append((number * SCALE - (entitled[i] - given[i] * SCALE), i))
        due = list(given)
        for _, i in sorted(waiting)[: end - sum(given)]:
            due[i] += 1
        return due
    released = [i for i in active if entitled[i] % SCALE and due[i] == floor[i]]
    wait = {i: -(-((floor[i] + 1) * SCALE - entitled[i]) // weights[i]) for i in released}
    for i in sorted(released, key=lambda i: (wait[i], i))[:free]:
        due[i] += 1
    return due


def mixture(drawing: np.random.Generator, sources: int) -> Ints:
    raw = drawing.pareto(0.7, sources) + 1e-6
    raw *= drawing.random(sources) < drawing.choice([1.0, 0.7])
    raw[0] += 1e-3
    weights: Ints = np.floor(raw / raw.sum() * SCALE).astype(np.int64)
    weights[np.argmax(weights)] += SCALE - weights.sum()
    return weights


@pytest.mark.parametrize("sources", [1, 2, 7, 46, 254, 255, 256, 300])
@pytest.mark.parametrize("spread", [0.0, 0.5, 3.0])  # samples owed: none, few, more than a quantum
def test_every_quantum_is_what_the_rule_says(sources: int, spread: float) -> None:
    drawing = np.random.default_rng(sources)
    for quantum in (1, 5, 16, 64, 333):
        weights = mixture(drawing, sources)
        carried = (drawing.normal(0, spread, sources) * SCALE).astype(np.int64)
        carried[0] -= carried.sum()
        quota = SourceQuotas(weights, quantum, carried)
        owed = np.zeros(sources, np.int64)
        owed[weights > 0] = quota._owed
        quanta = 120 if sources < 100 else 30
        ends = np.arange(1, quanta + 1) * quantum
        ends[-1] -= quantum // 3
        expected, given = [], [0] * sources
        for end in ends.tolist():
            given = by_the_rule(weights.tolist(), owed.tolist(), end, given)
            expected.append(given)
        start = np.zeros(sources, np.int64)
        assert quota.walk(0, ends, start).tolist() == expected
        cut = int(drawing.integers(1, quanta))
        rest = quota.walk(int(ends[cut - 1]), ends[cut:], np.array(expected[cut - 1]))
        assert rest.tolist() == expected[cut:]


def test_a_walk_from_anywhere_keeps_the_rule() -> None:
    """Draws that the rule would not have made are put right as it says."""
    drawing = np.random.default_rng(5)
    for _ in range(60):
        sources, quantum = int(drawing.choice([3, 46, 260])), int(drawing.choice([8, 64]))
        weights = mixture(drawing, sources)
        quota = SourceQuotas(weights, quantum, np.zeros(sources, np.int64))
        owed = [0] * sources
        start = int(drawing.integers(10, 1000)) * quantum
        given = quota.after(start // quantum) + drawing.integers(-1, 2, sources) * (weights > 0)
        given[np.argmax(weights)] += start - given.sum()
        ends = start + np.arange(1, 25) * quantum
        expected, now = [], given.tolist()
        for end in ends.tolist():
            now = by_the_rule(weights.tolist(), owed, end, now)
            expected.append(now)
        assert quota.walk(start, ends, given).tolist() == expected
