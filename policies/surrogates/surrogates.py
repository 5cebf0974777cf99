"""Surrogates: what a value would be at a mixture nobody ran, with how uncertain that is.

Fitted to runs on constant mixtures (proxy runs, a table of published runs). ``KINDS`` are
compared by cross-validation in ``bench/regmix.py``; ``law+gp`` is what a search uses.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from .gaussian_process import Process, fit_process
from .log_linear import LogLinear, fit_log_linear

Array = NDArray[np.float64]

SMALL = 1e-2
"""Share below which a source's logarithm flattens, in the ridge on logarithms."""


class Surrogate(Protocol):
    """A fitted model of one value."""

    def predict(self, mixtures: Array) -> tuple[Array, Array]:
        """Mean and standard error (n,) of the noise-free value at mixtures (n, k)."""
        ...

    def sample(self, mixtures: Array, draws: int, drawing: np.random.Generator) -> Array:
        """Joint draws (draws, n) of the noise-free values at mixtures (n, k)."""
        ...


@dataclass(frozen=True)
class LogLinearSurrogate:
    """The log-linear law alone."""

    law: LogLinear

    def predict(self, mixtures: Array) -> tuple[Array, Array]:
        """The law's value and its standard error."""
        return self.law.mean(mixtures), self.law.spread(mixtures)

    def sample(self, mixtures: Array, draws: int, drawing: np.random.Generator) -> Array:
        """Laws drawn around the fitted one."""
        return self.law.sample(mixtures, draws, drawing)


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


@dataclass(frozen=True)
class Ridge:
    """Ridge regression on given features, its penalty by leave-one-out error."""

    features: Callable[[Array], Array]
    shift: Array
    scale: Array
    coefficients: Array
    centre: float
    covariance: Array

    def predict(self, mixtures: Array) -> tuple[Array, Array]:
        """The regression's value and its standard error."""
        design = (self.features(mixtures) - self.shift) / self.scale
        variance = np.einsum("ni,ij,nj->n", design, self.covariance, design)
        return self.centre + design @ self.coefficients, np.sqrt(np.maximum(variance, 0.0))

    def sample(self, mixtures: Array, draws: int, drawing: np.random.Generator) -> Array:
        """Regressions drawn around the fitted one."""
        design = (self.features(mixtures) - self.shift) / self.scale
        drawn = drawing.multivariate_normal(self.coefficients, self.covariance, draws)
        return np.asarray(self.centre + drawn @ design.T)


@dataclass(frozen=True)
class Ensemble:
    """The mean of several; their disagreement adds to the mean of their variances."""

    members: tuple[Surrogate, ...]

    def predict(self, mixtures: Array) -> tuple[Array, Array]:
        """Mean and standard error of the mixture of the members' predictions."""
        found = [member.predict(mixtures) for member in self.members]
        means = np.array([mean for mean, _ in found])
        variances = np.array([spread**2 for _, spread in found])
        return means.mean(axis=0), np.sqrt(variances.mean(axis=0) + means.var(axis=0))

    def sample(self, mixtures: Array, draws: int, drawing: np.random.Generator) -> Array:
        """Draws of the members in turn."""
        found = [member.sample(mixtures, draws, drawing) for member in self.members]
        return np.array([found[draw % len(found)][draw] for draw in range(draws)])


def logarithms(mixtures: Array) -> Array:
    """Shares and their logarithms, flattened near nothing: (n, 2k)."""
    return np.concatenate([mixtures, np.log(mixtures + SMALL)], axis=1)


def quadratic(mixtures: Array) -> Array:
    """Square roots of shares, and all their products: (n, k + k (k + 1) / 2)."""
    roots = np.sqrt(mixtures)
    row, column = np.triu_indices(roots.shape[1])
    return np.concatenate([roots, roots[:, row] * roots[:, column]], axis=1)


def fit_ridge(features: Callable[[Array], Array], mixtures: Array, values: Array) -> Ridge:
    """Ridge regression; the penalty that predicts each run best from all others."""
    raw = features(mixtures)
    shift, scale = raw.mean(axis=0), raw.std(axis=0)
    scale = np.where(scale > 0, scale, 1.0)
    design, centre = (raw - shift) / scale, float(values.mean())
    left, singular, right = np.linalg.svd(design, full_matrices=False)
    target = left.T @ (values - centre)

    def left_out(penalty: float) -> float:
        kept = singular**2 / (singular**2 + penalty)
        off = values - centre - left @ (kept * target)
        leverage = (left**2 * kept).sum(axis=1) + 1 / len(values)
        return float(np.mean((off / np.maximum(1 - leverage, 1e-6)) ** 2))

    penalties = np.geomspace(1e-3, 1e4, 29) * max(1.0, len(values) / 100)
    penalty = float(min(penalties, key=left_out))
    inner = singular / (singular**2 + penalty)
    coefficients = right.T @ (inner * target)
    covariance = left_out(penalty) * (right.T * (inner / np.maximum(singular, 1e-12))) @ right
    return Ridge(features, shift, scale, coefficients, centre, covariance)


