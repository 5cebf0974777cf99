"""Token counts as people write them: ``11T``, ``250B``, ``2M``, ``1e6``, ``1,000,000``."""

from __future__ import annotations

from decimal import Decimal, InvalidOperation
from fractions import Fraction
from typing import Annotated

from pydantic import BeforeValidator, Field

from .errors import shown

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9, "t": 10**12}
_MOST = 10**18
_DIGITS = 40  # before or behind the point: more are no count, and would take long to write out
_FORMS = "a whole number, or one with a unit as in 400k, 1.5M, 250B, 11T"


def parse_tokens(value: object) -> int:
    """A number of tokens from a number, or from text with or without a unit.

    Units are k, M, B and T in either case; ``1e6``, ``1_000_000`` and ``1,000,000`` are numbers.

    Raises:
        ValueError: naming the value and the legal forms.
    """
    count = None if isinstance(value, bool) else _count(value)
    if count is None or not 0 <= count <= _MOST or count.denominator != 1:
        raise ValueError(f"{shown(value, 200)} is not a token count: write {_FORMS}")
    return int(count)


def _count(value: object) -> Fraction | None:
    if not isinstance(value, int | float | str) or (isinstance(value, int) and value > _MOST):
        return None
    text = str(value).strip().replace("_", "").replace(",", "")
    unit = text[-1:].lower() if text[-1:].isalpha() else ""
    try:
        number, size = Decimal(text[: -len(unit)].rstrip() if unit else text), _UNITS[unit]
    except (InvalidOperation, KeyError):
        return None
    if not number.is_finite() or abs(number.adjusted()) > _DIGITS:
        return None
    return Fraction(number) * size


def format_tokens(tokens: float) -> str:
    """A count with three significant digits and its unit: ``1.23M``, ``8T``, ``950``."""
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(tokens) >= 0.9995 * size:  # 999,999 is 1M, not 1000k
            return f"{tokens / size:.3g}{unit}"
    return f"{tokens:.0f}"


Tokens = Annotated[int, BeforeValidator(parse_tokens), Field(ge=0)]
"""A number of tokens; strings may carry a unit (`11T`)."""
