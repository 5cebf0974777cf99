"""Token counts as people write them: ``11T``, ``250B``, ``2M``, ``400k``."""

from __future__ import annotations

from decimal import Decimal, InvalidOperation
from typing import Annotated

from pydantic import BeforeValidator, Field

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9, "t": 10**12}
_FORMS = "write a whole number of tokens such as 400k, 2M, 250B, 11T or 2000000"


def parse_tokens(value: object) -> int:
    """A number of tokens from an int or a string with a unit (k, M, B, T; case-insensitive).

    Raises:
        ValueError: naming the value and the legal forms.
    """
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError(f"{value!r} is no token count; {_FORMS}")
    text = str(value).strip().replace("_", "").replace(",", "")
    unit = text[-1:].lower() if text[-1:].isalpha() else ""
    try:
        number = Decimal(text[: -len(unit)] if unit else text) * _UNITS[unit]
        whole = int(number)
    except (InvalidOperation, KeyError, ValueError, OverflowError):
        raise ValueError(f"{value!r} is no token count; {_FORMS}") from None
    if whole != number or whole < 0 or whole > 10**18:
        raise ValueError(f"{value!r} is no token count; {_FORMS}")
    return whole


def format_tokens(tokens: float) -> str:
    """A count with three significant digits and its unit: ``1.23M``, ``8T``, ``950``."""
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(tokens) >= 0.9995 * size:  # 999,999 is 1M, not 1000k
            return f"{tokens / size:.3g}{unit}"
    return f"{tokens:.0f}"


Tokens = Annotated[int, BeforeValidator(parse_tokens), Field(ge=0)]
"""A pydantic field type for token counts with units."""
