"""A policy of one's own: ``policy: {use: ./examples/keep_moving.py:KeepMoving, with: {...}}``.

While a benchmark does not gain significantly between two checkpoints, move a little from one source
to another.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from mixloop.policies import Hold, Observation, Proposal
from mixloop.policies.evidence import honest_difference


class Options(BaseModel):
    """What ``policy.with`` may hold."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    benchmark: str = "gsm8k"
    to: str
    from_: str = Field(alias="from")
    step: float = Field(0.02, gt=0, le=1)
    z: float = Field(2.0, ge=0, description="normal score from which a gain counts")


class KeepMoving:
    """A pure function of its options and the observation, so a replay gives the same answer."""

    Options = Options

    def __init__(self, options: Options) -> None:
        self.options = options

    def decide(self, observation: Observation) -> Proposal | Hold:
        """Propose a move unless the last pair of checkpoints shows a significant gain."""
        options = self.options
        scored = observation.scored(options.benchmark)
        if len(scored) < 2:
            return Hold("not enough evaluations yet", verdict="inconclusive")
        change = honest_difference(observation, options.benchmark, scored[-2], scored[-1])
        shown = f"{options.benchmark} {change.metric} {change.gain:+.4f} {change.spread}"
        if change.z > options.z:
            return Hold(f"{shown}: it gains")
        weights = dict(observation.weights)
        step = min(options.step, weights[options.from_])
        weights[options.to] += step
        weights[options.from_] -= step
        return Proposal(weights, f"{shown}: not enough", evidence={"z": change.z, "n": change.n})
