"""The benchmarks: what is asked of a model, and how its answers are scored.

A benchmark turns items into `Question`s at a number of shots (stock prompts through lm-eval's
task code) and model answers into per-item outcomes. It knows nothing of contexts or subsets.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from .items import ItemSet, Row
from .packaged import read_task_file, stock_tasks
from .sandbox import Sandbox
from .tasks import StockTask, TaskSpec, build_tasks

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance

# lm-eval's own bound where a task file names none
STOCK_NEW_TOKENS = 256

Outcomes = dict[str, dict[str, float]]


@dataclass(frozen=True)
class Question:
    """One item as put to a model.

    `gold` is (context, continuation) whose continuation's bits are measured over `gold_bytes`,
    the UTF-8 length of the answer itself (without the space lm-eval puts in front of it); None
    where the task has no gold text. `choices` are log-likelihood requests, of which the gold pair
    may be one, `prompt` a generation request, where there are any.
    """

    gold: tuple[str, str] | None
    gold_bytes: int
    choices: tuple[Instance, ...] = ()
    prompt: Instance | None = None


class Benchmark(Protocol):
    """What the scorer asks of each benchmark.

    `scored` names the metric of the choices or the generated texts, `generates` says which.
    `higher_is_better` holds the metrics of `outcomes` for which that isn't so.
    """

    scored: str
    generates: bool

    @property
    def higher_is_better(self) -> Mapping[str, bool]:
        """Whether more of a metric is better; of a metric that isn't named, it is."""

    @property
    def stock_shots(self) -> int:
        """The shots lm-eval's task is published with, or as many as can be shown."""

    @property
    def most_shots(self) -> int:
        """The shots that can be asked for: as published for the four, the pool's elsewhere."""

    @property
    def stock_room(self) -> int:
        """New tokens lm-eval lets a model write; 0 where nothing is generated."""

    def questions(self, ids: Sequence[str], shots: int, room: int) -> dict[str, Question]:
        """Questions by item id."""

    def unusable(self) -> str | None:
        """Why answers can't be scored on this machine, or None."""

    def outcomes(self, questions: Mapping[str, Question]) -> Outcomes:
        """Scores of questions whose requests carry their answers in `resps`."""


def make_benchmark(
    name: str, items: ItemSet, subset: Sequence[Row], folder: Path, sandbox: Sandbox
) -> Benchmark:
    """Loads one benchmark's tasks; `folder` receives the generated task files."""
    if name == "mmlu":
        return _Mmlu(items, subset, folder)
    if name == "humaneval":
        return _HumanEval(subset, sandbox)
    if items.tasks:
        from .anytask import AnyTask

        return AnyTask(items.tasks)
    return _Worked(name, items, subset, folder)


class _Mmlu:
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
            _mmlu_spec(form, subject, subset, items)
            for subject in sorted(wanted)
            for form in _FORMS
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
                requests = {one: _asked_by(task, questions[one]) for one in own}
                for one, by_filter in task.outcomes(requests).items():
                    scored[one][name] = float(by_filter["none"][stock])
        return scored


_MMLU_SHOTS = 5

# the form of lm-eval's task files: its metric, and the name it gets here
_FORMS = {"default": ("acc", "accuracy"), "continuation": ("acc_norm", "cloze_accuracy")}


def _asked_by(task: StockTask, question: Question) -> list[Instance]:
    return [choice for choice in question.choices if choice.task_name == task.name]


def _mmlu_spec(form: str, subject: str, subset: Sequence[Row], items: ItemSet) -> TaskSpec:
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


# more than lm-eval shows of any pool, and the one that is left out
_POOL_ROWS = 16

# stock task file, and the names its scores get here
_WORKED = {
    "gsm8k": (
        "gsm8k/gsm8k.yaml",
        {
            ("strict-match", "exact_match"): "exact_match",
            ("flexible-extract", "exact_match"): "exact_match_flexible",
        },
    ),
    "math": (
        # the seven subjects share one prompt and one scorer
        "minerva_math/minerva_math_algebra.yaml",
        {("none", "exact_match"): "exact_match", ("none", "math_verify"): "math_verify"},
    ),
}


