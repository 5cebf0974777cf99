"""MixMin (2502.10510): the convex mixture of the experts' probabilities that predicts best.

For a model class that is rich enough, what is trained on a mixture of sources predicts with the
mixture of the sources' own densities, so that the best mixture is a convex problem in the experts'
probabilities (their eq. 4). The paper's densities are of whole texts; those of gold answers differ
by tens of nats, where a mixture is a vote of items for experts, so rows here are tokens, as in
mixtures of data experts (2502.15950).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray


def mixmin(
    logprobs: ArrayLike,
    importance: ArrayLike | None = None,
    *,
    start: ArrayLike | None = None,
    steps: int = 1000,
    tolerance: float = 1e-6,
) -> NDArray[np.float64]:
    """The mixture w [k] that minimises ``-sum_n a_n log sum_i w_i p_ni``.

    Exponentiated gradient with the step at which it is expectation maximisation: every step
    improves, none leaves the simplex. It ends when the bound on what is left to gain,
    ``max_i sum_n a_n p_ni / sum_j w_j p_nj - 1`` (nats per unit of importance, by convexity), is
    below `tolerance`; fewer steps stay nearer to `start`.

    Args:
        logprobs: [n, k] natural log-probabilities of n observations under k experts.
        importance: [n] weights `a`, made to sum to 1; None: all alike.
        start: [k] positive shares; None: all alike.
        steps: The most.
        tolerance: In nats.

    Raises:
        ValueError: shapes that don't fit, or an observation that no expert thinks possible.
    """
    table = np.asarray(logprobs, dtype=float)
    if table.ndim != 2 or 0 in table.shape:
        raise ValueError(f"logprobs are [observations, experts], not of shape {table.shape}")
    best = table.max(axis=1, keepdims=True)
    if not np.isfinite(best).all() or np.isnan(table).any():
        raise ValueError("an observation has no probability under any expert")
    density = np.exp(table - best)
    n, k = density.shape
    share = np.ones(n) if importance is None else np.asarray(importance, dtype=float)
    share = share / share.sum()
    mixture: NDArray[np.float64] = np.ones(k) if start is None else np.array(start, dtype=float)
    if share.shape != (n,) or mixture.shape != (k,):
        raise ValueError(f"{share.shape} importances and {mixture.shape} shares for {(n, k)}")
    mixture /= mixture.sum()
    for _ in range(steps):
        gain = density.T @ (share / (density @ mixture))
        if gain.max() - 1 < tolerance:
            break
        mixture *= gain
        mixture /= mixture.sum()
    return mixture
