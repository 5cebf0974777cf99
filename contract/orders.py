"""`mixture.json`, the shared state file: an order, written by the controller alone.

By which rule a trainer accepts it is said in :mod:`order_acceptance`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mixloop.common.files import LARGEST, canonical, digest, write_json
from mixloop.common.json_records import LARGEST_NUMBER

from .signing import sign

ORDER_SCHEMA = "mixloop/order/1"
SUM_TOLERANCE = 1e-6
"""How far from 1 weights may sum; also how far a bound on the change may be overstepped."""
LARGEST_ORDER = 8 * LARGEST
"""Bytes of an order worth reading: 10,000 sources with ten stretches of a plan."""
MOST_STAGES = 1000
"""Stages of a plan."""
LONGEST_TEXT, LONGEST_NAME = 10_000, 200
"""Characters of an order's `reason` and `policy`; of its `decision`, which the schedule repeats."""
LARGEST_TURN = LARGEST_NUMBER // 2
"""No fence and no generation is above it: every file that repeats one can be read again."""
LARGEST_JUMP = 2**20
"""How far a fence or generation may be above the highest accepted: so the numbers never run out."""


@dataclass(frozen=True)
class Stage:
    """What a plan does later: from `from_tokens` training tokens on, these weights."""

    from_tokens: int
    weights: Mapping[str, float]


@dataclass(frozen=True)
class Order:
    """One published mixture. `weights` are shares of training tokens; an absent name has none.

    `uid`: of the run that a signed one is for, as its schedule has it (:attr:`Schedule.uid`).
    """

    run: str
    fence: int
    generation: int
    weights: Mapping[str, float]
    then: tuple[Stage, ...] = ()
    decision: str = ""
    policy: str = ""
    reason: str = ""
    issued_at: str = ""
    uid: str = ""


def order_json(order: Order, key: bytes | None = None) -> dict[str, Any]:
    """The content of `mixture.json`, its checksum over the canonical JSON of the rest.

    With a key it carries `hmac`, over the canonical JSON without `hmac` and `checksum`.
    """
    body: dict[str, Any] = {
        "schema": ORDER_SCHEMA,
        "run": order.run,
        "fence": order.fence,
        "generation": order.generation,
        "weights": dict(order.weights),
    }
    if order.then:
        body["then"] = [
            {"from_tokens": stage.from_tokens, "weights": dict(stage.weights)}
            for stage in order.then
        ]
    body |= {
        "decision": order.decision,
        "policy": order.policy,
        "reason": order.reason,
        "issued_at": order.issued_at,
    }
    if order.uid:
        body["uid"] = order.uid
    if key is not None:
        body["hmac"] = sign(key, body)
    return {**body, "checksum": digest(canonical(body))}


def write_order(path: str | os.PathLike[str], order: Order, key: bytes | None = None) -> None:
    """Publish an order: the file is replaced as a whole and durable on return.

    Args:
        path: the run's `mixture.json`.
        order: what it says from now on.
        key: signs it, for a trainer that asks for that.

    Raises:
        ValueError: a weight is NaN or infinite.
        OSError: the disk did not take it; the order before is still there.
    """
    write_json(path, order_json(order, key))
