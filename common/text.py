"""Values and durations in words for a person; nothing in them can drive a terminal."""

from __future__ import annotations

import json
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


_CONTROL = r"\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff"  # halves of pairs too
# what has no width or turns the text beside it round: the code points that are ignorable by default
# (DerivedCoreProperties.txt of Unicode 16), separators of lines, and annotations
_UNSEEN = (
    r"\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u2028-\u202e"
    r"\u2060-\u206f\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb\U0001bca0-\U0001bca3"
    r"\U0001d173-\U0001d17a\U000e0000-\U000e0fff"
)
_HIDDEN = re.compile(f"[{_CONTROL}{_UNSEEN}]")
_LINES = str.maketrans("\n\u2028\u2029", "   ")


def clean(text: object) -> str:
    """Text from data of one line, without what a reader can't see.

    No control character drives the terminal, and nothing turns words round, joins or hides them.
    """
    return _HIDDEN.sub("", str(text).translate(_LINES))


def visible_json(text: str) -> str:
    """The same JSON with escapes for what :func:`clean` takes out."""
    return _HIDDEN.sub(lambda found: json.dumps(found[0])[1:-1], text)


def tokens(count: int | None) -> str:
    """``1.25M`` for 1,250,000; ``-`` for None."""
    if count is None:
        return "-"
    from .units import format_tokens  # brings pydantic, which `mixloop --help` need not wait for

    return format_tokens(count)


def number(value: float | None) -> str:
    """A number with four significant digits; ``-`` for None."""
    return "-" if value is None else f"{value:.4g}"
