"""How any of lm-eval's own tasks is asked and scored.

Prompts, filters and per-item scores are the task's; the items of a group's tasks are scored
together. Of its metrics those are kept that are means over items: of others (a perplexity, an
F1 over all items) no item has a share that could be paired.
"""

from __future__ import annotations

import numbers
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mixloop.evals import Outcomes
from mixloop.evals.items import Row
from mixloop.evals.lm_eval_tasks import StockTask

from .base import Benchmark, Question, gold_bytes

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance
    from lm_eval.api.task import ConfigurableTask


class AnyTask(Benchmark):
    """Any of lm-eval's tasks: its own requests, and those of its metrics that are means."""

    def __init__(self, tasks: Sequence[StockTask]) -> None:
        self._tasks = tasks
        self._task_of = {item: task for task in tasks for item in task.position}
        self.generates = any(_kind(task) == "generate_until" for task in tasks)
        self.higher_is_better = {
            metric: better for task in tasks for metric, better in _directions(task).items()
        }
        self.scored = next(iter(self.higher_is_better), "its metrics")

    @property
    def stock_shots(self) -> int:
        return max(min(task.stock_shots, task.most_shots) for task in self._tasks)

    @property
    def most_shots(self) -> int:
        return max(task.most_shots for task in self._tasks)

    @property
    def stock_max_new_tokens(self) -> int:
        generating = [task for task in self._tasks if _kind(task) == "generate_until"]
        return max((task.stock_max_new_tokens for task in generating), default=0)

    def questions(self, ids: Sequence[str], shots: int, max_new_tokens: int) -> dict[str, Question]:
        questions: dict[str, Question] = {}
        for task, items in self._by_task(ids):
            if _kind(task) == "generate_until":
                task.set_max_new_tokens(max_new_tokens)
            # a group's tasks keep their own numbers unless more than any of them is asked for
            most = shots if shots > self.stock_shots else min(shots, task.stock_shots)
            for item, instances in task.requests(items, most).items():
                questions[item] = _question(task, instances)
        return {item: questions[item] for item in ids}

    def _by_task(self, ids: Iterable[str]) -> list[tuple[StockTask, list[str]]]:
        grouped: dict[str, list[str]] = {}
        for item in ids:
            grouped.setdefault(self._task_of[item].name, []).append(item)
        return [(self._task_of[items[0]], items) for items in grouped.values()]

    def outcomes(self, questions: Mapping[str, Question]) -> Outcomes:
        outcomes: Outcomes = {}
        for task, items in self._by_task(questions):
            requests = {item: _requests(questions[item]) for item in items}
            for item, by_filter in task.outcomes(requests).items():
                outcomes[item] = _numbers(task, by_filter)
        return {item: outcomes[item] for item in questions}


def _kind(task: StockTask) -> str:
    return str(task.task.OUTPUT_TYPE)


def _requests(question: Question) -> list[Instance]:
    return list(question.choices) if question.prompt is None else [question.prompt]


def _question(task: StockTask, instances: Sequence[Instance]) -> Question:
    gold = _gold(task, instances)
    size = gold_bytes(gold[1].strip()) if gold else 0
    if _kind(task) == "generate_until":
        return Question(gold, size, prompt=instances[0])
    return Question(gold, size, tuple(instances))


def _gold(task: StockTask, instances: Sequence[Instance]) -> tuple[str, str] | None:
    """The gold answer behind its context; None where the task has none, or not as a text."""
    doc = instances[0].doc
    if _kind(task) == "loglikelihood":
        pair = instances[0].args
    elif _kind(task) == "multiple_choice":
        right = _right_choice(task.task, doc)
        pair = instances[right].args if right is not None else ("", "")
    else:
        pair = (instances[0].args[0], _worked_answer(task.task, doc))
    return (pair[0], pair[1]) if pair[1].strip() else None


def _right_choice(task: ConfigurableTask, doc: Row) -> int | None:
    """Which choice is right; the first, where several are."""
    choices = task.doc_to_choice(doc)
    # with several inputs (winogrande) it is the context that is chosen
    right = _first(task.doc_to_text(doc) if task.multiple_input else task.doc_to_target(doc))
    if isinstance(right, str):
        right = choices.index(right) if right in choices else None
    return right if isinstance(right, int) and 0 <= right < len(choices) else None


def _worked_answer(task: ConfigurableTask, doc: Row) -> str:
    target = _first(task.doc_to_target(doc))
    if isinstance(target, int) and task.config.doc_to_choice is not None:
        target = task.doc_to_choice(doc)[target]
    return f"{task.config.target_delimiter}{target}" if isinstance(target, str) else ""


def _first(target: Any) -> Any:
    """Of several right answers the first."""
    return target[0] if isinstance(target, list) and target else target


def _means(task: StockTask) -> list[str]:
    """The task's metrics that are means of its items' numbers; no other has a value per item."""
    from lm_eval.api.metrics import mean

    return [metric for metric, combine in task.task.aggregation().items() if combine is mean]


def _directions(task: StockTask) -> dict[str, bool]:
    """Whether higher is better, by the names that metrics get here."""
    better = task.task.higher_is_better()
    filters = [ensemble.name for ensemble in task.task._filters]
    return {
        _label(metric, kind, filters): bool(better.get(metric, True))
        for kind in filters
        for metric in _means(task)
    }


def _label(metric: str, kind: str, filters: Sequence[str]) -> str:
    """`exact_match`, and with the filter's name behind it for all filters but the first."""
    text = metric if kind == filters[0] else f"{metric}_{kind}"
    return re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_")


def _numbers(task: StockTask, by_filter: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    import numpy

    return {
        _label(metric, kind, list(by_filter)): float(metrics[metric])
        for kind, metrics in by_filter.items()
        for metric in _means(task)
        if isinstance(metrics.get(metric), (numbers.Real, numpy.bool_))
    }
