"""lm-eval's own tasks over our items.

For each task a small YAML file is generated that includes the stock one by absolute path and
replaces only where its rows come from, so prompts, stop words, filters and scoring stay stock.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .items import ItemsError, Row, stock_tasks

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance
    from lm_eval.api.task import ConfigurableTask


@dataclass(frozen=True)
class TaskSpec:
    """One generated task: the stock file (relative to lm-eval's tasks), rows and shots.

    `pool` are the rows few-shot examples come from; None leaves them to the stock file. Where
    `leave_one_out`, the pool is the task's own rows and lm-eval drops the row itself.
    """

    name: str
    stock: str
    rows: tuple[Row, ...]
    pool: tuple[Row, ...] | None = None
    leave_one_out: bool = False
    overrides: Mapping[str, Any] = field(default_factory=dict)


def load_rows(*, rows: str, pool: str = "", **_: Any) -> Any:
    """The `custom_dataset` of a generated task: a dataset of the rows in two JSON files.

    lm-eval calls it with the task's dataset_kwargs and metadata.
    """
    import datasets

    splits = {"test": datasets.Dataset.from_list(json.loads(Path(rows).read_text("utf-8")))}
    if pool:
        splits["dev"] = datasets.Dataset.from_list(json.loads(Path(pool).read_text("utf-8")))
    return datasets.DatasetDict(splits)


def build_tasks(specs: Sequence[TaskSpec], folder: Path) -> dict[str, StockTask]:
    """Generates the task files in `folder` and loads them.

    Raises ItemsError when lm-eval loads other tasks or another number of rows than asked: a
    mistaken file would otherwise be scored in silence.
    """
    from lm_eval.tasks import TaskManager

    for spec in specs:
        _write_task(spec, folder)
    manager = TaskManager(include_defaults=False, include_path=str(folder))
    loaded: dict[str, ConfigurableTask] = manager.load([spec.name for spec in specs])["tasks"]
    tasks: dict[str, StockTask] = {}
    for spec in specs:
        task = loaded.get(spec.name)
        count = 0 if task is None else len(task.eval_docs)
        if task is None or count != len(spec.rows):
            raise ItemsError(f"{spec.name}: lm-eval loaded {count} of {len(spec.rows)} items")
        tasks[spec.name] = StockTask(task, spec)
    return tasks


def _write_task(spec: TaskSpec, folder: Path) -> None:
    stock = stock_tasks() / spec.stock
    if not stock.exists():
        raise ItemsError(f"{spec.name}: lm-eval has no task file {spec.stock}")
    rows = folder / f"{spec.name}.rows.json"
    rows.write_text(json.dumps(spec.rows), "utf-8")
    arguments = {"rows": str(rows)}
    config: dict[str, Any] = {"test_split": "test", "training_split": None, **spec.overrides}
    if spec.leave_one_out:
        config["fewshot_split"] = "test"
    elif spec.pool is not None:
        pool = folder / f"{spec.name}.pool.json"
        pool.write_text(json.dumps(spec.pool), "utf-8")
        arguments["pool"] = str(pool)
        config["fewshot_split"] = "dev"
    config |= {"task": spec.name, "tag": [], "dataset_kwargs": arguments, "include": str(stock)}
    # JSON is YAML; only the function tag has to be written by hand
    lines = [f"{key}: {json.dumps(value)}" for key, value in config.items()]
    lines.append(f"custom_dataset: !function {__name__}.load_rows")
    (folder / f"{spec.name}.yaml").write_text("\n".join(lines) + "\n", "utf-8")


class StockTask:
    """A loaded lm-eval task, its requests by row and its scoring."""

    def __init__(self, task: ConfigurableTask, spec: TaskSpec) -> None:
        self.task = task
        self.spec = spec
        self.row_of = {row["id"]: index for index, row in enumerate(spec.rows)}

    @property
    def most_shots(self) -> int:
        """How many examples the pool can give any row."""
        if self.spec.leave_one_out:
            return len(self.spec.rows) - 1
        pool = self.task.fewshot_docs()
        return 0 if pool is None else len(list(pool))

    @property
    def generation(self) -> dict[str, Any]:
        """lm-eval's generation arguments (`until` and so on)."""
        return dict(self.task.config.generation_kwargs or {})

    def set_room(self, tokens: int) -> None:
        """Bounds generation to this many tokens."""
        self.task.set_config("generation_kwargs", {"max_gen_toks": tokens}, update=True)

    def requests(self, ids: Sequence[str], shots: int) -> dict[str, list[Instance]]:
        """lm-eval's requests for these items at this number of shots, by item."""
        rows = sorted(self.row_of[one] for one in ids)
        self.task.set_config("num_fewshot", min(shots, self.most_shots))
        self.task.build_all_requests(samples=rows, rank=0, world_size=1)
        found: dict[str, list[Instance]] = {}
        for instance in self.task.instances:
            found.setdefault(self.spec.rows[rows[instance.doc_id]]["id"], []).append(instance)
        if len(found) != len(ids):
            raise ItemsError(f"{self.spec.name}: {len(found)} of {len(ids)} items were asked")
        return found

    def outcomes(
        self, requests: Mapping[str, Sequence[Instance]]
    ) -> dict[str, dict[str, dict[str, float]]]:
        """Stock scoring of answered requests: {item: {filter: {metric: value}}}.

        Every instance has its answer in `resps`; filters and metrics are the task's own.
        """
        self.task.apply_filters()
        scored: dict[str, dict[str, dict[str, float]]] = {}
        for one, instances in requests.items():
            ordered = sorted(instances, key=lambda instance: instance.idx)
            scored[one] = {
                name: self.task.process_results(
                    ordered[0].doc, [instance.filtered_resps[name] for instance in ordered]
                )
                for name in ordered[0].filtered_resps
            }
        return scored
