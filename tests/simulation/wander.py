"""A policy that asks for all sorts of things: legal, greedy, planned, or nothing."""

from __future__ import annotations

import random
from typing import Any

from mixloop.policies.interface import Experiment, Hold, MergeDesign, Observation, Proposal

INSISTS = 4  # decisions
LONG_PLAN = 4000  # stretches
OFF = 1e-4  # of the tokens, far below the guards' dead-band


class Wander:
    """A pure function of the observation, as a policy has to be, and as restless as it can be."""

    def decide(self, observation: Observation) -> Proposal | Hold | Experiment:
        seen = [[e.id, e.state] for e in observation.experiments]
        told = {"experiments": seen, "receipts": [e.id for e in observation.receipts]}
        reply = _tried(observation) or self._moved(observation)
        return reply.model_copy(update={"evidence": reply.evidence | told})

    def _moved(self, observation: Observation) -> Proposal | Hold:
        if not observation.in_force:
            return Hold("waiting for the last order")
        again = _insisted(observation) if observation.seed % 4 == 3 else None
        if again is not None:
            return Proposal(again, "as before", evidence={"asks": again})
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
        told: dict[str, Any] = {} if plan else {"asks": weights}
        return Proposal(weights, *_wordy(observation, weights, plan), evidence=told)


def _wordy(
    observation: Observation, weights: dict[str, float], plan: list[Any]
) -> tuple[str, list[Any]]:
    """The reason and the plan; in one run of eight now and then of more than a megabyte."""
    how = random.Random(f"{observation.seed} words {observation.tokens}").random()
    room = observation.budget - observation.tokens
    if observation.seed % 8 != 4:
        return "wandering", plan
    if how < 0.1:
        return "R" * 1_100_000, plan
    if how < 0.2 and room > LONG_PLAN:
        ends = [observation.tokens + room * n // LONG_PLAN for n in range(1, LONG_PLAN + 1)]
        return "wandering", [(end, weights) for end in ends]
    return "wandering", plan


def _tried(observation: Observation) -> Experiment | None:
    """Now and then an experiment, small or too large, also while another runs."""
    begun, scored = observation.experiments, observation.evaluations[-1]
    rng = random.Random(f"{observation.seed} tries {scored.step} {[e.state for e in begun]}")
    runs = any(not one.ended for one in begun)
    if not observation.experiment_tokens or rng.random() > (0.1 if runs else 0.4):
        return None
    for one in begun:
        if one.state == "done":  # which raises where a score is missing that has to be there
            assert len(one.branches) >= 1
            assert one.control is not None
    names = list(observation.sources)
    branches = [
        {name: 1.0} if rng.random() < 0.5 else dict.fromkeys(names, 1 / len(names))
        for name in rng.sample(names, rng.randrange(1, len(names) + 1))
    ]
    tokens = rng.choice([50, 80, 80, 200, 200, 400, 400, 20_000])
    merge = MergeDesign(prior=observation.weights) if rng.random() < 0.5 else None
    schedule = rng.choice(["to zero", "as the run"])
    return Experiment(branches, tokens, "trying", merge=merge, schedule=schedule)


def _insisted(observation: Observation) -> dict[str, float] | None:
    """What a person has not answered yet, a few times over and a little off."""
    newest = observation.decisions[-INSISTS:]
    waits = [at for at, decision in enumerate(newest) if decision.verdict == "awaiting-approval"]
    if not waits or any(decision.verdict == "intervene" for decision in newest[waits[-1] :]):
        return None
    asked = dict(newest[waits[-1]].evidence.get("asks") or {})
    if not asked or set(asked) != set(observation.sources):
        return None
    first, second = sorted(asked, key=lambda name: -asked[name])[:2]
    return asked | {first: asked[first] - OFF, second: asked[second] + OFF}
