"""One policy on one world, through the controller's own decisions, under a virtual clock.

The trainer is the world, the evaluation its ``evaluate``; what lies between (observation, verdict,
guards, order and its plan) is the code that decides on a real run.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from mixloop.common.errors import BadInput
from mixloop.common.types import Json
from mixloop.controller.config import RunConfig
from mixloop.controller.core import (
    NOTHING,
    Answer,
    guard_settings,
    make_decision,
    remaining,
    switching_lead,
)
from mixloop.policies.evidence import vetoes
from mixloop.policies.interface import (
    BenchmarkScore,
    Evaluation,
    Limits,
    Metric,
    Observation,
    PastDecision,
    Policy,
    Source,
)
from mixloop.policies.mixture import total_variation
from mixloop.policies.worlds import World, WorldSource, world_sources
from mixloop.trainer.config import JobError, LearningRate, learning_rate

from .virtual_run import loss_of, status_of

Mixture = dict[str, float]

METRIC = "bits_per_byte"
ITEMS = 100  # items behind a world's score, for the degrees of freedom of its tests


@dataclass(frozen=True)
class TimelinePoint:
    """One segment's end: tokens so far, the mixture that was consumed last, the scores without
    noise, their mean as a loss, and the decision taken on it (None at the end of the budget)."""

    tokens: int
    weights: Mixture
    truth: dict[str, float]
    loss: float
    decision: Json | None = None
    seconds: float = 0.0


@dataclass(frozen=True)
class MixtureSpan:
    """A span of tokens on one mixture, and the tokens drawn per source up to its end."""

    start: int
    end: int
    weights: Mixture
    drawn: Mixture


@dataclass
class SimulatedRun:
    """A whole simulated run, oldest first; ``drawn`` are tokens per source."""

    moments: list[TimelinePoint] = field(default_factory=list)
    stretches: list[MixtureSpan] = field(default_factory=list)
    drawn: Mixture = field(default_factory=dict)

    @property
    def final(self) -> float:
        """The last scores without noise, as a loss; see :func:`loss_of`."""
        return self.moments[-1].loss

    def orders(self) -> list[Mixture]:
        """The mixture asked for by each decision that changed it."""
        decided = [m.decision for m in self.moments if m.decision is not None]
        return [d["weights_after"] for d in decided if d["verdict"] == "intervene"]


@dataclass(frozen=True)
class _Order:
    """An order that is out, and the token it comes into force at."""

    generation: int
    at: int
    weights: Mixture
    plan: tuple[tuple[int, Mixture], ...]


@dataclass
class _Run:
    """Where the simulated run is."""

    config: RunConfig
    world: World
    sources: dict[str, WorldSource]
    segments: int
    weights: Mixture
    schedule: LearningRate | None = None
    tokens: int = 0
    generation: int = 0
    plan: tuple[tuple[int, Mixture], ...] = ()
    pending: _Order | None = None
    drawn: Mixture = field(default_factory=dict)
    evaluations: list[Evaluation] = field(default_factory=list)
    decisions: list[PastDecision] = field(default_factory=list)
    last_intervention: int | None = None
    issued: int = 0
    step: int = 0

    @property
    def finished(self) -> bool:
        return self.tokens >= self.config.budget


def simulate(
    world: World,
    policy: Policy,
    config: RunConfig,
    *,
    segments: int,
    seed: int = 0,
    start: Mapping[str, float] | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> SimulatedRun:
    """Run ``config`` in ``world``, which must have been reset, with ``policy`` deciding.

    Args:
        segments: evaluations in the budget, equally far apart.
        seed: what the policy's observation carries.
        start: the first mixture; without one, the configuration's.
        clock: seconds, for the time each decision took.
    """
    sources = world_sources(world)
    sizes = {name: source.unique_tokens for name, source in sources.items()}
    first = dict(start) if start is not None else config.start_weights(sizes)
    first = dict.fromkeys(sources, 0.0) | first
    run = _Run(config, world, sources, segments, first, _schedule(config))
    run.drawn = dict.fromkeys(sources, 0.0)
    track = SimulatedRun()
    for index in range(1, segments + 1):
        _advance(run, track, index * config.budget // segments)
        run.step = index
        run.evaluations.append(_evaluation(run))
        truth = _truth(run)
        consumed = dict(run.weights)
        decision, seconds = (None, 0.0)
        if not run.finished:
            decision, seconds = _decide(run, policy, seed, clock)
        loss = loss_of(truth, config, getattr(world, "higher_is_better", ()))
        track.moments.append(TimelinePoint(run.tokens, consumed, truth, loss, decision, seconds))
    track.drawn = run.drawn
    return track


def _schedule(config: RunConfig) -> LearningRate | None:
    """The configured learning rate over the budget; None when neither end is configured."""
    trainer = config.trainer
    if trainer.lr_schedule == "wsd" and not (trainer.warmup or trainer.decay):
        return None
    try:
        return learning_rate(trainer, config.budget)
    except JobError as error:
        raise BadInput(str(error)) from None


def _phase(run: _Run) -> Any:
    if run.schedule is not None:
        return run.schedule.phase(run.tokens)
    return _optional(run.world, "phase")


def _advance(run: _Run, track: SimulatedRun, until: int) -> None:
    """Train to ``until`` tokens: orders and the stretches of plans switch at their exact token."""
    while run.tokens < until:
        _switch(run)
        ends = [until, *(end for end, _ in run.plan[:-1])]
        if run.pending is not None:
            ends.append(run.pending.at)
        end = min(ends)
        span = end - run.tokens
        run.world.advance(run.weights, span)
        for name, weight in run.weights.items():
            run.drawn[name] = run.drawn.get(name, 0.0) + weight * span
        _record(track, MixtureSpan(run.tokens, end, run.weights, dict(run.drawn)))
        run.tokens = end
    _switch(run)


def _switch(run: _Run) -> None:
    """Bring in what is due now: a pending order, then the plan's stretch."""
    order = run.pending
    if order is not None and order.at <= run.tokens:
        run.pending = None
        run.generation, run.last_intervention = order.generation, order.at
        run.weights, run.plan = dict(order.weights), order.plan
    run.weights, run.plan = remaining(run.weights, run.plan, run.tokens)


