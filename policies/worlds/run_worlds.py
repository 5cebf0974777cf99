"""Analytic worlds over the sources of a run: its sizes and names, its tags deciding transfer.

Sources with the same tags are worth the same to every benchmark, and a benchmark gains most from
the sources that carry its own tag. How much is drawn from the seed, as in the families.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mixloop.policies.mixture import Array

from .families import Dilution, Exponential, Flat, Power, _Analytic
from .world_protocol import WorldSource

BEST = {
    **{"mmlu": "web", "hellaswag": "web", "arc_challenge": "web", "arc_easy": "web"},
    **{"gsm8k": "math", "math": "math", "minerva_math": "math"},
    **{"humaneval": "code", "mbpp": "code"},
}
"""The tag that each well-known benchmark gains most from; others gain most from their own name."""


class _RunWorld(_Analytic):
    """A family over the sources of a run.

    Args:
        sources: the run's, with sizes and tags.
        benchmarks: names to score.
        value: each benchmark's part in the objective; 0 for one that is only watched.
        options: the family's.
    """

    table = "transfer"

    def __init__(
        self,
        sources: Mapping[str, WorldSource],
        benchmarks: Sequence[str],
        value: Mapping[str, float] | None = None,
        **options: Any,
    ) -> None:
        self.run_sources, self.run_benchmarks = dict(sources), tuple(benchmarks)
        parts = np.array([(value or {}).get(name, 1.0) for name in benchmarks])
        self.parts = parts / parts.sum() if parts.sum() > 0 else np.full(len(parts), 1 / len(parts))
        kinds = {n: s.tags or (n,) for n, s in sources.items()}
        self.kinds = list(dict.fromkeys(kind for tags in kinds.values() for kind in tags))
        self.belongs = np.array(
            [[float(kind in tags) / len(tags) for tags in kinds.values()] for kind in self.kinds]
        )
        super().__init__(k=len(sources), m=len(benchmarks), **options)

    def reset(self, seed: int) -> None:
        """Draw the world and its noise from the seed, and go back to the start."""
        self.benchmarks = self.run_benchmarks
        super().reset(seed)

    def _sizes(self, drawing: np.random.Generator) -> Array:
        return np.array([source.unique_tokens / self.unit for source in self.run_sources.values()])

    def _described(self, affinity: Array) -> dict[str, WorldSource]:
        return self.run_sources

    def _mean(self, losses: Array) -> Array:
        return np.asarray(losses @ self.parts)

    def _draw(self, drawing: np.random.Generator) -> Array:
        """Draw the family's table over kinds (m, kinds), and spread it to sources (m, k)."""
        sources, self.k = self.k, len(self.kinds)
        try:
            affinity = super()._draw(drawing)
        finally:
            self.k = sources
        table = getattr(self, self.table)
        for row, name in enumerate(self.run_benchmarks):
            tag = BEST.get(name, name)
            if tag in self.kinds:
                best, place = int(affinity[row].argmax()), self.kinds.index(tag)
                table[row, [best, place]] = table[row, [place, best]]
        spread = self._spread(table @ self.belongs)
        setattr(self, self.table, spread)
        return spread

    def _spread(self, table: Array) -> Array:
        return np.asarray(table / table.sum(axis=1, keepdims=True))


class RunPowerWorld(_RunWorld, Power):
    """P over a run's sources."""


class RunDilutionWorld(_RunWorld, Dilution):
    """D over a run's sources."""


class RunFlatWorld(_RunWorld, Flat):
    """F over a run's sources, which keep their sizes."""


class RunExponentialWorld(_RunWorld, Exponential):
    """E over a run's sources."""

    table = "law"

    def _spread(self, table: Array) -> Array:
        return table
