"""``schedule.jsonl``: every mixture as applied, at its exact sample. Light: standard library only.

Appended and fsynced by one trainer process; each line carries a CRC, so a line that a crash tore
is told from a whole one. The *sample* index is authoritative, the step informative. The training
data order is a pure function of this file.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from mixloop.trainer.files import canonical, fsync_folder

SCHEDULE_SCHEMA: Final = "mixloop/schedule/1"


@dataclass(frozen=True)
class SourceEntry:
    """A source as an incarnation found it: samples it holds and its store's fingerprint."""

    name: str
    samples: int
    fingerprint: str = ""


@dataclass(frozen=True)
class OpenLine:
    """A trainer incarnation begins at ``sample`` (its checkpoint's).

    Position p of a step is (micro * world_size + rank) * rows + row, so any rank's view can be
    derived again.
    """

    incarnation: int
    parent: str | None
    sample: int
    step: int
    seed: int
    sources: tuple[SourceEntry, ...]
    sequence_length: int
    quantum: int
    world_size: int
    micro_batch: int
    accumulation: int
    rewind: bool = False


@dataclass(frozen=True)
class SegmentLine:
    """From ``sample`` on, these integer weights (over 2^24), under this fence and generation."""

    incarnation: int
    sample: int
    step: int
    weights: Mapping[str, int]
    fence: int
    generation: int
    decision: str = ""


@dataclass(frozen=True)
class VoidLine:
    """The recorded segment at ``sample`` did not come into force; a later one follows."""

    incarnation: int
    sample: int
    fence: int
    generation: int
    reason: str = ""


Line = OpenLine | SegmentLine | VoidLine

_KINDS: Final[dict[str, type[Any]]] = {
    "open": OpenLine,
    "segment": SegmentLine,
    "void": VoidLine,
}


class ScheduleTaken(Exception):  # noqa: N818 (a finding that the trainer acts on, not an error)
    """A newer incarnation writes this schedule; the message names it."""


class ScheduleDamaged(ValueError):  # noqa: N818 (a kind of ValueError that names the line)
    """A line in the middle of the schedule is damaged; the message names it."""


@dataclass(frozen=True)
class Schedule:
    """The lines of a schedule, oldest first."""

    lines: tuple[Line, ...] = ()

    @property
    def latest_open(self) -> OpenLine | None:
        """The newest incarnation's beginning."""
        opens = [line for line in self.lines if isinstance(line, OpenLine)]
        return opens[-1] if opens else None

    @property
    def segments(self) -> tuple[SegmentLine, ...]:
        """The effective segments by sample: void ones are out, and so are those that a rewind cut.

        Two at one sample: the later line holds.
        """
        kept: dict[int, SegmentLine] = {}
        for line in self.lines:
            if isinstance(line, SegmentLine):
                kept[line.sample] = line
            elif isinstance(line, VoidLine):
                found = kept.get(line.sample)
                if found is not None and found.generation == line.generation:
                    del kept[line.sample]
            elif line.rewind:
                kept = {sample: s for sample, s in kept.items() if sample < line.sample}
        return tuple(kept[sample] for sample in sorted(kept))

    @property
    def accepted(self) -> tuple[int, int]:
        """Highest (fence, generation) of the effective schedule; (0, 0) before any order."""
        segments = self.segments
        if not segments:
            return (0, 0)
        return max(s.fence for s in segments), max(s.generation for s in segments)


def encode_line(line: Line) -> bytes:
    """One line with its CRC and the newline."""
    kind = next(name for name, cls in _KINDS.items() if isinstance(line, cls))
    body = {"schema": SCHEDULE_SCHEMA, "kind": kind, **asdict(line)}
    body["crc"] = _crc(body)
    return json.dumps(body, separators=(",", ":"), ensure_ascii=False).encode() + b"\n"


