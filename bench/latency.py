"""How long a decision takes, from a checkpoint to its mixture's first batch, and what it costs.

    .venv/bin/python bench/latency.py --tree before=DIR --tree after=. [--repeats 3] [--out DIR]

Every tree is a checkout of this repository. In each `mixloop control` runs the same run.yaml, with
the defaults of whatever bears on the delay and a policy that changes the mixture at every
evaluation, beside a loop on `MixtureLoader` whose steps take ``SECONDS`` on no processor of this
machine, as on a GPU. The loop notes when each step began. The trees run side by side, so that a
busy machine is as busy for both. Then the reference trainer trains a toy in each tree in turn:
processor seconds of its own, paired.
"""

from __future__ import annotations

import os

for _key in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[_key] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"

import argparse
import json
import random
import resource
import shutil
import sqlite3
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import yaml

Json = dict[str, Any]

SEQUENCE, ROWS = 128, 8
STEP = SEQUENCE * ROWS  # tokens
SECONDS = 0.1  # of a step
EVERY, EVALUATIONS = 233, 6  # steps between checkpoints, not in time with polls; checkpoints
TRAINED = 150  # steps of the reference trainer

MODEL = {
    "hidden_size": 64,
    "intermediate_size": 192,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}

POLICY = """
from mixloop.policies import Hold, Proposal


class Sway:
    def decide(self, observation):
        if not observation.in_force:
            return Hold("waiting for the last order")
        code = 0.6 if observation.weights["code"] < 0.5 else 0.4
        return Proposal({"code": code, "sums": 1 - code}, "to and fro")
"""


def _texts() -> Iterator[tuple[str, list[str]]]:
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    yield "code", [file.read_text("utf-8", errors="ignore") for file in files]
    draw = random.Random(0)
    pairs = [(draw.randrange(1000), draw.randrange(1000)) for _ in range(40_000)]
    lines = [f"{a} plus {b} is {a + b}, and {a} times {b} is {a * b}." for a, b in pairs]
    yield "sums", ["\n".join(lines[i : i + 16]) for i in range(0, len(lines), 16)]


def prepare(work: Path, tree: Path) -> None:
    """Token stores, vocabulary and policy; by the first tree, so that later ones read them too."""
    from mixloop.trainer.sources import train_tokenizer

    texts, words = dict(_texts()), work / "tokenizer"
    train_tokenizer((t[:2000] for ts in texts.values() for t in ts[:200]), words, 1024)
    for name, documents in texts.items():
        path = work / f"{name}.jsonl"
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
        out = str(work / "stores" / name)
        with mixloop(
            tree, "prepare", str(path), "--out", out, "--tokenizer", str(words)
        ) as process:
            if process.wait() != 0:
                raise RuntimeError(f"{tree}: mixloop prepare ended with {process.returncode}")
    _model(work / "model", work / "tokenizer")
    (work / "sway.py").write_text(POLICY)


def _model(folder: Path, tokenizer: Path) -> None:
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    words = AutoTokenizer.from_pretrained(tokenizer)
    config = LlamaConfig(vocab_size=len(words), max_position_embeddings=1024, **MODEL)
    LlamaForCausalLM(config).save_pretrained(folder)
    words.save_pretrained(folder)


def mixloop(tree: Path, *arguments: str, **options: Any) -> subprocess.Popen[bytes]:
    """The `mixloop` command of a tree."""
    room = "mixloop.cli.app" if (tree / "cli").is_dir() else "mixloop.controller.cli"
    start = f"import sys; from {room} import main; sys.exit(main())"
    command = [sys.executable, "-c", start, *arguments]
    return subprocess.Popen(command, env=_environment(tree), **options)


def _environment(tree: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(tree / ".dev")}


