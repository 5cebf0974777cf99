"""What published mixing methods reward by: the loss of each source, and what was drawn of it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from math import fsum
from typing import TYPE_CHECKING

from mixloop.policies.interface import BITS_PER_BYTE, Evaluation, Observation
from mixloop.policies.mixture import in_force

if TYPE_CHECKING:
    from mixloop.policies.mixture import Array


def active_sources(observation: Observation) -> list[str]:
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
    return [_tagged(_benchmark_losses(observation, e), tags) for e in observation.evaluations]


def _benchmark_losses(observation: Observation, evaluation: Evaluation) -> dict[str, float]:
    """The finite losses of one evaluation, by benchmark."""
    losses = {}
    for name, score in evaluation.benchmarks.items():
        if name in observation.watch:
            continue
        metric = score.metrics.get(BITS_PER_BYTE) or score.metrics.get(observation.metric_for(name))
        if metric and not metric.higher_is_better and math.isfinite(metric.value):
            losses[name] = metric.value
    return losses


def _finite(losses: Mapping[str, float], names: Sequence[str]) -> dict[str, float]:
    return {name: losses[name] for name in names if math.isfinite(losses.get(name, math.nan))}


def _tagged(losses: Mapping[str, float], tags: Mapping[str, Sequence[str]]) -> dict[str, float]:
    if not losses:
        return {}
    means = {}
    for name, words in tags.items():
        named = [losses[tag] for tag in words if tag in losses] or list(losses.values())
        means[name] = fsum(named) / len(named)
    return means


def consumption(observation: Observation, names: Sequence[str]) -> tuple[Array, Array]:
    """Tokens drawn up to each evaluation, and shares of those since the one before; (n, k) both.

    Zeros where neither a ledger nor a mixture was recorded; no shares where nothing was drawn.
    """
    import numpy as np

    from mixloop.policies.mixture import drawn_tokens

    evaluations = observation.evaluations
    recorded = np.array([bool(e.drawn or e.weights) for e in evaluations]).reshape(-1, 1)
    drawn = drawn_tokens(evaluations, names)
    spent = np.diff(drawn, axis=0, prepend=np.zeros((1, len(names)))) * recorded
    return drawn * recorded, spent / np.maximum(spent.sum(axis=1, keepdims=True), 1e-12)
