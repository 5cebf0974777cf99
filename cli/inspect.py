"""What a run did and how it stands: status, history, explain, report, compare, samples."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mixloop.common.errors import BadInput
from mixloop.controller import views

from . import output
from .output import AsJson, Run, print_json, print_lines


def status(
    target: Run,
    watch: Annotated[
        bool, typer.Option("--watch", help="one screen that stays, until Ctrl-C or the run's end")
    ] = False,
    every: Annotated[
        float, typer.Option(min=0.1, max=3600, help="with --watch: seconds between two looks")
    ] = 2.0,
    as_json: AsJson = False,
) -> None:
    """How a run stands: trainer, mixture, ledger, scores."""
    if watch:
        from mixloop.controller.watch import watch as watch_run

        raise SystemExit(watch_run(target, every, as_json=as_json))
    with views.reading(target):
        paths, journal = views.open_run(target, new=True)
        standing = views.look(paths, journal)
        facts, lines = views.status_json(standing), output.status_lines(standing)
    if as_json:
        print_json(facts)
    else:
        print_lines(lines)


def history(target: Run, as_json: AsJson = False) -> None:
    """Every decision: what changed, why, when applied."""
    with views.reading(target):
        _, journal = views.open_run(target)
        entries = views.history(journal) if journal is not None else []
        table = output.history_table(entries)
        lines = output.skipped_lines(views.skipped(journal))
    if as_json:
        print_json(entries)
        return
    if entries:
        views.console().print(table)
    else:
        typer.echo("no decisions yet")
    print_lines(lines)


def explain(
    target: Run,
    decision: Annotated[str, typer.Argument(metavar="ID", help="a decision, such as d-000003")],
    as_json: AsJson = False,
) -> None:
    """One decision in full, and whether it helped."""
    with views.reading(target):
        _, journal = views.open_run(target)
        if journal is None:
            raise BadInput(f"{target}: no controller has run here, so there are no decisions")
        entry = views.find_decision(journal, decision)
        lines = output.explain_lines(entry)
    if as_json:
        print_json(entry)
        return
    print_lines(lines)
    made = entry["experiment"]
    if made is not None and (table := output.experiment_table(made)) is not None:
        views.console().print(table)


def report(
    target: Run,
    out: Annotated[
        Path | None, typer.Option(help="the page; default: report.html in the run")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """One page that tells the whole run: for a browser, a phone, or print."""
    from mixloop.controller.report import gather, write_report

    with views.reading(target):
        written = gather(target).to_json() if as_json else write_report(target, out)
    if as_json:
        print_json(written)
    else:
        typer.echo(f"wrote {written}")


def compare(
    a: Annotated[
        Path, typer.Argument(metavar="A", help="a scorecard (`mixloop eval --out`), or a run")
    ],
    b: Annotated[Path | None, typer.Argument(metavar="B", help="the other scorecard")] = None,
    steps: Annotated[
        str | None, typer.Option(help="two steps of the run A, such as 1200,2400")
    ] = None,
    force: Annotated[bool, typer.Option(help="compare also what was asked differently")] = False,
    as_json: AsJson = False,
) -> None:
    """Two checkpoints, paired over the items they share."""
    if (b is None) == (steps is None):
        raise BadInput("compare: give two scorecards (A B), or a run and --steps 1200,2400")
    if b is not None:
        comparison = views.compare_cards(*views.read_cards((a, b)), force=force)
    else:
        cards, course = views.run_cards(a, steps or "")
        comparison = views.compare_cards(*cards, course=course, force=force)
    if as_json:
        print_json(comparison)
    else:
        views.console().print(views.comparison_table(comparison))
        print_lines(comparison["notes"])
    if not comparison["rows"]:
        typer.echo("error: nothing can be compared", err=True)
        raise typer.Exit(1)


def samples(
    targets: Annotated[
        list[Path], typer.Argument(metavar="RUN…", help="a run, or samples files to compare")
    ],
    step: Annotated[
        list[int] | None, typer.Option(help="checkpoints to show; default: the first and the last")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """What checkpoints write: fixed prompts, continued, side by side."""
    files = views.read_samples(targets, step or ())
    if as_json:
        print_json([file.model_dump(mode="json", by_alias=True) for file in files])
    else:
        views.console().print(views.samples_table(files))
