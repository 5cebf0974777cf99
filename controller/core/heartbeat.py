"""Whether the trainer is alive, told by a counter that moves. Pure.

The clocks of two machines are never compared: a heartbeat is as old as the time that passed on
*our* monotonic clock since we first saw its count (the rule for a peer's lease of Burrows 2006,
section 2.8, which spares us the trust in anybody's time of day).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mixloop.contract import Status

State = Literal["never started", "alive", "stalled", "stopped", "finished", "unknown"]

MIN_STALL_LIMIT = 60.0  # seconds of silence that say nothing
STALLED_GAPS = 3.0  # times the longest pause between two heartbeats
STALLED_STEPS = 30.0  # steps without a heartbeat: three times a trainer's default of 10


@dataclass(frozen=True)
class Heartbeat:
    """The heartbeat last seen, and when on the observer's monotonic clock (seconds).

    Attributes:
        moved: Whether it was seen to move; the first sight of it says nothing of its age.
        gap: The longest ordinary time between two moves, seconds.
    """

    incarnation: int
    heartbeat: int
    since: float
    moved: bool = False
    gap: float = 0.0


def update(before: Heartbeat | None, status: Status | None, now: float) -> Heartbeat | None:
    """The heartbeat after another look; no status is no news."""
    if status is None:
        return before
    if before is None:
        return Heartbeat(status.incarnation, status.heartbeat, now)
    if (status.incarnation, status.heartbeat) == (before.incarnation, before.heartbeat):
        return before
    gap = now - before.since
    ordinary = before.moved and gap <= stall_limit(before, status)  # else it had stalled
    longest = max(before.gap, gap) if ordinary else before.gap
    return Heartbeat(status.incarnation, status.heartbeat, now, moved=True, gap=longest)


def stall_limit(heartbeat: Heartbeat | None, status: Status | None) -> float:
    """Seconds of silence after which a trainer counts as stalled."""
    gap = heartbeat.gap if heartbeat is not None else 0.0
    return max(MIN_STALL_LIMIT, STALLED_GAPS * gap, STALLED_STEPS * _step_seconds(status))


def _step_seconds(status: Status | None) -> float:
    if status is None or not status.step or not status.tokens_per_second:
        return 0.0
    return status.tokens / status.step / status.tokens_per_second


def trainer_state(
    status: Status | None, *, silent: float | None, limit: float, process: bool | None
) -> State:
    """What to call the trainer.

    Args:
        status: Its newest heartbeat; None for none.
        silent: Seconds since that moved, as somebody saw it; None when nobody watched.
        limit: :func:`stall_limit`.
        process: Whether its process lives; None when it runs on another machine.
    """
    if status is None:
        return "never started"
    if status.finished:
        return "finished"
    if process is False:
        return "stopped"
    if silent is not None:
        return "stalled" if silent > limit else "alive"
    return "alive" if process else "unknown"
