"""Frozen dataclasses to JSON and back, checked, without a validation library's import time.

Supports what the file contracts use: numbers, strings, booleans, ``X | None``, literals, mappings
by name, tuples of one type, and other records. Unknown keys are ignored, so that a file of a newer
version is still readable.

A reader that finds a file missing, torn or wrong goes on without it (no news); what is wrong is
kept as a :class:`Problem`, so that who looks on can say it.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import os
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from .errors import shown
from .files import LARGEST, read_regular
from .types import parse_json

T = TypeVar("T")

LONGEST = 240
"""Characters of a problem."""
LARGEST_NUMBER = 2**62
"""What no count exceeds: SQLite and a next generation have room above it."""


@dataclass(frozen=True)
class Problem:
    """What is wrong with a file.

    Attributes:
        key: the place in it, such as ``in_force.weights.web`` or ``line 3``; empty: all of it.
        text: one line without control characters, the place, the value and what would be right
            in it: ``loss is 'x': must be a number or null``.
    """

    key: str
    text: str


@dataclass(frozen=True)
class ReadResult(Generic[T]):
    """What a reader found: a value, a problem, or neither of a file that isn't there."""

    value: T | None = None
    problem: Problem | None = None


class RecordError(ValueError):
    """A file's content does not fit its contract; the message names key, value and what fits.

    Attributes:
        key: the place in the file, dotted; empty for all of it.
    """

    def __init__(self, text: str, key: str = "") -> None:
        super().__init__(text)
        self.key = key


def read_record(
    path: str | os.PathLike[str], schema: str, kind: type[T], limit: int = LARGEST
) -> ReadResult[T]:
    """A file of one record: its value, or what is wrong with it. Never raises.

    Args:
        path: the file.
        schema: what its key `schema` must say.
        kind: the record's dataclass.
        limit: bytes; a larger file is refused.
    """
    try:
        data = read_regular(path, limit).data
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        return ReadResult(problem=problem_of(error))
    if len(data) > limit:
        return ReadResult(problem=Problem("", f"larger than {limit:,} bytes"))
    parse = _parsed if len(data) <= LARGEST else _parsed_large
    return typing.cast("ReadResult[T]", parse(data, schema, typing.cast(Any, kind)))


@functools.lru_cache(maxsize=8)  # a file that is looked at again and again rarely has news
def _parsed(data: bytes, schema: str, kind: type[Any]) -> ReadResult[Any]:
    try:
        value = parse_json(data.decode())
        if not isinstance(value, dict):
            raise RecordError(f"it is {_shown(value)}: must be an object")
        if value.get("schema") != schema:
            raise RecordError(
                f"schema is {_shown(value.get('schema'))}: must be {schema!r}", "schema"
            )
        return ReadResult(decode(kind, value))
    except (ValueError, RecursionError) as error:  # RecordError and decoding errors are ValueErrors
        return ReadResult(problem=problem_of(error))


# that of a run of thousands of sources, which takes a tenth of a second
_parsed_large = functools.lru_cache(maxsize=1)(_parsed.__wrapped__)


def problem_of(error: Exception) -> Problem | None:
    """What an error of reading a file or of :func:`decode` says of the file.

    None where there is just no file.
    """
    if isinstance(error, FileNotFoundError):
        return None
    key = str(getattr(error, "key", ""))
    text = (_words(error).splitlines() or [""])[0]
    clean = "".join(c if c.isprintable() else "?" for c in text[: LONGEST + 1])
    return Problem(key[:LONGEST], clean if len(clean) <= LONGEST else f"{clean[: LONGEST - 1]}…")


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


_hints = functools.cache(typing.get_type_hints)


def _record(kind: type, value: Any, where: str) -> Any:
    if not isinstance(value, dict):
        raise _wrong(value, where, "an object")
    hints = _hints(kind)
    fields = {}
    for field in dataclasses.fields(kind):
        name = field.name
        if name in value:
            fields[name] = _value(hints[name], value[name], _place(where, name))
        elif field.default is field.default_factory is dataclasses.MISSING:
            key = _place(where, name)
            raise RecordError(f"{key} is missing: must be {_wanted(hints[name])}", key)
    return kind(**fields)


def _value(hint: Any, value: Any, where: str, whole: Any = None) -> Any:
    """A value as its hint wants it; `whole` is the hint with its ``| None``, for the message."""
    if dataclasses.is_dataclass(hint):
        return _record(typing.cast(type, hint), value, where)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        inner = next(option for option in arguments if option is not types.NoneType)
        absent = value is None and types.NoneType in arguments
        return None if absent else _value(inner, value, where, hint)
    if origin is typing.Literal and isinstance(value, str) and value in arguments:
        return value
    if origin is tuple and isinstance(value, list):
        return tuple(_value(arguments[0], item, f"{where}[{n}]") for n, item in enumerate(value))
    if origin is Mapping and isinstance(value, dict):
        return {key: _value(arguments[1], item, _place(where, key)) for key, item in value.items()}
    if isinstance(value, int) and abs(value) > LARGEST_NUMBER:
        raise _wrong(value, where, "a number of at most 62 bits")
    if isinstance(value, float) and not math.isfinite(value):  # 1e999, which JSON allows
        raise _wrong(value, where, "a finite number")
    if origin is None and _is_plain(hint, value):
        return float(value) if hint is float else value
    raise _wrong(value, where, _wanted(whole or hint))


def _is_plain(hint: type, value: Any) -> bool:
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return isinstance(value, hint) and (hint is bool or not isinstance(value, bool))


def _wrong(value: Any, where: str, wanted: str) -> RecordError:
    return RecordError(f"{where or 'it'} is {_shown(value)}: must be {wanted}", where)


def _place(where: str, key: str) -> str:
    """A dotted place; a key that could drive a terminal, or fill it, is quoted and cut."""
    name = key if key.isprintable() and 0 < len(key) <= 60 else shown(key)
    return f"{where}.{name}" if where else name


def _shown(value: Any) -> str:
    return json.dumps(value) if value is None or isinstance(value, bool) else shown(value)


_WORDS = {int: "a whole number", float: "a number", str: "a string", bool: "true or false"}


def _wanted(hint: Any) -> str:
    """What a value has to be, in words."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        words = [_wanted(option) for option in arguments if option is not types.NoneType]
        return " or ".join([*words, "null"])
    if origin is typing.Literal:
        return "one of " + ", ".join(map(repr, arguments))
    return _WORDS.get(hint, "a list" if origin is tuple else "an object")
