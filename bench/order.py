"""The mixing order: nanoseconds per sample selected, position included; cost of a far seek.

    python bench/order.py [--repeats 7] [--json]

Processor time, medians over repeats. Selection goes on from block to block, as in training; a seek
begins from the schedule alone, as after a restart without a snapshot.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from mixloop.contract import SCALE, Segment
from mixloop.trainer.mixing import MixtureOrder

SAMPLES = 2**20
CHUNK = 2**14
FAR = 10**13  # samples

Weights = Mapping[str, float] | Mapping[str, int]


def heavy_tailed(sources: int) -> dict[str, int]:
    """Integer shares falling as 1/i^2, none below 5e-5."""
    units = [max(839, SCALE // ((i + 1) * (i + 2))) for i in range(sources)]
    units[0] += SCALE - sum(units)
    return {f"s{i}": n for i, n in enumerate(units)}


def fresh(weights: Weights, quantum: int) -> MixtureOrder:
    sizes = {name: 48_828 + 1000 * i for i, name in enumerate(weights)}
    return MixtureOrder(sizes, 7, [Segment(0, weights, quantum)])


def selection(weights: Weights, quantum: int) -> float:
    """Nanoseconds per sample."""
    order = fresh(weights, quantum)
    order.batch(0, CHUNK)
    begun = time.process_time()
    for start in range(CHUNK, CHUNK + SAMPLES, CHUNK):
        order.batch(start, CHUNK)
    return (time.process_time() - begun) / SAMPLES * 1e9


def seek(weights: Weights, quantum: int) -> tuple[float, float]:
    """Milliseconds to know the draws by source after `FAR` samples, and to give the next step."""
    start = FAR // quantum * quantum
    begun = time.process_time()
    fresh(weights, quantum).drawn(start)
    known = time.process_time()
    fresh(weights, quantum).batch(start, quantum)
    return (known - begun) * 1e3, (time.process_time() - known) * 1e3


def rows(repeats: int) -> list[dict[str, Any]]:
    mixtures: dict[str, Weights] = {
        "4": {"a": 0.6, "b": 0.2, "c": 0.15, "d": 0.05},
        "46": heavy_tailed(46),
    }
    # As in a training job: once a large block was freed, glibc keeps memory instead of giving it
    # back, and having it mapped anew, with every block of samples.
    np.empty(1 << 22, np.uint8)
    found = []
    for name, weights in mixtures.items():
        for quantum in (64, 1024, 2048):
            costs = [selection(weights, quantum) for _ in range(repeats)]
            seeks = [seek(weights, quantum) for _ in range(repeats)]
            known, given = (statistics.median(part) for part in zip(*seeks, strict=True))
            found.append(
                {
                    "sources": int(name),
                    "quantum": quantum,
                    "selection_ns": round(statistics.median(costs), 1),
                    "selection_ns_least": round(min(costs), 1),
                    "seek_ms": round(known, 2),
                    "first_batch_ms": round(given, 2),
                    "steps_per_second": round(FAR / quantum / known * 1e3),
                }
            )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=7, help="of which the median is told")
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    options = parser.parse_args()
    found = rows(options.repeats)
    if options.json:
        print(json.dumps({"samples": SAMPLES, "far": FAR, "rows": found}, indent=1))
        return
    print("sources quantum  ns/sample (least)  seek ms  first batch ms  steps/s passed over")
    for row in found:
        print(
            f"{row['sources']:7d} {row['quantum']:7d} {row['selection_ns']:10.1f} "
            f"({row['selection_ns_least']:5.1f}) {row['seek_ms']:8.2f} "
            f"{row['first_batch_ms']:15.2f}  {row['steps_per_second']:.1e}"
        )


if __name__ == "__main__":
    main()
