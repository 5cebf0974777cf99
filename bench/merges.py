"""What merges of experts tell about branches that are really trained.

.venv/bin/python bench/merges.py --work DIR --out DIR [--mixtures 16] [--items 40]

DIR of --work is the `work` folder that bench/real.py prepares (token stores, items). A small Llama
is trained on the uniform mixture of some of its sources. From three of its checkpoints, on the same
windows, with the learning rate going to zero, branches are trained on drawn mixtures (two lengths)
and experts on each source alone (three lengths). Every branch and every merge of the experts at its
mixture is scored on the same items. Printed: the rank agreement of merges with branches, by
checkpoint, by length of branch and of expert, with an interval from resampling the mixtures.

What is measured is appended to OUT/scores.jsonl; a second call goes on where the first ended.
"""

from __future__ import annotations

import os

for _key in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[_key] = "1"
os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}

import argparse
import json
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import rankdata

from mixloop.contract import RunPaths
from mixloop.evals import EvalSettings
from mixloop.evals.checkpoints import write_delta
from mixloop.evals.merging import Merges
from mixloop.evals.scoring import Scorer
from mixloop.trainer.branching import Branch, train_branch
from mixloop.trainer.config import Job
from mixloop.trainer.run import checkpoint_store
from mixloop.trainer.train import train

