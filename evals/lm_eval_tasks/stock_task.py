"""lm-eval's own tasks over our items.

For each task a small YAML file is generated that includes the stock one by absolute path and
replaces only where its rows come from, so prompts, stop words, filters and scoring stay stock.
"""

from __future__ import annotations

import functools
import hashlib
import json
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mixloop.evals.items import ItemsError, Row, stock_tasks

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance
    from lm_eval.api.samplers import ContextSampler
    from lm_eval.api.task import ConfigurableTask


_STOCK_NEW_TOKENS = 256
"""lm-eval's own bound of a generation where a task file names none."""


@dataclass(frozen=True)
class TaskSpec:
    """One generated task: the stock file (relative to lm-eval's tasks), rows and shots.

    `pool` are the rows few-shot examples come from, the first ones first; None leaves them to
    the stock file. A row that is asked is never shown in front of itself; where
    `leave_one_out`, all rows are in the pool, and every one gets one example fewer than it holds.
    """

    name: str
    stock: str
    rows: tuple[Row, ...]
    pool: tuple[Row, ...] | None = None
    leave_one_out: bool = False
    overrides: Mapping[str, Any] = field(default_factory=dict)


def load_rows(*, splits: Mapping[str, str], **_: Any) -> Any:
    """The `custom_dataset` of a generated task: a dataset of the rows in JSON files, by split.

    lm-eval calls it with the task's dataset_kwargs and metadata.
    """
    import datasets

    return datasets.DatasetDict({split: _dataset(Path(path)) for split, path in splits.items()})


def _dataset(path: Path) -> Any:
    """The rows of a JSON file, every key a column."""
    import datasets
    import pyarrow

    content = path.read_bytes()
    rows = json.loads(content)
    columns = {key: [row.get(key) for row in rows] for key in dict.fromkeys(chain(*rows))}
    # `from_list` would hash a pickle of the table, which takes longer than all the rest
    fingerprint = hashlib.sha256(content).hexdigest()[:16]
    table = datasets.table.InMemoryTable(pyarrow.table(columns))
    return datasets.Dataset(table, fingerprint=fingerprint)


def task_folder() -> tempfile.TemporaryDirectory[str]:
    """A private folder for generated task files, removed with the returned object."""
    return tempfile.TemporaryDirectory(prefix="mixloop-evals-")


def build_tasks(specs: Sequence[TaskSpec], folder: Path) -> dict[str, StockTask]:
    """Generates the task files in `folder` and loads them.

    Raises:
        ItemsError: lm-eval loads other tasks or another number of rows than asked: a mistaken
            file would otherwise be scored in silence.
    """
    for spec in specs:
        _write_spec(spec, folder)
    loaded = load_tasks([spec.name for spec in specs], folder)
    tasks: dict[str, StockTask] = {}
    for spec in specs:
        docs = list(loaded[spec.name].eval_docs)
        task = StockTask(loaded[spec.name], docs, [row["id"] for row in spec.rows])
        if len(docs) != len(spec.rows):
            count = f"{len(docs)} of {len(spec.rows)}"
            raise ItemsError(f"{spec.name}: lm-eval loaded {count} items")
        if spec.pool is not None:
            task.fix_shots(len(spec.pool) - spec.leave_one_out)
        tasks[spec.name] = task
    return tasks


def load_tasks(names: Sequence[str], folder: Path) -> dict[str, ConfigurableTask]:
    """The tasks of generated files, without lm-eval's scan of all its own.

    Raises:
        ItemsError: lm-eval loads no task of one of the names.
    """
    from lm_eval.tasks import TaskManager

    _compile_templates_once()
    manager = TaskManager(include_defaults=False, include_path=str(folder))
    loaded: dict[str, ConfigurableTask] = manager.load(list(names))["tasks"]
    for name in names:
        if name not in loaded:
            raise ItemsError(f"{name}: lm-eval loaded no such task")
    return loaded


def _compile_templates_once() -> None:
    """Keeps lm-eval's compiled prompt templates.

    It compiles a template at every use, some thirty times for a 5-shot question of MMLU: nine
    tenths of the time that asking takes.
    """
    from lm_eval import utils

    if not hasattr(utils.env.from_string, "cache_info"):
        utils.env.from_string = functools.lru_cache(maxsize=1024)(utils.env.from_string)


def _write_spec(spec: TaskSpec, folder: Path) -> None:
    stock = stock_tasks() / spec.stock
    if not stock.exists():
        raise ItemsError(f"{spec.name}: lm-eval has no task file {spec.stock}")
    config: dict[str, Any] = {"test_split": "test", "training_split": None, **spec.overrides}
    splits = {"test": spec.rows}
    if spec.pool is not None:
        splits["dev"] = spec.pool
        config["fewshot_split"] = "dev"
    write_task(spec.name, stock, folder, config, splits)


def write_task(
    name: str,
    stock: Path,
    folder: Path,
    config: Mapping[str, Any],
    splits: Mapping[str, Sequence[Row]] | None = None,
) -> None:
    """A task file of this name: the stock one under `config`, over the rows of these splits.

    Without splits the stock file's dataset stays, which is the hub's.
    """
    content: dict[str, Any] = {**config, "task": name, "tag": [], "include": str(stock)}
    lines = []
    if splits is not None:
        files = {split: folder / f"{name}.{split}.json" for split in splits}
        for split, path in files.items():
            path.write_text(json.dumps(list(splits[split])), "utf-8")
        content["dataset_kwargs"] = {"splits": {split: str(p) for split, p in files.items()}}
        lines.append(f"custom_dataset: !function {__name__}.load_rows")
    # JSON is YAML; only the function tag has to be written by hand
    lines += [f"{key}: {json.dumps(value)}" for key, value in content.items()]
    (folder / f"{name}.yaml").write_text("\n".join(lines) + "\n", "utf-8")


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
        """
        self.task.set_config("num_fewshot", min(shots, self.most_shots))
        return {item: self._requests(self.position[item]) for item in ids}

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
