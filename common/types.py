"""JSON's name as a type, and JSON as it is taken in.

Strict, and bounded where it comes from a process that may say anything.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

Json = dict[str, Any]
"""An object of JSON."""
MOST_VALUES = 2**19
"""Values of an answer: a plan of nine stretches over 10,000 sources has a fifth of them."""
DEEPEST = 64
"""Lists and objects in one another, of an answer."""


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not a JSON number")


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members: dict[str, Any] = {}
    for key, value in pairs:
        if key in members:
            raise ValueError(f"key {key[:60]!r} is given twice")
        members[key] = value
    return members


def parse_json(text: str) -> Any:
    """JSON as the standard has it: no NaN, no infinities, no key twice.

    Raises:
        json.JSONDecodeError: it is not JSON.
        ValueError: NaN, Infinity, a duplicate key, or an integer of thousands of digits.
        RecursionError: nested too deeply.
    """
    return json.loads(text, parse_constant=_no_constant, object_pairs_hook=_no_duplicates)


def parse_bounded(data: bytes, values: int = MOST_VALUES, depth: int = DEEPEST) -> Any:
    """JSON as :func:`parse_json` has it, of no more than so many values and so deep.

    What is bounded in bytes is not yet so in memory: three bytes of JSON can make a hundred.

    Raises:
        ValueError: it has more, or is no JSON; one line says which.
    """
    if sum(data.count(sign) for sign in (b",", b"[", b"{")) > values:
        raise ValueError(f"it holds more than {values:,} values")
    try:
        value = parse_json(data.decode())
    except RecursionError:
        raise ValueError(f"it is nested more than {depth} deep") from None
    if is_deeper(value, depth):
        raise ValueError(f"it is nested more than {depth} deep")
    return value


def is_deeper(value: Any, depth: int) -> bool:
    """Whether more lists and mappings than ``depth`` lie in one another."""
    level = [value]
    for _ in range(depth + 1):
        inner: list[Any] = []
        for item in level:
            if isinstance(item, Mapping):
                inner += item.values()
            elif isinstance(item, list | tuple):
                inner += item
        if not (level := [item for item in inner if isinstance(item, Mapping | list | tuple)]):
            return False
    return True
