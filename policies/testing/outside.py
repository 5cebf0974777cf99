"""What a decision must not depend on: global random generators and the time of day."""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

OTHER = 987_654_321.0
"""Seconds by which the time of day is set forward (31 years)."""


def outside_state() -> dict[str, str]:
    """The state of every global generator that is loaded."""
    found = {"random": repr(random.getstate())}
    numpy: Any = sys.modules.get("numpy")
    if numpy is not None:
        # the whole state, which repr() of an array would shorten
        name, keys, *rest = numpy.random.get_state()
        found["numpy.random"] = repr((name, keys.tolist(), rest))
    return found


@contextmanager
def shaken(*, seed: int | None = None, clock: float = 0.0) -> Iterator[None]:
    """Global generators seeded anew, or the time of day set forward; restored at the end."""
    kept = random.getstate()
    numpy: Any = sys.modules.get("numpy")
    kept_numpy = numpy.random.get_state() if numpy is not None else None
    real, real_ns = time.time, time.time_ns
    if seed is not None:
        random.seed(seed)
        if numpy is not None:
            numpy.random.seed(seed)
    if clock:
        time.time = lambda: real() + clock
        time.time_ns = lambda: real_ns() + int(clock * 1e9)
    try:
        yield
    finally:
        time.time, time.time_ns = real, real_ns
        random.setstate(kept)
        if numpy is not None:
            numpy.random.set_state(kept_numpy)
