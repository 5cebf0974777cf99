"""How a loss answered to an exposure, against the trend it would have followed without.

``value = a + b s^-alpha + c log s + e E`` over the evaluations of a run, ``s = t + t0`` in tokens
(``t0`` for what was known before), where ``E`` adds up the exposure (extra share of some sources)
in each stretch, weighed by the stretch's part of the trend:
``sum x ((s_before)^-alpha - (s_after)^-alpha) / alpha``. The coefficients come from least squares
for each of a grid of exponents and offsets and are averaged over it by how well they fit (Bayesian
model averaging with equal priors, Hoeting et al. 1999, *Statistical Science* 14): not knowing the
trend widens the answer as it should. An exposure that goes to and fro (a crossover design) is told
apart from any smooth trend.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

EXPONENTS = (0.03, 0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0)
# in tokens of the first evaluation; without any, a start less steep than a power law's looks like
# an answer to what was tried first
OFFSETS = (0.0, 0.25, 0.5, 1.0)
LEAST = 6  # evaluations: the coefficients and two more


@dataclass(frozen=True)
class Response:
    """Change of the value per unit of exposure, and its standard error."""

    slope: float
    stderr: float


def response(
    tokens: Sequence[float], values: Sequence[float], exposures: Sequence[float], noise: float
) -> Response | None:
    """The coefficient ``e``; None with too few evaluations or no exposure that can be told.

    Args:
        tokens: training tokens of each evaluation, rising, above 0; shape (n,).
        values: what was measured at each; shape (n,).
        exposures: extra share in the stretch that ends at each; shape (n,), the first is ignored.
        noise: standard deviation of a measurement. Where the model fits worse than that, what it
            leaves over is taken instead.
    """
    import numpy as np

    n = len(values)
    if n < LEAST or max(exposures[1:]) - min(exposures[1:]) < 1e-3:
        return None
    times = np.asarray(tokens) / tokens[0]
    measured, given = np.asarray(values, float), np.asarray(exposures, float)
    fits = []
    for exponent, offset in itertools.product(EXPONENTS, OFFSETS):
        shape = (times + offset) ** -exponent
        steps = np.concatenate([[0.0], given[1:] * (shape[:-1] - shape[1:]) / exponent])
        columns = [np.ones(n), shape, np.cumsum(steps)]

        fits.append(_fit(np.stack(columns, axis=1), measured, 2))
    least = min(misfit for misfit, _, _ in fits)
    variance = max(noise**2, least / (n - (4 if n > LEAST + 1 else 3)), 1e-30)
    trust = [math.exp(-(misfit - least) / (2 * variance)) for misfit, _, _ in fits]
    shares = [part / math.fsum(trust) for part in trust]
    paired = list(zip(shares, fits, strict=True))
    slope = math.fsum(share * one for share, (_, one, _) in paired)
    spread = math.fsum(s * (variance * unit + (one - slope) ** 2) for s, (_, one, unit) in paired)
    return Response(slope, math.sqrt(spread)) if math.isfinite(spread) else None


def _fit(design: object, measured: object, place: int) -> tuple[float, float, float]:
    """Misfit, the coefficient at ``place``, and its variance at unit noise."""
    import numpy as np

    matrix, values = np.asarray(design), np.asarray(measured)
    q, r = np.linalg.qr(matrix)
    if abs(np.diag(r)).min() < 1e-12:
        return math.inf, 0.0, math.inf
    inverse = np.linalg.inv(r)
    found = inverse @ (q.T @ values)
    misfit = float(((values - matrix @ found) ** 2).sum())
    return misfit, float(found[place]), float((inverse[place] ** 2).sum())
