"""The laws: how losses follow from what was drawn. All are fitted, none is believed.

A law is a memory (what data leaves behind) and a link (what losses make of it). Amounts are in
shares of the budget, k sources.

Memories: ``M <- exp(-fade dx) M + (eff(D + w dx) - eff(D)) sqrt(w / (w + dilution)) keen`` per
stretch dx, eff Muennighoff et al. 2023 (arXiv 2305.16264, eq. 5), keen the greater hold that data
seen while the learning rate decays is given. Without fade, dilution and keenness M is eff(D).

Links, of z = k M and of everything drawn x:

- power: ``L = eps + e^b (mean_j e^theta_j z_j + c)^-alpha - d u``, Kaplan et al.'s power law (2020,
  arXiv 2001.08361, eq. 1.2) in tokens weighed by a transfer row.
- exponential: ``L = eps + e^(q + t z / x) (1 + e^s (x + c)^-alpha) - d u``, Ye et al.'s mixing law
  (2024, arXiv 2403.16952, eq. 7) on cumulative effective shares, times a power law.
- none: the power law with every source alike. It stands for mixtures that don't matter.

u runs from 0 to 1 through the learning rate's decay: what annealing gives whatever the data.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from mixloop.policies.mixture import Array, effective, effective_slope

from .law_data import LawData

Link = Literal["power", "exponential", "none"]
SHARED = 6  # parameters ahead of the sources' own: eps, b or q, alpha, c, d, s
PIECES = 3  # steps that a future stretch is taken in


@dataclass(frozen=True)
class Memory:
    """Fade per whole budget, share at which data is half diluted (in power), keenness in decay."""

    fade: float = 0.0
    dilution: float = 0.0
    keen: float = 1.0

    @property
    def plain(self) -> bool:
        """Whether it is just the effective tokens."""
        return self.fade == 0 and self.dilution == 0 and self.keen == 1


@dataclass(frozen=True)
class MixingLaw:
    """One law of the ensemble and what it is believed before any evidence."""

    name: str
    link: Link
    memory: Memory = Memory()
    prior: float = 1.0


LAWS = (
    MixingLaw("power", "power", Memory(), 1.0),
    MixingLaw("power-fading", "power", Memory(0.6, 0.03, 3.0), 0.7),
    MixingLaw("power-fading-fast", "power", Memory(1.7, 0.03, 3.0), 0.4),
    MixingLaw("exponential", "exponential", Memory(), 1.0),
    MixingLaw("exponential-fading", "exponential", Memory(1.7, 0.0, 2.0), 0.4),
)
NULL = MixingLaw("none", "none")


def remember(data: LawData, memory: Memory) -> Array:
    """What is remembered of each source at each evaluation, (n, k)."""
    before = np.vstack([np.zeros(data.drawn.shape[1]), data.drawn[:-1]])
    gains = effective(data.drawn, data.unique) - effective(before, data.unique)
    if memory.plain:
        return np.asarray(np.cumsum(gains, axis=0))
    parts = data.drawn - before
    lengths = np.maximum(parts.sum(axis=1), 1e-12)
    shares = parts / lengths[:, None]
    keen = np.where(data.decay > 0, memory.keen, 1.0)
    taken = gains * _diluted(shares, memory)[0] * keen[:, None]
    rows, now = [], np.zeros(data.drawn.shape[1])
    for gain, length in zip(taken, lengths, strict=True):
        now = np.exp(-memory.fade * length) * now + np.exp(-memory.fade * length / 2) * gain
        rows.append(now)
    return np.array(rows)


def _diluted(shares: Array, memory: Memory) -> tuple[Array, Array]:
    """The part of a source's data that takes hold at its share, and the derivative."""
    if memory.dilution == 0:
        return np.ones_like(shares), np.zeros_like(shares)
    safe = np.maximum(shares, 1e-9)
    held = np.sqrt(safe / (safe + memory.dilution))
    return held, held * memory.dilution / (2 * safe * (safe + memory.dilution))


