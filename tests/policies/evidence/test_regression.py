"""The guard against regressions: what is caught, what is not, and what follows from the history."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pytest

from mixloop.policies.evidence import PolicyStanding, RegressionSettings, policy_standing
from mixloop.policies.interface import (
    BenchmarkScore,
    Evaluation,
    ExperimentResult,
    Goal,
    Metric,
    Observation,
    PastDecision,
    ScoredBranch,
    Source,
)

EVERY, EVALUATIONS = 1000, 40
NAMES = ("mmlu", "gsm8k", "math", "humaneval")
START = {"prose": 0.5, "foreign": 0.1, "maths": 0.4}
BAD = {"prose": 0.3, "foreign": 0.4, "maths": 0.3}
SETTINGS = RegressionSettings()
JITTER = 0.018  # as measured on small real runs, half of it in all benchmarks alike

Scores = Callable[[int, str], float]


def course(index: int, name: str) -> float:
    """A power law that every benchmark follows, from 3.3 to about 2.9 bits per byte."""
    return 2.5 + 0.8 * (index + 1) ** -0.2


def jitter(seed: int, correlation: float = 0.0) -> np.ndarray:
    fresh = np.random.default_rng(seed).normal(size=(EVALUATIONS, len(NAMES) + 1))
    for index in range(1, EVALUATIONS):
        fresh[index] = correlation * fresh[index - 1] + math.sqrt(1 - correlation**2) * fresh[index]
    return JITTER * (fresh[:, 1:] + fresh[:, :1]) / math.sqrt(2)


def observed(
    until: int,
    scores: Scores,
    decisions: Sequence[PastDecision],
    seed: int = 0,
    correlation: float = 0.0,
    missing: Mapping[int, str] | None = None,
    **more: object,
) -> Observation:
    """A run after ``until`` evaluations; an order is in force at the first one after it."""
    off = jitter(seed, correlation)
    evaluations = []
    for index in range(until):
        tokens = EVERY * (index + 1)
        before = [d for d in decisions if d.generation is not None and d.tokens < tokens]
        benchmarks = {
            name: BenchmarkScore(
                metrics={
                    "bits_per_byte": Metric(
                        value=scores(index, name) + float(off[index, place]),
                        stderr=0.006,
                        n=100,
                        higher_is_better=False,
                    )
                }
            )
            for place, name in enumerate(NAMES)
            if (missing or {}).get(index) != name
        }
        evaluations.append(
            Evaluation(
                step=index + 1,
                tokens=tokens,
                generation=before[-1].generation or 0 if before else 0,
                weights=(before[-1].weights_after or START) if before else START,
                benchmarks=benchmarks,
            )
        )
    fields = {
        "sources": {name: Source(unique_tokens=10**9) for name in START},
        "weights": evaluations[-1].weights,
        "tokens": EVERY * until,
        "budget": EVERY * EVALUATIONS,
        "every": EVERY,
        "steering": dict.fromkeys(NAMES, "bits_per_byte"),
        "evaluations": tuple(evaluations),
        "decisions": tuple(decisions),
    }
    return Observation.model_validate(fields | more)


def order(number: int, after: int, weights: Mapping[str, float], **more: object) -> PastDecision:
    """An order decided on the evaluation of this index."""
    fields = {
        "id": f"d-{number:06d}",
        "step": after + 1,
        "tokens": EVERY * (after + 1),
        "verdict": "intervene",
        "generation": number,
        "weights_before": START,
        "weights_after": dict(weights),
    }
    return PastDecision.model_validate(fields | more)


def harmed(index: int, name: str) -> float:
    """The issue's: after the 28th evaluation mathematics falls by 0.04 twice running, and stays."""
    fallen = min(0.12, 0.04 * max(0, index - 27)) if name == "math" else 0.0
    return course(index, name) + fallen + (0.04 if index > 28 else 0.0)


def first_alarm(scores: Scores, decisions: Sequence[PastDecision], seed: int) -> int | None:
    """The number of evaluations at which the mixture goes back; None: it never does."""
    for until in range(8, EVALUATIONS + 1):
        so_far = [decision for decision in decisions if decision.tokens < EVERY * until]
        if policy_standing(observed(until, scores, so_far, seed), SETTINGS).back_to is not None:
            return until
    return None


