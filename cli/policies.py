"""``mixloop policies``: what there is, what it takes, a new one, and the suite to pass."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mixloop.common.errors import BadInput
from mixloop.common.text import clean
from mixloop.controller import views

from .output import AsJson, print_json, print_lines

app = typer.Typer(no_args_is_help=False, add_completion=False, rich_markup_mode=None)

Ref = Annotated[
    str, typer.Argument(metavar="REF", help="a name, package.module:Class or ./file.py:Class")
]


@app.callback(invoke_without_command=True)
def policies(context: typer.Context, as_json: AsJson = False) -> None:
    """The policies there are; `show`, `new` and `test` one."""
    if context.invoked_subcommand is not None:
        return
    from mixloop.tools.policy_authoring import listing, listing_table

    catalog = listing()
    if as_json:
        print_json(catalog)
    else:
        views.console().print(listing_table(catalog))


@app.command(name="show")
def show_policy(
    ref: Ref,
    as_json: Annotated[bool, typer.Option("--json", help="the JSON schema of its options")] = False,
) -> None:
    """What a policy does and which options it takes."""
    from mixloop.tools.policy_authoring import description, option_tables

    policy = description(ref)
    if as_json:
        print_json(policy["schema"])
        return
    typer.echo(f"{clean(policy['name'])}: {clean(policy['origin'])}\n")
    print_lines(policy["about"].replace("``", "`").splitlines())
    for about, options in option_tables(policy["schema"]):
        views.console().print("", views.cell(about), options, sep="\n")


@app.command()
def new(
    name: Annotated[str, typer.Argument(help="a Python name in lower case, such as my_policy")],
    directory: Annotated[Path, typer.Option("--dir", help="folder to write to")] = Path(),
) -> None:
    """Write a small policy that works, and its test."""
    from mixloop.tools.policy_authoring import write_policy

    ref, test = write_policy(name, directory)
    typer.echo(f"wrote {ref.rpartition(':')[0]} and {test}; next:")
    for line in (
        f"mixloop policies test {ref}",
        f"python -m pytest {test}",
        f"mixloop simulate --policy {ref}",
    ):
        typer.echo(f"  {line}")
    typer.echo("  and in run.yaml:")
    typer.echo(f"    policy: {{use: {ref}, with: {{step: 0.05}}}}")


@app.command(name="test")
def conformance(
    ref: Annotated[
        str | None,
        typer.Argument(metavar="REF", help="a name, package.module:Class or ./file.py:Class"),
    ] = None,
    options: Annotated[
        str | None, typer.Option("--with", metavar="JSON", help="its options, as JSON or YAML")
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(help="run.yaml whose sources, benchmarks and policy to test with"),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Run the conformance suite on a policy; exit code 1 if a check fails."""
    from mixloop.common.yaml import parse_mapping
    from mixloop.tools.policy_authoring import conformance, report_lines, report_table

    if ref is None and config is None:
        raise BadInput("policies test: give a policy (REF), or --config RUN.yaml")
    report = conformance(ref, parse_mapping(options, "--with"), config)
    if as_json:
        print_json(report)
    else:
        views.console().print(report_table(report))
        print_lines(report_lines(report))
    raise SystemExit(0 if report["passed"] else 1)
