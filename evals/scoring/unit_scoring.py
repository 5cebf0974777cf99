"""One unit of work scored: the model's answers, and what the benchmark says of them.

Gold answers and choices are log-likelihoods of one pass; generated answers follow, and whatever
becomes of them leaves the bits per byte of the gold answers, which steer, alone.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from mixloop.common.errors import one_line
from mixloop.evals import Cost, Outcomes
from mixloop.evals.benchmarks import Benchmark, BenchmarkPlan, Question

from .asked_benchmarks import PreparedBenchmark
from .work_units import UnitScore, WorkUnit

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance

    from mixloop.evals.engine import CheckpointLM

log = logging.getLogger(__name__)


def score_unit(
    unit: WorkUnit,
    ids: Sequence[str],
    prepared: PreparedBenchmark,
    plan: BenchmarkPlan,
    lm: CheckpointLM,
) -> UnitScore:
    """The score of these items of a benchmark."""
    benchmark = prepared.benchmark
    questions = {item: plan.questions[item] for item in ids if item in plan.questions}
    answered = {item: plan.answered[item] for item in ids if item in plan.answered}
    costs: list[Cost] = []
    trouble = benchmark.unusable()
    answers: Outcomes = {}
    with _metered(costs, len(ids), lm):
        gold = _score_gold(questions, answered if trouble is None else {}, lm)
        if trouble is None:
            answers, trouble = _score_answers(benchmark, answered, lm)
        lm.forget()
    return UnitScore(
        unit=unit,
        trouble=trouble,
        gold=gold,
        answers=answers,
        fitting=tuple(answered),
        asked=plan.asked,
        generated=len(plan.generated),
        shots=plan.shots,
        max_new_tokens=plan.max_new_tokens,
        scored=benchmark.scored,
        has_gold=plan.has_gold,
        lower_is_better=tuple(
            sorted(name for name, higher in benchmark.higher_is_better.items() if not higher)
        ),
        data=prepared.data,
        data_kind=prepared.data_kind,
        cost=costs[0],
    )


@contextmanager
def _metered(into: list[Cost], items: int, lm: CheckpointLM) -> Iterator[None]:
    began, spent = time.monotonic(), time.process_time()
    tokens, asked = lm.tokens, lm.asked_tokens
    yield
    into.append(
        Cost(
            seconds=round(time.monotonic() - began, 3),
            cpu_seconds=round(time.process_time() - spent, 3),
            items=items,
            tokens=lm.tokens - tokens,
            asked_tokens=lm.asked_tokens - asked,
        )
    )


def _score_gold(
    questions: Mapping[str, Question], answered: Mapping[str, Question], lm: CheckpointLM
) -> Outcomes:
    """{item: {bits_per_byte, bytes}} of the gold answers; choices are answered in the same pass."""
    from lm_eval.api.instance import Instance

    gold = {item: question for item, question in questions.items() if question.gold is not None}
    requests = [
        Instance(request_type="loglikelihood", doc={}, arguments=question.gold, idx=0)
        for question in gold.values()
    ]
    choices: list[Instance] = [choice for q in answered.values() for choice in q.choices]
    requests += choices
    answers = lm.loglikelihood(requests, disable_tqdm=True) if requests else []
    for choice, answer in zip(choices, answers[len(gold) :], strict=True):
        # the requests are kept for the run; the answers are this checkpoint's
        choice.resps, choice.filtered_resps = [answer], {}
    outcomes: Outcomes = {}
    for (item, question), (total, _greedy) in zip(gold.items(), answers, strict=False):
        bits = -_finite(total) / math.log(2)
        outcomes[item] = {
            "bits_per_byte": bits / question.gold_bytes,
            "bytes": float(question.gold_bytes),
        }
    return outcomes


def _score_answers(
    benchmark: Benchmark, answered: Mapping[str, Question], lm: CheckpointLM
) -> tuple[Outcomes, str | None]:
    """The outcomes of choices and generated texts, or why there are none.

    A sandbox that dies or a scorer that trips over one answer must not take the bits per byte,
    which steer, with it.
    """
    if not answered:
        return {}, None
    try:
        for question in answered.values():
            for choice in question.choices:
                _finite(choice.resps[0][0])
        prompts = [q.prompt for q in answered.values() if q.prompt is not None]
        if prompts:
            for prompt, text in zip(prompts, lm.generate_until(prompts), strict=True):
                prompt.resps, prompt.filtered_resps = [text], {}
        return benchmark.outcomes(answered), None
    except Exception as error:
        log.exception("%s failed", benchmark.scored)
        return {}, one_line(error)


def _finite(value: float) -> float:
    if not math.isfinite(value):
        raise ValueError("the checkpoint's log-likelihoods are not finite")
    return value
