"""The loss of each source at each evaluation, as published mixing methods reward by it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from math import fsum

from mixloop.policies.interface import BITS_PER_BYTE, Evaluation, Observation
from mixloop.policies.mixture import in_force


def arms(observation: Observation) -> list[str]:
    """The sources to choose between: all but those that wait on standby without weight."""
    weights = in_force(observation)
    sources = observation.sources.items()
    return [name for name, source in sources if weights[name] > 0 or not source.standby]


def source_losses(observation: Observation, names: Sequence[str]) -> list[dict[str, float]]:
    """One mapping per evaluation, source to its loss; what isn't known is absent.

    The training loss per source where the run records it. Where no evaluation has any, the mean
    loss of the benchmarks that the source is tagged with stands in for it (of all benchmarks, for
    a source that is tagged with none): in bits per byte, or in the steering metric if lower is
    better. Watched benchmarks don't count.
    """
    if any(evaluation.losses for evaluation in observation.evaluations):
        return [_finite(evaluation.losses, names) for evaluation in observation.evaluations]
    tags = {name: observation.sources[name].tags for name in names}
    return [_tagged(benchmark_losses(observation, e), tags) for e in observation.evaluations]


def benchmark_losses(observation: Observation, evaluation: Evaluation) -> dict[str, float]:
    """The finite losses of one evaluation, by benchmark."""
    found = {}
    for name, score in evaluation.benchmarks.items():
        if name in observation.watch:
            continue
        metric = score.metrics.get(BITS_PER_BYTE) or score.metrics.get(observation.metric_for(name))
        if metric and not metric.higher_is_better and math.isfinite(metric.value):
            found[name] = metric.value
    return found


def consumed(observation: Observation, index: int, names: Sequence[str]) -> dict[str, float]:
    """Share of each source in the tokens between this evaluation and the one before.

    From the ledger where it was recorded, else the mixture that was in force.
    """
    evaluation = observation.evaluations[index]
    if not evaluation.drawn:
        return _scaled(evaluation.weights, names)
    before = observation.evaluations[index - 1].drawn if index else {}
    spent = {n: evaluation.drawn.get(n, 0.0) - before.get(n, 0.0) for n in names}
    found = _scaled(spent, names)
    return found or _scaled(evaluation.weights, names)


def _scaled(amounts: Mapping[str, float], names: Sequence[str]) -> dict[str, float]:
    kept = {name: max(0.0, amounts.get(name, 0.0)) for name in names}
    whole = fsum(kept.values())
    return {name: amount / whole for name, amount in kept.items()} if whole > 0 else {}


def _finite(losses: Mapping[str, float], names: Sequence[str]) -> dict[str, float]:
    return {name: losses[name] for name in names if math.isfinite(losses.get(name, math.nan))}


def _tagged(losses: Mapping[str, float], tags: Mapping[str, Sequence[str]]) -> dict[str, float]:
    if not losses:
        return {}
    found = {}
    for name, own in tags.items():
        named = [losses[tag] for tag in own if tag in losses] or list(losses.values())
        found[name] = fsum(named) / len(named)
    return found
