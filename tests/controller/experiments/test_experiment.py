"""Experiments, real in every part: branches trained, scored, merged; killed, failed, foreign."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mixloop.contract import RunPaths
from mixloop.controller.config import RunConfig
from mixloop.controller.experiments import ExperimentRunner, ExperimentSpec, read_progress
from mixloop.controller.experiments.branch_work import DEATHS, TrainedBranch, scores_of
from mixloop.controller.experiments.experts import experts_of
from mixloop.controller.experiments.merge_work import MergeWork
from mixloop.controller.experiments.runner import Experimenter
from mixloop.controller.experiments.workspace import Workspace
from mixloop.evals.merging import Merges
from mixloop.evals.scoring import Scorer
from mixloop.evals.workers import Failure
from mixloop.policies.interface import ExperimentResult, MergeDesign
from mixloop.trainer.run import checkpoint_store

Make = Callable[..., ExperimentSpec]
SOURCES = ("code", "prose", "noise")
EXPERTS = [{name: 1.0} for name in SOURCES]
DESIGN = MergeDesign(prior=dict.fromkeys(SOURCES, 1 / 3), most={"code": 0.4}, strength=0.0)


def carried_out(spec: ExperimentSpec) -> ExperimentResult:
    """In this process: importing torch once is enough."""
    Workspace(spec.out).begin(spec)
    return Experimenter(spec, io.StringIO()).run()


def left(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if path.suffix != ".json"}


def test_the_process_trains_scores_and_merges_and_leaves_one_result(
    experiment: Make, run_config: RunConfig, tmp_path: Path
) -> None:
    spec = experiment([*EXPERTS, {"code": 0.5, "prose": 0.3, "noise": 0.2}], merge=DESIGN)
    before = {path: path.stat().st_mtime_ns for path in run_config.run.dir.rglob("*")}
    runner = ExperimentRunner(tmp_path / "experiments.log")
    assert runner.poll() is None
    runner.start(spec)
    with pytest.raises(RuntimeError, match="still under way"):
        runner.start(spec)
    result = waited(runner)
    assert isinstance(result, ExperimentResult), result
    assert result.state == "done", (tmp_path / "experiments.log").read_text()
    assert (result.id, result.step, result.cost) == ("e-1", 30, 5 * spec.tokens)
    assert not runner.busy
    assert read_progress(spec.out) is not None
    assert left(spec.out) == set()
    assert {path: path.stat().st_mtime_ns for path in run_config.run.dir.rglob("*")} == before

    # the control and the branches on the same items, and none that is only watched
    assert result.control is not None
    for branch in (result.control, *result.branches, *result.merges):
        assert set(branch.benchmarks) == {"humaneval", "gsm8k"}
        for name, score in branch.benchmarks.items():
            assert score.items.keys() == result.control.benchmarks[name].items.keys()
    gains = [result.difference(n, "humaneval") for n in range(4)]
    assert all(gain.paired and 0 < gain.stderr < 1 for gain in gains)
    assert len({gain.gain for gain in gains}) == 4

    # the fits
    assert [fit.part for fit in result.fits] == ["whole", "first", "second"]
    for fit in result.fits:
        assert sum(fit.weights.values()) == pytest.approx(1)
        assert fit.weights["code"] <= 0.4 + 1e-9
        assert set(fit.gains) == set(fit.slopes) == {"humaneval", "gsm8k"}
    whole = result.fits[0]
    gain = sum(whole.gains[name][0] * share for name, share in (("humaneval", 2), ("gsm8k", 1)))
    assert gain > 0
    present, fitted, foretold = result.merges
    assert foretold.weights == result.branches[3].weights
    assert present.weights == pytest.approx(spec.weights)
    assert fitted.weights == whole.weights
    assert result.mixmin is not None
    assert sum(result.mixmin.values()) == pytest.approx(1)

    # asked for once more, it is told at once
    runner.start(spec)
    assert runner.poll() == result


def waited(runner: ExperimentRunner, seconds: float = 120) -> ExperimentResult | Failure:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        result = runner.poll()
        if result is not None:
            return result
        time.sleep(0.05)
    raise AssertionError("no result in time")


def test_an_unchanged_branch_as_the_run_scores_as_the_runs_own_checkpoint(
    experiment: Make, run_config: RunConfig
) -> None:
    spec = experiment([{"code": 1.0}], steps=10, schedule="as the run")
    result = carried_out(spec)
    scorer = Scorer(spec.evals)
    end = RunPaths(run_config.run.dir).checkpoints / checkpoint_store.folder_name(40)
    own = scores_of(scorer.score(end))
    scorer.close()
    assert result.control is not None
    assert result.control.benchmarks == own
    assert result.branches[0].benchmarks != own


def test_a_receipt_is_one_branch_scored_half_way_and_at_its_end(
    experiment: Make, run_config: RunConfig
) -> None:
    """Each as the branch of that length is; beside a run that kept its mixture, no difference."""
    spec = experiment([{}], steps=10, schedule="as the run")
    receipt = spec.model_copy(update={"receipt": True, "branches": (spec.weights,)})
    result = carried_out(receipt)
    assert (result.receipt, result.control, result.cost) == (True, None, receipt.tokens)
    scorer = Scorer(spec.evals)
    end = RunPaths(run_config.run.dir).checkpoints / checkpoint_store.folder_name(40)
    own = scores_of(scorer.score(end))
    scorer.close()
    (twin,) = result.branches
    assert twin.benchmarks == own
    assert result.halfway is not None
    assert result.halfway.benchmarks.keys() == own.keys()
    assert result.halfway.benchmarks != own
    assert left(spec.out) == set()


@pytest.fixture
def merged(
    experiment: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[ExperimentSpec, ExperimentResult]:
    """An experiment with two experts, its result, and the experts' deltas still there."""
    spec = experiment(EXPERTS[:2], steps=2, merge=DESIGN)
    whole = spec.model_copy(update={"out": tmp_path / "whole"})
    with monkeypatch.context() as patch:
        patch.setattr(Workspace, "clean", lambda place: None)
        return spec, carried_out(whole)


