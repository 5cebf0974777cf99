"""What real runs do to a policy, one situation each."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from mixloop.policies.interface import (
    BenchmarkScore,
    Evaluation,
    Goal,
    Limits,
    Observation,
    PastDecision,
)

from .sample_runs import BENCHMARKS, EVERY, SOURCES, broken, many_sources, rescored, run_so_far


@dataclass(frozen=True)
class SampleNames:
    """Sources (name to tags) and benchmarks that the situations are told with."""

    sources: Mapping[str, Sequence[str]]
    benchmarks: Sequence[str]


ORDINARY = SampleNames(SOURCES, BENCHMARKS)
Telling = Callable[[SampleNames], Observation]


def _run(names: SampleNames, evaluations: int = 12, **changes: object) -> Observation:
    return run_so_far(
        evaluations,
        sources=names.sources,
        benchmarks=names.benchmarks,
        **changes,  # type: ignore[arg-type]
    )


def _missing_benchmarks(names: SampleNames) -> Observation:
    """Scores are missing here and there, the newest of the first benchmark among them, and all
    of one evaluation."""
    last = 11

    def thinned(index: int, name: str, score: BenchmarkScore) -> BenchmarkScore | None:
        gone = index == 5 or (index + names.benchmarks.index(name)) % 4 == 0
        newest = index == last and name == names.benchmarks[0]
        return None if gone or newest else score

    return rescored(_run(names), thinned)


def _never_scored(names: SampleNames) -> Observation:
    return rescored(_run(names), lambda index, name, score: None)


def _nan_scores(names: SampleNames) -> Observation:
    """NaN, infinite and unknown numbers among the scores, and a source whose loss is NaN."""
    values = [(math.nan, math.nan), (math.inf, 0.1), (1.0, math.nan), (1.0, None), (0.5, 0.0)]

    def spoiled(index: int, name: str, score: BenchmarkScore) -> BenchmarkScore:
        turn = index + names.benchmarks.index(name)
        return broken(score, *values[turn // 2 % 5]) if turn % 2 else score

    seen = rescored(_run(names, items=6), spoiled)
    losses = dict.fromkeys(names.sources, math.nan)
    newest = seen.evaluations[-1].model_copy(update={"losses": losses})
    return seen.model_copy(update={"evaluations": (*seen.evaluations[:-1], newest)})


def _new_source(names: SampleNames) -> Observation:
    """The last source was added a moment ago: no evaluation has heard of it."""
    seen = _run(names)
    new = list(names.sources)[-1]
    if len(names.sources) == 1:
        return seen

    def before(evaluation: Evaluation) -> Evaluation:
        fields = {
            key: {n: v for n, v in getattr(evaluation, key).items() if n != new}
            for key in ("weights", "drawn", "losses")
        }
        return evaluation.model_copy(update=fields)

    fresh = seen.sources[new].model_copy(update={"drawn": 0, "epochs": 0.0})
    return seen.model_copy(
        update={
            "sources": seen.sources | {new: fresh},
            "weights": _without(seen.weights, new) | {new: 0.0},
            "evaluations": tuple(map(before, seen.evaluations)),
        }
    )


def _vanished_source(names: SampleNames) -> Observation:
    """A source that history, mixture in force and plan name is not configured any more."""
    more = {**names.sources, "retired": tuple(names.benchmarks[:1])}
    seen = _run(SampleNames(more, names.benchmarks))
    left = {name: source for name, source in seen.sources.items() if name != "retired"}
    plan = ((seen.tokens + 5 * EVERY, seen.weights),)
    return seen.model_copy(update={"sources": left, "plan": plan})


def _without(weights: Mapping[str, float], name: str) -> dict[str, float]:
    left = 1 - weights[name]
    return {n: w / left for n, w in weights.items() if n != name}


def _one_source(names: SampleNames) -> Observation:
    first = next(iter(names.sources))
    return _run(SampleNames({first: names.sources[first]}, names.benchmarks))


def _one_benchmark(names: SampleNames) -> Observation:
    return _run(SampleNames(names.sources, names.benchmarks[:1]))


def _many(names: SampleNames) -> Observation:
    sources = {**names.sources, **many_sources(64, names.benchmarks)}
    return _run(SampleNames(dict(list(sources.items())[:64]), names.benchmarks), 110)


def _standby(names: SampleNames) -> Observation:
    """The last source waits on standby, and was never drawn from."""
    seen = _run(names)
    if len(names.sources) == 1:
        return seen
    name = list(names.sources)[-1]
    waiting = seen.sources[name].model_copy(update={"standby": True, "drawn": 0, "epochs": 0.0})
    weights = _without(seen.weights, name) | {name: 0.0}

    def before(evaluation: Evaluation) -> Evaluation:
        kept = {n: d for n, d in evaluation.drawn.items() if n != name}
        fields = {"weights": weights, "drawn": kept | {name: 0.0}}
        return evaluation.model_copy(update=fields)

    return seen.model_copy(
        update={
            "sources": seen.sources | {name: waiting},
            "weights": weights,
            "evaluations": tuple(map(before, seen.evaluations)),
            "decisions": (),
        }
    )


def _tight(names: SampleNames) -> Observation:
    """Little may change, no source may vanish or take over, and one has no token left."""
    share = 1 / len(names.sources)
    limits = Limits(max_epochs=3.0, max_change=0.02, floor=0.3 * share, cap=min(1.0, 2 * share))
    seen = _run(names, limits=limits, weights=dict.fromkeys(names.sources, share))
    name = list(names.sources)[-1]
    spent = {"unique_tokens": EVERY, "drawn": 3 * EVERY, "epochs": 3.0}
    empty = seen.sources[name].model_copy(update=spent)
    return seen.model_copy(update={"sources": seen.sources | {name: empty}})


def _foreign_history(names: SampleNames) -> Observation:
    """Another policy decided so far, and left evidence of its own kind."""
    seen = _run(names)
    strange = {
        "rule": "elsewhere",
        "rules": ["x", 3],
        "state": {"posterior": [[1.0, None]]},
        "weights": "none",
        "benchmark": 7,
    }

    def foreign(decision: PastDecision) -> PastDecision:
        return decision.model_copy(update={"rule": "elsewhere", "evidence": strange})

    return seen.model_copy(update={"decisions": tuple(map(foreign, seen.decisions))})


def _bare_history(names: SampleNames) -> Observation:
    """Evaluations that recorded no mixture, no ledger, no train loss, no phase."""
    seen = _run(names)
    nothing: dict[str, object] = {"weights": {}, "drawn": {}, "losses": {}, "phase": None}
    bare = tuple(e.model_copy(update=nothing) for e in seen.evaluations)
    return seen.model_copy(update={"evaluations": bare, "phase": None, "every": 0})


def _same_tokens(names: SampleNames) -> Observation:
    """The same checkpoint was scored twice: no token lies between two evaluations."""
    seen = _run(names)
    twice = (*seen.evaluations, seen.evaluations[-1])
    return seen.model_copy(update={"evaluations": twice})


def _accuracy(names: SampleNames) -> Observation:
    """Higher is better, one benchmark may not fall, another is past its target."""
    goals = {name: Goal(weight=1.0, target=0.05, max_drop=0.0) for name in names.benchmarks[:1]}
    goals |= {name: Goal(weight=0.0) for name in names.benchmarks[1:2]}
    steering = dict.fromkeys(names.benchmarks, "accuracy")
    return _run(names, items=20, steering=steering, objective=goals)


def _watched(names: SampleNames) -> Observation:
    """One benchmark is only watched, and another was never configured."""
    steering = dict.fromkeys(names.benchmarks[1:2] or names.benchmarks, "bits_per_byte")
    return _run(names, steering=steering, watch=tuple(names.benchmarks[:1]))


SITUATIONS: dict[str, Telling] = {
    "an ordinary run": _run,
    "an empty history": partial(_run, evaluations=0),
    "a first evaluation": partial(_run, evaluations=1),
    "a second evaluation": partial(_run, evaluations=2),
    "per-item outcomes": partial(_run, evaluations=6, items=30),
    "missing benchmarks": _missing_benchmarks,
    "no benchmark ever scored": _never_scored,
    "NaN and infinite scores": _nan_scores,
    "a new source": _new_source,
    "a vanished source": _vanished_source,
    "one source": _one_source,
    "one benchmark": _one_benchmark,
    "64 sources, 110 evaluations": _many,
    "a source on standby": _standby,
    "tight limits and an exhausted source": _tight,
    "no limits": partial(_run, limits=Limits()),
    "benchmarks where higher is better": _accuracy,
    "watched benchmarks": _watched,
    "another policy's history": _foreign_history,
    "a history without mixtures or ledger": _bare_history,
    "one checkpoint scored twice": _same_tokens,
    "learning-rate decay": partial(_run, phase="decay"),
    "an order not yet in force": partial(_run, in_force=False),
    "the end of the budget": partial(_run, budget=12 * EVERY),
    "an unknown budget": partial(_run, budget=0),
}
