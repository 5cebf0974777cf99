"""What people tell the controller, through the real command, files, journal and guards."""

from __future__ import annotations

import os
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from mixloop.cli.app import app
from mixloop.common.errors import BadInput
from mixloop.contract import RunPaths, read_schedule, requests
from mixloop.controller.config import load_config
from mixloop.controller.core import RequestRow, calls
from mixloop.controller.core.operator_requests import completed
from mixloop.controller.journal import queries
from mixloop.controller.loop import daemon, scoring
from mixloop.controller.views import run_status as views


def test_set_orders_a_mixture_that_the_trainer_applies(play: Any) -> None:
    run = play(policy={"use": "static"})
    run.train(1)
    result = run.tell("set", "code=0.3", "--reason", "more code")
    assert result.exit_code == 0
    run.train(4)
    assert run.in_force() == pytest.approx({"web": 0.56, "code": 0.3, "maths": 0.14}, abs=1e-6)
    (entry,) = [e for e in run.history() if e["asked_by"] == "operator"]
    assert entry["verdict"] == "intervene"
    assert entry["applied_step"] is not None
    assert "more code" in entry["reason"]
    assert entry["evidence"]["operator"]["by"] == requests.who()
    skipped = [n for n in entry["guards"] if n["guard"] == "trust region"]
    assert "skipped for an operator's order" in skipped[0]["detail"]
    assert len(list((run.paths.requests / "taken").iterdir())) == 1
    assert requests.waiting(run.paths.requests) == []


def test_what_hard_guards_refuse_names_the_nearest_and_can_be_forced(play: Any) -> None:
    guards = {"max_change": 0.2, "max_epochs": None, "cap": 0.8}
    run = play(policy={"use": "static"}, guards=guards)
    run.train(1)
    run.tell("set", "web=0.9", "code=0.05", "maths=0.05")
    refused = run.answer()
    assert refused["state"] == "refused"
    assert refused["answer"]["nearest"] == pytest.approx({"web": 0.8, "code": 0.1, "maths": 0.1})
    assert run.history()[-1]["verdict"] == "refused"
    run.tell("set", "web=0.9", "code=0.05", "maths=0.05", "--force")
    run.train(4)
    assert run.in_force()["web"] == pytest.approx(0.9, abs=1e-6)
    forced = [e for e in run.history() if "forced past the hard guards" in e["reason"]]
    assert len(forced) == 1
    run.train(6)
    assert run.in_force()["web"] == pytest.approx(0.9, abs=1e-6), "a hold must not undo it"


def test_paused_runs_score_and_decide_nothing(play: Any) -> None:
    run = play()
    run.tell("pause", "--reason", "a holiday")
    run.train(9)
    scored = run.journal.value("SELECT COUNT(*) FROM evaluations WHERE state = 'scored'")
    assert scored == 2
    assert run.history() == []
    assert views.status(run.paths, run.journal)["operators"]["paused"] is True
    run.tell("resume")
    run.settle()
    assert [e["step"] for e in run.history()] == [40], "the newest is decided on, and it alone"


def test_pinned_sources_keep_their_share_whatever_the_policy_wants(play: Any) -> None:
    run = play()
    run.train(1)
    run.tell("pin", "maths=0.25")
    run.train(20)
    interventions = [
        e for e in run.history() if e["asked_by"] == "policy" and e["verdict"] == "intervene"
    ]
    assert len(interventions) >= 2
    assert all(e["weights_after"]["maths"] == pytest.approx(0.25) for e in interventions)
    assert all(e["weights_proposed"]["maths"] != pytest.approx(0.25) for e in interventions)
    run.tell("set", "maths=0.1")
    assert "pinned" in run.answer()["answer"]["text"]
    run.tell("unpin", "maths")
    assert run.answer()["state"] == "done"
    assert views.status(run.paths, run.journal)["operators"]["pins"] == {}


