"""The mixture for the rest of the budget that the effects call for, inside the ledger's caps.

Each benchmark's loss is taken to fall as a power of the data that serves it (exponent ``returns``),
with each source serving it in proportion to its effect above the least one: what is already served
well gains less from more. Sources replace each other with some loss: a source's own data counts by
the power ``substitution``, as in a CES production function (Arrow, Chenery, Minhas and Solow 1961);
BiMix (2405.14908) finds a power law of each domain's share. Losses at the end are averaged over
draws of the effects, so that what can't be told apart is hedged. To first order, at the mixture
that the run began with, this is the effects themselves.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mixloop.policies.mixture import Array, confine, effective, effective_slope, minimise

SCALE = 100.0
LEAST = 0.02  # of the best source's service, that the least one is taken to give


@dataclass(frozen=True)
class Outlook:
    """What lies ahead, over sources (k); amounts of data in budgets.

    Attributes:
        drawn: up to the newest experiment.
        unique: of each source.
        left: of the budget then.
        least, most: shares allowed for the rest of it.
        begun: shares that the run began with.
        worth: (m,) each benchmark's part in the objective.
        returns, substitution: see the module.
        caution: standard deviations of the gain over staying, that are taken off.
    """

    drawn: Array
    unique: Array
    left: float
    least: Array
    most: Array
    begun: Array
    worth: Array
    returns: float
    substitution: float
    caution: float

    def amounts(self, drawn: Array) -> tuple[Array, Array]:
        """What data (k,) of each source counts, and its slope: 1 at the end of a run as begun."""
        power = self.substitution
        usual = np.maximum(effective(self.drawn + self.left * self.begun, self.unique), 1e-6)
        parts = np.maximum(effective(drawn, self.unique), 1e-9) / usual
        slope = parts ** (power - 1) * effective_slope(drawn, self.unique)
        return usual * parts**power / power, slope


def best_destination(outlook: Outlook, draws: Array, start: Array) -> Array:
    """The mixture (k,) with the least mean loss at the end over draws (d, m, k) of the effects.

    Gains and their spread are counted from the mixture ``start`` (k,).
    """
    least = draws.min(axis=2, keepdims=True)
    span = draws.max(axis=2, keepdims=True) - least
    serves = draws - least + LEAST * np.maximum(span, 1e-12)
    before = serves @ np.maximum(outlook.amounts(outlook.drawn)[0], 1e-3)
    power = outlook.returns
    # the loss whose slope at the experiment is the effect
    size = outlook.worth * before ** (power + 1)
    size = size / np.maximum((outlook.worth * before).mean(axis=0).sum(), 1e-300)

    def losses(w: Array) -> tuple[Array, Array]:
        """By draw, (d,), and their slopes (d, k)."""
        amounts, grown = outlook.amounts(outlook.drawn + outlook.left * np.clip(w, 0, 1))
        served = serves @ amounts
        slopes = -np.einsum("dm,dmk->dk", size * served ** (-power - 1), serves)
        slopes *= grown * outlook.left
        return (size * served**-power).sum(axis=1) / power, slopes

    stays = losses(start)[0]

    def cost(w: Array) -> tuple[float, Array]:
        values, slopes = losses(w)
        gains = stays - values
        spread = max(float(gains.std()), 1e-12)
        away = (gains - gains.mean()) / (len(gains) * spread)
        value = float(outlook.caution * spread - gains.mean())
        slope = slopes.mean(axis=0) - outlook.caution * (away @ slopes)
        return SCALE * value, SCALE * slope

    sums = {"type": "eq", "fun": lambda w: w.sum() - 1, "jac": np.ones_like}
    begin = confine(start, outlook.most, outlook.least)
    found = minimise(cost, begin, (outlook.least, outlook.most), [sums], 100, 1e-7)
    best = confine(np.clip(found, outlook.least, outlook.most), outlook.most, outlook.least)
    return best if cost(best)[0] <= cost(begin)[0] else begin


def divergence_step(now: Array, aim: Array, most: float) -> Array:
    """The mixture on the geometric way from ``now`` to ``aim`` whose divergence is ``most`` nats.

    ``aim`` itself where that is no further. What has no share now begins with a hundredth.
    """
    base = 0.99 * now + 0.01 * aim

    def at(part: float) -> Array:
        logs = (1 - part) * np.log(np.maximum(base, 1e-12)) + part * np.log(np.maximum(aim, 1e-12))
        shares = np.exp(logs - logs.max())
        return np.asarray(shares / shares.sum())

    def far(shares: Array) -> float:
        ratio = np.maximum(shares, 1e-12) / np.maximum(base, 1e-12)
        return float((shares * np.log(ratio)).sum())

    if far(aim) <= most:
        return aim
    low, high = 0.0, 1.0
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (middle, high) if far(at(middle)) < most else (low, middle)
    return at(low)


def keep_for_decay(aim: Array, most: Array, before: float, decay: float, keen: float) -> Array:
    """The decay's mixture (k,): what is scarce is kept for it, ``keen`` times its mean share.

    Args:
        aim: mean mixture of the rest of the budget.
        most: greatest mean share by the ledger.
        before, decay: lengths before the decay and of it.
        keen: see the options.
    """
    scarce = (aim > 0.98 * most) & (most < 0.98) & (aim > 0)
    if before <= 0 or decay <= 0 or not scarce.any() or scarce.all():
        return aim
    room = (before + decay) / decay
    wanted = np.where(scarce, aim * min(keen, room), aim)
    spare = wanted[scarce].sum()
    if spare > 0.9:
        wanted[scarce] *= 0.9 / spare
    rest = ~scarce
    left = 1 - wanted[scarce].sum()
    wanted[rest] = aim[rest] / max(aim[rest].sum(), 1e-12) * left
    return np.asarray(wanted)
