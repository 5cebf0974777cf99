"""The whole loop, real in every part: trainer, evaluation worker, policy, controller, MLflow."""

from __future__ import annotations

import json
import signal
import sqlite3
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from mixloop.contract import RunPaths, Status, read_schedule, read_status
from mixloop.trainer.prepare import prepare
from mixloop.trainer.sources import train_tokenizer

STEP_TOKENS = 64 * 4


def mixloop(*arguments: str | Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "mixloop.cli.app", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def ask(*arguments: str | Path) -> Any:
    """The JSON a command prints."""
    with mixloop(*arguments, "--json") as process:
        text, _ = process.communicate(timeout=60)
    assert process.returncode == 0, text
    return json.loads(text)


@pytest.fixture(scope="module")
def run_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on two sources of standard-library text that takes the better part of a minute."""
    folder = tmp_path_factory.mktemp("loop")
    library = Path(sysconfig.get_path("stdlib"))
    texts = {"code": ["argparse.py", "ast.py"], "prose": ["pydoc_data/topics.py"]}
    for name, files in texts.items():
        text = "\n".join((library / file).read_text("utf-8") for file in files)
        (folder / f"{name}.txt").write_text(text[:300_000])
    corpus = [(folder / f"{name}.txt").read_text() for name in texts]
    tokenizer = train_tokenizer(corpus, folder / "tokenizer", 512)
    for name in texts:
        prepare([str(folder / f"{name}.txt")], folder / name, str(tokenizer))
    rules = {
        "interventions": [
            {
                "name": "more-code",
                "when": {"level": {"benchmark": "humaneval", "above": 0.1}},
                "move": {"to": "code", "from": "prose", "step": 0.2, "cap": 0.5},
                "cooldown": "1 evaluation",
            }
        ]
    }
    settings = {"data": "packages", "generate_items": 0}
    model = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    model |= {"num_attention_heads": 2}
    config = {
        "run": {"id": "loop", "dir": "run", "seed": 5},
        "budget": 1200 * STEP_TOKENS,
        "sources": {
            "prose": {"path": "prose", "weight": 0.9},
            "code": {"path": "code", "weight": 0.1},
        },
        # all of them: what is tested is that retention spares what waits, however slow the machine
        "evals": {
            "threads": 1,
            "backlog": "all",
            "benchmarks": {"humaneval": {**settings, "items": 20}},
        },
        "policy": {"use": "rules", "with": rules},
        "guards": {"max_change": 0.3, "max_epochs": None},
        "controller": {"poll": 0.2},
        "trainer": {
            "model": {**model, "max_position_embeddings": 512},
            "sequence_length": 64,
            "micro_batch": 4,
            "checkpoint_every": 200 * STEP_TOKENS,
            "poll_every": 10,
            "status_every": 5,
            "threads": 1,
            "keep": 3,
        },
    }
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


@pytest.fixture(scope="module")
def finished(run_file: Path) -> dict[str, Any]:
    """The run, with its controller killed once it has changed the mixture, and started again.

    The trainer is stopped while the controller comes to its first order: however fast the one and
    slow the other, the order meets a run that goes on.
    """
    paths = RunPaths(run_file.parent / "run")
    with mixloop("train", run_file) as trainer, mixloop("control", run_file) as first:
        try:
            wait_for(paths, lambda status: status.step >= 210)
            trainer.send_signal(signal.SIGSTOP)
            wait_for_order(paths)
            trainer.send_signal(signal.SIGCONT)
            changed = wait_for(paths, lambda status: status.in_force.generation >= 1)
            first.send_signal(signal.SIGKILL)
            first.wait()
            with mixloop("control", run_file) as second:
                said, _ = second.communicate(timeout=200)
            assert second.returncode == 0, said
            trainer.communicate(timeout=100)
            assert trainer.returncode == 0
        finally:
            trainer.kill()
            first.kill()
    return {"pid": changed.pid, "trainer": trainer.pid, "paths": paths, "said": said}


def wait_for(paths: RunPaths, holds: Callable[[Status], bool], seconds: float = 150) -> Status:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        status = read_status(paths.status).value
        if status is not None and holds(status):
            return status
        time.sleep(0.05)
    raise AssertionError(f"not within {seconds} seconds: {read_status(paths.status).value}")


def wait_for_order(paths: RunPaths, seconds: float = 150) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if paths.mixture.exists() and json.loads(paths.mixture.read_text())["generation"] >= 1:
            return
        time.sleep(0.05)
    raise AssertionError(f"no order within {seconds} seconds")


def test_the_trainer_went_on_as_one_process(finished: dict[str, Any]) -> None:
    status = read_status(finished["paths"].status).value
    assert status is not None
    assert status.finished
    assert status.incarnation == 1
    assert status.pid == finished["pid"] == finished["trainer"]
    assert status.step == 1200


def test_schedule_status_journal_and_mlflow_agree_on_where_orders_took_effect(
    finished: dict[str, Any],
) -> None:
    paths: RunPaths = finished["paths"]
    history = ask("history", paths.dir)
    journal = {e["generation"]: e["applied_step"] for e in history if e["generation"]}
    status = read_status(paths.status).value
    assert status is not None
    segments = read_schedule(paths.schedule).segments
    recorded = {s.generation: s.step for s in segments if s.generation}
    # on a slow machine the last order can fall behind the last step: it never takes effect
    schedule = {generation: step for generation, step in recorded.items() if step <= status.step}
    assert len(schedule) >= 1
    assert journal == {generation: schedule.get(generation) for generation in recorded}
    last = max(schedule)
    assert (status.in_force.generation, status.in_force.step) == (last, schedule[last])
    database = sqlite3.connect(paths.dir / "mlflow.db")
    rows = database.execute("SELECT step, value FROM metrics WHERE key = 'order/applied_step'")
    assert sorted(rows.fetchall()) == sorted(
        (step * STEP_TOKENS, float(step)) for step in schedule.values()
    )
    assert database.execute("SELECT COUNT(*) FROM runs").fetchone() == (1,)
    database.close()


def test_every_checkpoint_is_scored_once_though_retention_keeps_three(
    finished: dict[str, Any],
) -> None:
    paths: RunPaths = finished["paths"]
    database = sqlite3.connect(paths.journal)
    rows = database.execute("SELECT step, state FROM evaluations ORDER BY step").fetchall()
    database.close()
    assert rows == [(step, "scored") for step in range(200, 1201, 200)]
    assert len(list(paths.checkpoints.iterdir())) <= 5
    status = ask("status", paths.dir)
    humaneval = status["benchmarks"]["humaneval"]
    assert humaneval["metrics"]["bits_per_byte"]["n"] > 10
    assert status["tracking"]["waiting"] == 0


def test_history_and_explain_answer_without_mlflow(finished: dict[str, Any]) -> None:
    paths: RunPaths = finished["paths"]
    history = ask("history", paths.dir)
    asked = {"id", "step", "tokens", "verdict", "policy", "reason", "evidence", "weights_before"}
    asked |= {"weights_proposed", "weights_after", "guards", "generation", "applied_step"}
    assert all(asked | {"outcome"} <= set(entry) for entry in history)
    first = next(entry for entry in history if entry["verdict"] == "intervene")
    assert first["weights_after"]["code"] == pytest.approx(0.3)
    assert "humaneval bits_per_byte" in first["reason"]
    assert first["evidence"]["rule"] == "more-code"
    assert {note["guard"] for note in first["guards"]} >= {"dwell", "trust region", "epoch ledger"}
    assert first["outcome"]["benchmarks"]["humaneval"]["stderr"] > 0
    with mixloop("explain", paths.dir, first["id"]) as process:
        text, _ = process.communicate(timeout=60)
    for part in ("Why", "Evidence", "Guards", "trust region", "Applied", "step", "gain"):
        assert part in text
