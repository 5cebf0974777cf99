"""Policies on real training: a small model, sixteen real sources, real items, the real product.

make bench-real ARGS="--out DIR --data DATA"                all arms, both starts, size quick
.venv/bin/python bench/real.py --out DIR --data DATA --size full --jobs 2
.venv/bin/python bench/real.py --out DIR --table            the table of what there is so far
.venv/bin/python bench/real.py --out DIR --flat             all sources alike: who moves?
.venv/bin/python bench/real.py --out DIR --twins 20         unchanged pairs: do receipts cover?

Every run is `mixloop run` on a run.yaml of its own: the reference trainer, the controller, its
evaluation worker, the policy. What steers are the steering items; the last checkpoint is judged on
items that no policy, branch or proxy sees. Everything is declared in this file and in `real_arms`,
and everything declared is in the table: what is not there yet as missing. A call goes on where
the last one stopped: finished runs are read, half ones resumed by the product.

--data is a folder with `gsm8k/test.jsonl`, `gsm8k/train.jsonl`, `math/test.jsonl`,
`mmlu/test.jsonl`; without it MMLU and HumanEval from the packages are asked alone.
"""

from __future__ import annotations

import os

for _key in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[_key] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"

import argparse
import json
import signal
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import real_arms
import real_markdown
import real_pace
import real_prepare
import real_runs
from real_arms import ARMS, REFERENCES, SIZES, STARTS, Arm, Size

from mixloop.policies.interface import policy_names

Json = dict[str, Any]

SEEDS = {"smoke": (1,), "quick": (1, 2), "long": (1, 2, 3, 4), "full": (1, 2, 3, 4)}
FLAT_ARMS = ("rules", "law", "bayes", "experiment")
FLAT_SEEDS = {
    "smoke": (1,),
    "quick": (1, 2, 3, 4, 5),
    "long": (1, 2, 3, 4),
    "full": (1, 2, 3, 4),
}


@dataclass(frozen=True)
class Task:
    """One run: an arm with a seed from a start, or one of twins."""

    kind: str  # uniform, proportional, reference, flat, twins
    name: str
    seed: int
    arm: Arm
    twin: int | None = None  # its model's seed

    def folder(self, root: Path) -> Path:
        return root / self.kind / f"{self.name}-seed{self.seed}"


def declared(options: argparse.Namespace) -> list[Task]:
    """Every run that was asked for, in the order they are made: a seed at a time."""
    if options.twins:
        pairs = [(pair, half) for pair in range(options.twins) for half in (0, 1)]
        return [Task("twins", "static", 1000 + 2 * p + h, ARMS["static"], p) for p, h in pairs]
    if options.flat:
        names = options.arm or FLAT_ARMS
        seeds = options.seeds or FLAT_SEEDS[options.size]
        return [Task("flat", name, seed, ARMS[name]) for seed in seeds for name in names]
    return list(_arms(options))


def _arms(options: argparse.Namespace) -> Iterator[Task]:
    for seed in options.seeds or SEEDS[options.size]:
        for start in options.start or STARTS:
            for name in options.arm or ARMS:
                if name not in REFERENCES:
                    yield Task(start, name, seed, ARMS[name])
                elif start == STARTS[0] or options.start:
                    yield Task("reference", name, seed, ARMS[name])


def everything(options: argparse.Namespace) -> argparse.Namespace:
    """The same call for all that is declared, and further seeds that were asked for."""
    seeds = (FLAT_SEEDS if options.flat else SEEDS)[options.size]
    further = [seed for seed in options.seeds or () if seed not in seeds]
    changes = {"arm": None, "start": None, "seeds": (*seeds, *further)}
    return argparse.Namespace(**{**vars(options), **changes})


