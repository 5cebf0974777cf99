"""Policy ``experiment``: when it asks, what it makes of the answer, and that it keeps still."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mixloop.policies.experiment.asking import length
from mixloop.policies.experiment.destination import (
    Outlook,
    best_destination,
    divergence_step,
    keep_for_decay,
)
from mixloop.policies.experiment.options import ExperimentOptions
from mixloop.policies.interface import (
    Evaluation,
    Experiment,
    ExperimentResult,
    Hold,
    Observation,
    PolicyError,
    Source,
    load_policy,
)
from mixloop.policies.worlds.families import Analytic, Exponential, Flat, Power
from mixloop.policies.worlds.skills import Skills
from mixloop.tools.simulate.simulation import SimulatedRun, simulate
from mixloop.tools.simulate.virtual_run import uniform_start, virtual_config

GUARDS = {"max_epochs": 5, "max_change": 0.2}


def run(
    world: Analytic,
    options: dict[str, Any] | None = None,
    experiments: float = 0.1,
    latency: int = 1,
) -> SimulatedRun:
    config = virtual_config(
        world, policy="experiment", options=options, guards=GUARDS, experiments=experiments
    )
    policy = load_policy("experiment", options)
    start = uniform_start(world, 5, config.budget)
    return simulate(world, policy, config, segments=world.segments, start=start, latency=latency)


def gap(world: Analytic, track: SimulatedRun) -> float:
    start = uniform_start(world, 5, world.budget)
    best = world.optimum()
    even, least = world.final(
        np.array([[m[name] for name in world.sources] for m in (start, best)])
    )
    return float((even - track.final) / (even - least))


def observation(tokens: int, **extra: Any) -> Observation:
    sources = {
        name: Source(unique_tokens=10**12, drawn=tokens // 3) for name in ("web", "code", "maths")
    }
    fields: dict[str, Any] = {
        "run": "r",
        "step": 1,
        "tokens": tokens,
        "budget": 40 * 10**9,
        "every": 10**9,
        "sources": sources,
        "weights": dict.fromkeys(sources, 1 / 3),
        "steering": {"mmlu": "bits_per_byte"},
        "experiment_tokens": 8 * 10**8,
    }
    return Observation(**fields | extra)


def test_asks_for_one_expert_per_source_and_their_merges() -> None:
    answer = load_policy("experiment").decide(observation(4 * 10**9))
    assert isinstance(answer, Experiment)
    assert [dict(branch) for branch in answer.branches] == [{"web": 1}, {"code": 1}, {"maths": 1}]
    assert answer.merge is not None
    assert sum(answer.merge.prior.values()) == pytest.approx(1)


def test_what_may_be_spent_goes_to_the_moments_by_their_worth() -> None:
    options, left, lengths = ExperimentOptions(), 8 * 10**8, []
    for coming, at in ((3, 2), (2, 8), (1, 30)):  # of 40, the last before a decay from 32 on
        seen = observation(at * 10**9, experiment_tokens=left, decay=8 * 10**9)
        lengths.append(length(options, seen, 3, coming))
        left -= 4 * lengths[-1]  # three branches and the control
    assert 0 <= left < 12
    assert lengths[1] > max(lengths[0], lengths[2])
    assert min(lengths) > 8 * 10**8 / 4 / 6


def test_asks_for_nothing_that_it_may_not_have() -> None:
    policy = load_policy("experiment")
    assert isinstance(policy.decide(observation(10**9)), Hold)  # too early
    assert isinstance(policy.decide(observation(4 * 10**9, experiment_tokens=0)), Hold)
    assert isinstance(policy.decide(observation(4 * 10**9, phase="decay")), Hold)
    assert isinstance(policy.decide(observation(4 * 10**9, phase="warmup")), Hold)


def test_a_moment_is_counted_at_the_checkpoint_and_asked_about_once() -> None:
    """The trainer is past the next moment already when the first result comes in."""
    policy = load_policy("experiment")
    scored = Evaluation(step=1, tokens=10**9)
    assert isinstance(policy.decide(observation(5 * 10**9, evaluations=[scored])), Hold)
    scored = Evaluation(step=1, tokens=4 * 10**9)
    assert isinstance(policy.decide(observation(5 * 10**9, evaluations=[scored])), Experiment)
    made = ExperimentResult(id="e-000001", tokens=4 * 10**9)
    late = observation(20 * 10**9, evaluations=[scored], experiments=[made])
    assert not isinstance(policy.decide(late), Experiment)


def test_no_expert_for_a_source_that_the_ledger_has_no_room_for() -> None:
    seen = observation(4 * 10**9, limits={"max_epochs": 5.0})
    spent = Source(unique_tokens=10**9, drawn=5 * 10**9, epochs=5.0)
    seen = seen.model_copy(update={"sources": {**seen.sources, "maths": spent}})
    answer = load_policy("experiment").decide(seen)
    assert isinstance(answer, Experiment)
    assert {name for branch in answer.branches for name in branch} == {"web", "code"}


def test_tilts_keep_the_present_mixture_in() -> None:
    answer = load_policy("experiment", {"design": "tilts"}).decide(observation(4 * 10**9))
    assert isinstance(answer, Experiment)
    assert answer.merge is None
    for branch in answer.branches:
        assert sum(branch.values()) == pytest.approx(1)
        assert max(branch.values()) == pytest.approx(0.3 + 0.7 / 3)


def test_a_prior_must_name_sources_that_there_are() -> None:
    policy: Any = load_policy("experiment", {"prior": {"wbe": 1.0}})
    with pytest.raises(PolicyError, match="did you mean"):
        policy.check({"web": (), "code": ()}, ["mmlu"])


@pytest.mark.parametrize(
    "family", [Power, Exponential, pytest.param(Skills, marks=pytest.mark.soak)]
)
def test_closes_most_of_the_gap_where_experiments_are_long_enough(family: type[Analytic]) -> None:
    closed = []
    for seed in (0, 1):
        world = family(k=6, seed=seed, jitter=0.02)
        track = run(world)
        closed.append(gap(world, track))
        assert sum(e.cost for e in track.experiments) <= 0.1 * world.budget
        for name, source in world.sources.items():
            assert track.drawn[name] <= 5.0001 * source.unique_tokens
    assert min(closed) > 0.3
    assert np.mean(closed) > 0.5


def test_stays_where_every_mixture_is_worth_the_same() -> None:
    for seed in range(3):
        track = run(Flat(k=6, seed=seed, jitter=0.02), experiments=0.02)
        assert track.experiments
        assert not track.orders()


def test_a_run_without_experiments_keeps_its_mixture() -> None:
    world = Power(k=5, seed=1)
    assert not run(world, experiments=0).orders()


def test_tilts_work_too_and_a_result_may_come_at_once() -> None:
    world = Exponential(k=5, seed=1)
    track = run(world, {"design": "tilts"}, latency=0)
    assert track.experiments
    assert not track.experiments[0].fits
    assert gap(world, track) > 0.3


def test_says_why_in_words_and_figures() -> None:
    world = Exponential(k=5, seed=1)
    track = run(world)
    moved = next(d for d in track.decisions() if d.verdict == "intervene")
    assert "more of source-" in moved.reason
    assert set(moved.evidence) >= {"certainty", "needed", "effects", "errors", "aim", "experiments"}


def outlook(**changes: Any) -> Outlook:
    fields: dict[str, Any] = {
        "drawn": np.full(3, 0.1),
        "unique": np.full(3, 1e6),
        "left": 0.7,
        "least": np.full(3, 0.02),
        "most": np.ones(3),
        "begun": np.full(3, 1 / 3),
        "worth": np.array([0.5, 0.5]),
        "returns": 1.0,
        "substitution": 1.0,
        "caution": 0.0,
    }
    return Outlook(**fields | changes)


EVEN = np.full(3, 1 / 3)


def test_two_benchmarks_that_need_two_sources_share_the_rest() -> None:
    gain = np.array([[0.02, -0.01, -0.01], [-0.01, 0.02, -0.01]])
    best = best_destination(outlook(), np.stack([gain, gain]), EVEN)
    assert best[0] == pytest.approx(best[1], abs=0.02)
    assert best[2] == pytest.approx(0.02, abs=1e-3)


def test_sources_that_do_not_replace_each_other_share_what_one_would_get() -> None:
    gain = np.array([[0.02, 0.015, -0.035]] * 2)
    alone, shared = (
        best_destination(outlook(substitution=power), np.stack([gain, gain]), EVEN)
        for power in (1.0, 0.7)
    )
    assert alone[0] > 0.9
    assert shared[0] > shared[1] > 0.25
    assert shared[2] < 0.1


def test_the_ledger_is_inside_the_plan() -> None:
    gain = np.array([[0.02, -0.01, -0.01], [0.02, -0.01, -0.01]])
    most = np.array([0.4, 1.0, 1.0])
    best = best_destination(outlook(most=most), np.stack([gain, gain]), EVEN)
    assert best[0] == pytest.approx(0.4, abs=1e-6)
    assert best.sum() == pytest.approx(1)


def test_what_is_unsure_moves_less() -> None:
    gain = np.array([[0.02, 0.0, -0.02]] * 2)
    sure = np.stack([gain, gain])
    noise = np.random.default_rng(0).normal(0, 0.05, (12, 2, 3))
    unsure = np.concatenate([gain + noise, gain - noise])
    moves = [
        np.abs(best_destination(outlook(caution=1.0), draws, EVEN) - EVEN).sum()
        for draws in (sure, unsure)
    ]
    assert moves[1] < moves[0]


def test_a_step_goes_as_far_as_it_may() -> None:
    aim = np.array([0.98, 0.01, 0.01])
    step = divergence_step(EVEN, aim, 0.1)
    assert EVEN[0] < step[0] < aim[0]
    assert divergence_step(EVEN, aim, 10.0) is aim


def test_what_is_scarce_is_kept_for_the_decay() -> None:
    mean, most = np.array([0.1, 0.5, 0.4]), np.array([0.1, 1.0, 1.0])
    late = keep_for_decay(mean, most, before=9.0, decay=1.0, keen=1.5)
    assert late[0] == pytest.approx(0.15)
    assert late.sum() == pytest.approx(1)
    assert keep_for_decay(mean, np.ones(3), 9.0, 1.0, 1.5) is mean
