"""Planning the rest of the budget by the fitted laws, under the cap on epochs.

The objective is the expectation over laws (by their weights) and over each law's posterior
(antithetic draws from Laplace's approximation) of the weighed losses at the end. A gain that is
uncertain is thereby worth less where losses are convex, as the exponential law's are; ``caution``
standard deviations (over the draws) of the gain are taken off besides.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from mixloop.policies.mixture import Array, confine, minimise

from .fit import Fit
from .models import SHARED, Ahead, foresee, values

STEEP = 20.0  # how much worse a drop beyond a goal's bound is than a loss
SCALE = 100.0  # of the objective, for the solver's tolerance
TINY = 1e-10


@dataclass(frozen=True)
class ObjectiveTerms:
    """What the losses at the end are worth, all (m,).

    ``weight`` sums to 1; below ``enough`` nothing more counts, above ``bound`` every loss counts
    much more.
    """

    weight: Array
    enough: Array
    bound: Array


@dataclass(frozen=True)
class WeightedFit:
    """A law in the ensemble: its weight and draws of its parameters (draws, m, p)."""

    fit: Fit
    weight: float
    draws: Array


@dataclass(frozen=True)
class TokenLimits:
    """What a plan may do.

    (s, k) lowest and highest shares, the tokens left per source (k,), and how far (Euclidean) one
    stretch's mixture may be from the one before.
    """

    lowest: Array
    highest: Array
    left: Array
    turn: float


@dataclass(frozen=True)
class PlanningProblem:
    """The planner's task.

    Draws (d) of the ensemble's laws have ``chances``, and say that the plan gains are counted from
    ends at ``reference``.
    """

    ensemble: Sequence[WeightedFit]
    ahead: Ahead
    terms: ObjectiveTerms
    limits: TokenLimits
    caution: float
    chances: Array
    reference: Array


def weighted_fits(fits: Sequence[Fit], weights: Array, draws: int, seed: int) -> list[WeightedFit]:
    """The laws worth planning for, with antithetic posterior draws, and the mode once."""
    kept = [
        (fit, float(weight)) for fit, weight in zip(fits, weights, strict=True) if weight >= 0.01
    ]
    total = sum(weight for _, weight in kept)
    ensemble = []
    for fit, weight in kept:
        m, p = fit.mode[-1].shape
        half = np.random.default_rng([seed % 2**32, p]).standard_normal((max(1, draws // 2), m, p))
        moves = np.einsum("mpq,dmq->dmp", fit.root[-1], np.concatenate([half, -half]))
        ensemble.append(WeightedFit(fit, weight / total, fit.mode[-1] + moves))
    return ensemble


def _losses_ahead(member: WeightedFit, ahead: Ahead, mixtures: Array) -> tuple[Array, Array]:
    """Losses at the end by a member's draws, (d, m), and slopes by each stretch, (d, m, s, k)."""
    law = member.fit.law
    kept, slopes = foresee(ahead, law.memory, member.fit.remembered[-1], mixtures)
    d, m, p = member.draws.shape
    k = len(kept)
    flat = member.draws.reshape(d * m, p)
    z = np.broadcast_to(kept * k, (d * m, 1, k))
    x, u = np.array([ahead.end]), np.array([1.0 if ahead.stretches[-1][1] else 0.0])
    losses, jac = values(law.link, flat, z, x, u)
    by_source = _by_memory(law.link, flat, jac[:, 0], z[:, 0], float(x[0])) * k
    return losses.reshape(d, m), by_source.reshape(d, m, 1, k) * slopes


def _by_memory(link: str, p: Array, jac: Array, z: Array, x: float) -> Array:
    """The derivative of losses by z, from that by the parameters."""
    if link == "exponential":
        return np.asarray(jac[:, 1, None] * p[:, SHARED:] / (z.shape[1] * x))
    # d/dtheta_j = d/dworth share_j z_j, and jac[3] = d/dworth c
    share = np.exp(p[:, SHARED:]) / z.shape[1]
    return np.asarray((jac[:, 3] / np.exp(p[:, 3]))[:, None] * share)


def objective(problem: PlanningProblem, mixtures: Array) -> tuple[float, Array]:
    """The objective (less is better) of a plan (s, k), and its gradient."""
    ends, slopes = _by_draw(problem, mixtures)
    chances = problem.chances
    mean, slope = chances @ ends, np.tensordot(chances, slopes, axes=1)
    apart = ends - problem.reference
    off = apart - chances @ apart
    spread = float(np.sqrt(chances @ off**2 + TINY))
    turned = np.tensordot(chances * off / spread, slopes, axes=1)
    return float(mean + problem.caution * spread), np.asarray(slope + problem.caution * turned)


