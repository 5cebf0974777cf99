"""Moves of ``rules``: shares from some sources to others, within step, cap and floor."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from math import fsum

from .errors import PolicyError, suggest
from .observation import Source
from .rules_options import Move

REST = "rest"
# smaller moves than this are not worth an order
LEAST = 1e-4


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


def carry_out(
    move: Move,
    weights: Mapping[str, float],
    sources: Mapping[str, Source],
    receivers: Collection[str] = (),
) -> Moved | CannotMove:
    """The mixture after the move.

    Args:
        receivers: sources that other moves of the same decision give to; nothing is taken there.

    Raises:
        PolicyError: for a name that is neither a source nor a tag.
    """
    to = receiving(move, weights, sources)
    if not to:
        return CannotMove(f"no active source is tagged {' or '.join(move.to)}")
    origin = [n for n in giving(move, weights, sources) if n not in {*to, *receivers}]
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
    after = {name: max(0.0, w + gains.get(name, 0.0)) for name, w in weights.items()}
    return Moved(after, gains, amount)


def receiving(move: Move, weights: Mapping[str, float], sources: Mapping[str, Source]) -> list[str]:
    """The sources ``to`` means."""
    return _resolve(move.to, weights, sources)


def giving(move: Move, weights: Mapping[str, float], sources: Mapping[str, Source]) -> list[str]:
    """The sources ``from`` means, those of ``to`` included where it is ``rest``."""
    named = [name for name in move.from_ if name != REST]
    found = _resolve(named, weights, sources)
    rest = sources if REST in move.from_ and REST not in sources else ()
    return [n for n in sources if (n in found or n in rest) and weights[n] > 0]


def takes_rest(move: Move) -> bool:
    """Whether the move takes from whatever is left, so that it can spare a source."""
    return REST in move.from_


def check_move(move: Move, sources: Mapping[str, Sequence[str]], where: str) -> None:
    """Raise ``PolicyError`` for a name that is neither a source nor a tag (name to tags)."""
    known = {*sources, *(tag for tags in sources.values() for tag in tags)}
    for key, names in (("to", move.to), ("from", move.from_)):
        for name in names:
            if name not in known and not (key == "from" and name == REST):
                raise PolicyError(f"{where}.{key}: no source or tag {name!r}{suggest(name, known)}")


def _resolve(
    names: Sequence[str], weights: Mapping[str, float], sources: Mapping[str, Source]
) -> list[str]:
    """Sources by name, or by tag; a tag doesn't reach a source on standby without weight."""
    found = []
    for name, source in sources.items():
        active = weights[name] > 0 or not source.standby
        tagged = any(tag in names and tag not in sources for tag in source.tags)
        if name in names or (tagged and active):
            found.append(name)
    return found


def _shares(
    to: Sequence[str], weights: Mapping[str, float], sources: Mapping[str, Source]
) -> dict[str, float]:
    """How an amount spreads over its receivers: by weight, by size where none has any."""
    sizes: dict[str, float] = {name: weights[name] for name in to}
    if fsum(sizes.values()) <= 0:
        sizes = {name: float(max(sources[name].unique_tokens, 1)) for name in to}
    total = fsum(sizes.values())
    return {name: size / total for name, size in sizes.items()}
