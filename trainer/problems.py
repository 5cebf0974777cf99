"""Why a file of the contract can't be read, in words for a person: the place, the value, the want.

A reader that finds a file missing, torn or wrong goes on without it (no news); what it found is
kept here, so that who looks on can say it.
"""

from __future__ import annotations

import json
import reprlib
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

T = TypeVar("T")

LONGEST = 240  # characters

_SHOWN = reprlib.Repr()
_SHOWN.maxstring = _SHOWN.maxother = _SHOWN.maxlong = 60
_SHOWN.maxlevel, _SHOWN.maxdict, _SHOWN.maxlist = 2, 3, 3


@dataclass(frozen=True)
class Problem:
    """What is wrong with a file.

    Attributes:
        key: the place in it, such as ``in_force.weights.web`` or ``line 3``; empty: all of it.
        said: one line without control characters, the place, the value and what would be right
            in it: ``loss is 'x': must be a number or null``.
    """

    key: str
    said: str


@dataclass(frozen=True)
class Found(Generic[T]):
    """What a reader found: a value, a problem, or neither of a file that isn't there."""

    value: T | None = None
    problem: Problem | None = None


def shown(value: Any) -> str:
    """A value as JSON has it, cut short; never a control character or half a surrogate pair."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    return _SHOWN.repr(value)


def place(where: str, key: str) -> str:
    """A dotted place; a key that could drive a terminal, or fill it, is quoted and cut."""
    name = key if key.isprintable() and 0 < len(key) <= 60 else shown(key)
    return f"{where}.{name}" if where else name


def problem_of(error: Exception) -> Problem | None:
    """What an error of a reader says of the file; None where there is just none.

    Takes what reading a file and :func:`~mixloop.trainer.records.decode` raise.
    """
    if isinstance(error, FileNotFoundError):
        return None
    key = str(getattr(error, "key", ""))
    return Problem(key[:LONGEST], _line(_words(error)))


def _words(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"not JSON: {error.msg} (line {error.lineno}, column {error.colno})"
    if isinstance(error, UnicodeDecodeError):
        return f"not UTF-8 (at byte {error.start})"
    if isinstance(error, RecursionError):
        return "nested too deeply"
    if isinstance(error, OSError):
        return error.strerror or str(error)
    return str(error)


def _line(text: str) -> str:
    """One line of printable characters."""
    text = (text.splitlines() or [""])[0]
    clean = "".join(c if c.isprintable() else "?" for c in text[: LONGEST + 1])
    return clean if len(clean) <= LONGEST else f"{clean[: LONGEST - 1]}…"
