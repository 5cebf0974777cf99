"""The shared state file beside heartbeats that lie, and orders of strangers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mixloop.contract import Order, read_schedule, read_status, write_order
from mixloop.contract.orders import LARGEST_JUMP

STATIC = {"use": "static"}
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
    run = play(policy=STATIC, trainer=trainer)
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


def test_a_strangers_order_that_is_followed_is_passed_however_far_it_jumped(play: Any) -> None:
    run = play(policy=STATIC)
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
