"""The steps of a run, for frameworks that have one number of micro-batches for all of them."""

from __future__ import annotations

from typing import NamedTuple

from mixloop.trainer.config import steady_accumulation
from mixloop.trainer.loader import MixtureLoader


class SteadySteps(NamedTuple):
    """Micro-batches, on each rank, of every step; and steps of the whole budget."""

    accumulation: int
    total: int


def steady_steps(mixture: MixtureLoader, framework: str) -> SteadySteps:
    """The steps of a mixture's run.

    Args:
        framework: for the message.

    Raises:
        JobError: the run changes its batch on the way.
    """
    accumulation = steady_accumulation(mixture.job, mixture.world, framework)
    return SteadySteps(accumulation, len(mixture) // accumulation)
