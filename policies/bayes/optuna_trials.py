"""Trials proposed by Optuna's Gaussian process, from a study rebuilt out of the run's segments.

Its samplers know boxes only: a mixture of k sources is a point of [0, 1]^k, shares in proportion to
``-log u``. Independent exponentials, normalised, are uniform over the simplex (Devroye 1986, ch.
XI.4); ``bench/simplex.py`` compares two other ways.
"""

from __future__ import annotations

import warnings

import numpy as np
from numpy.typing import NDArray

from mixloop.policies.mixture import Array

from .posterior import OFFSET
from .trial_data import TrialData, TrialScores

STARTUP = 4  # trials before the sampler's process has anything to say
REDUCIBLE = 0.3  # part of a loss that counts as reducible, in the rewards
MIN_COORDINATE = 1e-9  # at 0 a share would be infinite


def ask(data: TrialData, live: NDArray[np.bool_], seed: int) -> Array:
    """The mixture (k,) that Optuna's GPSampler would try next, over the sources ``live`` (k,).

    Imports optuna and torch.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    names = [f"u{index:02d}" for index in range(int(live.sum()))]
    space = {name: optuna.distributions.FloatDistribution(0, 1) for name in names}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sampler = optuna.samplers.GPSampler(
            seed=seed, n_startup_trials=STARTUP, deterministic_objective=False
        )
        study = optuna.create_study(sampler=sampler, direction="maximize")
        for mixture, reward in zip(*_segments(data, live), strict=True):
            box = dict(zip(names, map(float, encode(mixture)), strict=True))
            study.add_trial(
                optuna.trial.create_trial(params=box, distributions=dict(space), value=reward)
            )
        asked = study.ask(dict(space)).params
    mixture = np.zeros(len(live))
    mixture[live] = decode(np.array([asked[name] for name in names]))
    return mixture


def _segments(data: TrialData, live: NDArray[np.bool_]) -> tuple[Array, list[float]]:
    """The run's segments as trials: their mixtures (n, k) and rewards.

    A reward is what the segment improved the objective beyond the run's own power law in tokens,
    per part of all tokens that the segment was (bits per byte).
    """
    worth = (data.shares * data.tokens[:, None])[:, live]
    fed = np.maximum(np.diff(worth, axis=0), 0)
    reward, weight = np.zeros(len(fed)), np.zeros(len(fed))
    for scores in data.scores:
        rows, beyond = _beyond_trend(data.tokens, scores)
        reward[rows] += scores.weight * beyond
        weight[rows] += scores.weight
    usable = (weight > 0) & (fed.sum(axis=1) > 0)
    mixtures = fed[usable] / fed[usable].sum(axis=1, keepdims=True)
    return mixtures, [float(value) for value in reward[usable] / weight[usable]]


def _beyond_trend(tokens: Array, scores: TrialScores) -> tuple[NDArray[np.int64], Array]:
    """Index of each segment between neighbouring scores, and its reward on one benchmark."""
    if len(scores.rows) < 2:
        return np.zeros(0, dtype=int), np.zeros(0)
    least = float(scores.loss.min())
    reducible = scores.loss - least + REDUCIBLE * max(abs(least), 1e-6)
    at = tokens[scores.rows]
    basis = np.stack([np.ones(len(at)), np.log(at + OFFSET)], axis=1)
    weight = reducible / scores.noise
    law = np.linalg.lstsq(basis * weight[:, None], np.log(reducible) * weight, rcond=None)[0]
    off = np.log(reducible) - basis @ law
    follows = np.diff(scores.rows) == 1
    beyond = -np.diff(off) * at[1:] / np.diff(at) * reducible[1:]
    return scores.rows[:-1][follows], beyond[follows]


def decode(box: Array) -> Array:
    """The mixture (k,) at a point of the box (k,)."""
    drawn = -np.log(np.clip(box, MIN_COORDINATE, 1.0))
    total = drawn.sum()
    return np.asarray(drawn / total) if total > 0 else np.full(len(box), 1 / len(box))


def encode(mixture: Array) -> Array:
    """A point of the box (k,) for a mixture (k,)."""
    return np.asarray(np.exp(-mixture * len(mixture)))
