"""The ``mixloop search`` command: its options, its bar, and what it prints at the end."""

from __future__ import annotations

import contextlib
import json
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mixloop.common.types import Json

if TYPE_CHECKING:
    from mixloop.controller.config import RunConfig, SearchPlan
    from mixloop.tools.search import Progress, Search


def search(
    path: Annotated[Path, typer.Argument(metavar="RUN.yaml", help="the run's configuration")],
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
    as_json: Annotated[bool, typer.Option("--json", help="print JSON instead of text")] = False,
) -> None:
    """Look for a starting mixture with proxy runs; goes on where it stopped."""
    from mixloop.controller.config import load_config
    from mixloop.controller.service import check_evals
    from mixloop.tools.search import SearchArgs, plan_search

    config = load_config(path)
    check_evals(path, config)
    wanted = SearchArgs(checkpoint, _count(tokens), trials, workers, out)
    plan = plan_search(path, config, wanted)
    facts = plan_facts(plan, speed)
    if dry_run:
        _print_plan(facts, as_json=as_json)
        return
    if not as_json:
        _print_plan(facts, as_json=False)
    raise SystemExit(_carry_out(config, plan, as_json=as_json))


def _count(text: str | None) -> int | None:
    from mixloop.common.errors import BadInput
    from mixloop.common.units import parse_tokens

    try:
        return parse_tokens(text) if text is not None else None
    except ValueError as error:
        raise BadInput(f"--tokens: {error}") from None


def _carry_out(config: RunConfig, plan: SearchPlan, *, as_json: bool) -> int:
    """Search, conclude, print; the exit code."""
    from mixloop.tools.search import Search, SearchFailed, conclude, write_prior

    say = (lambda line: typer.echo(line, err=True)) if as_json else typer.echo
    going = Search(config, plan, say)
    with _stopping(going), _bar() as show:
        try:
            whole = going.run(show)
        except SearchFailed as error:
            typer.echo(f"error: {error}", err=True)
            return 1
    runs = going.trials.runs()
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
    written = write_prior(plan, prior)
    if as_json:
        typer.echo(json.dumps({**prior, "file": str(written)}, indent=2, ensure_ascii=False))
    else:
        _print_found(prior, written)
    return 0


@contextlib.contextmanager
def _stopping(going: Search) -> Iterator[None]:
    """Ctrl-C and SIGTERM end the search between two looks."""
    numbers = (signal.SIGTERM, signal.SIGINT)
    before = {number: signal.signal(number, lambda *_: going.stop()) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _bar() -> Iterator[Callable[[Progress], None]]:
    """A bar over the proxies on a terminal; nothing elsewhere, where lines tell enough."""
    if not sys.stderr.isatty():
        yield lambda progress: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    from mixloop.tools.search import eta

    columns = (TextColumn("proxies"), BarColumn(), TextColumn("{task.fields[shown]}"))
    with Progress(*columns, console=Console(stderr=True)) as drawn:
        task = drawn.add_task("proxies", total=None, shown="")

        def show(now: Any) -> None:
            done = now.done + sum(now.shares)
            shown = f"{now.done} of {now.trials}, {eta(now.left)}"
            drawn.update(task, total=now.trials, completed=done, shown=shown)

        yield show


def plan_facts(plan: SearchPlan, speed: float | None) -> Json:
    """The plan and its cost, as printed."""
    least, most = plan.cost()
    return {
        "folder": str(plan.folder),
        "from": str(plan.checkpoint) if plan.checkpoint is not None else None,
        "trials": plan.trials,
        "workers": plan.workers,
        "tokens": plan.tokens,
        "target": plan.target,
        "rungs": list(plan.rungs),
        "training_tokens": {"with_halving": least, "at_most": most},
        "training_seconds": most / speed / plan.workers if speed else None,
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


def _print_plan(facts: Json, *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(facts, indent=2, ensure_ascii=False))
        return
    from mixloop.common import text
    from mixloop.controller import views
    from mixloop.tools.search import eta

    kind = f"anneals from {facts['from']}" if facts["from"] else "proxies from scratch"
    columns = ("source", "unique", "subsample", "epochs in the run", "in a proxy", "greatest share")
    made = views.table(f"Search in {text.clean(facts['folder'])}", columns)
    for name, one in facts["sources"].items():
        made.add_row(
            views.cell(name),
            text.tokens(one["unique_tokens"]),
            text.tokens(one["subsample"]),
            f"{one['epochs']:.2f}",
            f"{one['proxy_epochs']:.2f}",
            f"{one['most']:.3f}",
        )
    views.console().print(made)
    cost = facts["training_tokens"]
    typer.echo(
        f"{facts['trials']} {text.clean(kind)}, {facts['workers']} side by side, each of "
        f"{text.tokens(facts['tokens'])} tokens for the target's {text.tokens(facts['target'])}; "
        f"scored at {', '.join(text.tokens(rung) for rung in facts['rungs'])}"
    )
    seconds = facts["training_seconds"]
    time = f"; at most {eta(seconds).removesuffix(' left')} of training" if seconds else ""
    typer.echo(
        f"cost: {text.tokens(cost['with_halving'])} to {text.tokens(cost['at_most'])} training "
        f"tokens in all, evaluations besides{time}"
    )


def _print_found(prior: Json, written: Path) -> None:
    from mixloop.controller import views

    made = views.table("Best mixture, by posterior mean", ("source", "share", "±", "before"))
    for name, weight in prior["best"].items():
        spread, before = prior["uncertainty"][name], prior["start"][name]
        made.add_row(views.cell(name), f"{weight:.4f}", f"{spread:.4f}", f"{before:.4f}")
    views.console().print(made)
    gain = prior["gain"]
    typer.echo(
        f"{prior['verdict']}: {gain['value']:+.4f} ± {gain['stderr']:.4f} bits per byte better "
        f"than the configured start, as {prior['surrogate']} predicts for a proxy"
    )
    if prior["verdict"] != "better":
        typer.echo("not clearly better: the prior's weights are those the search began from")
    typer.echo(f"wrote {written}")
