"""The ``mixloop search`` command: its options, its bar, and what it prints at the end."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mixloop.common.errors import BadInput
from mixloop.common.process import handling, stop_signals
from mixloop.common.text import clean, tokens
from mixloop.common.types import Json
from mixloop.controller import views

from .output import AsJson, RunFile, print_json, progress_bar

if TYPE_CHECKING:
    from mixloop.controller.config import RunConfig, SearchPlan
    from mixloop.tools.search import Search


def search(
    path: RunFile,
    checkpoint: Annotated[
        Path | None,
        typer.Option("--from", help="anneal from this checkpoint instead of training from scratch"),
    ] = None,
    tokens: Annotated[str | None, typer.Option(help="training tokens of one proxy")] = None,
    trials: Annotated[int | None, typer.Option(min=3, help="how many proxies")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="proxies side by side")] = None,
    out: Annotated[Path | None, typer.Option(help="folder of the search")] = None,
    speed: Annotated[
        float | None, typer.Option(min=1, help="a proxy's tokens per second, to plan with")
    ] = None,
    dry_run: Annotated[bool, typer.Option(help="print the plan and its cost, and end")] = False,
    as_json: AsJson = False,
) -> None:
    """Look for a starting mixture with proxy runs; goes on where it stopped."""
    from mixloop.controller.config import load_config
    from mixloop.controller.service import check_evals
    from mixloop.tools.search import SearchArgs, plan_search

    config = load_config(path)
    check_evals(path, config)
    args = SearchArgs(checkpoint, _parse_tokens(tokens), trials, workers, out)
    plan = plan_search(path, config, args)
    facts = plan_facts(plan, speed)
    if not as_json:
        _print_plan(facts)
    elif dry_run:
        print_json(facts)
    if not dry_run:
        raise SystemExit(_run(config, plan, as_json=as_json))


def _parse_tokens(text: str | None) -> int | None:
    from mixloop.common.units import parse_tokens

    try:
        return parse_tokens(text) if text is not None else None
    except ValueError as error:
        raise BadInput(f"--tokens: {error}") from None


def _run(config: RunConfig, plan: SearchPlan, *, as_json: bool) -> int:
    """Search, conclude, print; the exit code."""
    from mixloop.tools.search import Search, SearchFailed, conclude, eta, write_prior

    say = (lambda line: typer.echo(line, err=True)) if as_json else typer.echo
    search = Search(config, plan, say)
    with _stop_on_signals(search), progress_bar("proxies") as show:
        try:
            whole = search.run(
                lambda now: show(
                    now.done + sum(now.shares),
                    now.trials,
                    f"{now.done} of {now.trials}, {eta(now.left)}",
                )
            )
        except SearchFailed as error:
            typer.echo(f"error: {error}", err=True)
            return 1
    runs = search.trials.runs()
    if not whole:
        typer.echo(
            f"stopped after {len(runs)} of {plan.trials} proxies; run again to go on", err=True
        )
        return 130
    try:
        prior = conclude(config.run.id, plan, runs)
    except ValueError as error:
        typer.echo(f"error: {error}; run with more --trials", err=True)
        return 1
    file = write_prior(plan, prior)
    if as_json:
        print_json({**prior, "file": str(file)})
    else:
        _print_prior(prior, file)
    return 0


@contextlib.contextmanager
def _stop_on_signals(search: Search) -> Iterator[None]:
    """What asks to stop ends the search between two looks."""
    with handling(stop_signals(), lambda *_: search.stop()):
        yield


def plan_facts(plan: SearchPlan, speed: float | None) -> Json:
    """The plan and its cost, as printed."""
    with_halving, at_most = plan.cost()
    return {
        "folder": str(plan.folder),
        "from": str(plan.checkpoint) if plan.checkpoint is not None else None,
        "trials": plan.trials,
        "workers": plan.workers,
        "tokens": plan.tokens,
        "target": plan.target,
        "rungs": list(plan.rungs),
        "training_tokens": {"with_halving": with_halving, "at_most": at_most},
        "training_seconds": at_most / speed / plan.workers if speed else None,
        "sources": {
            name: {
                "unique_tokens": plan.sizes[name],
                "subsample": plan.unique[name],
                "epochs": of_target,
                "proxy_epochs": of_proxy,
                "most": plan.most[name],
            }
            for name, (of_target, of_proxy) in plan.epochs().items()
        },
        "objective": dict(plan.importance),
    }


def _print_plan(facts: Json) -> None:
    from mixloop.tools.search import eta

    columns = ("source", "unique", "subsample", "epochs in the run", "in a proxy", "greatest share")
    rows = (
        (
            *(name, tokens(source["unique_tokens"]), tokens(source["subsample"])),
            *(f"{source['epochs']:.2f}", f"{source['proxy_epochs']:.2f}", f"{source['most']:.3f}"),
        )
        for name, source in facts["sources"].items()
    )
    views.console().print(views.table(f"Search in {clean(facts['folder'])}", columns, rows))
    kind = f"anneals from {facts['from']}" if facts["from"] else "proxies from scratch"
    cost = facts["training_tokens"]
    typer.echo(
        f"{facts['trials']} {clean(kind)}, {facts['workers']} side by side, each of "
        f"{tokens(facts['tokens'])} tokens for the target's {tokens(facts['target'])}; "
        f"scored at {', '.join(tokens(rung) for rung in facts['rungs'])}"
    )
    seconds = facts["training_seconds"]
    time = f"; at most {eta(seconds).removesuffix(' left')} of training" if seconds else ""
    typer.echo(
        f"cost: {tokens(cost['with_halving'])} to {tokens(cost['at_most'])} training "
        f"tokens in all, evaluations besides{time}"
    )


def _print_prior(prior: Json, file: Path) -> None:
    columns = ("best", "uncertainty", "start")
    rows = ([name, *(f"{prior[key][name]:.4f}" for key in columns)] for name in prior["best"])
    title = "Best mixture, by posterior mean"
    views.console().print(views.table(title, ("source", "share", "±", "before"), rows))
    gain = prior["gain"]
    typer.echo(
        f"{prior['verdict']}: {gain['value']:+.4f} ± {gain['stderr']:.4f} bits per byte better "
        f"than the configured start, as {prior['surrogate']} predicts for a proxy"
    )
    if prior["verdict"] != "better":
        typer.echo("not clearly better: the prior's weights are those the search began from")
    typer.echo(f"wrote {file}")
