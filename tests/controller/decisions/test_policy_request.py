"""A decision between the daemon, which holds no history, and the policy's child, which reads it."""

from __future__ import annotations

import json
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from mixloop.common.children import WaitingChild
from mixloop.controller.decisions import observation_builder, policy_request, read_answer
from mixloop.controller.loop import policy_decisions, scoring
from mixloop.tools.simulate import backtest

POLICY = """
import time
from mixloop.policies import Hold

class P:
    def decide(self, seen):
        if len(seen.evaluations) == {hangs}:
            time.sleep(60)
        return Hold(f"{{len(seen.evaluations)}} evaluations, {{len(seen.decisions)}} decisions")
"""


def make(played_run: ModuleType, folder: Path, hangs: int, timeout: float) -> Any:
    (folder / "p.py").write_text(POLICY.format(hangs=hangs))
    return played_run.make_run(
        folder, policy={"use": "./p.py:P", "timeout": timeout}, budget=96_000
    )


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch, played_run: ModuleType) -> None:
    monkeypatch.setattr(scoring, "Evaluator", played_run.QuickEvaluator)


def test_the_daemon_holds_the_newest_and_the_policy_sees_all(
    tmp_path: Path, played_run: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mixloop.controller.core.RECENT", 2)
    run = played_run.Run(make(played_run, tmp_path, hangs=-1, timeout=60))
    run.train(16)
    found = run.history()
    number = len(found)
    assert number > 2
    last = found[-1]
    assert last["reason"] == f"{number} evaluations, {number - 1} decisions"
    controller = run.controller
    status = controller.observer.news.status
    args = controller.journal, controller.config, controller.owned.sizes, status
    seen = policy_request.near(*args, last["step"])
    assert len(seen.evaluations) == 2
    assert seen.evaluations[-1].step == last["step"]
    assert not seen.decisions
    run.controller.close()


def test_what_is_decided_after_it_was_asked_is_not_in_the_observation(
    tmp_path: Path, played_run: ModuleType
) -> None:
    run = played_run.Run(make(played_run, tmp_path, hangs=-1, timeout=60))
    run.train(6)
    controller = run.controller
    status = controller.observer.news.status
    args = controller.journal, controller.config, controller.owned.sizes, status
    step = run.history()[-1]["step"]
    request = policy_request.history_request(*args[:2], policy_request.near(*args, step))
    before, message = policy_request.observed(request)
    run.train(5)
    assert len(run.history()) > len(before.decisions)
    again, repeated = policy_request.observed(request)
    assert again == before
    assert repeated == message
    assert policy_request.read_observed(message).digest == observation_builder.digest(before)
    run.controller.close()


def test_of_a_policy_that_hangs_it_is_known_what_it_saw(
    tmp_path: Path, played_run: ModuleType
) -> None:
    path = make(played_run, tmp_path, hangs=2, timeout=6)
    run = played_run.Run(path)
    for _ in range(8):
        run.trainer.advance()
        run.settle(limit=10**6)  # looks until the policy's time is over: as many as it takes
    hung = run.history()[1]
    assert "no answer within 6 seconds" in hung["reason"]
    assert hung["verdict"] == "hold"
    assert str(hung["observation_digest"]).startswith("sha256:")
    assert hung["policy_digest"] is None
    run.controller.close()
    replayed = backtest(path, "static", {}, tmp_path)["decisions"]
    assert [one["observed"] for one in replayed] == ["same"] * len(replayed)


def test_a_journal_that_cannot_be_read_for_a_moment_costs_no_decision(
    tmp_path: Path, played_run: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = played_run.Run(make(played_run, tmp_path, hangs=-1, timeout=60))
    controller = run.controller
    asked = policy_request.history_request

    def elsewhere(*args: Any) -> dict[str, Any]:
        return asked(*args) | {"journal": str(tmp_path / "away" / "journal.db")}

    monkeypatch.setattr(policy_decisions, "history_request", elsewhere)
    with pytest.raises(policy_request.UnreadError, match="away"):
        run.train(6)
    assert not run.history()
    monkeypatch.undo()
    monkeypatch.setattr(scoring, "Evaluator", played_run.QuickEvaluator)
    run.settle()
    assert [one["reason"] for one in run.history()] == ["1 evaluations, 0 decisions"]
    controller.close()


def test_a_child_that_waits_begins_when_it_is_given_its_request(tmp_path: Path) -> None:
    module, log = "mixloop.controller.decisions.policy_process", tmp_path / "policy.log"
    ready, lost = WaitingChild(module, log=log), WaitingChild(module, log=log)
    try:
        lost.kill()
        assert not lost.give("{}", 60.0)
        assert ready.running
        request = {"ref": "static", "options": {}, "base": str(tmp_path), "memory": 8192}
        wanted = {"check": True, "sources": ["a"], "benchmarks": ["mmlu"], "padding": "x" * 10**6}
        assert ready.give(json.dumps(request | wanted), 60.0)
        while ready.running:
            time.sleep(0.01)
        assert read_answer(ready).kind == "hold", log.read_text()
    finally:
        ready.close()
        lost.close()
