"""The one error that policies and what loads them raise."""

from __future__ import annotations


class PolicyError(ValueError):
    """A policy, an option or a name that can't be used; the message is one readable line.

    The line says what is wrong, where (a key such as ``policy.with.interventions.0.move.to``),
    the value found and how to mend it.
    """

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))
