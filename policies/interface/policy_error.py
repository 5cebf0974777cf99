"""The one error that policies and what loads them raise, and any other in one line."""

from __future__ import annotations

import sys
import traceback
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from mixloop.common.errors import explain_error

LONGEST = 300  # characters of a foreign error that are told


class PolicyError(ValueError):
    """A policy, an option or a name that can't be used; the message is one readable line.

    The line says what is wrong, where (a key such as ``policy.with.interventions.0.move.to``),
    the value found and how to mend it.
    """

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


def raised(error: BaseException, by: Any, when: str = "") -> str:
    """``ValueError: no idea (mine.py line 7)``: an error, and where in one's own code it arose.

    Args:
        error: as it was caught.
        by: the class or function whose module is meant; where the error arose elsewhere, in what
            that had called, its own line counts all the same.
        when: words that follow the error.
    """
    lines = str(error).splitlines()
    if isinstance(error, ValidationError):  # whose first line doesn't say what is wrong
        lines = [f"{error.title}: {explain_error(error)}"]
    said = ": ".join([type(error).__name__, *(line[:LONGEST] for line in lines[:1])]) + when
    module = sys.modules.get(getattr(by, "__module__", None) or "")
    own = getattr(module, "__file__", None)
    lines_of = [(f.f_code.co_filename, at) for f, at in traceback.walk_tb(error.__traceback__)]
    mine = [place for place in lines_of if place[0] == own] or lines_of
    if not mine:
        return said
    file, at = mine[-1]
    return f"{said} ({Path(file).name} line {at})"
