"""The ``mixloop audit`` command: a run's files against one another, and what a rank saw."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mixloop.common.errors import BadInput
from mixloop.common.types import Json

if TYPE_CHECKING:
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


def audit(
    target: Annotated[Path, typer.Argument(metavar="RUN", help="a run folder, or its run.yaml")],
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
    as_json: Annotated[bool, typer.Option("--json", help="print JSON instead of text")] = False,
) -> None:
    """Verify a run's data order against its ledgers; or say what a rank saw."""
    if step is None:
        if rank is not None or world is not None or incarnation is not None or text or hashes:
            raise BadInput("audit: --rank, --world, --incarnation, --text and --hash need --step")
        report = examine(target, trace or (), source or (), checkpoint or ())
        _print_report(report, as_json=as_json)
        raise SystemExit(0 if report.ok else 1)
    if trace:
        raise BadInput("audit: --trace verifies all that was recorded; drop --step")
    wanted = AuditArgs(step, rank, world, incarnation, text, hashes)
    shown = look(target, wanted, source or ())
    if as_json:
        typer.echo(json.dumps(shown, indent=2, ensure_ascii=False))
        return
    from mixloop.controller import views

    from .audit_tables import step_tables

    for part in step_tables(shown):
        views.console().print(part)


def _print_report(report: Report, *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(report.to_json(), indent=2, ensure_ascii=False))
        return
    from mixloop.controller import views

    from .audit_tables import report_parts

    console = views.console()
    for part in report_parts(report):
        console.print(part)


# --- a run and its stores --------------------------------------------------------------------


@dataclass(frozen=True)
class Corpus:
    """Where a run's sources lie, as far as is known, and the tokenizer it names."""

    sources: dict[str, JobSource]
    tokenizer: Path | None = None

    def tokenizer_of(self, name: str) -> Path:
        """The tokenizer of a source: its store's own, else the run's."""
        own = self.sources[name].path / "tokenizer"
        return own if own.is_dir() or self.tokenizer is None else self.tokenizer


def _folder_and_corpus(target: Path, given: Sequence[str]) -> tuple[Path, Corpus]:
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
    for item in given:
        name, separator, path = item.partition("=")
        if not (name and separator and path):
            raise BadInput(f"--source: {item!r} is not NAME=PATH")
        corpus.sources[name] = JobSource(path=Path(path))
    return target, corpus


def _evidence(
    target: Path, given: Sequence[str], checkpoints: Sequence[Path] = ()
) -> tuple[Evidence, ScheduleReplay, Corpus]:
    from mixloop.trainer.audit import read_evidence, replay_of

    folder, corpus = _folder_and_corpus(target, given)
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
    known = replay.final.names
    for item in given:
        name = item.partition("=")[0]
        if name not in known:
            raise BadInput(
                f"--source: {name!r} is no source of this run, which has {', '.join(known)}"
            )
    return evidence, replay, corpus


def _gatherer(replay: ScheduleReplay, corpus: Corpus) -> Any:
    from mixloop.trainer.audit import gatherer

    return gatherer(corpus.sources, replay.final.opened.sequence_length)


def examine(
    target: Path,
    traces: Sequence[Path] = (),
    given: Sequence[str] = (),
    checkpoints: Sequence[Path] = (),
) -> Report:
    """Audit a run, with recorded batches if there are any.

    Args:
        traces: files of :class:`mixloop.trainer.run.SampleTrace`; those of the other ranks
            (`FILE.rank1`, …) are taken along.
        given: ``NAME=PATH`` of stores.
        checkpoints: folders with a `mixloop.json`, or of such folders.

    Raises:
        BadInput: there is no such run or file.
    """
    from dataclasses import replace

    from mixloop.trainer.audit import TraceCheck
    from mixloop.trainer.audit import audit as compare

    evidence, replay, corpus = _evidence(target, given, checkpoints)
    check = TraceCheck(replay, _gatherer(replay, corpus)) if traces else None
    found = [one for path in _all_ranks(traces) for one in _go_through(check, path)]
    report = compare(evidence, check)
    return replace(report, findings=(*report.findings, *found))


