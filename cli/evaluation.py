"""Scoring by hand and what it needs: eval, lm-eval, doctor."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from mixloop.controller import views

from .output import AsJson, print_json


def evaluate(
    checkpoint: Annotated[Path, typer.Argument(help="a checkpoint folder in Hugging Face format")],
    config: Annotated[Path | None, typer.Option(help="run.yaml whose evals section to use")] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=WHERE",
            help="a benchmark's items: file, folder, hub or packages; repeatable. "
            "Without --config or --benchmarks only the benchmarks named here are scored",
        ),
    ] = None,
    benchmarks: Annotated[
        list[str] | None,
        typer.Option(metavar="NAMES", help="which to score, by comma or repeated"),
    ] = None,
    items: Annotated[int | None, typer.Option(min=1, help="items per benchmark")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda:1, …; default: cpu")] = None,
    out: Annotated[Path | None, typer.Option(help="also write the scorecard here")] = None,
    as_json: AsJson = False,
) -> None:
    """Score one checkpoint on the benchmarks; exit code 1 when none could be scored."""
    from mixloop.tools import (
        EvalArgs,
        cost_table,
        must_have_scores,
        score_checkpoint,
        scorecard_table,
    )

    args = EvalArgs(config, data or (), benchmarks or (), items, device)
    card = score_checkpoint(checkpoint, args, out)
    if as_json:
        typer.echo(card.to_json())
    else:
        views.console().print(scorecard_table(card), cost_table(card), sep="\n")
    must_have_scores(card)


def lm_eval(context: typer.Context) -> None:
    """lm-eval's own command line, on mixloop's engine."""
    arguments = [sys.executable, "-m", "mixloop.evals.engine.lm_eval_command", *context.args]
    os.execv(sys.executable, arguments)


def doctor(as_json: AsJson = False) -> None:
    """What this machine offers, what is missing, and the mend."""
    from mixloop.tools import examine, report_table

    report = examine()
    if as_json:
        print_json(report)
    else:
        views.console().print(report_table(report))
        typer.echo("The sandbox does not cover:")
        for line in report["sandbox_does_not_cover"]:
            typer.echo(f"  - {line}")
    raise SystemExit(0 if report["ok"] else 1)