SOURCES = ("code", "prose", "math-docs", "word-problems", "foreign", "scrambled")
SEQUENCE, MICRO_BATCH = 256, 4
STEP = SEQUENCE * MICRO_BATCH  # tokens
STEPS, WARMUP, DECAY = 400, 20, 80
CHECKPOINTS = (100, 200, 300)  # all before the decay
BRANCHES = (8, 16)  # steps
EXPERTS = (4, 8, 16)
MODEL = {
    "hidden_size": 64,
    "intermediate_size": 176,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
PRECISIONS = ("float32", "bfloat16", "float16")
RESAMPLES = 2000

Losses = dict[str, float]


def job_of(work: Path, out: Path, seed: int) -> Job:
    """The run that all branches start from."""
    return Job.model_validate(
        {
            "run": "merges",
            "dir": str(out / "run"),
            "seed": seed,
            "budget": STEPS * STEP,
            "sources": {
                name: {"path": str(work / "stores" / name), "weight": 1 / len(SOURCES)}
                for name in SOURCES
            },
            "settings": {
                "model": MODEL,
                "sequence_length": SEQUENCE,
                "micro_batch": MICRO_BATCH,
                "learning_rate": 1e-3,
                "warmup": WARMUP * STEP,
                "decay": DECAY * STEP,
                "threads": 1,
                "device": "cpu",
                "precision": "fp32",
                "checkpoint_every": 100 * STEP,
            },
        }
    )


def settings_of(work: Path, items: int) -> EvalSettings:
    """The steering items, bits per byte of their gold answers alone."""
    folders = sorted((work / "items" / "steering").iterdir())
    asked = {
        folder.name: {
            "items": items,
            "shots": 0,
            "generate_items": 0,
            "data": [str(folder / "test.jsonl")],
        }
        for folder in folders
    }
    return EvalSettings.model_validate({"threads": 1, "benchmarks": asked})


def draw_mixtures(number: int, seed: int) -> list[dict[str, float]]:
    """Half of them near corners and edges of the simplex, half in its middle."""
    rng = np.random.default_rng(seed)
    drawn = [
        rng.dirichlet(np.full(len(SOURCES), 0.4 if index % 2 else 2.0)) for index in range(number)
    ]
    return [dict(zip(SOURCES, map(float, weights), strict=True)) for weights in drawn]


class Scores:
    """What was measured, by (kind, step, lengths, mixture); a file that is only appended to."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._found: dict[tuple[Any, ...], Losses] = {}
        for line in path.read_text("utf-8").splitlines() if path.exists() else []:
            entry = json.loads(line)
            self._found[tuple(entry["key"])] = entry["bits_per_byte"]

    def of(self, *key: Any) -> Losses | None:
        return self._found.get(key)

    def must(self, *key: Any) -> Losses:
        return self._found[key]

    def measure(self, measure: Callable[[], Losses], *key: Any) -> None:
        if key in self._found:
            return
        began = time.monotonic()
        self._found[key] = measure()
        entry = {"key": key, "bits_per_byte": self._found[key]}
        entry |= {"seconds": round(time.monotonic() - began, 1)}
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")


class Bench:
    """Trains, merges and scores what is not measured yet."""

    def __init__(self, work: Path, out: Path, items: int, mixtures: int, seed: int) -> None:
        out.mkdir(parents=True, exist_ok=True)
        self.job = job_of(work, out, seed)
        self.settings = settings_of(work, items)
        self.mixtures = draw_mixtures(mixtures, seed)
        self.scores = Scores(out / "scores.jsonl")
        self._scorer = Scorer(self.settings)
        self._scratch = out / "scratch"

    def checkpoint(self, step: int) -> Path:
        return RunPaths(self.job.dir).checkpoints / checkpoint_store.folder_name(step)

    def run(self) -> None:
        if not self.checkpoint(CHECKPOINTS[-1]).is_dir():
            assert train(self.job) == 0
        for step in CHECKPOINTS:
            for length in BRANCHES:
                for index, mixture in enumerate(self.mixtures):
                    self._score_branch(step, length, index, mixture)
            for length in EXPERTS:
                self._score_merges(step, length)
        self._score_precisions()

    def _score_branch(self, step: int, length: int, index: int, mixture: Losses) -> None:
        key = ("branch", step, length, index)
        if self.scores.of(*key) is None:
            folder = self._train(step, length, mixture)
            self.scores.measure(lambda: self._losses(folder), *key)

    def _score_merges(self, step: int, length: int) -> None:
        keys = [("merge", step, length, index) for index in range(len(self.mixtures))]
        if all(self.scores.of(*key) is not None for key in keys):
            return
        deltas = {name: self._scratch / f"{name}.safetensors" for name in SOURCES}
        for name, delta in deltas.items():
            write_delta(self.checkpoint(step), self._train(step, length, {name: 1.0}), delta)
        with closing(Merges(self.checkpoint(step), deltas, self.settings)) as merges:
            for key, mixture in zip(keys, self.mixtures, strict=True):
                self.scores.measure(lambda mixture=mixture: merges.losses(mixture), *key)

    def _score_precisions(self) -> None:
        """Experts rebuilt from deltas that were stored in each way."""
        step, length = CHECKPOINTS[1], EXPERTS[-1]
        for name in SOURCES:
            if self.scores.of("stored", PRECISIONS[-1], name) is not None:
                continue
            expert = self._train(step, length, {name: 1.0})
            deltas = {dtype: self._scratch / f"{dtype}.safetensors" for dtype in PRECISIONS}
            for dtype, delta in deltas.items():
                write_delta(self.checkpoint(step), expert, delta, dtype)
            with closing(Merges(self.checkpoint(step), deltas, self.settings)) as merges:
                for dtype in PRECISIONS:
                    at = {dtype: 1.0}
                    self.scores.measure(lambda at=at: merges.losses(at), "stored", dtype, name)

    def _train(self, step: int, length: int, mixture: Losses) -> Path:
        folder = self._scratch / "trained"
        self._scratch.mkdir(exist_ok=True)
        train_branch(Branch(self.job, self.checkpoint(step), mixture, length * STEP), folder)
        return folder

    def _losses(self, folder: Path) -> Losses:
        card = self._scorer.score(folder)
        self._scorer.release()
        return {n: score.metrics["bits_per_byte"].value for n, score in card.benchmarks.items()}

    def mean_bits(self, kind: str, step: int, length: int) -> np.ndarray:
        """By mixture the mean over benchmarks."""
        found = [self.scores.must(kind, step, length, i) for i in range(len(self.mixtures))]
        return np.array([np.mean(list(losses.values())) for losses in found])

    def rows(self) -> Iterator[tuple[str, list[str]]]:
        """A row of the table for each length of branch: what is compared, by length of expert.

        Checkpoints that are not measured whole are left out.
        """
        last = ("merge", EXPERTS[-1], len(self.mixtures) - 1)
        for step in CHECKPOINTS:
            if self.scores.of(last[0], step, *last[1:]) is None:
                continue
            for length in BRANCHES:
                trained = self.mean_bits("branch", step, length)
                other = self.mean_bits("branch", step, BRANCHES[length == BRANCHES[0]])
                told = [self.mean_bits("merge", step, expert) for expert in EXPERTS]
                cells = [agreement(trained, merged) for merged in told]
                yield (
                    f"{step} | {length} | {trained.std(ddof=1):.4f}",
                    [*cells, agreement(trained, other), chosen(trained, told[-1])],
                )

    def precisions(self) -> Iterator[str]:
        """What half precision of an expert's delta costs, in bits per byte of its benchmarks."""
        done = [n for n in SOURCES if self.scores.of("stored", PRECISIONS[-1], n) is not None]
        exact = [self.scores.must("stored", "float32", name) for name in done]
        for dtype in PRECISIONS[1:] if done else ():
            found = [self.scores.must("stored", dtype, name) for name in done]
            off = [abs(a[n] - b[n]) for a, b in zip(exact, found, strict=True) for n in a]
            yield f"delta in {dtype}: off by {np.mean(off):.1e} in the mean, {max(off):.1e} at most"


def spearman(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.corrcoef(rankdata(one), rankdata(other))[0, 1])


def agreement(one: np.ndarray, other: np.ndarray) -> str:
    """Spearman's rank correlation with its 95% interval over resampled mixtures."""
    rng = np.random.default_rng(0)
    draws = (rng.integers(len(one), size=len(one)) for _ in range(RESAMPLES))
    resampled = [spearman(one[draw], other[draw]) for draw in draws]
    low, high = np.nanpercentile(resampled, [2.5, 97.5])
    return f"{spearman(one, other):.2f} ({low:.2f} to {high:.2f})"


def chosen(trained: np.ndarray, merged: np.ndarray) -> str:
    """The rank, among really trained ones, of the mixture whose merge is best."""
    return str(int(rankdata(trained)[merged.argmin()]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--mixtures", type=int, default=16)
    parser.add_argument("--items", type=int, default=40)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--table", action="store_true", help="of what is there; measure nothing")
    args = parser.parse_args()
    bench = Bench(args.work, args.out, args.items, args.mixtures, args.seed)
    if not args.table:
        bench.run()
    head = [f"experts of {length}" for length in EXPERTS]
    columns = ["checkpoint", "branch", "sd of branches", *head, "other branch", "rank of pick"]
    print("| " + " | ".join(columns) + " |\n" + "|---" * len(columns) + "|")
    for label, cells in bench.rows():
        print("| " + " | ".join([label, *cells]) + " |")
    print(*bench.precisions(), sep="\n")


if __name__ == "__main__":
    main()
