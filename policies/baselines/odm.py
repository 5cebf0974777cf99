"""``odm``: a bandit over sources that follows the highest loss (Albalak et al. 2023).

*Efficient Online Data Mixing For Language Model Pre-Training*, arXiv 2312.02406. A published
method to compare with, as it is: it knows neither benchmarks nor the cap on epochs.
"""

from __future__ import annotations

import math
from typing import Annotated

from pydantic import Field

from mixloop.policies.interface import Hold, Observation, OptionsModel, Proposal

from .source_losses import active_sources, consumption, source_losses


class OdmOptions(OptionsModel):
    """How an evaluation counts.

    ``updates``: how many of the method's updates one evaluation stands for (the authors update
    at every training step; at one per evaluation the mixture stays uniform for the first K ln K
    evaluations). ``smoothing``: keep this part of the estimated reward at an update and take the
    rest from the new one, in place of the sum.
    """

    updates: Annotated[int, Field(ge=1)] = 1
    smoothing: Annotated[float, Field(ge=0, lt=1)] | None = None


class Odm:
    """Exp3 with a source's own training loss as its reward.

    After update t with K sources: ``eps_t = min(1/K, sqrt(ln K / (K t)))``, reward estimates
    ``R_i += L_i / p_i`` with p_i the share that was consumed, and next
    ``p = (1 - K eps_t) softmax(eps_{t-1} R) + eps_t``. The updates are replayed over the run's
    evaluations at every decision. Where the run records no training loss per source, the loss of
    the benchmarks that a source is tagged with stands in (see ``source_losses``).
    """

    Options = OdmOptions

    def __init__(self, options: OdmOptions | None = None) -> None:
        self.options = options or OdmOptions()

    def decide(self, observation: Observation) -> Proposal | Hold:
        """The bandit's next distribution over the sources."""
        names = active_sources(observation)
        rewards, count = self._replayed(observation, names)
        if count == 0:
            return Hold("odm: no loss of any source is known yet", {"rule": "odm"})
        chosen = distribution(rewards, count)
        top = max(rewards, key=lambda name: rewards[name])
        reason = f"odm: {top} has the highest estimated reward after {count} updates"
        weights = dict.fromkeys(observation.sources, 0.0) | chosen
        evidence = {"rule": "odm", "updates": count, "rewards": rewards}
        return Proposal(weights, reason, evidence=evidence)

    def _replayed(self, observation: Observation, names: list[str]) -> tuple[dict[str, float], int]:
        """The reward estimates after all evaluations, and how many updates that was."""
        rewards, count = dict.fromkeys(names, 0.0), 0
        _, shares = consumption(observation, names)
        for losses, used in zip(source_losses(observation, names), shares, strict=True):
            if not losses or not used.any():
                continue
            count += self.options.updates
            for name, share in zip(names, map(float, used), strict=True):
                if name in losses and share > 0:  # an arm that wasn't pulled tells nothing
                    rewards[name] = self._updated(rewards[name], losses[name] / share)
        return rewards, count

    def _updated(self, estimate: float, reward: float) -> float:
        smoothing, updates = self.options.smoothing, self.options.updates
        if smoothing is None:
            return estimate + updates * reward
        kept = smoothing**updates
        return kept * estimate + (1 - kept) * reward


def distribution(rewards: dict[str, float], updates: int) -> dict[str, float]:
    """Exp3's distribution from the reward estimates after so many updates."""
    last, now = (exploration(len(rewards), max(1, t)) for t in (updates, updates + 1))
    most = max(rewards.values())
    powers = {name: math.exp(last * (reward - most)) for name, reward in rewards.items()}
    whole = math.fsum(powers.values())
    left = max(0.0, 1 - len(rewards) * now)
    return {name: left * power / whole + now for name, power in powers.items()}


def exploration(count: int, update: int) -> float:
    """``min(1/K, sqrt(ln K / (K t)))``: the least share of a source; none where there is one."""
    return min(1 / count, math.sqrt(math.log(count) / (count * update)))