def _record(track: SimulatedRun, new: MixtureSpan) -> None:
    """Append a stretch; it prolongs the last one while the mixture stays the same."""
    last = track.stretches[-1] if track.stretches else None
    if last is not None and total_variation(last.weights, new.weights) < NOTHING:
        track.stretches[-1] = MixtureSpan(last.start, new.end, last.weights, new.drawn)
    else:
        track.stretches.append(new)


def _evaluation(run: _Run) -> Evaluation:
    higher = frozenset(getattr(run.world, "higher_is_better", ()))
    scores = {}
    for name, (value, stderr) in run.world.evaluate().items():
        better = name in higher
        found = Metric(value=value, stderr=stderr, n=ITEMS, higher_is_better=better)
        scores[name] = BenchmarkScore(metrics={_metric(run.world, name): found})
    return Evaluation(
        step=run.step,
        tokens=run.tokens,
        phase=_phase(run),
        generation=run.generation,
        weights=run.weights,
        drawn=dict(run.drawn),
        losses=_optional(run.world, "losses") or {},
        benchmarks=scores,
    )


def _optional(world: World, name: str) -> Any:
    found = getattr(world, name, None)
    return found() if callable(found) else None


def _metric(world: World, benchmark: str) -> str:
    names: Mapping[str, str] = getattr(world, "metrics", {})
    return names.get(benchmark, METRIC)


def _truth(run: _Run) -> dict[str, float]:
    """The scores without noise; from a world that doesn't tell, each benchmark's last score."""
    truth = _optional(run.world, "truth")
    if truth is not None:
        return dict(truth)
    last: dict[str, float] = {}
    for evaluation in run.evaluations:
        for name, score in evaluation.benchmarks.items():
            last[name] = next(iter(score.metrics.values())).value
    return last


def _decide(run: _Run, policy: Policy, seed: int, clock: Callable[[], float]) -> tuple[Json, float]:
    seen = _observation(run, seed)
    begun = clock()
    answer = answer_of(policy, seen)
    seconds = clock() - begun
    made = make_decision(
        answer,
        seen,
        run.config,
        status=status_of(seen),
        last_intervention=run.last_intervention,
        generation=run.issued + 1,
        vetoes=vetoes(seen, run.config.guards.significance),
    )
    if made.order is not None:
        run.issued += 1
        plan = tuple((until, dict(w)) for until, w in made.plan)
        at = min(run.tokens + switching_lead(run.config, run.tokens), run.config.budget)
        run.pending = _Order(run.issued, at, dict(made.weights_after), plan)
    run.decisions.append(
        PastDecision(
            id=f"d-{len(run.decisions) + 1:06d}",
            step=run.step,
            tokens=run.tokens,
            verdict=made.verdict,
            generation=run.issued if made.order is not None else None,
            weights_before=dict(made.weights_before),
            weights_after=dict(made.weights_after),
            rule=made.evidence.get("rule"),
            evidence=made.evidence,
        )
    )
    return asdict(made) | {"plan": [[until, dict(w)] for until, w in made.plan]}, seconds


def answer_of(policy: Policy, seen: Observation) -> Answer:
    """The policy's reply, or why there is none: one that raises costs one decision here too."""
    try:
        reply = policy.decide(seen)
        return Answer(reply.kind, reply.model_dump(mode="json"))
    except Exception as error:
        return Answer("failed", {"reason": f"{type(error).__name__}: {error}"})


def _observation(run: _Run, seed: int) -> Observation:
    delay = int(getattr(run.world, "delay", 0))
    guards = guard_settings(run.config)
    scored = run.evaluations[: len(run.evaluations) - delay]
    steering = {name: _metric(run.world, name) for name in run.world.benchmarks}
    watch = tuple(run.config.evals.watch)
    return Observation(
        run=run.config.run.id,
        step=run.step,
        tokens=run.tokens,
        budget=run.config.budget,
        phase=_phase(run),
        seed=seed,
        generation=run.generation,
        in_force=run.pending is None,
        sources=_sources(run),
        weights=run.weights,
        plan=run.plan,
        evaluations=tuple(scored),
        every=run.config.budget // run.segments,
        steering={name: metric for name, metric in steering.items() if name not in watch},
        watch=watch,
        objective=run.config.objective,
        limits=Limits(**guards.model_dump(include=set(Limits.model_fields))),
        decisions=tuple(run.decisions),
    )


def _sources(run: _Run) -> dict[str, Source]:
    return {
        name: Source(
            unique_tokens=source.unique_tokens,
            tags=source.tags,
            standby=source.standby,
            drawn=round(run.drawn[name]),
            epochs=run.drawn[name] / source.unique_tokens,
        )
        for name, source in run.sources.items()
    }
