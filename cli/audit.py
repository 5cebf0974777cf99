"""The ``mixloop audit`` command: a run's files against one another, and what a rank saw."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mixloop.common.errors import BadInput
from mixloop.common.files import open_regular
from mixloop.common.text import clean
from mixloop.common.types import Json
from mixloop.controller import views

from .audit_tables import report_parts, step_tables
from .output import AsJson, Run, print_json

if TYPE_CHECKING:
    from rich.table import Table

    from mixloop.trainer.audit import (
        Evidence,
        Finding,
        RankBatch,
        Report,
        ScheduleReplay,
        TraceCheck,
    )
    from mixloop.trainer.config import JobSource

STEP_SCHEMA = "mixloop/audit-step/1"
_LONGEST_LINE = 2**24  # characters of a trace's line


def audit(
    target: Run,
    step: Annotated[int | None, typer.Option(min=0, help="show what was seen in this step")] = None,
    rank: Annotated[int | None, typer.Option(min=0, help="by this rank; default: by all")] = None,
    world: Annotated[
        int | None, typer.Option(min=1, help="as if dealt to so many ranks; default: as it was")
    ] = None,
    incarnation: Annotated[
        int | None, typer.Option(min=1, help="in this trainer incarnation's course, also one left")
    ] = None,
    text: Annotated[bool, typer.Option("--text", help="with the samples' text")] = False,
    hashes: Annotated[bool, typer.Option("--hash", help="with the SHA-256 of token ids")] = False,
    trace: Annotated[
        list[Path] | None,
        typer.Option(help="batches as recorded (FILE, FILE.rank1, …): verify each; repeatable"),
    ] = None,
    source: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=PATH", help="where a source's store lies; repeatable"),
    ] = None,
    checkpoint: Annotated[
        list[Path] | None,
        typer.Option(help="a foreign checkpoint, or a folder of them: verify each; repeatable"),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Verify a run's data order against its ledgers; or say what a rank saw."""
    if step is None:
        if rank is not None or world is not None or incarnation is not None or text or hashes:
            raise BadInput("audit: --rank, --world, --incarnation, --text and --hash need --step")
        report = examine(target, trace or (), source or (), checkpoint or ())
        if as_json:
            print_json(report.to_json())
        else:
            _print_parts(report_parts(report))
        raise SystemExit(0 if report.ok else 1)
    if trace:
        raise BadInput("audit: --trace verifies all that was recorded; drop --step")
    args = AuditArgs(step, rank, world, incarnation, text, hashes)
    facts = audit_step(target, args, source or ())
    if as_json:
        print_json(facts)
    else:
        _print_parts(step_tables(facts))


def _print_parts(parts: Iterable[Table | str]) -> None:
    console = views.console()
    for part in parts:
        console.print(part)


# --- a run and its stores --------------------------------------------------------------------


@dataclass(frozen=True)
class Corpus:
    """Where a run's sources lie, as far as is known, and the tokenizer it names."""

    sources: dict[str, JobSource]
    tokenizer: Path | None = None

    def tokenizer_of(self, name: str) -> Path:
        """The tokenizer of a source: its store's own, else the run's."""
        folder = self.sources[name].path / "tokenizer"
        return folder if folder.is_dir() or self.tokenizer is None else self.tokenizer


def _folder_and_corpus(target: Path, stores: Sequence[str]) -> tuple[Path, Corpus]:
    """The run folder, and its corpus as far as run.yaml, job.json or --source say."""
    from mixloop.trainer.config import JobError, JobSource, load_job

    corpus = Corpus({})
    if target.is_file():
        from mixloop.controller.config import load_config

        config = load_config(target)
        target = config.run.dir
        corpus = Corpus(dict(config.sources), config.trainer.tokenizer)
    elif (target / "job.json").is_file():
        try:
            job = load_job(target / "job.json")
        except JobError as error:
            raise BadInput(str(error)) from None
        corpus = Corpus(dict(job.sources), job.tokenizer)
    if not target.is_dir():
        raise BadInput(f"{target}: no run here; give a run folder or its run.yaml")
    for store in stores:
        name, separator, path = store.partition("=")
        if not (name and separator and path):
            raise BadInput(f"--source: {store!r} is not NAME=PATH")
        corpus.sources[name] = JobSource(path=Path(path))
    return target, corpus


def _evidence(
    target: Path, stores: Sequence[str], checkpoints: Sequence[Path] = ()
) -> tuple[Evidence, ScheduleReplay, Corpus]:
    from mixloop.trainer.audit import read_evidence, replay_of

    folder, corpus = _folder_and_corpus(target, stores)
    if not (folder / "schedule.jsonl").exists():
        raise BadInput(f"{folder}: no schedule.jsonl here; give the folder of a run that was begun")
    try:
        evidence = read_evidence(folder, corpus.sources, checkpoints)
    except OSError as error:
        raise BadInput(f"{folder}: {error}") from None
    try:
        replay = replay_of(evidence)
    except ValueError as error:
        raise BadInput(f"{folder}/schedule.jsonl: {error}") from None
    names = replay.final.names
    for store in stores:
        name = store.partition("=")[0]
        if name not in names:
            raise BadInput(
                f"--source: {name!r} is no source of this run, which has {', '.join(names)}"
            )
    return evidence, replay, corpus