def run_yaml(work: Path) -> Json:
    """The run; whatever bears on the delay is left at its default."""
    stores = work / "stores"
    asked = {"data": "packages", "shots": 0, "items": 40, "generate_items": 0}
    return {
        "run": {"id": "latency", "dir": "run", "seed": 1},
        "budget": EVERY * STEP * EVALUATIONS + EVERY * STEP // 2,
        "sources": {name: {"path": str(stores / name), "weight": 0.5} for name in ("code", "sums")},
        "checkpoints": {"layout": "hf-trainer"},
        "evals": {
            "every": EVERY * STEP * 9 // 10,
            "benchmarks": dict.fromkeys(("mmlu", "gsm8k", "math"), asked),
            "threads": 1,
        },
        "policy": {"use": str(work / "sway.py") + ":Sway"},
        "guards": {"max_epochs": None, "max_change": 0.3},
        "tracking": {"enabled": False},
        "trainer": {"sequence_length": SEQUENCE, "micro_batch": ROWS},
    }


def loop(path: Path, model: Path) -> None:
    """Another's training loop, in a process of a tree: steps, reports and checkpoints."""
    from mixloop.trainer import MixtureLoader

    changes: list[tuple[int, float]] = []
    loader = MixtureLoader.from_config(
        path, on_change=lambda change: changes.append((change.step, time.time()))
    )
    checkpoints = loader.job.dir / "checkpoints"
    begun, complete, busy, before = [], {}, [], time.process_time()
    for _ in loader:
        begun.append(time.time())
        time.sleep(SECONDS)
        loader.report(loss=2.0, lr=1e-3, phase="stable")
        step = len(begun)
        if step % EVERY == 0:
            folder = checkpoints / f"checkpoint-{step}"
            shutil.copytree(model, folder)
            mark = getattr(loader, "mark_checkpoint", None) or loader.saved
            mark(folder)
            complete[step] = time.time()
            before = time.process_time()
        elif step % 100 == 0:  # not across a checkpoint
            busy.append((time.process_time() - before) / min(step % EVERY, 100))
            before = time.process_time()
    loader.close()
    noted = {"begun": begun, "complete": complete, "busy": busy, "changes": changes}
    (loader.job.dir / "noted.json").write_text(json.dumps(noted))


def run(tree: Path, folder: Path, work: Path) -> Json:
    """One run of a tree, to its end; what it measured."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(run_yaml(work)))
    (folder / "run").mkdir()
    looping = [sys.executable, __file__, "--loop", str(path), str(work / "model")]
    with (folder / "said.log").open("wb") as log:
        output: Json = {"stdout": log, "stderr": log, "cwd": folder}
        with mixloop(tree, "control", str(path), **output) as controller:
            try:
                subprocess.run(looping, env=_environment(tree), check=True, **output)
                controller.wait(120)
            except BaseException:
                controller.terminate()
                raise
    return measured(folder / "run")


STAGES = ("noticed", "scored", "decided", "published", "first batch")


def measured(run: Path) -> Json:
    """Each intervention's delays, and processor seconds of the loop's process a step."""
    noted = json.loads((run / "noted.json").read_text())
    with closing(sqlite3.connect(run / "journal.db")) as journal:
        rows = journal.execute(
            "SELECT d.step, c.seen_at, e.finished_at, d.decided_at, o.published_at, o.applied_step"
            " FROM decisions d JOIN orders o ON o.generation = d.generation"
            " JOIN checkpoints c ON c.step = d.step JOIN evaluations e ON e.step = d.step"
            " WHERE o.applied_step IS NOT NULL ORDER BY d.step"
        ).fetchall()
    found, changed = [], dict(noted["changes"])
    for step, *stamps, applied in rows:
        complete = noted["complete"][str(step)]
        ends = [*map(_seconds, stamps), changed[applied]]
        decided = sum(begun <= ends[2] for begun in noted["begun"]) - 1  # the step at hand
        found.append(
            {
                "stages": dict(zip(STAGES, np.diff([complete, *ends]).tolist(), strict=True)),
                "to_decision": ends[2] - complete,
                "seconds": ends[-1] - complete,
                "steps": applied - step,
                "steps_from_decision": applied - decided,
            }
        )
    return {"interventions": found, "busy": statistics.median(noted["busy"])}


def _seconds(stamp: str) -> float:
    return datetime.fromisoformat(stamp).timestamp()


def train(tree: Path, folder: Path, work: Path) -> float:
    """Processor seconds of the reference trainer on a toy, start and end included."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    config = run_yaml(work) | {"budget": TRAINED * STEP, "checkpoints": {}}
    config["trainer"] |= {"model": MODEL, "tokenizer": str(work / "tokenizer"), "threads": 1}
    config["trainer"] |= {"device": "cpu", "precision": "fp32"}
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(config))
    before = _children()
    with (
        (folder / "said.log").open("wb") as log,
        mixloop(tree, "train", str(path), stdout=log, stderr=log, cwd=folder) as process,
    ):
        if process.wait() != 0:
            raise RuntimeError(f"{tree}: mixloop train failed: {folder}/said.log")
    return _children() - before


