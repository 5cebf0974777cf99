"""One simulation task: a policy on a world of one seed, by itself and in any process.

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

from . import regmix_world  # noqa: F401 - makes regmix:FOLDER known
from .simulation import SimulatedRun, simulate
from .virtual_run import loss_of, objective_parts, uniform_start, virtual_config


@dataclass(frozen=True)
class PolicyEntry:
    """A policy that is simulated: what it is called, its reference and its options."""

    label: str
    ref: str
    options: Mapping[str, Any] = field(default_factory=dict)


CONTROL = PolicyEntry("control", "static")
EXPERIMENTS = 0.02  # of the budget, for the experiments of a run without a run.yaml


@dataclass(frozen=True)
class SimulationSetup:
    """A world to run in: what it is called, its reference, its size and the guards.

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

    def world(self, seed: int) -> World:
        """A fresh world of this seed.

        Raises:
            PolicyError: there is no such world, or its sources aren't the run's.
        """
        world = load_world(self.ref, self._setting())
        world.reset(seed)
        if self.config is not None:
            _check_sources(world, self.config, self.ref)
        return world

    def _setting(self) -> Setting:
        if self.config is None:
            max_epochs = {"max_epochs": 5.0, **self.guards}["max_epochs"]
            return Setting(self.segments, self.budget, max_epochs, self.k)
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

    def configured(self, world: World, policy: PolicyEntry) -> RunConfig:
        """The run's configuration with this policy."""
        if self.config is not None:
            section = self.config.policy.model_copy(
                update={"use": policy.ref, "options": dict(policy.options)}
            )
            return self.config.model_copy(update={"policy": section})
        return virtual_config(
            world,
            policy=policy.ref,
            options=policy.options,
            guards=self.guards,
            segments=self.evaluations(world),
            budget=self.budget,
            experiments=EXPERIMENTS,
        )

    def start(self, world: World, config: RunConfig) -> dict[str, float]:
        """The first mixture: the configured one, or uniform inside the cap."""
        if self.config is not None:
            return self.config.start_weights(self.sizes)
        return uniform_start(world, config.guards.max_epochs, config.budget)


@dataclass(frozen=True)
class SimulationTask:
    """One run; without a policy, the references it is measured by: control and optimum.

    ``ledger`` is ``reporting`` or ``enforcing`` for a run that is only there to be compared with
    the other of the two.
    """

    setup: SimulationSetup
    seed: int
    policy: PolicyEntry | None = None
    ledger: str | None = None


def _check_sources(world: World, config: RunConfig, ref: str) -> None:
    different = set(world_sources(world)) ^ set(config.sources)
    if different:
        names = ", ".join(sorted(different))
        problem = f"its sources aren't the run's (they differ in {names})"
        raise PolicyError(f"world: {ref}: {problem}; name them alike")


def run_task(task: SimulationTask) -> Json:
    """Run one task.

    Returns:
        For a policy: ``final`` loss, the ``curve`` of (tokens, loss), ``spans``, ``verdicts``, the
        ``slowest`` decision and the run in ``seconds``, ``failed`` decisions, ``experiments`` and
        what they ``cost`` in tokens. For the
        references: ``control`` and ``optimum`` (None where the world has none) with their curves.

    Raises:
        PolicyError: when the world fails, saying where. (A policy that fails costs its decision.)
    """
    try:
        if task.policy is None:
            return _references(task.setup, task.seed)
        return _policy_run(task.setup, task.seed, task.policy)
    except PolicyError:
        raise
    except Exception as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(frame.filename).name} line {frame.lineno}"
        ran = f"{task.setup.label}, seed {task.seed}"
        raise PolicyError(f"world: {ran}: {type(error).__name__}: {error} ({where})") from error


def _policy_run(setup: SimulationSetup, seed: int, entry: PolicyEntry) -> Json:
    world = setup.world(seed)
    config = setup.configured(world, entry)
    policy = load_policy(entry.ref, entry.options)
    segments, start = setup.evaluations(world), setup.start(world, config)
    begun = time.perf_counter()
    simulated = simulate(world, policy, config, segments=segments, seed=seed, start=start)
    return {"seconds": time.perf_counter() - begun, **_summary(simulated, world)}


def _summary(simulated: SimulatedRun, world: World) -> Json:
    decisions = simulated.decisions()
    verdicts = [decision.verdict for decision in decisions]
    sizes = {name: source.unique_tokens for name, source in world_sources(world).items()}
    return {
        "final": simulated.final,
        "curve": [(point.tokens, point.loss) for point in simulated.timeline],
        "spans": [
            {
                "from": span.start,
                "until": span.end,
                "weights": span.weights,
                "epochs": {name: span.drawn[name] / sizes[name] for name in sizes},
            }
            for span in simulated.spans
        ],
        "scores": simulated.timeline[-1].truth,
        "verdicts": {verdict: verdicts.count(verdict) for verdict in dict.fromkeys(verdicts)},
        "slowest": max(point.seconds for point in simulated.timeline),
        "failed": sum("error" in decision.evidence for decision in decisions),
        "experiments": len(simulated.experiments),
        "cost": sum(experiment.cost for experiment in simulated.experiments),
    }


def _references(setup: SimulationSetup, seed: int) -> Json:
    """The mixture left as it started, and the best constant one: no guards, no decisions."""
    world = setup.world(seed)
    config = setup.configured(world, CONTROL)
    optimum, note = _optimum(world)

    def curve(weights: Mapping[str, float]) -> list[tuple[int, float]]:
        return _constant(setup.world(seed), weights, config, setup.evaluations(world))

    control = curve(setup.start(world, config))
    references: Json = {"control": control[-1][1], "control_curve": control, "note": note}
    references |= {"optimum": None, "optimum_curve": None}
    if isinstance(optimum, Mapping):
        best = curve(optimum)
        references |= {"optimum": best[-1][1], "optimum_curve": best}
    elif optimum is not None:
        references["optimum"] = float(optimum)
    return references


def _optimum(world: World) -> tuple[Any, str | None]:
    ask = getattr(world, "optimum", None)
    if not callable(ask):
        return None, None
    try:
        return ask(), None
    except Exception as error:  # a user's world: no optimum, but a run all the same
        return None, f"no optimum: {type(error).__name__}: {error}"


def _constant(
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
