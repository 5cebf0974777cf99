"""Three families of analytic worlds: power law with transfer, exponential law, dilution.

Every constant is drawn from the seed. Arrays are over sources (k) or benchmarks (m); amounts of
data are in units, one unit being one segment's tokens. Losses are in bits per byte.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import numpy as np

from mixloop.policies.mixture import Array, best_static, effective

from .branching import Experimentable
from .world_protocol import INFINITE, WorldSource

JITTER_KEPT = 0.3  # of a checkpoint's jitter in the next one's


class Analytic(Experimentable):
    """What the families share: sizes, tags, noise, and a state that mixtures move.

    Args:
        k, m: sources and benchmarks.
        segments: evaluations in the whole budget, one unit of tokens each.
        sigma: standard deviation of an evaluation's noise, bits per byte.
        max_epochs: the cap that the static optimum respects (None: none).
        scarce: whether sources are of finite size (6 or 2 units, all but the first at random).
        unit: tokens of one unit.
        delay: segments that a score comes late.
        missing: probability that a benchmark is missing from an evaluation.
        anneal: how far every loss falls by itself over the last tenth of the budget.
        jitter: how far a checkpoint's scores stray from the run's smooth course (standard
            deviation, bits per byte). No standard error states it. None: as the family has it.
    """

    family: ClassVar[str]

    def __init__(
        self,
        k: int = 5,
        m: int = 4,
        segments: int = 40,
        sigma: float = 0.004,
        max_epochs: float | None = 5.0,
        scarce: bool = True,
        unit: int = 10**9,
        delay: int = 0,
        missing: float = 0.0,
        anneal: float = 0.0,
        jitter: float | None = None,
        seed: int = 0,
    ) -> None:
        self.k, self.m, self.segments, self.sigma = k, m, segments, sigma
        self.max_epochs, self.scarce, self.unit = max_epochs, scarce, unit
        self.delay, self.missing, self.anneal = delay, missing, anneal
        self._jitter_asked = jitter
        self.length = float(segments)  # units of the budget
        self.budget = segments * unit
        self.benchmarks: tuple[str, ...] = tuple(f"bench-{index}" for index in range(m))
        self.reset(seed)

    def reset(self, seed: int) -> None:
        """Draw the world and its noise from the seed, and go back to the start."""
        family = sum(map(ord, self.family))
        drawing, self._noise = (
            np.random.default_rng([seed, self.k, self.m, family, stream]) for stream in range(2)
        )
        self.origin = (seed, self.k, self.m, family, 3)
        self._straying = np.random.default_rng(self.origin)
        self.jitter = self._jitter() if self._jitter_asked is None else self._jitter_asked
        self.unique = self._sizes(drawing)
        affinity = self._draw(drawing)
        self.sources = self._described(affinity)
        self._names = list(self.sources)
        self.time = 0.0
        self.state = self.start()
        self.shares, self.wobble = np.full(self.k, 1 / self.k), np.zeros(self.m)

    def _described(self, affinity: Array) -> dict[str, WorldSource]:
        """The sources' sizes, and as tags the benchmarks each does most for."""
        best = affinity.argmax(axis=1)
        return {
            f"source-{i:02d}": WorldSource(
                unique_tokens=int(min(self.unique[i] * self.unit, INFINITE)),
                tags=tuple(b for b, s in zip(self.benchmarks, best, strict=True) if s == i),
            )
            for i in range(self.k)
        }

    def _sizes(self, drawing: np.random.Generator) -> Array:
        drawn = drawing.choice([math.inf, 6.0, 2.0], size=self.k)
        drawn[0] = math.inf
        if not self.scarce:
            drawn[:] = math.inf
        return np.asarray(np.minimum(drawn, INFINITE / self.unit))

    def advance(self, weights: Mapping[str, float], tokens: int) -> None:
        """Consume ``tokens`` of the mixture."""
        shares = np.array([weights.get(name, 0.0) for name in self._names])
        part = tokens / self.unit
        self.state = self.step(self.state, shares, part, self.time)
        self.time, self.shares = self.time + part, shares
        if self.jitter:
            kept = JITTER_KEPT ** min(part, 1.0)
            fresh = self._straying.normal(0, self.jitter, self.m) * math.sqrt(1 - kept**2)
            self.wobble = kept * self.wobble + fresh

    def _jitter(self) -> float:
        """The family's own jitter, where none is asked for."""
        return 0.0

    def shrunk(self, share: float, seed: int) -> Self:
        """A proxy of this world at its start: this share of its budget and of every source.

        With both shrunk alike, a mixture repeats each source as often as in the whole run. The
        constants are this world's; its noise is drawn from the seed.
        """
        small = copy.deepcopy(self)
        small.unique = self.unique * share
        small.length = self.length * share
        small.time, small.state = 0.0, small.start()
        small._noise = np.random.default_rng([seed, self.k, self.m, 2])
        return small

    def truth(self) -> dict[str, float]:
        """Every benchmark's loss now, without noise."""
        values = self.losses_at(self.state) - self._annealed(self.time)
        return dict(zip(self.benchmarks, map(float, values), strict=True))

    def evaluate(self) -> dict[str, tuple[float, float]]:
        """Every benchmark's loss with fresh noise, and the noise's standard deviation."""
        noise = self._noise.normal(0, 1, self.m) * self.sigma
        absent = self._noise.random(self.m) < self.missing
        scored = zip(self.truth().items(), noise + self.wobble, absent, strict=True)
        return {
            name: (value + float(n), self.sigma) for (name, value), n, gone in scored if not gone
        }

    def phase(self) -> str | None:
        """The learning rate's phase, where the world has one: decay is the last tenth."""
        if not self._has_phases():
            return None
        return "decay" if self.time >= 0.9 * self.length - 1e-9 else "stable"

    def optimum(self) -> dict[str, float]:
        """The best constant mixture that respects the cap on epochs."""
        most = np.full(self.k, 1.0)
        if self.max_epochs is not None:
            most = np.minimum(1.0, self.max_epochs * self.unique / self.segments)
        best = best_static(self.final, most)
        return dict(zip(self._names, map(float, best), strict=True))

    def final(self, mixtures: Array) -> Array:
        """Mean loss at the end of the budget of constant mixtures, shape (n, k) to (n,)."""
        state = self.whole(mixtures)
        return np.asarray(self._mean(self.losses_at(state)) - self._annealed(self.segments))

    def _mean(self, losses: Array) -> Array:
        return np.asarray(losses.mean(axis=-1))

    def whole(self, mixtures: Array) -> Any:
        """The state after the whole budget under constant mixtures."""
        return mixtures * self.segments

    def _annealed(self, time: float) -> float:
        into = max(0.0, time / self.length - 0.9) / 0.1
        return self.anneal * min(1.0, into)

    def _has_phases(self) -> bool:
        return self.anneal > 0

    def start(self) -> Any:
        """The state before the first token: nothing drawn."""
        return np.zeros(self.k)

    def step(self, state: Any, shares: Array, part: float, time: float) -> Any:
        """The state after ``part`` units at ``shares``, begun at ``time`` units."""
        return state + shares * part

    def losses_at(self, state: Any) -> Array:
        """Losses (…, m) of a state (…, k)."""
        raise NotImplementedError

    def _draw(self, drawing: np.random.Generator) -> Array:
        """Draw the constants; returns how much each source does for each benchmark, (m, k)."""
        raise NotImplementedError


