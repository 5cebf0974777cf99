"""Receipts from an intervention to what people and guards read; the twins are played."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from typer.testing import CliRunner

from mixloop.cli.app import app
from mixloop.contract import read_holds
from mixloop.controller.core import mlflow_entries
from mixloop.controller.decisions import observation_builder
from mixloop.controller.journal import queries
from mixloop.controller.loop import experiment_jobs, scoring
from mixloop.controller.report import page as report
from mixloop.tools.simulate.backtest import recorded

ONCE = """
from mixloop.policies import Experiment, Hold, Proposal

class Once:
    '''Moves code to a half at step {at}; asks for an experiment at step {asks}.'''

    def decide(self, seen):
        step = seen.evaluations[-1].step
        if step == {at} and not seen.interventions():
            return Proposal({{"web": 0.3, "maths": 0.2, "code": 0.5}}, "more code")
        if step >= {asks} and not seen.experiments:
            return Experiment([{{"code": 1.0}}], 80, "what is code worth?")
        return Hold("receipts: " + (", ".join(e.id for e in seen.receipts) or "none"))
"""
SETTINGS = {"budget": "40%", "receipts": True}
Make = Callable[..., Any]


@pytest.fixture
def once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, play: Any, played_run: ModuleType
) -> Make:
    class Watching(played_run.QuickEvaluator):  # type: ignore[name-defined,misc]
        """Scores a benchmark too that is only watched, which no twin has."""

        def poll(self) -> Any:
            card = super().poll()
            if card is not None:
                card.benchmarks["math"] = card.benchmarks["gsm8k"]
            return card

    monkeypatch.setattr(scoring, "Evaluator", Watching)
    monkeypatch.setattr(experiment_jobs, "ExperimentRunner", played_run.QuickExperiments)
    played_run.QuickExperiments.fails, played_run.QuickExperiments.held = 0, False

    def make(*, at: int = 40, asks: int = 10**6, **changed: Any) -> Any:
        (tmp_path / "once.py").write_text(ONCE.format(at=at, asks=asks))
        settings: dict[str, Any] = {"policy": {"use": "./once.py:Once"}, "experiments": SETTINGS}
        settings["guards"] = {"max_change": 0.5, "max_epochs": None}
        data = {"data": "packages"}
        settings["evals"] = {"benchmarks": {"gsm8k": data}, "watch": {"math": data}}
        return play(**(settings | changed))

    return make


def made(run: Any) -> list[tuple[str, str, int, str]]:
    rows = queries.experiments(run.journal)
    return [(row.id, row.decision, row.step, row.state) for row in rows]


def started(run: Any) -> list[Any]:
    specs: list[Any] = run.controller.experiments.runner.started
    return specs


def outcome(run: Any, decision: int) -> dict[str, Any]:
    found: dict[str, Any] = run.history()[decision - 1]["outcome"]
    return found


def notes(run: Any, decision: int) -> list[str]:
    guards = run.history()[decision - 1]["guards"]
    return [note["detail"] for note in guards if note["guard"] == "experiments"]


def test_a_change_is_told_by_a_twin_that_went_on_without_it(once: Make) -> None:
    run = once()
    run.train(8)  # to the decision
    assert notes(run, 2) == ["a receipt: a twin of 3.2k tokens"]
    assert made(run) == [("e-000001", "d-000002", 40, "planned")]
    assert started(run) == [], "its order is not in force"
    run.train(3)
    assert made(run) == [("e-000001", "d-000002", 40, "done")]
    (spec,) = started(run)
    before = {"web": 0.72, "code": 0.1, "maths": 0.18}
    assert spec.branches == (pytest.approx(before, abs=1e-6),)
    assert (spec.tokens, spec.schedule, spec.step, spec.cost) == (3200, "as the run", 40, 3200)
    assert [(e["step"], e["verdict"]) for e in run.history()] == [(20, "hold"), (40, "intervene")]
    run.train(5)
    # the twin stays, the run gains 0.001 a step: 0.02 at step 60 and 0.04 at 80
    told = outcome(run, 2)["receipt"]
    assert (told["n"], told["effect"]) == (2, pytest.approx(0.03))
    assert told["low"] < 0.03 < told["high"]
    assert told["shared_with"] == []
    assert [e["reason"] for e in run.history()[2:]] == ["receipts: e-000001"] * 2
    assert queries.experiments_charged(run.journal) == 3200
    people_read_it(run)


def people_read_it(run: Any) -> None:
    told = " ".join(CliRunner().invoke(app, ["explain", str(run.path), "2"]).output.split())
    assert "receipt: +0.0300 bits_per_byte against 2 twin points without it" in told
    assert "e-000001 done: receipt of d-000002, a twin without it of 3.2k tokens" in told
    history = CliRunner().invoke(app, ["history", str(run.path), "--json"]).output
    assert json.loads(history)[1]["experiment"]["receipt"] is True
    assert "against 2 twin points" in report.page(report.gather(run.path))
    entry = queries.entry(run.journal, "receipt:d-000002:2")
    assert entry is not None
    (_, tags), (_, span) = mlflow_entries.calls(entry.kind, entry.payload)
    assert tags["tags"]["outcome.receipt"].startswith("+0.0300 bits_per_byte against 2 twin points")
    assert span["outputs"]["n"] == 2


def test_it_begins_at_the_last_checkpoint_before_its_order(once: Make) -> None:
    run = once()
    run.train(8)
    published = run.paths.mixture.read_bytes()
    run.paths.mixture.unlink()  # as if the trainer saw it late
    for _ in range(4):
        run.trainer.advance()
    run.paths.mixture.write_bytes(published)
    run.settle()
    assert set(read_holds(run.paths.holds).value or ()) == {40, 60}
    run.train(3)
    assert made(run) == [("e-000001", "d-000002", 60, "done")]
    assert started(run)[0].run_tokens == 60 * 80


def test_it_yields_to_a_policys_experiment_and_goes_on(once: Make, played_run: ModuleType) -> None:
    run = once(asks=60)
    played_run.QuickExperiments.held = True
    run.train(12)
    states = [(name, state) for name, _, _, state in made(run)]
    assert states == [("e-000001", "running"), ("e-000002", "running")]
    assert [spec.id for spec in started(run)] == ["e-000001", "e-000002"]
    assert run.controller.experiments.runner.stopped == 1
    played_run.QuickExperiments.held = False
    run.settle()
    assert [spec.id for spec in started(run)] == ["e-000001", "e-000002", "e-000001"]
    assert {state for *_, state in made(run)} == {"done"}


def test_what_else_changed_on_the_runs_side_meanwhile_is_named(once: Make) -> None:
    run = once()
    run.train(11)
    run.tell("set", "code=0.2")
    run.train(6)
    (other,) = (entry for entry in run.history() if entry["asked_by"] == "operator")
    assert 60 <= other["applied_step"] < 80
    assert outcome(run, 2)["receipt"]["shared_with"] == [other["id"]]


def test_a_second_controller_goes_on_with_it(once: Make, played_run: ModuleType) -> None:
    run = once()
    played_run.QuickExperiments.held = True
    run.train(11)
    asked = CliRunner().invoke(app, ["status", str(run.path)]).output
    assert "e-000001 runs, from step 40 (receipt of d-000002)" in asked
    played_run.QuickExperiments.held = False
    run.controller.journal.close()
    run.controller.owned.lock.close()
    other = played_run.Run(run.path)
    other.settle()
    assert made(other) == [("e-000001", "d-000002", 40, "done")]
    assert started(other)[0] == started(run)[0]
    other.controller.close()


def test_an_order_that_never_comes_into_force_costs_nothing(once: Make) -> None:
    run = once()
    run.train(8)
    run.tell("set", "code=0.2")  # before the trainer looks again: only this one is taken
    run.train(6)
    (row,) = queries.experiments(run.journal)
    assert (row.state, row.attempts, row.charged) == ("abandoned", 0, 0)
    assert row.reason == "d-000002 never came into force"
    assert started(run) == []


def test_a_back_test_sees_what_the_policy_saw(once: Make, played_run: ModuleType) -> None:
    run = once()
    played_run.QuickExperiments.held = True
    run.train(12)
    played_run.QuickExperiments.held = False
    run.train(4)
    pairs = list(recorded(run.journal, run.controller.config))
    assert [len(seen.receipts) for _, seen in pairs] == [0, 0, 0, 1]
    for was, seen in pairs:
        assert observation_builder.digest(seen) == was.observation_digest, was.id
