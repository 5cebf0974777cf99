"""What a simulated run has in place of a trainer and a run.yaml. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from mixloop.contract import AcceptedOrder, OrderInForce, SourceStatus, Status
from mixloop.controller.config import RunConfig
from mixloop.policies.interface import Observation
from mixloop.policies.mixture import water_fill
from mixloop.policies.worlds import World, world_sources


def loss_of(
    truth: Mapping[str, float], config: RunConfig, higher_is_better: Collection[str] = ()
) -> float:
    """The benchmarks' mean by the objective's weights; a score that is better higher is negated.

    Benchmarks that are only watched don't count, unless there are no others.
    """
    configured = objective_parts(config)
    parts = {name: configured.get(name, 1.0) for name in truth}
    if not sum(parts.values()):
        parts = dict.fromkeys(truth, 1.0)
    signed = {name: -v if name in higher_is_better else v for name, v in truth.items()}
    return sum(parts[name] * signed[name] for name in truth) / sum(parts.values())


def objective_parts(config: RunConfig) -> dict[str, float]:
    """Each benchmark's part in the objective; 0 for one that is only watched."""
    goals = config.objective
    return {
        name: 0.0 if name in config.evals.watch else goals[name].weight if name in goals else 1.0
        for name in (*goals, *config.evals.benchmarks, *config.evals.watch)
    }


def status_of(observation: Observation) -> Status:
    """The heartbeat a trainer would write where an observation was made."""
    return Status(
        run=observation.run,
        incarnation=1,
        pid=0,
        host="",
        step=observation.step,
        sample=observation.tokens,
        tokens=observation.tokens,
        budget=observation.budget,
        lr=None,
        phase=observation.phase,
        loss=None,
        grad_norm=None,
        tokens_per_second=None,
        sources={
            name: SourceStatus(source.drawn, source.epochs, source.unique_tokens)
            for name, source in observation.sources.items()
        },
        accepted=AcceptedOrder(1, observation.generation),
        in_force=OrderInForce(1, observation.generation, 0, 0, observation.weights),
    )


def virtual_config(
    world: World,
    *,
    policy: str = "static",
    options: Mapping[str, Any] | None = None,
    guards: Mapping[str, Any] | None = None,
    segments: int = 40,
    budget: int | None = None,
    experiments: float | int | str = 0,
) -> RunConfig:
    """A run configuration for a world that comes without one.

    ``experiments``: what branches may cost, a share of the budget or a number of tokens.
    """
    whole = budget or getattr(world, "budget", None) or segments * 10**9
    sources = {
        name: {
            "path": f"data/{name}",
            "tags": list(source.tags),
            "standby": source.standby,
            "tokens": source.unique_tokens,
        }
        for name, source in world_sources(world).items()
    }
    return RunConfig.model_validate(
        {
            "run": {"id": "simulation", "dir": "simulation"},
            "budget": whole,
            "sources": sources,
            "evals": {"every": max(1, whole // segments)},
            "policy": {"use": policy, "with": dict(options or {})},
            "guards": dict(guards or {}),
            "experiments": {"budget": experiments},
            "trainer": {"sequence_length": 2, "micro_batch": 1, "poll_every": 1},
        }
    )


def uniform_start(world: World, max_epochs: float | None, budget: int) -> dict[str, float]:
    """The uniform mixture, brought inside the cap on epochs over the whole budget."""
    sources = world_sources(world)
    active = {name: source for name, source in sources.items() if not source.standby}
    even = dict.fromkeys(active, 1 / len(active))
    limit = max_epochs if max_epochs is not None else float("inf")
    bounds = {n: (0.0, min(1.0, limit * s.unique_tokens / budget)) for n, s in active.items()}
    return dict.fromkeys(sources, 0.0) | (water_fill(even, bounds) or even)
