"""One run of `bench/real.py`: started or resumed, held in step with its controller, judged, read.

A toy's trainer would be through most of an interval before its checkpoint is scored, while at scale
an interval takes hours and scoring minutes. So the trainer is stopped (SIGSTOP) once it is ``LAG``
of an interval past a checkpoint that is not decided on, and goes on with the decision. The most an
order can be late, and so the outcome, then doesn't depend on how busy the machine is.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import yaml

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

LAG = 0.5  # of an interval between two evaluations
LOOK = 0.1  # seconds between two looks at trainer and journal
LONGEST_STOP = 3600.0  # seconds; a controller that is silent for so long is not waited for
EXPERIMENT = "experiment"  # the verdict of a decision that only asks for one


class RunFailed(Exception):
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


class Pace:
    """Keeps a trainer from running ahead of its controller.

    Args:
        run: The run's folder.
        every: Steps between two evaluations.
    """

    def __init__(self, run: Path, every: int) -> None:
        self.paths, self.lag = RunPaths(run), max(1, round(LAG * every))
        self.stopped_seconds = 0.0

    @contextmanager
    def kept(self, process: subprocess.Popen[bytes]) -> Iterator[None]:
        """While the block runs, the trainer below ``process`` is kept in step."""
        ended = threading.Event()
        thread = threading.Thread(target=self._keep, args=(process, ended), daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def _keep(self, process: subprocess.Popen[bytes], ended: threading.Event) -> None:
        trainer, since = None, None
        while not ended.wait(LOOK):
            trainer = trainer if trainer and _alive(trainer) else self._trainer(process.pid)
            if trainer is None:
                continue
            ahead = self._ahead()
            if ahead and since is None:
                since = time.monotonic()
                _send(trainer, signal.SIGSTOP)
            elif since is not None and (not ahead or time.monotonic() - since > LONGEST_STOP):
                self.stopped_seconds += time.monotonic() - since
                since = None
                _send(trainer, signal.SIGCONT)
        if since is not None and trainer is not None:
            _send(trainer, signal.SIGCONT)

    def _ahead(self) -> bool:
        """Whether the trainer is the lag past a checkpoint that is not decided on."""
        status = read_status(self.paths.status).value
        steps = [step for step in list_steps(self.paths.checkpoints) if step > 0]
        if status is None or not steps or status.step >= _last_step(self.paths):
            return False
        return status.step - max(steps) >= self.lag and max(steps) > self._decided()

    def _decided(self) -> int:
        """The newest step with a decision; one that asked for an experiment is not one yet."""
        if not self.paths.journal.exists():
            return -1
        with closing(Journal(self.paths.journal)) as journal:
            newest = queries.last_decisions(journal, 1)
        waits = not newest or newest[0].verdict == EXPERIMENT
        return -1 if waits else newest[0].step

    def _trainer(self, ancestor: int) -> int | None:
        """The process below ours that carries out this run's job."""
        job = str(self.paths.job)
        for folder in Path("/proc").glob("[0-9]*"):
            words = _command(folder)
            if "mixloop.trainer.train" in words and job in words and _below(folder, ancestor):
                return int(folder.name)
        return None


def _last_step(paths: RunPaths) -> int:
    job = json.loads(paths.job.read_text())
    settings = job["settings"]
    window = settings["sequence_length"] * settings["micro_batch"] * settings["accumulation"]
    return int(job["budget"]) // int(window)


def _command(folder: Path) -> list[str]:
    try:
        return (folder / "cmdline").read_bytes().decode("utf-8", "replace").split("\0")
    except OSError:
        return []


def _below(folder: Path, ancestor: int) -> bool:
    """Whether a process is a descendant of ours; no other is ever signalled."""
    pid = int(folder.name)
    while pid > 1:
        try:
            pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError):
            return False
        if pid == ancestor:
            return True
    return False


def _alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def _send(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass


def train(folder: Path, config: Json, every: int, *, paced: bool) -> float:
    """Carry a run out, or on; returns the seconds its trainer was made to wait."""
    file = folder / "run.yaml"
    write_yaml(file, config)
    pace = Pace(folder / "run", every) if paced else None
    mixloop(["run", str(file)], folder / "mixloop.log", pace)
    return pace.stopped_seconds if pace is not None else 0.0


def search(folder: Path, config: Json) -> Json:
    """What a search found: its ``best`` mixture, its verdict, and the tokens its proxies trained."""
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
    """What a finished run's own records say: its curve, orders with their delays, and its ledger."""
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
    """Training tokens of every branch of the run's experiments, ended or not."""
    read = getattr(queries, "experiments", None)
    if read is None:
        return 0
    return sum(int(row.cost) for row in read(journal))


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
