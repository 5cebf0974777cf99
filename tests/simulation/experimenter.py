"""A played experiment's process: branches scored by a formula, and every way in which one ends."""

from __future__ import annotations

import math
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from mixloop.evals.workers import Failure
from mixloop.policies.interface import BenchmarkScore, ExperimentResult, Metric, ScoredBranch

from .here import sim
from .invariants import Violation

ITEMS = 3
PATIENCE = 90.0  # simulated seconds after which a process that hangs is killed


def spec_of(config: Any, asked: Any, checkpoint: Any, evals: Any, **given: Any) -> Any:
    """What the process is told."""
    place = str(config.run.dir / "experiments" / given["id"])
    fields = {name: given[name] for name in ("id", "decision", "weights", "receipt")}
    return SimpleNamespace(asked=asked, checkpoint=checkpoint, out=place, **fields)


def discard(folder: Any) -> None:
    sim().fs.remove_folder(str(folder))
    sim().disk.pop(folder.name, None)


@dataclass
class OnDisk:
    """What an experiment has left on the disk, which a kill does not take."""

    steps: int  # looks until it has ended
    result: ExperimentResult | None = None


class ExperimentRunner:
    """Takes the place of :class:`mixloop.controller.experiments.ExperimentRunner`."""

    def __init__(self, log: Any, launcher: Any = "local") -> None:
        self._spec: Any = None
        self._fate = ""
        self._began = 0.0

    def start(self, spec: Any) -> None:
        world, faults = sim(), sim().faults
        world.watch.experiment_starts(spec, world._look_db())
        if faults.draw("experiment-no-process", 5):
            raise OSError(11, "no process for you")
        if self._spec is not None:
            raise Violation("one-experiment", f"{spec.id} while {self._spec.id} is under way")
        world.fs.mkdir(spec.out)
        world.disk.setdefault(spec.id, OnDisk(world.rng.randrange(1, 25)))
        self._spec, self._began = spec, world.now
        kinds = ("experiment-hangs", "experiment-dies", "experiment-fails", "experiment-nan")
        self._fate = next((kind for kind in kinds if faults.draw(kind, 15)), "")

    def poll(self) -> ExperimentResult | Failure | None:
        world, spec = sim(), self._spec
        if spec is None:
            return None
        disk = world.disk[spec.id]
        if self._fate == "experiment-hangs" and world.faults.on and disk.result is None:
            if world.now - self._began < PATIENCE:
                return None
            return self._ended(Failure(f"no answer within {PATIENCE:g} seconds"))
        disk.steps -= 1
        if disk.steps > 0:
            return None
        if self._fate == "experiment-dies" and disk.result is None:
            disk.steps = 3
            return self._ended(Failure("its process ended with status -9"))
        disk.result = disk.result or self._result(spec)
        world.experiment_written()
        return self._ended(disk.result)

    def _ended(self, end: ExperimentResult | Failure) -> ExperimentResult | Failure:
        self._spec = None
        return end

    def stop(self) -> None:
        self._spec = None

    def _result(self, spec: Any) -> ExperimentResult:
        asked = spec.asked
        cost = asked.tokens * (1 if spec.receipt else len(asked.branches) + 1)
        fields = {"id": spec.id, "decision": spec.decision, "weights": spec.weights, "cost": cost}
        if self._fate == "experiment-fails":
            return ExperimentResult(**fields, state="failed", reason="a branch diverged")
        if spec.receipt:
            twins = [self._branch(spec, 1, half) for half in ("half", "end")]
            place = {"tokens": spec.checkpoint.tokens, "branch_tokens": asked.tokens}
            fields |= place | {"receipt": True, "schedule": asked.schedule}
            return ExperimentResult(**fields, halfway=twins[0], branches=(twins[1],))
        sides = [self._branch(spec, n) for n in range(len(asked.branches) + 1)]
        return ExperimentResult(**fields, control=sides[0], branches=tuple(sides[1:]))

    def _branch(self, spec: Any, number: int, part: str = "") -> ScoredBranch:
        weights = spec.asked.branches[number - 1] if number else spec.weights
        rng = sim().noise("experiment", spec.id, f"{number}{part}")
        items = {
            f"i{n}": {"bits_per_byte": 2 + n / 10 + rng.random() / 50, "bytes": 10.0}
            for n in range(ITEMS)
        }
        value = sum(item["bits_per_byte"] for item in items.values()) / ITEMS
        value = math.nan if self._fate == "experiment-nan" and number else value
        metric = Metric(value=value, stderr=0.1, n=ITEMS, higher_is_better=False)
        score = BenchmarkScore(metrics={"bits_per_byte": metric}, items=items)
        return ScoredBranch(weights=dict(weights), benchmarks={"gsm8k": score})
