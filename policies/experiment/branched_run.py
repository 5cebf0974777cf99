"""One decision's observation as arrays, and where its experiments point."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mixloop.policies.evidence import objective_weights
from mixloop.policies.interface import BITS_PER_BYTE, ExperimentResult, Observation
from mixloop.policies.mixture import Array, confine, first_mixture, in_force

from .asking import decay_begins
from .destination import Outlook, best_destination, keep_for_decay
from .effects import (
    TINY,
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

USELESS = 1.64  # standard deviations below the mixture's mean effect
KEPT = 0.1  # of its floor, that a useless source keeps: the next experiment may say otherwise
SHORT = 0.99  # of the epochs' limit: what is drawn until an order is in force isn't planned
LITTLE = 0.1  # of an equal share: no source counts as begun with less
NOTHING_NEW = 0.02  # total variation by which the last experiment moved the aim

Facts = dict[str, Any]
Flags = NDArray[np.bool_]


class BranchedRun:
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
        useless = (mean - self.prior @ mean + USELESS * error < 0) & (pooled.tried > 0)
        least = self._least(np.where(useless, KEPT, 1.0))
        unit = observation.budget
        sources = observation.sources.values()
        # seen from the experiment: time alone is no reason to go further
        outlook = Outlook(
            drawn=self._drawn_at(pooled.at) / unit,
            unique=np.array([max(s.unique_tokens, 1) / unit for s in sources]),
            left=(unit - pooled.at) / unit,
            least=least,
            most=np.maximum(self.most, least),
            begun=np.maximum(self.prior, LITTLE / len(self.names)),
            worth=self.worth,
            returns=options.returns,
            substitution=options.substitution,
            caution=options.caution,
        )
        aim = best_destination(outlook, self._draws(pooled), self.prior)
        tried = {name: i for i, name in enumerate(self.names) if pooled.tried[i] > 0}
        told: Facts = {
            "effects": {name: float(mean[i]) for name, i in tried.items()},
            "errors": {name: float(error[i]) for name, i in tried.items()},
            "useless": ", ".join(n for n, bad in zip(self.names, useless, strict=True) if bad),
        }
        curved = bend(self.done[-1], dict(zip(self.benchmarks, self.worth, strict=True)))
        vote = merge_vote(self.done, self.prior, self.names) if curved > 0 else None
        if vote is not None:
            voted = confine(vote, outlook.most, least)
            aim = curved * voted + (1 - curved) * aim
            told |= {"bend": curved, "merges": self.named(voted)}
        tagged = self._by_tags(aim, ~useless)
        part = self._borne_out(pooled) * options.tags
        if tagged is not None and part > 0:
            tagged = confine(tagged, outlook.most, least)
            aim = (1 - part) * aim + part * tagged
            told |= {"tags": part, "tagged": self.named(tagged)}
        return aim, told

    def _by_tags(self, aim: Array, useful: Flags) -> Array | None:
        """Useful sources tagged with a benchmark's name, by the prior and what that is worth.

        What pays off late no branch shows: there it is left to what the user says of the sources.
        The part of benchmarks without such a source is the aim's.
        """
        served, credit = 0.0, np.zeros(len(self.names))
        for benchmark, part in zip(self.benchmarks, self.worth, strict=True):
            serving = self._tagged(benchmark) & useful & (self.most > 0)
            served += part if serving.any() else 0.0
            # one that serves two benchmarks has no more of it: that starved whatever serves one
            credit = np.maximum(credit, np.where(serving, part * self.prior, 0.0))
        if not credit.any():
            return None
        return np.asarray(served * credit / credit.sum() + (1 - served) * aim)

    def _borne_out(self, pooled: PooledEffects) -> float:
        """How far (0 to 1) experiments bear the tags out, over all benchmarks together.

        Tagged sources against the others, each on its benchmark, by how far apart sources are: 0
        where tags on sources taken at random would do as well.
        """
        tried, ahead, chance = pooled.tried > 0, 0.0, 0.0
        for benchmark, part, gain in zip(self.benchmarks, self.worth, pooled.gain, strict=True):
            serving = self._tagged(benchmark)
            those, others = gain[tried & serving], gain[tried & ~serving]
            if those.size and others.size:
                ahead += part * float(those.mean() - others.mean())
                spread = float(np.var(gain[tried], ddof=1))
                chance += part**2 * spread * (1 / those.size + 1 / others.size)
        needed = needed_score(self.options.significance) * math.sqrt(chance)
        # of the score's square, what chance doesn't give
        return max(0.0, 1 - (needed / max(ahead, TINY)) ** 2) if ahead > needed else 0.0

    def _tagged(self, benchmark: str) -> Flags:
        return np.array([benchmark in s.tags for s in self.observation.sources.values()])

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
            whole = [SHORT * limits.max_epochs * s.unique_tokens for s in sources]
            room = np.maximum(0.0, np.subtract(whole, drawn)) / max(1, self.left)
        return np.where(self.live, np.minimum(room, min(1.0, limits.cap)), 0.0)

    def _prior(self) -> Array:
        """The option's, or the run's first mixture, over live sources."""
        start: Mapping[str, float] = self.options.prior or first_mixture(self.observation)
        prior = np.array([max(0.0, start.get(name, 0.0)) for name in self.names])
        if self.options.use_standby:
            prior = np.maximum(prior, LITTLE / len(self.names))
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