def _by_draw(problem: PlanningProblem, mixtures: Array) -> tuple[Array, Array]:
    """What each draw of each law says the end is worth, (d,), and its gradients (d, s, k)."""
    terms, draws = problem.terms, []
    for member in problem.ensemble:
        losses, slopes = _losses_ahead(member, problem.ahead, mixtures)
        over = np.maximum(losses - terms.bound, 0.0)
        counted = np.maximum(losses, terms.enough) + STEEP * over
        rate = np.where(losses > terms.enough, 1.0, 0.0) + STEEP * (over > 0)
        steep = rate * terms.weight
        draws.append((counted @ terms.weight, np.einsum("dm,dmsk->dsk", steep, slopes)))
    ends, gradients = (np.concatenate(part) for part in zip(*draws, strict=True))
    return ends, gradients


def make_problem(
    ensemble: Sequence[WeightedFit],
    ahead: Ahead,
    terms: ObjectiveTerms,
    limits: TokenLimits,
    reference: Array,
    caution: float,
) -> PlanningProblem:
    """The planner's task; ``reference`` is the plan (s, k) that gains are counted from."""
    chances = np.concatenate([np.full(len(m.draws), m.weight / len(m.draws)) for m in ensemble])
    none = np.zeros(len(chances))
    problem = PlanningProblem(ensemble, ahead, terms, limits, caution, chances, none)
    return replace(problem, reference=_by_draw(problem, _within(reference, limits, ahead))[0])


def best_plan(problem: PlanningProblem, first: Array) -> tuple[Array, float]:
    """The best plan (s, k) found from ``first`` (s, k), and its expected gain over that."""
    legal = _within(first, problem.limits, problem.ahead)
    best = _within(_solve(problem, legal), problem.limits, problem.ahead)
    if objective(problem, best)[0] >= objective(problem, legal)[0]:
        return legal, 0.0
    gains = _by_draw(problem, legal)[0] - _by_draw(problem, best)[0]
    return best, float(problem.chances @ gains)


def _solve(problem: PlanningProblem, first: Array) -> Array:
    s, k = first.shape

    def cost(w: Array) -> tuple[float, Array]:
        value, gradient = objective(problem, np.clip(w, 0, 1).reshape(s, k))
        return SCALE * value, SCALE * gradient.ravel()

    bounds = (problem.limits.lowest.ravel(), problem.limits.highest.ravel())
    best = minimise(cost, first.ravel(), bounds, _constraints(problem, s, k), 40, 1e-3)
    return best.reshape(s, k)


def _constraints(problem: PlanningProblem, s: int, k: int) -> list[dict[str, Any]]:
    """Shares sum to 1; with several stretches, each near the one before and all within the cap."""
    limits = problem.limits
    sums = np.kron(np.eye(s), np.ones(k))
    rules: list[dict[str, Any]] = [
        {"type": "eq", "fun": lambda w: sums @ w - 1, "jac": lambda w: sums}
    ]
    tight = np.flatnonzero(np.isfinite(limits.left))
    if s > 1:
        rules.append(_turning(s, k, limits.turn))
    if s > 1 and len(tight):
        lengths = np.array([length for length, _ in problem.ahead.stretches])
        draw, left = np.kron(lengths, np.eye(k))[tight], limits.left[tight]
        rules.append({"type": "ineq", "fun": lambda w: left - draw @ w, "jac": lambda w: -draw})
    return rules


def _turning(s: int, k: int, most: float) -> dict[str, Any]:
    """The constraint that a stretch's mixture is near enough to the one before to be reached."""

    def square(w: Array) -> Array:
        return np.asarray(most**2 - np.square(np.diff(w.reshape(s, k), axis=0)).sum(axis=1))

    def slope(w: Array) -> Array:
        apart = 2 * np.diff(w.reshape(s, k), axis=0)
        jac = np.zeros((s - 1, s, k))
        for index, row in enumerate(apart):
            jac[index, index], jac[index, index + 1] = row, -row
        return jac.reshape(s - 1, s * k)

    return {"type": "ineq", "fun": square, "jac": slope}


def _within(mixtures: Array, limits: TokenLimits, ahead: Ahead) -> Array:
    """A plan (s, k) scaled inside the limits; earlier stretches take what is left first."""
    left, rows = limits.left.copy(), []
    for index, (length, _) in enumerate(ahead.stretches):
        later = sum(size for size, _ in ahead.stretches[index + 1 :])
        most = np.minimum(limits.highest[index], left / max(length, 1e-12))
        # what a later stretch means to draw is kept for it
        kept = np.minimum(mixtures[index + 1 :].sum(axis=0) * later, left) if later else 0.0
        shared = np.minimum(most, np.maximum(left - kept, 0) / max(length, 1e-12))
        room = shared if shared.sum() >= 1 else most
        row = confine(mixtures[index], room, limits.lowest[index])
        rows.append(row)
        left = np.maximum(left - row * length, 0.0)
    return np.array(rows)
