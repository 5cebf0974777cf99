"""``ado``: tokens go where a source's own loss still falls fastest (Jiang et al. 2024).

*Adaptive Data Optimization: Dynamic Sample Selection with Scaling Laws*, arXiv 2410.11820. A
published method to compare with, as it is: it knows neither benchmarks nor the cap on epochs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from .mixtures import in_force
from .observation import Observation
from .protocol import Hold, OptionsModel, Proposal
from .source_losses import arms, consumed, source_losses

if TYPE_CHECKING:
    from .ado_fit import Array


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
        from . import ado_fit

        names = arms(observation)
        spent, losses, shares = _series(observation, names)
        law = ado_fit.fit_laws(spent, losses, least=self.options.warmup)
        if not law.known.any():
            reason = f"ado: no source has a loss at {self.options.warmup} evaluations yet"
            return Hold(reason, {"rule": "ado"}, verdict="inconclusive")
        prior = self._prior(observation, names)
        chosen = ado_fit.mixture(law, spent, shares, prior, self.options)
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
