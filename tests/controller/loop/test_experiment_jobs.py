"""Experiments from the policy's wish to what the next decision knows; the branches are played."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from typer.testing import CliRunner

from mixloop.cli.app import app
from mixloop.contract import read_holds, read_status, write_status
from mixloop.controller.core import mlflow_entries
from mixloop.controller.decisions import experiment_evidence, observation_builder
from mixloop.controller.journal import queries
from mixloop.controller.loop import experiment_jobs, scoring
from mixloop.controller.report import page as report
from mixloop.controller.views import Watcher, look
from mixloop.controller.watch import Timings, prometheus, view
from mixloop.tools.simulate.backtest import recorded

TRIES = """
from mixloop.policies import Experiment, Hold, MergeDesign, Proposal

class Tries:
    '''Asks for an expert per source once; goes by the best of them.'''

    def decide(self, seen):
        made = [e for e in seen.experiments if e.state != "refused"]
        if len(made) < {often}:
            experts = [{{name: 1.0}} for name in seen.sources]
            merge = MergeDesign(prior=seen.weights)
            return Experiment(experts, {tokens}, "who is worth what?", merge=merge)
        last = made[-1]
        if last.state != "done":
            return Hold(f"{{last.id}} is {{last.state}}: {{last.reason}}")
        gain = last.difference(0, "gsm8k")
        told = f"{{gain.gain:.2f}} over {{gain.n}} items, {{seen.experiment_tokens}} left"
        return Hold(f"{{last.id}} at {{last.step}}: {{told}}")
