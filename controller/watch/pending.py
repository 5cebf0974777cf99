"""What a run waits for, and for how long. Pure: times to come are tokens over tokens per second."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from mixloop.common.units import format_tokens
from mixloop.contract import Status
from mixloop.controller.core import moves, until
from mixloop.controller.views import RunSnapshot, RunStanding, approval_json


@dataclass(frozen=True)
class Pending:
    """Something that is on its way, and in how many seconds it is due (None: not known)."""

    what: str
    seconds: float | None = None
    person: bool = False


def seconds(tokens: float | None, speed: float | None) -> float | None:
    """How long so many tokens take; None where that is not known."""
    return None if tokens is None or not speed else max(0.0, tokens / speed)


def pending(look: RunSnapshot, speed: float | None) -> Iterator[Pending]:
    """Everything that is on its way.

    Args:
        look: the run now.
        speed: the trainer's tokens per second, None while it trains nothing.
    """
    run, status = look.standing, look.standing.status
    yield from _orders(run, speed)
    for decision, approval in run.operators.awaiting:
        asks = approval_json(decision, approval, run.approval_timeout)
        left = None
        if asks["until_tokens"] is not None and status is not None:
            left = asks["until_tokens"] - status.tokens
        yield Pending(
            f"{decision.id} waits for approve or reject {until(asks)}: "
            f"{moves(asks['before'], asks['after'])}; {decision.reason}",
            seconds(left, speed),
            person=True,
        )
    durations = sorted(card.seconds for card in run.scores if card.seconds)
    usual = durations[len(durations) // 2] if durations else None
    for step in run.scoring:
        due = None if usual is None else max(0.0, usual - (look.scoring or 0.0))
        yield Pending(f"the checkpoint at step {step} is being scored", due)
    if run.experiments.open is not None and run.trainer.state != "finished":
        yield Pending(f"experiment {run.experiments.in_words}")
    behind = run.waiting - len(run.scoring)
    if behind > 0:
        yield Pending(f"{behind} more checkpoint{'s' if behind > 1 else ''} to score")
    if status is not None and run.trainer.state in ("alive", "stalled", "unknown"):
        next_tokens = _next_evaluation(run, status)
        if next_tokens is not None:
            what = f"next evaluation at {format_tokens(next_tokens)}"
            yield Pending(what, seconds(next_tokens - status.tokens, speed))


def _orders(run: RunStanding, speed: float | None) -> Iterator[Pending]:
    status = run.status
    switch = status.pending if status is not None else None
    for order in run.orders:
        what = f"generation {order.generation} ({order.decision})"
        if status is not None and switch is not None and switch.generation == order.generation:
            per_sample = status.tokens / status.sample if status.sample else 0
            ahead = switch.sample * per_sample - status.tokens
            yield Pending(
                f"{what} comes into force at sample {switch.sample:,}", seconds(ahead, speed)
            )
        elif run.trainer.state == "finished":
            yield Pending(f"{what} came too late: training has ended")
        elif order.published_at is None:
            yield Pending(f"{what} is not published yet")
        else:
            yield Pending(f"{what} is published; the trainer has not taken it yet")


def _next_evaluation(run: RunStanding, status: Status) -> int | None:
    """Tokens at which the next checkpoint to be scored is due, by the trainer's own rhythm."""
    if not run.checkpoints:
        return None
    last, *before = run.checkpoints
    gap = last - before[0] if before else last
    if gap <= 0:
        return None
    strides = max(1, -(-(run.evaluate_every or 0) // gap))
    scored = run.scores[-1].tokens if run.scores else last
    due = max(scored + strides * gap, last + gap if strides == 1 else 0)
    return min(due, status.budget) if due > last else last + gap
