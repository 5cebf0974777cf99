"""A back-test for people: one row per decision, then what it comes to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mixloop.controller import show

if TYPE_CHECKING:
    from rich.table import Table

Json = dict[str, Any]


def backtest_table(report: Json) -> Table:
    """What was done, what would have been, how far apart, and what the guards would have said."""
    title = f"{show.clean(report['policy'])} on {show.clean(report['run'])}"
    columns = ("id", "tokens", "was", "would be", "apart", "would change", "why", "guards")
    made = show.table(title, columns)
    for one in report["decisions"]:
        would = one["would"]
        made.add_row(
            one["id"],
            show.tokens(one["tokens"]),
            show.cell(one["was"]["verdict"]),
            show.cell(would["verdict"]),
            "same" if one["agrees"] else f"{one['total_variation']:.3f}",
            show.cell(show.moves(one["weights_before"], would["weights_after"])),
            show.cell(would["reason"]),
            show.cell(guards_said(would["guards"])),
        )
    return made


def guards_said(notes: list[Json]) -> str:
    """The notes of the guards that did something."""
    told = [f"{n['guard']}: {n['detail']}" for n in notes if n["action"] != "passed"]
    return "; ".join(told) or "-"


def summary_lines(report: Json) -> list[str]:
    """The summary in two lines at most."""
    found = report["summary"]
    lines = [
        f"{found['agree']} of {found['decisions']} decisions agree; "
        f"mean total variation {found['mean_total_variation']:.3f}; "
        f"{found['would_intervene']} interventions, the run had {found['intervened']}"
    ]
    other = found["decisions"] - found["same_observation"]
    if other:
        lines.append(
            f"{other} observations aren't exactly what was seen then: the trainer's state between "
            "checkpoint and decision wasn't kept, or run.yaml has changed since"
        )
    return lines
