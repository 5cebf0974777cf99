"""Fitting the laws: batched Levenberg-Marquardt to the posterior's mode, and Laplace's covariance.

Every benchmark has its own parameters under a wide Gaussian prior, in logarithms where they are
positive. Fits of all benchmarks, laws of a link and prefixes of the run go in one batch of dense
normal equations (Levenberg 1944, Marquardt 1963; damping by the prior-scaled diagonal).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mixloop.policies.mixture import Array, RunArrays

from .models import NULL, SHARED, Link, MixingLaw, remember, values

ROUNDS = (20, 6)  # of the whole run's fit, and of a prefix's, which starts there
SLIGHT = 0.05  # a gain in log posterior that ends a fit
# the law that all others are held against: left short of its best, it would make them look right
PATIENCE = {"power": (1, SLIGHT), "exponential": (1, SLIGHT), "none": (5, 1e-6)}
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


def priors(link: Link, course: RunArrays) -> tuple[Array, Array]:
    """Mean and standard deviation of each parameter, (m, p) both."""
    m, k = len(course.benchmarks), len(course.names)
    last = np.array([np.median(row[np.isfinite(row)][-3:]) for row in course.losses])
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


def fit_all(course: RunArrays, laws: Sequence[MixingLaw], ends: Sequence[int]) -> list[Fit]:
    """Each law fitted to the evaluations before each end."""
    found: list[Fit] = []
    for link in ("power", "exponential", "none"):
        chosen = [law for law in laws if law.link == link]
        if chosen:
            found += _fit_link(course, link, chosen, ends)
    return found


def _fit_link(
    course: RunArrays, link: Link, laws: Sequence[MixingLaw], ends: Sequence[int]
) -> list[Fit]:
    m, n = course.losses.shape
    remembered = [remember(course, law.memory) for law in laws]
    k = course.drawn.shape[1]
    shape = (len(laws), len(ends), m)
    seen = np.isfinite(course.losses) & (np.arange(n) < np.array(ends)[:, None, None])
    z = np.broadcast_to(np.array(remembered)[:, None, None] * k, (*shape, n, k))
    losses = np.broadcast_to(np.nan_to_num(course.losses), (*shape, n))
    trust = np.where(seen, 1 / np.nan_to_num(course.noise, nan=1.0), 0.0)
    trust = np.broadcast_to(trust, (*shape, n))
    prior = [np.broadcast_to(a, (*shape, a.shape[-1])) for a in priors(link, course)]
    x, u = course.total, course.decay

    def fit(part: slice, first: Array, rounds: int) -> tuple[Array, Array]:
        given, scored, certain, centre, wide = (
            _flat(a[:, part], 3) for a in (z, losses, trust, *prior)
        )
        start = _flat(first, 3)
        return _marquardt(link, (given, x, u), scored, certain, centre, wide, start, rounds)

    longer = PATIENCE[link][0]
    nothing = np.zeros(prior[0].shape)
    last, bend = fit(slice(-1, None), nothing[:, :1], ROUNDS[0] * longer)
    whitened, hessian = (
        last.reshape(len(laws), 1, m, -1),
        bend.reshape(len(laws), 1, m, *bend.shape[1:]),
    )
    if len(ends) > 1:
        first = np.broadcast_to(whitened, nothing[:, :-1].shape)
        mode, bend = fit(slice(0, -1), first, ROUNDS[1] * longer)
        earlier = (len(laws), len(ends) - 1, m)
        whitened = np.concatenate([mode.reshape(*earlier, -1), whitened], axis=1)
        hessian = np.concatenate([bend.reshape(*earlier, *bend.shape[1:]), hessian], axis=1)
    mean, scale = (_flat(a, 3) for a in prior)
    z, hessian = _flat(z, 3), _flat(hessian, 3)
    mode = mean + scale * _flat(whitened, 3)
    fitted, jac = values(link, mode, z, x, u)
    # the inverse's root: H = C C^T, so H^-1 = (C^-1)^T C^-1
    root = np.swapaxes(np.linalg.inv(np.linalg.cholesky(hessian)), -1, -2) * scale[..., None]
    spread = np.sqrt(np.square(jac @ root).sum(axis=-1))
    parts = [a.reshape(*shape, *a.shape[1:]) for a in (mode, root, fitted, spread)]
    return [
        Fit(law, parts[0][i], parts[1][i], parts[2][i], parts[3][i], remembered[i])
        for i, law in enumerate(laws)
    ]


def _flat(stacked: Array, axes: int) -> Array:
    return np.ascontiguousarray(stacked).reshape(-1, *stacked.shape[axes:])


def _marquardt(
    link: Link,
    inputs: tuple[Array, Array, Array],
    losses: Array,
    trust: Array,
    mean: Array,
    scale: Array,
    whitened: Array,
    rounds: int,
) -> tuple[Array, Array]:
    """The modes and the Hessians there, in units of the prior: (b, p) and (b, p, p).

    A fit that no longer gains leaves the batch.
    """
    z, x, u = inputs
    whitened, damping = whitened.copy(), np.full(len(mean), 0.3)
    identity = np.eye(mean.shape[1])
    cost, gradient, hessian = _cost(link, inputs, losses, trust, mean, scale, whitened)
    going = np.arange(len(mean))
    for _ in range(rounds):
        damped = hessian[going] + damping[going, None, None] * identity
        step = np.linalg.solve(damped, gradient[going, :, None])[..., 0]
        tried = np.clip(whitened[going] - step, -6, 6)
        given = (losses[going], trust[going], mean[going], scale[going], tried)
        new = _cost(link, (z[going], x, u), *given)
        gained = cost[going] - new[0]
        better, done = going[gained > 0], (gained >= 0) & (gained < PATIENCE[link][1])
        taken = gained > 0
        cost[better], gradient[better], hessian[better] = (part[taken] for part in new)
        whitened[better] = tried[taken]
        damping[going] = np.clip(damping[going] * np.where(taken, 0.2, 5.0), 1e-5, 1e8)
        going = going[~done & (damping[going] < 1e4)]
        if not len(going):
            break
    return whitened, hessian


def _cost(
    link: Link,
    inputs: tuple[Array, Array, Array],
    losses: Array,
    trust: Array,
    mean: Array,
    scale: Array,
    whitened: Array,
) -> tuple[Array, Array, Array]:
    """Half the penalised squares, its gradient and Gauss-Newton Hessian."""
    fitted, jac = values(link, mean + scale * whitened, *inputs)
    residual = (fitted - losses) * trust
    far = np.abs(residual)
    weight = np.where(far > HUBER, HUBER / np.maximum(far, HUBER), 1.0)
    loss = np.where(far > HUBER, HUBER * (far - HUBER / 2), residual**2 / 2)
    jac = jac * (trust[..., None] * scale[:, None, :])
    turned = np.swapaxes(jac * weight[..., None], -1, -2)
    gradient = (turned @ residual[..., None])[..., 0] + whitened
    hessian = turned @ jac + np.eye(whitened.shape[1])
    return loss.sum(axis=-1) + (whitened**2).sum(axis=-1) / 2, gradient, hessian


def fit_with_null(course: RunArrays, laws: Sequence[MixingLaw], ends: Sequence[int]) -> list[Fit]:
    """The laws and, last, the one by which mixtures don't matter."""
    return fit_all(course, [*laws, NULL], ends)
