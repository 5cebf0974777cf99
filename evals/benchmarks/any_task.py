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

from mixloop.evals.items import Row
from mixloop.evals.lm_eval_tasks import StockTask

from .base import STOCK_NEW_TOKENS, Outcomes, Question

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance
    from lm_eval.api.task import ConfigurableTask


class AnyTask:
    """Any of lm-eval's tasks: its own requests, and those of its metrics that are means."""

    def __init__(self, tasks: Sequence[StockTask]) -> None:
        self._tasks = tasks
        self._task_of = {one: task for task in tasks for one in task.position}
        self.generates = any(_kind(task) == "generate_until" for task in tasks)
        self.higher_is_better: dict[str, bool] = {}
        for task in tasks:
            self.higher_is_better |= _directions(task)
        self.scored = next(iter(self.higher_is_better), "its metrics")

    @property
    def stock_shots(self) -> int:
        return max(min(task.stock_shots, task.most_shots) for task in self._tasks)

    @property
    def most_shots(self) -> int:
        return max(task.most_shots for task in self._tasks)

    @property
    def stock_room(self) -> int:
        asked = [task for task in self._tasks if _kind(task) == "generate_until"]
        rooms = [int(task.generation.get("max_gen_toks", STOCK_NEW_TOKENS)) for task in asked]
        return max(rooms, default=0)

    def questions(self, ids: Sequence[str], shots: int, room: int) -> dict[str, Question]:
        found: dict[str, Question] = {}
        for task, own in self._by_task(ids):
            if _kind(task) == "generate_until":
                task.set_room(room)
            # a group's tasks keep their own numbers unless more than any of them is asked for
            most = shots if shots > self.stock_shots else min(shots, task.stock_shots)
            made = task.requests(own, most)
            found |= {one: _question(task, instances) for one, instances in made.items()}
        return {one: found[one] for one in ids}

    def _by_task(self, ids: Iterable[str]) -> list[tuple[StockTask, list[str]]]:
        grouped: dict[str, list[str]] = {}
        for one in ids:
            grouped.setdefault(self._task_of[one].name, []).append(one)
        return [(self._task_of[own[0]], own) for own in grouped.values()]

    def unusable(self) -> str | None:
        return None

    def outcomes(self, questions: Mapping[str, Question]) -> Outcomes:
        scored: Outcomes = {}
        for task, own in self._by_task(questions):
            requests = {one: _requests(questions[one]) for one in own}
            for one, by_filter in task.outcomes(requests).items():
                scored[one] = _numbers(task, by_filter)
        return {one: scored[one] for one in questions}


def _kind(task: StockTask) -> str:
    return str(task.task.OUTPUT_TYPE)


def _requests(question: Question) -> list[Instance]:
    return list(question.choices) if question.prompt is None else [question.prompt]


def _question(task: StockTask, instances: Sequence[Instance]) -> Question:
    gold = _gold(task, instances)
    size = len(gold[1].strip().encode()) if gold else 0
    if _kind(task) == "generate_until":
        return Question(gold, size, prompt=instances[0])
    return Question(gold, size, tuple(instances))


def _gold(task: StockTask, instances: Sequence[Instance]) -> tuple[str, str] | None:
    """The gold answer behind its context; None where the task has none, or not as a text."""
    own, doc = task.task, instances[0].doc
    if _kind(task) == "loglikelihood":
        pair = instances[0].args
    elif _kind(task) == "multiple_choice":
        right = _index(own, doc)
        pair = instances[right].args if right is not None else ("", "")
    else:
        pair = (instances[0].args[0], _worked(own, doc))
    return (pair[0], pair[1]) if pair[1].strip() else None


def _index(own: ConfigurableTask, doc: Row) -> int | None:
    """Which choice is right; the first, where several are."""
    choices = own.doc_to_choice(doc)
    # with several inputs (winogrande) it is the context that is chosen
    right = own.doc_to_text(doc) if own.multiple_input else own.doc_to_target(doc)
    right = right[0] if isinstance(right, list) and right else right
    if isinstance(right, str):
        right = choices.index(right) if right in choices else None
    return right if isinstance(right, int) and 0 <= right < len(choices) else None


def _worked(own: ConfigurableTask, doc: Row) -> str:
    target = own.doc_to_target(doc)
    target = target[0] if isinstance(target, list) and target else target
    if isinstance(target, int) and own.config.doc_to_choice is not None:
        target = own.doc_to_choice(doc)[target]
    return f"{own.config.target_delimiter}{target}" if isinstance(target, str) else ""


def _means(task: StockTask) -> list[str]:
    """The task's metrics that are means of its items' numbers; no other has a value per item."""
    from lm_eval.api.metrics import mean

    return [name for name, one in task.task.aggregation().items() if one is mean]


def _directions(task: StockTask) -> dict[str, bool]:
    better = task.task.higher_is_better()
    filters = [one.name for one in task.task._filters]
    return {
        _label(name, kind, filters): bool(better.get(name, True))
        for kind in filters
        for name in _means(task)
    }


def _label(metric: str, kind: str, filters: Sequence[str]) -> str:
    """`exact_match`, and with the filter's name behind it for all filters but the first."""
    text = metric if kind == filters[0] else f"{metric}_{kind}"
    return re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_")


def _numbers(task: StockTask, by_filter: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    import numpy

    found: dict[str, float] = {}
    for kind, metrics in by_filter.items():
        for name in _means(task):
            value = metrics.get(name)
            if isinstance(value, (numbers.Real, numpy.bool_)):
                found[_label(name, kind, list(by_filter))] = float(value)
    return found
