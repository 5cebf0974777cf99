"""A policy that asks for all sorts of things: legal, greedy, planned, or nothing."""

from __future__ import annotations

import random

from mixloop.policies.interface import Hold, Observation, Proposal


class Wander:
    """A pure function of the observation, as a policy has to be, and as restless as it can be."""

    def decide(self, observation: Observation) -> Proposal | Hold:
        if not observation.in_force:
            return Hold("waiting for the last order")
        rng = random.Random(f"{observation.seed} {observation.tokens} {observation.generation}")
        if rng.random() < 0.15:
            return Hold("nothing to do", verdict=rng.choice(["hold", "inconclusive"]))
        names = list(observation.sources)
        wild = rng.random() < 0.4
        shares = [
            rng.random() ** 2 if wild else max(0.0, observation.weights[n] + rng.uniform(-0.1, 0.1))
            for n in names
        ]
        total = sum(shares) or 1.0
        weights = {name: share / total for name, share in zip(names, shares, strict=True)}
        plan = []
        if rng.random() < 0.2:
            turn = observation.tokens + rng.randrange(2000, 6000)
            later = dict(observation.weights)
            plan = (
                [(turn, weights), (observation.budget, later)] if turn < observation.budget else []
            )
        return Proposal(weights, "wandering", plan=plan)
