"""Declared stages: SmolLM2's run as configured, and what a stage may and may not do."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from mixloop.controller.config import RunConfig, load_config
from mixloop.controller.simulation import Track, simulate
from mixloop.policies import load_policy
from mixloop.policies.worlds import WorldSource

T, B = 10**12, 10**9
EXAMPLE = Path(__file__).parent.parent / "examples" / "smollm2.yaml"


class Still:
    """A world in which nothing ever changes."""

    def __init__(self, config: RunConfig) -> None:
        self.sources = {
            name: WorldSource(source.tokens or 1, source.tags, source.standby)
            for name, source in config.sources.items()
        }
        self.benchmarks = tuple(config.evals.benchmarks)

    def reset(self, seed: int) -> None:
        pass

    def advance(self, weights: Mapping[str, float], tokens: int) -> None:
        pass

    def evaluate(self) -> dict[str, tuple[float, float]]:
        return dict.fromkeys(self.benchmarks, (1.0, 0.01))


def replay(max_epochs: float | None) -> tuple[RunConfig, Track]:
    config = load_config(EXAMPLE)
    guards = config.guards.model_copy(update={"max_epochs": max_epochs})
    config = config.model_copy(update={"guards": guards})
    policy = load_policy(config.policy.use, config.policy.options)
    return config, simulate(Still(config), policy, config, segments=110)


def epochs_at(track: Track, config: RunConfig, name: str, until: int) -> float:
    """From the mixtures of the moments; a moment at a switch already names the next one."""
    drawn, last, held = 0.0, 0, track.moments[0].weights
    for moment in track.moments:
        if moment.tokens > until:
            break
        drawn += held.get(name, 0.0) * (moment.tokens - last)
        last, held = moment.tokens, moment.weights
    return drawn / (config.sources[name].tokens or 1)


def mixture_at(track: Track, tokens: int) -> dict[str, float]:
    weights = next(m.weights for m in track.moments if m.tokens == tokens)
    return {name: weight for name, weight in weights.items() if weight > 0}


def test_smollm2_with_a_ledger_that_only_reports():
    config, track = replay(None)
    stages = config.policy.options["stages"]
    for stage, inside in zip(stages, (5 * T, 7 * T, 9 * T, 109 * T // 10), strict=True):
        assert mixture_at(track, inside) == pytest.approx(stage["weights"]), stage["name"]
    assert epochs_at(track, config, "starcoderdata", 8 * T) == pytest.approx(4.0, abs=1e-9)
    assert epochs_at(track, config, "openwebmath", 8 * T) == pytest.approx(25 / 3, abs=1e-9)
    assert len(track.orders()) == 1  # the trainer does the rest by itself


def test_smollm2_with_a_ledger_that_is_enforced():
    config, track = replay(5.0)
    assert epochs_at(track, config, "openwebmath", 8 * T) == pytest.approx(5.0)
    assert mixture_at(track, 7 * T)["openwebmath"] == pytest.approx(0.03)
    for name, drawn in track.drawn.items():
        assert drawn <= 5.0 * (config.sources[name].tokens or 0) * (1 + 1e-9), name
    first = track.moments[0].decision
    assert first is not None
    said = " ".join(note["detail"] for note in first["guards"])
    assert "openwebmath 0.05 -> 0.03" in said
