"""lm-eval's own tasks over our items.

A task is its stock file's; only where its rows come from is replaced, so prompts, stop words,
filters and scoring stay stock.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mixloop.common.errors import one_line
from mixloop.evals.items import ItemsError, Row, stock_tasks

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance
    from lm_eval.api.samplers import ContextSampler
    from lm_eval.api.task import ConfigurableTask


_STOCK_NEW_TOKENS = 256
"""lm-eval's own bound of a generation where a task file names none."""


def build_task(
    name: str,
    stock: str,
    rows: Sequence[Row],
    pool: Sequence[Row] | None = None,
    *,
    leave_one_out: bool = False,
    overrides: Mapping[str, Any] | None = None,
) -> StockTask:
    """A task over our rows. A row that is asked is never shown in front of itself.

    Args:
        name: What it is called.
        stock: Its task file, relative to lm-eval's tasks.
        rows: What is asked.
        pool: Where few-shot examples come from, the first ones first; None: as the file has it.
        leave_one_out: All rows are in the pool: every one gets one example fewer than it holds.
        overrides: Replaces keys of the task file.

    Raises:
        ItemsError: lm-eval has no such file, or loads another number of rows than asked: a
            mistake would otherwise be scored in silence.
    """
    path = stock_tasks() / stock
    if not path.exists():
        raise ItemsError(f"{name}: lm-eval has no task file {stock}")
    config: dict[str, Any] = {"test_split": "test", "training_split": None, **(overrides or {})}
    splits = {"test": rows}
    if pool is not None:
        splits["dev"] = pool
        config["fewshot_split"] = "dev"
    loaded = load_task(name, path, config, splits)
    docs = list(loaded.eval_docs)
    if len(docs) != len(rows):
        raise ItemsError(f"{name}: lm-eval loaded {len(docs)} of {len(rows)} items")
    task = StockTask(loaded, docs, [row["id"] for row in rows])
    if pool is not None:
        task.fix_shots(len(pool) - leave_one_out)
    return task


def load_task(
    name: str,
    stock: Path,
    config: Mapping[str, Any],
    splits: Mapping[str, Sequence[Row]] | None = None,
) -> ConfigurableTask:
    """lm-eval's task of a stock file under `config`, over the rows of these splits.

    Without splits the stock file's dataset stays, which is the hub's.
    """
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.tasks._yaml_loader import load_yaml

    _compile_templates_once()
    content = {**load_yaml(stock), **config, "task": name}
    for key in ("tag", "group", "task_list"):  # of the catalogue, not of a task
        content.pop(key, None)
    if splits is not None:
        # lm-eval calls it with the task's dataset_kwargs and metadata
        content |= {"custom_dataset": lambda **_: _dataset(splits), "dataset_kwargs": None}
    return ConfigurableTask(config=content)


def _compile_templates_once() -> None:
    """Keeps lm-eval's compiled prompt templates.

    It compiles a template at every use, some thirty times for a 5-shot question of MMLU: nine
    tenths of the time that asking takes.
    """
    from lm_eval import utils

    if not hasattr(utils.env.from_string, "cache_info"):
        utils.env.from_string = functools.lru_cache(maxsize=1024)(utils.env.from_string)


def _dataset(splits: Mapping[str, Sequence[Row]]) -> Any:
    """The rows as a dataset by split, every key of a row a column."""
    import datasets
    import pyarrow

    parts = {}
    for split, rows in splits.items():
        columns = {key: [row.get(key) for row in rows] for key in dict.fromkeys(chain(*rows))}
        # `from_list` would hash a pickle of the table, which takes longer than all the rest
        fingerprint = hashlib.sha256(json.dumps(columns, default=str).encode()).hexdigest()[:16]
        table = datasets.table.InMemoryTable(pyarrow.table(columns))
        parts[split] = datasets.Dataset(table, fingerprint=fingerprint)
    return datasets.DatasetDict(parts)


