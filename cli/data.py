"""``mixloop prepare``: the trainer room's tokenising with a progress bar and clear errors."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mixloop.common.errors import BadInput


def prepare_with_progress(
    inputs: list[str], out: Path, tokenizer: str, workers: int | None, options: Mapping[str, Any]
) -> dict[str, Any]:
    """Tokenise ``inputs`` into a token store at ``out`` and return its header.

    Raises:
        BadInput: one line naming what is wrong with the input.
    """
    from mixloop.common.units import parse_tokens
    from mixloop.trainer.prepare import prepare

    given = dict(options)
    try:
        if given.get("shard_size") is not None:
            given["shard_size"] = parse_tokens(given["shard_size"]) or None
        with _bar() as progress:
            info = prepare(
                inputs, out, tokenizer, workers=workers or _cores(), progress=progress, **given
            )
    except ValueError as error:
        raise BadInput(str(error)) from None
    return asdict(info)


def verify_sources(paths: Sequence[Path]) -> dict[str, list[str]]:
    """What is wrong with each source, its whole content read; empty where nothing is.

    Args:
        paths: sources, or run.yaml files for all of theirs.

    Raises:
        BadInput: one that is no source.
    """
    from mixloop.controller.config import load_config
    from mixloop.trainer.config import JobError
    from mixloop.trainer.sources import verify_source

    found = {}
    for path in paths:
        options: dict[Path, Mapping[str, Any]] = {path: {}}
        if path.suffix in (".yaml", ".yml"):
            sources = load_config(path).sources.values()
            options = {source.path: source.options for source in sources}
        for source, given in options.items():
            try:
                found[str(source)] = verify_source(source, given)
            except JobError as error:
                raise BadInput(str(error)) from None
    return found


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def _bar() -> Iterator[Callable[[Any], None] | None]:
    """A bar over the input files on a terminal; nothing elsewhere."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (TextColumn("tokenising"), BarColumn(), MofNCompleteColumn())
    shown = TextColumn("files, {task.fields[tokens]:,} tokens")
    with Progress(*columns, shown, console=Console(stderr=True)) as progress:
        task = progress.add_task("tokenising", total=None, tokens=0)

        def update(now: Any) -> None:
            progress.update(task, completed=now.inputs_done, total=now.inputs, tokens=now.tokens)

        yield update
