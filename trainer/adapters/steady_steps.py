"""The steps of a run, for frameworks that have one number of micro-batches for all of them."""

from __future__ import annotations

from mixloop.trainer.config import steady_accumulation
from mixloop.trainer.loader import MixtureLoader


def steady_steps(mixture: MixtureLoader, framework: str) -> tuple[int, int]:
    """Micro-batches, on each rank, of every step; and steps of the whole budget.

    Args:
        framework: for the message.

    Raises:
        JobError: the run changes its batch on the way.
    """
    accumulation = steady_accumulation(mixture.job, mixture.world, framework)
    return accumulation, len(mixture) // accumulation
