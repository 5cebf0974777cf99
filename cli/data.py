"""A run's corpora: prepare, verify."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from mixloop.common.errors import BadInput
from mixloop.common.text import tokens

from .output import AsJson, print_json, print_lines, progress_bar


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
    from mixloop.common.parallel import cores
    from mixloop.common.units import parse_tokens
    from mixloop.trainer.prepare import prepare

    try:
        with progress_bar("tokenising") as show:
            info = prepare(
                inputs,
                out,
                tokenizer,
                workers=workers or cores(),
                text_key=text_key,
                split=split,
                config=config,
                overwrite=overwrite,
                append=append,
                shard_size=None if shard_size is None else parse_tokens(shard_size) or None,
                progress=lambda now: show(
                    now.inputs_done,
                    now.inputs,
                    f"{now.inputs_done}/{now.inputs} files, {now.tokens:,} tokens",
                ),
            )
    except ValueError as error:
        raise BadInput(str(error)) from None
    if as_json:
        print_json(asdict(info))
    else:
        typer.echo(
            f"{out}: {info.tokens:,} unique tokens ({tokens(info.tokens)}) in "
            f"{info.documents:,} documents"
        )


def verify(
    paths: Annotated[
        list[Path], typer.Argument(metavar="PATH…", help="sources, or run.yaml for all of its own")
    ],
    as_json: AsJson = False,
) -> None:
    """Read sources whole: checksums of token stores, the structure of other formats."""
    from mixloop.controller.config import load_config
    from mixloop.trainer.config import JobError
    from mixloop.trainer.sources import verify_source

    problems: dict[str, list[str]] = {}
    for path in paths:
        sources: dict[Path, Mapping[str, Any]] = {path: {}}
        if path.suffix in (".yaml", ".yml"):
            sources = {one.path: one.options for one in load_config(path).sources.values()}
        for source, options in sources.items():
            try:
                problems[str(source)] = verify_source(source, options)
            except JobError as error:
                raise BadInput(str(error)) from None
    if as_json:
        print_json(problems)
    else:
        for name, lines in problems.items():
            print_lines(lines or [f"{name}: sound"])
    raise SystemExit(1 if any(problems.values()) else 0)
