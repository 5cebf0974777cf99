"""Receipts from an intervention to what people and guards read; the twins are played."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
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


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory, played_run: ModuleType) -> Path:
    """A run folder in which a receipt is planned, its order not yet seen; beside it, a copy."""
    folder = tmp_path_factory.mktemp("planned")
    (folder / "once.py").write_text(ONCE.format(at=40, asks=10**6))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scoring, "Evaluator", played_run.QuickEvaluator)
        asked = {"policy": {"use": "./once.py:Once"}, "experiments": SETTINGS}
        guards = {"max_change": 0.5, "max_epochs": None}
        run = played_run.Run(played_run.make_run(folder, guards=guards, **asked))
        run.train(8)
        run.controller.close()
    run.paths.mixture.rename(run.paths.dir / "unseen")
    shutil.copytree(folder, folder.with_name("kept"))
    return folder


@pytest.fixture
def goes_on(
    planned: Path, monkeypatch: pytest.MonkeyPatch, played_run: ModuleType
) -> Iterator[Make]:
    """A controller takes that run over; nothing is scored while ``scoring.Evaluator.held``."""

    class Slow(played_run.QuickEvaluator):  # type: ignore[name-defined,misc]
        held = True

        def poll(self) -> Any:
            return None if Slow.held else super().poll()

    shutil.rmtree(planned)
    shutil.copytree(planned.with_name("kept"), planned)
    monkeypatch.setattr(scoring, "Evaluator", Slow)
    monkeypatch.setattr(experiment_jobs, "ExperimentRunner", played_run.QuickExperiments)
    played_run.QuickExperiments.fails, played_run.QuickExperiments.held = 0, False
    with contextlib.ExitStack() as stack:

        def make(**changed: Any) -> Any:
            path = planned / "run.yaml"
            data = yaml.safe_load(path.read_text())
            path.write_text(yaml.safe_dump(data | {"experiments": SETTINGS | changed}))
            run = played_run.Run(path)
            stack.callback(run.controller.close)
            return run

        yield make


def fall_behind(run: Any, *, further: int = 0) -> None:
    """The order is seen when two checkpoints wait to be scored; the trainer may go on from then."""
    for _ in range(7):
        run.trainer.advance()
    (run.paths.dir / "unseen").rename(run.paths.mixture)
    for _ in range(3):
        run.trainer.advance()
        look(run)
    for _ in range(further):
        run.trainer.advance()
    look(run)


def look(run: Any) -> None:
    for _ in range(20):
        run.controller.step()


def test_while_evaluation_is_behind_it_waits(goes_on: Make) -> None:
    run = goes_on()
    fall_behind(run)
    assert run.controller.look().waiting == (60, 80)
    assert made(run) == [("e-000001", "d-000002", 80, "planned")]
    assert started(run) == []
    scoring.Evaluator.held = False  # type: ignore[attr-defined]
    look(run)
    assert made(run) == [("e-000001", "d-000002", 80, "done")]


def test_launched_elsewhere_it_waits_for_no_evaluation(goes_on: Make) -> None:
    run = goes_on(launcher=["env", "{command}"])
    fall_behind(run)
    assert run.controller.look().waiting == (60, 80)
    assert made(run) == [("e-000001", "d-000002", 80, "done")]


def test_it_is_given_up_where_no_score_is_left_to_compare_with(goes_on: Make) -> None:
    run = goes_on()
    fall_behind(run, further=10)
    assert run.controller.look().waiting == (60, 80, 100, 120, 140)
    scoring.Evaluator.held = False  # type: ignore[attr-defined]
    look(run)
    (row,) = queries.experiments(run.journal)
    assert (row.state, row.attempts, row.charged) == ("abandoned", 0, 0)
    why = "evaluation passed over the checkpoints that its twin would be compared with"
    assert row.reason == why


def test_switched_off_in_run_yaml_it_is_given_up(goes_on: Make) -> None:
    run = goes_on(receipts=False)
    look(run)
    (row,) = queries.experiments(run.journal)
    assert (row.state, row.reason) == ("abandoned", "experiments.receipts is false now")
    assert started(run) == []


def test_a_persons_order_has_one_too(goes_on: Make) -> None:
    run = goes_on()
    (run.paths.dir / "unseen").rename(run.paths.mixture)
    for _ in range(3):
        run.trainer.advance()
        look(run)
    assert [state for *_, state in made(run)] == ["done"]
    CliRunner().invoke(app, ["set", str(run.path), "code=0.2", "--wait", "0"])
    look(run)
    assert notes(run, 3) == ["a receipt: a twin of 3.2k tokens"]
    for _ in range(3):
        run.trainer.advance()
        look(run)
    assert made(run)[1] == ("e-000002", "d-000003", 60, "done")
    before = {"web": 0.3, "maths": 0.2, "code": 0.5}
    assert started(run)[1].branches == (pytest.approx(before, abs=1e-6),)


def test_a_persons_order_is_never_held_up_by_what_it_can_have_no_receipt_of(once: Make) -> None:
    run = once()
    run.tell("set", "code=0.2")
    assert run.answer()["state"] == "done"
    assert notes(run, 1) == [
        "no receipt: before the second evaluation nothing tells how far apart they are"
    ]
