"""Why a file of the contract can't be read, in words for a person: the place, the value, the want.

A reader that finds a file missing, torn or wrong goes on without it (no news); what it found is
kept here, so that who looks on can say it.


Frozen dataclasses to JSON and back, checked, without a validation library's import time.

Supports what the file contracts use: numbers, strings, booleans, ``X | None``, literals, mappings
by name, tuples of one type, and other records. Unknown keys are ignored, so that a file of a newer
version is still readable.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from .errors import shown

T = TypeVar("T")

LONGEST = 240  # characters


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
class ReadResult(Generic[T]):
    """What a reader found: a value, a problem, or neither of a file that isn't there."""

    value: T | None = None
    problem: Problem | None = None


def json_shown(value: Any) -> str:
    """A value as JSON has it, cut short; never a control character or half a surrogate pair."""
    return json.dumps(value) if value is None or isinstance(value, bool) else shown(value)


def place(where: str, key: str) -> str:
    """A dotted place; a key that could drive a terminal, or fill it, is quoted and cut."""
    name = key if key.isprintable() and 0 < len(key) <= 60 else json_shown(key)
    return f"{where}.{name}" if where else name


def problem_of(error: Exception) -> Problem | None:
    """What an error of a reader says of the file; None where there is just none.

    Takes what reading a file and :func:`~mixloop.common.json_records.decode` raise.
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


LARGEST = 2**62
"""What no count exceeds: SQLite and a next generation have room above it."""


class RecordError(ValueError):
    """A file's content does not fit its contract; the message names key, value and what fits.

    Attributes:
        key: the place in the file, dotted; empty for all of it.
    """

    def __init__(self, said: str, key: str = "") -> None:
        super().__init__(said)
        self.key = key


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def encode(value: Any) -> Any:
    """A record as plain JSON values; NaN and infinities, which JSON lacks, become null."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: encode(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {key: encode(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [encode(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def decode(kind: type[T], value: Any) -> T:
    """A record from JSON values.

    Raises:
        RecordError: a key is missing or of the wrong type.
    """
    return typing.cast(T, _record(kind, value, ""))


def _wrong(value: Any, where: str, wanted: str) -> RecordError:
    return RecordError(f"{where or 'it'} is {json_shown(value)}: must be {wanted}", where)


def _record(kind: type, value: Any, where: str) -> Any:
    if not isinstance(value, dict):
        raise _wrong(value, where, "an object")
    hints = _hints(kind)
    found = {}
    for field in dataclasses.fields(kind):
        name = field.name
        if name in value:
            found[name] = _value(hints[name], value[name], place(where, name))
        elif field.default is field.default_factory is dataclasses.MISSING:
            key = place(where, name)
            raise RecordError(f"{key} is missing: must be {_wanted(hints[name])}", key)
    return kind(**found)


def _value(hint: Any, value: Any, where: str, whole: Any = None) -> Any:
    if dataclasses.is_dataclass(hint):
        return _record(typing.cast(type, hint), value, where)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        inner = next(one for one in arguments if one is not types.NoneType)
        absent = value is None and types.NoneType in arguments
        return None if absent else _value(inner, value, where, hint)
    if origin is typing.Literal and isinstance(value, str) and value in arguments:
        return value
    if origin is tuple and isinstance(value, list):
        return tuple(_value(arguments[0], item, f"{where}[{n}]") for n, item in enumerate(value))
    if origin is Mapping and isinstance(value, dict):
        return {key: _value(arguments[1], item, place(where, key)) for key, item in value.items()}
    if isinstance(value, int) and abs(value) > LARGEST:
        raise _wrong(value, where, "a number of at most 62 bits")
    if isinstance(value, float) and not math.isfinite(value):  # 1e999, which JSON allows
        raise _wrong(value, where, "a finite number")
    if origin is None and _is_plain(hint, value):
        return float(value) if hint is float else value
    raise _wrong(value, where, _wanted(whole or hint))


_WORDS = {int: "a whole number", float: "a number", str: "a string", bool: "true or false"}


def _wanted(hint: Any) -> str:
    """What a value has to be, in words."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        words = [_wanted(one) for one in arguments if one is not types.NoneType]
        return " or ".join([*words, "null"])
    if origin is typing.Literal:
        return "one of " + ", ".join(map(repr, arguments))
    return _WORDS.get(hint, "a list" if origin is tuple else "an object")


def _is_plain(hint: type, value: Any) -> bool:
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return isinstance(value, hint) and (hint is bool or not isinstance(value, bool))
