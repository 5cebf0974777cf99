"""Whether a schedule's lines could have been written by trainers that kept the rules."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

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
            yield from _opens(number, line, opened)
            opened = line
            held = {s.sample: s for s in Schedule(lines[: at + 1]).segments}
            continue
        if opened is None:
            yield _at(number, line, "comes before any `open` line")
        elif line.incarnation != opened.incarnation:
            yield _at(
                number,
                line,
                f"is of incarnation {line.incarnation}, written after {opened.incarnation} began",
            )
        if isinstance(line, SegmentLine):
            yield from _segment(number, line, opened, held)
            held[line.sample] = line
        else:
            yield from _void(number, line, held)
    yield from _retired(numbered)


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
                detail = f"lacks the source {lost[0]!r}, which has weight from {segment.sample} on"
                yield _at(numbered[at][0], opened, detail)
                break


def _at(number: int, line: Line, detail: str) -> Finding:
    kind = {OpenLine: "open", SegmentLine: "segment", VoidLine: "void"}[type(line)]
    step = line.step if not isinstance(line, VoidLine) else None
    return Finding("schedule", FILE, f"the {kind} {detail}", number, step, line.sample)


def _opens(number: int, line: OpenLine, before: OpenLine | None) -> Iterator[Finding]:
    last = before.incarnation if before is not None else 0
    if line.incarnation != last + 1:
        yield _at(number, line, f"is of incarnation {line.incarnation}, after {last}")
    if line.quantum != line.world_size * line.micro_batch * line.accumulation:
        yield _at(
            number,
            line,
            f"has a quantum of {line.quantum}, not {line.world_size} ranks x {line.micro_batch} "
            f"rows x {line.accumulation}",
        )
    named = _STEP.fullmatch(line.parent or "")
    if named and int(named[1]) != line.step:
        yield _at(number, line, f"begins at step {line.step} from {line.parent}")
    if line.parent is None and (line.sample or line.step):
        yield _at(number, line, f"begins at step {line.step} without a checkpoint")
    if before is None:
        return
    for key in ("seed", "sequence_length"):
        old, new = getattr(before, key), getattr(line, key)
        if old != new:
            yield _at(number, line, f"has {key} {new}, the one before {old}")
    now = {source.name: source for source in line.sources}
    for source in () if line.rewind else before.sources:
        grown = source.name in now and now[source.name].samples > source.samples
        if source.name in now and now[source.name] != source and not grown:
            yield _at(
                number,
                line,
                f"has another store for {source.name!r} than the one before: "
                f"{now[source.name].samples} samples, {source.samples} before",
            )


def _segment(
    number: int, line: SegmentLine, opened: OpenLine | None, held: dict[int, SegmentLine]
) -> Iterator[Finding]:
    last = max(held, default=-1)
    if line.sample <= last:
        yield _at(number, line, f"was recorded while one at sample {last} held already")
    for key in ("fence", "generation"):
        highest = max((getattr(s, key) for s in held.values()), default=0)
        if getattr(line, key) < highest:
            yield _at(number, line, f"has {key} {getattr(line, key)}, after {highest}")
    if opened is None or (line.sample == 0 and not held):
        return
    if line.sample <= opened.sample:
        yield _at(number, line, f"is for a sample its incarnation began behind ({opened.sample})")
    steps = BatchSchedule(opened.stages)
    step = opened.step_of(line.sample)
    if steps.boundary(line.sample) != line.sample or line.step != step:
        yield _at(number, line, f"has step {line.step}, where step {step} belongs")
    unknown = sorted(set(line.weights) - {source.name for source in opened.sources})
    if unknown:
        yield _at(number, line, f"has a weight for {unknown[0]!r}, which is no source of the run")


def _void(number: int, line: VoidLine, held: dict[int, SegmentLine]) -> Iterator[Finding]:
    segment = held.get(line.sample)
    if segment is None or (segment.fence, segment.generation) != (line.fence, line.generation):
        yield _at(
            number,
            line,
            f"takes back generation {line.generation} (fence {line.fence}), which does not hold",
        )
    else:
        del held[line.sample]