def test_merges_of_one_expert_are_that_expert_and_gradients_are_differences(
    merged: tuple[ExperimentSpec, ExperimentResult], tmp_path: Path
) -> None:
    spec, result = merged
    place = Workspace(tmp_path / "whole")
    trained = {n: place.kept(place.scores(n), TrainedBranch) for n in range(3)}
    experts = experts_of(spec, trained)
    deltas = {
        f"{expert.source}/{half}": place.delta(expert.number, half)
        for expert in experts
        for half in ("first", "second")
    }
    with closing(Merges(spec.checkpoint, deltas, spec.evals)) as merges:
        work = MergeWork(spec, place, experts, merges, print)
        for number, row in enumerate(np.eye(2)):
            scores = work.score("whole", row)
            for name, score in result.branches[number].benchmarks.items():
                theirs = score.metrics["bits_per_byte"]
                ours = scores[name].metrics["bits_per_byte"]
                assert ours.value == pytest.approx(theirs.value, abs=2e-4)
                assert ours.stderr == pytest.approx(theirs.stderr, abs=2e-4)
        at = np.array([0.3, 0.7])
        for part in ("whole", "first", "second"):
            loss, gradient = work._loss_and_gradient(part, at)
            same, differences = work._by_differences(part, at)
            assert loss == pytest.approx(same, abs=1e-5)
            assert gradient == pytest.approx(differences, rel=0.1, abs=1e-3)


