"""HumanEval: a function's body, run against its tests in the sandbox."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mixloop.evals import Outcomes
from mixloop.evals.items import Row, read_task_file, stock_tasks
from mixloop.evals.sandbox import Sandbox

from .base import Benchmark, Question, gold_bytes


class HumanEval(Benchmark):
    """Programs completed greedily with lm-eval's prompt and stop words, run in the sandbox.

    lm-eval's own module asks the hub for a scorer as it is imported, so its file is read as data.
    """

    scored = "pass_at_1"

    def __init__(self, subset: Sequence[Row], sandbox: Sandbox) -> None:
        stock = read_task_file(stock_tasks() / "humaneval" / "humaneval.yaml")
        self._options: dict[str, Any] = stock["generation_kwargs"]
        self._rows = {row["id"]: row for row in subset}
        self._sandbox = sandbox

    @property
    def stock_max_new_tokens(self) -> int:
        return int(self._options["max_gen_toks"])

    def questions(self, ids: Sequence[str], shots: int, max_new_tokens: int) -> dict[str, Question]:
        from lm_eval.api.instance import Instance

        options = {**self._options, "max_gen_toks": max_new_tokens}
        questions: dict[str, Question] = {}
        for index, item in enumerate(ids):
            row = self._rows[item]
            prompt = Instance(
                request_type="generate_until",
                doc=row,
                arguments=(row["prompt"], options),
                idx=0,
                metadata=("humaneval", index, 1),
            )
            gold = (row["prompt"], row["gold"])
            questions[item] = Question(gold, gold_bytes(row["gold"]), prompt=prompt)
        return questions

    def unusable(self) -> str | None:
        return self._sandbox.unusable()

    def outcomes(self, questions: Mapping[str, Question]) -> Outcomes:
        programs = [
            _program(self._rows[item], question.prompt.resps[0])
            for item, question in questions.items()
            if question.prompt is not None
        ]
        results = self._sandbox.run(programs)
        return {
            item: {"pass_at_1": float(result.passed)}
            for item, result in zip(questions, results, strict=True)
        }


def _program(row: Row, completion: str) -> str:
    return f"{row['prompt']}{completion}\n{row['test']}\ncheck({row['entry_point']})"