STEPS = [order(n + 1, 27 + n, {**BAD, "foreign": 0.23 + 0.03 * n, "prose": 0.47 - 0.03 * n})
         for n in range(8)]  # fmt: skip


def test_foreign_text_that_makes_mathematics_fall_is_taken_back() -> None:
    """23% to 44% of it over the last quarter, in steps: stopped while it matters, in every seed."""
    found = [first_alarm(harmed, STEPS, seed) for seed in range(5)]
    assert all(until is not None and until <= 36 for until in found), found
    standing = policy_standing(observed(36, harmed, STEPS[:7], 0), SETTINGS)
    assert standing.back_to is not None
    assert standing.back_to["foreign"] <= 0.26
    assert "twice running" in standing.why
    assert standing.evidence is not None
    assert standing.evidence["state"] == "probation"
    assert standing.evidence["z"] < -2


@pytest.mark.parametrize("correlation", [0.0, 0.3])
def test_harmless_changes_are_left_alone(correlation: float) -> None:
    changes = [order(n + 1, 7 + 4 * n, BAD if n % 2 == 0 else START) for n in range(8)]
    for seed in range(4):
        for until in range(12, EVALUATIONS + 1, 4):
            so_far = [d for d in changes if d.tokens < EVERY * until]
            seen = observed(until, course, so_far, seed, correlation)
            assert policy_standing(seen, SETTINGS).back_to is None, (seed, until)


def jump(index: int, name: str) -> float:
    return course(index, name) + (0.3 if index >= 20 else 0.0)


ONE = [order(1, 19, BAD)]


def test_one_bad_evaluation_is_not_enough() -> None:
    assert policy_standing(observed(21, jump, ONE), SETTINGS).back_to is None
    assert policy_standing(observed(22, jump, ONE), SETTINGS).back_to == pytest.approx(START)
    spike = observed(22, lambda i, n: course(i, n) + (0.3 if i == 20 else 0.0), ONE)
    assert policy_standing(spike, SETTINGS).back_to is None


def test_switched_off_it_says_nothing() -> None:
    assert policy_standing(observed(22, jump, ONE), None) == PolicyStanding()


def test_a_run_that_nobody_changed_is_not_to_blame() -> None:
    assert policy_standing(observed(30, jump, []), SETTINGS) == PolicyStanding()


def trade(index: int, name: str) -> float:
    """Mathematics pays for the three others."""
    by = 0.15 if name == "math" else -0.15
    return course(index, name) + (by if index >= 20 else 0.0)


def test_what_the_objective_is_paid_for_is_allowed_up_to_max_drop() -> None:
    seen = observed(26, trade, ONE)
    assert policy_standing(seen, SETTINGS).back_to is None
    limited = seen.model_copy(update={"objective": {"math": Goal(max_drop=0.05)}})
    standing = policy_standing(limited, SETTINGS)
    assert standing.back_to == pytest.approx(START)
    assert standing.evidence is not None
    assert standing.evidence["what"] == "math"


def test_a_benchmark_that_is_missing_is_no_evidence() -> None:
    gone = observed(22, jump, ONE, missing=dict.fromkeys((20, 21), "math"))
    standing = policy_standing(gone, SETTINGS)  # the others fell too
    assert standing.evidence is not None
    assert standing.evidence["what"] in ("mmlu", "gsm8k", "humaneval")


def test_a_persons_order_is_flagged_and_stays() -> None:
    who = {"operator": {"verb": "set", "by": "ann", "request": "r"}}
    for evidence in (who, {"declared": True, "rule": "stage later"}):
        mine = [order(1, 19, BAD, evidence=evidence)]
        standing = policy_standing(observed(24, jump, mine), SETTINGS)
        assert standing.back_to is None
        assert "d-000001" in standing.flagged
    # what the policy did since is judged by the scores under the person's order alone
    further = [*mine, order(2, 23, {**BAD, "foreign": 0.5, "prose": 0.2})]
    assert policy_standing(observed(27, jump, further), SETTINGS).back_to is None


def test_an_approved_proposal_is_still_the_policys() -> None:
    approved = {"approves": "d-000001", "operator": {"verb": "approve", "by": "ann"}}
    changed = [order(1, 19, BAD, evidence=approved)]
    assert policy_standing(observed(24, jump, changed), SETTINGS).back_to is not None


