"""Experiments for policies that plan by something else too: the next one, and where they point."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from mixloop.policies.interface import Experiment, Observation

from .asking import design, due, length
from .branched_run import BranchedRun
from .effects import Effects, certainty, needed_score, pool
from .options import ExperimentOptions


def experiment_due(run: BranchedRun, found: list[Effects]) -> Experiment | None:
    """The experiment that is due, or None where none is, or nothing is to be learnt from it."""
    options, observation = run.options, run.observation
    coming = due(options, observation)
    if coming is None or run.learnt(found):
        return None
    branches = int(((run.prior > 0) & (run.most > 0)).sum())
    tokens = length(options, observation, branches, coming)
    if tokens < 1 or branches < 2:
        return None
    reason = (
        f"experiment {len(found) + 1}: {branches} branches of {tokens:,} tokens, to see what "
        f"each source does for the benchmarks now; {coming - 1} more are planned"
    )
    prior, most = run.named(run.prior), dict(zip(run.names, map(float, run.most), strict=True))
    return design(options, observation, tokens, prior, most, reason)


def ask_for_branches(
    observation: Observation, options: ExperimentOptions | None = None
) -> Experiment | None:
    """The experiment that policy ``experiment`` would ask for now, if any."""
    run = BranchedRun(options or ExperimentOptions(), observation)
    return None if run.idle() else experiment_due(run, run.effects())


def branches_made(observation: Observation) -> bool:
    """Whether any experiment of this run has been made."""
    return any(experiment.state == "done" for experiment in observation.experiments)


@dataclass(frozen=True)
class BranchAim:
    """Where the experiments so far point, and what they make of another mixture.

    Attributes:
        weights: the mixture for the rest of the budget.
        gain: by source, what a share of it is worth (the objective's bits per byte, first order).
        score: normal score that sources differ at all.
    """

    weights: dict[str, float]
    gain: dict[str, float]
    score: float

    def confirms(self, weights: Mapping[str, float], start: Mapping[str, float]) -> float:
        """From 0 to 1: how much of what this aim promises over ``start`` the mixture does too.

        One that goes further than the branches do is confirmed less: they see no corner.
        """

        def worth(mixture: Mapping[str, float]) -> float:
            return sum(g * (mixture.get(n, 0.0) - start.get(n, 0.0)) for n, g in self.gain.items())

        promised = worth(self.weights)
        ratio = worth(weights) / promised if promised > 0 else 0.0
        return max(0.0, ratio) if ratio <= 1 else ratio**-2


def branch_aim(
    observation: Observation, options: ExperimentOptions | None = None
) -> BranchAim | None:
    """Where the experiments point; None where they can't tell the sources apart."""
    run = BranchedRun(options or ExperimentOptions(), observation)
    if run.left <= 0 or (run.most > 0).sum() < 2 or not run.benchmarks:
        return None
    found = run.effects()
    score = certainty(found)
    if not found or score < needed_score(run.options.significance):
        return None
    pooled = pool(found, run.options.blind, observation.budget)
    aim, _ = run.aim(pooled)
    mean = run.worth @ pooled.gain
    return BranchAim(run.named(aim), dict(zip(run.names, map(float, mean), strict=True)), score)
