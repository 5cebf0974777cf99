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
            result = simulate(seed, cycles, Path(folder))
            total += result.cycles
            faults += result.faults
            facts += result.facts
            if result.violation:
                failed.append(result)
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
    parser.add_argument("--mutations", action="store_true", help="run with each deliberate bug")
    parser.add_argument("--faults", action="store_true", help="what goes wrong, as a table")
    parser.add_argument("--invariants", action="store_true", help="what must hold, as a table")
    options = parser.parse_args()
    if options.faults or options.invariants:
        if options.faults:
            _table("fault", "what happens", KINDS)
        if options.invariants:
            _table("invariant", "what holds", NAMES)
        return 0
    if options.seed is not None:
        with installed():
            result = simulate(options.seed, options.cycles, say=_say if options.trace else None)
        print(result.violation or f"seed {result.seed}: {result.cycles} cycles, no violation")
        print(f"digest {result.digest}")
        return 1 if result.violation else 0
    return _mutations() if options.mutations else _many(options)


def _table(name: str, what: str, rows: dict[str, str]) -> None:
    print(f"| {name} | {what} |\n|---|---|")
    for key, text in rows.items():
        print(f"| `{key}` | {text} |")


def _mutations() -> int:
    """Each deliberate bug with the seed that catches it, as Markdown; 1 if one is missed."""
    missed = 0
    print("| bug | what it does | seed | invariant |\n|---|---|---|---|")
    with installed():
        for bug in MUTATIONS:
            result = caught(bug)
            missed += result is None
            shown = "- | -" if result is None else f"{result.seed} | `{result.invariant}`"
            print(f"| `{bug.name}` | {bug.what} | {shown} |", flush=True)
    return 1 if missed else 0


def _quiet() -> None:
    """A worker: an interrupt is the parent's to hear, which says what was done so far."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _say(line: str) -> None:
    print(line)


def _many(options: argparse.Namespace) -> int:
    began = time.monotonic()
    size = 25
    last = options.first_seed + options.seeds
    starts = range(options.first_seed, last, size)
    tasks = [(start, min(start + size, last), options.cycles) for start in starts]
    seeds = cycles = 0
    faults: Counter[str] = Counter()
    facts: Counter[str] = Counter()
    failed: list[Result] = []
    with multiprocessing.Pool(options.jobs, _quiet) as pool, contextlib.suppress(KeyboardInterrupt):
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        for count, total, more_faults, more_facts, more_failed in pool.imap_unordered(_work, tasks):
            seeds, cycles = seeds + count, cycles + total
            faults, facts = faults + more_faults, facts + more_facts
            failed += more_failed
            for result in more_failed:
                print(f"seed {result.seed}: {result.violation}", file=sys.stderr, flush=True)
            if seeds % 100 < size:
                print(
                    f"{seeds} seeds, {cycles} cycles, {len(failed)} violations, "
                    f"{time.monotonic() - began:.0f} s",
                    file=sys.stderr,
                    flush=True,
                )
    took = time.monotonic() - began
    missing = [kind for kind in KINDS if not faults[kind]]
    if options.json:
        print(
            json.dumps(
                {
                    "seeds": seeds,
                    "cycles": cycles,
                    "seconds": round(took, 1),
                    "violations": [[result.seed, result.violation] for result in failed],
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
    for result in failed[:3]:
        print(f"\nseed {result.seed}: {result.violation}\n" + "\n".join(result.events[-25:]))
    if missing and seeds >= 500:
        print(f"never happened: {', '.join(missing)}", file=sys.stderr)
    return 1 if failed or (missing and seeds >= 500) else 0


if __name__ == "__main__":
    sys.exit(main())