def test_a_large_change_waits_for_a_person(play: Any) -> None:
    run = play(approval={"above": 0.05})
    run.train(4)
    (first,) = run.history()
    assert first["verdict"] == "awaiting-approval"
    assert first["approval"]["state"] == "waiting"
    assert first["generation"] is None
    run.tell("approve", first["id"], "--reason", "looks right")
    run.train(4)
    by_person = next(e for e in run.history() if e["asked_by"] == "operator")
    assert by_person["applied_step"] is not None
    assert by_person["weights_after"] == pytest.approx(first["weights_proposed"], abs=1e-6)
    again = next(e for e in run.history() if e["id"] == first["id"])
    assert again["approval"]["state"] == "approved"
    assert again["approval"]["made"] == by_person["id"]
    run.tell("approve", first["id"])
    assert "approved already" in run.answer()["answer"]["text"]


def test_an_approval_after_another_order_is_superseded(play: Any) -> None:
    run = play(approval={"above": 0.05})
    run.train(4)
    (first,) = run.history()
    run.tell("set", "code=0.15")
    run.tell("approve", first["id"])
    assert run.answer()["state"] == "refused"
    entry = next(e for e in run.history() if e["id"] == first["id"])
    assert entry["approval"]["state"] == "superseded"


def test_rejected_and_unanswered_proposals_hold_the_mixture(play: Any) -> None:
    run = play(approval={"sources": {"code": 0.05}, "timeout": 400})
    before = run.in_force() if run.controller.observer.news.status else None
    run.train(4)
    run.tell("reject", "1")
    run.train(8)
    states = [e["approval"]["state"] for e in run.history() if e["approval"]]
    assert states[0] == "rejected"
    assert "expired" in states
    assert before is None or run.in_force() == before
    assert run.journal.value("SELECT COUNT(*) FROM orders") == 0


def test_rollback_restores_the_mixture_before_a_decision(play: Any) -> None:
    run = play()
    run.train(8)
    changed = next(e for e in run.history() if e["applied_step"] is not None)
    run.tell("pause")
    run.tell("rollback", changed["id"])
    run.train(4)
    assert run.in_force() == pytest.approx(changed["weights_before"], abs=1e-6)
    ledger = views.status(run.paths, run.journal)["ledger"]
    assert sum(source["tokens"] for source in ledger.values()) > 0
    run.tell("rollback", "d-000999")
    assert "no decision is called" in run.answer()["answer"]["text"]


def test_nothing_is_ordered_once_training_has_ended(play: Any) -> None:
    run = play(policy={"use": "static"}, budget=2400)
    for _ in range(7):  # to the end, without the controller ending first
        run.trainer.advance()
    result = CliRunner().invoke(app, ["set", str(run.path), "code=0.3", "--wait", "0"])
    assert result.exit_code == 0
    run.settle()
    assert run.answer()["state"] == "refused"
    assert "training has ended" in run.answer()["answer"]["text"]
    assert run.journal.value("SELECT COUNT(*) FROM orders") == 0


def test_requests_wait_for_a_controller_and_are_taken_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, played_run: ModuleType
) -> None:
    monkeypatch.setattr(scoring, "Evaluator", played_run.QuickEvaluator)
    path = played_run.make_run(tmp_path, policy={"use": "static"})
    config = load_config(path)
    trainer = played_run.FileTrainer(config)
    trainer.advance()
    result = CliRunner().invoke(app, ["set", str(path), "code=0.3", "--wait", "0"])
    assert result.exit_code == 0
    assert "no controller runs here" in result.output
    (file,) = requests.waiting(RunPaths(config.run.dir).requests)
    copy = file.read_bytes()
    run = played_run.Run(path)
    try:
        run.settle()
        assert run.answer()["state"] == "done"
        file.write_bytes(copy)  # the rename was lost in a crash
        run.settle()
        assert run.journal.value("SELECT COUNT(*) FROM requests") == 1
        assert run.journal.value("SELECT COUNT(*) FROM orders") == 1
    finally:
        run.controller.close()


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b'{"schema": "mixloop/request/1"}',
        b'{"schema": "mixloop/request/1", "id": "r-000000000000", "verb": "rm -rf"}',
        b'{"schema": "mixloop/request/1", "id": "r-000000000000", "verb": "set", '
        b'"weights": {"web": 2}}',
        b"\xff\xfe",
        b"[" * 100_000,
    ],
)
def test_rubbish_in_the_requests_is_put_aside_and_told(play: Any, body: bytes) -> None:
    run = play(policy={"use": "static"})
    run.paths.requests.mkdir()
    (run.paths.requests / f"{1:013d}-r-{0:012x}.json").write_bytes(body)
    run.settle()
    assert requests.waiting(run.paths.requests) == []
    assert len(list((run.paths.requests / "refused").iterdir())) == 1
    assert run.journal.value("SELECT COUNT(*) FROM events WHERE kind = 'request-refused'") == 1


