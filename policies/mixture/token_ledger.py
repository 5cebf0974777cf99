"""Tokens per source, past and planned: what a mixture would draw, and what it still may.

Repeating data up to about four epochs costs next to nothing, and beyond that returns fall fast
(Muennighoff et al. 2023, *Scaling Data-Constrained Language Models*): hence a cap on epochs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from mixloop.common.units import format_tokens
from mixloop.policies.interface import Source

from .projection import DUST

Stretch = tuple[int, Mapping[str, float]]
"""(until_tokens, weights): a mixture held from the end of the stretch before."""


def consumed(tokens: float, epochs: float, unique: float) -> float:
    """Tokens drawn of a source, by its present size: what it has left of a cap follows from it.

    One that has grown was passed over more often than its tokens say.

    Args:
        tokens: drawn.
        epochs: as the trainer counts them, by draws.
        unique: tokens of an epoch now.
    """
    return max(tokens, epochs * unique)


def headroom(
    sources: Mapping[str, Source], drawn: Mapping[str, float], max_epochs: float | None
) -> dict[str, float]:
    """Tokens each source may still give before it reaches ``max_epochs`` (never negative)."""
    if max_epochs is None:
        return dict.fromkeys(sources, math.inf)
    return {
        name: max(0.0, max_epochs * source.unique_tokens - drawn.get(name, 0.0))
        for name, source in sources.items()
    }


def lasting_shares(
    sources: Mapping[str, Source], max_epochs: float | None, tokens_left: float
) -> dict[str, float]:
    """The share of all tokens at which each source lasts to the end of the budget.

    Args:
        sources: with what was drawn of each.
        max_epochs: of any of them; None: no share is too large.
        tokens_left: of the budget.
    """
    drawn = {n: consumed(s.drawn, s.epochs, s.unique_tokens) for n, s in sources.items()}
    left = headroom(sources, drawn, max_epochs)
    return {name: tokens / max(1.0, tokens_left) for name, tokens in left.items()}


def draw(
    drawn: Mapping[str, float], weights: Mapping[str, float], length: float
) -> dict[str, float]:
    """The ledger after ``length`` more tokens at these weights."""
    names = dict.fromkeys([*drawn, *weights])
    return {name: drawn.get(name, 0.0) + weights.get(name, 0.0) * length for name in names}


def project(
    drawn: Mapping[str, float], tokens: float, stretches: Sequence[Stretch]
) -> dict[str, float]:
    """The ledger at the end of the stretches, in tokens per source."""
    for until, weights in stretches:
        drawn = draw(drawn, weights, max(0.0, until - tokens))
        tokens = max(tokens, until)
    return dict(drawn)


def epochs(sources: Mapping[str, Source], drawn: Mapping[str, float]) -> dict[str, float]:
    """Epochs per source; infinite when something was drawn from an empty source."""
    counts = {}
    for name, source in sources.items():
        tokens = drawn.get(name, 0.0)
        empty = math.inf if tokens > 0 else 0.0
        counts[name] = tokens / source.unique_tokens if source.unique_tokens > 0 else empty
    return counts


def describe_overruns(
    sources: Mapping[str, Source],
    drawn: Mapping[str, float],
    now: float,
    stretch: Stretch,
    max_epochs: float,
) -> str:
    """``owm would reach 8.33 epochs at 8T (limit 5, reached at 7.2T)``, or nothing."""
    until, weights = stretch
    length = max(0.0, until - now)
    left = headroom(sources, drawn, max_epochs)
    reached = epochs(sources, draw(drawn, weights, length))
    parts = []
    for name in sources:
        weight = weights.get(name, 0.0)
        if weight * length <= left[name] + DUST * length:
            continue
        when = format_tokens(now + left[name] / weight)
        ends = f"{reached[name]:.3g} epochs at {format_tokens(until)}"
        parts.append(f"{name} would reach {ends} (limit {max_epochs:g}, reached at {when})")
    return "; ".join(parts)
