"""What a run waits for, and for how long. Pure: times to come are tokens over tokens per second."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from mixloop.common.types import Json
from mixloop.common.units import format_tokens


class Facts(Protocol):
    """The part of :class:`mixloop.controller.views.RunSnapshot` that is needed here."""

    @property
    def overview(self) -> Json: ...
    @property
    def params(self) -> Mapping[str, Any]: ...
    @property
    def scores(self) -> Sequence[Json]: ...
    @property
    def checkpoints(self) -> Sequence[int]: ...
    @property
    def waiting(self) -> int: ...
    @property
    def scoring(self) -> float | None: ...


@dataclass(frozen=True)
class Pending:
    """Something that is on its way, and in how many seconds it is due (None: not known)."""

    what: str
    seconds: float | None = None
    person: bool = False


def seconds(tokens: float | None, speed: float | None) -> float | None:
    """How long so many tokens take; None where that is not known."""
    return None if tokens is None or not speed else max(0.0, tokens / speed)


def pending(look: Facts, speed: float | None) -> tuple[Pending, ...]:
    """Everything that is on its way; ``speed``: the trainer's tokens per second, None while it
    trains nothing."""
    found, trainer = look.overview, look.overview["trainer"]
    rows: list[Pending] = []
    rows += _orders(found, trainer, speed)
    rows += [
        Pending(
            f"{one['id']} waits for approve or reject: {one['why']}",
            _timeout(one, look.params.get("approval_timeout"), trainer, speed),
            person=True,
        )
        for one in found["operators"]["awaiting"]
    ]
    took = sorted(one["seconds"] for one in look.scores if one.get("seconds"))
    usual = took[len(took) // 2] if took else None
    for step in found["pending"]["scoring"]:
        left = None if usual is None else max(0.0, usual - (look.scoring or 0.0))
        rows.append(Pending(f"the checkpoint at step {step} is being scored", left))
    behind = look.waiting - len(found["pending"]["scoring"])
    if behind > 0:
        rows.append(Pending(f"{behind} more checkpoint{'s' if behind > 1 else ''} to score"))
    due = _next_evaluation(look)
    if due is not None and trainer["state"] in ("alive", "stalled", "unknown"):
        ahead = max(0, due - trainer["tokens"])
        rows.append(Pending(f"next evaluation at {format_tokens(due)}", seconds(ahead, speed)))
    return tuple(rows)


def _orders(found: Json, trainer: Json, speed: float | None) -> list[Pending]:
    switch = found["pending"]["switch"]
    rows = []
    for order in found["pending"]["orders"]:
        what = f"generation {order['generation']} ({order['decision']})"
        if switch is not None and switch["generation"] == order["generation"]:
            per_sample = trainer["tokens"] / trainer["sample"] if trainer["sample"] else 0
            ahead = max(0.0, switch["sample"] * per_sample - trainer["tokens"])
            what += f" comes into force at sample {switch['sample']:,}"
            rows.append(Pending(what, seconds(ahead, speed)))
        elif trainer["state"] == "finished":
            rows.append(Pending(f"{what} came too late: training has ended"))
        elif order["published_at"] is None:
            rows.append(Pending(f"{what} is not published yet"))
        else:
            rows.append(Pending(f"{what} is published; the trainer has not taken it yet"))
    return rows


def _timeout(one: Json, limit: int | None, trainer: Json, speed: float | None) -> float | None:
    if limit is None or trainer["tokens"] is None:
        return None
    return seconds(max(0, one["tokens"] + limit - trainer["tokens"]), speed)


def _next_evaluation(look: Facts) -> int | None:
    """Tokens at which the next checkpoint to be scored is due, by the trainer's own rhythm."""
    trainer = look.overview["trainer"]
    if not look.checkpoints or trainer["tokens"] is None:
        return None
    last = look.checkpoints[0]
    gap = last - look.checkpoints[1] if len(look.checkpoints) > 1 else last
    every = look.params.get("evaluate_every") or 0
    if gap <= 0:
        return None
    strides = max(1, -(-every // gap))
    scored = [one["tokens"] for one in look.scores] or [last]
    due = max(scored[-1] + strides * gap, last + gap if strides == 1 else 0)
    return int(min(due, trainer["budget"])) if due > last else int(last + gap)
