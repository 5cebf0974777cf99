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
