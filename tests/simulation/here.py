"""The simulation that runs now: what the patched functions of the product ask."""

from __future__ import annotations

import errno
import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .runner import Simulation

_now: list[tuple[Simulation, int]] = []


def sim() -> Simulation:
    """The running simulation.

    Any other thread than its own (a trainer that an earlier test has left behind uses the patched
    functions too) waits until it is over.

    Raises:
        OSError: in such a thread, then.
    """
    while _now and _now[0][1] != threading.get_ident():
        time.sleep(0.01)
    if not _now:
        raise OSError(errno.EIO, "no simulation runs")
    return _now[0][0]


def enter(simulation: Simulation) -> None:
    """Make this the running one, of this thread."""
    _now[:] = [(simulation, threading.get_ident())]


def leave() -> None:
    """No simulation runs any more."""
    _now.clear()