class Bench:
    """The runs of one size below one folder."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.work: Path = options.out / "work"
        self.root: Path = options.out / (options.size + "-unpaced" * options.no_pace)
        self.size: Size = SIZES[options.size]
        self.paced: bool = not options.no_pace
        self.found: Json = real_prepare.prepare(self.work, options.data)
        self.benchmarks = list(self.found["items"]["steering"])

    def carry_out(self, task: Task) -> None:
        """One run from its beginning, or from where it stopped, to its result file."""
        folder = task.folder(self.root)
        done = (folder / "result.json").exists() or self.unavailable(task)
        if done or real_pace.STOPPING.is_set():
            return
        begun = time.monotonic()
        try:
            result = self._run(task, folder)
        except real_runs.RunFailed as error:
            say(f"{task.kind} {task.name} seed {task.seed}: {error}")
            return
        result["seconds"] = time.monotonic() - begun
        real_runs.save(folder / "result.json", result)
        bits = sum(entry["value"] for entry in result["judged"].values()) / len(result["judged"])
        say(f"{task.kind} {task.name} seed {task.seed}: {bits:.4f}, {result['seconds']:.0f} s")

    def unavailable(self, task: Task) -> str:
        """Why a run can't be made with this version of the product; empty where it can."""
        known = task.arm.policy in policy_names()
        return "" if known else f"this version has no policy {task.arm.policy}"

    def _run(self, task: Task, folder: Path) -> Json:
        say(f"{task.kind} {task.name} seed {task.seed} begins")
        searched = self._searched(task.seed) if task.arm.mixture == "search" else {}
        config = self._config(task, searched.get("weights", {}))
        stopped = real_runs.train(folder, config, self.size.every, paced=self.paced)
        result = real_runs.read_run(folder)
        evals = real_arms.evals_section(self.size, self.work / "items", "judging", self.benchmarks)
        return {
            **{"kind": task.kind, "arm": task.name, "seed": task.seed, "every": self.size.every},
            **result,
            "charged": result["experiment_tokens"] + searched.get("tokens", 0),
            "searched": searched,
            "paced": self.paced,
            "trainer_waited_seconds": stopped,
            "judged": real_runs.judge(folder, evals),
        }

    def _config(self, task: Task, searched: Json) -> Json:
        unique = self.found["flat" if task.kind == "flat" else "unique"]
        start = "proportional" if task.kind == "proportional" else "uniform"
        weights = real_arms.first_mixture(task.arm, start, unique, self.size.tokens, searched)
        return real_arms.run_yaml(
            f"{task.kind}-{task.name}-{task.seed}",
            task.arm,
            self.size,
            seed=task.seed,
            weights=weights,
            work=self.work,
            benchmarks=self.benchmarks,
            init_from=self._twin_model(task),
        )

    def _twin_model(self, task: Task) -> Path | None:
        if task.twin is None:
            return None
        folder = self.root / "twins" / f"model-{task.twin}"
        return real_prepare.initial_model(
            folder, self.work / "tokenizer", self.size.model, task.twin
        )

    def _searched(self, seed: int) -> Json:
        """What a search of this seed found, from uniform; its own folder, resumed as runs are."""
        task = Task("uniform", "search", seed, ARMS["static"])
        folder = self.root / "search" / f"seed{seed}"
        return real_runs.search(folder, self._config(task, {}))

    def write_table(self, tasks: list[Task]) -> None:
        """The table of everything declared, as JSON and markdown, and on the screen."""
        results: dict[str, dict[str, dict[int, Json]]] = {}
        missing = []
        for task in tasks:
            file = task.folder(self.root) / "result.json"
            if file.exists():
                by_seed = results.setdefault(task.kind, {}).setdefault(task.name, {})
                by_seed[task.seed] = json.loads(file.read_text())
            else:
                why = self.unavailable(task) or "not run yet"
                missing.append(f"{task.kind} {task.name} seed {task.seed}: {why}")
        table = real_markdown.tables(results)
        name = "-".join(["table", *sorted({"flat", "twins"} & set(results))])
        (self.root / f"{name}.json").write_text(json.dumps({**table, "missing": missing}, indent=1))
        text = real_markdown.markdown(table, missing)
        (self.root / f"{name}.md").write_text(text)
        print(text, flush=True)


def say(line: str) -> None:
    print(f"{time.strftime('%H:%M:%S', time.gmtime())} {line}", file=sys.stderr, flush=True)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of texts, runs, table")
    parser.add_argument("--data", type=Path, help="folder of items; see above")
    parser.add_argument("--size", choices=list(SIZES), default="quick")
    parser.add_argument("--start", action="append", choices=list(STARTS), help="default: both")
    parser.add_argument("--arm", action="append", choices=list(ARMS), help="default: all")
    parser.add_argument("--seeds", type=_seeds, help="as 1,2; default: those declared")
    parser.add_argument("--jobs", type=int, default=1, help="runs side by side")
    parser.add_argument("--flat", action="store_true", help="all sources are the same text")
    parser.add_argument("--twins", type=int, default=0, metavar="N", help="pairs without a change")
    parser.add_argument("--no-pace", action="store_true", help="the trainer never waits")
    parser.add_argument("--table", action="store_true", help="run nothing")
    options = parser.parse_args()
    options.out = options.out.resolve()
    return options


def _seeds(text: str) -> tuple[int, ...]:
    return tuple(int(seed) for seed in text.split(","))


def main() -> None:
    options = parse()
    bench = Bench(options)
    bench.root.mkdir(parents=True, exist_ok=True)
    tasks = declared(options)
    if not options.table:
        for line in real_prepare.describe(bench.found):
            say(line)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: real_pace.STOPPING.set())
        with ThreadPoolExecutor(options.jobs) as pool:
            for _ in pool.map(bench.carry_out, tasks):
                pass
    bench.write_table(declared(everything(options)))


if __name__ == "__main__":
    main()
