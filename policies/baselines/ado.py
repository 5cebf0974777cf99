"""``ado``: tokens go where a source's own loss still falls fastest (Jiang et al. 2024).

*Adaptive Data Optimization: Dynamic Sample Selection with Scaling Laws*, arXiv 2410.11820. A
published method to compare with, as it is: it knows neither benchmarks nor the cap on epochs.


The scaling laws of ``ado`` and what follows from them (Jiang et al. 2024, arXiv 2410.11820).

Arrays are (evaluations, sources) unless said otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from mixloop.policies.interface import Hold, Observation, OptionsModel, Proposal
from mixloop.policies.mixture import in_force

from .source_losses import arms, consumed, source_losses


class AdoOptions(OptionsModel):
    """``prior``: mu, the mixture that the method starts from and weighs sources by: the run's own
    first one (``start``) or shares by unique tokens (``size``). ``credit``: the power s of the
    share a source had lately. ``smoothing``: what is kept of the running mean of past mixtures.
    ``floor``: least share of a source. ``warmup``: evaluations before the first fit."""

    prior: Literal["start", "size"] = "start"
    credit: Annotated[float, Field(ge=0, le=1)] = 0.5
    smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.9
    floor: Annotated[float, Field(ge=0, lt=1)] = 0.01
    warmup: Annotated[int, Field(ge=3)] = 4


class Ado:
    """A scaling law per source, and shares by the slope of each.

    ``L_k(n) = E_k + B_k n^-alpha_k`` is fitted to the source's own loss over its own tokens n;
    ``rho_k`` is proportional to ``mu_k h_k^s alpha_k (L_k - E_k) / n_k``, h_k an average of the
    shares it had lately, no rho below the floor; the mixture is ``0.1 rho + 0.9`` times the
    running mean of all rho so far. All of it is computed anew at every decision, with today's fit
    for past evaluations too (the authors refit every 1,000 steps and keep what they had). The fit
    is by least squares of the relative error, for each exponent on a grid. Where the run records
    no training loss per source, the loss of the benchmarks that a source is tagged with stands in
    (see ``source_losses``).
    """

    Options = AdoOptions

    def __init__(self, options: AdoOptions | None = None) -> None:
        self.options = options or AdoOptions()

    def decide(self, observation: Observation) -> Proposal | Hold:
        """The mixture by the slopes of the sources' scaling laws."""

        names = arms(observation)
        spent, losses, shares = _series(observation, names)
        law = fit_laws(spent, losses, least=self.options.warmup)
        if not law.known.any():
            reason = f"ado: no source has a loss at {self.options.warmup} evaluations yet"
            return Hold(reason, {"rule": "ado"}, verdict="inconclusive")
        prior = self._prior(observation, names)
        chosen = mixture(law, spent, shares, prior, self.options)
        found = dict(zip(names, map(float, chosen), strict=True))
        speeds = dict(zip(names, map(float, law.slopes(spent[-1])), strict=True))
        top = max(speeds, key=lambda name: speeds[name])
        reason = f"ado: the loss of {top} falls fastest per token"
        evidence = {"rule": "ado", "slopes": speeds, "exponents": law.alpha}
        weights = dict.fromkeys(observation.sources, 0.0) | found
        return Proposal(weights, reason, evidence=evidence)

    def _prior(self, observation: Observation, names: list[str]) -> Array:
        import numpy as np

        if self.options.prior == "size":
            found = [float(observation.sources[name].unique_tokens) for name in names]
        else:
            first = next((e.weights for e in observation.evaluations if e.weights), {})
            begun = first if any(first.get(n, 0) > 0 for n in names) else in_force(observation)
            found = [begun.get(name, 0.0) for name in names]
        prior = np.array(found)
        # a source that came later starts from the least of the others
        prior[prior <= 0] = prior[prior > 0].min() if (prior > 0).any() else 1.0
        return np.asarray(prior / prior.sum())


def _series(observation: Observation, names: list[str]) -> tuple[Array, Array, Array]:
    """Tokens drawn so far, losses and shares consumed, each (evaluations, sources).

    NaN for an unknown loss. Where no ledger was recorded, the mixtures in force make one.
    """
    import numpy as np

    count = len(observation.evaluations)
    losses = np.full((max(count, 1), len(names)), np.nan)
    spent, shares = np.zeros_like(losses), np.zeros_like(losses)
    total, before = np.zeros(len(names)), 0
    for index, found in enumerate(source_losses(observation, names)):
        evaluation = observation.evaluations[index]
        losses[index] = [found.get(name, np.nan) for name in names]
        used = consumed(observation, index, names)
        shares[index] = [used.get(name, 0.0) for name in names]
        total = total + shares[index] * max(0, evaluation.tokens - before)
        before = evaluation.tokens
        drawn = evaluation.drawn
        spent[index] = [drawn.get(name, 0.0) for name in names] if drawn else total
    return spent, losses, shares


