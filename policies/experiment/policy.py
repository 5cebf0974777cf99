"""``experiment``: moves the mixture by what short branches from the run's checkpoints show.

At a few moments of the run and once before the decay it asks for an experiment: one expert per
source, whose linear merges stand for every mixture (MergeMix 2601.17858 and DeMix 2602.00747 do it
once, before a run), or, where merges can't be had, tilts towards each source. What comes back is

1. read as effects by benchmark and source with their noise (``effects``): the halves of the
   experts' data tell the noise of their few windows, the items theirs;
2. tested: unless the halves agree beyond chance that sources differ, nothing moves;
3. pooled over time and shrunk by its noise;
4. turned into a mixture for the rest of the budget inside the ledger's caps (``destination``),
   beside what the merges' own optimum says where merges bend (``merge_vote``), with a floor under
   what isn't shown to be useless, and scarce sources kept for the decay; a part of it is left to
   the sources that the user tagged with a benchmark's name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from mixloop.policies.interface import Hold, Observation, Proposal, Reply
from mixloop.policies.mixture import check_names, confine, total_variation

from .branch_aim import experiment_due
from .branched_run import BranchedRun, Facts
from .destination import divergence_step
from .effects import Effects, PooledEffects, certainty, needed_score, pool
from .options import ExperimentOptions

CLOSE = 0.02  # total variation that isn't worth an order


class ExperimentPolicy:
    """Asks for experiments and follows what they show; see the module."""

    Options = ExperimentOptions

    def __init__(self, options: ExperimentOptions | None = None) -> None:
        self.options = options or ExperimentOptions()

    def check(self, sources: Mapping[str, Sequence[str]], benchmarks: Sequence[str]) -> None:
        """Raise ``PolicyError`` for a source of the prior that the run doesn't have."""
        check_names("source", self.options.prior or {}, sources, "policy.with.prior")

    def decide(self, observation: Observation) -> Reply:
        """An experiment when one is due, a step to where the effects point, or a hold."""
        run = BranchedRun(self.options, observation)
        idle = run.idle()
        if idle:
            return Hold(f"experiment: {idle}", {"rule": "experiment"})
        found = run.effects()
        asked = experiment_due(run, found)
        if asked is not None:
            return asked
        if not found:
            why = "no experiment has ended, and none may be asked for"
            if observation.experiment_tokens > 0:
                why = "no experiment has ended and none is due"
            return Hold(f"experiment: {why}", {"rule": "experiment"}, "inconclusive")
        return self._followed(run, found)

    def _followed(self, run: BranchedRun, found: list[Effects]) -> Proposal | Hold:
        score, needed = certainty(found), needed_score(self.options.significance)
        facts: Facts = {"rule": "experiment", "experiments": [e.id for e in run.done]}
        facts |= {"certainty": score, "needed": needed}
        seen = f"{len(found)} experiment{'s' if len(found) > 1 else ''}"
        if score < needed:
            why = f"{seen} can't tell the sources apart (score {score:.2f}, {needed:.2f} needed)"
            return Hold(f"experiment: {why}; the mixture stays", facts, "inconclusive")
        pooled = pool(found, self.options.blind, run.observation.budget)
        aim, told = run.aim(pooled)
        facts |= told | {"aim": run.named(aim)}
        step = divergence_step(run.now, aim, self.options.step)
        step = confine(step, run.most)
        ahead = run.stretches(step)
        if total_variation(run.named(ahead[0]), run.named(run.now)) < CLOSE:
            verb = "calls" if len(found) == 1 else "call"
            return Hold(f"experiment: what {seen} {verb} for is in force", facts)
        reason = f"experiment: by {seen}, {_words(run, pooled)}"
        if "tags" in told:
            reason += f"; {told['tags']:.0%} of the mixture goes by tags"
        if np.abs(step - aim).sum() / 2 > CLOSE:
            reason += "; a part of the way for now"
        return Proposal(run.named(ahead[0]), reason, run.plan(ahead), facts)


def _words(run: BranchedRun, pooled: PooledEffects) -> str:
    """The sources that help most and least, with what a share of theirs is worth."""
    mean = run.worth @ pooled.gain
    error = np.sqrt(run.worth**2 @ pooled.variance)
    order = [i for i in np.argsort(-mean) if pooled.tried[i] > 0]

    def say(index: int) -> str:
        return f"{run.names[index]} ({mean[index]:+.2g} ± {error[index]:.1g})"

    best = ", ".join(map(say, order[: min(3, len(order) // 2)]))
    worst = ", ".join(map(say, order[-min(3, len(order) // 2) :]))
    return f"more of {best} helps most, of {worst} least (bits per byte per share)"
