"""Policies against each other on worlds: one task is one run, by itself and in any process.

Everything a task needs travels with it as plain data, so that results don't depend on how many
processes there are.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mixloop.common.types import Json
from mixloop.controller.config import RunConfig
from mixloop.controller.core import guard_settings
from mixloop.policies.interface import PolicyError, load_policy
from mixloop.policies.worlds import Setting, World, WorldSource, load_world, world_sources

from .simulation import SimulatedRun, simulate
from .virtual_run import loss_of, objective_parts, uniform_start, virtual_config

CONTROL = "control"


@dataclass(frozen=True)
class PolicyEntry:
    """A policy that takes part: what it is called, its reference and its options."""

    label: str
    ref: str
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class SimulationSetup:
    """A world that is run in: what it is called, its reference, its size and the guards.

    ``config`` is the run that is simulated; without one, one is made for the world, which then
    starts at the uniform mixture inside the cap on epochs. ``sizes`` are that run's unique tokens.
    """

    label: str
    ref: str
    config: RunConfig | None = None
    sizes: Mapping[str, int] = field(default_factory=dict)
    guards: Mapping[str, Any] = field(default_factory=dict)
    k: int | None = None
    segments: int | None = None
    budget: int | None = None
    base: Path | None = None

    def world(self, seed: int) -> World:
        """A fresh world of this seed.

        Raises:
            PolicyError: when there is no such world, or it isn't one of the run's sources.
        """
        world = load_world(self.ref, self._setting(), base=self.base)
        world.reset(seed)
        if self.config is not None:
            _check_sources(world, self.config, self.ref)
        return world

    def _setting(self) -> Setting:
        guards = {"max_epochs": 5.0, **self.guards}
        if self.config is None:
            return Setting(self.segments, self.budget, guards["max_epochs"], self.k)
        run = self.config
        sources = {
            name: WorldSource(self.sizes[name], source.tags, source.standby)
            for name, source in run.sources.items()
        }
        return Setting(
            segments=self.segments,
            budget=run.budget,
            max_epochs=guard_settings(run).max_epochs,
            sources=sources,
            benchmarks=list(run.evals.benchmarks | run.evals.watch),
            value=objective_parts(run),
        )

    def evaluations(self, world: World) -> int:
        """How many evaluations the budget has."""
        return self.segments or int(getattr(world, "segments", 40))

    def configured(self, world: World, entrant: PolicyEntry) -> RunConfig:
        """The run's configuration with this policy."""
        if self.config is not None:
            policy = self.config.policy.model_copy(
                update={"use": entrant.ref, "options": dict(entrant.options)}
            )
            return self.config.model_copy(update={"policy": policy})
        return virtual_config(
            world,
            policy=entrant.ref,
            options=entrant.options,
            guards=self.guards,
            segments=self.evaluations(world),
            budget=self.budget,
        )

    def start(self, world: World, config: RunConfig) -> dict[str, float]:
        """The first mixture: the configured one, or uniform inside the cap."""
        if self.config is not None:
            return self.config.start_weights(self.sizes)
        return uniform_start(world, config.guards.max_epochs, config.budget)


@dataclass(frozen=True)
class SimulationTask:
    """One run; without an entrant, the references it is measured by: control and optimum."""

    arena: SimulationSetup
    seed: int
    entrant: PolicyEntry | None = None


def _check_sources(world: World, config: RunConfig, ref: str) -> None:
    have, want = set(world_sources(world)), set(config.sources)
    if have != want:
        different = ", ".join(sorted(have ^ want))
        problem = f"its sources aren't the run's (they differ in {different})"
        raise PolicyError(f"world: {ref}: {problem}; name them alike")


def run_task(task: SimulationTask) -> Json:
    """Carry one task out.

    Returns:
        For a policy: ``final`` loss, the ``curve`` of (tokens, loss), ``stretches``, ``verdicts``,
        the ``slowest`` decision and the run in ``seconds``, and ``failed`` decisions. For the
        references: ``control`` and ``optimum`` (None where the world has none) with their curves.

    Raises:
        PolicyError: when the world fails, saying where. (A policy that fails costs its decision.)
    """
    try:
        return run(task)
    except PolicyError:
        raise
    except Exception as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(frame.filename).name} line {frame.lineno}"
        ran = f"{task.arena.label}, seed {task.seed}"
        raise PolicyError(f"world: {ran}: {type(error).__name__}: {error} ({where})") from error


