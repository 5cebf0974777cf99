"""What a rewind of the trainer leaves behind. Pure: schedule lines in, facts out.

A trainer that resumes at another batch size, or is asked to rewind, cuts the recorded future: what
earlier incarnations made beyond that sample belongs to a branch that nobody trains on any more.
A plain resume cuts nothing: it sees the same batches again.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from mixloop.contract import Schedule


@dataclass(frozen=True)
class Rewind:
    """Where an incarnation left the branch of those before it."""

    incarnation: int
    sample: int
    step: int
    tokens: int

    def __str__(self) -> str:
        return f"the trainer rewound to step {self.step} (incarnation {self.incarnation})"


def find_rewinds(schedule: Schedule) -> tuple[Rewind, ...]:
    """Every rewind, oldest first; the rule is that of the schedule itself."""
    return tuple(
        Rewind(line.incarnation, line.sample, line.step, line.sample * line.sequence_length)
        for line in schedule.cuts
    )


def left_by(rewinds: Iterable[Rewind], sample: int, incarnation: int) -> Rewind | None:
    """The rewind that left a checkpoint behind, or None.

    Args:
        rewinds: Those of the run, oldest first.
        sample: Where the checkpoint was made.
        incarnation: The one that made it; of an unknown one (0) nothing is left behind.
    """
    for rewind in rewinds:
        if 0 < incarnation < rewind.incarnation and sample > rewind.sample:
            return rewind
    return None