class Power(Analytic):
    """P: ``L = eps + beta (A eff(D) + 0.05)^-alpha`` with a transfer matrix A (m x k)."""

    family = "P"

    def _draw(self, drawing: np.random.Generator) -> Array:
        transfer = drawing.gamma(0.4, size=(self.m, self.k)) + 0.02
        self.transfer = transfer / transfer.sum(axis=1, keepdims=True)
        self.eps = drawing.uniform(0.4, 0.8, self.m)
        self.beta = drawing.uniform(0.8, 2.0, self.m)
        self.alpha = drawing.uniform(0.15, 0.45, self.m)
        return np.asarray(self.transfer)

    def losses_at(self, state: Any) -> Array:
        """Losses (…, m) of tokens drawn (…, k)."""
        worth = effective(state, self.unique) @ self.transfer.T
        return np.asarray(self.eps + self.beta * (worth + 0.05) ** -self.alpha)


class Exponential(Analytic):
    """E: an exponential mixing law on effective shares, times a power law in tokens.

    ``L = eps + kappa exp(clip(t e, -6, 2)) (1 + beta (sum D + 0.3)^-alpha)`` with
    ``e = eff(D) / sum D`` (Ye et al. 2024, arXiv 2403.16952).
    """

    family = "E"

    def _draw(self, drawing: np.random.Generator) -> Array:
        law = drawing.normal(0, 1.2, size=(self.m, self.k))
        law -= law.mean(axis=1, keepdims=True)
        law[np.arange(self.m), drawing.integers(0, self.k, self.m)] -= 2.5
        self.law = law
        self.eps = drawing.uniform(0.4, 0.8, self.m)
        self.kappa = drawing.uniform(0.25, 0.6, self.m)
        self.beta = drawing.uniform(0.8, 2.0, self.m)
        self.alpha = drawing.uniform(0.15, 0.45, self.m)
        return -law

    def losses_at(self, state: Any) -> Array:
        """Losses (…, m) of tokens drawn (…, k)."""
        total = np.maximum(state.sum(axis=-1, keepdims=True), 1e-12)
        share = effective(state, self.unique) / total
        mixing = np.exp(np.clip(share @ self.law.T, -6, 2))
        return np.asarray(
            self.eps + self.kappa * mixing * (1 + self.beta * (total + 0.3) ** -self.alpha)
        )


