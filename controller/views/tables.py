"""Tables and the console they go to."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING

from mixloop.common.text import clean, number
from mixloop.common.types import Json

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


def console() -> Console:
    """A console on stdout; wide enough for a table when stdout is no terminal."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 140, highlight=False, soft_wrap=False)


def table(title: str, columns: Iterable[str], rows: Iterable[Iterable[object]] = ()) -> Table:
    """A table in the house style.

    Args:
        title: safe already; it may hold markup.
        columns: their heads.
        rows: their cells, in which nothing can drive the terminal.
    """
    from rich import box
    from rich.table import Table

    empty = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        empty.add_column(column, overflow="fold")
    for row in rows:
        empty.add_row(*map(cell, row))
    return empty


def cell(text: object) -> str:
    """Text safe for a rich cell: no control characters, no markup."""
    from rich.markup import escape

    return escape(clean(text))


def plan_table(plan: Json) -> Table:
    """An evaluation plan: items of how many, what they cost and how much they tell."""
    title = f"Evaluations: {100 * plan['budget']:.3g}% of training time, on {clean(plan['device'])}"
    if plan["seconds"] is not None:
        title += (
            f", {number(plan['seconds'])} s of every {number(plan['training_seconds'])} s "
            f"at {number(plan['tokens_per_second'])} tokens/s"
        )
    columns = ("benchmark", "items", "of", "generated", "seconds", "share", "± bits/byte")
    rows = table(title, columns)
    for name, planned in plan["benchmarks"].items():
        counts = (planned["items"], planned["available"], planned["generate_items"])
        share = "-" if planned["share"] is None else f"{planned['share']:.2%}"
        shown = ("-" if count is None else str(count) for count in counts)
        cost, error = number(planned["seconds"]), number(planned["stderr"])
        rows.add_row(cell(name), *shown, cost, share, error)
    if plan["overhead"] is not None:
        share = f"{plan['overhead'] / plan['training_seconds']:.2%}"
        rows.add_row("(starting)", "-", "-", "-", number(plan["overhead"]), share, "-")
    return rows
