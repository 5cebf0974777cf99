"""Policies on worlds: how much of the gap between uniform and the best static mixture they close.

make bench-policies                                   all policies, all families, 20 seeds each
make bench-policies ARGS="--null"                     flat worlds: who moves though nothing is there
make bench-policies ARGS="--policy law --vary sweep"  other noise, budgets, delays
make bench-policies ARGS="--family S --family I --jitter 0.02"   families left out of all tuning
.venv/bin/python bench/policies.py --policy law --family P --k 5 --seeds 8 --plain

Half of the seeds are worlds where the cap on epochs binds at the best static mixture, the first
such; the other half the first where it doesn't (``--plain``: seeds in order). A decision is timed
by the wall clock. Families: P, E, D (power, exponential, dilution), S (skills), I (interference).
Policies may spend ``--experiments`` of the budget on branches, beside it.

No policy was tuned on I. A column that a policy was not tuned on is marked: it judges.
"""

from __future__ import annotations

import os

for _key in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[_key] = "1"

import argparse
import functools
import itertools
import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from mixloop.common.parallel import each
from mixloop.policies.interface import Observation, Policy, PolicyError, Proposal, load_policy
from mixloop.policies.mixture import total_variation
from mixloop.policies.worlds.families import Dilution, Exponential, Flat, Power
from mixloop.policies.worlds.interference import Interference
from mixloop.policies.worlds.proxies import proxies, swarm
from mixloop.policies.worlds.skills import Skills
from mixloop.tools.simulate.scores import quantile
from mixloop.tools.simulate.simulation import SimulatedRun, simulate
from mixloop.tools.simulate.virtual_run import uniform_start, virtual_config

FAMILIES = {
    **{"P": Power, "E": Exponential, "D": Dilution},
    **{"S": Skills, "I": Interference},
}
TUNED = dict.fromkeys(("law", "bayes", "rules", "experiment"), ("P", "E", "D", "S"))
GUARDS = {"max_epochs": 5, "max_change": 0.20}
NULL_GUARDS = {"max_epochs": 5, "max_change": 0.10}
POLICIES = (
    *("experiment", "law", "bayes", "rules", "olmix", "odm", "ado", "static", "proportional"),
    "random",
)
NULL_POLICIES = ("rules", "bayes", "law", "experiment")
NULL_SEEDS, NULL_MOVE = 100, 0.05
SWEEP: tuple[dict[str, Any], ...] = (
    {"sigma": 0.002},
    {"sigma": 0.01},
    {"m": 2},
    {"m": 8},
    {"segments": 20},
    {"segments": 80},
    {"delay": 2},
    {"missing": 0.2},
    {"anneal": 0.05},
)
MOST_TRIED = 400  # seeds looked through for the two halves
AT_CAP = 1e-4  # a share this close to its bound is at it

Json = dict[str, Any]


class Random:
    """A new mixture at every decision, uniform over the simplex; it learns nothing."""

    def decide(self, observation: Observation) -> Proposal:
        drawing = np.random.default_rng([observation.seed, observation.step])
        shares = drawing.dirichlet(np.ones(len(observation.sources)))
        weights = dict(zip(observation.sources, map(float, shares), strict=True))
        return Proposal(weights, "at random")


def policy_of(ref: str, options: Json) -> Policy:
    return Random() if ref == "random" else load_policy(ref, options)


def reference(task: tuple[str, int, int, Json]) -> Json:
    """A world's best static loss, the uniform start's, and whether the cap binds at the best."""
    family, k, seed, variation = task
    world = FAMILIES[family](k=k, seed=seed, **variation)
    best = np.array(list(world.optimum().values()))
    most = np.minimum(1.0, GUARDS["max_epochs"] * world.unique / world.segments)
    start = uniform_start(world, GUARDS["max_epochs"], world.budget)
    even = np.array([start[name] for name in world.sources])
    losses = world.final(np.stack([even, best]))
    binds = bool(((best >= most - AT_CAP) & (most < 1)).any())
    uniform, least = map(float, losses)
    return {"seed": seed, "uniform": uniform, "best": least, "binds": binds}


def wide(world: Json) -> bool:
    """Whether there is anything to gain: the caps may leave no mixture but the uniform one."""
    return bool(world["uniform"] - world["best"] > 1e-6)


