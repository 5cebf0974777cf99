"""JSON in the journal's columns, long values deflated."""

from __future__ import annotations

import json
import zlib
from typing import Any


class JournalError(Exception):
    """The journal cannot be used; the message is one line for a person."""


_DEFLATE_ABOVE = 100  # characters of JSON
_LARGEST_VALUE = 2**28  # bytes of JSON: what deflate makes of a few kilobytes can fill memory


def dumps(value: object) -> str | None:
    """Compact JSON, None kept as SQL NULL. Non-finite numbers are refused."""
    if value is None:
        return None
    return json.dumps(value, separators=(",", ":"), allow_nan=False, ensure_ascii=False)


def pack(value: object) -> str | bytes | None:
    """JSON as a column holds it: text while it is short, deflated (zlib, RFC 1950) above."""
    text = dumps(value)
    if text is None or len(text) <= _DEFLATE_ABOVE:
        return text
    return zlib.compress(text.encode(), 9)


def unpack(stored: str | bytes) -> Any:
    """What :func:`pack` was given.

    Raises:
        ValueError: damaged.
    """
    if isinstance(stored, str):
        return json.loads(stored)
    inflate = zlib.decompressobj()
    try:
        text = inflate.decompress(stored, _LARGEST_VALUE)
    except zlib.error as error:  # no ValueError, which all who read a journal expect of damage
        raise ValueError(f"a packed value is damaged: {error}") from error
    if not inflate.eof:
        raise ValueError(f"a packed value is torn, or of more than {_LARGEST_VALUE} bytes")
    return json.loads(text)