def way_back(number: int, after: int, state: str = "probation") -> PastDecision:
    evidence = {"rule": "regression", "state": state, "since": "d-000001"}
    return order(number, after, START, weights_before=BAD, evidence=evidence)


def test_after_a_way_back_the_policy_is_on_probation_for_some_evaluations() -> None:
    decisions = [*ONE, way_back(2, 21)]
    for until, state, step in ((23, "probation", 0.5), (29, "probation", 0.5), (30, "free", 1.0)):
        standing = policy_standing(observed(until, course, decisions), SETTINGS)
        assert (standing.state, standing.step) == (state, step), until
        assert standing.back_to is None


def again(index: int, name: str) -> float:
    """Better after the way back, and worse once more."""
    return course(index, name) + (0.3 if 20 <= index < 23 or index >= 32 else 0.0)


def test_the_second_time_it_is_held_until_a_person_or_an_experiment_says_otherwise() -> None:
    second = [*ONE, way_back(2, 22), order(3, 31, BAD)]
    standing = policy_standing(observed(34, again, second), SETTINGS)
    assert standing.back_to == pytest.approx(START)
    assert standing.evidence is not None
    assert standing.evidence["state"] == "held"

    held = [*second, way_back(4, 33, "held")]
    seen = observed(36, course, held)
    assert policy_standing(seen, SETTINGS).state == "held"
    assert policy_standing(seen, SETTINGS).since == "d-000004"

    resumed = order(5, 35, START, verdict="hold", generation=None,
                    evidence={"operator": {"verb": "resume", "by": "ann"}})  # fmt: skip
    free = seen.model_copy(update={"decisions": (*held, resumed)})
    assert policy_standing(free, SETTINGS).state == "free"

    tried = ExperimentResult(id="e-1", tokens=EVERY * 35, weights=START, state="running")
    assert policy_standing(_with(seen, tried), SETTINGS).state == "held"
    done = tried.model_copy(update={"state": "done"})
    assert policy_standing(_with(seen, done), SETTINGS).state == "free"
    early = done.model_copy(update={"tokens": EVERY * 20})
    assert policy_standing(_with(seen, early), SETTINGS).state == "held"


def _with(seen: Observation, *experiments: ExperimentResult) -> Observation:
    return seen.model_copy(update={"experiments": experiments})


def twin(length: int, ahead: float) -> ExperimentResult:
    """A branch from the checkpoint of the first order, at the mixture before it."""
    index = 19 + length
    scores = {
        name: BenchmarkScore(
            metrics={
                "bits_per_byte": Metric(
                    value=course(index, name) - ahead, stderr=0.002, n=100, higher_is_better=False
                )
            }
        )
        for name in NAMES
    }
    return ExperimentResult(
        id=f"e-{length}",
        decision="d-000001",
        tokens=EVERY * 20,
        weights=START,
        branch_tokens=EVERY * length,
        schedule="as the run",
        control=ScoredBranch(weights=START, benchmarks=scores),
    )


def test_one_receipt_has_the_two_points_that_it_takes() -> None:
    slower = observed(24, course, ONE)
    late, early = twin(4, 0.25), twin(2, 0.25)
    receipt = late.model_copy(
        update={
            "receipt": True,
            "tokens": EVERY * 20,
            "branches": (late.control,),
            "control": None,
            "halfway": early.control,
        }
    )
    seen = slower.model_copy(update={"receipts": (receipt,)})
    assert policy_standing(seen, SETTINGS).back_to == pytest.approx(START)
    other = receipt.model_copy(update={"decision": "d-000009"})
    seen = slower.model_copy(update={"receipts": (other,)})
    assert policy_standing(seen, SETTINGS).back_to is None


def test_a_receipt_decides_where_there_is_one() -> None:
    """The trend sees nothing, the twins are ahead; and the other way round."""
    slower = observed(26, course, ONE)
    assert policy_standing(slower, SETTINGS).back_to is None
    ahead = _with(slower, *(twin(length, 0.25) for length in (2, 4, 6)))
    standing = policy_standing(ahead, SETTINGS)
    assert standing.back_to == pytest.approx(START)
    assert "twin" in standing.why

    fallen = observed(26, jump, ONE)
    assert policy_standing(fallen, SETTINGS).back_to is not None
    alike = _with(fallen, *(twin(length, -0.3) for length in (2, 4, 6)))
    assert policy_standing(alike, SETTINGS).back_to is None
