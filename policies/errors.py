"""The one error this room raises, and the did-you-mean it carries."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class PolicyError(ValueError):
    """A policy, an option or a name that can't be used; the message is one readable line.

    The line says what is wrong, where (a key such as ``policy.with.interventions.0.move.to``),
    the value found and how to mend it.
    """

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


def suggest(word: str, known: Iterable[str]) -> str:
    """``; did you mean 'rules'?`` or, with nothing close, ``; known: rules, static``."""
    names = sorted(known)
    # case is the commonest slip, and difflib alone would count every letter of it
    by_fold = {name.casefold(): name for name in names}
    close = difflib.get_close_matches(word.casefold(), by_fold, n=1, cutoff=0.6)
    if close:
        return f"; did you mean {by_fold[close[0]]!r}?"
    return f"; known: {', '.join(names)}" if names else ""
