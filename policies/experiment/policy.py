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
   what isn't shown to be useless, and scarce sources kept for the decay.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mixloop.policies.evidence import objective_weights
from mixloop.policies.interface import (
    BITS_PER_BYTE,
    Experiment,
    ExperimentResult,
    Hold,
    Observation,
    Proposal,
    Reply,
)
from mixloop.policies.mixture import (
    Array,
    check_names,
    confine,
    first_mixture,
    in_force,
    total_variation,
)

from .asking import decay_begins, design, due, length
from .destination import Outlook, best_destination, divergence_step, keep_for_decay
from .effects import (
    Effects,
    PooledEffects,
    certainty,
    effects_of,
    needed_score,
    pool,
    told_by_repeats,
)
from .merge_vote import bend, merge_vote
from .options import ExperimentOptions

CLOSE = 0.02  # total variation that isn't worth an order
USELESS = 1.64  # standard deviations below the mixture's mean effect
KEPT = 0.1  # of its floor, that a useless source keeps: the next experiment may say otherwise
NOTHING_NEW = 0.02  # total variation by which the last experiment moved the aim

Facts = dict[str, Any]


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
        run = _Run(self.options, observation)
        idle = run.idle()
        if idle:
            return Hold(f"experiment: {idle}", {"rule": "experiment"})
        found = run.effects()
        asked = self._asked(run, found)
        if asked is not None:
            return asked
        if not found:
            why = "no experiment has ended, and none may be asked for"
            if observation.experiment_tokens > 0:
                why = "no experiment has ended and none is due"
            return Hold(f"experiment: {why}", {"rule": "experiment"}, "inconclusive")
        return self._followed(run, found)

    def _asked(self, run: _Run, found: list[Effects]) -> Experiment | None:
        options, observation = self.options, run.observation
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

    def _followed(self, run: _Run, found: list[Effects]) -> Proposal | Hold:
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
            return Hold(f"experiment: what {seen} call for is in force", facts)
        reason = f"experiment: {seen} say {_words(run, pooled)}"
        if np.abs(step - aim).sum() / 2 > CLOSE:
            reason += "; a part of the way for now"
        return Proposal(run.named(ahead[0]), reason, run.plan(ahead), facts)