def _gatherer(replay: ScheduleReplay, corpus: Corpus) -> Any:
    from mixloop.trainer.audit import gatherer

    return gatherer(corpus.sources, replay.final.opened.sequence_length)


def examine(
    target: Path,
    traces: Sequence[Path] = (),
    stores: Sequence[str] = (),
    checkpoints: Sequence[Path] = (),
) -> Report:
    """Audit a run, with recorded batches if there are any.

    Args:
        target: a run folder, or its run.yaml.
        traces: files of :class:`mixloop.trainer.run.SampleTrace`; those of the other ranks
            (`FILE.rank1`, …) are taken along.
        stores: ``NAME=PATH`` of sources.
        checkpoints: folders with a `mixloop.json`, or of such folders.

    Raises:
        BadInput: there is no such run or file.
    """
    from mixloop.trainer import audit as trainer_audit

    evidence, replay, corpus = _evidence(target, stores, checkpoints)
    check = trainer_audit.TraceCheck(replay, _gatherer(replay, corpus)) if traces else None
    findings = [finding for path in _all_ranks(traces) for finding in _trace_findings(check, path)]
    report = trainer_audit.audit(evidence, check)
    return replace(report, findings=(*report.findings, *findings))


def _all_ranks(traces: Iterable[Path]) -> list[Path]:
    paths: dict[Path, None] = {}
    for path in traces:
        others = [p for p in path.parent.glob(f"{path.name}.rank*") if p.name[-1].isdigit()]
        others.sort(key=lambda p: int(p.name.rpartition(".rank")[2]))
        paths |= dict.fromkeys((path, *others))
    return list(paths)


def _trace_findings(check: TraceCheck | None, path: Path) -> list[Finding]:
    if check is None:
        return []
    try:
        handle = open_regular(path, follow=True)
        with os.fdopen(handle, encoding="utf-8", errors="replace") as stream:
            lines = iter(lambda: stream.readline(_LONGEST_LINE), "")
            return list(check.file(path.name, lines))
    except OSError as error:
        raise BadInput(f"{path}: {error.strerror or error}") from None


# --- one step --------------------------------------------------------------------------------


@dataclass(frozen=True)
class AuditArgs:
    """What to show of a step: see the options of :func:`audit`."""

    step: int
    rank: int | None = None
    world: int | None = None
    incarnation: int | None = None
    text: bool = False
    hashes: bool = False


def audit_step(target: Path, args: AuditArgs, stores: Sequence[str] = ()) -> Json:
    """What ``mixloop audit --step --json`` prints.

    Each row has its place in the global order, source, sample, epoch, number among the source's
    draws and the index of its first token in the store.

    Raises:
        BadInput: no such run, step, rank or layout; text or hashes without the stores.
    """
    _, replay, corpus = _evidence(target, stores)
    try:
        branch = replay.final if args.incarnation is None else replay.branch(args.incarnation)
        first = branch.rank_batch(args.step, args.rank or 0, args.world)
        ranks = range(first.world) if args.rank is None else [args.rank]
        batches = [branch.rank_batch(args.step, rank, args.world) for rank in ranks]
    except ValueError as error:
        raise BadInput(f"{target}: {error}") from None
    length = branch.opened.sequence_length
    gather = _gatherer(replay, corpus) if args.text or args.hashes else None
    segment = branch.in_force(first.sample + 1)
    return {
        "schema": STEP_SCHEMA,
        "step": args.step,
        "sample": first.sample,
        "incarnation": first.incarnation,
        "world": first.world,
        "generation": segment.generation if segment is not None else 0,
        "ranks": [_rank(batch, length, gather, corpus, args) for batch in batches],
    }


def _rank(batch: RankBatch, length: int, gather: Any, corpus: Corpus, args: AuditArgs) -> Json:
    from mixloop.trainer.run import ids_hash

    names = batch.names
    ids: Any = None
    if gather is not None:
        ids = gather(batch)
        if ids is None:
            drawn = sorted({names[number] for number in batch.source.ravel().tolist()})
            raise BadInput(
                f"--text and --hash need the stores of {', '.join(drawn)}; give RUN as its "
                "run.yaml, or --source NAME=PATH"
            )
    rows = []
    for place in product(*map(range, batch.source.shape)):
        name, index = names[int(batch.source[place])], int(batch.index[place])
        row: Json = {
            "micro": place[0],
            "row": place[1],
            "sample": int(batch.position[place]),
            "source": name,
            "index": index,
            "epoch": int(batch.epoch[place]),
            "draw": int(batch.draw[place]),
            "token": index * length,
        }
        if args.text:
            row["text"] = _decode(corpus.tokenizer_of(name), ids[place])
        rows.append(row)
    rank: Json = {"rank": batch.rank, "rows": rows}
    return rank | {"sha256": ids_hash(ids)} if args.hashes else rank


def _decode(folder: Path, ids: Any) -> str:
    """A sample's text by a tokenizer, without control characters."""
    from mixloop.trainer.sources import load_raw

    try:
        tokenizer = load_raw(folder)
    except Exception as error:  # the tokenizers library raises bare exceptions
        raise BadInput(f"{folder}: no readable tokenizer: {error}") from None
    return clean(tokenizer.decode(ids.tolist(), skip_special_tokens=False))
