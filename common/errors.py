"""The one exception that means: the user gave us something wrong, and this line says what."""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Iterable


class BadInput(Exception):  # noqa: N818 - says what is wrong, not that we failed
    """Bad input. The message is one line naming the file, the key, the value and the mend.

    The command prints it without a traceback and ends with exit code 2.
    """


def shown(value: object, length: int = 60) -> str:
    """A value from data for a message, as Python writes it, cut to a readable length.

    A few anchors of YAML can stand for more text than memory holds.
    """
    short = reprlib.Repr()
    short.maxstring = short.maxother = short.maxlong = length
    short.maxlevel = 2
    try:
        return short.repr(value)
    except ValueError:  # Python refuses to write integers of thousands of digits
        return f"{type(value).__name__} of thousands of digits"


def suggest(word: str, known: Iterable[str]) -> str:
    """``; did you mean 'rules'?`` or, with nothing close, ``; known: rules, static``."""
    names = sorted(known)
    # case is the commonest slip, and difflib alone would count every letter of it
    by_fold = {name.casefold(): name for name in names}
    close = difflib.get_close_matches(word.casefold(), by_fold, n=1, cutoff=0.6)
    if close:
        return f"; did you mean {by_fold[close[0]]!r}?"
    return f"; known: {', '.join(names)}" if names else ""
