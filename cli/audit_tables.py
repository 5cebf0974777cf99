"""What ``mixloop audit`` prints: tables and lines for people."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from mixloop.common.text import clean, tokens
from mixloop.common.types import Json
from mixloop.controller import core, views

if TYPE_CHECKING:
    from rich.table import Table

    from mixloop.trainer.audit import Finding, Report, SegmentFacts

MAX_ROWS = 24  # rows of a table; the rest is in --json
MAX_TEXT = 160  # characters of a sample shown


def report_parts(report: Report) -> Iterator[Table | str]:
    """The report, part by part: sources, segments, incarnations, ledgers, findings."""
    yield _sources(report)
    yield from _segments(report)
    yield _incarnations(report)
    yield from _ledgers(report)
    if report.trace is not None:
        trace = report.trace
        yield (
            f"Trace: {trace.lines:,} lines in {trace.files} files; {trace.verified:,} as the "
            f"schedule has them, {trace.left:,} of courses left since; {trace.hashed:,} batches "
            f"derived again bit for bit; {trace.steps:,} steps recorded by all ranks, "
            f"{trace.gaps:,} missing between"
        )
    yield from map(views.cell, report.notes)
    yield from (f"FINDING {_finding(finding)}" for finding in report.findings[:MAX_ROWS])
    if len(report.findings) > MAX_ROWS:
        yield f"… {len(report.findings) - MAX_ROWS} more findings (--json has all)"
    yield (
        f"consistent: {report.sample:,} samples ({tokens(report.tokens)} tokens, "
        f"{report.step:,} steps) are what seed {report.seed} and the schedule make of the sources"
        if report.ok
        else f"{len(report.findings)} findings: this run's files do not agree"
    )


def _finding(finding: Finding) -> str:
    places = {"line": finding.line, "step": finding.step, "sample": finding.sample}
    numbers = [f"{what} {number}" for what, number in places.items() if number is not None]
    return views.cell(f"{', '.join([finding.where, *numbers])}: {finding.detail}")


def _sources(report: Report) -> Table:
    return views.table(
        f"Run {clean(report.run or '(unnamed)')}, seed {report.seed}",
        ("source", "samples", "drawn", "tokens", "epochs", "store"),
        (
            (name, f"{s.samples:,}", f"{s.drawn:,}", tokens(s.tokens), f"{s.epochs:.4f}", s.store)
            for name, s in report.sources.items()
        ),
    )


def _segments(report: Report) -> Iterator[Table | str]:
    segments, half = report.segments, MAX_ROWS // 2
    columns = ("from step", "sample", "samples", "generation", "fence", "by", "mixture", "worst")
    rows = list(map(_segment_row, (None, *segments), segments))
    hidden = len(rows) - 2 * half
    if len(rows) > MAX_ROWS:
        rows[half:-half] = []
    yield views.table("Segments: realised shares", columns, rows)
    if len(segments) > MAX_ROWS:
        yield f"… {hidden} segments between (--json has all)"
    exact = sum(segment.exact for segment in segments)
    worst = max((abs(segment.worst[1]) for segment in segments), default=0.0)
    yield (
        f"{exact:,} of {len(segments):,} segments gave every source floor or ceiling of its "
        f"share; at most {worst:.3f} samples off the integrated weights; {report.pending} recorded "
        f"ahead, {report.voids} void"
    )


def _segment_row(before: SegmentFacts | None, segment: SegmentFacts) -> tuple[object, ...]:
    weights = {name: share.weight for name, share in segment.shares.items()}
    mixture = core.mixture(weights)
    if before is not None:
        mixture = core.moves({n: share.weight for n, share in before.shares.items()}, weights)
    name, off = segment.worst
    return (
        *(f"{segment.step:,}", f"{segment.sample:,}", f"{segment.samples:,}"),
        *(segment.generation, segment.fence, segment.incarnation, mixture),
        f"{name} {off:+.3f}{'' if segment.exact else ' (waited)'}",
    )


def _incarnations(report: Report) -> Table:
    columns = ("incarnation", "from", "step", "sample", "until sample", "ranks", "quantum")
    rows = (
        (
            f"{start.incarnation}{' (rewind)' if start.rewind else ''}",
            start.parent or "scratch",
            *(f"{start.step:,}", f"{start.sample:,}"),
            "left" if start.left else "-" if start.until is None else f"{start.until:,}",
            f"{start.world} x {start.micro_batch} x {start.accumulation}",
            " → ".join(f"{size:,}" for _, size in start.stages),
        )
        for start in report.incarnations[-MAX_ROWS:]
    )
    return views.table("Trainer incarnations", columns, rows)


def _ledgers(report: Report) -> Iterator[Table | str]:
    columns = ("ledger", "step", "sample", "tokens", "generation", "by", "agrees")
    rows = (
        (
            *(ledger.where, f"{ledger.step:,}", f"{ledger.sample:,}", tokens(ledger.tokens)),
            *(ledger.generation, ledger.incarnation),
            f"{'yes' if ledger.agrees else 'NO'}{'' if ledger.surviving else ' (course left)'}",
        )
        for ledger in report.ledgers[-MAX_ROWS:]
    )
    yield views.table("Ledgers", columns, rows)
    if len(report.ledgers) > MAX_ROWS:
        yield f"… {len(report.ledgers) - MAX_ROWS} ledgers before (--json has all)"


def step_tables(facts: Json) -> Iterator[Table | str]:
    """What the ranks saw in a step."""
    for rank in facts["ranks"]:
        title = (
            f"Step {facts['step']:,}, rank {rank['rank']} of {facts['world']}: generation "
            f"{facts['generation']}, incarnation {facts['incarnation']}"
        )
        columns = ["micro", "row", "sample", "source", "index", "epoch", "draw", "first token"]
        rows = (
            (
                *(row["micro"], row["row"], f"{row['sample']:,}", row["source"]),
                *(f"{row['index']:,}", row["epoch"], f"{row['draw']:,}", f"{row['token']:,}"),
                *([row["text"][:MAX_TEXT]] if "text" in row else ()),
            )
            for row in rank["rows"]
        )
        with_text = any("text" in row for row in rank["rows"])
        yield views.table(title, [*columns, "text"] if with_text else columns, rows)
        if "sha256" in rank:
            yield f"sha256 of its token ids: {rank['sha256']}"