def test_a_strangers_request_is_refused(tmp_path: Path) -> None:
    path = requests.submit(tmp_path / "requests", requests.new_request("pause", "now"))
    with pytest.raises(requests.RequestError, match="may not steer"):
        requests.read(path, frozenset({os.getuid() + 1}))
    link = path.with_name(f"{2:013d}-r-{0:012x}.json")
    link.symlink_to(path)
    with pytest.raises(OSError, match="symbolic link"):
        requests.read(link, frozenset({os.getuid()}))


@pytest.mark.parametrize(
    ("command", "complaint"),
    [
        (["set", "cod=0.3"], "did you mean"),
        (["set", "code=1.3"], "share from 0 to 1"),
        (["set", "code=0.6", "web=0.6"], "more than 1"),
        (["pin", "code"], "SOURCE=SHARE"),
        (["set", "code=0.1", "code=0.2"], "given twice"),
    ],
)
def test_bad_commands_are_refused_before_they_are_written(
    play: Any, command: list[str], complaint: str
) -> None:
    run = play(policy={"use": "static"})
    result = CliRunner().invoke(app, [command[0], str(run.path), *command[1:]])
    assert isinstance(result.exception, BadInput)
    assert complaint in str(result.exception)
    assert requests.waiting(run.paths.requests) == []


def test_the_exported_schedule_is_a_policy_another_run_can_follow(play: Any) -> None:
    run = play(policy={"use": "static"})
    run.train(1)
    run.tell("set", "code=0.3")
    run.train(5)
    result = CliRunner().invoke(app, ["export", str(run.path), "--scale", "240k"])
    assert result.exit_code == 0, result.output
    section = yaml.safe_load(result.output)["policy"]
    stages = section["with"]["stages"]
    assert [round(stage["weights"]["code"], 6) for stage in stages] == [0.1, 0.3]
    segment = read_schedule(run.paths.schedule).segments[1]
    assert stages[0]["until"] == segment.sample * 10 * 10
    other = run.path.parent / "other.yaml"
    data = yaml.safe_load(run.path.read_text()) | {"policy": section, "budget": 240_000}
    other.write_text(yaml.safe_dump(data))
    from mixloop.policies.interface import load_policy

    config = load_config(other)
    load_policy(config.policy.use, config.policy.options)


def test_shares_not_named_share_the_rest() -> None:
    now = {"a": 0.5, "b": 0.3, "c": 0.2}
    assert completed({"a": 0.0}, now, now)[0] == pytest.approx({"a": 0.0, "b": 0.6, "c": 0.4})
    assert completed({"a": 0.4, "b": 0.6}, now, now)[0] == pytest.approx(
        {"a": 0.4, "b": 0.6, "c": 0}
    )
    assert completed({"a": 0.5}, {"a": 1.0}, ["a", "b"])[0] is None
    assert completed({"a": 0.9, "b": 0.2}, now, now)[0] is None


