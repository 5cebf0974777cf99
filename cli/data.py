"""A run's corpora: prepare, verify."""

from __future__ import annotations

import glob
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mixloop.common.errors import BadInput
from mixloop.common.text import clean, tokens

from .output import AsJson, print_json, print_lines, progress_bar

if TYPE_CHECKING:
    from mixloop.trainer.corpora import Selection


def prepare(
    inputs: Annotated[
        list[str],
        typer.Argument(
            help="JSON (lines), CSV, parquet, arrow or text files, also compressed (gz, bz2, xz, "
            "zst); folders, globs; or a hub dataset"
        ),
    ],
    out: Annotated[Path | None, typer.Option(help="folder of the token store to make")] = None,
    tokenizer: Annotated[
        str | None, typer.Option(help="HF tokenizer: a folder or a hub name")
    ] = None,
    text_key: Annotated[str, typer.Option(help="key or column that holds the text")] = "text",
    ids_key: Annotated[
        str | None, typer.Option(help="key or column of token ids, if there are some already")
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="split of a dataset or its folder; default: train")
    ] = None,
    config: Annotated[
        str | None, typer.Option(help="configuration of a dataset or its folder")
    ] = None,
    format: Annotated[  # noqa: A002 - the option's name
        str | None,
        typer.Option(help="jsonl, json, csv, parquet, arrow or text, where files leave it open"),
    ] = None,
    include: Annotated[
        list[str] | None, typer.Option(help="pattern of a folder's files to take; again for more")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="processes; default: one per core")
    ] = None,
    overwrite: Annotated[
        bool,
        typer.Option(
            help="replace a token store that is there; it stays aside for runs that read it"
        ),
    ] = False,
    append: Annotated[
        bool, typer.Option(help="add to a token store that is there; runs take it when resumed")
    ] = False,
    shard_size: Annotated[
        str | None, typer.Option(help="most tokens of a file, such as 2B; default: one file")
    ] = None,
    bos: Annotated[
        bool | None,
        typer.Option(
            "--bos/--no-bos", help="the tokenizer's BOS in front of each document; default: no"
        ),
    ] = None,
    eos: Annotated[
        bool | None,
        typer.Option("--eos/--no-eos", help="its EOS behind each document; default: yes"),
    ] = None,
    parse_special_tokens: Annotated[
        bool,
        typer.Option(
            "--parse-special-tokens",
            help="special tokens written in a text become control ids, not text",
        ),
    ] = False,
    on_error: Annotated[
        str, typer.Option(help="what a bad record does: stop, or skip (and be counted)")
    ] = "stop",
    max_errors: Annotated[
        int, typer.Option(min=0, help="bad records that are skipped at most")
    ] = 1000,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="list what would be read and what is left, and why")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Tokenise a corpus into a token store, a run's source."""
    from mixloop.common.parallel import cores
    from mixloop.common.units import parse_tokens
    from mixloop.trainer.corpora import Account, Choice
    from mixloop.trainer.prepare import prepare, select_inputs

    if on_error not in ("stop", "skip"):
        raise BadInput(f"--on-error {on_error}: neither stop nor skip")
    patterns = tuple(include or ())
    try:
        if dry_run:
            key = (text_key, "--text-key") if ids_key is None else (ids_key, "--ids-key")
            choice = Choice(split, config, format, patterns)
            _list_selection(select_inputs(inputs, choice, *key), as_json)
            return
        if out is None or tokenizer is None:
            raise BadInput(f"--{'tokenizer' if out else 'out'}: missing; give it a value")
        account = Account("skip" if on_error == "skip" else "stop", max_errors)
        with progress_bar("tokenising") as show:
            info = prepare(
                inputs,
                out,
                tokenizer,
                workers=workers or cores(),
                text_key=text_key,
                ids_key=ids_key,
                split=split,
                config=config,
                format=format,
                include=patterns,
                overwrite=overwrite,
                append=append,
                shard_size=None if shard_size is None else parse_tokens(shard_size) or None,
                bos=bos,
                eos=eos,
                parse_special_tokens=parse_special_tokens,
                account=account,
                selected=_tell_selection,
                progress=lambda now: show(
                    now.inputs_done,
                    now.inputs,
                    f"{now.inputs_done}/{now.inputs} files, {now.tokens:,} tokens",
                ),
            )
    except ValueError as error:
        raise BadInput(str(error)) from None
    notes = account.lines()
    if overwrite and (replaced := sorted(out.parent.glob(f".{glob.escape(out.name)}.replaced-*"))):
        names = ", ".join(map(str, replaced))
        notes.append(f"kept for runs that read it: {names}; remove it when none does")
    for note in notes:
        typer.echo(clean(note), err=True)
    if as_json:
        counts = {"skipped": dict(account.skipped), "changed": dict(+account.changed)}
        print_json(asdict(info) | counts)
    else:
        typer.echo(
            f"{out}: {info.tokens:,} unique tokens ({tokens(info.tokens)}) in "
            f"{info.documents:,} documents"
        )


def _tell_selection(chosen: Selection) -> None:
    """What of the inputs isn't read, and what of a set isn't there, a line each."""
    _tell_incomplete(chosen)
    if not chosen.left:
        return
    counts = Counter(one.why for one in chosen.left)
    reasons = ", ".join(f"{count} {why}" for why, count in counts.most_common(4))
    names = ", ".join(Path(one.location).name for one in chosen.left[:3])
    more = ", …" if len(chosen.left) > 3 else ""
    typer.echo(
        clean(
            f"reads {len(chosen.taken)} files, leaves {len(chosen.left)} ({reasons}: {names}{more})"
            "; --dry-run lists them"
        ),
        err=True,
    )


def _tell_incomplete(chosen: Selection) -> None:
    sets = chosen.incomplete()
    if sets:
        more = "; …" if len(sets) > 3 else ""
        typer.echo(clean(f"reads sets of files in part: {'; '.join(sets[:3])}{more}"), err=True)


def _list_selection(chosen: Selection, as_json: bool) -> None:
    """Every file, whether it is read, and why not."""
    if as_json:
        print_json(
            {
                "taken": [asdict(one) for one in chosen.taken],
                "left": [asdict(one) for one in chosen.left],
                "incomplete": chosen.incomplete(),
            }
        )
        return
    for one in chosen.taken:
        facts = [one.format, one.compression, one.split and f"split {one.split}"]
        print_lines([f"reads  {one.location}  ({', '.join(fact for fact in facts if fact)})"])
    print_lines(f"leaves {one.location}  ({one.why})" for one in chosen.left)
    _tell_incomplete(chosen)


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