def decode_line(data: bytes) -> Line:
    """A line back from its bytes.

    Raises:
        ValueError: when it is damaged or of an unknown kind.
    """
    try:
        body = json.loads(data)
        crc = body.pop("crc")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise ValueError("no schedule line") from None
    if crc != _crc(body):
        raise ValueError("the CRC does not match")
    if body.pop("schema", None) != SCHEDULE_SCHEMA:
        raise ValueError("another schema")
    cls = _KINDS.get(body.pop("kind", ""))
    if cls is None:
        raise ValueError("an unknown kind of line")
    if cls is OpenLine:
        body["sources"] = tuple(SourceEntry(**entry) for entry in body["sources"])
    made: Line = cls(**body)
    return made


def _crc(body: Mapping[str, Any]) -> str:
    return f"{zlib.crc32(canonical(body)):08x}"


def split_lines(data: bytes) -> tuple[list[Line], int]:
    """The whole lines of a schedule and how many bytes they take; what follows is a torn tail.

    Raises:
        ScheduleDamaged: a damaged line that is not the last.
    """
    lines: list[Line] = []
    end = 0
    parts = data.split(b"\n")
    for number, part in enumerate(parts[:-1], start=1):
        try:
            lines.append(decode_line(part))
        except (ValueError, TypeError) as error:
            if any(_sound(later) for later in parts[number:]):
                raise ScheduleDamaged(f"line {number}: {error}") from None
            break
        end += len(part) + 1
    return lines, end


def _sound(part: bytes) -> bool:
    try:
        decode_line(part)
    except (ValueError, TypeError):
        return False
    return True


def read_schedule(path: Path) -> Schedule:
    """The schedule at ``path``; empty when there is none. A torn last line is left out.

    Raises:
        ScheduleDamaged: a damaged line in the middle, which no crash leaves behind.
    """
    try:
        data = path.read_bytes()
    except OSError:
        return Schedule()
    try:
        return Schedule(tuple(split_lines(data)[0]))
    except ScheduleDamaged as error:
        raise ScheduleDamaged(f"{path}: {error}") from None


class ScheduleWriter:
    """Appends durable lines for one trainer incarnation.

    Opening cuts a torn last line. Raises :class:`ScheduleDamaged` for a damaged file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._incarnation: int | None = None
        self._size = 0
        path.parent.mkdir(parents=True, exist_ok=True)
        self.reopen()

    def reopen(self) -> None:
        """Open again and cut what a failed append may have left half-written."""
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            with os.fdopen(descriptor, "rb", closefd=False) as stream:
                data = stream.read()
            _, end = split_lines(data)
            if end < len(data):
                os.ftruncate(descriptor, end)
                os.fsync(descriptor)
        finally:
            os.close(descriptor)
        fsync_folder(self._path.parent)
        self._size = end

    def check(self) -> None:
        """Raise :class:`ScheduleTaken` when a newer incarnation has begun to write."""
        if self._incarnation is None or self._path.stat().st_size == self._size:
            return
        latest = read_schedule(self._path).latest_open
        if latest is not None and latest.incarnation > self._incarnation:
            raise ScheduleTaken(f"{self._path}: incarnation {latest.incarnation} has begun")

    def append(self, line: Line) -> None:
        """Append a line and wait until it is durable.

        Raises:
            ScheduleTaken: when the file holds a newer incarnation; nothing is written.
            OSError: the disk did not take it; :meth:`reopen` cleans up.
        """
        if isinstance(line, OpenLine):
            self._begin(line)
        self._incarnation = line.incarnation if self._incarnation is None else self._incarnation
        self.check()
        data = encode_line(line)
        descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        try:
            _write_all(descriptor, data)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        self._size += len(data)

    def _begin(self, line: OpenLine) -> None:
        latest = read_schedule(self._path).latest_open
        if latest is not None and latest.incarnation >= line.incarnation:
            raise ScheduleTaken(
                f"{self._path}: incarnation {latest.incarnation} has begun, so "
                f"{line.incarnation} can't"
            )
        self._incarnation = line.incarnation
        self._size = self._path.stat().st_size


def _write_all(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]
