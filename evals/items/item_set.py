"""All items of a benchmark, and the seeded subset of them that a run asks.

Every source (hub, local files, installed packages) ends as the same rows (see `rows`) and the same
few-shot pool, so that the same item is asked in the same way wherever it came from.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from .rows import Row


@dataclass(frozen=True)
class ItemSet:
    """All items of a benchmark, the few-shot pool, and where they came from.

    `pool` are MMLU's development questions and GSM8K's training problems, in their own order
    (MATH's shots are part of the stock task file). `overlaps` says that all items are in the
    pool (for MATH: that one is among the shots), so that there is one shot fewer than it holds.
    """

    rows: tuple[Row, ...]
    pool: tuple[Row, ...]
    kind: str
    source: str
    overlaps: bool

    def describe(self, used: int) -> str:
        """`packages: 100 of 281 items (lm-eval 0.4.13)`."""
        return f"{self.kind}: {used} of {len(self.rows)} items ({self.source})"


def choose(rows: Sequence[Row], count: int | None, seed: int) -> list[Row]:
    """A seeded subset: the `count` rows whose hashed ids come first.

    Independent of the rows' order, and nested: a smaller subset is part of a larger one.
    """

    def rank(row: Row) -> str:
        return hashlib.sha256(f"{seed}|{row['id']}".encode()).hexdigest()

    ordered = sorted(rows, key=rank)
    return ordered if count is None else ordered[:count]
