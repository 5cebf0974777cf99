"""What the regression guard costs and what it saves, in worlds whose checkpoints jitter.

    .venv/bin/python bench/regression.py alarms --seeds 60
    .venv/bin/python bench/regression.py harm --seeds 12
    .venv/bin/python bench/regression.py price --policy law --seeds 8

``alarms``: a policy that wanders at random in worlds where every mixture does the same (flat, and
the families' own curves under one fixed mixture), with jitter of three autocorrelations: the part
of the runs that the guard ever moved. ``harm``: a policy that moves step by step to the worst
source: the gap closed with the guard and without. ``price``: a policy in the worlds that it is
right in, with the guard and without.
"""

from __future__ import annotations

import os

for _key in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[_key] = "1"

import argparse
import json
import math
import statistics
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from mixloop.policies.interface import Hold, Observation, Policy, Proposal, Reply, load_policy
from mixloop.policies.worlds.families import Dilution, Exponential, Flat, Power
from mixloop.tools.simulate.simulation import SimulatedRun, simulate
from mixloop.tools.simulate.virtual_run import uniform_start, virtual_config

FAMILIES = {"P": Power, "E": Exponential, "D": Dilution, "F": Flat}
JITTER = 0.02  # bits per byte, of one checkpoint, as small real runs show


class Jittering:
    """A world whose checkpoints lie off its course: half of it in all benchmarks alike.

    Args:
        world: whose course it is.
        jitter: standard deviation, in bits per byte.
        correlation: of neighbouring checkpoints' jitter.
        fixed: a mixture that is trained on whatever is ordered.
    """

    def __init__(
        self,
        world: Any,
        jitter: float,
        correlation: float = 0.0,
        fixed: Mapping[str, float] | None = None,
    ) -> None:
        self._world, self._fixed = world, fixed
        self._jitter, self._correlation = jitter, correlation
        self._off: Any = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._world, name)

    def reset(self, seed: int) -> None:
        self._world.reset(seed)
        self._drawing = np.random.default_rng([seed, 20])
        self._off = None

    def advance(self, weights: Mapping[str, float], tokens: int) -> None:
        self._world.advance(self._fixed or weights, tokens)

    def evaluate(self) -> dict[str, tuple[float, float]]:
        fresh = self._drawing.normal(size=len(self.benchmarks) + 1)
        if self._off is None:
            self._off = fresh
        else:
            kept = self._correlation
            self._off = kept * self._off + math.sqrt(1 - kept**2) * fresh
        off = self._jitter * (self._off[1:] + self._off[0]) / math.sqrt(2)
        scored = self._world.evaluate()
        places = {name: place for place, name in enumerate(self.benchmarks)}
        return {name: (v + float(off[places[name]]), s) for name, (v, s) in scored.items()}


class Wander:
    """Moves a tenth of the tokens from one source to another at every decision."""

    def decide(self, observation: Observation) -> Reply:
        """A step in a random direction."""
        drawing = np.random.default_rng([observation.seed, observation.step])
        target = drawing.dirichlet(np.full(len(observation.sources), 0.5))
        names = list(observation.sources)
        return Proposal(dict(zip(names, map(float, target), strict=True)), "somewhere else")


class ToOne:
    """Moves to one source, step by step, from a third of the run on."""

    def __init__(self, source: str) -> None:
        self.source = source

    def decide(self, observation: Observation) -> Reply:
        """All to that source."""
        if 3 * observation.tokens < observation.budget:
            return Hold("not yet")
        weights = {name: float(name == self.source) for name in observation.sources}
        return Proposal(weights, f"{self.source} alone")


def run(
    world: Any, policy: Policy, seed: int, segments: int, regression: bool = True
) -> SimulatedRun:
    """A simulated run from the uniform mixture."""
    world.reset(seed)
    guards: dict[str, Any] = {"max_epochs": world.max_epochs}
    guards |= {} if regression else {"regression": None}
    config = virtual_config(world, guards=guards, segments=segments, budget=world.budget)
    start = uniform_start(world, world.max_epochs, world.budget)
    return simulate(world, policy, config, segments=segments, seed=seed, start=start)


