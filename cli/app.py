"""The ``mixloop`` command. Thin: every command imports what it needs when it runs.

Exit codes: 0 done, 1 failed, 2 bad input (one line on stderr, no traceback), 130 interrupted.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from mixloop.common.errors import BadInput

from . import operators, policies
from .audit import audit
from .run import fork
from .search import search

app = typer.Typer(
    name="mixloop",
    help="Closed-loop controller for the data mixture of a language-model pretraining run.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

RunFile = Annotated[Path, typer.Argument(metavar="RUN.yaml", help="the run's configuration")]
Run = Annotated[Path, typer.Argument(metavar="RUN", help="a run folder, or its run.yaml")]
AsJson = Annotated[bool, typer.Option("--json", help="print JSON instead of text")]


def _print_json(value: Any) -> None:
    text = json.dumps(value, indent=2, ensure_ascii=False)
    typer.echo(text.encode("utf-8", "replace").decode())  # half of a surrogate pair is no text


@app.command()
def init(
    path: Annotated[Path, typer.Argument(help="where to write it")] = Path("run.yaml"),
    force: Annotated[bool, typer.Option(help="replace a file that is there")] = False,
) -> None:
    """Write a commented run.yaml to start from."""
    from mixloop.controller.config import TEMPLATE

    if path.exists() and not force:
        raise BadInput(f"{path}: exists already; give another path, or --force to replace it")
    path.write_text(TEMPLATE, encoding="utf-8")
    typer.echo(f"wrote {path}; next: edit the sources, then `mixloop check {path}`")


@app.command()
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
        _print_json(report)
        return
    from mixloop.common import text
    from mixloop.controller import views

    console = views.console()
    columns = ("source", "format", "weight", "unique", "epochs at the end")
    sources = views.table(f"Run {report['run']}", columns)
    for name, source in report["sources"].items():
        sources.add_row(
            views.cell(name),
            source["format"],
            f"{source['weight']:.4f}",
            text.tokens(source["unique_tokens"]),
            f"{source['projected_epochs']:.2f}",
        )
    console.print(sources)
    if report["evals_plan"] is not None:
        console.print(views.plan_table(report["evals_plan"]))
    for line in report["notes"]:
        console.print(views.cell(line))
    console.print("ok")


@app.command()
def prepare(
    inputs: Annotated[
        list[str],
        typer.Argument(help="text, jsonl(.gz) or parquet files, folders, globs; or a hub dataset"),
    ],
    out: Annotated[Path, typer.Option(help="folder of the token store to make")],
    tokenizer: Annotated[str, typer.Option(help="HF tokenizer: a folder or a hub name")],
    text_key: Annotated[str, typer.Option(help="key or column that holds the text")] = "text",
    split: Annotated[str | None, typer.Option(help="split of a hub dataset")] = None,
    config: Annotated[str | None, typer.Option(help="configuration of a hub dataset")] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="processes; default: one per core")
    ] = None,
    overwrite: Annotated[bool, typer.Option(help="replace a token store that is there")] = False,
    append: Annotated[
        bool, typer.Option(help="add to a token store that is there; runs take it when resumed")
    ] = False,
    shard_size: Annotated[
        str | None, typer.Option(help="most tokens of a file, such as 2B; default: one file")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Tokenise a corpus into a token store, a run's source."""
    from .data import prepare_with_progress

    options = {"text_key": text_key, "split": split, "config": config, "overwrite": overwrite}
    options |= {"append": append, "shard_size": shard_size}
    info = prepare_with_progress(inputs, out, tokenizer, workers, options)
    if as_json:
        _print_json(info)
    else:
        from mixloop.common import text

        typer.echo(
            f"{out}: {info['tokens']:,} unique tokens ({text.tokens(info['tokens'])}) in "
            f"{info['documents']:,} documents"
        )


@app.command()
def verify(
    paths: Annotated[
        list[Path], typer.Argument(metavar="PATH…", help="sources, or run.yaml for all of its own")
    ],
    as_json: AsJson = False,
) -> None:
    """Read sources whole: checksums of token stores, the structure of other formats."""
    from .data import verify_sources

    found = verify_sources(paths)
    if as_json:
        _print_json(found)
    else:
        from mixloop.common.text import clean

        for path, problems in found.items():
            for line in problems or [f"{path}: sound"]:
                typer.echo(clean(line))
    raise SystemExit(1 if any(found.values()) else 0)


@app.command()
def train(
    path: RunFile,
    rewind: Annotated[
        bool, typer.Option(help="resume at another batch size: drop recorded later mixtures")
    ] = False,
) -> None:
    """Train with the reference trainer; resumes where it stopped."""
    import os

    from mixloop.controller.config import load_config
    from mixloop.controller.service import trainer_command, write_job

    config = load_config(path)
    command = trainer_command(write_job(config), rewind=rewind)
    os.execv(command[0], command)


