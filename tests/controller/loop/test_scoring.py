"""What has no score is said: at once, after three in a row, and whole in the last line."""

from __future__ import annotations

import json
import time
from collections.abc import Container
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from mixloop.cli.app import app
from mixloop.controller.config import load_config
from mixloop.controller.loop import daemon, scoring
from mixloop.controller.views import Watcher
from mixloop.controller.watch.view import build
from mixloop.evals import BenchmarkScore, Scorecard
from mixloop.evals.workers import Failure

WHY = "can't be loaded: no tokenizer"


@pytest.fixture
def blind(play: Any, played_run: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Starts a played run whose checkpoints of some steps give no score."""

    def start(steps: Container[int], **changed: Any) -> Any:
        class Blind(played_run.QuickEvaluator):  # type: ignore[misc]
            def poll(self) -> Scorecard | None:
                card: Scorecard | None = super().poll()
                if card is None or card.step not in steps:
                    return card
                missing = BenchmarkScore(status="missing", reason=f"{card.checkpoint}: {WHY}")
                card = card.model_copy(update={"benchmarks": {"gsm8k": missing}})
                card.write(Path(card.checkpoint).parents[1] / "scorecards" / "blind.json")
                return card

        monkeypatch.setattr(scoring, "Evaluator", Blind)
        return play(**changed)

    return start


def ask(run: Any, *command: str) -> str:
    result = CliRunner().invoke(app, [command[0], str(run.path), *command[1:]])
    assert result.exit_code == 0, result.output
    return " ".join(result.output.split())


def finish(run: Any) -> str:
    """The line with which the run ends."""
    while run.controller.step():
        run.trainer.advance()
    return str(run.said[-1])


def test_nothing_scored_is_told_whole_in_the_last_line(blind: Any) -> None:
    run = blind(range(1000), budget=8_000)
    last = finish(run)
    assert last == (
        f"the run has ended; none of 5 checkpoints is scored in full; missing at "
        f"steps 20, 40, 60, 80, 100: gsm8k: {WHY}"
    )


def test_what_is_missing_is_counted_by_its_reason(blind: Any) -> None:
    last = finish(blind({20, 60}, budget=8_000))
    assert last == (
        f"the run has ended; 3 of 5 checkpoints are scored in full; missing at "
        f"steps 20, 60: gsm8k: {WHY}"
    )


def test_evaluations_that_fail_are_told_likewise(
    play: Any, played_run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Dead(played_run.QuickEvaluator):  # type: ignore[misc]
        def poll(self) -> Failure | None:
            return None if super().poll() is None else Failure("the worker died")

    monkeypatch.setattr(scoring, "Evaluator", Dead)
    evals = {"benchmarks": {"gsm8k": {"data": "packages"}}, "backlog": "all"}
    run = play(budget=8_000, evals=evals)
    last = finish(run)
    assert last.endswith("missing at steps 20, 40, 60, 80, 100: the worker died")
    told = "no score at steps 20, 40, 60, so the policy sees nothing: the worker died"
    assert run.said.count(told) == 1


def test_a_run_without_a_checkpoint_says_where_it_looked(play: Any, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    run = play(budget=4_000, checkpoints={"layout": "hf-trainer", "dir": "out"})
    assert (
        finish(run) == f"the run has ended; nothing is scored: no checkpoint was found in {folder}"
    )


def test_what_is_no_whole_checkpoint_is_told(play: Any, tmp_path: Path) -> None:
    folder = tmp_path / "run" / "checkpoints"
    (folder / "step-00000030").mkdir(parents=True)
    assert finish(play(budget=4_000)) == (
        "the run has ended; every checkpoint is scored; no whole checkpoint in "
        f"{folder} at step 30: no manifest.json"
    )


def test_what_another_loop_left_out_of_its_checkpoints_is_told(play: Any, tmp_path: Path) -> None:
    files = {20: ["model.pt"], 40: ["model.pt"], 60: ["config.json"], 80: ["config.json"]}
    files[80] += ["model.safetensors"]
    for step, names in files.items():
        folder = tmp_path / "out" / f"checkpoint-{step}"
        folder.mkdir(parents=True)
        for name in names:
            (folder / name).touch()
    run = play(budget=4_000, checkpoints={"layout": "hf-trainer", "dir": "out"})
    assert finish(run) == (
        f"the run has ended; nothing is scored: no whole checkpoint in {tmp_path / 'out'} at steps "
        "20, 40: no config.json; at step 60: no weights in safetensors; at step 80: no mixloop.json"
    )


def test_a_run_that_is_scored_says_so(play: Any, tmp_path: Path) -> None:
    run = play(budget=4_000)
    assert finish(run) == "the run has ended; every checkpoint is scored"
    told = list(run.said)
    run.controller.close()
    run.controller = daemon.Controller(load_config(run.path), tmp_path, run.said.append)
    assert finish(run) == told[-1], "a controller that finds it closed says so too"
    assert run.said.count(told[-1]) == 2


def test_a_policy_that_sees_nothing_says_so_once_and_when_it_sees_again(blind: Any) -> None:
    run = blind({40, 60, 80, 100})
    told = f"no score at steps 40, 60, 80, so the policy sees nothing: gsm8k: {WHY}"
    run.train(12)  # checkpoints at 20, 40 and 60
    assert told not in run.said
    assert json.loads(ask(run, "status", "--json"))["unscored"] is None
    run.train(8)
    assert run.said.count(told) == 1
    assert json.loads(ask(run, "status", "--json"))["unscored"]["steps"] == [40, 60, 80]
    assert told in ask(run, "status")
    assert told in build(Watcher(run.paths, time.monotonic).look()).warnings
    alarm = json.loads(ask(run, "report", "--json"))["alarms"][-1]
    assert (alarm["kind"], alarm["what"], alarm["n"]) == ("unscored", f"gsm8k: {WHY}", 1)
    run.train(4)
    assert sum("sees nothing" in line for line in run.said) == 1
    assert "the policy sees scores again" in run.said
    assert "sees nothing" not in ask(run, "status")
