"""Values and durations in words for a person; nothing in them can drive a terminal."""

from __future__ import annotations

import re


def duration(seconds: float) -> str:
    """``40s``, ``3m``, ``2h 5m``, ``3d 4h``: two units at most."""
    whole = int(seconds)
    if whole < 60:
        return f"{whole}s"
    units = (("d", 86400), ("h", 3600), ("m", 60))
    at = next(n for n, (_, size) in enumerate(units) if whole >= size)
    parts = []
    for name, size in units[at : at + 2]:
        count, whole = divmod(whole, size)
        parts += [f"{count}{name}"] if count else []
    return " ".join(parts)


_SIGNS = {"→": "->", "±": "+-", "…": "...", "≤": "<=", "≥": ">=", "·": "."}
_SIGNS |= dict(zip("▁▂▃▄▅▆▇█━─●▲▼", ".:-=+*%##-*^v", strict=True))  # bars and pointers


def in_ascii(error: UnicodeError) -> tuple[str, int]:
    """An error handler for streams that can't show every sign: what comes nearest, else ``?``."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    signs = error.object[error.start : error.end]
    return "".join(_SIGNS.get(sign, "?") for sign in signs), error.end


_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")  # halves of pairs too


def clean(text: object) -> str:
    """Text from data without control characters, so that it can't drive the terminal."""
    return _CONTROL.sub("", str(text).replace("\n", " "))


def tokens(count: int | None) -> str:
    """``1.25M`` for 1,250,000; ``-`` for None."""
    if count is None:
        return "-"
    from .units import format_tokens  # brings pydantic, which `mixloop --help` need not wait for

    return format_tokens(count)


def number(value: float | None) -> str:
    """A number with four significant digits; ``-`` for None."""
    return "-" if value is None else f"{value:.4g}"
