"""Three ways to put the simplex into a box, under Optuna's Gaussian process.

.venv/bin/python bench/simplex.py --k 5 --trials 40 --seeds 5

Each objective is an exponential mixing law with a known optimum: inside the simplex (every source
serves a benchmark) or on its boundary (most serve none). The score is the part of the distance
between the median random mixture and the optimum that the winner closes; the winner is the trial
with the best posterior mean of a Gaussian process over the mixtures, never the best observed. With
noise 1/4 every trial's value has noise of a quarter of that distance.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import statistics
import time
import warnings
from typing import Literal, get_args

import numpy as np

from mixloop.policies.bayes import optuna_trials
from mixloop.policies.mixture import Array, best_static

Kind = Literal["gammas", "sticks", "ratios"]
WIDTH = 5.0  # log-ratios reach from -5 to 5


def decode(kind: Kind, box: Array) -> Array:
    """The mixture (k,) at a point of the box (d,).

    ``gammas``: what ``bayes`` uses. ``sticks``: each source takes a beta-distributed part of what
    the ones before left (uniform as well; Sethuraman 1994). ``ratios``: logarithms of the shares'
    ratios to the last source's (Aitchison 1982); the boundary is out of reach.
    """
    if kind == "gammas":
        return optuna_trials.decode(box)
    if kind == "sticks":
        after = np.arange(len(box), 0, -1)
        parts = 1 - np.clip(1 - box, 0, 1) ** (1 / after)
        left = np.concatenate([[1.0], np.cumprod(1 - parts)])
        return np.asarray(np.append(left[:-1] * parts, left[-1]))
    shares = np.exp(np.append((2 * box - 1) * WIDTH, 0.0))
    return np.asarray(shares / shares.sum())


class Law:
    """Mean of exponentials in the shares; ``inside`` says where its optimum lies."""

    def __init__(self, k: int, inside: bool, seed: int) -> None:
        for attempt in range(1000):
            drawing = np.random.default_rng([seed, k, inside, attempt])
            self.slopes = drawing.normal(0, 1.0, (k if inside else 3, k))
            rows = np.arange(len(self.slopes))
            self.slopes[rows, rows if inside else drawing.integers(0, k, 3)] -= 4.0
            self.best = best_static(self.values, np.ones(k))
            if (self.best.min() > 0.03) == inside:
                break
        anywhere = np.random.default_rng(k).dirichlet(np.ones(k), 1001)
        self.random = float(np.median(self.values(anywhere)))
        self.least = float(self.values(self.best[None])[0])

    def values(self, mixtures: Array) -> Array:
        """Losses (n,) of mixtures (n, k)."""
        return np.asarray(np.exp(mixtures @ self.slopes.T).mean(axis=-1))

    def closed(self, mixture: Array) -> float:
        """1 at the optimum, 0 at the median random mixture."""
        value = float(self.values(mixture[None])[0])
        return (self.random - value) / (self.random - self.least)


def search(law: Law, kind: Kind | None, trials: int, noise: float, seed: int) -> float:
    """What a study in this parametrisation closes; ``kind`` None: random mixtures."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    k = law.slopes.shape[1]
    shape: Kind = kind or "gammas"
    drawing = np.random.default_rng(seed)
    sampler = (
        optuna.samplers.GPSampler(seed=seed, deterministic_objective=noise == 0)
        if kind
        else optuna.samplers.RandomSampler(seed=seed)
    )
    study = optuna.create_study(sampler=sampler)
    tried, values = [], []
    for _ in range(trials):
        trial = study.ask()
        box = [trial.suggest_float(f"u{i}", 0, 1) for i in range(k if shape == "gammas" else k - 1)]
        mixture = decode(shape, np.array(box))
        value = float(law.values(mixture[None])[0]) + drawing.normal(0, noise)
        study.tell(trial, value)
        tried.append(mixture)
        values.append(value)
    means = posterior_mean(np.array(tried), np.array(values), noise)
    return law.closed(tried[int(np.argmin(means))])


def posterior_mean(tried: Array, values: Array, noise: float) -> Array:
    """Of a Gaussian process (Matern 5/2) at the mixtures tried; the length by likelihood."""
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import ConstantKernel, Matern

    jitter = max((noise / max(values.std(), 1e-12)) ** 2, 1e-8)
    kernel = ConstantKernel(4.0, "fixed") * Matern(0.8, (0.1, 5.0), nu=2.5)
    process = GaussianProcessRegressor(kernel, alpha=jitter, normalize_y=True)
    return np.asarray(process.fit(tried, values).predict(tried))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--k", action="append", type=int)
    parser.add_argument("--trials", type=int, default=40)
    parser.add_argument("--seeds", type=int, default=5)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    print(f"{'optimum':9} {'k':>3} {'noise':6} {'by':8} {'median':>7} {'worst':>7} {'s':>6}")
    for k in options.k or (5,):
        for inside in (True, False):
            laws = [Law(k, inside, seed) for seed in range(options.seeds)]
            for part in (0.0, 0.25):
                for kind in (*get_args(Kind), None):
                    show(laws, inside, kind, options.trials, part)


def show(laws: list[Law], inside: bool, kind: Kind | None, trials: int, part: float) -> None:
    begun = time.perf_counter()
    closed = [
        search(law, kind, trials, part * (law.random - law.least), seed)
        for seed, law in enumerate(laws)
    ]
    where, spent = "interior" if inside else "boundary", time.perf_counter() - begun
    print(
        f"{where:9} {laws[0].slopes.shape[1]:>3} {'1/4' if part else 'none':6} "
        f"{kind or 'random':8} {statistics.median(closed):7.2f} {min(closed):7.2f} {spent:6.0f}",
        flush=True,
    )


if __name__ == "__main__":
    main()
