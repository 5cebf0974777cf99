"""Observations to try a policy on: one ordinary run, and what real runs do to a policy.

Everything is a function of its arguments. The scores follow a small power law with transfer, so
that a policy which fits something finds something to fit; no policy is judged by them.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mixloop.policies.interface import (
    BenchmarkScore,
    Evaluation,
    Items,
    Limits,
    Metric,
    Observation,
    PastDecision,
    Source,
)
from mixloop.policies.mixture import total_variation

SOURCES: dict[str, tuple[str, ...]] = {
    "web": ("web", "mmlu"),
    "code": ("code", "humaneval"),
    "maths": ("maths", "gsm8k", "math"),
    "books": ("web",),
    "papers": ("web", "mmlu"),
}
BENCHMARKS = ("mmlu", "gsm8k", "math", "humaneval")
EVERY = 10**9
SEGMENTS = 40
PLENTY = 10**12


def run_so_far(
    evaluations: int = 12,
    *,
    sources: Mapping[str, Sequence[str]] | None = None,
    benchmarks: Sequence[str] | None = None,
    items: int = 0,
    seed: int = 0,
    budget: int | None = None,
    **changes: Any,
) -> Observation:
    """An ordinary run after so many evaluations, ``EVERY`` tokens apart.

    Args:
        evaluations: how many scores there are; a decision on the newest is due.
        sources: names with their tags; the first starts with most of the weight, and every third
            is scarce (two evaluations' worth of tokens).
        benchmarks: names of the benchmarks that steer.
        items: per-item outcomes of each benchmark; 0: none, values and standard errors only.
        seed: of the scores, and the observation's own.
        budget: tokens of the whole run; None: ``SEGMENTS`` evaluations, or as many as are needed.
        changes: fields of the observation to set.
    """
    tags = {name: tuple(words) for name, words in (sources or SOURCES).items()}
    names = tuple(benchmarks or BENCHMARKS)
    drawing = random.Random(seed)
    law = _SampleLaw(tags, names, drawing)
    drawn, weights = dict.fromkeys(tags, 0.0), _start(tags)
    scored: list[Evaluation] = []
    decided: list[PastDecision] = []
    for step in range(1, evaluations + 1):
        for name, weight in weights.items():
            drawn[name] += weight * EVERY
        scored.append(_evaluation(law, step, drawn, weights, items, drawing))
        if step < evaluations:
            after = _moved(weights, drawing) if step % 3 == 0 else weights
            decided.append(_decision(step, weights, after))
            weights = after
    fields: dict[str, Any] = {
        "run": "conformance",
        "step": evaluations,
        "tokens": evaluations * EVERY,
        "budget": max(SEGMENTS, evaluations + 10) * EVERY if budget is None else budget,
        "phase": "stable",
        "seed": seed,
        "generation": sum(d.generation is not None for d in decided),
        "sources": _sources(tags, drawn),
        "weights": weights,
        "evaluations": tuple(scored),
        "every": EVERY,
        "steering": dict.fromkeys(names, "bits_per_byte"),
        "limits": Limits(max_epochs=5.0, max_change=0.2),
        "decisions": tuple(decided),
    }
    return Observation(**fields | changes)


def many_sources(
    count: int = 64, benchmarks: Sequence[str] | None = None
) -> dict[str, tuple[str, ...]]:
    """The ordinary sources and more, tagged with the benchmarks in turn."""
    names = tuple(benchmarks or BENCHMARKS)
    more = {f"source-{i:02d}": (names[i % len(names)],) for i in range(len(SOURCES), count)}
    return dict(list((SOURCES | more).items())[:count])


class _SampleLaw:
    """Bits per byte ``eps + beta (A D + 0.05)^-alpha`` over tokens drawn, D in ``EVERY``."""

    def __init__(
        self, tags: Mapping[str, Sequence[str]], names: Sequence[str], drawing: random.Random
    ) -> None:
        self.constants = {
            name: (drawing.uniform(0.4, 0.8), drawing.uniform(0.8, 2), drawing.uniform(0.15, 0.45))
            for name in names
        }
        self.transfer = {
            name: {s: 1.0 if name in t else drawing.uniform(0, 0.2) for s, t in tags.items()}
            for name in names
        }

    def loss(self, benchmark: str, drawn: Mapping[str, float]) -> float:
        eps, beta, alpha = self.constants[benchmark]
        worth = sum(self.transfer[benchmark][s] * d / EVERY for s, d in drawn.items())
        return float(eps + beta * (worth + 0.05) ** -alpha)


def _start(tags: Mapping[str, Sequence[str]]) -> dict[str, float]:
    if len(tags) == 1:
        return dict.fromkeys(tags, 1.0)
    first, *others = tags
    return {first: 0.6} | dict.fromkeys(others, 0.4 / len(others))


def _moved(weights: Mapping[str, float], drawing: random.Random) -> dict[str, float]:
    """A tenth of the tokens to one source."""
    to = drawing.choice(list(weights))
    return {name: 0.9 * weight + (0.1 if name == to else 0.0) for name, weight in weights.items()}


def _sources(tags: Mapping[str, tuple[str, ...]], drawn: Mapping[str, float]) -> dict[str, Source]:
    sources = {}
    for index, (name, words) in enumerate(tags.items()):
        unique = 2 * EVERY if index % 3 == 2 else PLENTY
        sources[name] = Source(
            unique_tokens=unique, tags=words, drawn=round(drawn[name]), epochs=drawn[name] / unique
        )
    return sources


def _evaluation(
    law: _SampleLaw,
    step: int,
    drawn: Mapping[str, float],
    weights: Mapping[str, float],
    items: int,
    drawing: random.Random,
) -> Evaluation:
    scores = {name: _score(name, law.loss(name, drawn), items, drawing) for name in law.constants}
    return Evaluation(
        step=step,
        tokens=step * EVERY,
        phase="stable",
        weights=dict(weights),
        drawn=dict(drawn),
        losses={name: _train_loss(amount, drawing) for name, amount in drawn.items()},
        benchmarks=scores,
    )


def _train_loss(drawn: float, drawing: random.Random) -> float:
    """Nats per token, a power law in the source's own tokens."""
    return float(1.5 + 1.5 * (drawn / EVERY + 0.05) ** -0.3 + drawing.gauss(0, 0.01))


def _score(name: str, value: float, items: int, drawing: random.Random) -> BenchmarkScore:
    noisy = value + drawing.gauss(0, 0.004)
    right = max(0.0, min(1.0, 1.2 - value / 2 + drawing.gauss(0, 0.02)))
    size = items or 400
    return BenchmarkScore(
        metrics={
            "bits_per_byte": Metric(value=noisy, stderr=0.004, n=size, higher_is_better=False),
            "accuracy": Metric(value=right, stderr=0.02, n=size),
        },
        items=_items(name, noisy, right, items),
    )


def _items(name: str, value: float, right: float, items: int) -> Items:
    """The same items for every checkpoint: what makes one hard stays."""
    hard = random.Random(name)
    outcomes: Items = {}
    for index in range(items):
        spread, luck = hard.gauss(0, 0.3), hard.random()
        key = f"subject-{index % 20:02d}/{index:04d}" if name == "mmlu" else f"{index:04d}"
        outcomes[key] = {
            "bits_per_byte": value + spread,
            "accuracy": 1.0 if luck < right else 0.0,
            "bytes": 20.0 + index % 50,
        }
    return outcomes


def _decision(step: int, before: Mapping[str, float], after: Mapping[str, float]) -> PastDecision:
    moved = total_variation(before, after) > 0
    return PastDecision(
        id=f"d-{step:06d}",
        step=step,
        tokens=step * EVERY,
        verdict="intervene" if moved else "hold",
        generation=step if moved else None,
        weights_before=dict(before),
        weights_after=dict(after),
    )


def rescored(run: Observation, change: Callable[[int, str, BenchmarkScore], Any]) -> Observation:
    """The run with ``change(evaluation's index, benchmark, score)`` in every score's place.

    None takes the score away.
    """
    evaluations = []
    for index, evaluation in enumerate(run.evaluations):
        changed = {n: change(index, n, score) for n, score in evaluation.benchmarks.items()}
        kept = {name: score for name, score in changed.items() if score is not None}
        evaluations.append(evaluation.model_copy(update={"benchmarks": kept}))
    return run.model_copy(update={"evaluations": tuple(evaluations)})


def broken(score: BenchmarkScore, value: float, stderr: float | None) -> BenchmarkScore:
    """The score with this value and standard error in every metric and item."""
    metrics = {
        name: metric.model_copy(update={"value": value, "stderr": stderr})
        for name, metric in score.metrics.items()
    }
    items = {
        item: {key: number if key == "bytes" else value for key, number in outcome.items()}
        for item, outcome in score.items.items()
    }
    return BenchmarkScore(metrics=metrics, items=items)
