"""What experiments say of each source: effects by benchmark, their noise, whether there are any.

An effect is by how many bits per byte a branch does better per share of a source, to first order.
Only differences between sources count, so effects are centred over the sources that were tried.
Noise has three parts: the branches' own few windows (told by the halves of the experts' data), the
items (their paired standard error), and what a short horizon mistakes, which nothing tells.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist

import numpy as np

from mixloop.policies.interface import ExperimentResult, MergeFit, MissingScore
from mixloop.policies.mixture import Array

UNTOLD = 1.0  # windows' noise in the items', where there are no halves to tell it
OUTLYING = 2.0  # variances of noise below a gain's square: what is left speaks for itself alone
DRIFT = 0.5  # of effects' variance, over a whole run
NORMAL = 1.4826  # standard deviations in a median distance
TINY = 1e-12


@dataclass(frozen=True)
class Effects:
    """One experiment's effects over benchmarks (m) and sources (k).

    Attributes:
        at: training tokens of the run at the branches' checkpoint.
        tried: (k,) which sources it tells something of; the others' effects are 0.
        gain: (m, k) bits per byte per share, centred over the tried sources.
        noise: (m,) variance of a gain.
        told: degrees of freedom that the noise is told by, over all benchmarks; 0 where there
            are no halves.
    """

    at: int
    tried: Array
    gain: Array
    noise: Array
    told: float = 0.0

    @property
    def signal(self) -> Array:
        """(m,): variance of the gains over sources beyond their noise."""
        tried = self.tried > 0
        spread = (self.gain[:, tried] ** 2).sum(axis=1) / max(1, tried.sum() - 1)
        return np.asarray(np.maximum(spread - self.noise, 0.0))


def effects_of(
    result: ExperimentResult, names: Sequence[str], metrics: dict[str, str]
) -> Effects | None:
    """What one experiment says, or None where it says nothing.

    Args:
        result: one that is done.
        names: sources, in the order of the arrays.
        metrics: benchmark to the metric that steers it.
    """
    items = _item_noise(result, names, metrics)
    whole = result.fit("whole")
    if whole is not None and all(name in whole.slopes for name in metrics):
        return _of_fits(result, whole, names, list(metrics), items)
    return _of_branches(result, names, metrics, items)


def _of_fits(
    result: ExperimentResult,
    whole: MergeFit,
    names: Sequence[str],
    benchmarks: list[str],
    items: Array,
) -> Effects | None:
    tried = _experts(result, names)
    if tried.sum() < 2:
        return None
    gain = _centred(_slopes(whole, names, benchmarks), tried)
    first, second = result.fit("first"), result.fit("second")
    if first is None or second is None:
        return Effects(result.tokens, tried, gain, items * (1 + UNTOLD))
    # both count alike, though the early half moved the weights more: they saw as many windows, and
    # what a source still teaches after its first steps is nearer to what it does for long. How long
    # halves are told to be is brought to the whole's
    one, two = (_centred(_slopes(half, names, benchmarks), tried) for half in (first, second))
    both = one + two
    factor = float((gain * both).sum() / max((both**2).sum(), TINY))
    gain = factor * both
    free = max(1.0, tried.sum() - 1)
    windows = ((factor * (one - two)) ** 2).sum(axis=1) / free
    told = free * _independent(one - two)
    return Effects(result.tokens, tried, gain, windows + items, told)


def _of_branches(
    result: ExperimentResult, names: Sequence[str], metrics: dict[str, str], items: Array
) -> Effects | None:
    """Effects from the branches' scores: the least ones that explain their differences."""
    scored = []
    for branch in result.branches:
        try:
            better = [
                result.difference(branch, name, metric).gain for name, metric in metrics.items()
            ]
        except MissingScore:
            continue
        moved = [branch.weights.get(n, 0.0) - result.weights.get(n, 0.0) for n in names]
        scored.append((np.array(moved), np.array(better)))
    if len(scored) < 2:
        return None
    moves, gains = (np.array(column) for column in zip(*scored, strict=True))
    tried = np.where((moves > TINY).any(axis=0), 1.0, 0.0)
    found = np.linalg.lstsq(moves, gains, rcond=1e-6)[0].T
    return Effects(result.tokens, tried, _centred(found, tried), items * (1 + UNTOLD))


def _slopes(fit: MergeFit, names: Sequence[str], benchmarks: list[str]) -> Array:
    """(m, k): how much better per share."""
    return -np.array([[fit.slopes[b].get(n, 0.0) for n in names] for b in benchmarks])


def _experts(result: ExperimentResult, names: Sequence[str]) -> Array:
    alone = {n for b in result.branches if b.benchmarks for n, w in b.weights.items() if w > 0.5}
    return np.array([1.0 if name in alone else 0.0 for name in names])


def _centred(gain: Array, tried: Array) -> Array:
    mean = (gain * tried).sum(axis=1, keepdims=True) / max(1.0, float(tried.sum()))
    return np.asarray((gain - mean) * tried)