def choose(family: str, k: int, options: argparse.Namespace, variation: Json) -> list[Json]:
    """The references of the seeds that count."""
    first, wanted = options.first, options.seeds
    if options.plain:
        tasks = [(family, k, seed, variation) for seed in range(first, first + wanted)]
        return [
            world for world in each(reference, tasks, options.jobs, lambda: None) if wide(world)
        ]
    room = {True: wanted - wanted // 2, False: wanted // 2}
    chosen: list[Json] = []
    for begin in range(first, first + MOST_TRIED, 10):
        tasks = [(family, k, seed, variation) for seed in range(begin, begin + 10)]
        for candidate in each(reference, tasks, options.jobs, lambda: None):
            if room[candidate["binds"]] and wide(candidate):
                room[candidate["binds"]] -= 1
                chosen.append(candidate)
        if not any(room.values()):
            break
    return sorted(chosen, key=lambda world: world["seed"])


def run_one(task: tuple[str, Json, str, int, Json, Json, float]) -> Json:
    """A policy on one world."""
    ref, options, family, k, against, variation, budget = task
    seed = against["seed"]
    world = FAMILIES[family](k=k, seed=seed, **variation)
    if ref == "olmix":  # it decides before the run, from runs of its own that cost it nothing here
        options = {"points": proxies(world, swarm(k), seed), **options}
    config = virtual_config(world, policy=ref, options=options, guards=GUARDS, experiments=budget)
    start = uniform_start(world, GUARDS["max_epochs"], config.budget)
    begun = time.perf_counter()
    policy = policy_of(ref, options)
    track = simulate(world, policy, config, segments=world.segments, seed=seed, start=start)
    gap = (against["uniform"] - track.final) / (against["uniform"] - against["best"])
    return {**against, **measured(track, begun), "gap": gap}


def null(task: tuple[str, Json, int, int, Json, float]) -> Json:
    """A policy where every mixture is worth the same: how far from the start its orders end."""
    ref, options, k, seed, variation, budget = task
    world = Flat(k=k, seed=seed, **variation)
    config = virtual_config(
        world, policy=ref, options=options, guards=NULL_GUARDS, experiments=budget
    )
    start = uniform_start(world, NULL_GUARDS["max_epochs"], config.budget)
    begun = time.perf_counter()
    policy = policy_of(ref, options)
    track = simulate(world, policy, config, segments=world.segments, seed=seed, start=start)
    last = track.orders()[-5:] or [start]
    mean = {name: sum(order[name] for order in last) / len(last) for name in start}
    return {"seed": seed, **measured(track, begun), "moved": total_variation(mean, start)}


def measured(track: SimulatedRun, begun: float) -> Json:
    decisions = [m.decision for m in track.timeline if m.decision is not None]
    verdicts = [decision.verdict for decision in decisions]
    return {
        "final": track.final,
        "slowest": max(moment.seconds for moment in track.timeline),
        "seconds": time.perf_counter() - begun,
        "failed": sum("error" in decision.evidence for decision in decisions),
        "verdicts": {name: verdicts.count(name) for name in sorted(set(verdicts))},
        "orders": len(track.orders()),
        "experiments": len(track.experiments),
        "cost": sum(experiment.cost for experiment in track.experiments),
    }


def table(policies: dict[str, Json], options: argparse.Namespace, variation: Json) -> list[Json]:
    """Every policy on every family and size; a line of each as it is done."""
    rows = []
    for family, k in itertools.product(options.family or FAMILIES, options.k or (5, 12)):
        worlds = choose(family, k, options, variation)
        binding = sum(world["binds"] for world in worlds)
        print(f"# {family} k={k}: {len(worlds)} worlds, the cap binds in {binding}", flush=True)
        for ref, options_of in policies.items():
            spent = options.experiments
            tasks = [(ref, options_of, family, k, world, variation, spent) for world in worlds]
            runs = each(run_one, tasks, options.jobs, lambda: None)
            row = {"policy": ref, "family": family, "k": k, "vary": variation} | summary(runs)
            rows.append({**row, "runs": runs})
            say(row)
    return rows


def summary(runs: list[Json]) -> Json:
    gaps = sorted(entry["gap"] for entry in runs)
    return {
        "median": quantile(gaps, 0.5),
        "tenth": quantile(gaps, 0.1),
        "worst": gaps[0],
        "below": sum(gap < -1e-9 for gap in gaps),
        "worlds": len(gaps),
        "slowest": max(entry["slowest"] for entry in runs),
        "seconds": quantile(sorted(entry["seconds"] for entry in runs), 0.5),
        "failed": sum(entry["failed"] for entry in runs),
        "experiments": sum(entry["experiments"] for entry in runs) / len(runs),
    }


def left_out(ref: str, family: str) -> bool:
    """Whether a policy that was tuned on worlds at all was not tuned on this family."""
    return ref in TUNED and family not in TUNED[ref]


def say(row: Json) -> None:
    varied = f" {json.dumps(row['vary'])}" if row["vary"] else ""
    print(
        f"{row['policy']:12} {row['family']} k={row['k']:<3} median {row['median']:6.2f}  "
        f"p10 {row['tenth']:6.2f}  worst {row['worst']:6.2f}  "
        f"below uniform {row['below']}/{row['worlds']}  {row['slowest']:.2f} s slowest decision, "
        f"{row['seconds']:.1f} s a run, {row['failed']} failed, "
        f"{row['experiments']:.1f} experiments{varied}",
        flush=True,
    )


def markdown(rows: list[Json]) -> str:
    """Median, in brackets 10th percentile and worst, and the worlds that ended below uniform.

    A star marks a family that the policy was not tuned on.
    """
    columns = list(dict.fromkeys((row["family"], row["k"]) for row in rows))
    by = {(row["policy"], row["family"], row["k"]): row for row in rows}
    heads = " | ".join(f"{family}, k={k}" for family, k in columns)
    lines = [f"| policy | {heads} | slowest decision |", "|---" * (len(columns) + 2) + "|"]
    for ref in dict.fromkeys(row["policy"] for row in rows):
        entries = [by[ref, *column] for column in columns]
        cells = [
            f"{row['median']:.2f} ({row['tenth']:.2f}, {row['worst']:.2f}; {row['below']} below)"
            + ("*" if left_out(ref, row["family"]) else "")
            for row in entries
        ]
        slowest = max(row["slowest"] for row in entries)
        lines.append(f"| {ref} | {' | '.join(cells)} | {1000 * slowest:.0f} ms |")
    return "\n".join(lines)


def null_table(policies: dict[str, Json], options: argparse.Namespace) -> list[Json]:
    rows = []
    for ref, k in itertools.product(policies, options.k or (5, 12)):
        seeds = range(options.first, options.first + options.seeds)
        common = (jittered({}, options), options.experiments)
        tasks = [(ref, policies[ref], k, seed, *common) for seed in seeds]
        runs = each(null, tasks, options.jobs, lambda: None)
        moved = sorted(entry["moved"] for entry in runs)
        verdicts = sum(sum(entry["verdicts"].values()) for entry in runs)
        unsure = sum(entry["verdicts"].get("inconclusive", 0) for entry in runs)
        row = {
            "policy": ref,
            "k": k,
            "within": sum(distance <= NULL_MOVE for distance in moved) / len(moved),
            "p95": quantile(moved, 0.95),
            "greatest": moved[-1],
            "inconclusive": unsure / verdicts,
            "orders": sum(entry["orders"] for entry in runs) / len(runs),
            "slowest": max(entry["slowest"] for entry in runs),
            "failed": sum(entry["failed"] for entry in runs),
        }
        rows.append(row | {"runs": runs})
        print(
            f"{ref:12} k={k:<3} within {NULL_MOVE:g} in {row['within']:.0%} of {len(moved)} seeds, "
            f"95th percentile {row['p95']:.3f}, greatest {row['greatest']:.3f}, "
            f"inconclusive {row['inconclusive']:.0%}, {row['orders']:.1f} orders a run, "
            f"{row['slowest']:.2f} s slowest decision, {row['failed']} failed",
            flush=True,
        )
    return rows


def chosen_policies(options: argparse.Namespace) -> dict[str, Json]:
    """The policies that there are, with their options; the others are named and left out."""
    default = NULL_POLICIES if options.null else POLICIES
    policies = {}
    for ref in options.policy or default:
        chosen = options.options if options.options is not None else own_options(ref)
        try:
            if ref != "olmix":  # its options are the proxies of each world
                policy_of(ref, chosen)
        except PolicyError as error:
            print(f"left out: {error}", flush=True)
            continue
        policies[ref] = chosen
    return policies


@functools.cache
def own_options(ref: str) -> Json:
    """``rules`` says nothing by itself: the one configuration it has for every world."""
    folder = Path(__file__).parent
    for path in (folder / "rules_generic.json", folder / "rules_generic.yaml"):
        if ref == "rules" and path.exists():
            import yaml

            content: Json = yaml.safe_load(path.read_text())
            return content.get("with", content)
    return {}


def jittered(variation: Json, options: argparse.Namespace) -> Json:
    """A variation with the jitter that is asked for."""
    return variation if options.jitter is None else {**variation, "jitter": options.jitter}


def variations(text: str) -> tuple[Json, ...]:
    if text == "sweep":
        return SWEEP
    return (json.loads(text),)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--policy", "--only", action="append", help="repeatable; default: all")
    parser.add_argument("--options", type=json.loads, help="of the policy")
    parser.add_argument("--family", action="append", choices=list(FAMILIES))
    parser.add_argument("--k", action="append", type=int)
    parser.add_argument("--seeds", type=int, help="default 20, or 100 with --null")
    parser.add_argument("--first", type=int, default=0, help="the first seed looked at")
    parser.add_argument("--plain", action="store_true", help="seeds in order, not in halves")
    parser.add_argument("--null", action="store_true", help="flat worlds, default guards")
    parser.add_argument(
        "--vary", type=variations, default=({},), help="options of the worlds as JSON, or: sweep"
    )
    parser.add_argument("--jitter", type=float, help="of checkpoints, which no score states")
    parser.add_argument(
        "--experiments", type=float, default=0.02, help="part of the budget that branches may cost"
    )
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--out", type=Path, help="write every run as JSON")
    options = parser.parse_args()
    options.seeds = options.seeds or (NULL_SEEDS if options.null else 20)
    policies = chosen_policies(options)
    if options.null:
        rows = null_table(policies, options)
    else:
        rows = []
        for variation in (jittered(entry, options) for entry in options.vary):
            block = table(policies, options, variation)
            print(f"\n{json.dumps(variation) if variation else ''}\n{markdown(block)}\n")
            rows += block
    if options.out:
        options.out.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
