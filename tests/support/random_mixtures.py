"""A policy to be better than: another mixture at every decision."""

from __future__ import annotations

import numpy as np

from mixloop.policies.interface import Observation, Proposal


class RandomMixtures:
    """Proposes mixtures uniformly from the simplex; the guards trim each."""

    def decide(self, observation: Observation) -> Proposal:
        """A draw from the seed and the moment."""
        drawing = np.random.default_rng([observation.seed, observation.step])
        names = [name for name, source in observation.sources.items() if not source.standby]
        shares = drawing.dirichlet(np.ones(len(names)))
        return Proposal(dict(zip(names, map(float, shares), strict=True)), "random mixture")
