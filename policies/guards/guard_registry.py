"""Guards as values: a name and what it does. A package adds its own by an entry point.

A guard that a package offers under the entry point group ``mixloop.guards`` takes part where
run.yaml names it: ``guards: {use: [NAME]}``. The entry point is an object with ``name`` and
``apply(state)``, or a class or function without arguments that makes one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any

from mixloop.common.errors import suggest
from mixloop.policies.interface import PolicyError

GROUP = "mixloop.guards"


@dataclass(frozen=True)
class Guard:
    """One bound on every decision.

    ``apply`` gets the ``GuardState``. It leaves a note, changes the mixture, or blocks it. A
    ``soft`` one is passed over for declared stages and operator's orders, and, unless ``always``,
    for a mixture that stays as it is.
    """

    name: str
    apply: Callable[[Any], None]
    soft: bool = True
    always: bool = False


def guard_names() -> list[str]:
    """The installed guards, sorted."""
    return sorted({entry.name for entry in entry_points(group=GROUP)})


def load_guard(name: str) -> Guard:
    """The installed guard of this name.

    Raises:
        PolicyError: when there is none, or it is no guard.
    """
    entry = next(iter(entry_points(group=GROUP, name=name)), None)
    if entry is None:
        mend = suggest(name, guard_names()) or "; install the package that brings it"
        raise PolicyError(f"no guard is called {name!r}{mend}")
    label = f"{name} ({entry.value})"
    try:
        guard = entry.load()
        if isinstance(guard, type) or not hasattr(guard, "apply"):
            guard = guard()
    except (Exception, SystemExit) as error:
        raise PolicyError(f"guard {label} doesn't load: {type(error).__name__}: {error}") from error
    if not callable(getattr(guard, "apply", None)) or not getattr(guard, "name", ""):
        raise PolicyError(f"guard {label} needs a name and apply(state); add them")
    soft, always = getattr(guard, "soft", True), getattr(guard, "always", False)
    return Guard(str(guard.name), guard.apply, bool(soft), bool(always))
