"""Units of work: parts of a benchmark that can be scored anywhere and put together again.

Which items a unit holds is fixed by the items and `unit_items` alone, never by how many workers
there are, and every unit is computed by itself; so the scorecard is the same, to the last bit, on
one worker and on many.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from pydantic import Field

from mixloop.evals import BenchmarkScore, Cost, FrozenModel, Metric, Outcomes

from .metrics import cluster_of, mean_metrics, ratio_metric


class WorkUnit(FrozenModel):
    """Part `part` of the `parts` parts of a benchmark's items."""

    benchmark: str
    part: int = 0
    parts: int = 1

    def which(self) -> str:
        """`, part 2 of 3` for a person; nothing where there is one."""
        return f", part {self.part + 1} of {self.parts}" if self.parts > 1 else ""


class UnitScore(FrozenModel):
    """What one unit gave.

    `gold` has the bits per byte of the items whose gold answer fits, `answers` the outcomes of
    the benchmark's own scoring. `failed` says why nothing could be measured, `trouble` why the
    answers could not. The rest describes the whole benchmark and is the same in all its units:
    `asked` items, of which `generated` are asked for their answers; `fitting` are the unit's own of
    those that fit the context. `lower_is_better` names the metrics for which that is so.
    """

    unit: WorkUnit
    failed: str | None = None
    trouble: str | None = None
    gold: Outcomes = Field(default_factory=dict)
    answers: Outcomes = Field(default_factory=dict)
    fitting: tuple[str, ...] = ()
    asked: tuple[str, ...] = ()
    generated: int = 0
    shots: int = 0
    max_new_tokens: int = 0
    scored: str = ""
    has_gold: bool = True
    lower_is_better: tuple[str, ...] = ()
    data: str = ""
    data_kind: str = ""
    cost: Cost | None = None


def parts(benchmark: str, ids: Sequence[str], most: int) -> list[tuple[str, ...]]:
    """The ids cut into parts of at most `most` items; a subject of MMLU is cut only if larger."""
    groups: dict[str, list[str]] = {}
    for item in ids:
        group = cluster_of(benchmark, item) if benchmark == "mmlu" else ""
        groups.setdefault(group, []).append(item)
    cut: list[tuple[str, ...]] = []
    part: list[str] = []
    for _, items in sorted(groups.items()):
        if part and len(part) + len(items) > most:
            cut.append(tuple(part))
            part = []
        part += items
        while len(part) > most:
            cut.append(tuple(part[:most]))
            part = part[most:]
    return [*cut, tuple(part)] if part or not cut else cut


def assemble_score(name: str, scores: Sequence[UnitScore]) -> BenchmarkScore:
    """One benchmark's score from all of its units, in any order.

    A unit that failed makes the benchmark missing: a score over the others would be one of other
    items than at the checkpoint before.
    """
    if not scores or len(scores) < scores[0].unit.parts:
        return missing_score(f"{name}: some of its items were not scored")
    scores = sorted(scores, key=lambda score: score.unit.part)
    failed = next((score.failed for score in scores if score.failed is not None), None)
    if failed is not None:
        return missing_score(failed)
    first = scores[0]
    cluster = partial(cluster_of, name)
    gold = _in_order(first.asked, [score.gold for score in scores])
    answers = _in_order(first.asked, [score.answers for score in scores])
    fitting = {item for score in scores for item in score.fitting}
    metrics: dict[str, Metric] = {}
    reasons: list[str] = []
    trouble = next((score.trouble for score in scores if score.trouble is not None), None)
    if gold:
        metrics["bits_per_byte"] = ratio_metric(gold, len(first.asked), cluster)
    if trouble is None and answers:
        better = dict.fromkeys(first.lower_is_better, False)
        metrics |= mean_metrics(answers, first.generated, cluster, better)
    elif first.generated:
        reasons.append(f"{first.scored}: {trouble or 'no item fits the context'}")
    if not gold:
        why = "no item fits the context" if first.has_gold else "the task has no gold text"
        reasons.append(f"bits_per_byte: {why}")
    items = {
        item: {**gold.get(item, {}), **answers.get(item, {})}
        for item in first.asked
        if item in gold or item in answers
    }
    return BenchmarkScore(
        status="ok" if metrics else "missing",
        reason="; ".join(reasons) or None,
        metrics=metrics,
        items=items,
        shots=first.shots,
        max_new_tokens=first.max_new_tokens or None,
        asked=len(first.asked),
        excluded=len(first.asked) - len(items.keys() | fitting),
        data=first.data,
        data_kind=first.data_kind,
    )


def missing_score(reason: str) -> BenchmarkScore:
    """A benchmark that could not be scored, and why."""
    return BenchmarkScore(status="missing", reason=reason)


def total_cost(scores: Sequence[UnitScore]) -> Cost:
    """What a benchmark's units cost together; seconds add up, wherever they were spent."""
    costs = [score.cost for score in scores if score.cost is not None]
    return Cost(
        seconds=round(sum(cost.seconds for cost in costs), 3),
        cpu_seconds=round(sum(cost.cpu_seconds for cost in costs), 3),
        items=sum(cost.items for cost in costs),
        tokens=sum(cost.tokens for cost in costs),
        asked_tokens=sum(cost.asked_tokens for cost in costs),
    )


def _in_order(asked: Sequence[str], outcomes: Sequence[Outcomes]) -> Outcomes:
    merged = {item: outcome for part in outcomes for item, outcome in part.items()}
    return {item: merged[item] for item in asked if item in merged}