MetricsPort = Annotated[
    int | None,
    typer.Option(
        min=0,
        max=65535,
        help="serve Prometheus metrics at this port of localhost (0: any free one); "
        "controller.metrics in run.yaml has host and port too",
    ),
]


@app.command()
def control(path: RunFile, metrics_port: MetricsPort = None) -> None:
    """Run the controller beside a training job."""
    from mixloop.common.text import clean
    from mixloop.controller.service import control_run

    raise SystemExit(control_run(path, lambda line: typer.echo(clean(line)), metrics_port))


@app.command()
def run(
    path: RunFile,
    rewind: Annotated[
        bool, typer.Option(help="resume at another batch size: drop recorded later mixtures")
    ] = False,
    metrics_port: MetricsPort = None,
) -> None:
    """Train and control, as two processes."""
    from mixloop.controller.service import run_both

    raise SystemExit(run_both(path, rewind=rewind, metrics_port=metrics_port))


@app.command()
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
    from mixloop.common import text
    from mixloop.controller import views

    from . import output

    with views.reading(target):
        paths, journal = views.open_run(target, new=True)
        found = views.status(paths, journal)
        lines = output.status_lines(found)
    if as_json:
        _print_json(found)
        return
    for line in lines:
        typer.echo(text.clean(line))


@app.command()
def history(target: Run, as_json: AsJson = False) -> None:
    """Every decision: what changed, why, when applied."""
    from mixloop.controller import views

    from . import output

    with views.reading(target):
        _, journal = views.open_run(target)
        entries = views.history(journal) if journal is not None else []
        table = output.history_table(entries)
        lines = output.skipped_lines(views.skipped(journal))
    if as_json:
        _print_json(entries)
    elif not entries:
        typer.echo("no decisions yet")
    else:
        views.console().print(table)
    if not as_json:
        for line in lines:
            typer.echo(line)


@app.command()
def explain(
    target: Run,
    decision: Annotated[str, typer.Argument(metavar="ID", help="a decision, such as d-000003")],
    as_json: AsJson = False,
) -> None:
    """One decision in full, and whether it helped."""
    from mixloop.common import text
    from mixloop.controller import views

    from . import output

    with views.reading(target):
        _, journal = views.open_run(target)
        if journal is None:
            raise BadInput(f"{target}: no controller has run here, so there are no decisions")
        entry = views.find_decision(journal, decision)
        lines = output.explain_lines(entry)
    if as_json:
        _print_json(entry)
        return
    for line in lines:
        typer.echo(text.clean(line))


