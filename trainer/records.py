"""Frozen dataclasses to JSON and back, checked, without a validation library's import time.

Supports what the file contracts use: numbers, strings, booleans, ``X | None``, literals, mappings
by name, tuples of one type, and other records. Unknown keys are ignored, so that a file of a newer
version is still readable.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from mixloop.trainer.problems import place, shown

T = TypeVar("T")

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
    return RecordError(f"{where or 'it'} is {shown(value)}: must be {wanted}", where)


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
