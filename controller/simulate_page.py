"""The report of ``mixloop simulate`` as one HTML file that loads nothing and runs nothing."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from mixloop.controller.pages import document, text
from mixloop.controller.simulate_show import (
    COLUMNS,
    changed_lines,
    ledger_rows,
    ledger_title,
    standings_rows,
)

Json = dict[str, Any]

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
    parts = [f"<h1>{text(title)}</h1>", "<h2>Standings</h2>"]
    parts.append(_table(COLUMNS, standings_rows(report)))
    parts.append(
        f"<p>Over {report['seeds']} seed{'s' * (report['seeds'] != 1)}: "
        "median, in brackets its 95% bootstrap interval. "
        "Gap closed: 0 is the mixture left as it started, 1 the best constant mixture under the "
        "cap on epochs. Regret: the loss above that one at the end.</p>"
    )
    for one in report["ledgers"]:
        parts += _ledger(one)
    parts += [f"<p>{text(note)}</p>" for note in report["notes"]]
    shown = base64.b64encode(picture.read_bytes()).decode("ascii")
    parts.append(f'<img alt="losses and mixtures" src="data:image/png;base64,{shown}">')
    return document(title, CSS, parts)


def _ledger(one: Json) -> list[str]:
    parts = []
    for side in ("reporting", "enforcing"):
        heads, rows = ledger_rows(one, side)
        parts += [f"<h2>{text(ledger_title(one, side))}</h2>", _table(heads, rows)]
    first, *rest = changed_lines(one)
    items = "".join(f"<li>{text(line.strip())}</li>" for line in rest)
    return [*parts, f"<p>{text(first)}</p>", f"<ul>{items}</ul>" if rest else ""]


def _table(heads: Iterable[str], rows: Iterable[Sequence[str]]) -> str:
    head = "".join(f"<th>{text(name)}</th>" for name in heads)
    body = "".join(
        f"<tr>{''.join(f'<td>{text(cell)}</td>' for cell in row)}</tr>\n" for row in rows
    )
    return f"<table><tr>{head}</tr>\n{body}</table>"
