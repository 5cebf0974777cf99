"""Taking a run over: what has to be known before, and what the jobs have to work with then."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from mixloop.common.errors import BadInput
from mixloop.contract import (
    LARGEST_JUMP,
    AcceptedOrders,
    RunPaths,
    Schedule,
    read_status,
    schedule_of,
)
from mixloop.controller.config import RunConfig
from mixloop.controller.decisions import observation_builder
from mixloop.controller.journal import Journal, queries, records, take_lock


@dataclass(frozen=True)
class OwnedRun:
    """A run that this controller has taken over.

    Attributes:
        config: The run, paths absolute.
        base: Folder of run.yaml, which file policies are relative to.
        paths: Its files.
        journal: Its journal, claimed.
        sizes: Unique tokens by source.
        initial: The mixture before any order.
        key: Signs orders, and what requests must be signed with; None: nothing.
        say: Receives one line for the person who watches, per thing that happened.
        clock: Monotonic seconds.
        lock: Held as long as this controller has the run.
    """

    config: RunConfig
    base: Path
    paths: RunPaths
    journal: Journal
    sizes: Mapping[str, int]
    initial: Mapping[str, float]
    key: bytes | None
    say: Callable[[str], None]
    clock: Callable[[], float]
    lock: IO[str]

    def close(self) -> None:
        """Let go of it."""
        self.journal.close()
        self.lock.close()


def take_over(
    config: RunConfig, base: Path, say: Callable[[str], None], clock: Callable[[], float]
) -> OwnedRun:
    """Take a run over; the arguments are those of :class:`OwnedRun`.

    Raises:
        BadInput: naming a source or a key file and the mend.
        JournalError: when the journal belongs to another run, or can't be read.
        OSError: when the run's folder can't be written to.
    """
    paths, quiet = RunPaths(config.run.dir), _quietly(say)
    key = config.key()
    sizes = observation_builder.unique_tokens(config)
    configured = config.start_weights(sizes)
    paths.dir.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as held:
        lock = take_lock(paths.dir / "controller.lock")
        held.callback(lock.close)
        check_sources(paths, config)
        journal = Journal(paths.journal, create=True, key=key)
        held.callback(journal.close)
        initial = _claimed(paths, journal, config, configured, key, quiet)
        held.pop_all()
    return OwnedRun(config, base, paths, journal, sizes, initial, key, quiet, clock, lock)


def _claimed(
    paths: RunPaths,
    journal: Journal,
    config: RunConfig,
    configured: Mapping[str, float],
    key: bytes | None,
    say: Callable[[str], None],
) -> dict[str, float]:
    """Claim the journal and see what is to be thought of it. Returns the first mixture."""
    run = config.run.id
    initial = first_mixture(paths, journal, configured, run, key)
    behind = is_behind(paths, journal)
    journal.claim(run, above=highest_fence(paths, journal, run, key))
    if wrong := journal.check():  # it may go on for long before it reads that
        say(wrong)
    if key is None:
        return initial
    records.run_uid(journal)
    if wrong:
        distrust(paths, journal, run, key, say)
    elif behind:
        records.forget_requests(journal)
        say(
            f"{paths.journal}: does not know the orders that the trainer has followed: of a fork, "
            "lost or restored. What is in force stays until the next decision; requests signed "
            "before are refused"
        )
    if queries.requests_since(journal):  # what it recorded may be anybody's
        return first_mixture(paths, None, configured, run, key)
    return initial


def _quietly(say: Callable[[str], None]) -> Callable[[str], None]:
    """Nobody listening (a full disk under the log, a closed pipe) is no reason to stop."""

    def quiet(line: str) -> None:
        with contextlib.suppress(OSError, ValueError):
            say(line)

    return quiet


def distrust(
    paths: RunPaths,
    journal: Journal,
    run: str,
    key: bytes,
    say: Callable[[str], None],
    paused: bool | None = None,
) -> None:
    """With a key: go on with a journal into which anybody may have written, and sign nothing of it.

    Args:
        paths: The run's files.
        journal: Claimed, and sealed as it is.
        run: Its id.
        key: What orders are signed with.
        say: Hears what ended.
        paused: What is known to hold; None: what the rows say.
    """
    signed = AcceptedOrders(paths, run, key).proven(None)[1]
    told = AcceptedOrders(paths, run).proven(read_status(paths.status).value)[1]
    ended = records.distrust(journal, signed or min(told, LARGEST_JUMP), paused=paused)
    say(
        f"{paths.journal}: nothing that it holds from before is signed: the mixture in force stays "
        "until the next decision, requests signed before are refused, and nobody goes back to an "
        f"earlier mixture{''.join(f'; {what}' for what in ended)}"
    )


def highest_fence(paths: RunPaths, journal: Journal, run: str, key: bytes | None) -> int:
    """The highest fence the trainer has ever seen, so that a lost journal can't go back."""
    lease = queries.lease(journal)
    known = (lease.fence if lease is not None else 0, queries.highest_generation(journal))
    return AcceptedOrders(paths, run, key).above(read_status(paths.status).value, known)[0]


