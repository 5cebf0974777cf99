"""Which rank is missing, where a collective only says that it failed or waits without end.

Each rank counts in the ranks' common store, on a thread of its own, whatever its training does: a
count that stands still is that of a process which was killed or stopped, or of a machine that is
gone. A rank that merely takes long (a checkpoint on a slow disk) goes on counting.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from datetime import timedelta
from typing import Any

BEAT_SECONDS = 1.0
_LOST_SECONDS = 5.0
"""Without a count in this time a rank is missing, once a collective has failed."""
_SILENT_SECONDS = 30.0
"""Without a count in this time a person is told that all wait."""


class RankLostError(RuntimeError):
    """Ranks are missing: one line that names them, for a person.

    Args:
        missing: Which.
        world: Of how many.
        some: Whether it may be but one of them.
    """

    def __init__(self, missing: Iterable[int], world: int, *, some: bool = False) -> None:
        self.missing = sorted(missing)
        which = "one or more of " if some and len(self.missing) > 1 else ""
        super().__init__(
            f"{which}{_names(self.missing, f' of {world}')} not heard of any more: killed, "
            "stopped, ended by an error of its own, or its machine is gone; start the run again, "
            "it goes on from its newest checkpoint"
        )

    def told_by(self, rank: int) -> bool:
        """Whether it is for this rank to say: the first that is there."""
        return rank == next(r for r in range(rank + 1) if r not in self.missing or r == rank)


class RankWatch:
    """One rank's count, and what it hears of the others'.

    Args:
        store: The ranks' common one.
        rank: This one.
        world: How many there are.
        timeout: Seconds in which ranks wait for one another.
        say: Receives one line when a rank falls silent, and one when it is heard of again.
        silent: Seconds until it is told.
    """

    def __init__(
        self,
        store: Any,
        rank: int,
        world: int,
        timeout: float,
        say: Callable[[str], None],
        silent: float = _SILENT_SECONDS,
    ) -> None:
        self._rank, self._world, self._timeout, self._say = rank, world, timeout, say
        self._store = store.clone()  # calls on one from two threads wait for each other
        self._store.set_timeout(timedelta(seconds=BEAT_SECONDS))
        self._silent = silent
        # rank 0 hears all, one of the others hears rank 0: so many lines as there are to say
        self._told_of = [r for r in range(world) if r != rank] if rank == 0 else [0] * (rank == 1)
        self._counts = dict.fromkeys(self._told_of, -1)
        self._rounds = 0
        self._wanted = self._told_of
        self._closed = threading.Event()
        # alone in calling the store: where that is stopped, a call never returns, timeout or not
        self._thread = threading.Thread(target=self._work, name="mixloop-ranks", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop counting."""
        self._closed.set()
        self._thread.join(2 * BEAT_SECONDS)

    def lost(self) -> RankLostError | None:
        """After a collective failed: the error that names those missing; None where all are there.

        Takes some seconds.
        """
        self._wanted = [rank for rank in range(self._world) if rank != self._rank]
        first: dict[int, int] | None = None
        round_before, missing = self._rounds, self._wanted
        end = time.monotonic() + _LOST_SECONDS
        while missing and time.monotonic() < end:
            time.sleep(BEAT_SECONDS / 4)
            if self._rounds < round_before + 2:  # the first may have begun without all of them
                continue
            first = first or dict(self._counts)
            now = self._counts
            missing = [r for r in missing if now.get(r, -1) <= first.get(r, -1)]
        if first is None and self._rank != 0:
            missing = [0]  # whose store does not answer
        return RankLostError(missing, self._world) if missing else None

    def _work(self) -> None:
        count = 0
        changed = dict.fromkeys(self._told_of, time.monotonic())
        threading.Thread(target=self._tell, args=(changed,), daemon=True).start()
        while not self._closed.wait(BEAT_SECONDS if count else 0):
            count += 1
            with suppress(Exception):  # of the network, whatever it is
                self._store.set(_key(self._rank), str(count))
                counts = {rank: self._count_of(rank) for rank in self._wanted}
                now = time.monotonic()
                changed |= {r: now for r in changed if counts.get(r, -1) > self._counts.get(r, -1)}
                self._counts = counts
                self._rounds += 1

    def _count_of(self, rank: int) -> int:
        return int(self._store.get(_key(rank))) if self._store.check([_key(rank)]) else -1

    def _tell(self, changed: dict[int, float]) -> None:
        asleep: set[int] = set()
        while changed and not self._closed.wait(BEAT_SECONDS):
            before, now = asleep, time.monotonic()
            asleep = {rank for rank, at in dict(changed).items() if now - at > self._silent}
            if asleep - before:
                self._say(
                    f"{_names(asleep)} not heard of for {self._silent:.0f} s: the others wait, "
                    f"for {self._timeout:g} s at most (trainer.rank_timeout)"
                )
            elif before - asleep:
                self._say(f"{_names(before - asleep)} heard of again")


def _key(rank: int) -> str:
    return f"mixloop/count/{rank}"


def _names(ranks: Iterable[int], of: str = "") -> str:
    several = sorted(ranks)
    names = ", ".join(map(str, several[:8])) + (" and more" if len(several) > 8 else "")
    return f"rank {names}{of} is" if len(several) == 1 else f"ranks {names}{of} are"
