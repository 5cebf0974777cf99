"""``python -m tests.simulation``: many seeds, or one with every event."""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from .faults import KINDS
from .invariants import NAMES
from .mutations import MUTATIONS, caught
from .patches import installed
from .runner import Result, fast_folder, simulate


def _work(task: tuple[int, int, int]) -> tuple[int, int, Counter[str], Counter[str], list[Result]]:
    """Seeds ``first`` up to ``last``: how many, their cycles, faults, facts, and the failures."""
    first, last, cycles = task
    total = 0
    faults: Counter[str] = Counter()
    facts: Counter[str] = Counter()
    failed = []
    with installed(), tempfile.TemporaryDirectory(dir=fast_folder()) as folder:
        for seed in range(first, last):
            found = simulate(seed, cycles, Path(folder))
            total += found.cycles
            faults += found.faults
            facts += found.facts
            if found.violation:
                failed.append(found)
    return last - first, total, faults, facts, failed


def main() -> int:
    """Exit code 0 without a violation, else 1."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seeds", type=int, default=1000)
    parser.add_argument("--cycles", type=int, default=200, help="least cycles of each seed")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--seed", type=int, help="this one alone")
    parser.add_argument("--trace", action="store_true", help="with --seed: say every event")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--mutations", action="store_true", help="deliberate bugs, as a table")
    given = parser.parse_args()
    if given.seed is not None:
        with installed():
            found = simulate(given.seed, given.cycles, say=_say if given.trace else None)
        print(found.violation or f"seed {found.seed}: {found.cycles} cycles, no violation")
        print(f"digest {found.digest}")
        return 1 if found.violation else 0
    return _mutations() if given.mutations else _many(given)


def _mutations() -> int:
    """Each deliberate bug with the seed that catches it, as Markdown; 1 if one is missed."""
    missed = 0
    print("| bug | what it does | seed | invariant |\n|---|---|---|---|")
    with installed():
        for bug in MUTATIONS:
            found = caught(bug)
            missed += found is None
            seen = "- | -" if found is None else f"{found.seed} | `{found.invariant}`"
            print(f"| `{bug.name}` | {bug.what} | {seen} |", flush=True)
    return 1 if missed else 0


def _quiet() -> None:
    """A worker: an interrupt is the parent's to hear, which says what was done so far."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _say(line: str) -> None:
    print(line)


def _many(given: argparse.Namespace) -> int:
    began = time.monotonic()
    size = 25
    last = given.first_seed + given.seeds
    starts = range(given.first_seed, last, size)
    tasks = [(start, min(start + size, last), given.cycles) for start in starts]
    seeds = cycles = 0
    faults: Counter[str] = Counter()
    facts: Counter[str] = Counter()
    failed: list[Result] = []
    with multiprocessing.Pool(given.jobs, _quiet) as pool, contextlib.suppress(KeyboardInterrupt):
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        for count, total, some, told, wrong in pool.imap_unordered(_work, tasks):
            seeds, cycles = seeds + count, cycles + total
            faults, facts = faults + some, facts + told
            failed += wrong
            for one in wrong:
                print(f"seed {one.seed}: {one.violation}", file=sys.stderr, flush=True)
            if seeds % 100 < size:
                print(
                    f"{seeds} seeds, {cycles} cycles, {len(failed)} violations, "
                    f"{time.monotonic() - began:.0f} s",
                    file=sys.stderr,
                    flush=True,
                )
    took = time.monotonic() - began
    missing = [kind for kind in KINDS if not faults[kind]]
    if given.json:
        print(
            json.dumps(
                {
                    "seeds": seeds,
                    "cycles": cycles,
                    "seconds": round(took, 1),
                    "violations": [[one.seed, one.violation] for one in failed],
                    "faults": {kind: faults[kind] for kind in KINDS},
                    "facts": dict(facts),
                    "invariants": list(NAMES),
                },
                indent=1,
            )
        )
    else:
        print(f"{seeds} seeds, {cycles} cycles, {took:.0f} s, {len(failed)} violations")
        print(", ".join(f"{count} {name}" for name, count in sorted(facts.items())))
        for kind in KINDS:
            print(f"{faults[kind]:9d}  {kind}: {KINDS[kind]}")
    for one in failed[:3]:
        print(f"\nseed {one.seed}: {one.violation}\n" + "\n".join(one.events[-25:]))
    if missing and seeds >= 500:
        print(f"never happened: {', '.join(missing)}", file=sys.stderr)
    return 1 if failed or (missing and seeds >= 500) else 0


if __name__ == "__main__":
    sys.exit(main())
