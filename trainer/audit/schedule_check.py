"""Whether a schedule's lines could have been written by trainers that kept the rules."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

from mixloop.contract import BatchSchedule, Line, OpenLine, Schedule, SegmentLine, VoidLine

from .facts import Finding

FILE = "schedule.jsonl"
_STEP = re.compile(r"step-(\d{8,})")


def check_lines(numbered: Sequence[tuple[int, Line]]) -> Iterator[Finding]:
    """Findings on lines, in order.

    An incarnation writes only while it is the newest; numbers, fences and generations of what
    holds never go back; a segment lies beyond all that holds and on its incarnation's steps; a void
    takes back something that holds; seed and length stay; a source only grows, and goes when its
    weight is 0.
    """
    lines = tuple(line for _, line in numbered)
    opened: OpenLine | None = None
    held: dict[int, SegmentLine] = {}
    for at, (number, line) in enumerate(numbered):
        if isinstance(line, OpenLine):
            yield from _findings(number, line, _open_faults(line, opened))
            opened = line
            held = {s.sample: s for s in Schedule(lines[: at + 1]).segments}
            continue
        if opened is None:
            yield from _findings(number, line, ["comes before any `open` line"])
        elif line.incarnation != opened.incarnation:
            late = f"of incarnation {line.incarnation}, written after {opened.incarnation} began"
            yield from _findings(number, line, [f"is {late}"])
        if isinstance(line, SegmentLine):
            yield from _findings(number, line, _segment_faults(line, opened, held))
            held[line.sample] = line
        elif _takes_back(line, held.get(line.sample)):
            del held[line.sample]
        else:
            order = f"generation {line.generation} (fence {line.fence})"
            yield from _findings(number, line, [f"takes back {order}, which does not hold"])
    yield from _retired(numbered)


def _findings(number: int, line: Line, faults: Iterable[str]) -> Iterator[Finding]:
    kind = {OpenLine: "open", SegmentLine: "segment", VoidLine: "void"}[type(line)]
    step = line.step if not isinstance(line, VoidLine) else None
    for fault in faults:
        yield Finding("schedule", FILE, f"the {kind} {fault}", number, step, line.sample)


def _takes_back(void: VoidLine, segment: SegmentLine | None) -> bool:
    return segment is not None and (segment.fence, segment.generation) == (
        void.fence,
        void.generation,
    )


def _open_faults(line: OpenLine, before: OpenLine | None) -> Iterator[str]:
    last = before.incarnation if before is not None else 0
    if line.incarnation != last + 1:
        yield f"is of incarnation {line.incarnation}, after {last}"
    if line.quantum != line.world_size * line.micro_batch * line.accumulation:
        yield (
            f"has a quantum of {line.quantum}, not {line.world_size} ranks x {line.micro_batch} "
            f"rows x {line.accumulation}"
        )
    named = _STEP.fullmatch(line.parent or "")
    if named and int(named[1]) != line.step:
        yield f"begins at step {line.step} from {line.parent}"
    if line.parent is None and (line.sample or line.step):
        yield f"begins at step {line.step} without a checkpoint"
    if before is None:
        return
    for key in ("seed", "sequence_length"):
        old, new = getattr(before, key), getattr(line, key)
        if old != new:
            yield f"has {key} {new}, the one before {old}"
    now = {source.name: source for source in line.sources}
    for old_source in () if line.rewind else before.sources:
        source = now.get(old_source.name, old_source)
        if source != old_source and source.samples <= old_source.samples:
            yield (
                f"has another store for {source.name!r} than the one before: {source.samples} "
                f"samples, {old_source.samples} before"
            )


def _segment_faults(
    line: SegmentLine, opened: OpenLine | None, held: dict[int, SegmentLine]
) -> Iterator[str]:
    last = max(held, default=-1)
    if line.sample <= last:
        yield f"was recorded while one at sample {last} held already"
    for key in ("fence", "generation"):
        highest = max((getattr(s, key) for s in held.values()), default=0)
        if getattr(line, key) < highest:
            yield f"has {key} {getattr(line, key)}, after {highest}"
    if opened is None or (line.sample == 0 and not held):
        return
    if line.sample <= opened.sample:
        yield f"is for a sample its incarnation began behind ({opened.sample})"
    step = opened.step_of(line.sample)
    boundary = BatchSchedule(opened.stages).boundary(line.sample)
    if boundary != line.sample or line.step != step:
        yield f"has step {line.step}, where step {step} belongs"
    unknown = sorted(set(line.weights) - {source.name for source in opened.sources})
    if unknown:
        yield f"has a weight for {unknown[0]!r}, which is no source of the run"


def _retired(numbered: Sequence[tuple[int, Line]]) -> Iterator[Finding]:
    """Incarnations without a source that they still had to draw from."""
    lines = tuple(line for _, line in numbered)
    opens = [at for at, line in enumerate(lines) if isinstance(line, OpenLine)]
    for at, end in zip(opens, [*opens[1:], len(lines)], strict=True):
        opened = lines[at]
        assert isinstance(opened, OpenLine)
        schedule = Schedule(lines[:end])
        gone = set(schedule.sources) - {source.name for source in opened.sources}
        if not gone:
            continue
        began = [s for s in schedule.segments if s.sample <= opened.sample][-1:]
        later = [s for s in schedule.segments if s.sample > opened.sample]
        for segment in (*began, *later):
            if lost := sorted(name for name in gone if segment.weights.get(name)):
                lacks = f"lacks the source {lost[0]!r}, which has weight from {segment.sample} on"
                yield from _findings(numbered[at][0], opened, [lacks])
                break
