"""``mixloop fork``: try another future for a run, beside it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from mixloop.common.errors import BadInput


def fork(
    target: Annotated[Path, typer.Argument(metavar="RUN", help="a run folder, or its run.yaml")],
    new: Annotated[Path, typer.Argument(metavar="NEW", help="the run folder to make")],
    at: Annotated[int | None, typer.Option(min=0, help="step after which it goes its way")] = None,
    sample: Annotated[int | None, typer.Option(min=0, help="the same as a sample")] = None,
    name: Annotated[
        str | None, typer.Option("--id", help="name of the new run; default: the folder's")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON instead of text")] = False,
) -> None:
    """A new run that begins as another did."""
    from mixloop.trainer.config import JobError
    from mixloop.trainer.run import fork_run

    if (at is None) == (sample is None):
        raise BadInput("fork: say where, with --at STEP or --sample N (one of the two)")
    folder = target
    if target.is_file():
        from mixloop.controller.config import load_config

        folder = load_config(target).run.dir
    run = name or new.resolve().name
    try:
        made = fork_run(folder, new, run, step=at, sample=sample)
    except JobError as error:
        raise BadInput(str(error)) from None
    except OSError as error:
        raise BadInput(f"{new}: {error.strerror or error}") from None
    if as_json:
        typer.echo(json.dumps(made.to_json(), indent=2))
        return
    typer.echo(
        f"{new}: run {run}, as {folder} up to step {made.step} ({made.tokens:,} tokens, "
        f"sample {made.sample})"
    )
    typer.echo(
        f"copied {made.checkpoint}"
        if made.checkpoint
        else f"no checkpoint of step {made.step} there: load your own trainer's"
    )
    typer.echo(f"next: a run.yaml with run: {{id: {run}, dir: {new}}}, its sources unchanged")
