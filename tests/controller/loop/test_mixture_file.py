"""The shared state file beside heartbeats that lie, and orders of strangers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mixloop.contract import Order, read_schedule, read_status, write_order
from mixloop.contract.orders import LARGEST_JUMP
from mixloop.controller.journal import queries

STATIC = {"use": "static"}
QUIET = {"benchmarks": {"gsm8k": {"data": "packages"}}, "every": 24_000}  # nothing is decided
TRAINER = {"sequence_length": 10, "micro_batch": 8, "poll_every": 2}
EVEN = {"web": 0.4, "code": 0.3, "maths": 0.3}


@pytest.mark.parametrize(("keyed", "number"), [(True, 2**62 - 1), (False, 1000)])
def test_no_order_is_numbered_from_a_forged_heartbeat(
    play: Any, tmp_path: Path, keyed: bool, number: int
) -> None:
    """The controller signed one near the end of all numbers, after which none could follow."""
    trainer = TRAINER
    if keyed:
        (tmp_path / "key").write_bytes(b"0123456789abcdef")
        (tmp_path / "key").chmod(0o600)
        trainer = {**TRAINER, "key_file": "key"}
    run = play(policy=STATIC, trainer=trainer, evals=QUIET)
    run.train(2)
    run.tell("set", "code=0.3")
    run.train(4)
    ordered, said = run.paths.mixture.read_bytes(), list(run.said)
    honest = run.paths.status.read_bytes()
    body = json.loads(honest)
    body |= {"accepted": {"fence": 1, "generation": number}, "heartbeat": 10**6}
    run.paths.status.write_text(json.dumps(body))
    run.settle()
    assert run.paths.mixture.read_bytes() == ordered
    assert run.said == said
    run.paths.status.write_bytes(honest)
    run.tell("set", "code=0.2")
    run.train(4)
    assert run.in_force()["code"] == pytest.approx(0.2, abs=1e-6)
    assert json.loads(run.paths.mixture.read_bytes())["generation"] == 2


PLANS = """
from mixloop.policies import Hold, Proposal


class Plans:
    def decide(self, observation):
        if not observation.in_force:
            return Hold("waiting for the last order")
        names, now = list(observation.sources), observation.tokens
        half = len(names) // 2
        shares = [1.2 / len(names)] * half + [0.8 / len(names)] * half
        mixtures = [dict(zip(names, shares)), dict(zip(names, shares[::-1]))]
        plan = [(now + 10 * n, mixtures[n % 2]) for n in range(1, COUNT)]
        return Proposal(plan[0][1], "R" * 3000, plan=plan)
"""


def planning(play: Any, tmp_path: Path, played_run: Any, count: int) -> Any:
    """A run of 50 sources, whose policy plans so many stretches."""
    (tmp_path / "plans.py").write_text(PLANS.replace("COUNT", str(count)))
    for n in range(50):
        played_run.write_store(tmp_path / f"source-{n:02d}")
    sources = {f"source-{n:02d}": {"path": f"source-{n:02d}", "weight": 0.02} for n in range(50)}
    run = play(policy={"use": "./plans.py:Plans"}, sources=sources, budget=200_000)
    run.train(7)
    return run


def test_an_order_of_more_than_a_megabyte_is_known_again(
    play: Any, tmp_path: Path, played_run: Any
) -> None:
    """It was read up to 1 MiB, taken for a stranger's, and published again for ever."""
    run = planning(play, tmp_path, played_run, 900)
    assert run.paths.mixture.stat().st_size > 2**20
    assert not [line for line in run.said if "not ours" in line]
    (decision,) = [entry for entry in run.history() if entry["verdict"] == "intervene"]
    assert decision["reason"].endswith("(cut: 3,000 characters)")
    status = read_status(run.paths.status).value
    assert status is not None
    assert status.accepted.generation == 1


def test_a_plan_that_is_too_long_is_refused_when_it_is_decided_on(
    play: Any, tmp_path: Path, played_run: Any
) -> None:
    run = planning(play, tmp_path, played_run, 1100)
    (decision,) = run.history()
    assert decision["verdict"] == "hold"
    assert "its plan has 1,099 stretches: the most is 1,000" in decision["reason"]
    assert not run.paths.mixture.exists()


def test_a_strangers_order_that_is_followed_is_passed_however_far_it_jumped(play: Any) -> None:
    run = play(policy=STATIC, evals=QUIET)
    run.train(2)
    high = LARGEST_JUMP, LARGEST_JUMP
    write_order(run.paths.mixture, Order("r", *high, EVEN))
    run.trainer.advance()
    assert read_schedule(run.paths.schedule).accepted == high
    run.train(6)
    status = read_status(run.paths.status).value
    assert status is not None
    assert (status.accepted.fence, status.accepted.generation) == (high[0] + 1, high[1] + 1)
    assert run.in_force()["code"] == pytest.approx(0.1, abs=1e-6), "put back"


def test_orders_that_came_into_force_between_two_looks_are_all_acknowledged(play: Any) -> None:
    """The one in force now is not the only one that was."""
    run = play(policy=STATIC, evals=QUIET)
    run.train(2)
    for share in (0.2, 0.3):  # the second before the first is in force
        run.tell("set", f"code={share}")
        run.trainer.advance()
        run.settle()
    assert run.in_force()["code"] == pytest.approx(0.1, abs=1e-6)
    for _ in range(5):  # the controller doesn't run
        run.trainer.advance()
    run.settle()
    assert run.in_force()["code"] == pytest.approx(0.3, abs=1e-6)
    applied = [order.applied_step for order in queries.orders(run.journal)]
    segments = read_schedule(run.paths.schedule).segments
    assert applied == [segment.step for segment in segments if segment.generation]
    assert len(applied) == 2
