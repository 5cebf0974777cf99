"""What ``mixloop audit`` prints: tables and lines for people."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from mixloop.common import text
from mixloop.common.types import Json
from mixloop.controller import views
from mixloop.controller.core import wording

if TYPE_CHECKING:
    from rich.table import Table

    from mixloop.trainer.audit import Finding, Report, SegmentFacts


_MOST = 24  # rows of a table; the rest is in --json
_TEXT = 160  # characters of a sample shown


def report_parts(report: Report) -> Iterator[Table | str]:
    """The report, part by part: sources, segments, incarnations, ledgers, findings."""
    yield _sources(report)
    yield from _segments(report)
    yield _incarnations(report)
    yield from _ledgers(report)
    if report.trace is not None:
        one = report.trace
        yield (
            f"Trace: {one.lines:,} lines in {one.files} files; {one.verified:,} as the schedule "
            f"has them, {one.left:,} of courses left since; {one.hashed:,} batches derived again "
            f"bit for bit; {one.steps:,} steps recorded by all ranks, {one.gaps:,} missing between"
        )
    for note in report.notes:
        yield views.cell(note)
    yield from (f"FINDING {_finding(one)}" for one in report.findings[:_MOST])
    if len(report.findings) > _MOST:
        yield f"… {len(report.findings) - _MOST} more findings (--json has all)"
    yield (
        f"consistent: {report.sample:,} samples ({text.tokens(report.tokens)} tokens, "
        f"{report.step:,} steps) are what seed {report.seed} and the schedule make of the sources"
        if report.ok
        else f"{len(report.findings)} findings: this run's files do not agree"
    )


def _finding(one: Finding) -> str:
    place = [views.cell(one.where)]
    if one.line is not None:
        place.append(f"line {one.line}")
    if one.step is not None:
        place.append(f"step {one.step}")
    if one.sample is not None:
        place.append(f"sample {one.sample}")
    return f"{', '.join(place)}: {views.cell(one.detail)}"


def _sources(report: Report) -> Table:
    title = f"Run {text.clean(report.run or '(unnamed)')}, seed {report.seed}"
    made = views.table(title, ("source", "samples", "drawn", "tokens", "epochs", "store"))
    for name, one in report.sources.items():
        made.add_row(
            views.cell(name),
            f"{one.samples:,}",
            f"{one.drawn:,}",
            text.tokens(one.tokens),
            f"{one.epochs:.4f}",
            views.cell(one.store),
        )
    return made


def _segments(report: Report) -> Iterator[Table | str]:
    columns = ("from step", "sample", "samples", "generation", "fence", "by", "mixture", "worst")
    made = views.table("Segments: realised shares", columns)
    facts = report.segments
    shown = facts if len(facts) <= _MOST else (*facts[: _MOST // 2], *facts[-_MOST // 2 :])
    before: dict[str, float] = {}
    for one in facts:
        weights = {name: share.weight for name, share in one.shares.items()}
        if any(one is other for other in shown):
            _segment(made, one, before, weights)
        before = weights
    yield made
    if len(shown) < len(facts):
        yield f"… {len(facts) - len(shown)} segments between (--json has all)"
    exact = sum(one.exact for one in facts)
    worst = max((abs(one.worst[1]) for one in facts), default=0.0)
    yield (
        f"{exact:,} of {len(facts):,} segments gave every source floor or ceiling of its share; "
        f"at most {worst:.3f} samples off the integrated weights; {report.pending} recorded "
        f"ahead, {report.voids} void"
    )


def _segment(
    made: Table, one: SegmentFacts, before: dict[str, float], weights: dict[str, float]
) -> None:
    name, off = one.worst
    made.add_row(
        f"{one.step:,}",
        f"{one.sample:,}",
        f"{one.samples:,}",
        str(one.generation),
        str(one.fence),
        str(one.incarnation),
        views.cell(wording.moves(before, weights) if before else wording.mixture(weights)),
        views.cell(f"{name} {off:+.3f}{'' if one.exact else ' (waited)'}"),
    )


def _incarnations(report: Report) -> Table:
    columns = ("incarnation", "from", "step", "sample", "until sample", "ranks", "quantum")
    made = views.table("Trainer incarnations", columns)
    facts = report.incarnations
    for one in facts if len(facts) <= _MOST else facts[-_MOST:]:
        until = "left" if one.left else "-" if one.until is None else f"{one.until:,}"
        made.add_row(
            f"{one.incarnation}{' (rewind)' if one.rewind else ''}",
            views.cell(one.parent or "scratch"),
            f"{one.step:,}",
            f"{one.sample:,}",
            until,
            f"{one.world} x {one.micro_batch} x {one.accumulation}",
            " → ".join(f"{size:,}" for _, size in one.stages),
        )
    return made


def _ledgers(report: Report) -> Iterator[Table | str]:
    columns = ("ledger", "step", "sample", "tokens", "generation", "by", "agrees")
    made = views.table("Ledgers", columns)
    facts = report.ledgers
    for one in facts if len(facts) <= _MOST else facts[-_MOST:]:
        agrees = "yes" if one.agrees else "NO"
        made.add_row(
            views.cell(one.where),
            f"{one.step:,}",
            f"{one.sample:,}",
            text.tokens(one.tokens),
            str(one.generation),
            str(one.incarnation),
            agrees if one.surviving else f"{agrees} (course left)",
        )
    yield made
    if len(facts) > _MOST:
        yield f"… {len(facts) - _MOST} ledgers before (--json has all)"


def step_tables(shown: Json) -> Iterator[Table | str]:
    """What the ranks saw in a step."""
    for one in shown["ranks"]:
        title = (
            f"Step {shown['step']:,}, rank {one['rank']} of {shown['world']}: generation "
            f"{shown['generation']}, incarnation {shown['incarnation']}"
        )
        with_text = any("text" in row for row in one["rows"])
        columns = ["micro", "row", "sample", "source", "index", "epoch", "draw", "first token"]
        made = views.table(title, [*columns, "text"] if with_text else columns)
        for row in one["rows"]:
            text = [views.cell(row["text"][:_TEXT])] if with_text else []
            made.add_row(
                str(row["micro"]),
                str(row["row"]),
                f"{row['sample']:,}",
                views.cell(row["source"]),
                f"{row['index']:,}",
                str(row["epoch"]),
                f"{row['draw']:,}",
                f"{row['token']:,}",
                *text,
            )
        yield made
        if "sha256" in one:
            yield f"sha256 of its token ids: {one['sha256']}"
