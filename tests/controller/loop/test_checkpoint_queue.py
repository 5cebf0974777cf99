"""Evaluation that falls behind, checkpoints that vanish or come twice, trainers that rewind.

The real controller and journal; the trainer is the played one, whose state is all in real files.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from mixloop.cli.app import app
from mixloop.contract import (
    AcceptedOrder,
    OpenLine,
    Schedule,
    read_holds,
    read_manifest,
    read_schedule,
    read_status,
    write_manifest,
    write_status,
)
from mixloop.controller.core import find_rewinds, left_by
from mixloop.controller.decisions import observation_builder
from mixloop.controller.journal import queries

SETTINGS: dict[str, Any] = {"gsm8k": {"data": "packages"}}


def states(run: Any) -> dict[int, str]:
    return dict(run.journal.cells("SELECT step, state FROM evaluations ORDER BY step"))


def reason(run: Any, step: int) -> str:
    return str(run.journal.value("SELECT reason FROM evaluations WHERE step = ?", step))


def ask(run: Any, *command: str) -> str:
    result = CliRunner().invoke(app, [command[0], str(run.path), *command[1:]])
    assert result.exit_code == 0, result.output
    return result.output


def race_ahead(run: Any, looks: int) -> None:
    """The trainer goes on while the controller looks away."""
    for _ in range(looks):
        run.trainer.advance()


def test_a_checkpoint_ends_the_pause_between_two_looks(play: Any) -> None:
    run = play(controller={"poll": 60.0})

    class Pauses(list[float]):
        """In each the trainer comes a little further."""

        def is_set(self) -> bool:
            return False

        def wait(self, seconds: float) -> None:
            self.append(seconds)
            run.trainer.advance()
            (run.paths.checkpoints / "step-00000900").mkdir(parents=True, exist_ok=True)

    run.controller._stop = pauses = Pauses()
    for _ in range(10):
        run.controller.step()
        if any(line.startswith("checkpoint at step 20") for line in run.said):
            break
    else:
        raise AssertionError(run.said)
    assert sum(pauses) < 1
    queue = run.controller.scoring.queue
    queue.unrecorded(())
    assert not queue.news(), "what is recorded, or has no manifest, is none"


def test_the_newest_is_next_when_evaluation_is_behind(play: Any) -> None:
    run = play()
    race_ahead(run, 16)  # checkpoints at 20, 40, 60, 80
    run.settle()
    assert states(run) == {20: "skipped", 40: "skipped", 60: "skipped", 80: "scored"}
    assert "4 checkpoints waited, and the newest (step 80) is scored next" in reason(run, 20)
    assert [entry["step"] for entry in run.history()] == [80]
    assert "Skipped    3 checkpoints" in ask(run, "status")
    assert json.loads(ask(run, "status", "--json"))["skipped"][0]["step"] == 20
    assert "not scored: steps 20, 40, 60" in " ".join(ask(run, "history").split())
    unscored = json.loads(ask(run, "report", "--json"))["unscored"]
    assert [row["step"] for row in unscored] == [20, 40, 60]
    assert all("evaluation is behind" in row["why"] for row in unscored)


def test_two_that_wait_are_both_scored(play: Any) -> None:
    run = play()
    race_ahead(run, 8)
    run.settle()
    assert states(run) == {20: "scored", 40: "scored"}


def test_all_are_scored_where_that_is_asked_for(play: Any) -> None:
    run = play(evals={"benchmarks": SETTINGS, "backlog": "all"})
    race_ahead(run, 16)
    run.settle()
    assert set(states(run).values()) == {"scored"}
    assert len(states(run)) == 4


def test_after_the_end_of_training_nothing_is_behind(play: Any) -> None:
    run = play(budget=8_000)
    race_ahead(run, 30)
    run.settle()
    assert states(run) == dict.fromkeys(range(20, 101, 20), "scored")


def test_a_checkpoint_that_vanishes_is_missing_and_the_next_is_scored(play: Any) -> None:
    run = play()
    race_ahead(run, 8)
    while not run.journal.value("SELECT COUNT(*) FROM checkpoints WHERE step = 40"):
        run.controller.step()
    shutil.rmtree(run.paths.checkpoints / "step-00000020")
    run.settle()
    assert states(run) in (
        {20: "failed", 40: "scored"},
        {20: "scored", 40: "scored"},  # the worker had read it already
    )
    if states(run)[20] == "failed":
        assert "gone" in reason(run, 20)


def test_one_that_is_half_written_is_waited_for(play: Any) -> None:
    run = play()
    run.train(3)
    half = run.paths.checkpoints / "step-00000020"
    race_ahead(run, 1)
    manifest = read_manifest(half).value
    assert manifest is not None
    (half / "manifest.json").write_text('{"schema": "mixloop/ch')
    run.settle()
    assert states(run) == {}
    write_manifest(half, manifest)
    run.settle()
    assert states(run) == {20: "scored"}


def again(run: Any, step: int, *, rewind: bool) -> None:
    """A new incarnation of the trainer from the checkpoint at ``step``; later ones are removed."""
    opened = read_schedule(run.paths.schedule).latest_open
    status = read_status(run.paths.status).value
    assert opened is not None
    assert status is not None
    number, sample = opened.incarnation + 1, step * opened.quantum
    for folder in run.paths.checkpoints.iterdir():
        if int(folder.name.rpartition("-")[2]) > step:
            shutil.rmtree(folder)
    run.trainer.writer.append(
        OpenLine(
            number, f"step-{step:08d}", sample, step, 0, opened.sources, opened.sequence_length,
            opened.quantum, 1, opened.quantum, 1, rewind=rewind,
        )
    )  # fmt: skip
    schedule = read_schedule(run.paths.schedule)
    force = [line for line in schedule.segments if line.sample <= sample][-1]
    accepted = AcceptedOrder(*schedule.accepted)
    changed = {"incarnation": number, "step": step, "sample": sample, "accepted": accepted}
    changed |= {"tokens": sample * opened.sequence_length, "in_force": run.trainer._force(force)}
    write_status(run.paths.status, type(status)(**{**vars(status), **changed}))
    run.trainer.incarnation = number


def test_a_rewind_sets_its_old_branch_apart_and_goes_on_deciding(play: Any) -> None:
    run = play()
    run.train(17)  # scored and decided on at 20, 40, 60, 80
    assert states(run) == dict.fromkeys((20, 40, 60, 80), "scored")
    before = run.history()
    again(run, 40, rewind=True)
    run.settle()
    assert states(run) == {20: "scored", 40: "scored", 60: "skipped", 80: "skipped"}
    assert reason(run, 60) == "abandoned: the trainer rewound to step 40 (incarnation 2)"
    status = ask(run, "status")
    assert "incarnation 2, rewound to step 40" in status
    run.train(13)
    assert states(run) == dict.fromkeys((20, 40, 60, 80, 100), "scored")
    after = run.history()
    assert [e["id"] for e in after][: len(before)] == [e["id"] for e in before]
    assert [e["step"] for e in after if e["abandoned_by"] == 2] == [60, 80]
    visible = {decision.id for decision in observation_builder.past_decisions(run.journal)}
    assert visible == {e["id"] for e in after if not e["abandoned_by"]}, "a policy sees no others"
    fresh = [e["step"] for e in after if e["asked_by"] == "policy" and not e["abandoned_by"]]
    assert fresh == [20, 40, 60, 80, 100]
    assert "left behind by" in " ".join(ask(run, "history").split())
    assert "(left behind by incarnation 2)" in ask(run, "explain", "3")
    kept = queries.events(run.journal, "checkpoint-repeated")
    assert [event.detail["step"] for event in kept] == [60, 80]
    assert kept[0].detail["metrics"]["gsm8k"]["bits_per_byte"]["value"] > 0
    assert len(list((run.paths.dir / "scorecards").glob("abandoned-*-step-00000060.json"))) == 1


def test_orders_of_an_abandoned_branch_come_into_force_again_or_never(play: Any) -> None:
    run = play()
    run.train(17)
    assert run.journal.value("SELECT COUNT(*) FROM orders WHERE applied_step > 20") > 0
    again(run, 20, rewind=True)
    run.settle()
    newest = run.journal.value("SELECT MAX(generation) FROM orders")
    run.train(3)
    orders = queries.orders(run.journal)
    assert orders[newest - 1].applied_step is not None
    cut = [order.rejected or "" for order in orders[: newest - 1] if order.applied_step is None]
    assert all("cut when the trainer rewound to step 20" in why for why in cut)


def test_a_plain_resume_repeats_steps_and_changes_nothing(play: Any) -> None:
    run = play(policy={"use": "static"})
    run.train(17)
    history = run.history()
    again(run, 40, rewind=False)
    run.settle()
    assert "incarnation 2, resumed at step 40" in ask(run, "status")
    run.train(8)
    assert states(run) == dict.fromkeys((20, 40, 60, 80), "scored")
    assert run.history() == history


def test_a_checkpoint_of_an_abandoned_branch_found_late_is_skipped(
    play: Any, tmp_path: Path
) -> None:
    run = play()
    run.train(5)
    race_ahead(run, 8)
    kept = tmp_path / "kept"
    shutil.copytree(run.paths.checkpoints / "step-00000060", kept)
    again(run, 20, rewind=True)
    shutil.copytree(kept, run.paths.checkpoints / "step-00000060")
    run.settle()
    assert states(run) == {20: "scored", 60: "skipped"}
    assert "abandoned" in reason(run, 60)


@pytest.mark.parametrize(
    ("rewind", "quantum", "cut"), [(True, 8, 1), (False, 16, 1), (False, 8, 0)]
)
def test_what_a_new_incarnation_cuts(rewind: bool, quantum: int, cut: int) -> None:
    first = OpenLine(1, None, 0, 0, 0, (), 10, 8, 1, 8, 1)
    second = OpenLine(2, "step-5", 40, 5, 0, (), 10, quantum, 1, quantum, 1, rewind=rewind)
    rewinds = find_rewinds(Schedule((first, second)))
    assert len(rewinds) == cut
    assert (left_by(rewinds, 41, 1) is not None) == bool(cut)
    assert left_by(rewinds, 40, 1) is None
    assert left_by(rewinds, 41, 2) is None
    assert left_by(rewinds, 41, 0) is None, "of an unknown incarnation"


def test_a_fork_says_where_it_comes_from(play: Any, tmp_path: Path) -> None:
    run = play(policy={"use": "static"})
    run.train(10)
    new = tmp_path / "forked"
    forked = CliRunner().invoke(app, ["fork", str(run.paths.dir), str(new), "--at", "40"])
    assert forked.exit_code == 0, forked.output
    status = CliRunner().invoke(app, ["status", str(new)])
    assert status.exit_code == 0, status.output
    assert "forked from r at step 40" in status.output


@pytest.fixture
def averaging(play: Any) -> Any:
    """A played run that averages three checkpoints; what each score was asked of, by step."""
    run = play(evals={"average": 3, "benchmarks": SETTINGS})
    asked: dict[int, list[int]] = {}
    evaluator = run.controller.scoring.evaluator
    begin = evaluator.start

    def start(checkpoint: Path, out: Path, earlier: Any = ()) -> None:
        asked[step_of(checkpoint)] = [step_of(folder) for folder in earlier]
        begin(checkpoint, out, earlier)

    evaluator.start = start
    run.asked = asked
    return run


def step_of(folder: Path) -> int:
    return int(folder.name.rpartition("-")[2])


def held(run: Any) -> set[int]:
    return set(read_holds(run.paths.holds).value or ())


def test_a_score_is_asked_of_the_last_checkpoints_and_they_are_held(averaging: Any) -> None:
    averaging.train(17)
    assert averaging.asked == {20: [], 40: [20], 60: [40, 20], 80: [60, 40]}
    assert held(averaging) == {60, 80}, "the next one's mean needs them"


def test_what_is_skipped_is_averaged_all_the_same(averaging: Any) -> None:
    averaging.train(9)  # 20 and 40
    assert held(averaging) == {20, 40}
    race_ahead(averaging, 16)  # 60, 80, 100, 120: the newest is next
    averaging.settle()
    assert averaging.asked == {20: [], 40: [20], 120: [100, 80]}
    assert held(averaging) == {100, 120}


def test_a_rewind_averages_its_own_branch_alone(averaging: Any) -> None:
    averaging.train(17)
    again(averaging, 40, rewind=True)
    averaging.settle()
    assert held(averaging) == {20, 40}
    averaging.train(13)
    assert averaging.asked[60] == [40, 20]
    assert averaging.asked[80] == [60, 40]
    assert averaging.asked[100] == [80, 60]
