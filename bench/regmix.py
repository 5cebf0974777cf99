"""What small runs tell about larger ones: RegMix's tables, a surrogate fitted to the small runs.

.venv/bin/python bench/regmix.py --data DIR [--proxies 512 128 64]

DIR holds RegMix's published tables (train_mixture_1m.csv, train_pile_loss_1m.csv,
test_mixture_60m.csv, test_pile_loss_60m.csv). The surrogate is chosen and fitted on the small runs
alone; among the larger runs' mixtures it picks the one it predicts best, and that run's measured
loss is ranked among all of them. Larger runs are looked at for this score only.
"""

from __future__ import annotations

import os

for _key in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[_key] = "1"

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mixloop.policies.mixture import Array
from mixloop.policies.surrogates import fit_log_linear
from mixloop.policies.surrogates.surrogates import KINDS as SEARCHED
from mixloop.policies.surrogates.surrogates import cross_validate
from mixloop.tools.simulate.regmix_world import Runs, read_runs

MEAN = "mean over domains"
SMALL = 1e-2
"""Share below which a source's logarithm flattens, in the ridge on logarithms."""


@dataclass(frozen=True)
class Mean:
    """A surrogate of which only the mean is asked for here."""

    mean: Callable[[Array], Array]

    def predict(self, mixtures: Array) -> tuple[Array, Array]:
        return self.mean(mixtures), np.full(len(mixtures), np.nan)


def logarithms(mixtures: Array) -> Array:
    """Shares and their logarithms, flattened near nothing: (n, 2k)."""
    return np.concatenate([mixtures, np.log(mixtures + SMALL)], axis=1)


def quadratic(mixtures: Array) -> Array:
    """Square roots of shares, and all their products: (n, k + k (k + 1) / 2)."""
    roots = np.sqrt(mixtures)
    row, column = np.triu_indices(roots.shape[1])
    return np.concatenate([roots, roots[:, row] * roots[:, column]], axis=1)


def fit_ridge(features: Callable[[Array], Array], mixtures: Array, values: Array) -> Mean:
    """Ridge regression on features; the penalty that predicts each run best from all others."""
    from sklearn.linear_model import RidgeCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    penalties = np.geomspace(1e-3, 1e4, 29) * max(1.0, len(values) / 100)
    model = make_pipeline(StandardScaler(), RidgeCV(penalties)).fit(features(mixtures), values)
    return Mean(lambda rows: model.predict(features(rows)))


def fit_ensemble(mixtures: Array, values: Array) -> Mean:
    """The mean of the kinds that a search uses and the quadratic ridge."""
    makers = (*SEARCHED.values(), KINDS["quadratic"])
    members = [make(mixtures, values, None) for make in makers]
    return Mean(lambda rows: np.mean([member.predict(rows)[0] for member in members], axis=0))


KINDS: dict[str, Callable[..., Any]] = {
    "law": lambda mixtures, values, stderr: Mean(fit_log_linear(mixtures, values).mean),
    **SEARCHED,
    "ridge": lambda mixtures, values, stderr: fit_ridge(logarithms, mixtures, values),
    "quadratic": lambda mixtures, values, stderr: fit_ridge(quadratic, mixtures, values),
    "ensemble": lambda mixtures, values, stderr: fit_ensemble(mixtures, values),
}


def errors(kind: str, proxies: Runs) -> np.ndarray:
    """Out-of-fold error of each domain, in standard deviations of its values: (m,)."""
    off = []
    for values in proxies.losses.T:
        predicted = cross_validate(KINDS[kind], proxies.mixtures, values)
        off.append(np.sqrt(np.mean((predicted - values) ** 2)) / values.std())
    return np.array(off)


def predict(kind: str, proxies: Runs, mixtures: np.ndarray) -> np.ndarray:
    """Every domain's predicted loss (n, m) at mixtures (n, k)."""
    columns = [
        KINDS[kind](proxies.mixtures, values, None).predict(mixtures)[0]
        for values in proxies.losses.T
    ]
    return np.stack(columns, axis=1)


def ranks(predicted: np.ndarray, measured: Runs) -> dict[str, dict[str, Any]]:
    """Per domain and for their mean: the pick's rank among the measured runs, and Spearman's."""
    pairs = zip(predicted.T, measured.losses.T, strict=True)
    targets = dict(zip(measured.domains, pairs, strict=True))
    targets[MEAN] = (predicted.mean(axis=1), measured.losses.mean(axis=1))
    return {name: _rank(guess, truth) for name, (guess, truth) in targets.items()}


def _rank(guess: np.ndarray, truth: np.ndarray) -> dict[str, Any]:
    from scipy.stats import spearmanr

    pick = int(guess.argmin())
    return {
        "pick": pick,
        "rank": int((truth < truth[pick]).sum()) + 1,
        "of": len(truth),
        "loss": float(truth[pick]),
        "best": float(truth.min()),
        "median": float(np.median(truth)),
        "spearman": float(spearmanr(guess, truth).statistic),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of RegMix's tables")
    parser.add_argument("--small", default="train_{}_1m.csv", help="the proxies' two tables")
    parser.add_argument("--large", default="test_{}_60m.csv", help="the scored runs' two tables")
    parser.add_argument("--proxies", type=int, nargs="+", default=[512, 128, 64])
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS))
    parser.add_argument("--top", type=float, default=0.02)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    small, large = (
        read_runs(options.data / name.format("mixture"), options.data / name.format("pile_loss"))
        for name in (options.small, options.large)
    )
    reports = [study(small.first(count), large, options) for count in options.proxies]
    if options.json:
        print(json.dumps(reports, indent=1))


def study(proxies: Runs, large: Runs, options: argparse.Namespace) -> dict[str, Any]:
    """Choose by cross-validation on the proxies, then score every kind on the larger runs."""
    report: dict[str, Any] = {"proxies": len(proxies), "kinds": {}}
    for kind in options.kinds:
        begun = time.perf_counter()
        error = float(errors(kind, proxies).mean())
        targets = ranks(predict(kind, proxies, large.mixtures), large)
        seconds = time.perf_counter() - begun
        report["kinds"][kind] = {"error": error, "targets": targets, "seconds": seconds}
        if not options.json:
            _say(kind, len(proxies), error, targets, options.top, seconds)
    report["chosen"] = min(report["kinds"], key=lambda kind: report["kinds"][kind]["error"])
    if not options.json:
        print(f"chosen on {len(proxies)} proxies alone: {report['chosen']}")
        _show(report["kinds"][report["chosen"]]["targets"])
    return report


def _say(
    kind: str, count: int, error: float, targets: dict[str, Any], top: float, seconds: float
) -> None:
    domains = {name: score for name, score in targets.items() if name != MEAN}
    inside = sum(score["rank"] <= top * score["of"] for score in domains.values())
    order = sorted(score["rank"] for score in domains.values())
    print(
        f"{kind:10} {count:4} proxies  error {error:.3f} sd  mean: rank {targets[MEAN]['rank']:3} "
        f"(Spearman {targets[MEAN]['spearman']:.3f})  domains in the top {100 * top:g}%: "
        f"{inside}/{len(domains)}, median rank {order[len(order) // 2]}  {seconds:.0f} s",
        flush=True,
    )


def _show(targets: dict[str, Any]) -> None:
    for name, score in targets.items():
        print(
            f"  {name:22} rank {score['rank']:3} of {score['of']}  loss {score['loss']:.3f} (best "
            f"{score['best']:.3f}, median {score['median']:.3f})  Spearman {score['spearman']:.3f}"
        )


if __name__ == "__main__":
    main()
