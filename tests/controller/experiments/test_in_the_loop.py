"""An experiment from a policy's answer to its next observation: every part is the real one."""

from __future__ import annotations

import dataclasses
import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mixloop.contract import RunPaths, read_status, write_status
from mixloop.controller.config import RunConfig
from mixloop.controller.decisions import experiment_evidence
from mixloop.controller.experiments import read_progress
from mixloop.controller.journal import queries
from mixloop.controller.loop import Controller

AT, STEP_TOKENS = 30, 256
POLICY = """
from mixloop.policies import Experiment, Hold, MergeDesign

class Tries:
    def decide(self, seen):
        if not seen.experiments:
            experts = [{name: 1.0} for name in seen.sources]
            merge = MergeDesign(prior=seen.weights)
            return Experiment(experts, 1024, "who is worth what?", merge=merge)
        made = seen.experiments[-1]
        if made.state != "done":
            return Hold(f"{made.id} {made.state} {made.reason}")
        gains = [made.difference(n, "humaneval") for n in range(len(made.branches))]
        told = ", ".join(f"{gain.gain:+.3f} over {gain.n}" for gain in gains)
        return Hold(f"{told}; best merge {made.fit().weights}")
"""


@pytest.fixture
def going_on(run_config: RunConfig, tmp_path: Path) -> RunConfig:
    """The run as it was at the checkpoint, with a policy that tries something."""
    before = RunPaths(run_config.run.dir)
    paths = RunPaths(tmp_path / "run")
    shutil.copytree(before.dir, paths.dir, ignore=shutil.ignore_patterns("*40", "experiments"))
    for folder in paths.checkpoints.iterdir():
        if not folder.name.endswith(f"{AT:04d}"):
            shutil.rmtree(folder)
    status = read_status(before.status).value
    assert status is not None
    tokens = AT * STEP_TOKENS
    place: dict[str, Any] = {"step": AT, "tokens": tokens, "sample": tokens // 64}
    write_status(paths.status, dataclasses.replace(status, finished=False, **place))
    (tmp_path / "tries.py").write_text(POLICY)
    change = run_config.model_copy
    return change(
        update={
            "run": run_config.run.model_copy(update={"dir": paths.dir}),
            "policy": run_config.policy.model_copy(update={"use": "./tries.py:Tries"}),
            "experiments": run_config.experiments.model_copy(update={"budget": 4 * 1024}),
            "tracking": run_config.tracking.model_copy(update={"enabled": False}),
            "controller": run_config.controller.model_copy(update={"poll": 0.02}),
        }
    )


@pytest.fixture
def controllers(going_on: RunConfig, tmp_path: Path) -> Iterator[list[Controller]]:
    running: list[Controller] = []
    yield running
    for controller in running:
        controller.close()


def turned(controller: Controller, until: Any, seconds: float = 200) -> None:
    deadline = time.monotonic() + seconds
    while not until():
        assert time.monotonic() < deadline, queries.experiments(controller.journal)
        controller.step()


@pytest.mark.timeout(600)
def test_an_experiment_outlives_its_controller_and_is_what_the_policy_sees_next(
    going_on: RunConfig, controllers: list[Controller], tmp_path: Path
) -> None:
    said: list[str] = []
    controllers.append(Controller(going_on, tmp_path, said.append))
    first = controllers[0]
    folder = going_on.run.dir / "experiments" / "e-000001"

    def trained() -> bool:
        progress = read_progress(folder)
        return progress is not None and progress.done >= 1

    turned(first, trained)
    first.close()  # its process ends with it
    controllers[:] = [Controller(going_on, tmp_path, said.append)]
    second = controllers[0]
    journal = second.journal
    turned(second, lambda: len(queries.decisions(journal)) == 2)
    (row,) = queries.experiments(journal)
    assert (row.state, row.attempts, row.cost, row.planned) == ("done", 2, 4096, 4096)
    (seen,) = experiment_evidence.experiments(journal, before=99, known=99)
    assert seen.control is not None
    assert [set(branch.benchmarks) for branch in seen.branches] == [{"humaneval", "gsm8k"}] * 3
    assert sorted(fit.part for fit in seen.fits) == ["first", "second", "whole"]
    assert seen.weights == pytest.approx({"code": 0.2, "prose": 0.3, "noise": 0.5}, abs=1e-6)
    asked, knows = queries.decisions(journal)
    assert (asked.verdict, knows.verdict) == ("experiment", "hold")
    assert knows.reason.count(" over ") == 3, knows.reason
    assert "best merge" in knows.reason
    assert json.dumps(row.effects)
    assert not folder.exists()
