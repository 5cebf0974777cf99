"""One policy on one world, through the controller's own decisions, under a virtual clock.

The trainer is the world, the evaluation its ``evaluate``; what lies between (observation, verdict,
guards, order and its plan) is the code that decides on a real run.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from mixloop.common.errors import BadInput
from mixloop.controller.config import RunConfig
from mixloop.controller.core import (
    NOTHING,
    Answer,
    DecisionRecord,
    guard_settings,
    make_decision,
    remaining,
    switching_lead,
)
from mixloop.policies.evidence import policy_standing, vetoes
from mixloop.policies.interface import (
    BenchmarkScore,
    Evaluation,
    Experiment,
    ExperimentResult,
    Limits,
    Metric,
    Observation,
    PastDecision,
    Policy,
    Source,
    raised,
)
from mixloop.policies.mixture import total_variation
from mixloop.policies.worlds import World, WorldSource, world_sources
from mixloop.trainer.config import JobError, LearningRate, learning_rate

from .virtual_experiments import VirtualExperiments
from .virtual_run import loss_of, objective_parts, status_of

Mixture = dict[str, float]

METRIC = "bits_per_byte"
ITEMS = 100  # items behind a world's score, for the degrees of freedom of its tests
AGAIN = 5  # times that a policy may be asked at one evaluation, when experiments take no time


@dataclass(frozen=True)
class TimelinePoint:
    """One segment's end.

    Attributes:
        tokens: consumed so far.
        weights: the mixture that was consumed last.
        truth: the scores without noise.
        loss: their mean; see :func:`loss_of`.
        decision: taken on it; None at the end of the budget.
        seconds: that the policy took to decide.
    """

    tokens: int
    weights: Mixture
    truth: dict[str, float]
    loss: float
    decision: DecisionRecord | None = None
    seconds: float = 0.0


@dataclass(frozen=True)
class MixtureSpan:
    """Tokens ``start`` to ``end`` on one mixture; ``drawn`` are tokens per source up to its end."""

    start: int
    end: int
    weights: Mixture
    drawn: Mixture


@dataclass
class SimulatedRun:
    """A whole simulated run, oldest first; ``drawn`` are tokens per source.

    ``experiments`` are those that were asked for, with what they cost.
    """

    timeline: list[TimelinePoint] = field(default_factory=list)
    spans: list[MixtureSpan] = field(default_factory=list)
    drawn: Mixture = field(default_factory=dict)
    experiments: tuple[ExperimentResult, ...] = ()

    @property
    def final(self) -> float:
        """The last scores without noise, as a loss; see :func:`loss_of`."""
        return self.timeline[-1].loss

    def decisions(self) -> list[DecisionRecord]:
        """Every decision that was taken."""
        return [point.decision for point in self.timeline if point.decision is not None]

    def orders(self) -> list[Mixture]:
        """The mixture asked for by each decision that changed it."""
        return [dict(d.weights_after) for d in self.decisions() if d.verdict == "intervene"]


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
    experiments: VirtualExperiments
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
    latency: int = 1,
) -> SimulatedRun:
    """Run ``config`` in ``world``, which must have been reset, with ``policy`` deciding.

    Args:
        world: where.
        policy: who decides.
        config: the run; its policy section is not looked at.
        segments: evaluations in the budget, equally far apart.
        seed: what the policy's observation carries.
        start: the first mixture; without one, the configuration's.
        clock: seconds, for the time each decision took.
        latency: segments until the result of an experiment is there.
    """
    sources = world_sources(world)
    sizes = {name: source.unique_tokens for name, source in sources.items()}
    first = dict(start) if start is not None else config.start_weights(sizes)
    first = dict.fromkeys(sources, 0.0) | first
    parts = objective_parts(config)
    experiments = VirtualExperiments(
        world, config.experiment_tokens, latency, parts, lambda scores: _scores(world, scores)
    )
    run = _Run(config, world, sources, segments, first, experiments, _schedule(config))
    run.drawn = dict.fromkeys(sources, 0.0)
    simulated = SimulatedRun(drawn=run.drawn)
    for index in range(1, segments + 1):
        _advance(run, simulated, index * config.budget // segments)
        run.step = index
        run.evaluations.append(_evaluation(run))
        truth, consumed = _truth(run), dict(run.weights)
        decision, seconds = (None, 0.0) if run.finished else _decide(run, policy, seed, clock)
        loss = loss_of(truth, config, getattr(world, "higher_is_better", ()))
        point = TimelinePoint(run.tokens, consumed, truth, loss, decision, seconds)
        simulated.timeline.append(point)
    simulated.experiments = run.experiments.known(segments)
    return simulated


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


def _advance(run: _Run, simulated: SimulatedRun, until: int) -> None:
    """Train to ``until`` tokens: orders and the steps of plans switch at their exact token."""
    while run.tokens < until:
        _switch(run)
        ends = [until, *(end for end, _ in run.plan[:-1])]
        if run.pending is not None:
            ends.append(run.pending.at)
        end = min(ends)
        tokens = end - run.tokens
        run.world.advance(run.weights, tokens)
        for name, weight in run.weights.items():
            run.drawn[name] = run.drawn.get(name, 0.0) + weight * tokens
        _record(simulated.spans, MixtureSpan(run.tokens, end, run.weights, dict(run.drawn)))
        run.tokens = end
    _switch(run)


def _switch(run: _Run) -> None:
    """Bring in what is due now: a pending order, then the plan's step."""
    order = run.pending
    if order is not None and order.at <= run.tokens:
        run.pending = None
        run.generation, run.last_intervention = order.generation, order.at
        run.weights, run.plan = dict(order.weights), order.plan
    run.weights, run.plan = remaining(run.weights, run.plan, run.tokens)


