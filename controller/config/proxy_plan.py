"""The plan of a search for a starting mixture: what its proxies train on, and their cost. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class SearchPlan:
    """What a search will do.

    ``ratio`` is a proxy's length over the target's (the run's, or what is left of it after the
    checkpoint): every source is subsampled to this share of its tokens, so that a mixture repeats
    it as often in a proxy as it would in the target. ``unique`` are the subsamples' tokens.
    """

    folder: Path
    tokens: int
    target: int
    trials: int
    workers: int
    rungs: tuple[int, ...]
    reduction: int
    ratio: float
    unique: Mapping[str, int]
    sizes: Mapping[str, int]
    most: Mapping[str, float]
    start: Mapping[str, float]
    importance: Mapping[str, float]
    seed: int
    checkpoint: Path | None = None

    def epochs(self) -> dict[str, tuple[float, float]]:
        """Per source, epochs under the starting mixture: of the target, and of a proxy."""
        return {
            name: (
                self.start[name] * self.target / self.sizes[name],
                self.start[name] * self.tokens / self.unique[name],
            )
            for name in self.unique
        }

    def cost(self) -> tuple[int, int]:
        """Training tokens of all proxies: when halving stops as many as it may, and without."""
        kept, total, before = float(self.trials), 0.0, 0
        for rung in self.rungs:
            total += kept * (rung - before)
            kept, before = max(1.0, kept / self.reduction), rung
        return round(total), self.trials * self.tokens

    def identity(self) -> dict[str, Any]:
        """What must not change while a search goes on: its trials would not compare."""
        return {
            "tokens": self.tokens,
            "target": self.target,
            "rungs": list(self.rungs),
            "reduction": self.reduction,
            "unique": dict(self.unique),
            "start": dict(self.start),
            "objective": dict(self.importance),
            "checkpoint": str(self.checkpoint) if self.checkpoint is not None else None,
            "seed": self.seed,
        }


def rungs_of(tokens: int, rungs: int, reduction: int) -> tuple[int, ...]:
    """Tokens at which a proxy is scored: its length, and that divided by the reduction, earlier."""
    return tuple(max(1, tokens // reduction**left) for left in reversed(range(rungs)))


def subsampled(size: int, ratio: float, window: int) -> int:
    """Tokens of a source's subsample: the ratio's, in whole windows, one at least."""
    whole = size // window
    return window * min(whole, max(1, math.floor(size * ratio / window + 0.5)))
