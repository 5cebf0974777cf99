"""``ado``: tokens go where a source's own loss still falls fastest (Jiang et al. 2024).

*Adaptive Data Optimization: Dynamic Sample Selection with Scaling Laws*, arXiv 2410.11820. A
published method to compare with, as it is: it knows neither benchmarks nor the cap on epochs.
Arrays are (evaluations, sources) unless said otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from mixloop.policies.interface import Hold, Observation, OptionsModel, Proposal
from mixloop.policies.mixture import Array, first_mixture

from .source_losses import active_sources, consumption, source_losses

EXPONENTS = np.linspace(0.05, 0.8, 16)
"""The authors hold alpha between 0.05 and 0.8."""
RECENT = 0.9  # what the average of a source's recent shares keeps


class AdoOptions(OptionsModel):
    """What the paper leaves open, at its authors' values.

    ``prior``: mu, the mixture that the method starts from and weighs sources by: the run's own
    first one (``start``) or shares by unique tokens (``size``). ``credit``: the power s of the
    share a source had lately. ``smoothing``: what is kept of the running mean of past mixtures.
    ``floor``: least share of a source. ``warmup``: evaluations before the first fit.
    """

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
        names = active_sources(observation)
        by_name = source_losses(observation, names)
        losses = np.array([[entry.get(name, np.nan) for name in names] for entry in by_name])
        spent, shares = consumption(observation, names)
        law = fit_laws(spent, losses.reshape(spent.shape), least=self.options.warmup)
        if not law.fitted.any():
            reason = f"ado: no source has a loss at {self.options.warmup} evaluations yet"
            return Hold(reason, {"rule": "ado"}, verdict="inconclusive")
        chosen = mixture(law, spent, shares, self._prior(observation, names), self.options)
        slopes = dict(zip(names, map(float, law.slopes(spent[-1])), strict=True))
        top = max(slopes, key=lambda name: slopes[name])
        reason = f"ado: the loss of {top} falls fastest per token"
        evidence = {"rule": "ado", "slopes": slopes, "exponents": law.alpha}
        weights = dict.fromkeys(observation.sources, 0.0)
        weights |= zip(names, map(float, chosen), strict=True)
        return Proposal(weights, reason, evidence=evidence)

    def _prior(self, observation: Observation, names: list[str]) -> Array:
        if self.options.prior == "size":
            amounts = [float(observation.sources[name].unique_tokens) for name in names]
        else:
            begun = first_mixture(observation)
            amounts = [begun.get(name, 0.0) for name in names]
        prior = np.array(amounts)
        # a source that came later starts from the least of the others
        prior[prior <= 0] = prior[prior > 0].min() if (prior > 0).any() else 1.0
        return np.asarray(prior / prior.sum())


@dataclass(frozen=True)
class Laws:
    """``L = floor + scale n^-alpha`` of each source, shape (k,); ``fitted``: which are."""

    floor: Array
    scale: Array
    alpha: Array
    fitted: NDArray[np.bool_]

    def slopes(self, spent: Array) -> Array:
        """``alpha (L - floor) / n``, how fast the loss falls per token at n tokens, (…, k).

        A source whose law isn't known gets the mean of the others.
        """
        tokens = np.maximum(spent, 1.0)
        slopes = self.alpha * self.scale * tokens ** (-self.alpha - 1)
        others = (slopes * self.fitted).sum(axis=-1, keepdims=True) / max(1, self.fitted.sum())
        return np.where(self.fitted, slopes, others)


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
    newest = tokens.max(axis=0, initial=1.0)
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
    slopes = law.slopes(spent)
    least = min(options.floor, 0.5 / len(prior))
    for step, (slope, used) in enumerate(zip(slopes, shares, strict=True), start=1):
        recent = RECENT * recent + (1 - RECENT) * used if used.any() else recent
        preferred = prior * recent**options.credit * slope
        if not preferred.sum() > 0:
            continue
        preferred = np.maximum(preferred / preferred.sum(), least)
        preferred = preferred / preferred.sum()
        chosen = options.smoothing * mean + (1 - options.smoothing) * preferred
        mean = mean + (preferred - mean) / (step + 1)
    return np.asarray(chosen / chosen.sum())