def test_killed_after_any_step_and_started_again_it_comes_to_the_same(
    merged: tuple[ExperimentSpec, ExperimentResult],
) -> None:
    spec, whole = merged
    killed = 0
    for allowed in (3, 6, 4, 9, 7, 5, 8, 11, 10, 12, *[40] * 9):
        if not dies_after(allowed, spec):
            break
        killed += 1
    assert killed >= 4
    result = ExperimentResult.model_validate_json((spec.out / "result.json").read_bytes())
    assert result.state == "done"
    assert result == whole
    assert left(spec.out) == set()


def dies_after(renames: int, spec: ExperimentSpec) -> bool:
    """Carry out an experiment in a process that is killed right after so many renames."""
    child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status) or os.waitstatus_to_exitcode(status) == 0
        return os.WIFSIGNALED(status)
    counted = [0]

    def counting(rename: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*arguments: Any) -> Any:
            done = rename(*arguments)
            counted[0] += 1
            if counted[0] >= renames:
                os.kill(os.getpid(), 9)
            return done

        return wrapper

    try:
        Path.rename = counting(Path.rename)  # type: ignore[method-assign]
        Path.replace = counting(Path.replace)  # type: ignore[method-assign]
        carried_out(spec)
        os._exit(0)
    except BaseException:
        os._exit(1)


FOREIGN = """
import json, shutil, sys
from pathlib import Path
checkpoint, mixture, tokens, rate, out = sys.argv[1:]
told = json.loads(Path(mixture).read_text())
if told["weights"].get("noise") == 1.0:
    print("no batch of noise")
    sys.exit(3)
assert told["tokens"] == int(tokens) and told["learning_rate"] == float(rate)
for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
    shutil.copy(Path(checkpoint) / name, Path(out) / name)
if told["weights"].get("prose") != 1.0:
    model = bytearray((Path(out) / "model.safetensors").read_bytes())
    model[-3] ^= 1
    (Path(out) / "model.safetensors").write_bytes(model)
"""


def test_another_trainer_is_told_by_arguments_and_its_failure_costs_one_branch(
    experiment: Make, tmp_path: Path
) -> None:
    script = tmp_path / "theirs.py"
    script.write_text(FOREIGN)
    words = ("{checkpoint}", "{mixture}", "{tokens}", "{learning_rate}", "{out}")
    spec = experiment([{"code": 1.0}, {"noise": 1.0}, {"prose": 1.0}]).model_copy(
        update={"command": (sys.executable, str(script), *words)}
    )
    result = carried_out(spec)
    assert result.state == "done"
    assert result.reason == (
        "to see what they do; branch 2 failed: its command ended with status 3: no batch of noise; "
        "branch 3 failed: its command left the weights that it was to start from: nothing changed"
    )
    assert result.branches[0].benchmarks
    assert result.branches[1].benchmarks == result.branches[2].benchmarks == {}
    assert result.difference(0, "gsm8k").gain == 0
    assert result.cost == 2 * spec.tokens


