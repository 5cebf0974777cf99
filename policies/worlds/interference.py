"""I: sources that undo what others taught, forgetting, and checkpoints that stray by themselves."""

from __future__ import annotations

from typing import Any

import numpy as np

from mixloop.policies.mixture import Array, effective

from .families import Analytic


class Interference(Analytic):
    """What one source teaches a benchmark, time and other sources undo.

    Per unit of data ``dM_b = sum_i A_bi d eff(D_i) keen - M_b (fade + sum_i N_bi w_i)``, with
    interference N of about half of all pairs, strongest where a source teaches nothing, and with
    ``keen`` 2 in the last tenth (else 1); ``L = eps + beta (M + 0.1)^-alpha``. Unless told
    otherwise a checkpoint strays from the run's course by 0.01 to 0.03, which its standard error
    doesn't say. The state is (D, M), shape (…, k + m).
    """

    family = "I"

    def _jitter(self) -> float:
        return float(self._straying.uniform(0.01, 0.03))

    def _draw(self, drawing: np.random.Generator) -> Array:
        k, m = self.k, self.m
        taught = drawing.gamma(0.4, size=(m, k)) + 0.01
        self.taught = taught / taught.sum(axis=1, keepdims=True)
        hurts = drawing.uniform(0.0, 0.3, (m, k)) * (drawing.random((m, k)) < 0.5)
        self.hurts = hurts * (1 - self.taught) ** 4
        self.fade = drawing.uniform(0.005, 0.03, m)
        self.eps = drawing.uniform(0.4, 0.8, m)
        self.beta = drawing.uniform(0.8, 2.0, m)
        self.alpha = drawing.uniform(0.15, 0.45, m)
        return np.asarray(self.taught)

    def start(self) -> Any:
        """Nothing drawn and nothing known."""
        return np.zeros(self.k + self.m)

    def step(self, state: Any, shares: Array, part: float, time: float) -> Any:
        """What is known after ``part`` units at ``shares``: exact for constant rates."""
        drawn, known = state[..., : self.k], state[..., self.k :]
        after = drawn + shares * part
        fresh = (effective(after, self.unique) - effective(drawn, self.unique)) @ self.taught.T
        keen = 2.0 if time >= 0.9 * self.length - 1e-9 else 1.0
        loss = (self.fade + shares @ self.hurts.T) * part
        kept = np.exp(-loss)
        # what comes in meanwhile is undone in part too
        taken = -np.expm1(-loss) / np.maximum(loss, 1e-12)
        return np.concatenate([after, known * kept + keen * fresh * taken], axis=-1)

    def whole(self, mixtures: Array) -> Any:
        """Segment after segment."""
        state = np.zeros((*mixtures.shape[:-1], self.k + self.m))
        for time in range(self.segments):
            state = self.step(state, mixtures, 1.0, time)
        return state

    def losses_at(self, state: Any) -> Array:
        """Losses (…, m) of a state (…, k + m)."""
        known = state[..., self.k :]
        return np.asarray(self.eps + self.beta * (known + 0.1) ** -self.alpha)

    def _has_phases(self) -> bool:
        return True
