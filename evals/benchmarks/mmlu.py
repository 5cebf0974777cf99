"""MMLU: the letter of the right choice, and its text in bits per byte."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from mixloop.evals import Outcomes
from mixloop.evals.items import ItemSet, Row, stock_tasks
from mixloop.evals.lm_eval_tasks import StockTask, build_task

from .base import Benchmark, Question, gold_bytes

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance

_MAX_SHOTS = 5

# the form of lm-eval's task files: its metric, and the name it gets here
_FORMS = {"default": ("acc", "accuracy"), "continuation": ("acc_norm", "cloze_accuracy")}


class Mmlu(Benchmark):
    """Multiple choice by letter, and by the texts themselves in cloze form.

    The cloze form is the stock `mmlu_continuation`: the four texts are compared per character of
    theirs, and the right one's bits per byte are measured.
    """

    scored = "accuracy"
    generates = False

    def __init__(self, items: ItemSet, subset: Sequence[Row]) -> None:
        self._rows = {row["id"]: row for row in subset}
        subjects = sorted({row["subject"] for row in subset})
        tasks = [_task(form, subject, subset, items) for subject in subjects for form in _FORMS]
        self._tasks = {task.name: task for task in tasks}

    @property
    def stock_shots(self) -> int:
        return min(_MAX_SHOTS, max(task.most_shots for task in self._tasks.values()))

    def questions(self, ids: Sequence[str], shots: int, max_new_tokens: int) -> dict[str, Question]:
        questions: dict[str, Question] = {}
        for subject, items in self._by_subject(ids).items():
            letters = self._tasks[f"mmlu_default_{subject}"].requests(items, shots)
            texts = self._tasks[f"mmlu_continuation_{subject}"].requests(items, shots)
            for item in items:
                row = self._rows[item]
                choices = (*letters[item], *texts[item])
                gold = texts[item][row["answer"]].args
                questions[item] = Question(gold, gold_bytes(row["gold"]), choices)
        return {item: questions[item] for item in ids}

    def _by_subject(self, ids: Iterable[str]) -> dict[str, list[str]]:
        subjects: dict[str, list[str]] = {}
        for item in ids:
            subjects.setdefault(self._rows[item]["subject"], []).append(item)
        return subjects

    def outcomes(self, questions: Mapping[str, Question]) -> Outcomes:
        outcomes: Outcomes = {item: {} for item in questions}
        for subject, items in sorted(self._by_subject(questions).items()):
            for form, (metric, name) in _FORMS.items():
                task = self._tasks[f"mmlu_{form}_{subject}"]
                requests = {item: _asked_by(task, questions[item]) for item in items}
                for item, by_filter in task.outcomes(requests).items():
                    outcomes[item][name] = float(by_filter["none"][metric])
        return outcomes


def _asked_by(task: StockTask, question: Question) -> list[Instance]:
    return [choice for choice in question.choices if choice.task_name == task.name]


def _task(form: str, subject: str, subset: Sequence[Row], items: ItemSet) -> StockTask:
    stock, overrides = f"mmlu/{form}/mmlu_{subject}.yaml", {}
    if not (stock_tasks() / stock).exists():
        # a subject MMLU doesn't have is asked as those it has
        kind = "multiple choice questions" if form == "default" else "questions"
        about = f"The following are {kind} (with answers) about {subject.replace('_', ' ')}.\n\n"
        stock, overrides = f"mmlu/{form}/_{form}_template_yaml", {"description": about}
    return build_task(
        f"mmlu_{form}_{subject}",
        stock,
        [row for row in subset if row["subject"] == subject],
        [row for row in items.pool if row["subject"] == subject],
        leave_one_out=items.overlaps,
        overrides=overrides,
    )
