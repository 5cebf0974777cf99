"""Lines for a person, on standard error, which must never cost the run anything."""

from __future__ import annotations

import contextlib
import sys

from .text import clean


def say(text: str, who: str = "mixloop train") -> None:
    """Write a line to standard error; one that can't be written is lost.

    The log often lies on the run's own disk: full, or at the other end of a broken pipe, it must
    neither end the loop nor a thread (ValueError: it is closed already).
    """
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.write(f"{who}: {clean(text)}\n")
        sys.stderr.flush()