class _Worked:
    """Worked problems (GSM8K, MATH): generated and scored by lm-eval's filters and metrics."""

    scored = "exact_match"
    generates = True
    higher_is_better: Mapping[str, bool] = {}

    def __init__(self, name: str, items: ItemSet, subset: Sequence[Row], folder: Path) -> None:
        stock, self._names = _WORKED[name]
        self._rows = {row["id"]: row for row in subset}
        # the same fixed examples for every item: a subset's prompts don't depend on the subset
        pool = items.pool[:_POOL_ROWS] if items.pool else None
        rows = tuple(subset)
        spec = TaskSpec(name, stock, rows, pool, pool is not None and items.overlaps)
        self._task = build_tasks([spec], folder)[name]
        # MATH's examples are part of the task file, which leaves none of them out
        self._shown = pool is None and items.overlaps

    @property
    def stock_shots(self) -> int:
        return 0 if self._shown else min(self._task.stock_shots, self._task.most_shots)

    @property
    def most_shots(self) -> int:
        return self.stock_shots

    @property
    def stock_room(self) -> int:
        return int(self._task.generation.get("max_gen_toks", STOCK_NEW_TOKENS))

    def questions(self, ids: Sequence[str], shots: int, room: int) -> dict[str, Question]:
        self._task.set_room(room)
        requests = self._task.requests(ids, shots)
        return {
            one: Question(
                (requests[one][0].args[0], f" {self._rows[one]['gold']}"),
                _bytes(self._rows[one]),
                prompt=requests[one][0],
            )
            for one in ids
        }

    def unusable(self) -> str | None:
        return None

    def outcomes(self, questions: Mapping[str, Question]) -> Outcomes:
        requests = {one: [q.prompt] for one, q in questions.items() if q.prompt is not None}
        return {
            one: {
                name: float(by_filter[kind][metric]) for (kind, metric), name in self._names.items()
            }
            for one, by_filter in self._task.outcomes(requests).items()
        }


class _HumanEval:
    """Programs completed greedily with lm-eval's prompt and stop words, run in the sandbox.

    lm-eval's own module asks the hub for a scorer as it is imported, so its file is read as data.
    """

    scored = "pass_at_1"
    generates = True
    stock_shots = 0
    most_shots = 0
    higher_is_better: Mapping[str, bool] = {}

    def __init__(self, subset: Sequence[Row], sandbox: Sandbox) -> None:
        stock = read_task_file(stock_tasks() / "humaneval" / "humaneval.yaml")
        self._options: dict[str, Any] = stock["generation_kwargs"]
        self._rows = {row["id"]: row for row in subset}
        self._sandbox = sandbox

    @property
    def stock_room(self) -> int:
        return int(self._options["max_gen_toks"])

    def questions(self, ids: Sequence[str], shots: int, room: int) -> dict[str, Question]:
        from lm_eval.api.instance import Instance

        options = {**self._options, "max_gen_toks": room}
        found: dict[str, Question] = {}
        for index, one in enumerate(ids):
            row = self._rows[one]
            prompt = Instance(
                request_type="generate_until",
                doc=row,
                arguments=(row["prompt"], options),
                idx=0,
                metadata=("humaneval", index, 1),
            )
            found[one] = Question((row["prompt"], row["gold"]), _bytes(row), prompt=prompt)
        return found

    def unusable(self) -> str | None:
        return self._sandbox.unusable()

    def outcomes(self, questions: Mapping[str, Question]) -> Outcomes:
        programs = [
            _program(self._rows[one], question.prompt.resps[0])
            for one, question in questions.items()
            if question.prompt is not None
        ]
        results = self._sandbox.run(programs)
        return {
            one: {"pass_at_1": float(result.passed)}
            for one, result in zip(questions, results, strict=True)
        }


def _program(row: Row, completion: str) -> str:
    return f"{row['prompt']}{completion}\n{row['test']}\ncheck({row['entry_point']})"


def _bytes(row: Row) -> int:
    return len(str(row["gold"]).encode())
