"""Trials proposed by Optuna's Gaussian process, from a study rebuilt out of the run's segments.

The simplex as a box, for optimisers that know only boxes: three parametrisations.

A point of the box [0, 1]^d becomes a mixture of k sources; ``encode`` goes back. ``bench/simplex``
compares them.
"""

from __future__ import annotations

import warnings
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from .posterior import OFFSET
from .run_arrays import BenchmarkSeries, History

Array = NDArray[np.float64]
START = 4  # trials before the sampler's process has anything to say
PART = 0.3  # of a loss that counts as reducible, in the rewards


def ask(history: History, live: NDArray[np.bool_], seed: int) -> Array:
    """The mixture (k,) that Optuna's GPSampler would try next, over the sources ``live`` (k,).

    Imports optuna and torch.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    names = [f"u{index:02d}" for index in range(dimensions(PARAMETRISATION, int(live.sum())))]
    space = {name: optuna.distributions.FloatDistribution(0, 1) for name in names}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sampler = optuna.samplers.GPSampler(
            seed=seed, n_startup_trials=START, deterministic_objective=False
        )
        study = optuna.create_study(sampler=sampler, direction="maximize")
        for mixture, reward in zip(*segments(history, live), strict=True):
            box = dict(zip(names, map(float, encode(PARAMETRISATION, mixture)), strict=True))
            study.add_trial(
                optuna.trial.create_trial(params=box, distributions=dict(space), value=reward)
            )
        asked = study.ask(dict(space)).params
    mixture = np.zeros(len(live))
    mixture[live] = decode(PARAMETRISATION, np.array([asked[name] for name in names]))
    return mixture


def segments(history: History, live: NDArray[np.bool_]) -> tuple[Array, list[float]]:
    """The run's segments as trials: their mixtures (n, k) and rewards.

    A reward is what the segment improved the objective beyond the run's own power law in tokens,
    per part of all tokens that the segment was (bits per byte).
    """
    worths = (history.shares * history.tokens[:, None])[:, live]
    fed = np.maximum(np.diff(worths, axis=0), 0)
    reward, weight = np.zeros(len(fed)), np.zeros(len(fed))
    for series in history.series:
        rows, beyond = _beyond_trend(history.tokens, series)
        reward[rows] += series.weight * beyond
        weight[rows] += series.weight
    known = (weight > 0) & (fed.sum(axis=1) > 0)
    mixtures = fed[known] / fed[known].sum(axis=1, keepdims=True)
    return mixtures, [float(value) for value in reward[known] / weight[known]]


def _beyond_trend(tokens: Array, series: BenchmarkSeries) -> tuple[NDArray[np.int64], Array]:
    """Index of each segment between neighbouring scores, and its reward on one benchmark."""
    if len(series.rows) < 2:
        return np.zeros(0, dtype=int), np.zeros(0)
    least = float(series.loss.min())
    reducible = series.loss - least + PART * max(abs(least), 1e-6)
    at = tokens[series.rows]
    basis = np.stack([np.ones(len(at)), np.log(at + OFFSET)], axis=1)
    weight = reducible / series.noise
    law = np.linalg.lstsq(basis * weight[:, None], np.log(reducible) * weight, rcond=None)[0]
    off = np.log(reducible) - basis @ law
    follows = np.diff(series.rows) == 1
    beyond = -np.diff(off) * at[1:] / np.diff(at) * reducible[1:]
    return series.rows[:-1][follows], beyond[follows]


Kind = Literal["gammas", "sticks", "ratios"]

PARAMETRISATION: Kind = "gammas"

LEAST = 1e-9
WIDTH = 5.0  # log-ratios reach from -5 to 5


def dimensions(kind: Kind, k: int) -> int:
    """How many coordinates a mixture of k sources has."""
    return k if kind == "gammas" else k - 1


def decode(kind: Kind, box: Array) -> Array:
    """The mixture (k,) at a point of the box (d,).

    ``gammas``: independent exponentials ``-log u``, normalised (uniform over the simplex; Devroye
    1986, ch. XI.4). ``sticks``: each source takes a beta-distributed part of what the ones before
    left (uniform as well; Sethuraman 1994). ``ratios``: logarithms of the shares' ratios to the
    last source's (Aitchison 1982); the boundary is out of reach.
    """
    if kind == "gammas":
        drawn = -np.log(np.clip(box, LEAST, 1.0))
        total = drawn.sum()
        return np.asarray(drawn / total) if total > 0 else np.full(len(box), 1 / len(box))
    if kind == "sticks":
        after = np.arange(len(box), 0, -1)
        parts = 1 - np.clip(1 - box, 0, 1) ** (1 / after)
        left = np.concatenate([[1.0], np.cumprod(1 - parts)])
        return np.asarray(np.append(left[:-1] * parts, left[-1]))
    ratios = np.append((2 * box - 1) * WIDTH, 0.0)
    shares = np.exp(ratios - ratios.max())
    return np.asarray(shares / shares.sum())


def encode(kind: Kind, mixture: Array) -> Array:
    """A point of the box (d,) for a mixture (k,); shares out of reach at the nearest edge."""
    if kind == "gammas":
        return np.asarray(np.exp(-mixture * len(mixture)))
    if kind == "sticks":
        left = 1 - np.concatenate([[0.0], np.cumsum(mixture[:-2])])
        parts = np.clip(mixture[:-1] / np.maximum(left, LEAST), 0, 1)
        return np.asarray(1 - (1 - parts) ** np.arange(len(parts), 0, -1))
    shares = np.maximum(mixture, LEAST)
    return np.asarray(np.clip(np.log(shares[:-1] / shares[-1]) / WIDTH / 2 + 0.5, 0, 1))