def test_a_command_that_prints_without_end_and_leaves_a_process_costs_neither_memory_nor_time(
    experiment: Make, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    prints = "head -c 4000000 /dev/zero | tr '\\0' x; sleep 60 & echo; echo out of files; exit 4"
    spec = experiment(EXPERTS).model_copy(update={"command": ("sh", "-c", prints)})
    began = time.monotonic()
    result = carried_out(spec)
    assert time.monotonic() - began < 30
    assert result.reason.endswith("its command ended with status 4: out of files")
    logged = capfd.readouterr().err
    assert len(logged) < 2**20 + 2**17
    assert "what this branch prints further is left out" in logged


STARTS = "sleep 60 & echo $! > {told}.new; mv {told}.new {told}; wait"


def test_what_a_command_has_started_ends_with_the_experiments_process(tmp_path: Path) -> None:
    told = tmp_path / "pid"
    code = "import sys; from mixloop.controller.experiments.foreign_branch import run_kept\n"
    code += "run_kept(sys.argv[1:], 60)"
    command = [sys.executable, "-c", code, "sh", "-c", STARTS.format(told=told)]
    process = subprocess.Popen(command, start_new_session=True)
    deadline = time.monotonic() + 30
    while not told.exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert_ends(told)


def test_a_command_that_hangs_is_ended_with_what_it_started_and_its_branch_charged(
    experiment: Make, tmp_path: Path
) -> None:
    told = tmp_path / "pid"
    command = ("sh", "-c", f"echo no peer answers; {STARTS.format(told=told)}")
    hangs = experiment(EXPERTS).model_copy(update={"command": command, "command_timeout": 0.3})
    result = carried_out(hangs)
    assert (result.state, result.cost) == ("failed", hangs.tokens)
    assert result.reason == (
        "the control failed: its command took more than experiments.timeout, 0.3 s, and was ended: "
        "no peer answers"
    )
    assert_ends(told)


def assert_ends(told: Path) -> None:
    """The process whose id is told there."""
    deadline = time.monotonic() + 30
    started = Path("/proc") / told.read_text().strip() / "stat"
    while started.exists() and started.read_text().split()[2] != "Z":
        assert time.monotonic() < deadline, "it goes on"
        time.sleep(0.01)


def test_what_fails_altogether_is_said_in_a_line_and_leaves_nothing(
    experiment: Make, tmp_path: Path
) -> None:
    gone = experiment(EXPERTS).model_copy(update={"checkpoint": tmp_path / "step-00000099"})
    result = carried_out(gone)
    assert result.state == "failed"
    assert result.reason.endswith("the checkpoint is gone")
    assert result.control is None
    none = experiment(EXPERTS).model_copy(update={"command": ("/bin/false", "{out}")})
    result = carried_out(none)
    assert (result.state, result.cost) == ("failed", none.tokens), "three experts were not begun"
    assert result.reason.endswith("its command ended with status 1 and said nothing")
    assert left(none.out) == set()


def test_a_process_that_dies_without_a_word_is_a_failure_that_may_be_tried_again(
    experiment: Make, tmp_path: Path
) -> None:
    spec = experiment(EXPERTS)
    refuses = ("sh", "-c", "echo before >&2; echo no such partition >&2; exit 1", "{command}")
    runner = ExperimentRunner(tmp_path / "log", refuses)
    runner.start(spec)
    result = waited(runner)
    assert isinstance(result, Failure)
    why = f"its process left no result (status 1): no such partition; see {tmp_path / 'log'}"
    assert result.reason == why
    assert not runner.busy
    with pytest.raises(OSError, match="ray is not for experiments"):
        ExperimentRunner(tmp_path / "log", "ray").start(spec)


def test_a_branch_in_which_processes_die_is_given_up_and_the_others_go_on(
    experiment: Make,
) -> None:
    spec = experiment([{"code": 1.0}, {"prose": 1.0}], steps=1)
    place = Workspace(spec.out)
    place.begin(spec)
    for _ in range(DEATHS):
        place.begun(1)
    result = Experimenter(spec, io.StringIO()).run()
    assert result.state == "done"
    assert "branch 1 failed: its process died 3 times in it" in result.reason
    assert result.branches[0].benchmarks == {}
    assert result.branches[1].benchmarks


def test_only_what_steers_is_scored_and_nothing_is_generated(experiment: Make) -> None:
    spec = experiment(EXPERTS)
    assert list(spec.evals.asked) == ["gsm8k", "humaneval"]
    assert all(asked.generate_items == 0 for asked in spec.evals.asked.values())
    assert spec.objective == {"humaneval": 2.0, "gsm8k": 1.0}
    again = ExperimentSpec.model_validate(json.loads(spec.model_dump_json(by_alias=True)))
    assert again == spec
    assert again.identity() == spec.model_copy(update={"threads": 4}).identity()
    assert again.identity() != spec.model_copy(update={"tokens": 1}).identity()
    assert np.isclose(sum(spec.weights.values()), 1)
