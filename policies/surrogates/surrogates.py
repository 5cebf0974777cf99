"""Surrogates: what a value would be at a mixture nobody ran, with how uncertain that is.

Fitted to runs on constant mixtures (proxy runs, a table of published runs). ``bench/regmix.py``
compares ``KINDS``, and others, by cross-validation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from mixloop.policies.mixture import Array

from .gaussian_process import Process, fit_process
from .log_linear import LogLinear, fit_log_linear


class Surrogate(Protocol):
    """A fitted model of one value."""

    def predict(self, mixtures: Array) -> tuple[Array, Array]:
        """Mean and standard error (n,) of the noise-free value at mixtures (n, k)."""
        ...

    def sample(self, mixtures: Array, draws: int, drawing: np.random.Generator) -> Array:
        """Joint draws (draws, n) of the noise-free values at mixtures (n, k)."""
        ...


Fit = Callable[[Array, Array, Array | None], Surrogate]
"""Mixtures (n, k), values (n,) and their standard errors, where known, to a surrogate."""


@dataclass(frozen=True)
class LawProcess:
    """The log-linear law with a Gaussian process over what it leaves unexplained."""

    law: LogLinear
    rest: Process

    def predict(self, mixtures: Array) -> tuple[Array, Array]:
        """Sum of the two means, and of their variances: a law of few runs is itself unsure."""
        rest, spread = self.rest.predict(mixtures)
        return self.law.mean(mixtures) + rest, np.hypot(spread, self.law.spread(mixtures))

    def sample(self, mixtures: Array, draws: int, drawing: np.random.Generator) -> Array:
        """Laws drawn around the fitted one, plus draws of the process."""
        laws = self.law.sample(mixtures, draws, drawing)
        return laws + self.rest.sample(mixtures, draws, drawing)


def fit_law_process(mixtures: Array, values: Array, stderr: Array | None = None) -> LawProcess:
    """The law, and the process over its residuals."""
    law = fit_log_linear(mixtures, values, stderr)
    return LawProcess(law, fit_process(mixtures, values - law.mean(mixtures), stderr))


KINDS: dict[str, Fit] = {"gp": fit_process, "law+gp": fit_law_process}


def cross_validate(
    fit: Fit,
    mixtures: Array,
    values: Array,
    stderr: Array | None = None,
    folds: int = 5,
    seed: int = 0,
) -> Array:
    """What each run's value (n,) is predicted to be by a fit to the other folds' runs."""
    shuffled = np.random.default_rng(seed).permutation(len(values))
    predicted = np.empty(len(values))
    for fold in np.array_split(shuffled, folds):
        rest = np.setdiff1d(shuffled, fold)
        errors = None if stderr is None else stderr[rest]
        predicted[fold] = fit(mixtures[rest], values[rest], errors).predict(mixtures[fold])[0]
    return predicted


@dataclass(frozen=True)
class Objective:
    """A weighted sum of values with a surrogate each, as if their errors were independent.

    A law that holds for a benchmark does not hold for the mean of several: on worlds this halves
    the error of one surrogate fitted to the mean.
    """

    members: tuple[Surrogate, ...]
    weights: tuple[float, ...]

    def predict(self, mixtures: Array) -> tuple[Array, Array]:
        """The sum's mean and standard error."""
        mean, spread = map(np.array, zip(*(m.predict(mixtures) for m in self.members), strict=True))
        weights = np.array(self.weights)
        return np.asarray(weights @ mean), np.sqrt(weights**2 @ spread**2)

    def sample(self, mixtures: Array, draws: int, drawing: np.random.Generator) -> Array:
        """The sum of the members' draws."""
        parts = zip(self.weights, self.members, strict=True)
        return np.asarray(sum(w * member.sample(mixtures, draws, drawing) for w, member in parts))


def fit_objective(
    fit: Fit, mixtures: Array, values: Array, weights: Sequence[float], stderr: Array
) -> Objective:
    """A surrogate of ``values @ weights`` from values (n, m), stderr alike."""
    columns = zip(values.T, stderr.T, strict=True)
    members = tuple(fit(mixtures, column, errors) for column, errors in columns)
    return Objective(members, tuple(weights))


def choose_kind(
    mixtures: Array,
    values: Array,
    weights: Sequence[float],
    stderr: Array,
    folds: int = 5,
    seed: int = 0,
) -> tuple[str, dict[str, float]]:
    """The kind that predicts the objective of runs it has not seen best, and every kind's error.

    Errors are root mean squares of ``values @ weights``, out of fold. With fewer than two runs a
    fold the last kind is taken, untried.
    """
    if len(values) < 2 * folds:
        return list(KINDS)[-1], {}
    errors = {}
    for kind, fit in KINDS.items():
        columns = zip(values.T, stderr.T, strict=True)
        predicted = [cross_validate(fit, mixtures, y, e, folds, seed) for y, e in columns]
        off = (np.stack(predicted, axis=1) - values) @ np.asarray(weights)
        errors[kind] = float(np.sqrt(np.mean(off**2)))
    return min(errors, key=lambda kind: errors[kind]), errors
