"""How a loss answered to an exposure, against the trend it would have followed without.

``value = a + b s^-alpha + e E`` over the evaluations of a run, ``s = t + t0`` in tokens
(``t0`` for what was known before), where ``E`` adds up the exposure (extra share of some sources)
in each stretch, weighed by the stretch's part of the trend:
``sum x ((s_before)^-alpha - (s_after)^-alpha) / alpha``. The coefficients come from least squares
for each of a grid of exponents and offsets and are averaged over it by how well they fit (Bayesian
model averaging with equal priors, Hoeting et al. 1999, *Statistical Science* 14): not knowing the
trend widens the answer as it should. An exposure that goes to and fro (a crossover design) is told
apart from any smooth trend.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mixloop.policies.mixture import Array

# close together: what a grid leaves between its points looks like an answer too
EXPONENTS = (0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.6, 0.7, 0.85, 1.0)
# in tokens of the first evaluation; without any, a start less steep than a power law's looks like
# an answer to what was tried first
OFFSETS = (0.0, 0.15, 0.3, 0.45, 0.6, 0.8, 1.0, 1.5)
COEFFICIENTS = 3
MIN_EVALUATIONS = 6  # the coefficients and three more


@dataclass(frozen=True)
class Response:
    """Change of the value per unit of exposure, its standard error, and what that rests on."""

    slope: float
    stderr: float
    df: float


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
    if n < MIN_EVALUATIONS or max(exposures[1:]) - min(exposures[1:]) < 1e-3:
        return None
    times, extra = np.asarray(tokens) / tokens[0], np.asarray(exposures, float)
    designs = [_design(times, extra, a, t0) for a in EXPONENTS for t0 in OFFSETS]
    misfits, slopes, units = _fits(np.stack(designs), np.asarray(values, float))
    least = float(misfits.min())
    left_over = least / (n - COEFFICIENTS)
    variance = max(noise**2, left_over, 1e-30)
    df = n - COEFFICIENTS if left_over > noise**2 else math.inf  # noise is known from the items
    trust = np.exp(-(misfits - least) / (2 * variance))
    shares = trust / trust.sum()
    slope = float(shares @ slopes)
    spread = float(shares @ (variance * units + (slopes - slope) ** 2))
    return Response(slope, math.sqrt(spread), df) if math.isfinite(spread) else None


def _design(times: Array, extra: Array, exponent: float, offset: float) -> Array:
    """Columns of a constant, the trend, and the exposure weighed by it; shape (n, 3)."""
    import numpy as np

    shape = (times + offset) ** -exponent
    steps = np.concatenate([[0.0], extra[1:] * (shape[:-1] - shape[1:]) / exponent])
    return np.stack([np.ones(len(times)), shape, np.cumsum(steps)], axis=1)


def _fits(designs: Array, values: Array) -> tuple[Array, Array, Array]:
    """Of designs (G, n, 3): misfits, exposure coefficients, their variances at unit noise; (G,)."""
    import numpy as np

    q, r = np.linalg.qr(designs)
    regular = abs(np.diagonal(r, axis1=1, axis2=2)).min(axis=1) >= 1e-12
    inverse = np.linalg.inv(np.where(regular[:, None, None], r, np.eye(COEFFICIENTS)))
    coefficients = np.einsum("gij,gnj,n->gi", inverse, q, values)
    misfits = ((values - np.einsum("gni,gi->gn", designs, coefficients)) ** 2).sum(axis=1)
    spreads = (inverse[:, -1] ** 2).sum(axis=1)
    # a shape that can't tell the exposure from the trend has no say
    return np.where(regular, misfits, 1e30), coefficients[:, -1], spreads