def run(task: SimulationTask) -> Json:
    if task.entrant is None:
        return _references(task.arena, task.seed)
    world = task.arena.world(task.seed)
    config = task.arena.configured(world, task.entrant)
    policy = load_policy(task.entrant.ref, task.entrant.options, base=task.arena.base)
    begun = time.perf_counter()
    track = simulate(
        world,
        policy,
        config,
        segments=task.arena.evaluations(world),
        seed=task.seed,
        start=task.arena.start(world, config),
    )
    return _played(track, world, time.perf_counter() - begun)


def _played(track: SimulatedRun, world: World, seconds: float) -> Json:
    decisions = [m.decision for m in track.moments if m.decision is not None]
    verdicts = [decision["verdict"] for decision in decisions]
    sizes = {name: source.unique_tokens for name, source in world_sources(world).items()}
    return {
        "final": track.final,
        "curve": [(m.tokens, m.loss) for m in track.moments],
        "stretches": [
            {
                "from": s.start,
                "until": s.end,
                "weights": s.weights,
                "epochs": {name: s.drawn[name] / sizes[name] for name in sizes},
            }
            for s in track.stretches
        ],
        "scores": track.moments[-1].truth,
        "verdicts": {verdict: verdicts.count(verdict) for verdict in dict.fromkeys(verdicts)},
        "orders": track.orders(),
        "slowest": max((m.seconds for m in track.moments), default=0.0),
        "seconds": seconds,
        "failed": sum("error" in decision["evidence"] for decision in decisions),
    }


def _references(arena: SimulationSetup, seed: int) -> Json:
    """The mixture left as it started, and the best constant one: no guards, no decisions."""
    world = arena.world(seed)
    config = arena.configured(world, PolicyEntry(CONTROL, "static"))
    segments = arena.evaluations(world)
    optimum, note = _optimum(world)
    control = constant(arena.world(seed), arena.start(world, config), config, segments)
    found: Json = {"control": control[-1][1], "control_curve": control, "note": note}
    found |= {"optimum": None, "optimum_curve": None, "optimum_weights": None}
    if isinstance(optimum, Mapping):
        curve = constant(arena.world(seed), optimum, config, segments)
        found |= {"optimum": curve[-1][1], "optimum_curve": curve}
        found["optimum_weights"] = dict(optimum)
    elif optimum is not None:
        found["optimum"] = float(optimum)
    return found


def _optimum(world: World) -> tuple[Any, str | None]:
    ask = getattr(world, "optimum", None)
    if not callable(ask):
        return None, None
    try:
        return ask(), None
    except Exception as error:  # a user's world: no optimum, but a run all the same
        return None, f"no optimum: {type(error).__name__}: {error}"


def constant(
    world: World, weights: Mapping[str, float], config: RunConfig, segments: int
) -> list[tuple[int, float]]:
    """(tokens, loss) at each evaluation of a whole budget on one mixture."""
    curve, tokens = [], 0
    for index in range(1, segments + 1):
        until = index * config.budget // segments
        world.advance(weights, until - tokens)
        tokens = until
        curve.append((tokens, _loss(world, config)))
    return curve


def _loss(world: World, config: RunConfig) -> float:
    truth = getattr(world, "truth", None)
    scores = truth() if callable(truth) else {n: v for n, (v, _) in world.evaluate().items()}
    return loss_of(scores, config, getattr(world, "higher_is_better", ()))


@dataclass(frozen=True)
class Contest:
    """Who plays where, and how often; ``config`` is the run that is simulated, if one was given."""

    entrants: tuple[PolicyEntry, ...]
    arenas: tuple[SimulationSetup, ...]
    seeds: int
    config: RunConfig | None = None


@dataclass
class Played:
    """All runs by policy and world, and what they are measured by, each a list over seeds."""

    contest: Contest
    runs: dict[tuple[str, str], list[Json]] = field(default_factory=dict)
    references: dict[str, list[Json]] = field(default_factory=dict)
    ledgers: list[Json] = field(default_factory=list)
