"""The report of ``mixloop simulate`` as tables for a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from mixloop.controller import show
from mixloop.controller.ledger_replay import shown_sources

if TYPE_CHECKING:
    from rich.table import Table

Json = dict[str, Any]

COLUMNS = (
    *("policy", "world", "gap closed", "p10", "worst", "below start", "regret"),
    *("slowest decision", "a run", "failed"),
)


def tables(report: Json) -> Iterable[Table | str]:
    """Everything that is printed, in order."""
    yield standings_table(report)
    if any(run["gap"] is None for one in report["standings"] for run in one["runs"]):
        yield "gap closed is unknown where a world has no optimum, or nothing is to be gained"
    for one in report["ledgers"]:
        for side in ("reporting", "enforcing"):
            yield ledger_table(one, side)
        yield from changed_lines(one)
    yield from (show.clean(note) for note in report["notes"])


def standings_table(report: Json) -> Table:
    """One row per policy and world, and per world what the control left to gain."""
    title = f"{report['seeds']} seeds; median [95% interval]; 0 is the start kept, 1 the optimum"
    made = show.table(title, COLUMNS)
    for row in standings_rows(report):
        made.add_row(*map(show.cell, row))
    return made


def standings_rows(report: Json) -> list[tuple[str, ...]]:
    """The standings as text, by :data:`COLUMNS`."""
    rows: list[tuple[str, ...]] = []
    for one in report["control"]:
        rows.append(("(start kept)", one["world"], "0", "", "", "", interval(one["regret"], 4)))
    for one in report["standings"]:
        gap = one["gap"]
        rows.append(
            (
                one["policy"],
                one["world"],
                interval(gap, 2),
                "-" if gap is None else f"{gap['tenth']:.2f}",
                "-" if gap is None else f"{gap['worst']:.2f}",
                f"{one['below']}/{one['seeds']}",
                interval(one["regret"], 4),
                f"{1000 * one['slowest']:.1f} ms",
                f"{one['seconds']:.2f} s",
                str(one["failed"]),
            )
        )
    return [row + ("",) * (len(COLUMNS) - len(row)) for row in rows]


def interval(found: Mapping[str, Any] | None, digits: int) -> str:
    """``0.85 [0.80, 0.89]``."""
    if found is None:
        return "-"
    middle = f"{found['median']:.{digits}f}"
    if found["median_interval"] is None:
        return middle
    low, high = found["median_interval"]
    return f"{middle} [{low:.{digits}f}, {high:.{digits}f}]"


def ledger_title(one: Json, side: str) -> str:
    """What one of the two tables shows."""
    how = (
        "ledger reporting only" if side == "reporting" else f"at most {one['max_epochs']:g} epochs"
    )
    return f"{one['policy']} in {one['world']}, {how}: share of tokens, epochs at the span's end"


def ledger_rows(one: Json, side: str) -> tuple[list[str], list[list[str]]]:
    """Heads and rows of a run: a source each, a span of tokens per column."""
    spans = one[side]
    heads = [f"{show.tokens(s['from'])}-{show.tokens(s['until'])}" for s in spans]
    rows = [
        [name, *(f"{s['weights'][name]:.1%}, {s['epochs'][name]:.2f}" for s in spans)]
        for name in shown_sources(spans)
    ]
    return ["source", *heads], rows


def ledger_table(one: Json, side: str) -> Table:
    """A run's mixtures and epochs, span by span."""
    heads, rows = ledger_rows(one, side)
    made = show.table(show.clean(ledger_title(one, side)), heads)
    for row in rows:
        made.add_row(*map(show.cell, row))
    return made


def changed_lines(one: Json) -> list[str]:
    """What enforcing changed, one line per source: the held ones first."""
    if not one["changed"]:
        return [f"Enforcing {one['max_epochs']:g} epochs changed nothing."]
    lines = [f"What enforcing {one['max_epochs']:g} epochs changed:"]
    for entry in one["changed"]:
        verb = "held to" if entry["enforced"] < entry["reported"] else "now"
        shares = ", ".join(
            f"{s['reported']:.2%} → {s['enforced']:.2%} "
            f"from {show.tokens(s['from'])} to {show.tokens(s['until'])}"
            for s in entry["spans"]
        )
        epochs = f"{entry['reported']:.2f} epochs, {verb} {entry['enforced']:.2f}"
        lines.append(f"  {show.clean(entry['source'])}: {epochs}{f' ({shares})' if shares else ''}")
    return lines
