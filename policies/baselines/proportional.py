"""``proportional``: every source by its size, the mixture of a run that mixes nothing."""

from __future__ import annotations

from mixloop.policies.interface import Hold, Observation, OptionsModel, Proposal
from mixloop.policies.mixture import in_force, still_reaching, total_variation


class ProportionalOptions(OptionsModel):
    """None: the mixture follows from the sources' sizes."""


class Proportional:
    """Moves once to shares proportional to unique tokens, then holds; standby sources stay out.

    At these shares every source is repeated equally often.
    """

    Options = ProportionalOptions

    def __init__(self, options: ProportionalOptions | None = None) -> None:
        self.options = options or ProportionalOptions()

    def decide(self, observation: Observation) -> Proposal | Hold:
        """The mixture by size, until it is reached; else hold."""
        sizes = {
            name: 0 if source.standby else source.unique_tokens
            for name, source in observation.sources.items()
        }
        whole = sum(sizes.values())
        if whole <= 0:
            return Hold("proportional: no active source has tokens", {"rule": "proportional"})
        target = {name: size / whole for name, size in sizes.items()}
        if not still_reaching(observation, target, "proportional"):
            return Hold("proportional: the mixture by size was reached", {"rule": "proportional"})
        left = total_variation(in_force(observation), target)
        reason = f"proportional: shares by unique tokens, {left:.3g} of the tokens to move"
        return Proposal(target, reason, evidence={"rule": "proportional", "distance": left})
