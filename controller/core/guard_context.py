"""What the guards judge a proposal by: the ledger, the limits, the learning-rate phase."""

from __future__ import annotations

from statistics import median

from mixloop.contract import BatchSchedule, Status
from mixloop.controller.config import RunConfig
from mixloop.policies.guards import GuardContext, GuardSettings
from mixloop.policies.interface import Observation
from mixloop.policies.mixture import consumed, project
from mixloop.trainer.config import JobError, batch_schedule_of

from .decision_record import Plan, Weights

RECENT = 8  # checkpoints whose training loss is "recent"


def guard_settings(config: RunConfig) -> GuardSettings:
    """The guards, no wider than the trainer's own limits: it would refuse what they let through."""
    guards, limits = config.guards, config.trainer.limits
    return guards.model_copy(
        update={
            "floor": max(guards.floor, limits.floor),
            "cap": min(guards.cap, limits.cap),
            "max_change": min(guards.max_change, limits.max_change),
        }
    )


def switching_lead(config: RunConfig, tokens: int) -> int:
    """Tokens that pass before an order published at ``tokens`` is consumed, at most."""
    trainer, quanta = config.trainer, _quanta(config)
    step = quanta.index(tokens // trainer.sequence_length)
    samples = quanta.first(step + trainer.switching_steps) - quanta.first(step)
    return samples * trainer.sequence_length


def step_tokens(config: RunConfig, tokens: int) -> int:
    """Training tokens of the optimizer step that begins at ``tokens``."""
    quanta, length = _quanta(config), config.trainer.sequence_length
    step = quanta.index(tokens // length)
    return (quanta.first(step + 1) - quanta.first(step)) * length


def _quanta(config: RunConfig) -> BatchSchedule:
    trainer = config.trainer
    try:
        return batch_schedule_of(trainer, trainer.processes)
    except JobError:  # another loop's ranks, which only it knows
        return BatchSchedule([(0, trainer.micro_batch * trainer.accumulation * trainer.processes)])


def guard_context(
    observation: Observation, config: RunConfig, status: Status, last_intervention: int | None
) -> GuardContext:
    """The run as the guards see it, moved on to where an order could take effect."""
    trainer = config.trainer
    lead = min(switching_lead(config, status.tokens), max(0, config.budget - status.tokens))
    tokens = status.tokens + lead
    in_force = status.in_force
    ahead = observation.plan if in_force.generation == observation.generation else ()
    weights, left = remaining(in_force.weights, ahead, tokens)
    if len(left) == len(ahead):  # no switch of its own meanwhile: exactly what is consumed now
        weights = dict(in_force.weights)
        left = tuple((until, w if i else weights) for i, (until, w) in enumerate(left))
    by_then = project(
        {
            name: consumed(entry.tokens, entry.epochs, observation.sources[name].unique_tokens)
            for name, entry in status.sources.items()
            if name in observation.sources
        },
        status.tokens,
        [*((min(until, tokens), w) for until, w in ahead), (tokens, weights)],
    )
    every = config.evals.every or trainer.checkpoint_every or config.budget
    return GuardContext(
        sources=observation.sources,
        weights=weights,
        drawn={
            name: by_then[name] if name in status.sources else 0.0 for name in observation.sources
        },
        tokens=tokens,
        budget=config.budget,
        horizon=every + lead,
        last_intervention_tokens=last_intervention,
        order_pending=not observation.in_force,
        plan=left,
        phase=status.phase,
        loss_ratio=_loss_ratio(observation, status),
    )


def _loss_ratio(observation: Observation, status: Status) -> float | None:
    """The training loss now over its median at recent checkpoints; None where it isn't recorded.

    Source by source and weighed by the mixture, so that a change of the mixture is no spike.
    """
    ratios = []
    for name, entry in status.sources.items():
        past = [e.losses[name] for e in observation.evaluations[-RECENT:] if name in e.losses]
        weight = status.in_force.weights.get(name, 0.0)
        if entry.loss is not None and len(past) >= 3 and weight > 0 and median(past) > 0:
            ratios.append((weight, entry.loss / median(past)))
    total = sum(weight for weight, _ in ratios)
    return sum(weight * ratio for weight, ratio in ratios) / total if total > 0 else None


def remaining(
    weights: Weights, plan: Plan, tokens: int
) -> tuple[dict[str, float], tuple[tuple[int, dict[str, float]], ...]]:
    """What an order with a plan asks for from ``tokens`` on: the weights now, the plan from now."""
    if not plan:
        return dict(weights), ()
    left = tuple((until, dict(stretch)) for until, stretch in plan if until > tokens)
    now = left[0][1] if left else plan[-1][1]
    return dict(now), left