def _item_noise(result: ExperimentResult, names: Sequence[str], metrics: dict[str, str]) -> Array:
    """(m,): the items' variance in a gain per share, the mean over branches."""
    noise = []
    for name, metric in metrics.items():
        found = []
        for branch in result.branches:
            try:
                error = result.difference(branch, name, metric).stderr
            except MissingScore:
                continue
            moved = [branch.weights.get(n, 0.0) - result.weights.get(n, 0.0) for n in names]
            length = float(np.square(moved).sum())
            if math.isfinite(error) and length > TINY:
                found.append(error**2 / length)
        noise.append(float(np.mean(found)) if found else 0.0)
    return np.array(noise)


def _independent(noise: Array) -> float:
    """How many of the benchmarks' noises (m, k) count: 1 where all are one, m where none."""
    size = np.sqrt((noise**2).sum(axis=1, keepdims=True))
    unit = noise / np.maximum(size, TINY)
    alike = unit @ unit.T
    return float(len(noise) ** 2 / max((alike**2).sum(), 1.0))


def told_by_repeats(effects: Sequence[Effects]) -> list[Effects]:
    """Noise that no halves tell, from how far one experiment is from the next.

    What doesn't show twice is taken for noise. With one such experiment there is no telling: its
    ``told`` stays 0.
    """
    told = list(effects)
    for index, found in enumerate(effects):
        other = effects[index - 1] if index else effects[min(1, len(effects) - 1)]
        if found.told or other is found:
            continue
        both = found.tried * other.tried
        mine, theirs = found.gain * both, other.gain * both
        size = float((theirs**2).sum())
        ratio = min(2.0, max(0.0, float((mine * theirs).sum()) / size)) if size > 0 else 0.0
        free = max(1.0, float(both.sum()) - 1)
        apart = mine - ratio * theirs
        windows = (apart**2).sum(axis=1) / free / (1 + ratio**2)
        noise = np.maximum(windows, found.noise)
        told[index] = replace(found, noise=noise, told=free * _independent(apart))
    return told


def certainty(effects: Sequence[Effects]) -> float:
    """One-sided normal score that sources differ at all: of the surest experiment, or of all.

    Without effects a gain is as large as its noise: half the logarithm of the ratio of the two
    variances, the mean over benchmarks, is compared with its own error (Fisher's z, 1924).
    """
    scores = [_fisher(found) for found in effects]
    together = sum(scores) / math.sqrt(max(1, len(scores)))
    return max([*scores, together], default=0.0)


def _fisher(found: Effects) -> float:
    free = max(1.0, float(found.tried.sum()) - 1)
    spread = (found.gain**2).sum(axis=1) / free
    ratio = np.log(np.maximum(spread, TINY) / np.maximum(found.noise, TINY)) / 2
    return float(ratio.mean()) * math.sqrt(found.told)


def needed_score(significance: float) -> float:
    """The one-sided normal score of this probability of a false alarm."""
    return NormalDist().inv_cdf(1 - significance)


@dataclass(frozen=True)
class PooledEffects:
    """All experiments' effects as seen from the newest: gain (m, k) and its variance (m, k).

    Shrunk by their noise; ``tried`` (k,) as in :class:`Effects`, ``score`` as by :func:`certainty`.
    """

    at: int
    score: float
    tried: Array
    gain: Array
    variance: Array


def pool(effects: Sequence[Effects], blind: float, budget: int) -> PooledEffects:
    """Pool over time: an effect drifts, so that what is old weighs less; then shrink.

    Effects shrink as the run goes on; older ones are brought to the newest's size first. Shrinking
    is empirical Bayes (James and Stein 1961): each benchmark's effects are as far from their median
    as most of them say.
    """
    newest = effects[-1]
    size = math.sqrt(float(newest.signal.mean()))
    total, precision = np.zeros_like(newest.gain), np.zeros_like(newest.gain)
    for found in effects:
        own = math.sqrt(float(found.signal.mean()))
        ratio = min(2.0, size / own) if own > 0 and size > 0 else 1.0
        age = (newest.at - found.at) / max(1, budget)
        drift = DRIFT * age * size**2
        variance = np.maximum(ratio**2 * found.noise + drift, TINY)[:, None]
        total += ratio * found.gain / variance * found.tried
        precision += found.tried / variance
    tried = np.where((precision > 0).any(axis=0), 1.0, 0.0)
    gain = total / np.maximum(precision, TINY)
    noise = np.where(precision > 0, 1 / np.maximum(precision, TINY), 0.0)
    mean_noise = (noise * tried).sum(axis=1) / max(1.0, float(tried.sum()))
    # the many are as far apart as their median says, though one source be far out, which keeps its
    # distance all the same (limited translation, Efron and Morris 1972)
    gain = (gain - np.median(gain[:, tried > 0], axis=1, keepdims=True)) * tried
    spread = NORMAL * np.median(np.abs(gain[:, tried > 0]), axis=1)
    signal = np.maximum(spread**2 - mean_noise, 0.0)
    # a benchmark whose effects look like noise may still have some, as the others have
    clear = float((signal / np.maximum(mean_noise, TINY)).mean()) * mean_noise
    signal = (signal + clear)[:, None] / 2
    signal = np.maximum(signal, gain**2 - OUTLYING * noise) * tried
    noise = noise + blind**2 * signal * tried
    kept = signal / np.maximum(signal + noise, TINY)
    return PooledEffects(newest.at, certainty(effects), tried, kept * gain, kept * noise)
