"""Did it help: one window for every place that tells of an order."""

from __future__ import annotations

import json
from dataclasses import replace
from html import unescape
from types import SimpleNamespace
from typing import Any

import pytest

from mixloop.controller.core import calls, outcome_lines
from mixloop.controller.decisions import Outcomes
from mixloop.controller.decisions.order_outcomes import OutcomeWindow, outcome_window
from mixloop.controller.journal import queries
from mixloop.controller.report import gather
from mixloop.controller.report.page import page


def windows(run: Any) -> dict[str, dict[str, Any]]:
    """Outcomes by decision, of those whose window has both ends."""
    entries = [e for e in run.history() if e["outcome"] and e["outcome"]["state"] == "scored"]
    return {entry["id"]: entry["outcome"] for entry in entries}


def test_history_report_and_mlflow_tell_one_window(play: Any) -> None:
    run = play()
    run.train(40)
    told = windows(run)
    assert len(told) >= 3
    report = gather(run.path)
    assert {e["id"]: e["outcome"] for e in report.decisions if e["id"] in told} == told
    shown = unescape(page(report))
    for name, outcome in told.items():
        sent = queries.entry(run.journal, f"outcome:{name}")
        assert sent is not None
        assert json.loads(json.dumps(outcome["benchmarks"])) == sent.payload["benchmarks"]
        (tags, span) = calls("outcome", sent.payload)
        assert tags[1]["tags"]["outcome_step"] == outcome["step"]
        assert span[1]["outputs"] == sent.payload["benchmarks"]
        (line,) = outcome_lines(outcome)
        assert f"step {outcome['from_step']} → {outcome['step']}" in line
        assert line in shown


def test_an_order_within_the_window_of_another_is_named(play: Any) -> None:
    run = play(policy={"use": "static"})
    run.train(5)
    run.tell("set", "code=0.2")
    run.train(1)
    run.tell("set", "code=0.3")
    run.train(10)
    first, second = (order for order in queries.orders(run.journal))
    assert first.applied_tokens is not None
    assert second.applied_tokens is not None
    told = windows(run)
    assert told[first.decision]["shared_with"] == [second.decision]
    assert told[second.decision]["shared_with"] == [first.decision]
    assert f"(shared with {second.decision})" in outcome_lines(told[first.decision])[0]
    sent = queries.entry(run.journal, f"outcome:{first.decision}")
    assert sent is not None
    assert calls("outcome", sent.payload)[0][1]["tags"]["outcome_shared_with"] == second.decision


def test_a_receipt_is_told_beside_the_gains() -> None:
    gain = {"metric": "bits_per_byte", "gain": 0.1, "stderr": 0.01, "z": 9.0, "n": 50}
    gain |= {"from_step": 1, "to_step": 2}
    receipt = {"effect": -0.05, "stderr": 0.01, "low": -0.09, "high": -0.01, "n": 3}
    outcome = {"benchmarks": {"math": gain}, "receipt": receipt | {"metric": "bits_per_byte"}}
    told = outcome_lines(outcome)
    assert told[1] == (
        "receipt: -0.0500 bits_per_byte against 3 twin points without it, "
        "-0.0900 to -0.0100 at any time"
    )


def test_the_pace_before_is_over_a_window_of_the_same_length(play: Any) -> None:
    run = play(policy={"use": "static"})
    run.train(12)
    run.tell("set", "code=0.2")
    run.train(12)
    (order,) = queries.orders(run.journal)

    def window() -> OutcomeWindow:
        places = queries.scored_places(run.journal), queries.applied_places(run.journal)
        found = outcome_window(order, *places)
        assert found is not None
        return found

    first = window()
    assert first.earlier is not None
    assert first.end - first.start == first.start - first.earlier
    with run.journal.transaction() as tx:  # the one in between was never scored
        tx.execute("UPDATE evaluations SET state = 'skipped' WHERE step = ?", (first.earlier,))
    assert window() == replace(first, earlier=None)
    found = Outcomes(run.journal).of(order)
    assert found is not None
    effect = found["benchmarks"]["gsm8k"]
    assert (effect["gain_before"], effect["steps_before"]) == (None, None)
    assert effect["gain"] == pytest.approx((first.end - first.start) / 1000)


def test_a_window_ends_when_half_of_it_is_under_the_order() -> None:
    def window(applied: int, *tokens: int) -> OutcomeWindow | None:
        order = SimpleNamespace(applied_tokens=applied, decision="d-000001")
        scored = [(at // 10, at) for at in tokens]
        return outcome_window(order, scored, [("d-000001", applied), ("d-000002", 250)])  # type: ignore[arg-type]

    assert window(190, 100, 200) is None, "one right after the change says nothing of it"
    assert window(190, 100, 200, 300) == OutcomeWindow(10, 30, None, ("d-000002",))
    assert window(190, 300) is None, "nothing before it"
    assert window(140, 0, 100, 200) == OutcomeWindow(10, 20, 0, ())
    assert window(140, 5, 100, 200) == OutcomeWindow(10, 20, 0, ()), "to within a tenth"
    assert window(140, 20, 100, 200) == OutcomeWindow(10, 20, None, ())
    assert window(100, 0, 100, 200) == OutcomeWindow(10, 20, 0, ()), "from the checkpoint on"


def test_one_gain_is_shared_from_either_side() -> None:
    applied = [("a", 121), ("b", 141), ("c", 191), ("d", 300)]
    scored = [(at, at) for at in (51, 103, 154, 206, 257, 308, 360, 411)]
    shared = {}
    for name, at in applied:
        order = SimpleNamespace(applied_tokens=at, decision=name)
        window = outcome_window(order, scored, applied)  # type: ignore[arg-type]
        assert window is not None
        shared[name] = (window.start, window.end, window.shared)
    assert shared == {
        "a": (103, 154, ("b",)),
        "b": (103, 206, ("a", "c")),
        "c": (154, 257, ("b",)),  # of 154 to 206, b tells too
        "d": (257, 360, ()),
    }
