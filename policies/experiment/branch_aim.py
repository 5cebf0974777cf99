"""Experiments for policies that plan by something else too: the next one, and where they point."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from mixloop.policies.interface import Experiment, Observation
from mixloop.policies.mixture import first_mixture

from .asking import design, due, length
from .branched_run import BranchedRun, Facts
from .effects import Effects, certainty, needed_score, pool
from .options import ExperimentOptions

FOLLOWED = 0.5  # of the way, on one kind of evidence alone
TOO_LITTLE, ENOUGH = 0.1, 0.35  # told of how sources differ: hardly more than noise; most of it


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


@dataclass(frozen=True)
class BranchAim:
    """Where the experiments so far point, and what they make of another mixture.

    Attributes:
        weights: the mixture for the rest of the budget.
        gain: by source, what a share of it is worth (the objective's bits per byte, first order).
        score: normal score that sources differ at all.
        experiments: that this rests on.
    """

    weights: dict[str, float]
    gain: dict[str, float]
    score: float
    experiments: int

    def confirms(self, weights: Mapping[str, float], start: Mapping[str, float]) -> float:
        """From 0 to 1: how much of what this aim promises over ``start`` the mixture does too.

        One that goes further than the branches do is confirmed less: they see no corner.
        """

        def worth(mixture: Mapping[str, float]) -> float:
            return sum(g * (mixture.get(n, 0.0) - start.get(n, 0.0)) for n, g in self.gain.items())

        promised = worth(self.weights)
        ratio = worth(weights) / promised if promised > 0 else 0.0
        return max(0.0, ratio) if ratio <= 1 else ratio**-2


@dataclass(frozen=True)
class BranchGuidance:
    """What branches say to a policy that plans by the run's scores.

    Attributes:
        start: the run's first mixture.
        made: whether any experiment is done; ``coming``: whether one is under way or may be asked
            for, so that the run need not be moved to see what its sources do.
        aim: where they point; None while they can't tell the sources apart.
    """

    start: Mapping[str, float]
    made: bool = False
    coming: bool = False
    aim: BranchAim | None = None

    @property
    def centre(self) -> Mapping[str, float]:
        """What is returned to where the policy's own evidence is weak.

        Each experiment is followed half of the way that is left to where all of them point: what a
        slope promises is seen by the next one, made where it led, before the rest is gone.
        """
        if self.aim is None:
            return self.start
        gone = 1 - FOLLOWED**self.aim.experiments
        return {
            n: gone * w + (1 - gone) * self.start.get(n, 0.0) for n, w in self.aim.weights.items()
        }

    def part(self, plan: Mapping[str, float], told: float = FOLLOWED) -> float:
        """How much of the way from the centre to a policy's own plan may be gone.

        Where no branches were made, the more the more of how sources differ the run's scores have
        ``told``: a plan's corner is as far away for a small difference as for a large one. Nothing
        while branches can't tell sources apart; else, as far as they confirm the plan, half, or
        ``told`` if that is more.
        """
        if self.aim is None:
            part = (told - TOO_LITTLE) / (ENOUGH - TOO_LITTLE)
            return 0.0 if self.made else min(1.0, max(0.0, part))
        return max(FOLLOWED, told) * self.aim.confirms(plan, self.start)

    def facts(self, plan: Mapping[str, float]) -> Facts:
        """Evidence for a decision on a plan."""
        if self.aim is None:
            return {}
        confirmed = self.aim.confirms(plan, self.start)
        return {"confirmed": confirmed, "branches": self.aim.score}


def branch_guidance(
    observation: Observation, wanted: bool, options: ExperimentOptions | None = None
) -> Experiment | BranchGuidance:
    """The experiment that policy ``experiment`` would ask for now; else what they said so far.

    Args:
        observation: the run.
        wanted: whether the policy goes by branches at all.
        options: of ``experiment``.
    """
    start = first_mixture(observation)
    if not wanted:
        return BranchGuidance(start)
    run = BranchedRun(options or ExperimentOptions(), observation)
    if run.left <= 0 or (run.most > 0).sum() < 2 or not run.benchmarks:
        return BranchGuidance(start, bool(run.done))
    found = run.effects()
    asked = None if run.idle() else experiment_due(run, found)
    if asked is not None:
        return asked
    coming = observation.experiment_tokens > 0 or any(not e.ended for e in observation.experiments)
    return BranchGuidance(start, bool(run.done), coming, _aim(run, found))


def _aim(run: BranchedRun, found: list[Effects]) -> BranchAim | None:
    score = certainty(found)
    if not found or score < needed_score(run.options.significance):
        return None
    pooled = pool(found, run.options.blind, run.observation.budget)
    aim, _ = run.aim(pooled)
    mean = run.worth @ pooled.gain
    gain = dict(zip(run.names, map(float, mean), strict=True))
    return BranchAim(run.named(aim), gain, score, len(found))
