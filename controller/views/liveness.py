"""Whether trainer and controller of a run live, and where the trainer's incarnation began."""

from __future__ import annotations

import os
import socket
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from mixloop.common.files import read_json
from mixloop.common.text import clean, duration
from mixloop.common.types import Json
from mixloop.contract import RunPaths, Schedule, Status, schedule_of
from mixloop.controller.core import find_rewinds, heartbeat
from mixloop.controller.journal import Journal, queries


@dataclass(frozen=True, slots=True)
class Origin:
    """Where an incarnation began that didn't begin at the start; ``run``: whose fork it is."""

    how: Literal["forked", "rewound", "resumed"]
    step: int
    run: str | None = None

    def in_words(self, incarnation: int) -> str:
        """``incarnation 2, rewound to step 400``."""
        if self.how == "forked":
            return f"forked from {clean(self.run)} at step {self.step}"
        at = "to" if self.how == "rewound" else "at"
        return f"incarnation {incarnation}, {self.how} {at} step {self.step}"


@dataclass(frozen=True, slots=True)
class TrainerStanding:
    """The trainer, as far as somebody saw it.

    Attributes:
        status: its newest heartbeat; None: none can be read.
        alive: whether its process lives; None when it runs on another machine.
        silent: seconds for which its heartbeat was seen to stand still; None: nobody watched.
        origin: None for a trainer's first incarnation, which began at the start.
    """

    status: Status | None
    state: heartbeat.State
    alive: bool | None
    silent: float | None
    origin: Origin | None

    @property
    def in_words(self) -> str:
        """``stalled: no heartbeat for 3m``."""
        if self.state == "stalled" and self.silent is not None:
            return f"stalled: no heartbeat for {duration(self.silent)}"
        if self.state != "unknown":
            return self.state
        if self.status is None:
            return "not known: its heartbeat can't be read"
        return "on another machine, and no controller watches its heartbeat"

    @property
    def origin_in_words(self) -> str:
        """Where its incarnation began; empty for a trainer's first."""
        if self.origin is None or self.status is None:
            return ""
        return self.origin.in_words(self.status.incarnation)

    def to_json(self) -> Json:
        """As ``mixloop status --json`` has it: the heartbeat without mixtures and sources."""
        shown: Json = {"pid": None, "step": None, "tokens": None}
        if self.status is not None:
            shown = asdict(self.status)
            for name in ("sources", "in_force", "pending"):
                shown.pop(name)
        return {
            "alive": self.alive,
            "state": self.state,
            "silent": self.silent,
            "origin": None if self.origin is None else asdict(self.origin),
            **shown,
        }


@dataclass(frozen=True, slots=True)
class ControllerStanding:
    """Who holds the run; ``alive``: None where that can't be known from this machine."""

    fence: int
    holder: str
    counter: int
    started_at: str
    alive: bool | None


def trainer(
    paths: RunPaths,
    status: Status | None,
    journal: Journal | None,
    watched: tuple[float, float] | None = None,
    *,
    readable: bool = True,
) -> TrainerStanding:
    """The trainer of a run.

    ``watched`` are the seconds for which the heartbeat has stood still as the caller saw it, and
    from when on that is a stall; otherwise what the controller saw counts. It may be there and
    not ``readable``.
    """
    process = _process(status) if status is not None else False
    silent, limit = watched or _silence(status, journal)
    state = heartbeat.trainer_state(status, silent=silent, limit=limit, process=process)
    if status is None and not readable:
        state = "unknown"  # and not "never started"
    return TrainerStanding(status, state, process, silent, _origin(paths, status))


def controller(journal: Journal | None) -> ControllerStanding | None:
    """The controller of a run; None before the first."""
    lease = queries.lease(journal) if journal is not None else None
    if lease is None:
        return None
    host, _, pid = lease.holder.rpartition(":")
    alive = process_lives(int(pid)) if host == socket.gethostname() else None
    return ControllerStanding(**lease.to_json(), alive=alive)


def _process(status: Status) -> bool | None:
    if status.finished:
        return False
    return process_lives(status.pid) if status.host == socket.gethostname() else None


def process_lives(pid: int) -> bool:
    """Whether a process of this machine lives (a zombie does not)."""
    try:
        os.kill(pid, 0)
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return state != "Z"


def _silence(status: Status | None, journal: Journal | None) -> tuple[float | None, float]:
    """How long the controller has seen the heartbeat stand still, and its limit.

    What a controller knew that is no longer there says nothing of now.
    """
    last = queries.trainer_silence(journal) if journal is not None else None
    holder = controller(journal)
    if status is None or last is None or holder is None or holder.alive is False:
        return None, heartbeat.MIN_STALL_LIMIT
    same = (last.incarnation, last.heartbeat) == (status.incarnation, status.heartbeat)
    return (last.silent if same else 0.0), last.limit


def _origin(paths: RunPaths, status: Status | None) -> Origin | None:
    schedule = schedule_of(paths.schedule).value or Schedule()
    opened = schedule.latest_open
    if status is None or opened is None or opened.incarnation != status.incarnation:
        return None
    fork = paths.dir / "fork.json"
    try:
        forked = read_json(fork)
    except (OSError, ValueError, RecursionError):
        forked = {}
    if isinstance(forked, dict) and forked.get("step") == opened.step and opened.step:
        return Origin("forked", opened.step, str(forked.get("parent", "")))
    if opened.incarnation == 1:
        return None
    cut = any(rewind.incarnation == opened.incarnation for rewind in find_rewinds(schedule))
    return Origin("rewound" if cut else "resumed", opened.step)
