"""Realised shares and ledgers against the schedule.

Shares are counted in Python's integers, apart from the order's own arithmetic, so that an error
there shows here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from mixloop.contract import SCALE, Manifest, OrderInForce, SegmentLine, Status

from .facts import Finding, LedgerFacts, SegmentFacts, Share
from .replay import Branch, ScheduleReplay

_EPOCH_TOLERANCE = 1e-9  # relative: epochs are floats of exact counts


def segment_facts(replay: ScheduleReplay, reached: int) -> list[SegmentFacts]:
    """The stretches of the run's branch that samples before `reached` were drawn from."""
    branch = replay.final
    order, names = branch.order, branch.names
    lines = {line.sample: line for line in branch.segments}
    owed = dict.fromkeys(names, 0)  # in units of 1/SCALE sample
    before = dict.fromkeys(names, 0)
    facts: list[SegmentFacts] = []
    line: SegmentLine | None = None
    for segment, length in branch.stretches(reached):
        line = lines.get(segment.sample, line)
        after = order.drawn(segment.sample + length)
        weights = {name: int(segment.weights.get(name, 0)) for name in names}
        drawn = {name: after[name] - before[name] for name in names}
        due = _entitled(owed, weights, length)
        exact = {n: due[n] // SCALE <= drawn[n] <= -(-due[n] // SCALE) for n in names}
        owed = {n: owed[n] + weights[n] * length - drawn[n] * SCALE for n in names}
        opened = branch.opened_at(segment.sample)
        shares = {
            n: Share(
                weight=weights[n] / SCALE,
                samples=weights[n] * length / SCALE,
                drawn=drawn[n],
                owed=owed[n] / SCALE,
                exact=exact[n],
            )
            for n in names
        }
        facts.append(
            SegmentFacts(
                sample=segment.sample,
                step=opened.step_of(segment.sample),
                samples=length,
                quantum=segment.step_samples,
                fence=line.fence if line else 0,
                generation=line.generation if line else 0,
                incarnation=opened.incarnation,
                shares=shares,
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


def _bound(sources: int, segments: int) -> float:
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
        if not segment.exact and abs(off) >= _bound(len(segment.shares), number):
            share = segment.shares[name]
            yield Finding(
                "share",
                "schedule.jsonl",
                f"{name} gave {share.drawn} samples where {share.samples:.3f} are due: "
                f"{off:+.3f} in all",
                step=segment.step,
                sample=segment.sample,
            )


def check_ledger(
    replay: ScheduleReplay, where: str, record: Status | Manifest
) -> tuple[LedgerFacts, list[Finding]]:
    """Compare `status.json` or a manifest with the branch of the incarnation that wrote it."""
    if record.incarnation in replay.opens:
        faults = _faults(replay, replay.branch(record.incarnation), record)
        shorter = replay.branch_without_last(record.incarnation) if faults else None
        if shorter is not None and not _faults(replay, shorter, record):
            faults = []
    else:
        faults = [f"is of incarnation {record.incarnation}, which never opened the schedule"]
    later = [opened for n, opened in replay.opens.items() if n > record.incarnation]
    facts = LedgerFacts(
        where=where,
        incarnation=record.incarnation,
        step=record.step,
        sample=record.sample,
        tokens=record.tokens,
        generation=record.in_force.generation,
        surviving=all(opened.sample >= record.sample for opened in later),
        agrees=not faults,
    )
    place = {"step": record.step, "sample": record.sample}
    return facts, [Finding("ledger", where, fault, **place) for fault in faults]


def _faults(replay: ScheduleReplay, branch: Branch, record: Status | Manifest) -> list[str]:
    """What of a ledger doesn't agree with a branch."""
    faults = [*_numbers(branch, record), *_tokens(branch, record), *_order(branch, record)]
    pending = record.pending if isinstance(record, Status) else None
    if pending and (pending.sample, pending.fence, pending.generation) not in replay.recorded:
        faults.append(
            f"tells generation {pending.generation} pending for sample {pending.sample}, never "
            "recorded"
        )
    return faults


def _numbers(branch: Branch, record: Status | Manifest) -> Iterator[str]:
    """Step, sample and tokens belong together."""
    opened = branch.opened
    if record.sample < opened.sample:
        yield f"stands at sample {record.sample}, before its incarnation began ({opened.sample})"
        return
    _, first, _ = branch.samples_of(record.step)
    if first != record.sample:
        yield f"has sample {record.sample}, where step {record.step} ends at {first}"
    tokens = record.sample * opened.sequence_length
    if record.tokens != tokens:
        yield (
            f"has {record.tokens} tokens, where {record.sample} samples of "
            f"{opened.sequence_length} make {tokens}"
        )
    if isinstance(record, Manifest):
        sizes = (record.sequence_length, record.quantum)
        right = (opened.sequence_length, branch.steps.at(record.sample))
        if sizes != right:
            yield (
                f"has samples of {sizes[0]} and a quantum of {sizes[1]}, its incarnation "
                f"{right[0]} and {right[1]}"
            )


def _tokens(branch: Branch, record: Status | Manifest) -> Iterator[str]:
    """Tokens and epochs of every source: as the order has them, and as the weights ask for."""
    length, order = branch.opened.sequence_length, branch.order
    drawn, epochs = order.drawn(record.sample), order.epochs(record.sample)
    stretches = list(branch.stretches(record.sample))
    if set(record.sources) != set(drawn):
        more = ", ".join(sorted(set(record.sources) ^ set(drawn)))
        yield f"and its incarnation differ in sources: {more}"
    for name in branch.names:
        source = record.sources.get(name)
        if source is None:
            continue
        expected = drawn[name] * length
        if source.tokens != expected:
            yield f"{name} has {source.tokens} tokens, where the schedule gives {expected}"
        if not math.isclose(
            source.epochs, epochs[name], rel_tol=_EPOCH_TOLERANCE, abs_tol=_EPOCH_TOLERANCE
        ):
            yield (
                f"{name} has {source.epochs:.9g} epochs, where the schedule gives "
                f"{epochs[name]:.9g}"
            )
        due = sum(int(segment.weights.get(name, 0)) * samples for segment, samples in stretches)
        off = due / SCALE - source.tokens / length
        if abs(off) >= _bound(len(drawn), len(stretches)):
            yield f"{name} is {off:+.3f} samples off what its weights ask for"


def _order(branch: Branch, record: Status | Manifest) -> Iterator[str]:
    """What the ledger says is in force and accepted was recorded, and holds there."""
    order = record.in_force
    # at a segment's very first sample both it and the one before may be told: before a restart the
    # old one (nothing of the new is consumed), after it the new one
    around = (branch.in_force(record.sample), branch.in_force(record.sample + 1))
    legal = [line for line in around if line is not None]
    if not any(_is_of(order, line) for line in legal):
        right = " or ".join(
            dict.fromkeys(f"generation {s.generation} since sample {s.sample}" for s in legal)
        )
        yield (
            f"tells generation {order.generation} (fence {order.fence}) in force since sample "
            f"{order.sample}, with its weights; durable and in force there: {right or 'nothing'}"
        )
    highest = max((s.generation for s in branch.segments if s.sample < record.sample), default=0)
    if isinstance(record, Status) and record.accepted.generation < highest:
        yield f"accepted generation {record.accepted.generation}, but {highest} came into force"


def _is_of(order: OrderInForce, line: SegmentLine) -> bool:
    """Whether an order that is told as in force is this segment's."""
    if (line.sample, line.fence, line.generation) != (order.sample, order.fence, order.generation):
        return False
    names = set(line.weights) | set(order.weights)
    return all(
        round(order.weights.get(name, 0.0) * SCALE) == line.weights.get(name, 0) for name in names
    )
