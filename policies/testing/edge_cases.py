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
    Source,
)

from .sample_runs import BENCHMARKS, EVERY, SOURCES, broken, many_sources, rescored, run_so_far


@dataclass(frozen=True)
class SampleNames:
    """Sources (name to tags) and benchmarks that the situations are told with."""

    sources: Mapping[str, Sequence[str]]
    benchmarks: Sequence[str]


ORDINARY = SampleNames(SOURCES, BENCHMARKS)
Situation = Callable[[SampleNames], Observation]


def _run(names: SampleNames, evaluations: int = 12, **changes: object) -> Observation:
    return run_so_far(
        evaluations,
        sources=names.sources,
        benchmarks=names.benchmarks,
        **changes,  # type: ignore[arg-type]
    )


def _changed(
    run: Observation, change: Callable[[Evaluation], Evaluation], **fields: object
) -> Observation:
    """The run with other fields, and every evaluation changed."""
    return run.model_copy(update={"evaluations": tuple(map(change, run.evaluations)), **fields})


def _missing_benchmarks(names: SampleNames) -> Observation:
    """Scores are missing here and there, the first benchmark's newest and a whole evaluation."""
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

    run = rescored(_run(names, items=6), spoiled)
    losses = dict.fromkeys(names.sources, math.nan)
    newest = run.evaluations[-1].model_copy(update={"losses": losses})
    return run.model_copy(update={"evaluations": (*run.evaluations[:-1], newest)})


def _new_source(names: SampleNames) -> Observation:
    """The last source was added a moment ago: no evaluation has heard of it."""
    run = _run(names)
    new = list(names.sources)[-1]
    if len(names.sources) == 1:
        return run

    def before(evaluation: Evaluation) -> Evaluation:
        fields = {
            key: {n: v for n, v in getattr(evaluation, key).items() if n != new}
            for key in ("weights", "drawn", "losses")
        }
        return evaluation.model_copy(update=fields)

    sources, weights = _unused(run, new)
    return _changed(run, before, sources=sources, weights=weights)


def _unused(
    run: Observation, name: str, **fields: object
) -> tuple[dict[str, Source], dict[str, float]]:
    """Sources and mixture of a run in which nothing was ever drawn from one."""
    fresh = run.sources[name].model_copy(update={"drawn": 0, "epochs": 0.0, **fields})
    left = 1 - run.weights[name]
    weights = {n: 0.0 if n == name else w / left for n, w in run.weights.items()}
    return run.sources | {name: fresh}, weights


def _vanished_source(names: SampleNames) -> Observation:
    """A source that history, mixture in force and plan name is not configured any more."""
    more = {**names.sources, "retired": tuple(names.benchmarks[:1])}
    run = _run(SampleNames(more, names.benchmarks))
    left = {name: source for name, source in run.sources.items() if name != "retired"}
    plan = ((run.tokens + 5 * EVERY, run.weights),)
    return run.model_copy(update={"sources": left, "plan": plan})


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
    run = _run(names)
    if len(names.sources) == 1:
        return run
    name = list(names.sources)[-1]
    sources, weights = _unused(run, name, standby=True)

    def before(evaluation: Evaluation) -> Evaluation:
        fields = {"weights": weights, "drawn": {**evaluation.drawn, name: 0.0}}
        return evaluation.model_copy(update=fields)

    return _changed(run, before, sources=sources, weights=weights, decisions=())


def _tight(names: SampleNames) -> Observation:
    """Little may change, no source may vanish or take over, and one has no token left."""
    share = 1 / len(names.sources)
    limits = Limits(max_epochs=3.0, max_change=0.02, floor=0.3 * share, cap=min(1.0, 2 * share))
    run = _run(names, limits=limits, weights=dict.fromkeys(names.sources, share))
    name = list(names.sources)[-1]
    spent = {"unique_tokens": EVERY, "drawn": 3 * EVERY, "epochs": 3.0}
    empty = run.sources[name].model_copy(update=spent)
    return run.model_copy(update={"sources": run.sources | {name: empty}})


def _foreign_history(names: SampleNames) -> Observation:
    """Another policy decided so far, and left evidence of its own kind."""
    run = _run(names)
    evidence = {
        "rule": "elsewhere",
        "rules": ["x", 3],
        "state": {"posterior": [[1.0, None]]},
        "weights": "none",
        "benchmark": 7,
    }
    foreign = {"rule": "elsewhere", "evidence": evidence}
    decisions = tuple(decision.model_copy(update=foreign) for decision in run.decisions)
    return run.model_copy(update={"decisions": decisions})


def _bare_history(names: SampleNames) -> Observation:
    """Evaluations that recorded no mixture, no ledger, no train loss, no phase."""
    nothing: dict[str, object] = {"weights": {}, "drawn": {}, "losses": {}, "phase": None}
    return _changed(_run(names), lambda e: e.model_copy(update=nothing), phase=None, every=0)


def _same_tokens(names: SampleNames) -> Observation:
    """The same checkpoint was scored twice: no token lies between two evaluations."""
    run = _run(names)
    return run.model_copy(update={"evaluations": (*run.evaluations, run.evaluations[-1])})


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


SITUATIONS: dict[str, Situation] = {
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