def _first_of(pool: Iterable[Row]) -> ContextSampler:
    from lm_eval.api.samplers import FirstNSampler

    class First(FirstNSampler):  # type: ignore[misc]  # lm_eval publishes no types
        """The first examples that are not the item itself: one fewer where there are no more."""

        def sample(
            self, n: int, eval_doc: Row | None = None, df: object = None, **_: object
        ) -> list[Row]:
            return [doc for doc in self.df if doc != eval_doc][:n]

    return First(list(pool), rnd=None)


class StockTask:
    """A loaded lm-eval task, its requests by item and its scoring.

    `docs` are its documents (`eval_docs`, which lm-eval makes anew at every look), `ids` their
    names in the same order; None is a document that is not asked.
    """

    def __init__(
        self, task: ConfigurableTask, docs: Sequence[Row], ids: Sequence[str | None]
    ) -> None:
        self.task = task
        self.docs = docs
        self.position = {item: index for index, item in enumerate(ids) if item is not None}
        # as the task file has them, before a run's own numbers take their place
        self.stock_shots = int(task.config.num_fewshot or 0)
        generation = task.config.generation_kwargs or {}
        self.stock_max_new_tokens = int(generation.get("max_gen_toks", _STOCK_NEW_TOKENS))
        self.most_shots = len(task.sampler.df) if hasattr(task, "sampler") else 0

    @property
    def name(self) -> str:
        """The task's name."""
        return str(self.task.config.task)

    def set_max_new_tokens(self, tokens: int) -> None:
        """Bounds generation to this many tokens."""
        self.task.set_config("generation_kwargs", {"max_gen_toks": tokens}, update=True)

    def fix_shots(self, most: int) -> None:
        """Every item gets the pool's first examples, at most `most`, itself left out.

        lm-eval's default draws them from a running generator: an item's prompt would depend on
        which others are asked, and no two prompts would begin alike.
        """
        self.task.sampler = _first_of(self.task.sampler.df)
        # what lm-eval asks before it tells the sampler which item is to be left out
        self.task.fewshot_cfg.split = self.task.config.test_split
        self.most_shots = max(0, most)

    def requests(self, ids: Sequence[str], shots: int) -> dict[str, list[Instance]]:
        """lm-eval's requests for these items at this number of shots, by item.

        What `build_all_requests` does, for some documents without a pass over all of them.

        Raises:
            ItemsError: the task can make nothing of a document.
        """
        self.task.set_config("num_fewshot", min(shots, self.most_shots))
        return {item: self._asked(self.position[item]) for item in ids}

    def _asked(self, index: int) -> list[Instance]:
        try:
            return self._requests(index)
        except Exception as error:  # of a task file's own code, on a row of anybody's
            raise ItemsError(
                f"{self.name}: document {index + 1} can't be asked: {one_line(error)}; "
                "correct that row of its data"
            ) from error

    def _requests(self, index: int) -> list[Instance]:
        task, doc = self.task, self.docs[index]
        context = task.fewshot_context(
            doc, num_fewshot=task.config.num_fewshot, gen_prefix=task.doc_to_prefix(doc)
        )
        requests = task.construct_requests(
            doc=doc, ctx=context, metadata=(self.name, index, task.config.repeats)
        )
        return requests if isinstance(requests, list) else [requests]

    def outcomes(
        self, requests: Mapping[str, Iterable[Instance]]
    ) -> dict[str, dict[str, dict[str, Any]]]:
        """Stock scoring of answered requests: {item: {filter: {metric: value}}}.

        Every instance has its answer in `resps`; filters and metrics are the task's own.
        """
        ordered = {
            item: sorted(instances, key=lambda instance: instance.idx)
            for item, instances in requests.items()
        }
        self.task._instances = list(chain(*ordered.values()))
        self.task.apply_filters()
        return {item: self._score(instances) for item, instances in ordered.items()}

    def _score(self, instances: Sequence[Instance]) -> dict[str, dict[str, Any]]:
        return {
            name: self.task.process_results(
                instances[0].doc, [instance.filtered_resps[name] for instance in instances]
            )
            for name in instances[0].filtered_resps
        }