def is_behind(paths: RunPaths, journal: Journal) -> bool:
    """Whether the trainer has seen later controllers or orders than this journal has.

    Goes by files that anybody can have forged: the worst is that waiting requests are asked again.
    """
    lease, status = queries.lease(journal), read_status(paths.status).value
    seen = [(schedule_of(paths.schedule).value or Schedule()).accepted]
    if status is not None:
        seen.append((status.accepted.fence, status.accepted.generation))
    known = lease.fence if lease is not None else 0, queries.highest_generation(journal)
    return any(fence > known[0] or generation > known[1] for fence, generation in seen)


def check_sources(paths: RunPaths, config: RunConfig) -> None:
    """Refuse a run.yaml that isn't of the run in its folder, or lacks a source it draws from.

    A source may be added or retired while a run goes on; the trainer takes it in, or lets it go,
    at its next start.

    Raises:
        BadInput: naming the source and the mend.
    """
    schedule = schedule_of(paths.schedule).value or Schedule()
    opened = schedule.latest_open
    if opened is None:
        return
    theirs = [source.name for source in opened.sources]
    if not set(theirs) & set(config.sources):
        raise BadInput(
            f"sources: none of those of the run in {paths.dir} ({', '.join(theirs)}); is it "
            "another run's run.yaml?"
        )
    status = read_status(paths.status).value
    drawn = [dict(status.in_force.weights)] if status is not None else []
    drawn += [dict(line.weights) for line in schedule.segments[-1:]]
    for name in theirs:
        if name not in config.sources and any(weights.get(name) for weights in drawn):
            raise BadInput(
                f"sources.{name}: missing, though the run in {paths.dir} draws from it; put it "
                "back until an order that gives it 0 is in force"
            )
    length = config.trainer.sequence_length
    if opened.sequence_length != length:
        raise BadInput(
            f"trainer.sequence_length: {length} is not the run's, which is {opened.sequence_length}"
        )


def first_mixture(
    paths: RunPaths,
    journal: Journal | None,
    configured: Mapping[str, float],
    run: str,
    key: bytes | None = None,
) -> dict[str, float]:
    """The mixture before any order of this journal; of None, as if it were lost.

    What was recorded at the first start; for a journal that was lost, the mixture in force, since
    going back to run.yaml's would be a change that nobody asked for. With a key, that is the one of
    the signed order that the trainer follows, if it has begun to follow any: what a heartbeat says
    is nobody's word.
    """
    recorded = queries.initial_mixture(journal) if journal is not None else None
    if recorded is not None:
        return recorded
    status = read_status(paths.status).value
    if key is not None:
        order = AcceptedOrders(paths, run, key).followed()
        if order is not None:
            tokens = status.tokens if status is not None else 0
            stages = [stage.weights for stage in order.then if stage.from_tokens <= tokens]
            return dict((stages or [order.weights])[-1])
    followed = status is not None and status.accepted.generation > 0
    return dict(status.in_force.weights if status is not None and followed else configured)
