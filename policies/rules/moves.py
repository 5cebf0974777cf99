"""What an intervention of ``rules`` does: move, scale, set, swap.

What an intervention of ``rules`` does to a mixture: move, scale, set, swap.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from math import fsum
from typing import Annotated

from pydantic import Field, model_validator

from mixloop.common.errors import suggest
from mixloop.policies.interface import Names, OptionsModel, PolicyError, Share, Source
from mixloop.policies.mixture import Mixture, check_names, total_variation


class Move(OptionsModel):
    """``step`` of all training tokens goes to ``to``, taken from ``from`` in proportion.

    Both are sources or tags, or lists of them; ``from: rest`` is every other source that has
    weight. ``to`` (together) never exceeds ``cap``; no source of ``from`` falls below ``floor``.
    A source on standby is brought in only by its own name.
    """

    to: Names
    from_: Names = Field(default=("rest",), alias="from")
    step: Annotated[float, Field(gt=0, le=1)] = 0.05
    cap: Annotated[float, Field(gt=0, le=1)] = 1.0
    floor: Share = 0.0


class Scale(OptionsModel):
    """The share of ``of`` (sources or tags, together) times ``by``; the others give or take.

    ``by`` above 1 takes from ``from`` in proportion, below 1 gives to it. ``cap`` bounds the scaled
    share, ``floor`` every source that gives.
    """

    of: Names
    by: Annotated[float, Field(gt=0, le=100)]
    from_: Names = Field(default=("rest",), alias="from")
    cap: Annotated[float, Field(gt=0, le=1)] = 1.0
    floor: Share = 0.0

    @model_validator(mode="after")
    def _changes(self) -> Scale:
        if self.by == 1:
            raise ValueError("by 1 changes nothing; give a factor above or below 1")
        return self


class Swap(OptionsModel):
    """A source on standby in for one that underperforms: ``part`` of the share of ``out`` (sources
    or tags) goes to the source ``in``."""

    in_: Annotated[str, Field(min_length=1, alias="in")]
    out: Names
    part: Annotated[float, Field(gt=0, le=1)] = 1.0


class Action(OptionsModel):
    """One of: ``move`` points, ``scale`` a share, ``set`` a mixture, ``swap`` sources."""

    move: Move | None = None
    scale: Scale | None = None
    set: Mixture | None = None
    swap: Swap | None = None

    @model_validator(mode="after")
    def _one_action(self) -> Action:
        given = [key for key in ("move", "scale", "set", "swap") if getattr(self, key) is not None]
        if len(given) != 1:
            found = " and ".join(given) or "none"
            raise ValueError(f"give one of move, scale, set and swap, not {found}")
        return self


REST = "rest"
# smaller moves than this are not worth an order
LEAST = 1e-4

Weights = Mapping[str, float]
Sources = Mapping[str, Source]


@dataclass(frozen=True)
class Moved:
    """A move carried out: the new mixture, what each source gained (or lost) and the whole."""

    weights: dict[str, float]
    gains: dict[str, float]
    amount: float

    def __str__(self) -> str:
        given = [f"{name} +{gain:.3g}" for name, gain in self.gains.items() if gain > 0]
        taken = [name for name, gain in self.gains.items() if gain < 0]
        origin = ", ".join(taken) if len(taken) <= 3 else f"{len(taken)} sources"
        return f"{', '.join(given)} from {origin}"


@dataclass(frozen=True)
class CannotMove:
    """Why a move has nothing left to do."""

    why: str


def act(
    action: Action, weights: Weights, sources: Sources, receivers: Collection[str] = ()
) -> Moved | CannotMove:
    """The mixture after the action.

    Args:
        receivers: sources that other actions of the same decision give to; where this one takes
            from the rest, nothing is taken there.

    Raises:
        PolicyError: for a name that is neither a source nor a tag.
    """
    if action.move is not None:
        return carry_out(action.move, weights, sources, receivers)
    if action.scale is not None:
        return _scale(action.scale, weights, sources, receivers)
    if action.swap is not None:
        return _swap(action.swap, weights, sources)
    return _set(action.set or {}, weights, sources)


def carry_out(
    move: Move, weights: Weights, sources: Sources, receivers: Collection[str] = ()
) -> Moved | CannotMove:
    """The mixture after a move of points; see :func:`act`."""
    to = resolve(move.to, weights, sources)
    if not to:
        return CannotMove(f"no active source is tagged {' or '.join(move.to)}")
    origin = [n for n in _giving(move.from_, weights, sources) if n not in {*to, *receivers}]
    held = fsum(weights[name] for name in to)
    spare = {name: max(0.0, weights[name] - move.floor) for name in origin}
    available = fsum(spare.values())
    amount = min(move.step, move.cap - held, available)
    if amount < LEAST:
        if move.cap - held < LEAST:
            return CannotMove(f"{', '.join(to)} at {held:.3g} has reached its cap {move.cap:g}")
        floor = f" above floor {move.floor:g}" if move.floor else ""
        return CannotMove(f"{', '.join(origin) or ', '.join(move.from_)} has nothing left{floor}")
    gains = {name: amount * part for name, part in _shares(to, weights, sources).items()}
    gains |= {n: -amount * part / available for n, part in spare.items() if part > 0}
    return _moved(weights, gains, amount)


def _scale(
    spec: Scale, weights: Weights, sources: Sources, receivers: Collection[str]
) -> Moved | CannotMove:
    scaled = [name for name in resolve(spec.of, weights, sources) if weights[name] > 0]
    held = fsum(weights[name] for name in scaled)
    if held < LEAST:
        return CannotMove(f"{', '.join(spec.of)} has no share to scale")
    step = held * abs(spec.by - 1)
    others = [n for n in _giving(spec.from_, weights, sources) if n not in scaled]
    if spec.by > 1:
        rule = Move(to=tuple(scaled), from_=spec.from_, step=min(step, 1), cap=spec.cap,
                    floor=spec.floor)  # fmt: skip
        return carry_out(rule, weights, sources, receivers if REST in spec.from_ else ())
    if not others:
        return CannotMove(f"{', '.join(spec.from_)} can't take what {', '.join(scaled)} gives")
    rule = Move(to=tuple(others), from_=tuple(scaled), step=step, floor=spec.floor)
    return carry_out(rule, weights, sources)


def _swap(spec: Swap, weights: Weights, sources: Sources) -> Moved | CannotMove:
    out = [n for n in resolve(spec.out, weights, sources) if weights[n] > 0 and n != spec.in_]
    amount = spec.part * fsum(weights[name] for name in out)
    if amount < LEAST:
        return CannotMove(f"{', '.join(spec.out)} has no share to swap")
    return _moved(weights, {spec.in_: amount} | {n: -spec.part * weights[n] for n in out}, amount)


def _set(mixture: Weights, weights: Weights, sources: Sources) -> Moved | CannotMove:
    gains = {name: mixture.get(name, 0.0) - weights[name] for name in sources}
    amount = total_variation({n: mixture.get(n, 0.0) for n in sources}, weights)
    if amount < LEAST:
        return CannotMove("the mixture is already as set")
    return _moved(weights, {name: gain for name, gain in gains.items() if gain != 0}, amount)


def _moved(weights: Weights, gains: dict[str, float], amount: float) -> Moved:
    after = {name: max(0.0, w + gains.get(name, 0.0)) for name, w in weights.items()}
    return Moved(after, gains, amount)


def receiving(action: Action, weights: Weights, sources: Sources) -> set[str]:
    """The sources an action gives to."""
    if action.move is not None:
        return set(resolve(action.move.to, weights, sources))
    done = act(action, weights, sources)
    return {n for n, gain in done.gains.items() if gain > 0} if isinstance(done, Moved) else set()


def giving(action: Action, weights: Weights, sources: Sources) -> set[str]:
    """The sources an action takes from by name; none where it takes from the rest."""
    if takes_rest(action):
        return set()
    if action.move is not None:
        return set(_giving(action.move.from_, weights, sources))
    done = act(action, weights, sources)
    return {n for n, gain in done.gains.items() if gain < 0} if isinstance(done, Moved) else set()


def takes_rest(action: Action) -> bool:
    """Whether the action takes from whatever is left, so that it can spare a source."""
    spec = action.move or action.scale
    return spec is not None and REST in spec.from_


def check_action(action: Action, sources: Mapping[str, Sequence[str]], where: str) -> None:
    """Raise ``PolicyError`` for a name that is neither a source nor a tag (name to tags)."""
    if action.move is not None:
        check_places(sources, f"{where}.move", to=action.move.to, from_=action.move.from_)
    if action.scale is not None:
        check_places(sources, f"{where}.scale", of=action.scale.of, from_=action.scale.from_)
    if action.swap is not None:
        check_names("source", [action.swap.in_], sources, f"{where}.swap.in")
        check_places(sources, f"{where}.swap", out=action.swap.out)
    check_names("source", action.set or {}, sources, f"{where}.set")


def check_places(sources: Mapping[str, Sequence[str]], where: str, **keys: Sequence[str]) -> None:
    """Raise ``PolicyError`` for a name that is no source and no tag; ``from`` may be ``rest``."""
    known = {*sources, *(tag for tags in sources.values() for tag in tags)}
    for key, names in keys.items():
        for name in names:
            if name not in known and not (key == "from_" and name == REST):
                place = f"{where}.{key.rstrip('_')}"
                raise PolicyError(f"{place}: no source or tag {name!r}{suggest(name, known)}")


def resolve(names: Sequence[str], weights: Weights, sources: Sources) -> list[str]:
    """Sources by name, or by tag; a tag doesn't reach a source on standby without weight."""
    found = []
    for name, source in sources.items():
        active = weights[name] > 0 or not source.standby
        tagged = any(tag in names and tag not in sources for tag in source.tags)
        if name in names or (tagged and active):
            found.append(name)
    return found


def _giving(names: Sequence[str], weights: Weights, sources: Sources) -> list[str]:
    """The sources ``from`` means, those of ``to`` included where it is ``rest``."""
    found = resolve([name for name in names if name != REST], weights, sources)
    rest = sources if REST in names and REST not in sources else ()
    return [n for n in sources if (n in found or n in rest) and weights[n] > 0]


def _shares(to: Sequence[str], weights: Weights, sources: Sources) -> dict[str, float]:
    """How an amount spreads over its receivers: by weight, by size where none has any."""
    sizes: dict[str, float] = {name: weights[name] for name in to}
    if fsum(sizes.values()) <= 0:
        sizes = {name: float(max(sources[name].unique_tokens, 1)) for name in to}
    total = fsum(sizes.values())
    return {name: size / total for name, size in sizes.items()}