def _words(run: _Run, pooled: PooledEffects) -> str:
    """The sources that help most and least, with what a share of theirs is worth."""
    mean = run.worth @ pooled.gain
    error = np.sqrt(run.worth**2 @ pooled.variance)
    order = [i for i in np.argsort(-mean) if pooled.tried[i] > 0]

    def say(index: int) -> str:
        return f"{run.names[index]} ({mean[index]:+.2g} ± {error[index]:.1g})"

    best = ", ".join(map(say, order[: min(3, len(order) // 2)]))
    worst = ", ".join(map(say, order[-min(3, len(order) // 2) :]))
    return f"more helps of {best}, less of {worst} (bits per byte per share)"


class _Run:
    """One decision: the observation as arrays over ``names``."""

    def __init__(self, options: ExperimentOptions, observation: Observation) -> None:
        self.options, self.observation = options, observation
        self.names = list(observation.sources)
        weights = in_force(observation)
        self.now = np.array([weights[name] for name in self.names])
        live = [
            options.use_standby or not source.standby or weights[name] > 0
            for name, source in observation.sources.items()
        ]
        self.live = np.array(live)
        self.left = max(0, observation.budget - observation.tokens)
        self.most = self._most()
        self.prior = self._prior()
        worth = objective_weights(observation)
        self.benchmarks = [name for name, part in worth.items() if part > 0]
        self.done = [e for e in observation.experiments if e.state == "done"]
        self.benchmarks = [b for b in self.benchmarks if not self.done or _has(self.done[-1], b)]
        parts = np.array([worth[name] for name in self.benchmarks])
        self.worth = parts / parts.sum() if parts.size else parts

    def idle(self) -> str:
        """Why there is nothing to do now, or nothing."""
        observation = self.observation
        running = [e.id for e in observation.experiments if not e.ended]
        if self.left <= 0 or (self.most > 0).sum() < 2:
            return "nothing is left to decide"
        if not self.benchmarks:
            return "no benchmark steers"
        if observation.phase == "warmup":
            return "the learning rate is warming up"
        if running:
            return f"{running[0]} is under way; the mixture stays"
        if observation.phase == "decay":
            return "in the decay the plan goes on"
        return ""

    def effects(self) -> list[Effects]:
        """What the experiments that are done say, oldest first."""
        found = []
        for result in self.done:
            if not all(_has(result, benchmark) for benchmark in self.benchmarks):
                continue
            metrics = {b: _metric(self.observation, result, b) for b in self.benchmarks}
            effects = effects_of(result, self.names, metrics)
            if effects is not None and np.isfinite(effects.gain).all():
                found.append(effects)
        return told_by_repeats(found)

    def learnt(self, found: list[Effects]) -> bool:
        """Whether nothing is to be learnt any more: the last experiment moved nothing."""
        if len(found) < 2:
            return False
        if certainty(found) < needed_score(self.options.significance):
            return certainty(found) < 0.5
        after, before = (
            self.aim(pool(part, self.options.blind, self.observation.budget))[0]
            for part in (found, found[:-1])
        )
        return bool(np.abs(after - before).sum() / 2 < NOTHING_NEW)

    def aim(self, pooled: PooledEffects) -> tuple[Array, Facts]:
        """The mixture (k,) for the rest of the budget, and what led there."""
        options, observation = self.options, self.observation
        mean, error = self.worth @ pooled.gain, np.sqrt(self.worth**2 @ pooled.variance)
        useless = (mean - self.now @ mean + USELESS * error < 0) & (pooled.tried > 0)
        least = self._least(np.where(useless, KEPT, 1.0))
        unit = observation.budget
        sources = observation.sources.values()
        outlook = Outlook(
            drawn=np.array([s.drawn / unit for s in sources]),
            then=self._drawn_at(pooled.at) / unit,
            unique=np.array([max(s.unique_tokens, 1) / unit for s in sources]),
            left=self.left / unit,
            least=least,
            most=np.maximum(self.most, least),
            worth=self.worth,
            returns=options.returns,
            caution=options.caution,
        )
        aim = best_destination(outlook, self._draws(pooled), self.now)
        told: Facts = {
            "effects": {
                name: [float(mean[i]), float(error[i])]
                for i, name in enumerate(self.names)
                if pooled.tried[i] > 0
            },
            "useless": [name for name, bad in zip(self.names, useless, strict=True) if bad],
        }
        curved = bend(self.done[-1], dict(zip(self.benchmarks, self.worth, strict=True)))
        vote = merge_vote(self.done, self.prior, self.names) if curved > 0 else None
        if vote is not None:
            voted = confine(vote, outlook.most, least)
            aim = curved * voted + (1 - curved) * aim
            told |= {"bend": curved, "merges": self.named(voted)}
        return aim, told

    def stretches(self, mean: Array) -> tuple[Array, Array]:
        """Mixtures up to the decay and in it, whose mean over what is left is ``mean``."""
        before = max(0, decay_begins(self.observation) - self.observation.tokens)
        decay = self.left - before
        late = keep_for_decay(mean, self.most, before, decay, self.options.keen)
        if before <= 0:
            return late, late
        early = np.maximum((mean * self.left - late * decay) / before, 0.0)
        return confine(early, np.minimum(1.0, self.most * self.left / before)), late

    def plan(self, ahead: tuple[Array, Array]) -> list[tuple[int, dict[str, float]]]:
        """The stretches as a proposal gives them."""
        early, late = ahead
        begins = decay_begins(self.observation)
        if np.abs(early - late).sum() / 2 < 1e-6 or begins <= self.observation.tokens:
            return [(self.observation.budget, self.named(early))]
        return [(begins, self.named(early)), (self.observation.budget, self.named(late))]

    def named(self, shares: Array) -> dict[str, float]:
        """A mixture by name, on the simplex."""
        total = math.fsum(map(float, shares))
        return {n: float(share) / total for n, share in zip(self.names, shares, strict=True)}

    def _draws(self, pooled: PooledEffects) -> Array:
        """Draws (d, m, k) from what the effects may be, in opposite pairs."""
        half = max(1, self.options.draws // 2)
        drawing = np.random.default_rng([self.observation.seed % 2**32, len(self.done)])
        noise = drawing.standard_normal((half, *pooled.gain.shape)) * np.sqrt(pooled.variance)
        return np.concatenate([pooled.gain + noise, pooled.gain - noise])

    def _least(self, kept: Array) -> Array:
        floors = self.options.floor * self.prior * kept
        floors = np.maximum(floors, np.where(self.live, self.observation.limits.floor, 0.0))
        return np.asarray(np.minimum(floors, self.most))

    def _most(self) -> Array:
        limits, sources = self.observation.limits, self.observation.sources.values()
        room = np.full(len(self.names), math.inf)
        if limits.max_epochs is not None:
            drawn = [max(s.drawn, s.epochs * s.unique_tokens) for s in sources]
            whole = [limits.max_epochs * s.unique_tokens for s in sources]
            room = np.maximum(0.0, np.subtract(whole, drawn)) / max(1, self.left)
        return np.where(self.live, np.minimum(room, min(1.0, limits.cap)), 0.0)

    def _prior(self) -> Array:
        """The option's, or the run's first mixture, over live sources."""
        start: Mapping[str, float] = self.options.prior or first_mixture(self.observation)
        prior = np.array([max(0.0, start.get(name, 0.0)) for name in self.names])
        if self.options.use_standby:
            prior = np.maximum(prior, 0.1 / len(self.names))
        prior = np.where(self.live, prior, 0.0)
        return np.asarray(prior / prior.sum() if prior.sum() > 0 else self.live / self.live.sum())

    def _drawn_at(self, tokens: int) -> Array:
        """Tokens drawn per source at the newest evaluation that is no later; else those of now."""
        for evaluation in reversed(self.observation.evaluations):
            if evaluation.tokens <= tokens and evaluation.drawn:
                return np.array([evaluation.drawn.get(name, 0.0) for name in self.names])
        return np.array([source.drawn for source in self.observation.sources.values()], dtype=float)


def _has(result: ExperimentResult, benchmark: str) -> bool:
    fit = result.fit("whole")
    if fit is not None:
        return benchmark in fit.slopes
    return result.control is not None and benchmark in result.control.benchmarks


def _metric(observation: Observation, result: ExperimentResult, benchmark: str) -> str:
    score = result.control.benchmarks.get(benchmark) if result.control is not None else None
    bits = score is None or BITS_PER_BYTE in score.metrics
    return BITS_PER_BYTE if bits else observation.metric_for(benchmark)
