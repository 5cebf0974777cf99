"""Analytic worlds over the sources of a run: its sizes and names, its tags deciding transfer.

Sources with the same tags are worth the same to every benchmark, and a benchmark gains most from
the sources that carry its own tag. How much is drawn from the seed, as in the families.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mixloop.policies.mixture import Array

from .families import Analytic, Dilution, Exponential, Flat, Power
from .interference import Interference
from .skills import Skills
from .world_protocol import WorldSource

BEST = {
    **{"mmlu": "web", "hellaswag": "web", "arc_challenge": "web", "arc_easy": "web"},
    **{"gsm8k": "math", "math": "math", "minerva_math": "math"},
    **{"humaneval": "code", "mbpp": "code"},
}
"""The tag that each well-known benchmark gains most from; others gain most from their own name."""


class _RunWorld(Analytic):
    """A family over the sources of a run.

    Args:
        sources: the run's, with sizes and tags.
        benchmarks: names to score.
        value: each benchmark's part in the objective; 0 for one that is only watched.
        options: the family's.
    """

    tables: tuple[str, ...] = ("transfer",)

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
        """Draw the family's tables over kinds (…, kinds), and spread them to sources (…, k)."""
        sources, self.k = self.k, len(self.kinds)
        try:
            affinity = super()._draw(drawing)
        finally:
            self.k = sources
        for row, name in enumerate(self.run_benchmarks):
            tag = BEST.get(name, name)
            if tag in self.kinds:
                self._favour(row, int(affinity[row].argmax()), self.kinds.index(tag))
        for table in self.tables:
            setattr(self, table, self._spread(getattr(self, table) @ self.belongs))
        return np.asarray(getattr(self, self.tables[0]))

    def _favour(self, row: int, best: int, place: int) -> None:
        """Let the kind at ``place`` be what the benchmark ``row`` gains most from."""
        for name in self.tables:
            table = getattr(self, name)
            table[row, [best, place]] = table[row, [place, best]]

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

    tables = ("law",)

    def _spread(self, table: Array) -> Array:
        return table


class RunSkillsWorld(_RunWorld, Skills):
    """S over a run's sources: a kind teaches what the benchmark of its tag needs most."""

    tables = ("taught",)

    def _favour(self, row: int, best: int, place: int) -> None:
        self.taught[self.demand[row].argmax(), place] += 1.0


class RunInterferenceWorld(_RunWorld, Interference):
    """I over a run's sources."""

    tables = ("taught", "hurts")

    def _draw(self, drawing: np.random.Generator) -> Array:
        taught = super()._draw(drawing)
        self.hurts = self.hurts / np.maximum(self.hurts.max(axis=1, keepdims=True), 1e-12) * 0.2
        return taught