def _all_ranks(traces: Iterable[Path]) -> list[Path]:
    paths: dict[Path, None] = {}
    for path in traces:
        others = [p for p in path.parent.glob(f"{path.name}.rank*") if p.name[-1].isdigit()]
        others.sort(key=lambda p: int(p.name.rpartition(".rank")[2]))
        paths |= dict.fromkeys((path, *others))
    return list(paths)


def _go_through(check: TraceCheck | None, path: Path) -> list[Finding]:
    if check is None:
        return []
    try:
        with path.open(encoding="utf-8", errors="replace") as lines:
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


def look(target: Path, wanted: AuditArgs, given: Sequence[str] = ()) -> Json:
    """What ``mixloop audit --step --json`` prints.

    Each row has its place in the global order, source, sample, epoch, number among the source's
    draws and the index of its first token in the store.

    Raises:
        BadInput: no such run, step, rank or layout; text or hashes without the stores.
    """
    _, replay, corpus = _evidence(target, given)
    try:
        number = wanted.incarnation
        branch = replay.branch(number) if number is not None else replay.final
        first = branch.rank_batch(wanted.step, wanted.rank or 0, wanted.world)
        ranks = range(first.world) if wanted.rank is None else [wanted.rank]
        seen = [branch.rank_batch(wanted.step, one, wanted.world) for one in ranks]
    except ValueError as error:
        raise BadInput(f"{target}: {error}") from None
    length = branch.opened.sequence_length
    gather = _gatherer(replay, corpus) if wanted.text or wanted.hashes else None
    line = branch.in_force(first.sample + 1)
    return {
        "schema": STEP_SCHEMA,
        "step": wanted.step,
        "sample": first.sample,
        "incarnation": first.incarnation,
        "world": first.world,
        "generation": line.generation if line is not None else 0,
        "ranks": [_rank(one, length, gather, corpus, wanted) for one in seen],
    }


def _rank(
    seen: RankBatch,
    length: int,
    gather: Any,
    corpus: Corpus,
    wanted: AuditArgs,
) -> Json:
    from mixloop.trainer.run import ids_hash

    names = seen.names
    ids: Any = None
    if gather is not None:
        ids = gather(seen)
        if ids is None:
            drawn = sorted({names[number] for number in seen.source.ravel().tolist()})
            raise BadInput(
                f"--text and --hash need the stores of {', '.join(drawn)}; give RUN as its "
                "run.yaml, or --source NAME=PATH"
            )
    rows = []
    for micro, row in (
        (m, r) for m in range(len(seen.source)) for r in range(seen.source.shape[1])
    ):
        name, index = names[int(seen.source[micro, row])], int(seen.index[micro, row])
        rows.append(
            {
                "micro": micro,
                "row": row,
                "sample": int(seen.position[micro, row]),
                "source": name,
                "index": index,
                "epoch": int(seen.epoch[micro, row]),
                "draw": int(seen.draw[micro, row]),
                "token": index * length,
            }
            | ({"text": _decode(corpus.tokenizer_of(name), ids[micro, row])} if wanted.text else {})
        )
    found: Json = {"rank": seen.rank, "rows": rows}
    if wanted.hashes:
        found["sha256"] = ids_hash(ids)
    return found


def _decode(folder: Path, ids: Any) -> str:
    """A sample's text by a tokenizer, without control characters."""
    from mixloop.common.text import clean
    from mixloop.trainer.sources import load_raw

    try:
        tokenizer = load_raw(folder)
    except Exception as error:  # the tokenizers library raises bare exceptions
        raise BadInput(f"{folder}: no readable tokenizer: {error}") from None
    return clean(tokenizer.decode(ids.tolist(), skip_special_tokens=False))
