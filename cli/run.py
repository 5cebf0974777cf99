"""A run from its first file on: init, check, train, control, run, fork."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from mixloop.common.errors import BadInput
from mixloop.common.files import unwritable
from mixloop.common.text import clean, tokens
from mixloop.controller import views

from .output import AsJson, Run, RunFile, print_json

Rewind = Annotated[
    bool, typer.Option(help="resume at another batch size: drop recorded later mixtures")
]
MetricsPort = Annotated[
    int | None,
    typer.Option(
        min=0,
        max=65535,
        help="serve Prometheus metrics at this port of localhost (0: any free one); "
        "controller.metrics in run.yaml has host and port too",
    ),
]


def init(
    path: Annotated[Path, typer.Argument(help="where to write it")] = Path("run.yaml"),
    force: Annotated[bool, typer.Option(help="replace a file that is there")] = False,
) -> None:
    """Write a commented run.yaml to start from."""
    from mixloop.controller.config import TEMPLATE

    if (problem := unwritable(path)) is not None:
        raise BadInput(f"{path}: {problem}")
    if path.exists() and not force:
        raise BadInput(f"{path}: exists already; give another path, or --force to replace it")
    path.write_text(TEMPLATE, encoding="utf-8")
    typer.echo(f"wrote {path}; next: edit the sources, then `mixloop check {path}`")


def check(
    path: RunFile,
    checkpoint: Annotated[
        Path | None, typer.Option(help="measure the plan of evals.budget on this checkpoint")
    ] = None,
    speed: Annotated[
        float | None, typer.Option(min=1, help="training tokens per second, to plan with")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Find what is wrong with a run before it starts."""
    from mixloop.controller.service import check_run

    report = check_run(path, checkpoint, speed)
    if as_json:
        print_json(report)
        return
    console = views.console()
    rows = (
        (
            *(name, source["format"], f"{source['weight']:.4f}", tokens(source["unique_tokens"])),
            f"{source['projected_epochs']:.2f}",
        )
        for name, source in report["sources"].items()
    )
    columns = ("source", "format", "weight", "unique", "epochs at the end")
    console.print(views.table(f"Run {report['run']}", columns, rows))
    if report["evals_plan"] is not None:
        console.print(views.plan_table(report["evals_plan"]))
    for line in (*report["notes"], *report["undecided"]):
        console.print(views.cell(line))
    console.print("ok")


def train(path: RunFile, rewind: Rewind = False) -> None:
    """Train with the reference trainer; resumes where it stopped."""
    from mixloop.controller.config import load_config
    from mixloop.controller.service import trainer_command, write_job

    config = load_config(path)
    command = trainer_command(write_job(config), rewind=rewind)
    os.execv(command[0], command)


def control(path: RunFile, metrics_port: MetricsPort = None) -> None:
    """Run the controller beside a training job."""
    from mixloop.controller.service import control_run

    raise SystemExit(control_run(path, lambda line: typer.echo(clean(line)), metrics_port))


def run(path: RunFile, rewind: Rewind = False, metrics_port: MetricsPort = None) -> None:
    """Train and control, as two processes."""
    from mixloop.controller.service import run_both

    raise SystemExit(run_both(path, typer.echo, rewind=rewind, metrics_port=metrics_port))


def fork(
    target: Run,
    new: Annotated[Path, typer.Argument(metavar="NEW", help="the run folder to make")],
    at: Annotated[int | None, typer.Option(min=0, help="step after which it goes its way")] = None,
    sample: Annotated[int | None, typer.Option(min=0, help="the same as a sample")] = None,
    name: Annotated[
        str | None, typer.Option("--id", help="name of the new run; default: the folder's")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """A new run that begins as another did."""
    from mixloop.trainer.config import JobError
    from mixloop.trainer.run import fork_run

    if (at is None) == (sample is None):
        raise BadInput("fork: say where, with --at STEP or --sample N (one of the two)")
    folder = views.run_folder(target).dir if target.is_file() else target
    new_id = name or new.resolve().name
    try:
        branch = fork_run(folder, new, new_id, step=at, sample=sample)
    except JobError as error:
        raise BadInput(str(error)) from None
    except OSError as error:
        raise BadInput(f"{new}: {error.strerror or error}") from None
    if as_json:
        print_json(branch.to_json())
        return
    typer.echo(
        f"{new}: run {new_id}, as {folder} up to step {branch.step} ({branch.tokens:,} tokens, "
        f"sample {branch.sample})"
    )
    typer.echo(
        f"copied {branch.checkpoint}"
        if branch.checkpoint
        else f"no checkpoint of step {branch.step} there: load your own trainer's"
    )
    typer.echo(f"next: a run.yaml with run: {{id: {new_id}, dir: {new}}}, its sources unchanged")