"""

Make = Callable[..., Any]


@pytest.fixture
def tries(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, played_run: ModuleType
) -> Iterator[Make]:
    monkeypatch.setattr(scoring, "Evaluator", played_run.QuickEvaluator)
    monkeypatch.setattr(experiment_jobs, "ExperimentRunner", played_run.QuickExperiments)
    played_run.QuickExperiments.fails, played_run.QuickExperiments.held = 0, False
    runs = []

    def make(*, tokens: int = 250, often: int = 1, **changed: Any) -> Any:
        (tmp_path / "tries.py").write_text(TRIES.format(tokens=tokens, often=often))
        settings = {"policy": {"use": "./tries.py:Tries"}, "experiments": {"budget": "20%"}}
        path = played_run.make_run(tmp_path, **(settings | changed))
        runs.append(played_run.Run(path))
        return runs[-1]

    yield make
    for run in runs:
        run.controller.close()


def again(run: Any, played_run: ModuleType) -> Any:
    """The controller is gone, and another one takes over."""
    run.controller.journal.close()
    run.controller.owned.lock.close()
    return played_run.Run(run.path)


def made(run: Any) -> list[tuple[str, str, int]]:
    rows = queries.experiments(run.journal)
    return [(row.id, row.state, row.attempts) for row in rows]


def verdicts(run: Any) -> list[tuple[int, str]]:
    return [(entry["step"], entry["verdict"]) for entry in run.history()]


def runner(run: Any) -> Any:
    return run.controller.experiments.runner


def test_the_policy_is_asked_again_once_its_experiment_has_ended(tries: Make) -> None:
    run = tries()
    run.train(4)
    assert verdicts(run) == [(20, "experiment"), (20, "hold")]
    asked, knows = run.history()
    # 3 branches and a control of 3 whole steps of 80 tokens; 20% of 24,000 are 4,800
    assert asked["reason"] == "who is worth what?; 3 branches and a control of 240 tokens"
    assert asked["weights_after"] == asked["weights_before"]
    assert asked["generation"] is None
    assert knows["reason"] == "e-000001 at 20: 0.45 over 4 items, 3840 left"
    assert made(run) == [("e-000001", "done", 1)]
    (spec,) = runner(run).started
    assert [dict(branch) for branch in spec.branches] == [
        {"code": 1.0, "maths": 0.0, "web": 0.0},
        {"code": 0.0, "maths": 1.0, "web": 0.0},
        {"code": 0.0, "maths": 0.0, "web": 1.0},
    ]
    assert (spec.tokens, spec.step, spec.decision) == (240, 20, "d-000001")
    assert spec.weights == pytest.approx({"web": 0.72, "code": 0.1, "maths": 0.18}, abs=1e-6)
    run.train(4)
    assert verdicts(run)[2:] == [(40, "hold")], "with no news one decision a checkpoint"


def test_one_of_more_tokens_than_a_journal_can_count_is_refused_and_the_run_goes_on(
    tries: Make,
) -> None:
    run = tries(tokens=10**30)
    run.train(8)
    assert verdicts(run) == [(20, "refused"), (40, "refused")]
    assert "the budget has 4.8k left" in run.history()[0]["reason"]
    assert queries.experiments_charged(run.journal) == 0


def test_while_one_runs_the_policy_is_asked_at_new_checkpoints_and_sees_it_run(
    tries: Make, played_run: ModuleType
) -> None:
    run = tries()
    played_run.QuickExperiments.held = True
    run.train(8)
    assert verdicts(run) == [(20, "experiment"), (40, "hold")]
    assert run.history()[-1]["reason"].startswith("e-000001 is running: ")
    assert set(read_holds(run.paths.holds).value or ()) == {20, 40}
    played_run.QuickExperiments.held = False
    run.settle()
    assert verdicts(run) == [(20, "experiment"), (40, "hold"), (40, "hold")]
    assert run.history()[-1]["reason"].startswith("e-000001 at 20: ")
    assert set(read_holds(run.paths.holds).value or ()) == {40}


def test_a_second_controller_goes_on_with_what_the_first_had_begun(
    tries: Make, played_run: ModuleType
) -> None:
    run = tries()
    played_run.QuickExperiments.held = True
    run.train(4)
    played_run.QuickExperiments.held = False
    other = again(run, played_run)
    other.settle()
    assert made(other) == [("e-000001", "done", 2)]
    assert runner(other).started[0] == runner(run).started[0], "or its folder would begin anew"
    assert verdicts(other) == [(20, "experiment"), (20, "hold")]
    other.controller.close()


def test_one_that_fails_is_tried_once_more_and_no_other_from_that_checkpoint(
    tries: Make, played_run: ModuleType
) -> None:
    run = tries(often=9)
    played_run.QuickExperiments.fails = 2
    run.train(4)
    assert made(run) == [("e-000001", "failed", 2), ("e-000002", "refused", 0)]
    assert verdicts(run) == [(20, "experiment"), (20, "refused")]
    assert (
        "e-000001 from this checkpoint failed: not before the next" in run.history()[-1]["reason"]
    )
    run.train(4)
    assert verdicts(run)[2] == (40, "experiment")
    assert made(run)[2] == ("e-000003", "done", 1)


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"experiments": {"budget": 959}}, "240 tokens are 960, the budget has 959 left"),
        ({"experiments": {"budget": 0}}, "experiments.budget is 0: give it a share"),
        ({"tokens": 79}, "79 tokens a branch are less than one step of 80"),
    ],
)
def test_what_may_not_be_made_is_refused_with_its_reason(
    tries: Make, changed: dict[str, Any], why: str
) -> None:
    run = tries(**changed)
    run.train(4)
    assert verdicts(run) == [(20, "refused")], "and not asked for again at once"
    assert why in run.history()[0]["reason"]
    assert made(run) == [("e-000001", "refused", 0)]
    assert runner(run).started == []


def test_the_budget_is_never_exceeded(tries: Make) -> None:
    run = tries(often=99, experiments={"budget": 2_000})
    run.train(12)
    done = [row for row in queries.experiments(run.journal) if row.state == "done"]
    assert [row.cost for row in done] == [960, 960]
    assert queries.experiments_charged(run.journal) == 1_920
    assert "the budget has 80 left" in run.history()[2]["reason"]


def until_planned(run: Any) -> None:
    """To the moment in which the decision is on record, and nothing has begun."""
    for _ in range(4):
        run.trainer.advance()
    for _ in range(3000):
        if queries.experiments(run.journal):
            return
        run.controller.step()
    raise AssertionError(run.said)


def test_nothing_begins_while_decisions_are_paused(tries: Make) -> None:
    run = tries()
    until_planned(run)
    run.tell("pause")
    assert made(run) == [("e-000001", "planned", 0)]
    assert runner(run).started == []
    run.tell("resume")
    assert made(run) == [("e-000001", "done", 1)]


def test_a_rewind_past_its_checkpoint_ends_it_for_good(tries: Make, played_run: ModuleType) -> None:
    run = tries()
    run.train(4)
    rewind(run, 10)
    run.settle()
    (row,) = queries.experiments(run.journal)
    assert (row.state, row.abandoned_by) == ("done", 2)
    assert experiment_evidence.experiments(run.journal, before=99, known=99) == ()
    played_run.QuickExperiments.held = True
    run.train(4)
    assert made(run)[1] == ("e-000002", "running", 1), "asked for on the branch that goes on"
    rewind(run, 10)
    run.settle()
    assert made(run)[1] == ("e-000002", "abandoned", 1)
    assert runner(run).stopped == 1
    reason = queries.experiments(run.journal)[1].reason
    assert reason == "abandoned: the trainer rewound to step 10 (incarnation 3)"


def rewind(run: Any, step: int) -> None:
    from mixloop.contract import AcceptedOrder, OpenLine, read_schedule

    opened = read_schedule(run.paths.schedule).latest_open
    status = read_status(run.paths.status).value
    assert opened is not None
    assert status is not None
    number, sample = opened.incarnation + 1, step * opened.quantum
    for folder in run.paths.checkpoints.iterdir():
        if int(folder.name.rpartition("-")[2]) > step:
            shutil.rmtree(folder)
    lengths = opened.sequence_length, opened.quantum, 1, opened.quantum, 1
    parent = f"step-{step:08d}"
    line = OpenLine(number, parent, sample, step, 0, opened.sources, *lengths, rewind=True)
    run.trainer.writer.append(line)
    schedule = read_schedule(run.paths.schedule)
    force = [line for line in schedule.segments if line.sample <= sample][-1]
    changed = {"incarnation": number, "step": step, "sample": sample, "tokens": sample * 10}
    changed |= {
        "accepted": AcceptedOrder(*schedule.accepted),
        "in_force": run.trainer._force(force),
    }
    write_status(run.paths.status, dataclasses.replace(status, **changed))
    run.trainer.incarnation = number


def test_at_the_end_of_training_nothing_is_waited_for(tries: Make, played_run: ModuleType) -> None:
    run = tries(budget=4_000, experiments={"budget": 2_000})
    played_run.QuickExperiments.held = True
    for _ in range(30):
        run.trainer.advance()
        run.settle()
    (row,) = queries.experiments(run.journal)
    assert (row.state, row.reason) == ("abandoned", "training has ended")
    assert runner(run).stopped == 1
    assert any(line.startswith("the run has ended") for line in run.said)
    assert read_holds(run.paths.holds).value == frozenset()


def test_a_checkpoint_that_is_gone_costs_the_experiment(
    tries: Make, played_run: ModuleType
) -> None:
    run = tries()
    until_planned(run)
    shutil.rmtree(run.paths.checkpoints / "step-00000020")
    run.settle()
    (row,) = queries.experiments(run.journal)
    assert (row.state, row.attempts) == ("failed", 2)
    assert row.reason == "it can't be started: the checkpoint of step 20 is gone"


def test_a_back_test_sees_what_the_policy_saw(tries: Make, played_run: ModuleType) -> None:
    run = tries()
    played_run.QuickExperiments.held = True
    run.train(8)
    played_run.QuickExperiments.held = False
    run.train(8)
    pairs = list(recorded(run.journal, run.controller.config))
    assert [len(seen.experiments) for _, seen in pairs] == [0, 1, 1, 1, 1]
    assert [seen.experiments[0].state for _, seen in pairs[1:]] == ["running", *["done"] * 3]
    for was, seen in pairs:
        assert observation_builder.digest(seen) == was.observation_digest, was.id


def test_no_number_is_stored_that_is_none() -> None:
    nan = float("nan")
    metrics = {"a": {"value": 1.0, "stderr": nan}, "b": {"value": nan, "stderr": 0.1}}
    kept = experiment_jobs.finite({"metrics": metrics, "gains": {"x": [0.1, nan], "y": [0.1, 0.2]}})
    assert kept == {"metrics": {"a": {"value": 1.0}}, "gains": {"y": [0.1, 0.2]}}
    assert json.dumps(kept, allow_nan=False)


def ask(run: Any, *command: str) -> str:
    result = CliRunner().invoke(app, [command[0], str(run.path), *command[1:]])
    assert result.exit_code == 0, result.output
    return " ".join(result.output.split())


def test_people_see_what_was_tried_and_what_came_of_it(tries: Make, played_run: ModuleType) -> None:
    run = tries()
    played_run.QuickExperiments.held = True
    run.train(4)
    place = run.paths.dir / "experiments" / "e-000001"
    place.mkdir(parents=True)
    (place / "progress.json").write_text('{"done": 1, "branches": 4, "doing": "training"}')
    runs = "e-000001 runs, from step 20 (d-000001): 1 of 4 branches, training"
    assert f"Experiment {runs}" in ask(run, "status")
    facts = json.loads(ask(run, "status", "--json"))["experiments"]
    assert (facts["budget"], facts["charged"], facts["left"]) == (4800, 960, 3840)
    assert (facts["open"]["id"], facts["progress"]["done"]) == ("e-000001", 1)
    snapshot = Watcher(run.paths, lambda: 0.0).look()
    assert f"experiment {runs}" in [row.what for row in view.build(snapshot).pending]
    values = {m.name: {tuple(s.labels.values()): s.value for s in m.samples} for m in metrics(run)}
    assert values["mixloop_experiments"] == {("running",): 1}
    assert values["mixloop_experiment_tokens"] == {("budget",): 4800, ("charged",): 960}
    assert values["mixloop_experiment_branches"] == {("done",): 1, ("all",): 4}
    played_run.QuickExperiments.held = False
    run.settle()
    assert not place.exists(), "its folder is removed"
    assert "e-000001 done" in ask(run, "history")
    told = ask(run, "explain", "1")
    assert "Experiment e-000001 done: 3 branches and a control of 240 tokens from step 20" in told
    assert "learning rate to zero; 960 tokens spent" in told
    assert "branch 1" in told
    assert "+0.4500 ± 0.0000" in told
    assert "a merge knows no epochs" in told
    made = json.loads(ask(run, "explain", "1", "--json"))["experiment"]
    assert made["effects"]["branches"][0]["benchmarks"]["gsm8k"]["gain"] == pytest.approx(0.45)
    assert made["effects"]["fits"][0]["gains"]["gsm8k"] == {"gain": 0.1, "stderr": 0.01}
    page = report.page(report.gather(run.path))
    assert "<h2>Experiments</h2>" in page
    assert "asked for by d-000001" in page
    entry = queries.entry(run.journal, "experiment:e-000001")
    assert entry is not None
    tags, _, points = (payload for _, payload in mlflow_entries.calls(entry.kind, entry.payload))
    assert tags["tags"]["experiment.gsm8k"] == "+0.1000 ± 0.0100"
    assert points["metrics"] == {"experiment/cost": 960.0, "experiment_gain/gsm8k": 0.1}
    assert points["tokens"] == 1600


def metrics(run: Any) -> list[Any]:
    return list(prometheus.RunMetrics(look(run.paths, run.journal), Timings()).collect())
