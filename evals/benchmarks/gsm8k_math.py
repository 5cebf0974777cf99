"""GSM8K and MATH: worked solutions, their final answers compared as lm-eval does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from mixloop.evals.items import ItemSet, Row
from mixloop.evals.lm_eval_tasks import TaskSpec, build_tasks

from .base import STOCK_NEW_TOKENS, Question, _bytes

Outcomes = dict[str, dict[str, float]]


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


class WorkedSolutions:
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