class Dilution(Power):
    """D: a memory that fades, is diluted by small shares, and takes more in while annealing.

    ``M <- 0.985 M + (eff(D + w) - eff(D)) sqrt(w / (w + 0.03)) (3 in the last tenth, else 1)`` per
    segment, and ``L = eps + beta (A M + 0.05)^-alpha``. The state is (D, M), shape (…, 2, k).
    """

    family = "D"

    def start(self) -> Any:
        """No tokens and no memory."""
        return np.zeros((2, self.k))

    def step(self, state: Any, shares: Array, part: float, time: float) -> Any:
        """The memory after ``part`` units at ``shares``."""
        drawn, memory = state[..., 0, :], state[..., 1, :]
        after = drawn + shares * part
        gain = effective(after, self.unique) - effective(drawn, self.unique)
        keen = 3.0 if time >= 0.9 * self.length - 1e-9 else 1.0
        settles = np.sqrt(np.maximum(shares, 0.0) / (np.maximum(shares, 0.0) + 0.03))
        kept = 0.985**part * memory + gain * settles * keen
        return np.stack([after, kept], axis=-2)

    def whole(self, mixtures: Array) -> Any:
        """Segment after segment."""
        state = np.zeros((*mixtures.shape[:-1], 2, self.k))
        for time in range(self.segments):
            state = self.step(state, mixtures, 1.0, time)
        return state

    def losses_at(self, state: Any) -> Array:
        """Losses (…, m) of a state (…, 2, k)."""
        worth = state[..., 1, :] @ self.transfer.T
        return np.asarray(self.eps + self.beta * (worth + 0.05) ** -self.alpha)

    def _has_phases(self) -> bool:
        return True


class Flat(Power):
    """F: a power law in tokens that every mixture follows alike. Nothing is to be gained here."""

    family = "F"

    def _draw(self, drawing: np.random.Generator) -> Array:
        affinity = super()._draw(drawing)
        self.transfer = np.full((self.m, self.k), 1 / self.k)
        return affinity

    def _sizes(self, drawing: np.random.Generator) -> Array:
        return np.full(self.k, INFINITE / self.unit)
