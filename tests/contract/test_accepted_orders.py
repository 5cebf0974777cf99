"""What a controller believes of what the trainer has accepted."""

from __future__ import annotations

from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from mixloop.contract import (
    SCALE,
    AcceptedOrder,
    AcceptedOrders,
    Order,
    OrderInForce,
    RunPaths,
    ScheduleWriter,
    SegmentLine,
    Status,
    accepted_orders,
    quantise,
    read_schedule,
    schedule,
    write_order,
)
from mixloop.contract.orders import LARGEST_JUMP, LARGEST_TURN

KEY = b"0123456789abcdef-the-key-itself"
ORDER = Order("smol-1", 3, 7, {"web": 1.0})


def heartbeat(fence: int, generation: int) -> Status:
    return Status(
        run="smol-1", incarnation=1, pid=1, host="h", step=1, sample=8, tokens=80, budget=800,
        lr=None, phase=None, loss=None, grad_norm=None, tokens_per_second=None, sources={},
        accepted=AcceptedOrder(fence, generation), in_force=OrderInForce(0, 0, 0, 0, {"web": 1.0}),
    )  # fmt: skip


def record(paths: RunPaths, fence: int, generation: int) -> None:
    ScheduleWriter(paths.schedule).append(SegmentLine(1, 8, 1, {"web": SCALE}, fence, generation))


@pytest.fixture
def paths(tmp_path: Path) -> RunPaths:
    found = RunPaths(tmp_path)
    record(found, 3, 7)
    return found


def test_a_heartbeat_alone_proves_nothing(paths: RunPaths) -> None:
    accepted = AcceptedOrders(paths, "smol-1")
    assert accepted.proven(heartbeat(3, 7)) == (3, 7)
    assert accepted.proven(heartbeat(2, 6)) == (2, 6)
    assert accepted.proven(heartbeat(3, 2**62)) == (3, 7)
    assert accepted.proven(heartbeat(5, 7)) == (5, 7), "its trainer keeps no copy of its order"
    assert accepted.proven(heartbeat(3 + LARGEST_JUMP, 7)) == (3, 7)
    write_order(paths.accepted, ORDER)
    assert accepted.proven(heartbeat(2**62, 2**62)) == (3, 7)
    write_order(paths.accepted, replace(ORDER, fence=5))  # republished under a new fence
    assert accepted.proven(heartbeat(5, 7)) == (5, 7)


def test_numbers_that_no_order_can_have_prove_nothing(paths: RunPaths) -> None:
    record(paths, 3, LARGEST_TURN + 1)
    accepted = AcceptedOrders(paths, "smol-1")
    assert accepted.proven(heartbeat(3, LARGEST_TURN + 1)) == (3, 0)
    assert accepted.proven(None) == (3, 0)
    assert accepted.above(heartbeat(3, 7), (3, 7)) == (3, 7)


def test_a_schedule_ahead_of_the_heartbeat_is_believed_a_short_way(paths: RunPaths) -> None:
    accepted = AcceptedOrders(paths, "smol-1")
    record(paths, 4, 8)
    assert accepted.above(heartbeat(3, 7), (3, 7)) == (4, 8)
    assert accepted.above(heartbeat(3, 7), (5, 9)) == (5, 9)
    record(paths, 4, 8 + LARGEST_JUMP)
    assert accepted.above(heartbeat(3, 7), (3, 7)) == (4, 7)
    both = heartbeat(4, 8 + LARGEST_JUMP)  # then it was the trainer
    assert accepted.above(both, (3, 7)) == (4, 8 + LARGEST_JUMP)


def test_with_a_key_only_what_is_signed_proves_anything(paths: RunPaths) -> None:
    accepted = AcceptedOrders(paths, "smol-1", KEY)
    write_order(paths.accepted, replace(ORDER, generation=99))
    write_order(paths.mixture, replace(ORDER, generation=98), b"another key, as long")
    assert accepted.proven(heartbeat(50, 50)) == (0, 0)
    assert accepted.above(heartbeat(50, 50), (1, 2)) == (3, 7), "as a fork's schedule has it"
    write_order(paths.accepted, ORDER, KEY)
    assert accepted.proven(heartbeat(50, 50)) == (3, 7)
    write_order(paths.mixture, replace(ORDER, generation=8), KEY)
    assert accepted.proven(None) == (3, 8)
    assert accepted.above(None, (4, 2)) == (4, 8)
    for other in (replace(ORDER, run="other"), replace(ORDER, uid="another run of this id")):
        write_order(paths.mixture, replace(other, generation=9), KEY)
        assert accepted.proven(None) == (3, 7)


def test_what_is_accepted_is_read_on_from_where_it_was_read_to(tmp_path: Path) -> None:
    path = tmp_path / "schedule.jsonl"
    accepted = AcceptedOrders(RunPaths(tmp_path), "smol-1")
    assert accepted.recorded() == (0, 0)
    writer = ScheduleWriter(path)
    for number in range(1, 6):
        weights = quantise({"a": 0.5, "b": 0.5})
        writer.append(SegmentLine(1, number * 8, number, weights, number // 2, number))
        assert accepted.recorded() == read_schedule(path).accepted == (number // 2, number)
    with path.open("ab") as stream:
        stream.write(b'{"torn')
    assert accepted.recorded() == (2, 5)
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:3]))
    assert accepted.recorded() == (1, 3)  # changed, not grown: read anew
    path.unlink()
    assert accepted.recorded() == (1, 3)  # no news


def test_a_look_reads_what_is_new_and_an_examination_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a key each look read and hashed the whole schedule three times."""
    path, taken = tmp_path / "schedule.jsonl", [0]
    accepted = AcceptedOrders(RunPaths(tmp_path), "smol-1", KEY)
    writer = ScheduleWriter(path)
    for number in range(1, 200):
        writer.append(SegmentLine(1, number * 8, number, {"web": SCALE}, 1, number))
    assert accepted.recorded() == (1, 199)

    def counted(*args: Any, **options: Any) -> Any:
        data = schedule.schedule_bytes(*args, **options)
        taken[0] += len(data)
        return data

    monkeypatch.setattr(accepted_orders, "schedule_bytes", counted)
    accepted.above(None, (1, 1))
    accepted.uid()
    writer.append(SegmentLine(1, 1600, 200, {"web": SCALE}, 1, 200))
    assert accepted.recorded() == (1, 200)
    assert 0 < taken[0] < path.stat().st_size / 2
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([lines[1], lines[0], *lines[2:]]))
    accepted.recorded()
    assert accepted._schedule._digest.digest() != sha256(path.read_bytes()).digest()
    accepted.examine()
    assert accepted._schedule._digest.digest() == sha256(path.read_bytes()).digest()
