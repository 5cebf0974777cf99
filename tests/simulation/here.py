"""The simulation that runs now: what the patched functions of the product ask."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .runner import Simulation

_now: list[Simulation] = []


def sim() -> Simulation:
    """The running simulation."""
    return _now[-1]


def enter(one: Simulation) -> None:
    """Make this the running one."""
    _now[:] = [one]
