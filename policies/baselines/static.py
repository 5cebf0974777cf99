"""``static``: the mixture stays as it is, or moves once to a given one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mixloop.policies.interface import Hold, Observation, OptionsModel, Proposal
from mixloop.policies.mixture import Mixture, check_names

from .one_target import move_once


class StaticOptions(OptionsModel):
    """``weights``: the mixture to move to; without it the run's own is kept."""

    weights: Mixture | None = None


class Static:
    """Holds. With ``weights`` it proposes them until they were in force once, then holds."""

    Options = StaticOptions

    def __init__(self, options: StaticOptions | None = None) -> None:
        self.options = options or StaticOptions()

    def check(self, sources: Mapping[str, Sequence[str]], benchmarks: Sequence[str]) -> None:
        """Raise ``PolicyError`` for a weight of an unknown source."""
        check_names("source", self.options.weights or {}, sources, "policy.with.weights")

    def decide(self, observation: Observation) -> Proposal | Hold:
        """The mixture asked for, until it is reached; else hold."""
        target = self.options.weights
        if target is None:
            return Hold("static: the mixture stays as configured", {"rule": "static"})
        check_names("source", target, observation.sources, "policy.with.weights")
        return move_once(
            observation,
            target,
            "static",
            moving="to the mixture asked for",
            reached="the mixture asked for was reached",
        )