Array = NDArray[np.float64]

EXPONENTS = np.linspace(0.05, 0.8, 16)
"""The authors hold alpha between 0.05 and 0.8."""
RECENT = 0.9  # what the average of a source's recent shares keeps


@dataclass(frozen=True)
class Laws:
    """``L = floor + scale n^-alpha`` of each source, shape (k,); ``known``: fitted at all."""

    floor: Array
    scale: Array
    alpha: Array
    known: NDArray[np.bool_]

    def slopes(self, spent: Array) -> Array:
        """``alpha (L - floor) / n``, how fast the loss falls per token at n tokens, (…, k).

        A source whose law isn't known gets the mean of the others.
        """
        tokens = np.maximum(spent, 1.0)
        found = self.alpha * self.scale * tokens ** (-self.alpha - 1)
        others = (found * self.known).sum(axis=-1, keepdims=True) / max(1, self.known.sum())
        return np.where(self.known, found, others)


def fit_laws(spent: Array, losses: Array, least: int) -> Laws:
    """The law of every source, by least squares of the relative error.

    For each exponent the law is linear in floor and scale; the best exponent of the grid wins.
    Neither may be negative: a loss that rises has scale 0. A source with fewer than ``least``
    losses isn't fitted.
    """
    usable = np.isfinite(losses) & (losses > 0) & (spent > 0)
    values = np.where(usable, losses, 1.0)
    tokens = np.where(usable, spent, 1.0)
    weight = np.where(usable, 1 / values**2, 0.0)
    # powers relative to the newest count: else they underflow beside the floor
    newest = tokens.max(axis=0)
    powers = (tokens / newest)[None] ** -EXPONENTS[:, None, None]  # (exponents, evaluations, k)
    floor, scale = _two_terms(powers, values, weight)
    error = (weight * (floor[:, None] + scale[:, None] * powers - values) ** 2).sum(axis=1)
    best = error.argmin(axis=0)
    pick = (best, np.arange(losses.shape[1]))
    alpha = EXPONENTS[best]
    return Laws(floor[pick], scale[pick] * newest**alpha, alpha, usable.sum(axis=0) >= least)


def _two_terms(powers: Array, values: Array, weight: Array) -> tuple[Array, Array]:
    """Floor and scale, (exponents, k), not negative, of weighted least squares."""
    total = np.maximum(weight.sum(axis=0), 1e-300)
    mean_power = (weight * powers).sum(axis=1) / total
    mean_value = (weight * values).sum(axis=0) / total
    off = powers - mean_power[:, None]
    spread = (weight * off**2).sum(axis=1)
    scale = (weight * off * (values - mean_value)).sum(axis=1) / np.maximum(spread, 1e-300)
    scale = np.where(spread > 1e-12 * total, np.maximum(scale, 0.0), 0.0)
    floor = mean_value - scale * mean_power
    alone = (weight * powers * values).sum(axis=1) / np.maximum(
        (weight * powers**2).sum(axis=1), 1e-300
    )
    return np.maximum(floor, 0.0), np.where(floor < 0, alone, scale)


def mixture(law: Laws, spent: Array, shares: Array, prior: Array, options: AdoOptions) -> Array:
    """The mixture (k,) after all evaluations: the newest preference into the running mean."""
    recent, mean = prior, prior
    chosen = prior
    speeds = law.slopes(spent)
    least = min(options.floor, 0.5 / len(prior))
    for step, (speed, used) in enumerate(zip(speeds, shares, strict=True), start=1):
        recent = RECENT * recent + (1 - RECENT) * used if used.any() else recent
        preferred = prior * recent**options.credit * speed
        if not preferred.sum() > 0:
            continue
        preferred = np.maximum(preferred / preferred.sum(), least)
        preferred = preferred / preferred.sum()
        chosen = options.smoothing * mean + (1 - options.smoothing) * preferred
        mean = mean + (preferred - mean) / (step + 1)
    return np.asarray(chosen / chosen.sum())
