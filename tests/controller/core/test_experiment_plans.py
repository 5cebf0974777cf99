"""Receipts planned with decisions, and where there can be none."""

from __future__ import annotations

import math
from typing import Any

import pytest

from mixloop.controller.config import RunConfig
from mixloop.controller.core import Answer, DecisionRecord, make_decision
from mixloop.policies.interface import Evaluation, ExperimentResult, Observation, Source
from mixloop.tools.simulate.virtual_run import status_of

NOW = {"web": 0.8, "code": 0.2}
PROPOSAL = {"weights": {"web": 0.7, "code": 0.3}, "reason": "more code", "plan": [], "evidence": {}}


def decided(
    kind: str = "proposal", on: bool = True, reason: str = "-", **seen: Any
) -> DecisionRecord:
    config = RunConfig.model_validate(
        {
            "run": {"id": "r", "dir": "r"},
            "budget": 100_000,
            "sources": {n: {"path": n, "tokens": 10**9, "weight": w} for n, w in NOW.items()},
            "experiments": {"budget": "10%", "receipts": on},
            "trainer": {"sequence_length": 10, "micro_batch": 1, "poll_every": 1},
        }
    )
    places = seen.pop("places", (1000, 2000, 4000, 5000))
    fields: dict[str, Any] = {
        "tokens": 5000,
        "budget": 100_000,
        "sources": {name: Source(unique_tokens=10**9) for name in NOW},
        "weights": NOW,
        "evaluations": tuple(Evaluation(step=at // 10, tokens=at) for at in places),
        "experiment_tokens": 2000,
    }
    observation = Observation.model_validate(fields | seen)
    payloads = {
        "proposal": PROPOSAL,
        "hold": {"reason": reason, "evidence": {}, "verdict": "hold"},
        "experiment": {"reason": "-", "branches": [{"web": math.nan}], "tokens": 100},
    }
    return make_decision(
        Answer(kind, payloads[kind]),
        observation,
        config,
        status=status_of(observation),
        last_intervention=None,
        generation=1,
        vetoes=(),
    )


def test_a_change_of_the_policys_is_planned_with_its_twin() -> None:
    made = decided()
    assert made.verdict == "intervene"
    assert made.experiment is not None
    assert (made.experiment.planned, made.experiment.refused) == (2000, None)
    asked = made.experiment.asked
    assert asked["branches"] == [asked["weights"]] == [pytest.approx(NOW)]
    assert (asked["tokens"], asked["schedule"], asked["receipt"]) == (2000, "as the run", True)
    assert decided(on=False).experiment is None
    assert decided("hold").experiment is None


@pytest.mark.parametrize(
    ("seen", "why"),
    [
        ({"places": (5000,)}, "before the second evaluation nothing tells how far apart they are"),
        ({"experiment_tokens": 1999}, "a twin of 2,000 tokens, the budget has 1,999 left"),
        ({"budget": 8000}, "training ends before a twin could"),
        (
            {"plan": ((7000, NOW), (100_000, {"web": 0.5, "code": 0.5}))},
            "the mixture before it would change by its own plan, a twin's can't",
        ),
        (
            {"receipts": (ExperimentResult(id="e-000001", receipt=True, state="running"),)},
            "e-000001 has not ended: one at a time",
        ),
    ],
)
def test_where_there_can_be_none_the_decision_says_why(seen: dict[str, Any], why: str) -> None:
    made = decided(**seen)
    assert made.verdict == "intervene"
    assert made.experiment is None
    (note,) = (note for note in made.guards if note.guard == "experiments")
    assert note.detail == f"no receipt: {why}"


def test_a_share_that_is_no_number_is_the_policys_failure() -> None:
    """The journal could not tell it to the next decision."""
    made = decided("experiment")
    assert (made.verdict, made.experiment) == ("hold", None)
    assert made.reason.startswith("the policy failed: ")


def test_a_reason_without_end_is_cut() -> None:
    made = decided("hold", reason="why " * 1000)
    assert made.reason.endswith("… (cut: 4,000 characters)")
    assert len(made.reason) < 2100
