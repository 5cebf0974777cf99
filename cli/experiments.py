"""What needs no live run: simulate, backtest, demo."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mixloop.controller import views

from .output import AsJson, Run, print_json, print_lines


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
    from mixloop.tools import simulate as tool

    args = tool.SimulateArgs(
        config, policy or (), options, world or (), seeds, k or (), segments, budget, guard or (),
        jobs,
    )  # fmt: skip
    tool.check_outputs(plot, html)
    results = tool.run_simulations(args)
    report = tool.simulation_report(results)
    tool.write_outputs(results, report, plot, html)
    if as_json:
        print_json(report)
        return
    for part in tool.tables(report):
        views.console().print(part, markup=False)


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
    from mixloop.tools import simulate as tool

    report = tool.backtest(target, policy, parse_mapping(options, "--with"), Path.cwd())
    if as_json:
        print_json(report)
        return
    views.console().print(tool.backtest_table(report))
    print_lines(tool.summary_lines(report))


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
