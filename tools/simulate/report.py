"""The report of ``mixloop simulate`` as one HTML file that loads nothing and runs nothing.

The report of ``mixloop simulate`` as tables for a terminal.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mixloop.common import text
from mixloop.common.types import Json
from mixloop.controller import views
from mixloop.controller.report import document, escaped

from .epoch_caps import shown_sources

if TYPE_CHECKING:
    from rich.table import Table


CSS = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 75em; padding: 0 1em; }
table { border-collapse: collapse; margin: .5em 0 1.5em; }
th, td { text-align: right; padding: .2em .7em; border-bottom: 1px solid #ddd; }
th:first-child, td:first-child { text-align: left; }
img { max-width: 100%; }
"""


def page(report: Json, picture: Path) -> str:
    """The page, with the picture (PNG) inside it; all text from data is escaped."""
    run = report["run"]
    title = f"Simulation of {run}" if run else "Simulation"
    parts = [f"<h1>{escaped(title)}</h1>", "<h2>Standings</h2>"]
    parts.append(_table(COLUMNS, standings_rows(report)))
    parts.append(
        f"<p>Over {report['seeds']} seed{'s' * (report['seeds'] != 1)}: "
        "median, in brackets its 95% bootstrap interval. "
        "Gap closed: 0 is the mixture left as it started, 1 the best constant mixture under the "
        "cap on epochs. Regret: the loss above that one at the end.</p>"
    )
    for one in report["ledgers"]:
        parts += _ledger(one)
    parts += [f"<p>{escaped(note)}</p>" for note in report["notes"]]
    shown = base64.b64encode(picture.read_bytes()).decode("ascii")
    parts.append(f'<img alt="losses and mixtures" src="data:image/png;base64,{shown}">')
    return document(title, CSS, parts)


def _ledger(one: Json) -> list[str]:
    parts = []
    for side in ("reporting", "enforcing"):
        heads, rows = ledger_rows(one, side)
        parts += [f"<h2>{escaped(ledger_title(one, side))}</h2>", _table(heads, rows)]
    first, *rest = changed_lines(one)
    items = "".join(f"<li>{escaped(line.strip())}</li>" for line in rest)
    return [*parts, f"<p>{escaped(first)}</p>", f"<ul>{items}</ul>" if rest else ""]


def _table(heads: Iterable[str], rows: Iterable[Sequence[str]]) -> str:
    head = "".join(f"<th>{escaped(name)}</th>" for name in heads)
    body = "".join(
        f"<tr>{''.join(f'<td>{escaped(cell)}</td>' for cell in row)}</tr>\n" for row in rows
    )
    return f"<table><tr>{head}</tr>\n{body}</table>"


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
    yield from (text.clean(note) for note in report["notes"])


def standings_table(report: Json) -> Table:
    """One row per policy and world, and per world what the control left to gain."""
    title = f"{report['seeds']} seeds; median [95% interval]; 0 is the start kept, 1 the optimum"
    made = views.table(title, COLUMNS)
    for row in standings_rows(report):
        made.add_row(*map(views.cell, row))
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
    heads = [f"{text.tokens(s['from'])}-{text.tokens(s['until'])}" for s in spans]
    rows = [
        [name, *(f"{s['weights'][name]:.1%}, {s['epochs'][name]:.2f}" for s in spans)]
        for name in shown_sources(spans)
    ]
    return ["source", *heads], rows


def ledger_table(one: Json, side: str) -> Table:
    """A run's mixtures and epochs, span by span."""
    heads, rows = ledger_rows(one, side)
    made = views.table(text.clean(ledger_title(one, side)), heads)
    for row in rows:
        made.add_row(*map(views.cell, row))
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
            f"from {text.tokens(s['from'])} to {text.tokens(s['until'])}"
            for s in entry["spans"]
        )
        epochs = f"{entry['reported']:.2f} epochs, {verb} {entry['enforced']:.2f}"
        lines.append(f"  {text.clean(entry['source'])}: {epochs}{f' ({shares})' if shares else ''}")
    return lines