def test_sources_change_between_starts(play: Any, played_run: ModuleType) -> None:
    """A retired source is left behind, a new one waits for the trainer to be restarted."""
    run = play(policy={"use": "static"})
    run.train(1)
    run.tell("set", "code=0", "--reason", "enough code")
    run.train(4)
    assert run.in_force()["code"] == 0
    run.controller.close()
    data = yaml.safe_load(run.path.read_text())
    del data["sources"]["code"]
    played_run.write_store(run.path.parent / "new")
    data["sources"]["new"] = {"path": "new", "standby": True}
    data["sources"]["web"]["weight"], data["sources"]["maths"]["weight"] = 0.8, 0.2
    run.path.write_text(yaml.safe_dump(data))
    config = load_config(run.path)
    run.controller = daemon.Controller(config, run.path.parent, run.said.append)
    run.journal = run.controller.journal
    decided = len(run.history())
    run.train(6)
    fence = read_schedule(run.paths.schedule).accepted[0]
    assert [line for line in run.said if line.startswith("sources.new: new in run.yaml")]
    assert len(run.history()) == decided, "nothing is decided"
    assert run.controller.observer.news.status.accepted.fence > fence, "the order was taken on"
    assert run.controller.observer.news.status.rejected == ()

    run.trainer.restart(config)
    run.train(4)
    assert len(run.history()) > decided
    run.tell("set", "new=0.1")
    run.train(4)
    assert run.in_force() == pytest.approx({"web": 0.72, "maths": 0.18, "new": 0.1}, abs=1e-6)
    assert [s.weights.get("code", 0) for s in read_schedule(run.paths.schedule).segments][-1] == 0


DRIFTS = '''
from mixloop.policies import Proposal


class Drifts:
    """Asks for a fifth of code, by little more each time; for a third after 5,000 tokens."""

    def decide(self, observation):
        code = 0.2 + 1e-4 * len(observation.evaluations)
        code = code if observation.tokens < 5_000 else 0.3
        rest = 1 - code
        return Proposal({"web": rest * 0.8, "maths": rest * 0.2, "code": code}, f"code {code:.4f}")
'''


def drifting(play: Any, tmp_path: Path, **approval: Any) -> Any:
    (tmp_path / "drifts.py").write_text(DRIFTS)
    return play(approval={"above": 0.05, **approval}, policy={"use": "./drifts.py:Drifts"})


def states(run: Any) -> list[tuple[str, str | None]]:
    return [(e["verdict"], e["approval"] and e["approval"]["state"]) for e in run.history()]


def test_a_proposal_asked_for_again_goes_on_waiting(play: Any, tmp_path: Path) -> None:
    run = drifting(play, tmp_path)
    run.train(12)
    assert len(run.history()) > 2
    assert states(run)[0] == ("awaiting-approval", "waiting")
    assert set(states(run)[1:]) == {("hold", None)}
    assert "as d-000001, which waits for approval" in run.history()[1]["reason"]
    run.tell("approve", "d-000001")
    assert run.answer()["state"] == "done"


def test_another_proposal_takes_the_place_of_the_waiting_one(play: Any, tmp_path: Path) -> None:
    run = drifting(play, tmp_path)
    run.train(30)
    waited = [state for verdict, state in states(run) if verdict == "awaiting-approval"]
    assert waited == ["superseded", "waiting"]
    told = queries.entry(run.journal, "approval:d-000001")
    assert told is not None, "MLflow hears of it too"
    assert told.payload["tags"]["approval"] == "superseded"


def test_what_would_be_approved_is_shown(play: Any, tmp_path: Path) -> None:
    run = drifting(play, tmp_path, timeout=5_000)
    run.train(4)
    (entry,) = run.history()
    approval = entry["approval"]
    assert approval["before"] == pytest.approx({"web": 0.72, "code": 0.1, "maths": 0.18})
    assert approval["after"] == pytest.approx(entry["weights_proposed"])
    assert approval["until_tokens"] == entry["tokens"] + 5_000
    (awaiting,) = views.status(run.paths, run.journal)["operators"]["awaiting"]
    assert awaiting["after"] == approval["after"]
    assert awaiting["reason"] == entry["reason"]
    for command in (["status"], ["explain", "1"]):
        shown = CliRunner().invoke(app, [command[0], str(run.path), *command[1:]]).output
        assert "code 0.100 → 0.200" in shown, command
        assert "until 6.6k tokens" in shown, command
    table = CliRunner().invoke(app, ["history", str(run.path)]).output
    assert "asks for" in table
    sent = queries.entry(run.journal, "decision:d-000001")
    assert sent is not None
    (trace,) = calls("decision", sent.payload, queries.decision(run.journal, "d-000001"))
    assert trace[1]["response"]["weights_if_approved"]["code"] == pytest.approx(0.2001)
    assert trace[1]["tags"]["approval"] == "waiting"
    assert "asks for code 0.100 → 0.200" in trace[1]["previews"][1]


