"""GSM8K and MATH: worked solutions, their final answers compared as lm-eval does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mixloop.evals import Outcomes
from mixloop.evals.items import ItemSet, Row
from mixloop.evals.lm_eval_tasks import build_task

from .base import Benchmark, Question, gold_bytes

_MAX_POOL = 16  # more than lm-eval shows of any pool, and the one that is left out

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


class WorkedSolutions(Benchmark):
    """Worked problems (GSM8K, MATH): generated and scored by lm-eval's filters and metrics."""

    scored = "exact_match"

    def __init__(self, name: str, items: ItemSet, subset: Sequence[Row]) -> None:
        stock, self._names = _WORKED[name]
        self._rows = {row["id"]: row for row in subset}
        # the same fixed examples for every item: a subset's prompts don't depend on the subset
        pool = items.pool[:_MAX_POOL] if items.pool else None
        leave_one_out = pool is not None and items.overlaps
        self._task = build_task(name, stock, subset, pool, leave_one_out=leave_one_out)
        # MATH's examples are part of the task file, which leaves none of them out
        self._shown_in_prompt = pool is None and items.overlaps

    @property
    def stock_shots(self) -> int:
        return 0 if self._shown_in_prompt else min(self._task.stock_shots, self._task.most_shots)

    @property
    def stock_max_new_tokens(self) -> int:
        return self._task.stock_max_new_tokens

    def questions(self, ids: Sequence[str], shots: int, max_new_tokens: int) -> dict[str, Question]:
        self._task.set_max_new_tokens(max_new_tokens)
        questions = {}
        for item, (request,) in self._task.requests(ids, shots).items():
            gold = self._rows[item]["gold"]
            pair = (request.args[0], f" {gold}")
            questions[item] = Question(pair, gold_bytes(gold), prompt=request)
        return questions

    def outcomes(self, questions: Mapping[str, Question]) -> Outcomes:
        requests = {item: [q.prompt] for item, q in questions.items() if q.prompt is not None}
        return {
            item: {
                name: float(by_filter[kind][metric]) for (kind, metric), name in self._names.items()
            }
            for item, by_filter in self._task.outcomes(requests).items()
        }
