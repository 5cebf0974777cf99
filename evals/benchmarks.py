"""The four benchmarks: what is asked of a model, and how its answers are scored.

A benchmark turns items into `Question`s at a number of shots (stock prompts through lm-eval's
task code) and model answers into per-item outcomes. It knows nothing of contexts or subsets.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from .items import ItemSet, Row, read_task_file, stock_tasks
from .sandbox import Sandbox
from .tasks import TaskSpec, build_tasks

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance

# lm-eval's own bound where a task file names none
STOCK_NEW_TOKENS = 256

Outcomes = dict[str, dict[str, float]]


@dataclass(frozen=True)
class Question:
    """One item as put to a model.

    `gold` is (context, continuation) whose continuation's bits are measured over `gold_bytes`,
    the UTF-8 length of the answer itself (without the space lm-eval puts in front of it).
    `choices` are log-likelihood requests, `prompt` a generation request, where there are any.
    """

    gold: tuple[str, str]
    gold_bytes: int
    choices: tuple[Instance, ...] = ()
    prompt: Instance | None = None


class Benchmark(Protocol):
    """What the scorer asks of each benchmark.

    `scored` names the metric of the choices or the generated texts, `generates` says which.
    """

    scored: str
    generates: bool

    @property
    def stock_shots(self) -> int:
        """The shots lm-eval's task is published with, or as many as can be shown."""

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
    return _Worked(name, items, subset, folder)


class _Mmlu:
    """Multiple choice by letter, and the right answer's text in cloze form."""

    scored = "accuracy"
    generates = False
    stock_room = 0

    def __init__(self, items: ItemSet, subset: Sequence[Row], folder: Path) -> None:
        self._rows = {row["id"]: row for row in subset}
        wanted = {row["subject"] for row in subset}
        asked = items.rows if items.overlaps else tuple(subset)
        specs = [
            _mmlu_spec(form, subject, asked, items)
            for subject in sorted(wanted)
            for form in ("default", "continuation")
        ]
        self._tasks = build_tasks(specs, folder)

    @property
    def stock_shots(self) -> int:
        return min(5, max(task.most_shots for task in self._tasks.values()))

    def questions(self, ids: Sequence[str], shots: int, room: int) -> dict[str, Question]:
        subjects: dict[str, list[str]] = {}
        for one in ids:
            subjects.setdefault(self._rows[one]["subject"], []).append(one)
        found: dict[str, Question] = {}
        for subject, own in subjects.items():
            letters = self._tasks[f"mmlu_default_{subject}"].requests(own, shots)
            texts = self._tasks[f"mmlu_continuation_{subject}"].requests(own, shots)
            for one in own:
                row = self._rows[one]
                context, continuation = texts[one][row["answer"]].args
                found[one] = Question((context, continuation), _bytes(row), tuple(letters[one]))
        return {one: found[one] for one in ids}

    def unusable(self) -> str | None:
        return None

    def outcomes(self, questions: Mapping[str, Question]) -> Outcomes:
        scored: Outcomes = {}
        for subject in sorted({self._rows[one]["subject"] for one in questions}):
            own = {
                one: question.choices
                for one, question in questions.items()
                if self._rows[one]["subject"] == subject
            }
            found = self._tasks[f"mmlu_default_{subject}"].outcomes(own)
            for one, by_filter in found.items():
                scored[one] = {"accuracy": float(by_filter["none"]["acc"])}
        return scored


def _mmlu_spec(form: str, subject: str, asked: Sequence[Row], items: ItemSet) -> TaskSpec:
    pool = tuple(row for row in items.pool if row["subject"] == subject)
    return TaskSpec(
        name=f"mmlu_{form}_{subject}",
        stock=f"mmlu/{form}/mmlu_{subject}.yaml",
        rows=tuple(row for row in asked if row["subject"] == subject),
        pool=pool,
        leave_one_out=items.overlaps,
    )


# stock task file, and the names its scores get here
_WORKED = {
    "gsm8k": (
        "gsm8k/gsm8k-cot.yaml",
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

    def __init__(self, name: str, items: ItemSet, subset: Sequence[Row], folder: Path) -> None:
        stock, self._names = _WORKED[name]
        self._rows = {row["id"]: row for row in subset}
        # the same fixed examples for every item: a subset's prompts don't depend on the subset
        spec = TaskSpec(name=name, stock=stock, rows=tuple(subset))
        self._task = build_tasks([spec], folder)[name]
        self._overlaps = items.overlaps

    @property
    def stock_shots(self) -> int:
        # items that are themselves the examples are never shown in front of one another
        return 0 if self._overlaps else self._task.most_shots

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


def task_folder() -> tempfile.TemporaryDirectory[str]:
    """A private folder for generated task files, removed with the returned object."""
    return tempfile.TemporaryDirectory(prefix="mixloop-evals-")
