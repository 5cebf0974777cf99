"""Honest noise on simulated runs that never change: are intervals and the law's misfit true?

.venv/bin/python bench/noise.py                 all of it, about five minutes on one core
.venv/bin/python bench/noise.py --runs 40 --evaluations 12

Per number of evaluations and kind of jitter: the estimate (root mean square, in parts of the true
jitter), how many 95% intervals of the difference between any two checkpoints hold the course's
change, with both parts of the error and with the items' alone, and the law's misfit.
"""

from __future__ import annotations

import os

for _key in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[_key] = "1"

import argparse
import itertools
import math
import time
from statistics import mean

from mixloop.policies.evidence import trajectory_noise
from mixloop.policies.law.averaging import cut_points, weigh
from mixloop.policies.law.fit import fit_with_null
from mixloop.policies.law.law_data import law_data
from mixloop.policies.law.models import LAWS
from mixloop.policies.testing import UnchangedRun, unchanged_run

JITTERS, AUTOCORRELATIONS, ITEMS = (0.01, 0.03), (0.0, 0.2, 0.4), (0.004, 0.01)


def intervals(run: UnchangedRun) -> tuple[int, int, int]:
    """Held with both parts, held by the items' alone, asked."""
    both = alone = asked = 0
    for name, course in run.courses.items():
        jitter = trajectory_noise(run.observation, name)
        for i, j in itertools.combinations(range(len(course)), 2):
            plain = run.observation.difference(name, i, j)
            honest = plain.beside(math.sqrt(2) * jitter.stderr, jitter.df)
            change = course[i] - course[j]
            both += honest.interval()[0] <= change <= honest.interval()[1]
            alone += plain.interval()[0] <= change <= plain.interval()[1]
            asked += 1
    return both, alone, asked


def misfit(run: UnchangedRun) -> float:
    data = law_data(run.observation)
    assert data is not None
    cuts = cut_points(len(data.evaluations))
    return weigh(data, fit_with_null(data, LAWS, cuts), cuts, 0.5).misfit


def row(evaluations: int, rho: float, runs: int, laws: int) -> str:
    kinds = list(itertools.product(JITTERS, ITEMS))
    held, misfits, found = [], [], []
    begun, calls = 0.0, 0
    for (jitter, items), seed in itertools.product(kinds, range(runs)):
        run = unchanged_run(evaluations, jitter, seed, autocorrelation=rho, items=items)
        held.append(intervals(run))
        if seed < laws and evaluations >= 4:
            misfits.append(misfit(run))
        start = time.perf_counter()
        found += [trajectory_noise(run.observation, n).stderr / jitter for n in run.courses]
        begun, calls = begun + time.perf_counter() - start, calls + len(run.courses)
    both, alone, asked = map(sum, zip(*held, strict=True))
    size = math.sqrt(mean(part**2 for part in found))
    misfits.sort()
    low, high = misfits[len(misfits) // 10], misfits[-1 - len(misfits) // 10]
    return (
        f"| {evaluations} | {rho:g} | {size:.2f} | {both / asked:.1%} | {alone / asked:.1%} "
        f"| {mean(misfits):.2f} ({low:.2f}, {high:.2f}) | {1000 * begun / calls:.1f} ms |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=40, help="of each kind, for the intervals")
    parser.add_argument("--laws", type=int, default=6, help="of these, fitted by the laws")
    parser.add_argument("--evaluations", type=int, action="append")
    parser.add_argument("--rho", type=float, action="append", help="autocorrelation of the jitter")
    options = parser.parse_args()
    print("| evaluations | autocorrelation | estimate / jitter | intervals hold | by items alone "
          "| misfit, mean (10%, 90%) | an estimate |", flush=True)  # fmt: skip
    print("|---|---|---|---|---|---|---|", flush=True)
    counts = options.evaluations or (4, 6, 8, 12, 20, 40)
    for evaluations, rho in itertools.product(counts, options.rho or AUTOCORRELATIONS):
        print(row(evaluations, rho, options.runs, options.laws), flush=True)


if __name__ == "__main__":
    main()
