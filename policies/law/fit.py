"""Fitting the laws: batched Levenberg-Marquardt to the posterior's mode, and Laplace's covariance.

Every benchmark has its own parameters under a wide Gaussian prior, in logarithms where they are
positive. Fits of all benchmarks, laws of a link and prefixes of the run go in one batch of dense
normal equations (Levenberg 1944, Marquardt 1963; damping by the prior-scaled diagonal).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mixloop.policies.mixture import Array

from .law_data import LawData
from .models import NULL, SHARED, Link, MixingLaw, remember, values

MAX_ITERATIONS = (20, 6)  # of the whole run's fit, and of a prefix's, which starts there
LONGER = 5  # times as many for the null, which all others are held against: left short of its best,
# it would make them look right
TOLERANCE = {"power": 0.05, "exponential": 0.05, "none": 1e-6}
"""A gain in log posterior that ends a fit."""
HUBER = 3.0  # residuals beyond this many standard deviations pull no harder
LOG_TOKENS = np.log(0.0025)  # c, a fortieth of the budget times a tenth


@dataclass(frozen=True)
class Fit:
    """A law fitted to the benchmarks (m), on the evaluations before each of several ends.

    Attributes:
        mode: (e, m, p) parameters per end; the last end is the whole run.
        root: (e, m, p, p) ``root @ root.T`` is the posterior's covariance.
        fitted, spread: (e, m, n) predictions at every evaluation and their standard deviation,
            the parameters' uncertainty alone.
        remembered: (n, k).
    """

    law: MixingLaw
    mode: Array
    root: Array
    fitted: Array
    spread: Array
    remembered: Array


def priors(link: Link, data: LawData) -> tuple[Array, Array]:
    """Mean and standard deviation of each parameter, (m, p) both."""
    m, k = len(data.series), len(data.names)
    last = np.array([np.median(row[np.isfinite(row)][-3:]) for row in data.losses])
    size = np.maximum(np.abs(last), 0.05)
    mean, scale = np.zeros((m, SHARED + k)), np.ones((m, SHARED + k))
    mean[:, 0], scale[:, 0] = last - 0.4 * size, 0.3 * size
    mean[:, 1], scale[:, 1] = np.log(0.35 * size), 0.7
    mean[:, 2], scale[:, 2] = np.log(0.3), 0.4
    mean[:, 3], scale[:, 3] = LOG_TOKENS, 1.0
    scale[:, 4] = 0.1 * size
    mean[:, 5], scale[:, 5] = np.log(0.5), 0.7
    scale[:, SHARED:] = {"power": 1.4, "exponential": 1.7, "none": 1e-4}[link]
    return mean, scale


def fit_with_null(data: LawData, laws: Sequence[MixingLaw], ends: Sequence[int]) -> list[Fit]:
    """The laws and, last, the one by which mixtures don't matter.

    Each is fitted to the evaluations before each end.
    """
    fits: list[Fit] = []
    for link in ("power", "exponential", "none"):
        fits += _fit_link(data, link, [law for law in (*laws, NULL) if law.link == link], ends)
    return fits


def _fit_link(
    data: LawData, link: Link, laws: Sequence[MixingLaw], ends: Sequence[int]
) -> list[Fit]:
    m, n = data.losses.shape
    k = data.drawn.shape[1]
    remembered = [remember(data, law.memory) for law in laws]
    shape = (len(laws), len(ends), m)
    before = np.isfinite(data.losses) & (np.arange(n) < np.array(ends)[:, None, None])
    z = np.broadcast_to(np.array(remembered)[:, None, None] * k, (*shape, n, k))
    losses = np.broadcast_to(np.nan_to_num(data.losses), (*shape, n))
    trust = np.where(before, 1 / np.nan_to_num(data.noise, nan=1.0), 0.0)
    trust = np.broadcast_to(trust, (*shape, n))
    prior = [np.broadcast_to(a, (*shape, a.shape[-1])) for a in priors(link, data)]
    x, u = data.total, data.decay
    more = LONGER if link == "none" else 1

    def fit(part: slice, start: Array, iterations: int) -> tuple[Array, Array]:
        batch = [_flat(a[:, part]) for a in (z, losses, trust, *prior)]
        mode, hessian = _marquardt(link, x, u, batch, _flat(start), iterations * more)
        sizes = (len(laws), -1, m)
        return mode.reshape(*sizes, *mode.shape[1:]), hessian.reshape(*sizes, *hessian.shape[1:])

    nothing = np.zeros(prior[0].shape)
    whitened, hessian = fit(slice(-1, None), nothing[:, :1], MAX_ITERATIONS[0])
    if len(ends) > 1:
        start = np.broadcast_to(whitened, nothing[:, :-1].shape)
        parts = zip(fit(slice(0, -1), start, MAX_ITERATIONS[1]), (whitened, hessian), strict=True)
        whitened, hessian = (np.concatenate(pair, axis=1) for pair in parts)
    mean, scale = (_flat(a) for a in prior)
    mode = mean + scale * _flat(whitened)
    fitted, jac = values(link, mode, _flat(z), x, u)
    # the inverse's root: H = C C^T, so H^-1 = (C^-1)^T C^-1
    lower = np.linalg.cholesky(_flat(hessian))
    root = np.swapaxes(np.linalg.inv(lower), -1, -2) * scale[..., None]
    spread = np.sqrt(np.square(jac @ root).sum(axis=-1))
    by_law = (a.reshape(*shape, *a.shape[1:]) for a in (mode, root, fitted, spread))
    return [Fit(*entry) for entry in zip(laws, *by_law, remembered, strict=True)]


def _flat(stacked: Array) -> Array:
    """Laws, ends and benchmarks as one batch."""
    return np.ascontiguousarray(stacked).reshape(-1, *stacked.shape[3:])


def _marquardt(
    link: Link, x: Array, u: Array, batch: Sequence[Array], start: Array, iterations: int
) -> tuple[Array, Array]:
    """The modes and the Hessians there, in units of the prior: (b, p) and (b, p, p).

    ``batch`` holds what is remembered, losses, their trust, and the prior's mean and scale. A fit
    that no longer gains leaves it.
    """
    whitened, damping = start.copy(), np.full(len(start), 0.3)
    identity = np.eye(start.shape[1])
    cost, gradient, hessian = _cost(link, x, u, batch, whitened)
    going = np.arange(len(start))
    for _ in range(iterations):
        damped = hessian[going] + damping[going, None, None] * identity
        step = np.linalg.solve(damped, gradient[going, :, None])[..., 0]
        tried = np.clip(whitened[going] - step, -6, 6)
        after = _cost(link, x, u, [part[going] for part in batch], tried)
        gained = cost[going] - after[0]
        better, done = going[gained > 0], (gained >= 0) & (gained < TOLERANCE[link])
        taken = gained > 0
        cost[better], gradient[better], hessian[better] = (part[taken] for part in after)
        whitened[better] = tried[taken]
        damping[going] = np.clip(damping[going] * np.where(taken, 0.2, 5.0), 1e-5, 1e8)
        going = going[~done & (damping[going] < 1e4)]
        if not len(going):
            break
    return whitened, hessian


def _cost(
    link: Link, x: Array, u: Array, batch: Sequence[Array], whitened: Array
) -> tuple[Array, Array, Array]:
    """Half the penalised squares, its gradient and Gauss-Newton Hessian."""
    z, losses, trust, mean, scale = batch
    fitted, jac = values(link, mean + scale * whitened, z, x, u)
    residual = (fitted - losses) * trust
    far = np.abs(residual)
    weight = np.where(far > HUBER, HUBER / np.maximum(far, HUBER), 1.0)
    loss = np.where(far > HUBER, HUBER * (far - HUBER / 2), residual**2 / 2)
    jac = jac * (trust[..., None] * scale[:, None, :])
    turned = np.swapaxes(jac * weight[..., None], -1, -2)
    gradient = (turned @ residual[..., None])[..., 0] + whitened
    hessian = turned @ jac + np.eye(whitened.shape[1])
    return loss.sum(axis=-1) + (whitened**2).sum(axis=-1) / 2, gradient, hessian
