"""What an intervention of ``rules`` does to a mixture: move, scale, set, swap."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from math import fsum, inf
from typing import Annotated

from pydantic import Field, model_validator

from mixloop.common.errors import suggest
from mixloop.policies.interface import Names, OptionsModel, PolicyError, Share, Source
from mixloop.policies.mixture import Mixture, check_names, fill, total_variation

REST = "rest"
MIN_MOVE = 1e-4  # smaller moves than this are not worth an order

Weights = Mapping[str, float]
Sources = Mapping[str, Source]
Tags = Mapping[str, Sequence[str]]
"""Source to its tags."""


@dataclass(frozen=True)
class Moved:
    """A move carried out: the new mixture, and what each source gained (or lost).

    ``lasting`` are the sources that would have got more if their epochs lasted to the end.
    """

    weights: dict[str, float]
    gains: dict[str, float]
    lasting: tuple[str, ...] = ()

    def __str__(self) -> str:
        receivers = [f"{name} +{gain:.3g}" for name, gain in self.gains.items() if gain > 0]
        givers = [name for name, gain in self.gains.items() if gain < 0]
        origin = ", ".join(givers) if len(givers) <= 3 else f"{len(givers)} sources"
        kept = f" ({', '.join(self.lasting)} no further: lasts to the end)" if self.lasting else ""
        return f"{', '.join(receivers)} from {origin}{kept}"


@dataclass(frozen=True)
class CannotMove:
    """Why a move has nothing left to do."""

    why: str


class Change:
    """What the four kinds of change have in common."""

    @property
    def takes_rest(self) -> bool:
        """Whether it takes from whatever is left, so that it can spare a source."""
        return REST in getattr(self, "from_", ())

    def carry_out(
        self,
        weights: Weights,
        sources: Sources,
        spared: Collection[str] = (),
        lasting: Weights | None = None,
    ) -> Moved | CannotMove:
        """The mixture after the change.

        Args:
            weights: the mixture before, every source named.
            sources: of the run.
            spared: where the change takes from the rest, nothing is taken from these.
            lasting: the share by source at which its epochs last to the end of the budget; none
                is raised past it, but by a mixture that was asked for as a whole.
        """
        raise NotImplementedError

    def ends(self, weights: Weights, sources: Sources) -> tuple[set[str], set[str]]:
        """The sources it gives to, and those it takes from by name (none: from the rest)."""
        moved = self.carry_out(weights, sources)
        gains = moved.gains if isinstance(moved, Moved) else {}
        to, origin = ({n for n, gain in gains.items() if sign * gain > 0} for sign in (1, -1))
        return to, set() if self.takes_rest else origin

    def check_places(self, tags: Tags, where: str) -> None:
        """Raise ``PolicyError`` for a name that is neither a source nor a tag."""
        keys = [key for key in ("to", "of", "out", "from_") if hasattr(self, key)]
        check_places(tags, where, **{key: getattr(self, key) for key in keys})


class Move(OptionsModel, Change):
    """``step`` of all training tokens goes to ``to``, taken from ``from`` in proportion.

    Both are sources or tags, or lists of them; ``from: rest`` is every other source that has
    weight. ``to`` (together) never exceeds ``cap``; no source of ``from`` falls below ``floor``.
    A source on standby is brought in only by its own name.
    """

    to: Names
    from_: Names = Field(default=(REST,), alias="from")
    step: Annotated[float, Field(gt=0, le=1)] = 0.05
    cap: Annotated[float, Field(gt=0, le=1)] = 1.0
    floor: Share = 0.0

    def carry_out(
        self,
        weights: Weights,
        sources: Sources,
        spared: Collection[str] = (),
        lasting: Weights | None = None,
    ) -> Moved | CannotMove:
        """The mixture after the move."""
        to = resolve(self.to, weights, sources)
        if not to:
            return CannotMove(f"no active source is tagged {' or '.join(self.to)}")
        kept = {*to, *(spared if self.takes_rest else ())}
        origin = [n for n in _giving(self.from_, weights, sources) if n not in kept]
        held = fsum(weights[name] for name in to)
        spare = {name: max(0.0, weights[name] - self.floor) for name in origin}
        available = fsum(spare.values())
        room = _room(to, weights, lasting)
        amount = min(self.step, self.cap - held, available)
        if amount < MIN_MOVE:
            if self.cap - held < MIN_MOVE:
                return CannotMove(f"{', '.join(to)} at {held:.3g} has reached its cap {self.cap:g}")
            floor = f" above floor {self.floor:g}" if self.floor else ""
            return CannotMove(f"{', '.join(origin or self.from_)} has nothing left{floor}")
        gains = _poured(amount, _shares(to, weights, sources), room)
        given = fsum(gains.values())
        if given < MIN_MOVE:
            return _used_up(to)
        full = tuple(name for name in to if gains[name] > room[name] - MIN_MOVE)
        gains |= {n: -given * part / available for n, part in spare.items() if part > 0}
        return _moved(weights, gains, full)

    def ends(self, weights: Weights, sources: Sources) -> tuple[set[str], set[str]]:
        """The sources it gives to and takes from, or would if there were anything to give."""
        origin = () if self.takes_rest else _giving(self.from_, weights, sources)
        return set(resolve(self.to, weights, sources)), set(origin)


class Scale(OptionsModel, Change):
    """The share of ``of`` (sources or tags, together) times ``by``; the others give or take.

    ``by`` above 1 takes from ``from`` in proportion, below 1 gives to it. ``cap`` bounds the scaled
    share, ``floor`` every source that gives.
    """

    of: Names
    by: Annotated[float, Field(gt=0, le=100)]
    from_: Names = Field(default=(REST,), alias="from")
    cap: Annotated[float, Field(gt=0, le=1)] = 1.0
    floor: Share = 0.0

    @model_validator(mode="after")
    def _changes(self) -> Scale:
        if self.by == 1:
            raise ValueError("by 1 changes nothing; give a factor above or below 1")
        return self

    def carry_out(
        self,
        weights: Weights,
        sources: Sources,
        spared: Collection[str] = (),
        lasting: Weights | None = None,
    ) -> Moved | CannotMove:
        """A move to the scaled sources, or from them."""
        scaled = [name for name in resolve(self.of, weights, sources) if weights[name] > 0]
        held = fsum(weights[name] for name in scaled)
        if held < MIN_MOVE:
            return CannotMove(f"{', '.join(self.of)} has no share to scale")
        step = min(held * abs(self.by - 1), 1)
        move = Move(to=tuple(scaled), from_=self.from_, step=step, cap=self.cap, floor=self.floor)
        if self.by < 1:
            others = [n for n in _giving(self.from_, weights, sources) if n not in scaled]
            if not others:
                return CannotMove(
                    f"{', '.join(self.from_)} can't take what {', '.join(scaled)} gives"
                )
            move = Move(to=tuple(others), from_=tuple(scaled), step=step, floor=self.floor)
        return move.carry_out(weights, sources, spared, lasting)


@dataclass(frozen=True)
class SetMixture(Change):
    """A whole mixture."""

    mixture: Mixture

    def carry_out(
        self,
        weights: Weights,
        sources: Sources,
        spared: Collection[str] = (),
        lasting: Weights | None = None,
    ) -> Moved | CannotMove:
        """The mixture asked for."""
        target = {name: self.mixture.get(name, 0.0) for name in sources}
        if total_variation(target, weights) < MIN_MOVE:
            return CannotMove("the mixture is already as set")
        gains = {name: share - weights[name] for name, share in target.items()}
        return _moved(weights, {name: gain for name, gain in gains.items() if gain != 0})

    def check_places(self, tags: Tags, where: str) -> None:
        """Raise ``PolicyError`` for a name that is no source."""
        check_names("source", self.mixture, tags, where)


class Swap(OptionsModel, Change):
    """A source on standby in for one that underperforms.

    ``part`` of the share of ``out`` (sources or tags) goes to the source ``in``.
    """

    in_: Annotated[str, Field(min_length=1, alias="in")]
    out: Names
    part: Annotated[float, Field(gt=0, le=1)] = 1.0

    def carry_out(
        self,
        weights: Weights,
        sources: Sources,
        spared: Collection[str] = (),
        lasting: Weights | None = None,
    ) -> Moved | CannotMove:
        """The mixture after the swap."""
        out = [n for n in resolve(self.out, weights, sources) if weights[n] > 0 and n != self.in_]
        amount = self.part * fsum(weights[name] for name in out)
        if amount < MIN_MOVE:
            return CannotMove(f"{', '.join(self.out)} has no share to swap")
        room = _room([self.in_], weights, lasting)[self.in_]
        if room < MIN_MOVE:
            return _used_up([self.in_])
        part = self.part * min(1.0, room / amount)
        gains = {self.in_: min(amount, room)} | {n: -part * weights[n] for n in out}
        return _moved(weights, gains, (self.in_,) if room < amount else ())

    def check_places(self, tags: Tags, where: str) -> None:
        """Raise ``PolicyError`` for a name that is no source, or for ``out`` no tag either."""
        check_names("source", [self.in_], tags, f"{where}.in")
        super().check_places(tags, where)


class Action(OptionsModel):
    """One of: ``move`` points, ``scale`` a share, ``set`` a mixture, ``swap`` sources."""

    move: Move | None = None
    scale: Scale | None = None
    set: Mixture | None = None
    swap: Swap | None = None

    @model_validator(mode="after")
    def _one_action(self) -> Action:
        kinds = [key for key in Action.model_fields if getattr(self, key) is not None]
        if len(kinds) != 1:
            raise ValueError(
                f"give one of move, scale, set and swap, not {' and '.join(kinds) or 'none'}"
            )
        return self

    @property
    def change(self) -> Change:
        """The one that is given."""
        set_mixture = SetMixture(self.set) if self.set is not None else None
        changes = (self.move, self.scale, set_mixture, self.swap)
        return next(change for change in changes if change is not None)

    def check_places(self, tags: Tags, where: str) -> None:
        """Raise ``PolicyError`` for a name that is neither a source nor a tag."""
        key = next(key for key in Action.model_fields if getattr(self, key) is not None)
        self.change.check_places(tags, f"{where}.{key}")


def _moved(weights: Weights, gains: dict[str, float], lasting: tuple[str, ...] = ()) -> Moved:
    after = {name: max(0.0, w + gains.get(name, 0.0)) for name, w in weights.items()}
    return Moved(after, gains, lasting)


def _room(to: Sequence[str], weights: Weights, lasting: Weights | None) -> dict[str, float]:
    """By how much each source may be raised and still last to the end of the budget."""
    return {n: max(0.0, (lasting or {}).get(n, inf) - weights[n]) for n in to}


def _poured(amount: float, parts: Weights, room: Weights) -> dict[str, float]:
    """An amount spread by parts; what one has no room for goes to the others."""
    gains = {name: amount * part for name, part in parts.items()}
    if all(gains[name] <= room[name] for name in parts):
        return gains
    import numpy as np

    with np.errstate(divide="ignore"):
        logs = np.log(list(parts.values()))
    most = np.minimum(1.0, np.array([room[name] for name in parts]) / amount)
    filled = fill(logs, np.zeros(len(parts)), most)
    return {name: amount * float(part) for name, part in zip(parts, filled, strict=True)}


def _used_up(to: Sequence[str]) -> CannotMove:
    names = ", ".join(to)
    return CannotMove(f"{names} would be used up before the end (exhaust: true allows it)")


def places(tags: Tags) -> set[str]:
    """Everything a change may name: sources and tags."""
    return {*tags, *(tag for words in tags.values() for tag in words)}


def check_places(tags: Tags, where: str, **keys: Sequence[str]) -> None:
    """Raise ``PolicyError`` for a name that is no source and no tag; ``from`` may be ``rest``."""
    existing = places(tags)
    for key, names in keys.items():
        for name in names:
            if name not in existing and not (key == "from_" and name == REST):
                place = f"{where}.{key.rstrip('_')}"
                raise PolicyError(f"{place}: no source or tag {name!r}{suggest(name, existing)}")


def resolve(names: Sequence[str], weights: Weights, sources: Sources) -> list[str]:
    """Sources by name, or by tag; a tag doesn't reach a source on standby without weight."""
    meant = []
    for name, source in sources.items():
        active = weights[name] > 0 or not source.standby
        tagged = any(tag in names and tag not in sources for tag in source.tags)
        if name in names or (tagged and active):
            meant.append(name)
    return meant


def _giving(names: Sequence[str], weights: Weights, sources: Sources) -> list[str]:
    """The sources ``from`` means, those of ``to`` included where it is ``rest``."""
    meant = resolve([name for name in names if name != REST], weights, sources)
    rest = sources if REST in names and REST not in sources else ()
    return [n for n in sources if (n in meant or n in rest) and weights[n] > 0]


def _shares(to: Sequence[str], weights: Weights, sources: Sources) -> dict[str, float]:
    """How an amount spreads over its receivers: by weight, by size where none has any."""
    sizes: dict[str, float] = {name: weights[name] for name in to}
    if fsum(sizes.values()) <= 0:
        sizes = {name: float(max(sources[name].unique_tokens, 1)) for name in to}
    total = fsum(sizes.values())
    return {name: size / total for name, size in sizes.items()}
