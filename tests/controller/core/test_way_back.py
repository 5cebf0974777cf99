"""The way back: a run that became worse returns to the last good mixture, whatever the answer."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from mixloop.contract import Request
from mixloop.controller.config import RunConfig
from mixloop.controller.core import (
    Answer,
    DecisionRecord,
    RequestContext,
    make_decision,
    reply_to,
)
from mixloop.policies.evidence import PolicyStanding, held_since
from mixloop.policies.interface import Observation, PastDecision, Source
from mixloop.tools.simulate.virtual_run import status_of

NOW = {"web": 0.3, "code": 0.7}
GOOD = {"web": 0.8, "code": 0.2}
FALLEN = PolicyStanding(
    back_to=GOOD,
    why="the objective is 0.1 below its level before d-000003, twice running",
    evidence={"rule": "regression", "state": "probation", "since": "d-000003"},
)
PROPOSAL = Answer(
    "proposal", {"weights": {"web": 0.2, "code": 0.8}, "reason": "more code", "plan": [],
                 "evidence": {}}
)  # fmt: skip


def run_yaml(**sections: Any) -> RunConfig:
    data: dict[str, Any] = {
        "run": {"id": "r", "dir": "r"},
        "budget": 100_000,
        "sources": {n: {"path": n, "tokens": 10**9, "weight": w} for n, w in GOOD.items()},
        "evals": {"every": 1000},
        "trainer": {"sequence_length": 10, "micro_batch": 1, "poll_every": 1},
    }
    return RunConfig.model_validate(data | sections)


def decided(
    standing: PolicyStanding | None,
    answer: Answer = PROPOSAL,
    config: RunConfig | None = None,
    pins: dict[str, float] | None = None,
    **seen: Any,
) -> DecisionRecord:
    observation = Observation.model_validate(
        {
            "run": "r",
            "tokens": 30_000,
            "budget": 100_000,
            "generation": 4,
            "sources": {name: Source(unique_tokens=10**9) for name in NOW},
            "weights": NOW,
        }
        | seen
    )
    return make_decision(
        answer,
        observation,
        config or run_yaml(),
        status=status_of(observation),
        last_intervention=29_000,
        generation=5,
        vetoes=(),
        standing=standing,
        pins=pins,
    )


def test_the_mixture_goes_back_whole_and_at_once() -> None:
    """Past max_change, dwell, the approval of a person and an order that is not yet in force."""
    config = run_yaml(guards={"dwell": 20_000}, approval={"above": 0.05})
    for answer in (PROPOSAL, Answer("hold", {"reason": "-", "verdict": "hold", "evidence": {}})):
        decision = decided(FALLEN, answer, config, in_force=False)
        assert (decision.verdict, decision.asked_by, decision.policy) == (
            "intervene",
            "controller",
            "guards",
        )
        assert decision.weights_after == pytest.approx(GOOD)
        assert decision.order is not None
        assert decision.order.generation == 5
        assert decision.reason == FALLEN.why
        assert decision.approval is None
    assert "more code" in decided(FALLEN).evidence["instead of"]


def test_the_hard_guards_hold_on_the_way_back() -> None:
    pinned = decided(FALLEN, pins={"code": 0.5})
    assert pinned.weights_after == pytest.approx({"web": 0.5, "code": 0.5})
    scarce = {
        "web": Source(unique_tokens=1000, drawn=5000, epochs=5.0),
        "code": Source(unique_tokens=10**9),
    }
    spent = decided(FALLEN, sources=scarce, weights={"web": 0.0, "code": 1.0})
    assert spent.asked_by == "policy", "nothing legal is left of it: decided as always"


def test_the_trainers_own_limit_is_kept_and_the_rest_follows() -> None:
    decision = decided(FALLEN, config=run_yaml(trainer={
        "sequence_length": 10, "micro_batch": 1, "poll_every": 1, "limits": {"max_change": 0.2},
    }))  # fmt: skip
    assert decision.weights_after == pytest.approx({"web": 0.5, "code": 0.5})
    assert decision.evidence["back_to"] == GOOD


def test_what_came_meanwhile_is_not_overtaken() -> None:
    stale = decided(FALLEN, generation=4).asked_by
    assert stale == "controller"
    decision = make_decision(
        PROPOSAL,
        Observation(sources={n: Source(unique_tokens=10**9) for n in NOW}, weights=NOW),
        run_yaml(),
        status=status_of(
            Observation(
                run="r", generation=1, weights=NOW, budget=100_000,
                sources={n: Source(unique_tokens=10**9) for n in NOW},
            )
        ),
        last_intervention=None,
        generation=2,
        vetoes=(),
        standing=FALLEN,
    )  # fmt: skip
    assert decision.verdict == "superseded"


@pytest.mark.parametrize(
    ("standing", "verdict", "change"),
    [
        (None, "intervene", 0.1),
        (PolicyStanding("probation", "d-000003", 0.5), "intervene", 0.05),
        (PolicyStanding("held", "d-000007"), "hold", 0.0),
    ],
)
def test_a_policy_on_probation_takes_smaller_steps_and_a_held_one_none(
    standing: PolicyStanding | None, verdict: str, change: float
) -> None:
    answer = Answer("proposal", {**PROPOSAL.payload, "weights": {"web": 0.1, "code": 0.9}})
    decision = decided(standing, answer)
    assert decision.verdict == verdict
    moved = decision.weights_after["code"] - decision.weights_before["code"]
    assert moved == pytest.approx(change)
    if standing is not None:
        notes = [note for note in decision.guards if note.guard == "regression"]
        assert standing.since in notes[0].detail
    if verdict == "hold":
        assert "mixloop resume" in decision.reason


def test_resume_lets_a_held_policy_decide_again() -> None:
    request = Request(id="r-1", verb="resume", by="ann", at="now", reason="I looked")
    context = RequestContext(
        config=run_yaml(), status=None, observation=None, last_intervention=None, generation=5,
        newest=4, asked=NOW, pins={}, paused=False, decision=None, approval="",
    )  # fmt: skip
    assert reply_to(request, context).text == "not paused"
    outcome = reply_to(request, replace(context, held="d-000007"))
    decision = outcome.decision
    assert decision is not None
    assert (decision.verdict, decision.asked_by) == ("hold", "operator")
    assert "held since d-000007, decides again" in outcome.text
    assert "I looked" in decision.reason
    past = [
        PastDecision(id="d-000007", step=1, tokens=1, verdict="intervene",
                     evidence={"rule": "regression", "state": "held"}),
        PastDecision(id="d-000008", step=1, tokens=1, verdict=decision.verdict,
                     evidence=decision.evidence),
    ]  # fmt: skip
    assert held_since(past[:1]) == "d-000007"
    assert held_since(past) == ""
