"""Realised shares and ledgers against the schedule. Shares are counted in Python's integers, apart
from the order's own arithmetic, so that an error there shows here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from mixloop.contract import SCALE, Manifest, OrderInForce, SegmentLine, Status

from .facts import Finding, LedgerFacts, SegmentFacts, Share
from .replay import Branch, ScheduleReplay

Recorded = Status | Manifest
_EPOCHS = 1e-9  # relative: epochs are floats of exact counts


def segment_facts(courses: ScheduleReplay, reached: int) -> list[SegmentFacts]:
    """The stretches of the run's course that samples before `reached` were drawn from."""
    course = courses.final
    order = courses.order(course)
    lines = {line.sample: line for line in course.segments}
    names = course.names
    owed = dict.fromkeys(names, 0)  # in units of 1/SCALE sample
    facts: list[SegmentFacts] = []
    line: SegmentLine | None = None
    before = dict.fromkeys(names, 0)
    ends = [segment.sample for segment in course.mixture[1:]] + [reached]
    for segment, end in zip(course.mixture, ends, strict=True):
        line = lines.get(segment.sample, line)
        length = min(end, reached) - segment.sample
        if length <= 0:
            continue
        after = order.drawn(segment.sample + length)
        weights = {name: int(segment.weights.get(name, 0)) for name in names}
        given = {name: after[name] - before[name] for name in names}
        due = _entitled(owed, weights, length)
        exact = {n: due[n] // SCALE <= given[n] <= -(-due[n] // SCALE) for n in names}
        owed = {n: owed[n] + weights[n] * length - given[n] * SCALE for n in names}
        piece = course.piece(segment.sample)
        facts.append(
            SegmentFacts(
                sample=segment.sample,
                step=piece.step_of(segment.sample),
                samples=length,
                quantum=segment.step_samples,
                fence=line.fence if line else 0,
                generation=line.generation if line else 0,
                incarnation=piece.incarnation,
                shares={
                    n: Share(
                        weights[n] / SCALE,
                        weights[n] * length / SCALE,
                        given[n],
                        owed[n] / SCALE,
                        exact[n],
                    )
                    for n in names
                },
            )
        )
        before = after
    return facts


def _entitled(owed: Mapping[str, int], weights: Mapping[str, int], length: int) -> dict[str, int]:
    """Entitlement within a stretch, in units of 1/SCALE sample: what is carried in counts.

    Sources without weight give nothing, also not what they owe; what of it makes a whole sample
    falls to the others in equal parts, by source index.
    """
    active = [name for name in owed if weights[name]]
    total = sum(owed[name] for name in active)
    each, more = divmod(max(0, abs(total) - SCALE + 1), len(active))
    sign = 1 if total > 0 else -1
    due = dict.fromkeys(owed, 0)
    for index, name in enumerate(active):
        shift = each + (index < more)
        due[name] = owed[name] - sign * shift + weights[name] * length
    return due


def bound(sources: int, segments: int) -> float:
    """How many samples a source may be off its integrated weights, by DESIGN's section on mixing.

    Below 1 under fixed weights, below 2 across changes in practice; for changes that are out to do
    harm, the harmonic number of the sources.
    """
    if segments < 2:
        return 1.0
    return max(2.0, math.fsum(1 / k for k in range(1, sources + 1)))


def check_segments(facts: list[SegmentFacts]) -> Iterator[Finding]:
    """Segments whose shares are neither floor nor ceiling and off by more than changes explain."""
    for number, segment in enumerate(facts, start=1):
        name, off = segment.worst
        if not segment.exact and abs(off) >= bound(len(segment.shares), number):
            share = segment.shares[name]
            yield Finding(
                "share",
                "schedule.jsonl",
                f"{name} gave {share.drawn} samples where {share.samples:.3f} are due: "
                f"{off:+.3f} in all",
                step=segment.step,
                sample=segment.sample,
            )


@dataclass(frozen=True)
class _Place:
    """A ledger under comparison."""

    where: str
    record: Recorded
    course: Branch

    def finding(self, detail: str) -> Finding:
        record = self.record
        return Finding("ledger", self.where, detail, None, record.step, record.sample)


def check_ledger(
    courses: ScheduleReplay, where: str, record: Recorded
) -> tuple[LedgerFacts, list[Finding]]:
    """Compare `status.json` or a manifest with the course of the incarnation that wrote it."""
    findings: list[Finding] = []
    if record.incarnation in courses.opens:
        findings = _compare(courses, _Place(where, record, courses.of(record.incarnation)))
        late = courses.late(record.incarnation) if findings else None
        if late is not None and not _compare(courses, _Place(where, record, late)):
            findings = []
    else:
        detail = f"is of incarnation {record.incarnation}, which never opened the schedule"
        findings = [Finding("ledger", where, detail, None, record.step, record.sample)]
    facts = LedgerFacts(
        where=where,
        incarnation=record.incarnation,
        step=record.step,
        sample=record.sample,
        tokens=record.tokens,
        generation=record.in_force.generation,
        surviving=_survives(courses, record),
        agrees=not findings,
    )
    return facts, findings


def _compare(courses: ScheduleReplay, place: _Place) -> list[Finding]:
    return [*_numbers(place), *_tokens(place, courses), *_mixture(place, courses)]


def _survives(courses: ScheduleReplay, record: Recorded) -> bool:
    """Whether no later incarnation went back behind it."""
    later = [o for n, o in courses.opens.items() if n > record.incarnation]
    return all(opened.sample >= record.sample for opened in later)


def _numbers(place: _Place) -> Iterator[Finding]:
    """Step, sample and tokens belong together."""
    record, opened = place.record, place.course.opened
    if record.sample < opened.sample:
        yield place.finding(
            f"stands at sample {record.sample}, before its incarnation began ({opened.sample})"
        )
        return
    _, first, _ = place.course.samples_of(record.step)
    if first != record.sample:
        yield place.finding(f"has sample {record.sample}, where step {record.step} ends at {first}")
    if record.tokens != record.sample * opened.sequence_length:
        yield place.finding(
            f"has {record.tokens} tokens, where {record.sample} samples of "
            f"{opened.sequence_length} make {record.sample * opened.sequence_length}"
        )
    quantum = place.course.quantum(record.sample)
    if isinstance(record, Manifest) and (record.sequence_length, record.quantum) != (
        opened.sequence_length,
        quantum,
    ):
        yield place.finding(
            f"has samples of {record.sequence_length} and a quantum of {record.quantum}, its "
            f"incarnation {opened.sequence_length} and {quantum}"
        )


def _tokens(place: _Place, courses: ScheduleReplay) -> Iterator[Finding]:
    """Tokens and epochs of every source: as the order has them, and as the weights ask for."""
    record, course = place.record, place.course
    opened, order = course.opened, courses.order(course)
    drawn = order.drawn(record.sample)
    due, segments = integrated(course, record.sample)
    if set(record.sources) != set(drawn):
        more = ", ".join(sorted(set(record.sources) ^ set(drawn)))
        yield place.finding(f"and its incarnation differ in sources: {more}")
    passed = order.epochs(record.sample)
    for name in course.names:
        given = record.sources.get(name)
        if given is None:
            continue
        expected = drawn[name] * opened.sequence_length
        if given.tokens != expected:
            yield place.finding(
                f"{name} has {given.tokens} tokens, where the schedule gives {expected}"
            )
        epochs = passed[name]
        if not math.isclose(given.epochs, epochs, rel_tol=_EPOCHS, abs_tol=_EPOCHS):
            yield place.finding(
                f"{name} has {given.epochs:.9g} epochs, where the schedule gives {epochs:.9g}"
            )
        off = due[name] / SCALE - given.tokens / opened.sequence_length
        if abs(off) >= bound(len(drawn), segments):
            yield place.finding(f"{name} is {off:+.3f} samples off what its weights ask for")


def integrated(course: Branch, sample: int) -> tuple[dict[str, int], int]:
    """What the weights ask for in the first `sample` samples, by source, in 1/SCALE sample; and
    of how many segments.
    """
    due = dict.fromkeys(course.names, 0)
    segments = 0
    ends = [segment.sample for segment in course.mixture[1:]] + [sample]
    for segment, end in zip(course.mixture, ends, strict=True):
        length = min(end, sample) - segment.sample
        if length > 0:
            segments += 1
            for name, weight in segment.weights.items():
                due[name] += int(weight) * length
    return due, segments


def _mixture(place: _Place, courses: ScheduleReplay) -> Iterator[Finding]:
    """What the ledger says is in force, accepted and pending was recorded, and holds there."""
    record, course = place.record, place.course
    told = record.in_force
    # at a segment's very first sample both it and the one before may be told: before a restart the
    # old one (nothing of the new is consumed), after it the new one
    legal = [
        line
        for line in (course.in_force(record.sample), course.in_force(record.sample + 1))
        if line is not None
    ]
    if not any(_told(line, told) for line in legal):
        asked = " or ".join(
            dict.fromkeys(f"generation {s.generation} since sample {s.sample}" for s in legal)
        )
        yield place.finding(
            f"tells generation {told.generation} (fence {told.fence}) in force since sample "
            f"{told.sample}, with its weights; durable and in force there: {asked or 'nothing'}"
        )
    if isinstance(record, Manifest):
        return
    if record.pending is not None:
        wanted = (record.pending.sample, record.pending.fence, record.pending.generation)
        if wanted not in courses.recorded:
            yield place.finding(
                f"tells generation {wanted[2]} pending for sample {wanted[0]}, never recorded"
            )
    highest = max((s.generation for s in course.segments if s.sample < record.sample), default=0)
    if record.accepted.generation < highest:
        yield place.finding(
            f"accepted generation {record.accepted.generation}, but {highest} came into force"
        )


def _told(line: SegmentLine, told: OrderInForce) -> bool:
    if (line.sample, line.fence, line.generation) != (told.sample, told.fence, told.generation):
        return False
    names = set(line.weights) | set(told.weights)
    return all(
        round(told.weights.get(name, 0.0) * SCALE) == line.weights.get(name, 0) for name in names
    )