def _law(mixtures: Array, values: Array, stderr: Array | None) -> Surrogate:
    return LogLinearSurrogate(fit_log_linear(mixtures, values, stderr=stderr))


def _gp(mixtures: Array, values: Array, stderr: Array | None) -> Surrogate:
    return fit_process(mixtures, values, stderr)


def _law_gp(mixtures: Array, values: Array, stderr: Array | None) -> Surrogate:
    law = fit_log_linear(mixtures, values, stderr=stderr)
    return LawProcess(law, fit_process(mixtures, values - law.mean(mixtures), stderr))


def _ridge(mixtures: Array, values: Array, stderr: Array | None) -> Surrogate:
    return fit_ridge(logarithms, mixtures, values)


def _quadratic(mixtures: Array, values: Array, stderr: Array | None) -> Surrogate:
    return fit_ridge(quadratic, mixtures, values)


def _ensemble(mixtures: Array, values: Array, stderr: Array | None) -> Surrogate:
    makers = (_law_gp, _gp, _quadratic)
    return Ensemble(tuple(make(mixtures, values, stderr) for make in makers))


KINDS: dict[str, Callable[[Array, Array, Array | None], Surrogate]] = {
    "law": _law,
    "gp": _gp,
    "law+gp": _law_gp,
    "ridge": _ridge,
    "quadratic": _quadratic,
    "ensemble": _ensemble,
}


def fit(kind: str, mixtures: Array, values: Array, stderr: Array | None = None) -> Surrogate:
    """A surrogate of one of ``KINDS``.

    Args:
        mixtures: (n, k), each row on the simplex.
        values: (n,).
        stderr: (n,) standard errors of the values, where they are known.
    """
    return KINDS[kind](mixtures, values, stderr)


def cross_validate(
    kind: str,
    mixtures: Array,
    values: Array,
    folds: int = 5,
    seed: int = 0,
    stderr: Array | None = None,
) -> Array:
    """What each run's value (n,) is predicted to be by a fit to the other folds' runs."""
    shuffled = np.random.default_rng(seed).permutation(len(values))
    predicted = np.empty(len(values))
    for fold in np.array_split(shuffled, folds):
        rest = np.setdiff1d(shuffled, fold)
        known = None if stderr is None else stderr[rest]
        predicted[fold] = fit(kind, mixtures[rest], values[rest], known).predict(mixtures[fold])[0]
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
        found = [member.predict(mixtures) for member in self.members]
        mean = sum(w * m for w, (m, _) in zip(self.weights, found, strict=True))
        variance = sum((w * s) ** 2 for w, (_, s) in zip(self.weights, found, strict=True))
        return np.asarray(mean), np.sqrt(np.asarray(variance))

    def sample(self, mixtures: Array, draws: int, drawing: np.random.Generator) -> Array:
        """The sum of the members' draws."""
        parts = zip(self.weights, self.members, strict=True)
        return np.asarray(sum(w * one.sample(mixtures, draws, drawing) for w, one in parts))


def fit_objective(
    kind: str,
    mixtures: Array,
    values: Array,
    weights: Sequence[float],
    stderr: Array | None = None,
) -> Objective:
    """A surrogate of ``values @ weights`` from values (n, m), stderr alike."""
    errors = [None] * values.shape[1] if stderr is None else list(stderr.T)
    columns = zip(values.T, errors, strict=True)
    members = tuple(fit(kind, mixtures, column, error) for column, error in columns)
    return Objective(members, tuple(weights))


def choose_kind(
    kinds: Sequence[str],
    mixtures: Array,
    values: Array,
    weights: Sequence[float],
    stderr: Array | None = None,
    folds: int = 5,
    seed: int = 0,
) -> tuple[str, dict[str, float]]:
    """The kind that predicts the objective of runs it has not seen best, and every kind's error.

    Errors are root mean squares of ``values @ weights``, out of fold. With fewer than two runs a
    fold the last kind is taken, untried.
    """
    if len(values) < 2 * folds:
        return kinds[-1], {}
    errors = {}
    for kind in kinds:
        known = [None] * values.shape[1] if stderr is None else list(stderr.T)
        columns = zip(values.T, known, strict=True)
        predicted = np.stack(
            [cross_validate(kind, mixtures, y, folds, seed, error) for y, error in columns], axis=1
        )
        off = (predicted - values) @ np.asarray(weights)
        errors[kind] = float(np.sqrt(np.mean(off**2)))
    return min(errors, key=lambda kind: errors[kind]), errors
