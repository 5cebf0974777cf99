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
    for note in report.notes:
        yield views.cell(note)
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
    place = [views.cell(finding.where)]
    if finding.line is not None:
        place.append(f"line {finding.line}")
    if finding.step is not None:
        place.append(f"step {finding.step}")
    if finding.sample is not None:
        place.append(f"sample {finding.sample}")
    return f"{', '.join(place)}: {views.cell(finding.detail)}"


def _sources(report: Report) -> Table:
    title = f"Run {clean(report.run or '(unnamed)')}, seed {report.seed}"
    table = views.table(title, ("source", "samples", "drawn", "tokens", "epochs", "store"))
    for name, source in report.sources.items():
        table.add_row(
            views.cell(name),
            f"{source.samples:,}",
            f"{source.drawn:,}",
            tokens(source.tokens),
            f"{source.epochs:.4f}",
            views.cell(source.store),
        )
    return table


def _segments(report: Report) -> Iterator[Table | str]:
    columns = ("from step", "sample", "samples", "generation", "fence", "by", "mixture", "worst")
    table = views.table("Segments: realised shares", columns)
    segments = report.segments
    half = MAX_ROWS // 2
    crowded = len(segments) > MAX_ROWS
    before: dict[str, float] = {}
    for number, segment in enumerate(segments):
        weights = {name: share.weight for name, share in segment.shares.items()}
        if not crowded or number < half or number >= len(segments) - half:
            _add_segment(table, segment, before, weights)
        before = weights
    yield table
    if crowded:
        yield f"… {len(segments) - 2 * half} segments between (--json has all)"
    exact = sum(segment.exact for segment in segments)
    worst = max((abs(segment.worst[1]) for segment in segments), default=0.0)
    yield (
        f"{exact:,} of {len(segments):,} segments gave every source floor or ceiling of its "
        f"share; at most {worst:.3f} samples off the integrated weights; {report.pending} recorded "
        f"ahead, {report.voids} void"
    )


def _add_segment(
    table: Table, segment: SegmentFacts, before: dict[str, float], weights: dict[str, float]
) -> None:
    name, off = segment.worst
    table.add_row(
        f"{segment.step:,}",
        f"{segment.sample:,}",
        f"{segment.samples:,}",
        str(segment.generation),
        str(segment.fence),
        str(segment.incarnation),
        views.cell(core.moves(before, weights) if before else core.mixture(weights)),
        views.cell(f"{name} {off:+.3f}{'' if segment.exact else ' (waited)'}"),
    )


def _incarnations(report: Report) -> Table:
    columns = ("incarnation", "from", "step", "sample", "until sample", "ranks", "quantum")
    table = views.table("Trainer incarnations", columns)
    for start in report.incarnations[-MAX_ROWS:]:
        until = "left" if start.left else "-" if start.until is None else f"{start.until:,}"
        table.add_row(
            f"{start.incarnation}{' (rewind)' if start.rewind else ''}",
            views.cell(start.parent or "scratch"),
            f"{start.step:,}",
            f"{start.sample:,}",
            until,
            f"{start.world} x {start.micro_batch} x {start.accumulation}",
            " → ".join(f"{size:,}" for _, size in start.stages),
        )
    return table


def _ledgers(report: Report) -> Iterator[Table | str]:
    columns = ("ledger", "step", "sample", "tokens", "generation", "by", "agrees")
    table = views.table("Ledgers", columns)
    for ledger in report.ledgers[-MAX_ROWS:]:
        agrees = "yes" if ledger.agrees else "NO"
        table.add_row(
            views.cell(ledger.where),
            f"{ledger.step:,}",
            f"{ledger.sample:,}",
            tokens(ledger.tokens),
            str(ledger.generation),
            str(ledger.incarnation),
            agrees if ledger.surviving else f"{agrees} (course left)",
        )
    yield table
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
        with_text = any("text" in row for row in rank["rows"])
        table = views.table(title, [*columns, "text"] if with_text else columns)
        for row in rank["rows"]:
            table.add_row(
                str(row["micro"]),
                str(row["row"]),
                f"{row['sample']:,}",
                views.cell(row["source"]),
                f"{row['index']:,}",
                str(row["epoch"]),
                f"{row['draw']:,}",
                f"{row['token']:,}",
                *([views.cell(row["text"][:MAX_TEXT])] if with_text else ()),
            )
        yield table
        if "sha256" in rank:
            yield f"sha256 of its token ids: {rank['sha256']}"
