"""Loads benchmarks beyond the four: any task, group or tag of lm-eval's own, by its name.

Their data is the hub's, or local files in the same fields. Few-shot examples are the first of
the task's own pool instead of a draw that depends on which items are asked (see
`StockTask.fix_shots`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mixloop.common.errors import one_line
from mixloop.evals import Data
from mixloop.evals.items import (
    ItemsError,
    ItemSet,
    RawRow,
    Row,
    content_hash,
    hub_reachable,
    read_splits,
    read_task_file,
    scored_split,
    unusable,
)

from .catalog import members
from .stock_task import StockTask, load_task

if TYPE_CHECKING:
    from lm_eval.api.task import ConfigurableTask


_MAX_POOL = 65  # few-shot examples: more than anybody shows

_TYPES = ("multiple_choice", "loglikelihood", "generate_until")


@dataclass(frozen=True)
class TaskItems(ItemSet):
    """The items of a benchmark beyond the four; `tasks` are its tasks, already loaded."""

    tasks: tuple[StockTask, ...] = field(repr=False, compare=False)


def load_further(name: str, data: Data) -> TaskItems:
    """All items of a task, group or tag, its tasks loaded.

    Raises:
        ItemsError: no such task, one that can't be asked here, or no data; one line that names the
            benchmark and the reason.
    """
    files = members(name)
    for task, stock in files.items():
        if reason := _refusal(read_task_file(stock)):
            raise ItemsError(f"{name}: {'' if task == name else f'{task} '}{reason}")
    if data == "packages":
        raise ItemsError(f"{name}: no items in the installed packages; name files as its data")
    if data == "auto" and not hub_reachable():
        raise ItemsError(f"{name}: the hub can't be reached; name local files as its data")
    paths = data if isinstance(data, tuple) else None
    try:
        tasks = _load(files, paths)
    # a task file's functions, lm-eval and the hub client raise whatever they like
    except Exception as error:
        reason = str(error) if isinstance(error, ItemsError) else one_line(error)
        raise ItemsError(f"{name}: {reason}") from error
    rows = tuple({"id": item} for task in tasks for item in task.position)
    if not rows:
        raise ItemsError(f"{name}: no items")
    source = ", ".join(str(path) for path in paths) if paths else _datasets(tasks)
    return TaskItems(rows, (), "files" if paths else "hub", source, overlaps=False, tasks=tasks)


def _refusal(content: Mapping[str, Any]) -> str | None:
    """Why a task can't be asked here, told from its file before anything of it is imported."""
    kind = content.get("output_type", "generate_until")
    if "class" in content:
        return "is written as a Python class, not as a task file"
    if content.get("unsafe_code"):
        return "runs generated programs outside the sandbox"
    if content.get("doc_to_image") or content.get("doc_to_audio"):
        return "asks about images or sound"
    if kind not in _TYPES:
        return f"has output type {kind}; those offered are {', '.join(_TYPES)}"
    if content.get("repeats", 1) != 1:
        return f"asks every item {content['repeats']} times, which is not offered"
    return None


def _load(files: Mapping[str, Path], paths: Sequence[Path] | None) -> tuple[StockTask, ...]:
    tasks = []
    for name, stock in files.items():
        config: dict[str, Any] = {}
        rows = None
        if paths is not None:
            # the data of a group's task is in the folder of its name
            own_paths = paths if len(files) == 1 else [path / name for path in paths]
            config, rows = _local_splits(read_task_file(stock), own_paths)
        tasks.append(_with_ids(load_task(name, stock, config, rows)))
    return tuple(tasks)


def _local_splits(
    content: Mapping[str, Any], paths: Sequence[Path]
) -> tuple[dict[str, Any], dict[str, list[Row]]]:
    """What the task file is to say of its splits, and their rows from local files.

    The split that is scored is read from the file or split that has it; the few-shot pool is
    there only if the files have it.
    """
    scored = content.get("test_split") or content.get("validation_split") or "test"
    kinds = ("training_split", "fewshot_split", "validation_split", "test_split")
    stock_splits = {kind: content.get(kind) for kind in kinds}
    pools = {str(stock_splits[kind]) for kind in kinds[:2] if stock_splits[kind]} - {scored}
    rows: dict[str, list[Row]] = {}
    for path in paths:
        splits = read_splits(path, (str(content.get("dataset_name")),))
        _add(rows, scored, scored_split(path, splits, (scored, "test", "", "validation")))
        for pool in pools:
            # people and hub datasets say dev and validation of the same one
            for name in (pool, {"dev": "validation", "validation": "dev"}.get(pool)):
                if name in splits:
                    _add(rows, pool, splits[name]())
                    break
    config = {kind: split if split in rows else None for kind, split in stock_splits.items()}
    if not config["test_split"] and not config["validation_split"]:
        config["test_split"] = scored
    return config, rows


def _add(rows: dict[str, list[Row]], split: str, raw: Iterable[RawRow]) -> None:
    for where, content in raw:
        problem = unusable(content)
        if problem is not None:
            raise ItemsError(f"{where} {problem}")
        rows.setdefault(split, []).append(dict(content))


def _with_ids(task: ConfigurableTask) -> StockTask:
    """The loaded task, its documents named by what is in them; one that is there twice is one."""
    docs = list(task.eval_docs)
    first: dict[str, int] = {}
    for index, doc in enumerate(docs):
        first.setdefault(f"{task.config.task}/{_doc_hash(doc)}", index)
    ids = {index: item for item, index in first.items()}
    stock = StockTask(task, docs, [ids.get(index) for index in range(len(docs))])
    if stock.most_shots:
        _fix_shots(stock)
    return stock


def _doc_hash(doc: Any) -> str:
    return content_hash(json.dumps(doc, sort_keys=True, default=str))


def _fix_shots(task: StockTask) -> None:
    """The first examples of the task's own pool; where it holds items, there is one fewer."""
    asked = {_doc_hash(doc) for doc in task.docs}
    pool = {_doc_hash(doc): doc for doc in task.task.sampler.df[:_MAX_POOL]}
    task.task.sampler.df = list(pool.values())
    task.fix_shots(len(pool) - (not asked.isdisjoint(pool)))


def _datasets(tasks: Iterable[StockTask]) -> str:
    return ", ".join(dict.fromkeys(str(task.task.config.dataset_path) for task in tasks))
