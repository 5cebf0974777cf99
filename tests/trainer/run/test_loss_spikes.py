"""What is a spike of the loss, and what is none."""

from __future__ import annotations

import json

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from mixloop.trainer.run import SpikeDetector


@given(
    seed=st.integers(0, 2**32 - 1),
    level=st.floats(0.5, 12),
    noise=st.floats(1e-4, 0.05),
    at=st.integers(40, 180),
)
def test_a_jump_is_one_spike_and_noise_is_none(
    seed: int, level: float, noise: float, at: int
) -> None:
    random = np.random.default_rng(seed)
    series = level * (1 + noise * random.uniform(-1, 1, 200))
    watch = SpikeDetector(threshold=6.0, window=64)
    for step, loss in enumerate(series, start=1):
        watch.add(step, float(loss), skipped=False)
    assert watch.health.spikes == 0
    series[at : at + 3] *= 1 + 12 * noise + 0.05
    watch = SpikeDetector(threshold=6.0, window=64)
    notes = [watch.add(n, float(x), skipped=False) for n, x in enumerate(series, start=1)]
    assert (watch.health.spikes, watch.health.last_spike_step) == (1, at + 1)
    assert [number for number, note in enumerate(notes) if note] == [at]


def test_a_new_mixture_is_no_spike_and_a_restart_forgets_nothing() -> None:
    steady = [2.0 + 0.01 * (n % 5) for n in range(40)]
    watch, calm = SpikeDetector(6.0, 32), SpikeDetector(6.0, 32)
    for step, loss in enumerate(steady, start=1):
        watch.add(step, loss, skipped=False)
        calm.add(step, loss, skipped=False)
    calm.forget()
    assert calm.add(41, 3.0, skipped=False) is None
    resumed = SpikeDetector(6.0, 32)
    resumed.load(json.loads(json.dumps(watch.state())))
    assert resumed.add(41, 3.0, skipped=False) == watch.add(41, 3.0, skipped=False) is not None
    assert resumed.health == watch.health
    assert SpikeDetector(None, 32).add(1, 99.0, skipped=False) is None
