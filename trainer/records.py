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

T = TypeVar("T")

LARGEST = 2**62
"""What no count exceeds: SQLite and a next generation have room above it."""


class RecordError(ValueError):
    """A file's content does not fit its contract; the message names key and value."""


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
    return typing.cast(T, _record(kind, value, kind.__name__))


def _record(kind: type, value: Any, where: str) -> Any:
    if not isinstance(value, dict):
        raise RecordError(f"{where}: {type(value).__name__} where an object belongs")
    hints = _hints(kind)
    found = {}
    for field in dataclasses.fields(kind):
        name = field.name
        if name in value:
            found[name] = _value(hints[name], value[name], f"{where}.{name}")
        elif field.default is field.default_factory is dataclasses.MISSING:
            raise RecordError(f"{where}: {name} is missing")
    return kind(**found)


def _value(hint: Any, value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(hint):
        return _record(typing.cast(type, hint), value, where)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return _optional(arguments, value, where)
    if origin is typing.Literal and value in arguments:
        return value
    if origin is tuple and isinstance(value, list):
        return tuple(_value(arguments[0], item, f"{where}[]") for item in value)
    if origin is Mapping and isinstance(value, dict):
        return {key: _value(arguments[1], item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, int) and abs(value) > LARGEST:
        raise RecordError(f"{where}: a number of more than 62 bits")
    if origin is None and _is_plain(hint, value):
        return float(value) if hint is float else value
    raise RecordError(f"{where}: {str(value)[:80]!r} is of the wrong type")


def _optional(arguments: tuple[Any, ...], value: Any, where: str) -> Any:
    if value is None and types.NoneType in arguments:
        return None
    return _value(next(a for a in arguments if a is not types.NoneType), value, where)


def _is_plain(hint: type, value: Any) -> bool:
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return isinstance(value, hint) and (hint is bool or not isinstance(value, bool))
