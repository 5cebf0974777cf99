"""MMLU: the letter of the right choice, and its text in bits per byte."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mixloop.evals.items import ItemSet, Row, stock_tasks
from mixloop.evals.lm_eval_tasks import StockTask, TaskSpec, build_tasks

from .base import Question, _bytes

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance


Outcomes = dict[str, dict[str, float]]


class Mmlu:
    """Multiple choice by letter, and by the texts themselves in cloze form.

    The cloze form is the stock `mmlu_continuation`: the four texts are compared per character of
    theirs, and the right one's bits per byte are measured.
    """

    scored = "accuracy"
    generates = False
    stock_room = 0
    higher_is_better: Mapping[str, bool] = {}

    def __init__(self, items: ItemSet, subset: Sequence[Row], folder: Path) -> None:
        self._rows = {row["id"]: row for row in subset}
        wanted = {row["subject"] for row in subset}
        specs = [
            mmlu_spec(form, subject, subset, items) for subject in sorted(wanted) for form in _FORMS
        ]
        self._tasks = build_tasks(specs, folder)

    @property
    def stock_shots(self) -> int:
        return min(_MMLU_SHOTS, max(task.most_shots for task in self._tasks.values()))

    @property
    def most_shots(self) -> int:
        return self.stock_shots

    def questions(self, ids: Sequence[str], shots: int, room: int) -> dict[str, Question]:
        found: dict[str, Question] = {}
        for subject, own in self._by_subject(ids).items():
            letters = self._tasks[f"mmlu_default_{subject}"].requests(own, shots)
            texts = self._tasks[f"mmlu_continuation_{subject}"].requests(own, shots)
            for one in own:
                row = self._rows[one]
                choices = (*letters[one], *texts[one])
                found[one] = Question(texts[one][row["answer"]].args, _bytes(row), choices)
        return {one: found[one] for one in ids}

    def _by_subject(self, ids: Iterable[str]) -> dict[str, list[str]]:
        subjects: dict[str, list[str]] = {}
        for one in ids:
            subjects.setdefault(self._rows[one]["subject"], []).append(one)
        return subjects

    def unusable(self) -> str | None:
        return None

    def outcomes(self, questions: Mapping[str, Question]) -> Outcomes:
        scored: Outcomes = {one: {} for one in questions}
        for subject, own in sorted(self._by_subject(questions).items()):
            for form, (stock, name) in _FORMS.items():
                task = self._tasks[f"mmlu_{form}_{subject}"]
                requests = {one: asked_by(task, questions[one]) for one in own}
                for one, by_filter in task.outcomes(requests).items():
                    scored[one][name] = float(by_filter["none"][stock])
        return scored


_MMLU_SHOTS = 5

# the form of lm-eval's task files: its metric, and the name it gets here
_FORMS = {"default": ("acc", "accuracy"), "continuation": ("acc_norm", "cloze_accuracy")}


def asked_by(task: StockTask, question: Question) -> list[Instance]:
    return [choice for choice in question.choices if choice.task_name == task.name]


def mmlu_spec(form: str, subject: str, subset: Sequence[Row], items: ItemSet) -> TaskSpec:
    folder, stock = stock_tasks() / "mmlu" / form, f"mmlu_{subject}.yaml"
    overrides = {}
    if not (folder / stock).exists():
        # a subject MMLU doesn't have is asked as those it has
        kind = "multiple choice questions" if form == "default" else "questions"
        about = f"The following are {kind} (with answers) about {subject.replace('_', ' ')}.\n\n"
        stock, overrides = f"_{form}_template_yaml", {"description": about}
    return TaskSpec(
        name=f"mmlu_{form}_{subject}",
        stock=f"mmlu/{form}/{stock}",
        rows=tuple(row for row in subset if row["subject"] == subject),
        pool=tuple(row for row in items.pool if row["subject"] == subject),
        leave_one_out=items.overlaps,
        overrides=overrides,
    )
