"""What a whole run asks of one benchmark: shots, room and items that the model's context holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mixloop.evals import BenchmarkSettings

from .base import Benchmark, Question

if TYPE_CHECKING:
    from mixloop.evals.engine import CheckpointLM


# share of the items that has to fit for a number of shots to be kept
FIT = 0.9
_CHUNK = 16


@dataclass(frozen=True)
class BenchmarkPlan:
    """What a whole run asks of one benchmark: fixed by settings, items, tokenizer and context.

    `asked` and `generated` are item ids before exclusions; `questions` those whose gold answer
    fits, `answered` those whose choices or generation fit. `has_gold` says whether the task has
    gold answers at all.
    """

    shots: int
    room: int
    asked: tuple[str, ...]
    generated: tuple[str, ...]
    questions: Mapping[str, Question]
    answered: Mapping[str, Question]
    has_gold: bool = True


def fit_shots(
    benchmark: Benchmark, ids: tuple[str, ...], own: BenchmarkSettings, lm: CheckpointLM
) -> BenchmarkPlan:
    """Shots, room for generation and exclusions of a run.

    The room is what was asked (or lm-eval's own), at most half the context. Shots are the most
    (at most lm-eval's own, or `own.shots`) at which 90% of all items fit whole; none if none do.
    """
    room = 0
    if benchmark.generates:
        room = min(own.max_new_tokens or benchmark.stock_room, lm.max_length // 2)
    generated = ids if own.generate_items is None else ids[: own.generate_items]
    most = benchmark.stock_shots if own.shots is None else min(own.shots, benchmark.most_shots)
    for shots in range(most, -1, -1):
        found = _fit(benchmark, ids, frozenset(generated), shots, room, lm)
        if found is not None:
            break
    assert found is not None
    gold, fitting, has_gold = found
    answered = {one: fitting[one] for one in generated if one in fitting}
    return BenchmarkPlan(shots, room, ids, generated, gold, answered, has_gold)


def _fit(
    benchmark: Benchmark,
    ids: Sequence[str],
    generated: frozenset[str],
    shots: int,
    room: int,
    lm: CheckpointLM,
) -> tuple[dict[str, Question], dict[str, Question], bool] | None:
    """Questions whose gold answer fits, those whose answers do, and whether any has gold at all.

    None as soon as more than a tenth of the items can't fit at this number of shots (rendering
    prompts is what planning costs); at no shots there is nothing left to drop.
    """
    gold: dict[str, Question] = {}
    fitting: dict[str, Question] = {}
    misfits = 0
    has_gold = False
    for begin in range(0, len(ids), _CHUNK):
        chunk = ids[begin : begin + _CHUNK]
        for one, question in benchmark.questions(chunk, shots, room).items():
            has_gold |= question.gold is not None
            read = question.gold is None or lm.holds(*question.gold)
            answers = one not in generated or _answer_fits(question, lm, room)
            misfits += not (read and answers)
            if read and question.gold is not None:
                gold[one] = question
            if answers:
                fitting[one] = question
        if shots > 0 and misfits > (1 - FIT) * len(ids):
            return None
    return gold, fitting, has_gold


def _answer_fits(question: Question, lm: CheckpointLM, room: int) -> bool:
    if question.prompt is not None:
        return lm.has_room(question.prompt.args[0], room)
    return all(lm.holds(*choice.args) for choice in question.choices)