@dataclass(frozen=True)
class Ahead:
    """The rest of the budget: where it starts, and its stretches (length, in decay or not).

    ``drawn`` (k,) and ``remembered`` per law's memory (k,) are those of now.
    """

    drawn: Array
    unique: Array
    stretches: tuple[tuple[float, bool], ...]

    @property
    def end(self) -> float:
        """Everything drawn at the end of the budget."""
        return float(self.drawn.sum() + sum(length for length, _ in self.stretches))


def foresee(ahead: Ahead, memory: Memory, now: Array, mixtures: Array) -> tuple[Array, Array]:
    """What will be remembered at the end, (k,), and its slope by each stretch's shares, (s, k).

    Every source's memory depends on its own shares only, so the slopes are all there is.
    """
    drawn, kept = ahead.drawn, now
    slopes = np.zeros_like(mixtures)
    pieces = 1 if memory.plain else PIECES
    spent = np.zeros_like(mixtures)  # derivative of drawn by each stretch's shares
    for index, (length, falling) in enumerate(ahead.stretches):
        shares, step = mixtures[index], length / pieces
        held, bend = _diluted(shares, memory)
        keen = memory.keen if falling else 1.0
        fade, half = np.exp(-memory.fade * step), np.exp(-memory.fade * step / 2) * keen
        for _ in range(pieces):
            after = drawn + shares * step
            gain = effective(after, ahead.unique) - effective(drawn, ahead.unique)
            old, new = effective_slope(drawn, ahead.unique), effective_slope(after, ahead.unique)
            slopes = fade * slopes + half * held * (new - old) * spent
            slopes[index] += half * (held * new * step + bend * gain)
            spent[index] += step
            kept = fade * kept + half * held * gain
            drawn = after
    return kept, slopes


def values(link: Link, p: Array, z: Array, x: Array, u: Array) -> tuple[Array, Array]:
    """Losses of a link and their derivatives by its parameters.

    Args:
        link: what losses make of what is remembered.
        p: (b, 6 + k) parameters of b fits.
        z: (b, n, k) what is remembered, times k.
        x: (n,) everything drawn.
        u: (n,) progress of the decay.

    Returns:
        (b, n) losses and (b, n, 6 + k) derivatives.
    """
    if link == "exponential":
        return _exponential(p, z, x, u)
    return _power(p, z, u)


def _power(p: Array, z: Array, u: Array) -> tuple[Array, Array]:
    eps, b, alpha, c, d = (p[:, i, None] for i in range(5))
    alpha, c = np.exp(alpha), np.exp(c)
    share = np.exp(p[:, SHARED:]) / z.shape[-1]
    worth = np.einsum("bnk,bk->bn", z, share) + c
    fall = np.exp(b - alpha * np.log(worth))
    steep = -fall * alpha / worth
    jac = np.empty((*fall.shape, p.shape[1]))
    jac[..., 0], jac[..., 1] = 1.0, fall
    jac[..., 2] = -fall * alpha * np.log(worth)
    jac[..., 3], jac[..., 4], jac[..., 5] = steep * c, -u, 0.0
    jac[..., SHARED:] = steep[..., None] * z * share[:, None, :]
    return eps + fall - d * u, jac


def _exponential(p: Array, z: Array, x: Array, u: Array) -> tuple[Array, Array]:
    eps, q, alpha, c, d, s = (p[:, i, None] for i in range(6))
    alpha, c = np.exp(alpha), np.exp(c)
    share = z / (z.shape[-1] * x[:, None])
    inner = q + np.einsum("bnk,bk->bn", share, p[:, SHARED:])
    mixing = np.exp(np.clip(inner, -12, 4))
    tokens = np.exp(s - alpha * np.log(x + c))
    whole = mixing * (1 + tokens)
    jac = np.empty((*whole.shape, p.shape[1]))
    jac[..., 0], jac[..., 1] = 1.0, whole
    jac[..., 2] = -mixing * tokens * alpha * np.log(x + c)
    jac[..., 3] = -mixing * tokens * alpha * c / (x + c)
    jac[..., 4], jac[..., 5] = -u, mixing * tokens
    jac[..., SHARED:] = whole[..., None] * share
    return eps + whole - d * u, jac
