"""``proportional``: every source by its size, the mixture of a run that mixes nothing."""

from __future__ import annotations

from mixloop.policies.interface import Hold, Observation, Proposal

from .one_target import move_once


class Proportional:
    """Moves once to shares proportional to unique tokens, then holds; standby sources stay out.

    At these shares every source is repeated equally often.
    """

    def decide(self, observation: Observation) -> Proposal | Hold:
        """The mixture by size, until it is reached; else hold."""
        sizes = {
            name: 0 if source.standby else source.unique_tokens
            for name, source in observation.sources.items()
        }
        whole = sum(sizes.values())
        if whole <= 0:
            return Hold("proportional: no active source has tokens", {"rule": "proportional"})
        return move_once(
            observation,
            {name: size / whole for name, size in sizes.items()},
            "proportional",
            moving="shares by unique tokens",
            reached="the mixture by size was reached",
        )
