"""One run of `bench/real.py`: started or resumed, judged, and read."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Any

import yaml
from real_pace import Pace

from mixloop.common.files import write_atomic
from mixloop.contract import RunPaths, read_status
from mixloop.controller import views
from mixloop.controller.config import load_config
from mixloop.controller.decisions import observation_builder
from mixloop.controller.journal import Journal, queries
from mixloop.evals import EvalSettings, Scorecard
from mixloop.evals.workers import evaluate
from mixloop.trainer.run import list_steps

Json = dict[str, Any]


class RunFailed(Exception):  # noqa: N818 - says how a run ended
    """A run or a search ended without its result; the message says where to look."""


def write_yaml(path: Path, config: Json) -> None:
    """Write a run.yaml where it isn't the same already; a run is resumed under its own."""
    text = yaml.safe_dump(config, sort_keys=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        path.write_text(text, encoding="utf-8")
    elif path.read_text("utf-8") != text:
        raise RunFailed(f"{path} was written by another version of this bench; use another --out")


def mixloop(arguments: list[str], log: Path, pace: Pace | None = None) -> None:
    """A command of the product, with its output in a log.

    Raises:
        RunFailed: it ended with another code than 0.
    """
    command = [str(Path(sys.executable).with_name("mixloop")), *arguments]
    quiet = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    with log.open("ab") as stream:
        process = subprocess.Popen(command, stdout=stream, stderr=stream, env=os.environ | quiet)
        with pace.kept(process) if pace is not None else nullcontext():
            code = process.wait()
    if code:
        raise RunFailed(f"mixloop {arguments[0]} ended with {code}; see {log}")


def train(folder: Path, config: Json, every: int, *, paced: bool) -> float:
    """Carry a run out, or on; returns the seconds its trainer was made to wait."""
    file = folder / "run.yaml"
    write_yaml(file, config)
    pace = Pace(folder / "run", every) if paced else None
    mixloop(["run", str(file)], folder / "mixloop.log", pace)
    return pace.stopped_seconds if pace is not None else 0.0


def search(folder: Path, config: Json) -> Json:
    """What a search found: its ``best`` mixture, its verdict, its proxies' training tokens."""
    file, prior = folder / "run.yaml", folder / "search" / "prior.json"
    write_yaml(file, config)
    if not prior.exists():
        mixloop(["search", str(file)], folder / "mixloop.log")
    found = json.loads(prior.read_text())
    return {
        "weights": found["best"],
        "verdict": found["verdict"],
        "surrogate": found["surrogate"],
        "tokens": searched_tokens(found["points"], found["tokens"]),
        "proxies": len(found["points"]),
    }


def searched_tokens(points: list[Json], length: int) -> int:
    """Training tokens of proxies of which halving stopped some at half their length."""
    return sum(length if point["measured"] else length // 2 for point in points)


def judge(folder: Path, evals: Json) -> Json:
    """The last checkpoint's scorecard on the judging items; asked once."""
    card = folder / "judged.json"
    if not card.exists():
        last = max(list_steps(RunPaths(folder / "run").checkpoints).items())[1]
        settings = EvalSettings.model_validate(evals)
        evaluate(last, settings, out=card, log=folder / "judge.log")
    scores = Scorecard.read(card).benchmarks
    return {
        name: {
            "value": score.metrics["bits_per_byte"].value,
            "items": {
                item: [numbers["bits_per_byte"], numbers["bytes"]]
                for item, numbers in score.items.items()
                if "bits_per_byte" in numbers
            },
        }
        for name, score in scores.items()
    }


def read_run(folder: Path) -> Json:
    """What a finished run's own records say: its curve, its orders, its ledger."""
    config = load_config(folder / "run.yaml")
    paths = RunPaths(config.run.dir)
    status = read_status(paths.status).value
    assert status is not None
    with closing(Journal(paths.journal)) as journal:
        return {
            "tokens": status.tokens,
            "drawn": {name: source.tokens for name, source in status.sources.items()},
            "curve": [
                [point["tokens"], mean_bits(point["benchmarks"])]
                for point in views.benchmarks(journal)
            ],
            "items": _items(journal),
            "decisions": [_decision(entry) for entry in views.history(journal)],
            "segments": views.segments(paths, config.trainer.sequence_length),
            "experiment_tokens": experiment_tokens(journal),
        }


def experiment_tokens(journal: Journal) -> int:
    """Training tokens that the run's experiments are charged; 0 before there were experiments."""
    read = getattr(queries, "experiments", None)
    return sum(int(row.charged) for row in read(journal)) if read is not None else 0


def mean_bits(benchmarks: Json) -> float:
    """The mean of the benchmarks' bits per byte."""
    values = [float(metrics["bits_per_byte"]["value"]) for metrics in benchmarks.values()]
    return sum(values) / len(values)


def _items(journal: Journal) -> list[Json]:
    """Per checkpoint and benchmark the steering items' values, to pair checkpoints with."""
    return [
        {
            name: {item: [numbers["bits_per_byte"], numbers["bytes"]]
                   for item, numbers in score.items.items() if "bits_per_byte" in numbers}
            for name, score in evaluation.benchmarks.items()
        }
        for evaluation in observation_builder.evaluations(journal)
    ]  # fmt: skip


def _decision(entry: Json) -> Json:
    kept = ("id", "step", "tokens", "verdict", "reason", "applied_step", "weights_after")
    return {key: entry.get(key) for key in kept}


def save(path: Path, result: Json) -> None:
    """Write a result at once or not at all."""
    write_atomic(path, json.dumps(result).encode())