def _children() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def table(
    results: Mapping[str, Sequence[Json]], trained: Mapping[str, Sequence[float]]
) -> Iterator[str]:
    """Medians over all interventions, with the quartiles."""
    yield f"| | {' | '.join(results)} |"
    yield "|---" * (1 + len(results)) + "|"
    # the first one waits for the evaluation worker's imports
    first = {
        n: [r for run in runs for r in run["interventions"][1:]] for n, runs in results.items()
    }
    yield f"| interventions | {' | '.join(str(len(rows)) for rows in first.values())} |"
    for stage in STAGES:
        cells = [_spread([r["stages"][stage] for r in rows]) for rows in first.values()]
        yield f"| s until {stage} | {' | '.join(cells)} |"
    for key, text in (
        ("to_decision", "s from checkpoint to decision"),
        ("steps_from_decision", "steps from decision to first batch"),
        ("seconds", "**s from checkpoint to first batch**"),
        ("steps", "**steps from checkpoint to first batch**"),
    ):
        cells = [_spread([r[key] for r in rows]) for rows in first.values()]
        yield f"| {text} | {' | '.join(cells)} |"
    cells = [_spread([1e6 * r["busy"] for r in runs]) for runs in results.values()]
    yield f"| the loop's own processor time, us a step of {SECONDS} s | {' | '.join(cells)} |"
    if not all(trained.values()):
        return
    cells = [_spread([1e3 * seconds / TRAINED for seconds in runs]) for runs in trained.values()]
    yield f"| reference trainer, processor ms a step, start included | {' | '.join(cells)} |"
    base, *others = trained.items()
    for name, runs in others:
        longer = [100 * (after / before - 1) for before, after in zip(base[1], runs, strict=True)]
        yield f"| {name}'s over {base[0]}'s, paired, % | | {_spread(longer)} |"


def _spread(values: Sequence[float]) -> str:
    low, middle, high = np.quantile(values, (0.25, 0.5, 0.75))
    return f"{middle:.2f} ({low:.2f} to {high:.2f})"


def main() -> None:
    """Run the trees side by side and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tree", action="append", metavar="NAME=DIR")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--trainings", type=int, default=3)
    parser.add_argument("--out", type=Path, help="keeps the runs; default: a temporary folder")
    parser.add_argument("--loop", type=Path, nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.loop:
        loop(*options.loop)
        return
    trees = {name: Path(path).resolve() for name, path in (t.split("=", 1) for t in options.tree)}
    with tempfile.TemporaryDirectory() as temporary:
        out = (options.out or Path(temporary)).resolve()
        work = out / "work"
        if not (work / "sway.py").exists():
            work.mkdir(parents=True, exist_ok=True)
            prepare(work, next(iter(trees.values())))
        results: dict[str, list[Json]] = {name: [] for name in trees}
        trained: dict[str, list[float]] = {name: [] for name in trees}
        for repeat in range(max(options.repeats, options.trainings)):
            names = list(trees)[:: 1 if repeat % 2 == 0 else -1]  # each begins half of the times
            if repeat < options.repeats:
                with ThreadPoolExecutor(len(names)) as pool:
                    begun = {
                        n: pool.submit(run, trees[n], out / f"{n}-{repeat}", work) for n in names
                    }
                for name, future in begun.items():
                    results[name].append(future.result())
            if repeat < options.trainings:
                for name in names:
                    trained[name].append(train(trees[name], out / f"{name}-trained", work))
            print(f"repeat {repeat}", *table(results, trained), sep="\n", flush=True)
        (out / "latency.json").write_text(json.dumps([results, trained], indent=1))


if __name__ == "__main__":
    main()