def test_the_guarded_mixture_is_what_approval_orders(play: Any, tmp_path: Path) -> None:
    (tmp_path / "drifts.py").write_text(DRIFTS)
    run = play(
        approval={"above": 0.05},
        policy={"use": "./drifts.py:Drifts"},
        guards={"max_change": 0.06, "max_epochs": None},
    )
    run.train(4)
    after = run.history()[0]["approval"]["after"]
    assert after["code"] == pytest.approx(0.16, abs=2e-3)
    run.tell("approve", "1")
    assert run.history()[-1]["weights_after"] == pytest.approx(after, abs=1e-6)
    assert run.answer()["answer"]["text"].endswith(
        "is ordered: code 0.100 → 0.160, web 0.720 → 0.672, maths 0.180 → 0.168"
    )


def test_guards_that_changed_while_a_proposal_waited(play: Any, tmp_path: Path) -> None:
    run = drifting(play, tmp_path)
    run.train(4)
    run.controller.close()
    data = yaml.safe_load(run.path.read_text())
    run.path.write_text(yaml.safe_dump({**data, "guards": {"max_change": 0.03}}))
    run.controller = daemon.Controller(load_config(run.path), tmp_path, run.said.append)
    run.journal = run.controller.journal
    assert states(run) == [("awaiting-approval", "waiting")]
    run.tell("approve", "1")
    told = run.answer()["answer"]["text"]
    assert "is ordered: code 0.100 → 0.130, web 0.720 → 0.696" in told
    assert "as the guards are now; it was shown as code 0.100 → 0.200" in told


@pytest.mark.parametrize(
    "command",
    [
        ("set", "code=0.2"),
        ("pin", "code=0.2"),
        ("unpin",),
        ("pause",),
        ("resume",),
        ("approve", "1"),
        ("reject", "1"),
        ("rollback", "1"),
    ],
)
def test_a_finished_run_is_told_nothing(play: Any, command: tuple[str, ...]) -> None:
    run = play(policy={"use": "static"}, budget=2400)
    run.train(8)  # to the end, the controller's too
    for target in (run.path, run.paths.dir):
        done = CliRunner().invoke(app, [command[0], str(target), *command[1:]])
        assert isinstance(done.exception, BadInput)
        assert "training has ended after 2.4k of 2.4k tokens" in str(done.exception)
    assert requests.waiting(run.paths.requests) == []


@pytest.mark.parametrize("years", [-400, -80, -1e-6, 300])
def test_what_waits_is_taken_in_the_order_it_was_asked(
    play: Any, monkeypatch: pytest.MonkeyPatch, years: float
) -> None:
    """A clock set back turned a pause and its resume round; one set far wrong hid both for ever."""
    run = play(policy={"use": "static"})
    for verb, stepped in (("pause", 0.0), ("resume", years), ("pause", 0.0), ("resume", years)):
        clock = SimpleNamespace(time_ns=lambda by=stepped: time.time_ns() + int(by * 3.156e16))
        monkeypatch.setattr(requests, "time", clock)
        command = [verb, str(run.path), "--wait", "0"]
        assert CliRunner().invoke(app, command).exit_code == 0
    assert len(requests.waiting(run.paths.requests)) == 4
    run.settle()
    assert requests.waiting(run.paths.requests) == []
    verbs = [row.verb for row in run.journal.select(RequestRow, "ORDER BY rowid")]
    assert verbs == ["pause", "resume"] * 2
    assert not queries.paused(run.journal)
