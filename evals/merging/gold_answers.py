"""The gold answers that bits per byte are measured on, as tokens, the same as in scoring."""

from __future__ import annotations

import math
import random
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mixloop.evals import EvalSettings, Outcomes
from mixloop.evals.sandbox import Sandbox
from mixloop.evals.scoring import AskedBenchmarks

if TYPE_CHECKING:
    from mixloop.evals.engine import CheckpointLM

Items = Mapping[str, Collection[str]]
"""Ids of items by benchmark."""


@dataclass(frozen=True)
class GoldAnswer:
    """An item's gold answer behind its prompt: `tail` is predicted after `head`, over `bytes`."""

    item: str
    head: list[int]
    tail: list[int]
    bytes: int


Answers = Mapping[str, Sequence[GoldAnswer]]
"""Gold answers by benchmark, in the order of scoring."""


def gold_answers(settings: EvalSettings, lm: CheckpointLM) -> dict[str, tuple[GoldAnswer, ...]]:
    """The gold answers of the benchmarks that steer, those that fit the model's context.

    A benchmark without gold answers is left out.

    Raises:
        ItemsError: a benchmark has no items.
    """
    sandbox = Sandbox(settings.sandbox, settings.program_timeout)
    asked = AskedBenchmarks(settings, sandbox)
    try:
        found = {name: _answers(asked, name, lm) for name in settings.benchmarks}
    finally:
        sandbox.close()
    return {name: answers for name, answers in found.items() if answers}


def _answers(asked: AskedBenchmarks, name: str, lm: CheckpointLM) -> tuple[GoldAnswer, ...]:
    return tuple(
        GoldAnswer(item, *lm.encode_pair(*question.gold), question.gold_bytes)
        for item, question in asked.plan(name, lm).questions.items()
        if question.gold is not None
    )


def chosen(answers: Answers, items: Items | None) -> Answers:
    """The answers of these items; None: all.

    Raises:
        ValueError: a benchmark of which no item is named, or an item that isn't there.
    """
    if items is None:
        return answers
    some: dict[str, list[GoldAnswer]] = {}
    for name, ids in items.items():
        by_id = {answer.item: answer for answer in answers.get(name, ())}
        unknown = [item for item in ids if item not in by_id]
        if unknown or not ids:
            raise ValueError(f"{name}: no gold answer of {unknown[0] if unknown else 'any item'}")
        some[name] = [by_id[item] for item in ids]
    return some


def draw_items(answers: Answers, number: int, seed: int) -> dict[str, tuple[str, ...]]:
    """A seeded draw of at most `number` items of each benchmark."""
    drawn = {}
    for name, of_benchmark in answers.items():
        ids = [answer.item for answer in of_benchmark]
        # each benchmark by its own: another one that comes or goes moves nothing
        draw = random.Random(f"{seed}|{name}").sample(ids, min(number, len(ids)))
        drawn[name] = tuple(sorted(draw, key=ids.index))
    return drawn


def outcomes(answers: Sequence[GoldAnswer], logprobs: Iterable[float]) -> Outcomes:
    """Bits per byte by item, as scorecards have it; infinite where a model's are not finite."""
    return {
        answer.item: {
            "bits_per_byte": bits(total) / answer.bytes,
            "bytes": float(answer.bytes),
        }
        for answer, total in zip(answers, logprobs, strict=True)
    }


def bits(logprob: float) -> float:
    """What a log-probability costs; a model whose numbers are none costs everything."""
    return -logprob / math.log(2) if math.isfinite(logprob) else math.inf


def bits_per_byte(of_items: Outcomes) -> float:
    """A benchmark's loss: all bits over all bytes, as its metric in scorecards."""
    total = math.fsum(o["bits_per_byte"] * o["bytes"] for o in of_items.values())
    return total / math.fsum(o["bytes"] for o in of_items.values())
