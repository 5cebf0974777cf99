"""One proposal on its way through the guards, and what every guard needs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from math import fsum, isfinite
from typing import Literal

from mixloop.common.errors import suggest
from mixloop.policies.mixture import Stretch, headroom, total_variation

from .guard_types import Action, GuardContext, GuardNote, GuardSettings

# two mixtures this close quantise to the same order, or nearly: no reason for a new one
TOLERANCE = 1e-6

Verdict = Literal["hold", "refused", "inconclusive"]


class Blocked(Exception):  # noqa: N818 (a verdict, not an error)
    """A guard's word that the proposal goes no further. ``GuardState.blocked`` makes one."""

    def __init__(self, verdict: Verdict) -> None:
        self.verdict: Verdict = verdict


@dataclass
class GuardState:
    """One proposal on its way through the guards.

    ``weights`` (every source named) and ``plan`` are as the guards so far left them; ``guard`` is
    whose turn it is.
    """

    context: GuardContext
    settings: GuardSettings
    weights: dict[str, float]
    plan: list[tuple[int, dict[str, float]]]
    notes: list[GuardNote] = field(default_factory=list)
    guard: str = ""

    @property
    def change(self) -> float:
        """Total variation from the mixture in force."""
        return total_variation(self.weights, self.context.weights)

    @property
    def problem(self) -> str:
        """What keeps this from being mixtures of the run's sources, one after another; or empty."""
        for label, weights in [("", self.weights), *((f"plan to {u}: ", w) for u, w in self.plan)]:
            problem = _simplex_problem(weights, self.context)
            if problem:
                return label + problem
        ends = [self.context.tokens, *(until for until, _ in self.plan)]
        if any(later <= earlier for earlier, later in pairwise(ends)):
            return "the plan's stretches must end one after another, all in the future"
        return ""

    def note(self, action: Action, detail: str) -> None:
        """Leave a line in the history."""
        self.notes.append(GuardNote(self.guard, action, detail))

    def replace(self, weights: dict[str, float], detail: str) -> None:
        """Go on with another mixture, and say why."""
        self.notes.append(GuardNote(self.guard, "changed", detail, self.weights, weights))
        self.weights = weights

    def blocked(self, detail: str, verdict: Verdict = "hold") -> Blocked:
        """To be raised: the proposal goes no further, and why."""
        self.note("blocked", detail)
        return Blocked(verdict)

    def bounds(self, length: float) -> dict[str, tuple[float, float]]:
        """What every hard guard together allows over the next ``length`` tokens."""
        return bounds_of(self.weights, self.context, self.settings, self.context.drawn, length)


def named(weights: Mapping[str, float], context: GuardContext) -> dict[str, float]:
    """Every source named, in the run's order; unknown ones kept at the end for the first guard."""
    return dict.fromkeys(context.sources, 0.0) | dict(weights)


def _simplex_problem(weights: Mapping[str, float], context: GuardContext) -> str:
    for name, weight in weights.items():
        if name not in context.sources:
            return f"no source is called {name!r}{suggest(name, context.sources)}"
        if not isfinite(weight) or weight < 0:
            return f"{name} has weight {weight}, which is no share"
    total = fsum(weights.values())
    return "" if abs(total - 1) <= TOLERANCE else f"the weights sum to {total:g}, not 1"


def first_length(context: GuardContext, plan: Sequence[Stretch]) -> float:
    """Tokens of the first stretch, within the budget: to its end, at least to the next decision.

    Only a declared plan, or the one in force, is sure to be followed: only its first stretch may
    be shorter than that.
    """
    end: float = plan[0][0] if plan else context.tokens
    sure = context.declared or same_plan(plan, context.plan)
    if not (sure and len(plan) > 1):
        end = max(end, context.tokens + context.horizon)
    return max(0.0, min(end, context.budget) - context.tokens)


def same_plan(first: Sequence[Stretch], second: Sequence[Stretch]) -> bool:
    """Whether two plans are the same order."""
    if [until for until, _ in first] != [until for until, _ in second]:
        return False
    pairs = zip(first, second, strict=True)
    return all(total_variation(mine, theirs) <= TOLERANCE for (_, mine), (_, theirs) in pairs)


def bounds_of(
    weights: Mapping[str, float],
    context: GuardContext,
    settings: GuardSettings,
    drawn: Mapping[str, float],
    length: float,
) -> dict[str, tuple[float, float]]:
    """What every hard guard together allows over the ``length`` tokens after ``drawn``.

    A pinned source keeps its share as far as the ledger lets it. A source without weight gets
    none, and has no floor, as one on standby; an exhausted source loses its floor: the ledger is
    the harder limit.
    """
    left = headroom(context.sources, drawn, settings.max_epochs)
    bounds = {}
    for name, source in context.sources.items():
        live = weights[name] > 0
        most = settings.cap if live else 0.0
        if length > 0:
            most = min(most, left[name] / length)
        low = settings.floor if live and not source.standby else 0.0
        if name in context.pins:
            low = most = min(context.pins[name], most)
        bounds[name] = (min(low, most), most)
    return bounds


def moves(before: Mapping[str, float], after: Mapping[str, float]) -> str:
    """``owm 0.05 -> 0.03, web 0.6 -> 0.62``: the largest moves first, at most six."""
    sizes = {n: round(abs(w - before.get(n, 0.0)), 9) for n, w in after.items()}
    moved = sorted((n for n in after if sizes[n] > TOLERANCE), key=lambda n: -sizes[n])
    shown = [f"{n} {before.get(n, 0.0):.4g} -> {after[n]:.4g}" for n in moved[:6]]
    more = [f"{len(moved) - 6} more"] if len(moved) > 6 else []
    return ", ".join(shown + more) or "less than 1e-6"
