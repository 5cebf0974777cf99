"""The report of ``mixloop simulate`` for people: tables for a terminal, and one HTML file."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mixloop.common import text
from mixloop.common.types import Json
from mixloop.controller import views
from mixloop.controller.report import render

from .epoch_caps import shown_sources

if TYPE_CHECKING:
    from rich.table import Table


COLUMNS = (
    *("policy", "world", "gap closed", "p10", "worst", "below start", "regret"),
    *("slowest decision", "a run", "failed"),
)


SIDES = ("reporting", "enforcing")


def tables(report: Json) -> Iterable[Table | str]:
    """Everything that is printed, in order."""
    title = f"{report['seeds']} seeds; median [95% interval]; 0 is the start kept, 1 the optimum"
    yield _rich_table(title, COLUMNS, score_rows(report))
    if any(run["gap"] is None for scored in report["standings"] for run in scored["runs"]):
        yield "gap closed is unknown where a world has no optimum, or nothing is to be gained"
    for ledger in report["ledgers"]:
        for side in SIDES:
            yield _rich_table(text.clean(ledger_title(ledger, side)), *ledger_rows(ledger, side))
        yield from changed_lines(ledger)
    yield from (text.clean(note) for note in report["notes"])


def _rich_table(title: str, heads: Iterable[str], rows: Iterable[Sequence[str]]) -> Table:
    table = views.table(title, heads)
    for row in rows:
        table.add_row(*map(views.cell, row))
    return table


def score_rows(report: Json) -> list[tuple[str, ...]]:
    """Per world what the control left to gain, then each policy in each world, by `COLUMNS`."""
    rows: list[tuple[str, ...]] = []
    for control in report["control"]:
        regret = interval(control["regret"], 4)
        rows.append(("(start kept)", control["world"], "0", "", "", "", regret, "", "", ""))
    for scored in report["standings"]:
        gap = scored["gap"]
        rows.append(
            (
                scored["policy"],
                scored["world"],
                interval(gap, 2),
                "-" if gap is None else f"{gap['tenth']:.2f}",
                "-" if gap is None else f"{gap['worst']:.2f}",
                f"{scored['below']}/{scored['seeds']}",
                interval(scored["regret"], 4),
                f"{1000 * scored['slowest']:.1f} ms",
                f"{scored['seconds']:.2f} s",
                str(scored["failed"]),
            )
        )
    return rows


def interval(spread: Json | None, digits: int) -> str:
    """``0.85 [0.80, 0.89]``."""
    if spread is None:
        return "-"
    median = f"{spread['median']:.{digits}f}"
    if spread["median_interval"] is None:
        return median
    low, high = spread["median_interval"]
    return f"{median} [{low:.{digits}f}, {high:.{digits}f}]"


def ledger_title(ledger: Json, side: str) -> str:
    """What the table of one side shows."""
    cap = f"at most {ledger['max_epochs']:g} epochs"
    how = "ledger reporting only" if side == "reporting" else cap
    where = f"{ledger['policy']} in {ledger['world']}"
    return f"{where}, {how}: share of tokens, epochs at the span's end"


def ledger_rows(ledger: Json, side: str) -> tuple[list[str], list[list[str]]]:
    """Heads and rows of a run: a source each, a span of tokens per column."""
    spans = ledger[side]
    heads = [f"{text.tokens(s['from'])}-{text.tokens(s['until'])}" for s in spans]
    rows = [
        [name, *(f"{s['weights'][name]:.1%}, {s['epochs'][name]:.2f}" for s in spans)]
        for name in shown_sources(spans)
    ]
    return ["source", *heads], rows


def changed_lines(ledger: Json) -> list[str]:
    """What enforcing changed, one line per source: the held ones first."""
    if not ledger["changed"]:
        return [f"Enforcing {ledger['max_epochs']:g} epochs changed nothing."]
    lines = [f"What enforcing {ledger['max_epochs']:g} epochs changed:"]
    for source in ledger["changed"]:
        verb = "held to" if source["enforced"] < source["reported"] else "now"
        shares = ", ".join(
            f"{s['reported']:.2%} → {s['enforced']:.2%} "
            f"from {text.tokens(s['from'])} to {text.tokens(s['until'])}"
            for s in source["spans"]
        )
        epochs = f"{source['reported']:.2f} epochs, {verb} {source['enforced']:.2f}"
        suffix = f" ({shares})" if shares else ""
        lines.append(f"  {text.clean(source['source'])}: {epochs}{suffix}")
    return lines


def page(report: Json, picture: Path) -> str:
    """The page, with the picture (PNG) inside it; all text from data is escaped."""
    run = report["run"]
    ledgers = [
        (
            [(ledger_title(ledger, side), *ledger_rows(ledger, side)) for side in SIDES],
            changed_lines(ledger),
        )
        for ledger in report["ledgers"]
    ]
    return render(
        Path(__file__).with_name("simulation.html"),
        f"Simulation of {run}" if run else "Simulation",
        report=report,
        columns=COLUMNS,
        scores=score_rows(report),
        ledgers=ledgers,
        png=base64.b64encode(picture.read_bytes()).decode("ascii"),
    )
