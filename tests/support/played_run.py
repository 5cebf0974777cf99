"""A real controller and a trainer made of files, one step at a time, in one process."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import yaml
from typer.testing import CliRunner

from mixloop.cli.app import app
from mixloop.contract import RunPaths
from mixloop.controller import views
from mixloop.controller.config import load_config
from mixloop.controller.journal import queries
from mixloop.controller.loop import daemon
from mixloop.evals.workers import Failure
from mixloop.policies.interface import (
    BenchmarkScore,
    ExperimentResult,
    MergeFit,
    Metric,
    ScoredBranch,
)

_spec = importlib.util.spec_from_file_location(
    "kill_controller", Path(__file__).parent / "kill_controller.py"
)
assert _spec is not None
assert _spec.loader is not None
played = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(played)
FileTrainer, QuickEvaluator = played.FileTrainer, played.QuickEvaluator

POLICY = '''
from mixloop.policies import Hold, Proposal


class Sway:
    """Moves a tenth to and fro, so that every decision asks for something."""

    def decide(self, observation):
        if not observation.in_force:
            return Hold("waiting for the last order")
        now = observation.weights["code"]
        code = now + 0.1 if now < 0.25 else now - 0.1
        rest = 1 - code
        return Proposal({"web": rest * 0.8, "maths": rest * 0.2, "code": code}, f"code {code:.2f}")
'''


def write_store(folder: Path, tokens: int = 10_000) -> None:
    folder.mkdir(parents=True)
    (folder / "tokens.bin").write_bytes(b"\0\0" * tokens)
    header = {"schema": "mixloop/store/1", "tokens": tokens, "documents": 1, "dtype": "uint16"}
    header |= {"vocab_size": 65536, "tokenizer": "t", "fingerprint": "f", "eos_id": 0}
    (folder / "store.json").write_text(json.dumps(header))


def make_run(folder: Path, **changed: Any) -> Path:
    weights = {"web": 0.72, "code": 0.1, "maths": 0.18}
    for name in weights:
        write_store(folder / name)
    (folder / "sway.py").write_text(POLICY)
    data: dict[str, Any] = {
        "run": {"id": "r", "dir": "run"},
        "budget": 24_000,
        "sources": {name: {"path": name, "weight": share} for name, share in weights.items()},
        "evals": {"benchmarks": {"gsm8k": {"data": "packages"}}},
        "policy": {"use": "./sway.py:Sway"},
        "guards": {"max_change": 0.2, "max_epochs": None},
        "tracking": {"enabled": False},
        "controller": {"poll": 0.001},
        "trainer": {"sequence_length": 10, "micro_batch": 8, "poll_every": 2},
        **changed,
    }
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(data))
    return path


class Run:
    """A controller and the trainer of files beside it, one step at a time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        config = load_config(path)
        self.paths = RunPaths(config.run.dir)
        self.trainer = FileTrainer(config)
        self.trainer.advance()
        self.said: list[str] = []
        self.controller = daemon.Controller(config, path.parent, self.said.append)
        self.journal = self.controller.journal

    def settle(self, limit: int = 4000) -> None:
        """Until there is nothing to do but wait for the trainer."""
        for _ in range(limit):
            busy = self.controller.job_state().working
            more = self.controller.step()
            if not more or (not self.controller._busy and not busy):
                return
        raise AssertionError(f"never at rest: {self.said[-5:]}")

    def train(self, looks: int) -> None:
        for _ in range(looks):
            self.trainer.advance()
            self.settle()

    def tell(self, *command: str) -> Any:
        """A command, and what the controller makes of it."""
        result = CliRunner().invoke(
            app, [*command[:1], str(self.path), *command[1:], "--wait", "0"]
        )
        self.settle()
        return result

    def answer(self) -> dict[str, Any]:
        newest = "SELECT id FROM requests ORDER BY taken_at DESC, rowid DESC LIMIT 1"
        request = queries.request(self.journal, self.journal.value(newest))
        assert request is not None
        return request.to_json()

    def history(self) -> list[dict[str, Any]]:
        return views.history(self.journal)

    def in_force(self) -> dict[str, float]:
        status = self.controller.observer.news.status
        assert status is not None
        return dict(status.in_force.weights)


class QuickExperiments:
    """Takes the place of ``ExperimentRunner``: scores by a formula, and keeps nothing on the disk.

    ``fails`` attempts end without a word; of ``held`` ones nothing is told before it is false.
    """

    fails = 0
    held = False

    def __init__(self, log: Path, launcher: Any = "local") -> None:
        self.spec: Any = None
        self.started: list[Any] = []
        self.stopped = 0

    def start(self, spec: Any) -> None:
        assert self.spec is None, "one at a time"
        self.spec = spec
        self.started.append(spec)

    def poll(self) -> Any:
        if self.spec is None or type(self).held:
            return None
        spec, self.spec = self.spec, None
        if type(self).fails:
            type(self).fails -= 1
            return Failure("its process ended with status 1")
        return result_of(spec)

    def stop(self) -> None:
        self.stopped += self.spec is not None
        self.spec = None


def result_of(spec: Any) -> ExperimentResult:
    """What a played experiment comes to: more code, fewer bits per byte."""
    said: dict[str, Any] = {
        "id": spec.id,
        "decision": spec.decision,
        "step": spec.step,
        "tokens": spec.run_tokens,
        "weights": spec.weights,
        "branch_tokens": spec.tokens,
        "schedule": spec.schedule,
        "cost": spec.cost,
    }
    if spec.receipt:  # a twin that stays where it began, while the run gains with every step
        twin = _like_the_run(spec.branches[0], spec.step)
        return ExperimentResult(**said, receipt=True, halfway=twin, branches=(twin,))
    sides = [_scored(weights) for weights in (spec.weights, *spec.branches)]
    fit = MergeFit(weights=dict(spec.branches[0]), gains={"gsm8k": (0.1, 0.01)})
    return ExperimentResult(
        **said,
        design=spec.merge,
        control=sides[0],
        branches=tuple(sides[1:]),
        fits=(fit,) if spec.merge is not None else (),
    )


def _like_the_run(weights: dict[str, float], step: int) -> ScoredBranch:
    """As ``QuickEvaluator`` scores the run at a step."""
    bits = 2 - step / 1000
    items = {f"i{n}": {"bits_per_byte": bits + n / 10, "bytes": 10.0} for n in range(5)}
    metric = Metric(value=bits + 0.2, stderr=0.1, n=5, higher_is_better=False)
    score = BenchmarkScore(metrics={"bits_per_byte": metric}, items=items)
    return ScoredBranch(weights=weights, benchmarks={"gsm8k": score})


def _scored(weights: dict[str, float]) -> ScoredBranch:
    bits = 2 - weights.get("code", 0.0) / 2
    items = {f"i{n}": {"bits_per_byte": bits + n / 10, "bytes": 10.0} for n in range(4)}
    metric = Metric(value=bits + 0.15, stderr=0.06, n=4, higher_is_better=False)
    score = BenchmarkScore(metrics={"bits_per_byte": metric}, items=items)
    return ScoredBranch(weights=weights, benchmarks={"gsm8k": score})
