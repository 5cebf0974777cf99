"""Experiments in a simulated run: branches and merges of the world in place of trained ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from mixloop.policies.interface import (
    BenchmarkScore,
    Experiment,
    ExperimentResult,
    MergeFit,
    Phase,
    ScoredBranch,
)
from mixloop.policies.mixture import Array
from mixloop.policies.surrogates import fit_merge
from mixloop.policies.worlds import World

Part = Literal["whole", "first", "second"]
PARTS: tuple[Part, ...] = ("whole", "first", "second")
OTHER: dict[Part, Part] = {"whole": "whole", "first": "second", "second": "first"}
FIT_STEPS = 25
SMALL = 1e-3  # share over which a derivative is taken
Scores = Mapping[str, tuple[float, float]]
AsScores = Callable[[Scores], dict[str, BenchmarkScore]]


@dataclass
class VirtualExperiments:
    """The experiments of a simulated run, and what they have cost.

    Attributes:
        world: the run's.
        budget: training tokens that all branches may take.
        latency: segments until a result is there; 0: the policy is asked again at once.
        parts: each benchmark's part in the objective.
        scores: a world's answer as scores.
    """

    world: World
    budget: int
    latency: int
    parts: Mapping[str, float]
    scores: AsScores
    asked: list[tuple[int, ExperimentResult]] = field(default_factory=list)

    @property
    def spent(self) -> int:
        """Training tokens of all branches so far."""
        return sum(result.cost for _, result in self.asked)

    @property
    def left(self) -> int:
        """What may still be spent; 0 in a world that can't be experimented in."""
        able = callable(getattr(self.world, "branch", None))
        return max(0, self.budget - self.spent) if able else 0

    def known(self, step: int) -> tuple[ExperimentResult, ...]:
        """The experiments as they are seen at a segment's end: the newest may be running."""
        return tuple(result if step >= due else _running(result) for due, result in self.asked)

    def ask(
        self,
        wanted: Experiment,
        *,
        step: int,
        tokens: int,
        phase: Phase | None,
        weights: Mapping[str, float],
        decision: str,
    ) -> bool:
        """Carry an experiment out, unless one is under way or it costs too much.

        Returns:
            Whether its result is there already.
        """
        where: dict[str, Any] = {
            "id": f"x-{len(self.asked) + 1:06d}",
            "decision": decision,
            "step": step,
            "tokens": tokens,
            "phase": phase,
            "weights": dict(weights),
            "branch_tokens": wanted.tokens,
            "schedule": wanted.schedule,
            "design": wanted.merge,
            "reason": wanted.reason,
        }
        cost = wanted.tokens * (len(wanted.branches) + 1)
        if any(step < due for due, _ in self.asked):
            refused = "another experiment is under way"
        elif cost > self.left:
            refused = f"it takes {cost:,} tokens of branches, {self.left:,} are left"
        else:
            result = self._carried_out(wanted, where, cost)
            self.asked.append((step + self.latency, result))
            return self.latency == 0
        self.asked.append(
            (step, ExperimentResult(**where | {"state": "refused", "reason": refused}))
        )
        return False

    def _carried_out(
        self, wanted: Experiment, where: dict[str, Any], cost: int
    ) -> ExperimentResult:
        world: Any = self.world

        def branch(mixture: Mapping[str, float]) -> ScoredBranch:
            scores = self.scores(world.branch(mixture, wanted.tokens, wanted.schedule))
            return ScoredBranch(weights=dict(mixture), benchmarks=scores)

        fits: tuple[MergeFit, ...] = ()
        if wanted.merge is not None and callable(getattr(world, "merge", None)):
            fits = tuple(self._fit(wanted, where["weights"], part) for part in PARTS)
        return ExperimentResult(
            **where,
            control=branch(where["weights"]),
            branches=tuple(map(branch, wanted.branches)),
            fits=fits,
            cost=cost,
        )

    def _fit(self, wanted: Experiment, present: Mapping[str, float], part: Part) -> MergeFit:
        """The mixture whose merge scores best, among those of sources that have an expert."""
        design = wanted.merge
        assert design is not None
        world: Any = self.world
        names = list(world.sources)
        experts = {name for branch in wanted.branches for name, w in branch.items() if w > 0}
        prior = np.array([design.prior.get(n, 0.0) if n in experts else 0.0 for n in names])
        most = np.array([design.most.get(n, 1.0) if n in experts else 0.0 for n in names])
        start = np.array([present.get(name, 0.0) for name in names])

        def losses(shares: Array, of: Part = part) -> dict[str, tuple[float, float]]:
            weights = dict(zip(names, map(float, shares), strict=True))
            found: dict[str, tuple[float, float]] = world.merge(weights, wanted.tokens, of)
            longer = 1.0 if of == "whole" else 2.0  # a half is told as long as the whole
            return {
                name: (longer * value, longer * error) for name, (value, error) in found.items()
            }

        def slopes(shares: Array) -> dict[str, Array]:
            up = shares + SMALL * np.eye(len(names))
            down = np.maximum(shares - SMALL * np.eye(len(names)), 0.0)
            spans = np.diag(up) - np.diag(down)
            ends = [(losses(above), losses(below)) for above, below in zip(up, down, strict=True)]
            return {
                name: np.array([above[name][0] - below[name][0] for above, below in ends]) / spans
                for name in ends[0][0]
            }

        def loss_and_gradient(shares: Array) -> tuple[float, Array]:
            gradient = self._objective(slopes(shares))
            value = self._objective({n: v for n, (v, _) in losses(shares).items()})
            return float(value), np.asarray(gradient)

        best, _ = fit_merge(loss_and_gradient, start, prior, most, design.strength, FIT_STEPS)
        here, there = (losses(shares, OTHER[part]) for shares in (start, best))
        gains = {
            name: (here[name][0] - there[name][0], float(np.hypot(here[name][1], there[name][1])))
            for name in here
        }
        return MergeFit(
            part=part,
            weights=dict(zip(names, map(float, best), strict=True)),
            gains=gains,
            slopes={
                name: dict(zip(names, map(float, slope), strict=True))
                for name, slope in slopes(start).items()
            },
        )

    def _objective(self, values: Mapping[str, Any]) -> Any:
        parts = {name: self.parts.get(name, 1.0) for name in values}
        whole = sum(parts.values()) or 1.0
        return sum(parts[name] / whole * value for name, value in values.items())


def _running(result: ExperimentResult) -> ExperimentResult:
    bare = {"state": "running", "control": None, "branches": (), "fits": ()}
    return result.model_copy(update=bare)
