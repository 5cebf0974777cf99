"""Trials: a rule that has to prove itself, where there is something to prove and where not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml

from mixloop.policies.interface import load_policy
from mixloop.policies.mixture import total_variation
from mixloop.policies.rules.response import response
from mixloop.policies.worlds.families import Exponential, Flat, Power
from mixloop.policies.worlds.skills import Skills
from mixloop.tools.simulate.simulation import SimulatedRun, simulate
from mixloop.tools.simulate.virtual_run import uniform_start, virtual_config

GENERIC = Path(__file__).parents[3] / "bench" / "rules_generic.yaml"
TO_AND_FRO = [0, 0, 0, 0, 0.2, 0.2, 0, 0, 0.2, 0.2, 0, 0]


def run(world: Power | Exponential | Flat, seed: int, **guards: float) -> tuple[SimulatedRun, dict]:
    options = yaml.safe_load(GENERIC.read_text(encoding="utf-8"))
    config = virtual_config(world, policy="rules", options=options, guards=guards)
    start = uniform_start(world, 5.0, config.budget)
    policy = load_policy("rules", options)
    track = simulate(world, policy, config, segments=world.segments, seed=seed, start=start)
    return track, start


def curve(slope: float, noise: float, seed: int, loss: float = 0.3) -> tuple[list, list]:
    """A power law whose pace an exposure raises by ``slope`` for a whole share, with noise."""
    drawing = np.random.default_rng(seed)
    tokens, level, values = list(range(1, 13)), 1.5, []
    for before, after, exposed in zip([0.5, *tokens], tokens, TO_AND_FRO, strict=False):
        level -= (1 + slope * exposed) * (before**-loss - after**-loss)
        values.append(level + float(drawing.normal(0, noise)))
    return tokens, values


def test_the_response_is_unbiased_and_its_standard_error_is_honest():
    for slope in (0.0, 2.0):
        answers = [response(*curve(slope, 0.004, seed), TO_AND_FRO, 0.004) for seed in range(60)]
        estimates = np.array([answer.slope for answer in answers if answer is not None])
        errors = np.array([answer.stderr for answer in answers if answer is not None])
        assert len(estimates) == 60
        # e is in units of the trend's own b = 1 and alpha = 0.3
        centre = estimates.mean()
        assert abs(centre + slope * 0.3) < 3 * estimates.std() / 60**0.5 + 0.06 * (1 + slope)
        z = (estimates - centre) / errors
        assert 0.5 < z.std() < 1.3


def test_no_exposure_and_too_few_evaluations_tell_nothing():
    tokens, values = curve(0.0, 0.004, 0)
    assert response(tokens, values, [0.0] * 12, 0.004) is None
    assert response(tokens[:5], values[:5], TO_AND_FRO[:5], 0.004) is None


def test_what_helps_is_tried_taken_back_and_then_made_for_good():
    track, start = run(Power(k=12, seed=100), 100, max_epochs=5, max_change=0.2)
    said = [m.decision.reason for m in track.timeline if m.decision]
    orders = [m.decision for m in track.timeline if m.decision and m.decision.verdict ==
              "intervene"]  # fmt: skip
    assert orders[0].evidence["rules"] == ["towards-tags"]
    assert orders[1].evidence["rules"] == ["undo towards-tags"]
    assert dict(orders[1].weights_after) == pytest.approx(start)
    assert any(reason.startswith("tried, gain") for reason in said)
    assert total_variation(track.orders()[-1], start) > 0.3


def test_what_was_proven_goes_twice_as_far_and_is_then_tried_again():
    track, start = run(Skills(k=6, seed=7, jitter=0.02), 7, max_epochs=50, max_change=0.2)
    orders = [d for d in track.decisions() if d.verdict == "intervene"]
    first = next(i for i, d in enumerate(orders) if "confirmed" in d.evidence)
    proof = orders[0]
    raised = [n for n, share in proof.weights_after.items() if share > start[n] + 1e-6]

    def times(weights: dict) -> float:
        gone = ((weights[n] - start[n]) / (proof.weights_after[n] - start[n]) for n in raised)
        return max(gone)

    free = [d for d in orders[first:] if "confirmed" in d.evidence]
    assert [times(d.weights_after) for d in free] == pytest.approx([1, 2], abs=0.01)
    later = orders[first + len(free) :]
    assert [d.evidence["rules"] for d in later[:2]] == [["towards-tags"], ["undo towards-tags"]]


def within(seeds: range) -> list[bool]:
    """Per seed, whether a flat world's last five orders average to about the start."""
    distances = []
    for seed in seeds:
        track, start = run(Flat(k=5, seed=seed), seed)
        last = track.orders()[-5:]
        mean = {name: sum(order[name] for order in last) / len(last) for name in start}
        verdicts = {m.decision.verdict for m in track.timeline if m.decision}
        assert "inconclusive" in verdicts
        distances.append(total_variation(mean, start) <= 0.05)
    return distances


def test_a_flat_world_ends_where_it_began():
    assert all(within(range(2)))


@pytest.mark.soak
def test_null():
    assert np.mean(within(range(100))) >= 0.95


def test_a_trial_that_proved_nothing_leaves_its_figure():
    track, _ = run(Flat(k=5, seed=1), 1)
    decisions = [m.decision for m in track.timeline if m.decision]
    judged = [d for d in decisions if d.evidence.get("judged")]
    assert judged, "a flat world judges trials, and none is proven"
    for decision in judged:
        for name, figure in decision.evidence["judged"].items():
            assert figure["stderr"] > 0
            assert abs(figure["z"]) < 2.5
            text = f"gain {figure['gain']:.2g} ±{figure['stderr']:.2g}"
            assert text in figure["text"]
            assert any(f"{text} per whole share" in d.reason for d in decisions), name
