"""Audit of a run: what its seed, sources and `schedule.jsonl` say, against all it left behind.

`audit` is pure; `read_evidence` and the gathering of tokens are the shell. Works without torch.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mixloop.common.files import open_regular
from mixloop.contract import (
    Line,
    Manifest,
    OpenLine,
    RunPaths,
    ScheduleError,
    Status,
    VoidLine,
    decode_line,
    read_manifest,
    read_status,
    schedule_bytes,
)
from mixloop.trainer.config import JobError, JobSource
from mixloop.trainer.loader import SAVED_FILE, read_saved_manifest
from mixloop.trainer.run import checkpoint_store
from mixloop.trainer.sources import Store, open_source

from .facts import Evidence, Finding, IncarnationFacts, LedgerFacts, Report, SourceFacts, StoreFacts
from .ledger_check import check_ledger, check_segments, segment_facts
from .replay import RankBatch, ScheduleReplay
from .schedule_check import FILE, check_lines
from .trace_check import TraceCheck

# --- pure ------------------------------------------------------------------------------------


def replay_of(evidence: Evidence) -> ScheduleReplay:
    """The branches of a run.

    Raises:
        ValueError: the schedule has not even a beginning.
    """
    return ScheduleReplay([line for _, line in evidence.lines])


def audit(evidence: Evidence, trace: TraceCheck | None = None) -> Report:
    """Compare everything a run left behind with its schedule.

    Args:
        trace: what has gone through recorded batches, for the report's sake.

    Raises:
        ValueError: the schedule has not even a beginning.
    """
    replay = replay_of(evidence)
    findings = [*evidence.damaged, *check_lines(evidence.lines)]
    ledgers: list[LedgerFacts] = []
    records: dict[str, Manifest | Status] = {**evidence.checkpoints}
    if evidence.status is not None:
        records["status.json"] = evidence.status
    for name, record in records.items():
        facts, disagreements = check_ledger(replay, name, record)
        ledgers.append(facts)
        findings += disagreements
    findings += [Finding("checkpoint", name, why) for name, why in evidence.broken.items()]
    run = next((record.run for record in records.values()), None)
    findings += [
        Finding("ledger", name, f"is of run {record.run!r}, others of {run!r}")
        for name, record in records.items()
        if record.run != run
    ]
    findings += _parents(replay, evidence.checkpoints)
    opened = replay.final.opened
    agreed = (ledger.sample for ledger in ledgers if ledger.surviving and ledger.agrees)
    reached = max([opened.sample, *agreed])
    segments = segment_facts(replay, reached)
    findings += check_segments(segments)
    sources, changed = _sources(replay, evidence.stores, reached)
    findings += changed
    return Report(
        run=run,
        seed=opened.seed,
        sequence_length=opened.sequence_length,
        step=replay.final.opened_at(max(0, reached - 1)).step_of(reached),
        sample=reached,
        tokens=reached * opened.sequence_length,
        incarnations=tuple(_incarnations(replay)),
        segments=tuple(segments),
        pending=sum(segment.sample >= reached > 0 for segment in replay.final.segments),
        voids=sum(isinstance(line, VoidLine) for _, line in evidence.lines),
        ledgers=tuple(
            sorted(ledgers, key=lambda facts: (facts.where == "status.json", facts.step))
        ),
        sources=sources,
        notes=tuple(_notes(evidence, sources)),
        findings=tuple(findings),
        trace=trace.facts() if trace is not None else None,
    )


def _parents(replay: ScheduleReplay, checkpoints: Mapping[str, Manifest]) -> list[Finding]:
    """Incarnations that began elsewhere than their checkpoint stands."""
    findings = []
    for opened in replay.opens.values():
        parent = checkpoints.get(opened.parent or "")
        if parent is None or parent.incarnation >= opened.incarnation:
            continue  # retired, or written anew since
        if (parent.step, parent.sample) != (opened.step, opened.sample):
            detail = (
                f"incarnation {opened.incarnation} began at step {opened.step}, sample "
                f"{opened.sample}; its checkpoint {opened.parent} stands at step {parent.step}, "
                f"sample {parent.sample}"
            )
            findings.append(Finding("schedule", FILE, detail, None, opened.step, opened.sample))
    return findings


def _incarnations(replay: ScheduleReplay) -> list[IncarnationFacts]:
    opens = replay.final.opens
    until = {opened.incarnation: following.sample for opened, following in pairwise(opens)}
    alive = {opened.incarnation for opened in opens}
    return [
        IncarnationFacts(
            incarnation=number,
            parent=opened.parent,
            step=opened.step,
            sample=opened.sample,
            until=until.get(number),
            world=opened.world_size,
            micro_batch=opened.micro_batch,
            accumulation=opened.accumulation,
            quantum=opened.quantum,
            rewind=opened.rewind,
            left=number not in alive,
            stages=opened.stages,
        )
        for number, opened in replay.opens.items()
    ]


def _sources(
    replay: ScheduleReplay, stores: Mapping[str, StoreFacts], reached: int
) -> tuple[dict[str, SourceFacts], list[Finding]]:
    branch = replay.final
    length = branch.opened.sequence_length
    order = branch.order
    drawn, epochs = order.drawn(reached), order.epochs(reached)
    present = {entry.name for entry in branch.opened.sources}
    facts, findings = {}, []
    for name, history in branch.schedule.sources.items():
        entry = history[-1][1]
        store = stores.get(name)
        state = "not given" if name in present else "retired"
        if store is not None and store.trouble is not None:
            state = f"missing: {store.trouble}"
        elif store is not None:
            state = "as recorded"
            if (store.samples, store.fingerprint) != (entry.samples, entry.fingerprint):
                state = "changed"
                detail = (
                    f"{entry.name} has {store.samples} samples ({store.fingerprint}), the run was "
                    f"begun with {entry.samples} ({entry.fingerprint})"
                )
                findings.append(Finding("source", store.path, detail))
        facts[entry.name] = SourceFacts(
            samples=entry.samples,
            drawn=drawn[entry.name],
            tokens=drawn[entry.name] * length,
            epochs=epochs[entry.name],
            store=state,
            path=store.path if store is not None else None,
        )
    return facts, findings


def _notes(evidence: Evidence, sources: Mapping[str, SourceFacts]) -> list[str]:
    """What is worth knowing and no fault of the run."""
    notes = []
    if evidence.torn:
        notes.append("schedule.jsonl: its last line is torn; the next start cuts it")
    if evidence.status is None:
        notes.append("status.json: none that can be read")
    if not evidence.checkpoints:
        notes.append("checkpoints: none that can be read")
    unknown = [name for name, source in sources.items() if source.store == "not given"]
    if unknown:
        notes.append(
            f"sources: no store known for {', '.join(unknown)}; give RUN as its run.yaml, or "
            "--source NAME=PATH"
        )
    return notes


# --- the shell -------------------------------------------------------------------------------


def read_evidence(
    folder: Path, stores: Mapping[str, JobSource], further: Iterable[Path] = ()
) -> Evidence:
    """Read a run's files; of a run that goes on meanwhile, the schedule last.

    Args:
        folder: the run folder.
        stores: where the sources' stores lie, as far as known.
        further: folders of checkpoints elsewhere, or of several, with a `mixloop.json` each.

    Raises:
        OSError: there is no schedule that can be read, or no checkpoint where one was asked for.
    """
    paths = RunPaths(folder)
    status = read_status(paths.status).value
    manifests, broken = _ledgers(folder, further)
    lines, damaged, torn = read_lines(paths.schedule)
    length = next((line.sequence_length for _, line in lines if isinstance(line, OpenLine)), 1)
    facts = {name: _store_facts(source, length) for name, source in stores.items()}
    return Evidence(tuple(lines), tuple(damaged), status, manifests, broken, facts, torn)


def _ledgers(folder: Path, further: Iterable[Path]) -> tuple[dict[str, Manifest], dict[str, str]]:
    """Manifests of the run's checkpoints, and of foreign ones, by name; why others are broken.

    Raises:
        OSError: a folder that was asked for holds none.
    """
    manifests: dict[str, Manifest] = {}
    broken: dict[str, str] = {}
    folders = list(checkpoint_store.list_steps(RunPaths(folder).checkpoints).values())
    folders += [path.parent for path in folder.glob(f"*/{SAVED_FILE}")]
    for asked in further:
        inside = [path.parent for path in asked.glob(f"*/{SAVED_FILE}")]
        marked = [asked] if (asked / SAVED_FILE).is_file() else inside
        if not marked:
            raise FileNotFoundError(f"{asked}: no {SAVED_FILE} there, nor in its folders")
        folders += marked
    for path in dict.fromkeys(folders):
        manifest = read_manifest(path).value
        fault = checkpoint_store.fault(path)
        if manifest is None and (path / SAVED_FILE).is_file():
            manifest = read_saved_manifest(path).value
            fault = None if manifest is not None else f"no readable {SAVED_FILE}"
        if manifest is not None:
            manifests[path.name if path.name not in manifests else str(path)] = manifest
        if fault is not None and path.is_dir():  # else it was retired just now
            broken[path.name] = fault
    return manifests, broken


def read_lines(path: Path) -> tuple[list[tuple[int, Line]], list[Finding], bool]:
    """A schedule's sound lines with their numbers, findings on others, whether the last is torn.

    Raises:
        OSError: there is no schedule that can be read.
    """
    handle = open_regular(path)
    try:
        *whole, rest = schedule_bytes(handle, path).split(b"\n")
    except ScheduleError as error:
        raise OSError(errno.EFBIG, str(error)) from None
    finally:
        os.close(handle)
    lines: list[tuple[int, Line]] = []
    damaged: list[Finding] = []
    for number, data in enumerate(whole, start=1):
        try:
            lines.append((number, decode_line(data)))
        except (ValueError, RecursionError) as error:
            damaged.append(Finding("schedule", FILE, f"damaged: {error}", number))
    torn = bool(rest)
    if not torn and damaged and damaged[-1].line == len(whole):
        damaged.pop()
        torn = True
    return lines, damaged, torn


def _store_facts(source: JobSource, length: int) -> StoreFacts:
    try:
        store = open_source(source.path, source.options)
    except (JobError, OSError, ValueError) as error:
        return StoreFacts(str(source.path), trouble=str(error))
    return StoreFacts(str(source.path), store.samples(length), store.info.fingerprint)


def gatherer(
    stores: Mapping[str, JobSource], length: int
) -> Callable[[RankBatch], npt.NDArray[np.int64] | None]:
    """Token ids of what a rank saw, from the stores; None where one of them can't be opened."""

    @cache
    def store(name: str) -> Store | None:
        try:
            return open_source(stores[name].path, stores[name].options)
        except (KeyError, JobError, OSError):
            return None

    def gather(batch: RankBatch) -> npt.NDArray[np.int64] | None:
        ids = np.empty((*batch.source.shape, length), np.int64)
        for number in np.unique(batch.source):
            source = store(batch.names[number])
            if source is None:
                return None
            here = batch.source == number
            ids[here] = source.gather(batch.index[here], length)
        return ids

    return gather
