"""What a whole run asks of one benchmark: shots, new tokens and items the model's context holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mixloop.evals import BenchmarkSettings

from .base import Benchmark, Question

if TYPE_CHECKING:
    from mixloop.evals.engine import CheckpointLM


MIN_FITTING = 0.9  # share of the items that has to fit for a number of shots to be kept
_CHUNK = 16  # items whose prompts are rendered before a number of shots is given up


@dataclass(frozen=True)
class BenchmarkPlan:
    """What a whole run asks of one benchmark: fixed by settings, items, tokenizer and context.

    `asked` and `generated` are item ids before exclusions; `questions` those whose gold answer
    fits, `answered` those whose choices or generation fit. `has_gold` says whether the task has
    gold answers at all.
    """

    shots: int
    max_new_tokens: int
    asked: tuple[str, ...]
    generated: tuple[str, ...]
    questions: Mapping[str, Question]
    answered: Mapping[str, Question]
    has_gold: bool


def fit_shots(
    benchmark: Benchmark, ids: tuple[str, ...], settings: BenchmarkSettings, lm: CheckpointLM
) -> BenchmarkPlan:
    """Shots, new tokens and exclusions of a run.

    New tokens are what was asked (or lm-eval's own), at most half the context. Shots are the most
    (at most lm-eval's own, or `settings.shots`) at which 90% of all items fit whole; none if none
    do.
    """
    max_new_tokens = 0
    if benchmark.generates:
        asked = settings.max_new_tokens or benchmark.stock_max_new_tokens
        max_new_tokens = min(asked, lm.max_length // 2)
    generated = ids if settings.generate_items is None else ids[: settings.generate_items]
    shots = benchmark.stock_shots
    if settings.shots is not None:
        shots = min(settings.shots, benchmark.most_shots)
    while (plan := _fit(benchmark, ids, generated, shots, max_new_tokens, lm)) is None:
        shots -= 1
    return plan


def _fit(
    benchmark: Benchmark,
    ids: tuple[str, ...],
    generated: tuple[str, ...],
    shots: int,
    max_new_tokens: int,
    lm: CheckpointLM,
) -> BenchmarkPlan | None:
    """The plan at this number of shots.

    None as soon as more than a tenth of the items can't fit (rendering prompts is what planning
    costs); at no shots there is nothing left to drop.
    """
    gold: dict[str, Question] = {}
    fitting: dict[str, Question] = {}
    misfits = 0
    has_gold = False
    to_generate = frozenset(generated)
    for begin in range(0, len(ids), _CHUNK):
        chunk = ids[begin : begin + _CHUNK]
        for item, question in benchmark.questions(chunk, shots, max_new_tokens).items():
            has_gold |= question.gold is not None
            gold_fits = question.gold is None or lm.holds(*question.gold)
            answer_fits = item not in to_generate or _answer_fits(question, lm, max_new_tokens)
            misfits += not (gold_fits and answer_fits)
            if gold_fits and question.gold is not None:
                gold[item] = question
            if answer_fits:
                fitting[item] = question
        if shots > 0 and misfits > (1 - MIN_FITTING) * len(ids):
            return None
    answered = {item: fitting[item] for item in generated if item in fitting}
    return BenchmarkPlan(shots, max_new_tokens, ids, generated, gold, answered, has_gold)


def _answer_fits(question: Question, lm: CheckpointLM, max_new_tokens: int) -> bool:
    if question.prompt is not None:
        return lm.has_room(question.prompt.args[0], max_new_tokens)
    return all(lm.holds(*choice.args) for choice in question.choices)