def ways_back(done: SimulatedRun) -> int:
    """How often the guard took the mixture back."""
    return sum(decision.asked_by == "controller" for decision in done.decisions())


def gap_closed(done: SimulatedRun, world: Any, seed: int, segments: int) -> float:
    """1 at the best static mixture's final loss, 0 at the start's, left alone."""
    world.reset(seed)
    names = list(world.sources)
    start = uniform_start(world, world.max_epochs, world.budget)
    mixtures = np.array([[m[name] for name in names] for m in (start, world.optimum())])
    alone, best = map(float, world.final(mixtures))
    return (alone - done.final) / (alone - best)


def alarms(seeds: int, segments: int) -> Iterator[dict[str, Any]]:
    """False alarms of a wandering policy where the mixture doesn't matter."""
    for family, make in FAMILIES.items():
        for correlation in (0.0, 0.2, 0.3):
            moved = 0
            for seed in range(seeds):
                inner = make(k=6, segments=segments, scarce=False)
                inner.reset(seed)
                even = dict.fromkeys(inner.sources, 1 / 6)
                world = Jittering(inner, JITTER, correlation, even)
                moved += ways_back(run(world, Wander(), seed, segments)) > 0
            yield {"world": family, "correlation": correlation, "runs": seeds, "alarmed": moved}


def harm(seeds: int, segments: int) -> Iterator[dict[str, Any]]:
    """A policy that is wrong: all to the source that ends worst."""
    for family in "PED":
        for jitter in (0.005, JITTER):
            closed: dict[bool, list[float]] = {True: [], False: []}
            moved = 0
            for seed in range(seeds):
                world = Jittering(FAMILIES[family](k=6, segments=segments, scarce=False), jitter)
                world.reset(seed)
                names = list(world.sources)
                worst = names[int(np.argmax(world.final(np.eye(len(names)))))]
                for on in (True, False):
                    done = run(world, ToOne(worst), seed, segments, on)
                    closed[on].append(gap_closed(done, world, seed, segments))
                    moved += on and ways_back(done) > 0
            yield {"world": family, "jitter": jitter, "runs": seeds, "caught": moved} | spreads(
                closed
            )


def price(seeds: int, segments: int, policy: str) -> Iterator[dict[str, Any]]:
    """A policy in its own worlds, with the guard and without."""
    for family in "PED":
        for jitter in (0.0, JITTER):
            closed: dict[bool, list[float]] = {True: [], False: []}
            moved = 0
            for seed in range(seeds):
                world = Jittering(FAMILIES[family](k=6, segments=segments), jitter)
                for on in (True, False):
                    done = run(world, load_policy(policy, {}), seed, segments, on)
                    closed[on].append(gap_closed(done, world, seed, segments))
                    moved += on and ways_back(done) > 0
            found = {"policy": policy, "world": family, "jitter": jitter, "runs": seeds}
            yield found | {"moved": moved} | spreads(closed)


def spreads(closed: Mapping[bool, list[float]]) -> dict[str, Any]:
    """Median and worst of the gap closed, with the guard and without."""
    return {
        f"{name} {'on' if on else 'off'}": round(statistic(values), 3)
        for on, values in closed.items()
        for name, statistic in (("median", statistics.median), ("worst", min))
    }


def main() -> None:
    """Print one JSON line for each row."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("alarms", "harm", "price"))
    parser.add_argument("--seeds", type=int, default=12)
    parser.add_argument("--segments", type=int, default=40)
    parser.add_argument("--policy", default="law")
    options = parser.parse_args()
    rows = {
        "alarms": lambda: alarms(options.seeds, options.segments),
        "harm": lambda: harm(options.seeds, options.segments),
        "price": lambda: price(options.seeds, options.segments, options.policy),
    }
    for row in rows[options.what]():
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