def _record(spans: list[MixtureSpan], new: MixtureSpan) -> None:
    """Append a span; it prolongs the last one while the mixture stays the same."""
    last = spans[-1] if spans else None
    if last is not None and total_variation(last.weights, new.weights) < NOTHING:
        spans[-1] = MixtureSpan(last.start, new.end, last.weights, new.drawn)
    else:
        spans.append(new)


def _evaluation(run: _Run) -> Evaluation:
    return Evaluation(
        step=run.step,
        tokens=run.tokens,
        phase=_phase(run),
        generation=run.generation,
        weights=run.weights,
        drawn=dict(run.drawn),
        losses=_optional(run.world, "losses") or {},
        benchmarks=_scores(run.world, run.world.evaluate()),
    )


def _scores(world: World, answer: Mapping[str, tuple[float, float]]) -> dict[str, BenchmarkScore]:
    """A world's answer as scores."""
    higher = frozenset(getattr(world, "higher_is_better", ()))
    scores = {}
    for name, (value, stderr) in answer.items():
        metric = Metric(value=value, stderr=stderr, n=ITEMS, higher_is_better=name in higher)
        scores[name] = BenchmarkScore(metrics={_metric(world, name): metric})
    return scores


def _optional(world: World, name: str) -> Any:
    method = getattr(world, name, None)
    return method() if callable(method) else None


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


def _decide(
    run: _Run, policy: Policy, seed: int, clock: Callable[[], float]
) -> tuple[DecisionRecord, float]:
    for _ in range(AGAIN):
        observation = _observation(run, seed)
        begun = clock()
        answer = answer_of(policy, observation)
        seconds = clock() - begun
        if answer.kind != "experiment" or not _experiment(run, answer):
            break
    decision = make_decision(
        _while_it_runs(answer),
        observation,
        run.config,
        status=status_of(observation),
        last_intervention=run.last_intervention,
        generation=run.issued + 1,
        vetoes=vetoes(observation, run.config.guards.significance),
        standing=policy_standing(observation, run.config.guards.regression),
    )
    if decision.order is not None:
        run.issued += 1
        plan = tuple((until, dict(w)) for until, w in decision.plan)
        at = min(run.tokens + switching_lead(run.config, run.tokens), run.config.budget)
        run.pending = _Order(run.issued, at, dict(decision.weights_after), plan)
    run.decisions.append(
        PastDecision(
            id=f"d-{len(run.decisions) + 1:06d}",
            step=run.step,
            tokens=run.tokens,
            verdict=decision.verdict,
            generation=run.issued if decision.order is not None else None,
            weights_before=dict(decision.weights_before),
            weights_after=dict(decision.weights_after),
            rule=decision.evidence.get("rule"),
            evidence=decision.evidence,
        )
    )
    return decision, seconds


def _experiment(run: _Run, answer: Answer) -> bool:
    """Carry out what was asked for; whether the policy can be told at once."""
    asked = {key: value for key, value in answer.payload.items() if key != "kind"}
    return run.experiments.ask(
        Experiment(**asked),
        step=run.step,
        tokens=run.tokens,
        phase=_phase(run),
        weights=run.weights,
        decision=f"d-{len(run.decisions) + 1:06d}",
    )


def _while_it_runs(answer: Answer) -> Answer:
    """The mixture stays while an experiment runs."""
    if answer.kind != "experiment":
        return answer
    told = {key: answer.payload[key] for key in ("reason", "evidence")}
    return Answer("hold", {**told, "verdict": "hold"})


def answer_of(policy: Policy, observation: Observation) -> Answer:
    """The policy's reply, or why there is none: one that raises costs one decision here too."""
    try:
        reply = policy.decide(observation)
        return Answer(reply.kind, reply.model_dump(mode="json"))
    except Exception as error:
        return Answer("failed", {"reason": raised(error, type(policy))})


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
        decay=run.config.decay,
        steering={name: metric for name, metric in steering.items() if name not in watch},
        watch=watch,
        objective=run.config.objective,
        limits=Limits(**guards.model_dump(include=set(Limits.model_fields))),
        decisions=tuple(run.decisions),
        experiments=run.experiments.known(run.step),
        experiment_tokens=run.experiments.left,
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
