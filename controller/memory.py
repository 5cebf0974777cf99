"""Memory that a decision needed for a moment goes back to the system."""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any


@cache
def _trim() -> Any:
    try:
        return ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError):  # no glibc
        return None


def give_back() -> None:
    """Let the allocator return what is free.

    A decision looks at the whole history once. What that took would otherwise stay with the daemon
    as free but resident memory, a little more at every decision.
    """
    trim = _trim()
    if trim is not None:
        trim(0)
