"""S: benchmarks that need several skills at once, and skills that need others first.

Nobody's law: what a source is worth depends on what the model already can, so early scores say
little of late ones, and effects of sources don't add up.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mixloop.policies.mixture import Array, effective

from .families import Analytic

STEP = 0.25  # units of data over which the rates of learning are held
SLOW = 0.1  # of its full rate, at which a skill is learnt without what it needs first


class Skills(Analytic):
    """Skills are learnt from sources, each only as fast as its prerequisites allow.

    Practice of skill c grows by ``(slow + (1 - slow) prod_q p_q) sum_i T_ci d eff(D_i)`` over its
    prerequisites q, and ``p = practice / (practice + need)``. A benchmark's loss is ``eps + beta (1
    - g)`` with ``g`` the weighted geometric mean of ``p + 0.02`` over the skills it needs at once.
    About a quarter of the sources teach a skill that no benchmark needs. The state is (D,
    practice), shape (…, k + 2 m).
    """

    family = "S"

    def _draw(self, drawing: np.random.Generator) -> Array:
        k, m, skills = self.k, self.m, 2 * self.m
        taught = drawing.gamma(0.5, size=(skills, k)) * (drawing.random((skills, k)) < 0.5) + 0.01
        useless = drawing.random(k) < 0.25
        useless[int(drawing.integers(k))] = False
        taught[:, useless] *= 0.05
        self.taught = taught / taught.sum(axis=1, keepdims=True)
        self.prerequisites = np.zeros((skills, skills))
        for skill in range(1, skills):
            if drawing.random() < 0.6:
                first = drawing.choice(skill, size=min(skill, int(drawing.integers(1, 3))))
                self.prerequisites[skill, first] = 1.0
        self.need = drawing.uniform(0.3, 2.0, skills) * self.segments / 40
        self.demand = np.zeros((m, skills))
        for benchmark in range(m):
            wanted = drawing.choice(skills, size=min(skills, 3), replace=False)
            self.demand[benchmark, wanted] = drawing.dirichlet(np.full(len(wanted), 2.0))
        self.eps = drawing.uniform(0.4, 0.8, m)
        self.beta = drawing.uniform(0.8, 1.6, m)
        return np.asarray(self.demand @ self.taught)

    def start(self) -> Any:
        """Nothing drawn and nothing practised."""
        return np.zeros(self.k + 2 * self.m)

    def step(self, state: Any, shares: Array, part: float, time: float) -> Any:
        """What can be done after ``part`` units at ``shares``, by steps of a quarter unit."""
        count = max(1, int(np.ceil(part / STEP - 1e-9)))
        for _ in range(count):
            state = self._small(state, shares, part / count)
        return state

    def _small(self, state: Any, shares: Array, part: float) -> Any:
        drawn, practice = state[..., : self.k], state[..., self.k :]
        after = drawn + shares * part
        fresh = effective(after, self.unique) - effective(drawn, self.unique)
        known = np.log(np.maximum(practice / (practice + self.need), 1e-6))
        rate = SLOW + (1 - SLOW) * np.exp(known @ self.prerequisites.T)
        return np.concatenate([after, practice + rate * (fresh @ self.taught.T)], axis=-1)

    def whole(self, mixtures: Array) -> Any:
        """Segment after segment."""
        state = np.zeros((*mixtures.shape[:-1], self.k + 2 * self.m))
        for time in range(self.segments):
            state = self.step(state, mixtures, 1.0, time)
        return state

    def losses_at(self, state: Any) -> Array:
        """Losses (…, m) of a state (…, k + 2 m)."""
        practice = state[..., self.k :]
        able = practice / (practice + self.need)
        together = np.exp(np.log(able + 0.02) @ self.demand.T)
        return np.asarray(self.eps + self.beta * (1 - together))
