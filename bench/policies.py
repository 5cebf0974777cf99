"""Policies on worlds: how much of the gap between uniform and the best static mixture they close.

.venv/bin/python bench/policies.py --policy law --family P --k 5 --seeds 8
"""

from __future__ import annotations

import os

for _key in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[_key] = "1"

import argparse
import json
import statistics
import time
from multiprocessing import Pool
from typing import Any

from mixloop.controller.simulation import simulate, uniform_start, virtual_config
from mixloop.policies import load_policy
from mixloop.policies.worlds import Dilution, Exponential, Power
from mixloop.policies.worlds.proxies import proxies, swarm

FAMILIES = {"P": Power, "E": Exponential, "D": Dilution}
GUARDS = {"max_epochs": 5, "max_change": 0.20}


def one(task: tuple[str, dict[str, Any], str, int, int, dict[str, Any]]) -> dict[str, Any]:
    """One world under uniform, under its best static mixture, and under the policy."""
    ref, options, family, k, seed, variation = task
    world = FAMILIES[family](k=k, seed=seed, **variation)
    if ref == "olmix":  # it decides before the run, from runs of its own that cost it nothing here
        options = {"points": proxies(world, swarm(k), seed), **options}
    config = virtual_config(world, policy=ref, options=options, guards=GUARDS)
    start = uniform_start(world, GUARDS["max_epochs"], config.budget)
    segments = world.segments
    uniform = simulate(world, load_policy("static"), config, segments=segments, start=start).final
    optimum = world.optimum()
    best = float(world.final(__import__("numpy").array([list(optimum.values())]))[0])
    world.reset(seed)
    begun = time.perf_counter()
    policy = load_policy(ref, options)
    track = simulate(world, policy, config, segments=segments, seed=seed, start=start)
    return {
        "seed": seed,
        "gap": (uniform - track.final) / (uniform - best),
        "uniform": uniform,
        "best": best,
        "final": track.final,
        "slowest": max(moment.seconds for moment in track.moments),
        "seconds": time.perf_counter() - begun,
        "failed": sum("error" in (m.decision or {}).get("evidence", {}) for m in track.moments),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--policy", default="law")
    parser.add_argument("--options", type=json.loads, default={})
    parser.add_argument("--family", action="append", choices=list(FAMILIES))
    parser.add_argument("--k", action="append", type=int)
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--vary", type=json.loads, default={}, help="options of the worlds")
    parser.add_argument("--jobs", type=int, default=1)
    options = parser.parse_args()
    with Pool(options.jobs) as pool:
        for family in options.family or FAMILIES:
            for k in options.k or (5, 12):
                seeds = range(options.first, options.first + options.seeds)
                tasks = [
                    (options.policy, options.options, family, k, seed, options.vary)
                    for seed in seeds
                ]
                show(options.policy, family, k, pool.map(one, tasks, chunksize=1))


def show(policy: str, family: str, k: int, found: list[dict[str, Any]]) -> None:
    gaps = sorted(entry["gap"] for entry in found)
    tenth = gaps[max(0, round(0.1 * (len(gaps) - 1)))]
    print(
        f"{policy:12} {family} k={k:<3} median {statistics.median(gaps):6.2f}  p10 {tenth:6.2f}  "
        f"worst {gaps[0]:6.2f}  below uniform {sum(g < 0 for g in gaps)}/{len(gaps)}  "
        f"{max(e['slowest'] for e in found):.2f} s slowest decision, "
        f"{statistics.median(e['seconds'] for e in found):.1f} s a run, "
        f"{sum(e['failed'] for e in found)} failed",
        flush=True,
    )


if __name__ == "__main__":
    main()
