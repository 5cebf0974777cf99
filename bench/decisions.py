"""How long a decision takes: every policy on 110 evaluations x 64 sources x 4 benchmarks.

.venv/bin/python bench/decisions.py --policy rules --repeats 20

Once with the outcomes of 400 items per benchmark, as a real run has them, and once with values and
standard errors alone. CPU time on one thread, so that a busy machine does not show. Before the
table: what importing `mixloop.policies` costs, and what it loads.
"""

from __future__ import annotations

import os

for _key in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[_key] = "1"

import argparse
import json
import math
import random
import statistics
import subprocess
import sys
import time
from typing import Any

from mixloop.policies.interface import Observation, PolicyError, load_policy, policy_names
from mixloop.policies.testing.sample_runs import BENCHMARKS, many_sources, run_so_far

LIMITS = {"bayes": 2.0, "law": 2.0}  # seconds; the others 0.05
HEAVY = ("torch", "optuna", "scipy", "numpy")
EVENLY = dict.fromkeys(many_sources(64), 1 / 64)

# rules that look at everything: each benchmark alone and all together, by trend, level and lag
RULES: dict[str, Any] = {
    "combine": True,
    "interventions": [
        *(
            {
                "name": f"lift-{name}",
                "when": [
                    {"trend": {"benchmark": name, "over": 3, "is": "flat", "margin": 0.001}},
                    {"level": {"benchmark": name, "above": 0.5}},
                ],
                "move": {"to": name, "step": 0.02},
            }
            for name in BENCHMARKS
        ),
        {
            "name": "together",
            "when": {"trend": {"benchmark": list(BENCHMARKS), "over": 2, "is": "worse"}},
            "move": {"to": "maths"},
        },
        {
            "name": "behind",
            "when": {"lag": {"benchmark": "mmlu", "than": list(BENCHMARKS[1:]), "over": 2}},
            "move": {"to": "mmlu"},
        },
    ],
}


def proxies() -> list[dict[str, Any]]:
    """Three proxy runs for each of 64 coefficients and one, as olmix's authors advise."""
    drawing, runs = random.Random(0), []
    for _ in range(3 * 65):
        shares = [drawing.gammavariate(1, 1) for _ in EVENLY]
        weights = {name: share / sum(shares) for name, share in zip(EVENLY, shares, strict=True)}
        values = [
            0.5 + math.exp(-20 * share + drawing.gauss(0, 0.01))
            for share in list(weights.values())[: len(BENCHMARKS)]
        ]
        scores = {name: {"value": value} for name, value in zip(BENCHMARKS, values, strict=True)}
        runs.append({"weights": weights, "benchmarks": scores})
    return runs


OPTIONS: dict[str, dict[str, Any]] = {
    "static": {"weights": EVENLY},
    "rules": RULES,
    "olmix": {"points": proxies()},
}


def timed(name: str, observation: Observation, repeats: int) -> tuple[float, list[float], str]:
    """CPU seconds of the first decision, of the others, and what the answer was."""
    seconds, reply = [], None
    for _ in range(repeats + 1):
        policy = load_policy(name, OPTIONS.get(name, {}))
        begun = time.process_time()
        reply = policy.decide(observation)
        seconds.append(time.process_time() - begun)
    return seconds[0], seconds[1:], getattr(reply, "verdict", "proposal")


def importing() -> str:
    """Seconds that importing the package takes in a fresh process, and the heavy modules."""
    code = (
        "import sys, time; start = time.perf_counter(); import mixloop.policies;"
        "print(time.perf_counter() - start, len(sys.modules),"
        f"*[name for name in {HEAVY} if name in sys.modules])"
    )
    outputs = []
    for _ in range(5):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
        outputs.append(done.stdout.decode().split())
    seconds = sorted(float(output[0]) for output in outputs)
    loaded = ", ".join(outputs[0][2:]) or f"none of {', '.join(HEAVY)}"
    return (
        f"import mixloop.policies: {seconds[2]:.3f} s median of 5, {seconds[-1]:.3f} s worst, "
        f"{outputs[0][1]} modules, {loaded}"
    )


def main() -> None:
    """Print the tables; exit code 1 where a policy is late."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--policy", action="append")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--items", type=int, default=400)
    parser.add_argument("--options", type=json.loads, default=None)
    options = parser.parse_args()
    print(importing())
    late = 0
    for items in (0, options.items):
        observation = run_so_far(110, sources=many_sources(64), items=items)
        print(f"\n{items or 'no'} items per benchmark")
        for name in options.policy or policy_names():
            if options.options is not None:
                OPTIONS[name] = options.options
            try:
                first, others, verdict = timed(name, observation, options.repeats)
            except PolicyError as error:
                print(f"{name:14} not measured: {error}")
                continue
            limit = LIMITS.get(name, 0.05)
            over = statistics.median(others) > limit
            late += over
            print(
                f"{name:14} median {1000 * statistics.median(others):8.2f} ms   "
                f"worst {1000 * max(others):8.2f}   first {1000 * first:8.2f}   "
                f"limit {1000 * limit:6.0f} {'LATE' if over else 'ok':4} ({verdict})",
                flush=True,
            )
    sys.exit(1 if late else 0)


if __name__ == "__main__":
    main()