@app.command()
def report(
    target: Run,
    out: Annotated[
        Path | None, typer.Option(help="the page; default: report.html in the run")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """One page that tells the whole run: for a browser, a phone, or print."""
    from mixloop.controller.report import gather, write_report
    from mixloop.controller.views import reading

    with reading(target):
        found = gather(target) if as_json else write_report(target, out)
    if as_json:
        _print_json(found)
    else:
        typer.echo(f"wrote {found}")


@app.command(name="eval")
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
    """Score one checkpoint on the benchmarks."""
    from mixloop.tools import EvalArgs, cost_table, score_checkpoint, scorecard_table

    wanted = EvalArgs(config, data or (), benchmarks or (), items, device)
    card = score_checkpoint(checkpoint, wanted, out)
    if as_json:
        typer.echo(card.to_json())
        return
    from mixloop.controller import views

    views.console().print(scorecard_table(card), cost_table(card), sep="\n")


@app.command(
    name="lm-eval",
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    add_help_option=False,
)
def lm_eval(context: typer.Context) -> None:
    """lm-eval's own command line, on mixloop's engine."""
    import os

    arguments = [sys.executable, "-m", "mixloop.evals.harness", *context.args]
    os.execv(sys.executable, arguments)


@app.command()
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
    from mixloop.common import text
    from mixloop.controller import views

    if (b is None) == (steps is None):
        raise BadInput("compare: give two scorecards (A B), or a run and --steps 1200,2400")
    cards = views.read_cards((a, b)) if b is not None else views.run_cards(a, steps or "")
    report = views.compare_cards(*cards, force=force)
    if as_json:
        _print_json(report)
    else:
        views.console().print(views.comparison_table(report))
        for note in report["notes"]:
            typer.echo(text.clean(note))
    if not report["rows"]:
        typer.echo("error: nothing can be compared", err=True)
        raise typer.Exit(1)


@app.command()
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
    from mixloop.controller.views import read_samples, samples_table

    found = read_samples(targets, step or ())
    if as_json:
        _print_json([one.model_dump(mode="json", by_alias=True) for one in found])
        return
    from mixloop.controller import views

    views.console().print(samples_table(found))


app.command()(search)
app.command()(fork)
app.command()(audit)


@app.command()
def simulate(
    config: Annotated[
        Path | None, typer.Argument(metavar="[RUN.yaml]", help="a run to simulate")
    ] = None,
    policy: Annotated[
        list[str] | None, typer.Option(help="a policy; repeatable. Default: the run's own")
    ] = None,
    options: Annotated[
        str | None, typer.Option("--with", help="the policy's options: YAML, JSON or a file")
    ] = None,
    world: Annotated[
        list[str] | None,
        typer.Option(
            help="power, exponential, dilution, flat, smollm2, with options as power:sigma=0.01; "
            "or ./file.py:Class; repeatable"
        ),
    ] = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="worlds of each kind")] = None,
    k: Annotated[list[int] | None, typer.Option(min=1, help="sources of a world")] = None,
    segments: Annotated[int | None, typer.Option(min=1, help="evaluations in the budget")] = None,
    budget: Annotated[str | None, typer.Option(help="tokens of a run, such as 40B")] = None,
    guard: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="such as max_epochs=5")
    ] = None,
    jobs: Annotated[
        int | None, typer.Option(min=1, help="processes; default: one per core")
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="also draw it: a .png or .svg file")] = None,
    html: Annotated[Path | None, typer.Option(help="also write a page")] = None,
    as_json: AsJson = False,
) -> None:
    """What policies would do, on worlds whose truth is known."""
    from mixloop.tools.simulate import (
        SimulateArgs,
        check_outputs,
        run_simulations,
        simulation_report,
        write_outputs,
    )

    wanted = SimulateArgs(
        config, policy or (), options, world or (), seeds, k or (), segments, budget, guard or (),
        jobs,
    )  # fmt: skip
    check_outputs(plot, html)
    results = run_simulations(wanted)
    report = simulation_report(results)
    write_outputs(results, report, plot, html)
    if as_json:
        _print_json(report)
        return
    from mixloop.controller import views
    from mixloop.tools.simulate import tables

    for part in tables(report):
        views.console().print(part, markup=False)


@app.command()
def backtest(
    target: Run,
    policy: Annotated[str, typer.Option(help="the policy to ask")],
    options: Annotated[
        str | None, typer.Option("--with", help="its options: YAML, JSON or a file")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """What another policy would have done on a recorded run."""
    from mixloop.common.yaml import parse_mapping
    from mixloop.tools.simulate import backtest

    report = backtest(target, policy, parse_mapping(options, "--with"), Path.cwd())
    if as_json:
        _print_json(report)
        return
    from mixloop.common import text
    from mixloop.controller import views
    from mixloop.tools.simulate import backtest_table, summary_lines

    views.console().print(backtest_table(report))
    for line in summary_lines(report):
        typer.echo(text.clean(line))


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """What this machine offers, what is missing, and the mend."""
    from mixloop.tools import examine, report_table

    report = examine()
    if as_json:
        _print_json(report)
    else:
        from mixloop.controller import views

        views.console().print(report_table(report))
        typer.echo("The sandbox does not cover:")
        for line in report["sandbox_does_not_cover"]:
            typer.echo(f"  - {line}")
    raise SystemExit(0 if report["ok"] else 1)


@app.command()
def demo(
    directory: Annotated[
        Path, typer.Option("--dir", help="folder of the demo's run; made anew")
    ] = Path("demo-run"),
    control_only: Annotated[
        bool, typer.Option("--control", help="the control run: same seed, mixture left alone")
    ] = False,
    seed: Annotated[int, typer.Option(min=0, help="seed of data, model and order")] = 7,
    budget: Annotated[
        str | None, typer.Option(help="tokens to train, such as 2M; default: about 5 minutes")
    ] = None,
) -> None:
    """Watch the loop close in minutes, on real text."""
    from mixloop.tools.demo import run_demo

    raise SystemExit(run_demo(directory, control=control_only, seed=seed, budget=budget))


operators.add_to(app)
app.add_typer(policies.app, name="policies")


def main() -> None:
    """Entry of the ``mixloop`` command."""
    try:
        app()
    except BadInput as error:
        from mixloop.common.text import clean

        typer.echo(f"error: {clean(error)}", err=True)
        sys.exit(2)
    except KeyboardInterrupt:
        typer.echo("interrupted", err=True)
        sys.exit(130)


if __name__ == "__main__":
    main()
