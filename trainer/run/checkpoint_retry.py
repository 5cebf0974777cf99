"""When a checkpoint that the disk did not take is tried again, and what is told of it meanwhile."""

from __future__ import annotations

import time
from collections.abc import Callable

from mixloop.contract import FailedCheckpoint

PAUSE = (10.0, 300.0)
"""Seconds to the first try again, doubled with each, and at most."""
SHARE = 10
"""Trying takes no more than this part of the time, however long it takes to find the disk full."""


class CheckpointRetry:
    """Failures since the newest checkpoint; every rank counts them, rank 0's clock decides.

    Args:
        saved: step of the newest checkpoint of the run; None: there is none.
        clock: monotonic seconds.

    Attributes:
        failure: None where the newest checkpoint that was due is on the disk.
        pause: seconds to the next try.
    """

    def __init__(self, saved: int | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._saved = saved
        self._due = 0.0
        self.failure: FailedCheckpoint | None = None
        self.pause = 0.0

    def failed(self, step: int, reason: str, took: float) -> None:
        """The checkpoint of a step could not be written; the try took so many seconds."""
        first, most = PAUSE
        before = self.failure
        attempts = 1 if before is None else before.attempts + 1
        since = step if before is None else before.step
        self.failure = FailedCheckpoint(since, reason, attempts, self._saved)
        self.pause = max(min(first * 2.0 ** min(attempts - 1, 16), most), SHARE * took)
        self._due = self._clock() + self.pause

    def succeeded(self, step: int) -> None:
        """The checkpoint of a step is on the disk."""
        self._saved, self.failure = step, None

    def due(self) -> bool:
        """Whether it is time to try again."""
        return self.failure is not None and self._clock() >= self._due
