"""Whether a run can go on with the sources a job has now: added, retired, extended, reordered.

Pure. Names decide, not places. The data order is a function of `schedule.jsonl`, so what changes is
what the incarnation's `open` line says, and it holds from that line's sample on.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mixloop.contract import Schedule, SegmentLine, SourceEntry
from mixloop.trainer.config import JobError

Versions = frozenset[tuple[int, str]]
"""(samples, fingerprint) of what a store was before it was extended."""


def earlier(history: Sequence[Mapping[str, Any]], sequence_length: int) -> Versions:
    """What a source was before, from its header's `history` of tokens and fingerprint."""
    return frozenset(
        (int(entry["tokens"]) // sequence_length, str(entry["fingerprint"])) for entry in history
    )


def check_sources(
    schedule: Schedule,
    asked: Iterable[SourceEntry],
    before: Mapping[str, Versions],
    sample: int,
    rewind: bool,
) -> list[str]:
    """Words on what has changed since the run was recorded.

    Args:
        schedule: what is recorded.
        asked: the job's sources.
        before: what each was before it was extended.
        sample: the resume point.
        rewind: what is recorded beyond it does not count.

    Raises:
        JobError: a source is no longer what was drawn from, and no extension of it.
    """
    words = []
    recorded = schedule.sources
    for entry in asked:
        history = recorded.get(entry.name, ())
        if rewind:
            history = tuple(version for version in history if version[0] < sample)
        if not history:
            if recorded and entry.name not in recorded:
                words.append(
                    f"sources.{entry.name}: new to this run; it waits at weight 0 until an order "
                    "gives it some"
                )
            continue
        last = history[-1][1]
        if entry == last:
            continue
        _extends(entry, last, before.get(entry.name, frozenset()))
        if entry.samples > last.samples:
            words.append(
                f"sources.{entry.name}: extended from {last.samples} samples to {entry.samples}, "
                "from its next epoch on"
            )
    return words


def _extends(entry: SourceEntry, last: SourceEntry, versions: Versions) -> None:
    """Refuse a store that is not the recorded one with more at its end."""
    if (last.samples, last.fingerprint) in versions and entry.samples >= last.samples:
        return
    raise JobError(
        f"sources.{entry.name}: the store has changed since this run was begun "
        f"({last.samples} samples then, {entry.samples} now) and does not say that it was extended "
        "from that; restore it, or append to it with `mixloop prepare --append`"
    )


def check_retired(
    segments: Sequence[SegmentLine], names: Sequence[str], sample: int, rewind: bool
) -> list[str]:
    """Words on sources that the run had and the job lacks.

    Args:
        segments: those that hold once the incarnation has begun.
        names: the sources it lacks.
        sample: the resume point.
        rewind: what is recorded beyond it is cut.

    Raises:
        JobError: one has weight from there on.
    """
    begun = [line for line in segments if line.sample <= sample]
    ahead = [line for line in segments if line.sample > sample]
    for name in names:
        for line in (*begun[-1:], *ahead):
            if line.weights.get(name):
                cut = ", or pass --rewind to cut what is recorded further on"
                raise JobError(
                    f"sources.{name}: no longer in the job, but from sample "
                    f"{max(sample, line.sample)} on it has weight "
                    f"{line.weights[name] / sum(line.weights.values()):.4g} (generation "
                    f"{line.generation}); put it back until an order that gives it 0 is in force"
                    f"{cut if line.sample > sample and not rewind else ''}"
                )
    retired = "retired; its tokens stay in the ledger, its store is not opened"
    return [f"sources.{name}: {retired}" for name in names]
