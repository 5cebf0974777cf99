"""Declared stages: SmolLM2's run as configured, and what a stage may and may not do."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from mixloop.controller.config import RunConfig, load_config
from mixloop.policies.interface import (
    Hold,
    Observation,
    PastDecision,
    Proposal,
    Source,
    load_policy,
)
from mixloop.policies.mixture import total_variation
from mixloop.policies.rules.options import RulesOptions
from mixloop.policies.rules.stages import declared_plan
from mixloop.policies.worlds import WorldSource
from mixloop.tools.simulate.simulation import SimulatedRun, simulate
from mixloop.tools.simulate.virtual_run import virtual_config

T, B = 10**12, 10**9
EXAMPLE = Path(__file__).parents[3] / "examples" / "smollm2.yaml"


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


def replay(max_epochs: float | None) -> tuple[RunConfig, SimulatedRun]:
    config = load_config(EXAMPLE)
    guards = config.guards.model_copy(update={"max_epochs": max_epochs})
    config = config.model_copy(update={"guards": guards})
    policy = load_policy(config.policy.use, config.policy.options)
    return config, simulate(Still(config), policy, config, segments=110)


def epochs_at(track: SimulatedRun, config: RunConfig, name: str, until: int) -> float:
    """From the mixtures of the moments; a moment at a switch already names the next one."""
    drawn, last, held = 0.0, 0, track.timeline[0].weights
    for moment in track.timeline:
        if moment.tokens > until:
            break
        drawn += held.get(name, 0.0) * (moment.tokens - last)
        last, held = moment.tokens, moment.weights
    return drawn / (config.sources[name].tokens or 1)


def mixture_at(track: SimulatedRun, tokens: int) -> dict[str, float]:
    weights = next(m.weights for m in track.timeline if m.tokens == tokens)
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
    first = track.timeline[0].decision
    assert first is not None
    said = " ".join(note.detail for note in first.guards)
    assert "openwebmath 0.05 -> 0.03" in said


SMALL = {"a": 0.5, "b": 0.5}
STAGES = [
    {"name": "one", "until": 20_000, "weights": SMALL},
    {"name": "two", "weights": {"a": 0.1, "b": 0.9}},
]


class Small(Still):
    """Two sources without end, forty thousand tokens."""

    def __init__(self) -> None:
        self.sources = {name: WorldSource(10**9) for name in SMALL}
        self.benchmarks = ("gsm8k",)


def small(
    options: dict[str, object], use: str = "rules", **guards: object
) -> tuple[RunConfig, SimulatedRun]:
    world = Small()
    config = virtual_config(
        world, policy=use, options=options, guards=guards, segments=8, budget=40_000
    )
    policy = load_policy("rules", options)
    return config, simulate(world, policy, config, segments=8, start=SMALL)


def test_an_intervention_holds_to_the_end_of_its_stage():
    move = {"name": "m", "move": {"to": "a", "step": 0.1}, "max_times": 1}
    _, track = small({"stages": STAGES, "interventions": [move]})
    by_tokens = {moment.tokens: moment for moment in track.timeline}
    assert by_tokens[15_000].weights == pytest.approx({"a": 0.6, "b": 0.4})
    assert by_tokens[40_000].weights == pytest.approx({"a": 0.1, "b": 0.9})
    # 0.4 at once: a declared stage isn't bound by max_change, and comes at its exact token
    # the order of 5,000 tokens, the first, changes nothing but the plan; the move comes in force
    # at 10,000 and the few tokens of the switching lead
    assert track.drawn["a"] == pytest.approx(10_000 * 0.5 + 10_000 * 0.6 + 20_000 * 0.1, abs=2)
    assert [o.get("a") for o in track.orders()] == pytest.approx([0.5, 0.6])


def test_a_stage_by_phase_takes_precedence_while_it_lasts():
    stages = [*STAGES, {"name": "cool", "phase": "decay", "weights": {"a": 1.0}}]
    options = RulesOptions.model_validate({"stages": stages})
    observation = Observation(
        sources={n: Source(unique_tokens=10**9) for n in SMALL}, weights=SMALL, tokens=30_000,
        budget=40_000, phase="stable",
    )  # fmt: skip
    assert declared_plan(options.stages, observation) == [(40_000, {"a": 0.1, "b": 0.9})]
    cooling = observation.model_copy(update={"phase": "decay"})
    assert declared_plan(options.stages, cooling) == [(40_000, {"a": 1.0, "b": 0.0})]


def test_after_an_operators_order_the_later_stages_still_come():
    """His mixture holds to the end of the stage; the plan that was lost is ordered again."""
    policy = load_policy("rules", {"stages": STAGES})
    theirs = {"a": 0.3, "b": 0.7}
    order = PastDecision(
        id="d1", step=1, tokens=25_000, verdict="intervene", weights_before=SMALL,
        weights_after=theirs,
    )  # fmt: skip
    fields = {"sources": {n: Source(unique_tokens=10**9) for n in SMALL}, "budget": 40_000}
    late = Observation(**fields, weights=theirs, tokens=26_000, decisions=(order,))
    assert isinstance(policy.decide(late), Hold)  # nothing comes after the last stage
    first = order.model_copy(update={"tokens": 5_000})
    early = Observation(**fields, weights=theirs, tokens=10_000, decisions=(first,))
    reply = policy.decide(early)
    assert isinstance(reply, Proposal)
    assert reply.weights in (SMALL, theirs)
    assert reply.plan[1] == (40_000, {"a": 0.1, "b": 0.9})


def decided(answer: Proposal, use: str, options: dict[str, object]) -> dict[str, object]:
    """The controller's decision on a proposal at 5k of 40k tokens."""
    world = Small()
    config = virtual_config(world, policy=use, options=options, segments=8, budget=40_000)

    class Says:
        def decide(self, observation: Observation) -> Proposal:
            return answer

    track = simulate(world, Says(), config, segments=8, start=SMALL)
    first = track.timeline[0].decision
    assert first is not None
    return first


FAR = {"a": 0.1, "b": 0.9}


def test_a_policys_word_for_a_declared_stage_is_not_enough():
    claimed = Proposal(FAR, "trust me", [(40_000, FAR)], declared=True)
    for use, options in [("rules", {"stages": STAGES}), ("static", {})]:
        first = decided(claimed, use, options)
        change = total_variation(first.weights_after, SMALL)
        assert change == pytest.approx(0.10), use  # max_change, as for anybody
    plan = [(20_000, SMALL), (40_000, FAR)]
    honest = decided(Proposal(SMALL, "as declared", plan, declared=True), "rules",
                     {"stages": STAGES})  # fmt: skip
    assert [(until, dict(weights)) for until, weights in honest.plan] == plan
