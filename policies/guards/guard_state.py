"""One proposal on its way through the guards, and what every guard needs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from mixloop.policies.mixture import Stretch, headroom, total_variation

from .guard_types import Action, GuardContext, GuardNote, GuardSettings

# two mixtures this close quantise to the same order, or nearly: no reason for a new one
SAME = 1e-6

Blocked = Literal["hold", "refused", "inconclusive"]


class Stop(Exception):  # noqa: N818 (a control signal inside this module, not an error)
    """Ends the pass through the guards with a verdict."""

    def __init__(self, verdict: Blocked) -> None:
        self.verdict: Blocked = verdict


@dataclass
class GuardState:
    """One proposal on its way through the guards."""

    context: GuardContext
    settings: GuardSettings
    weights: dict[str, float]
    plan: list[tuple[int, dict[str, float]]]
    notes: list[GuardNote] = field(default_factory=list)

    def note(self, guard: str, action: Action, detail: str) -> None:
        self.notes.append(GuardNote(guard, action, detail))

    def change(self, guard: str, weights: dict[str, float], detail: str) -> None:
        self.notes.append(GuardNote(guard, "changed", detail, self.weights, weights))
        self.weights = weights

    def stop(self, guard: str, detail: str, verdict: Blocked) -> Stop:
        self.note(guard, "blocked", detail)
        return Stop(verdict)


def named(weights: Mapping[str, float], context: GuardContext) -> dict[str, float]:
    """Every source named, in the run's order; strangers kept at the end for the simplex guard."""
    return dict.fromkeys(context.sources, 0.0) | dict(weights)


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


def same_plan(one: Sequence[Stretch], other: Sequence[Stretch]) -> bool:
    """Whether two plans are the same order."""
    if [until for until, _ in one] != [until for until, _ in other]:
        return False
    pairs = zip(one, other, strict=True)
    return all(total_variation(mine, theirs) <= SAME for (_, mine), (_, theirs) in pairs)


def bounds_of(
    weights: Mapping[str, float],
    context: GuardContext,
    settings: GuardSettings,
    drawn: Mapping[str, float],
    length: float,
) -> dict[str, tuple[float, float]]:
    """What every hard guard together allows over the next ``length`` tokens.

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
    moved = [n for n in after if abs(after[n] - before.get(n, 0.0)) > SAME]
    moved.sort(key=lambda name: -abs(after[name] - before.get(name, 0.0)))
    shown = [f"{n} {before.get(n, 0.0):.4g} -> {after[n]:.4g}" for n in moved[:6]]
    more = [f"{len(moved) - 6} more"] if len(moved) > 6 else []
    return ", ".join(shown + more) or "less than 1e-6"
