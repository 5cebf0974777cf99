"""`schedule.jsonl`: every order as applied, at its exact sample, by one trainer process.

Each line carries a CRC and is fsynced before anything relies on it; a torn last line is cut on
open. What is torn is no JSON: a last line that is, and is wrong, was not torn but written so. The
training data order is a pure function of this file.
"""

from __future__ import annotations

import functools
import json
import os
import sys
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from mixloop.common.files import (
    LARGEST,
    canonical,
    data_end,
    open_regular,
    read_regular,
)
from mixloop.common.json_records import Problem, ReadResult, RecordError, decode, encode, problem_of
from mixloop.common.types import parse_json

from .batch_schedule import BatchSchedule, Stages
from .integer_weights import SCALE, Segment

SCHEDULE_SCHEMA = "mixloop/schedule/1"
LARGEST_SCHEDULE = 2**28
"""Bytes of a schedule: no reader takes a longer one (a hole that it ends with aside), and no writer
makes one."""
MOST_LINES = 2**18
"""Lines of a schedule worth reading: one an order."""
LONGEST_LINE = 2**24
"""Bytes of a line; one of 10,000 sources with long names has some 2^20."""
TOO_LONG = f"longer than {LARGEST_SCHEDULE:,} bytes, the most a schedule may take"


class ScheduleError(ValueError):
    """The schedule is damaged other than by a torn last line; the message says where.

    Attributes:
        problem: the line and what is wrong with it, without the path and the mend.
    """

    def __init__(self, message: str, problem: Problem | None = None) -> None:
        super().__init__(message)
        self.problem = problem


class ScheduleTaken(RuntimeError):  # noqa: N818 (named for what happened elsewhere)
    """A newer trainer incarnation writes this schedule."""


@dataclass(frozen=True)
class SourceEntry:
    """A source as an incarnation found it: samples of one sequence length, content fingerprint."""

    name: str
    samples: int
    fingerprint: str


SourceHistory = tuple[tuple[int, SourceEntry], ...]
"""(first sample, what the source was from there on)."""


@dataclass(frozen=True)
class OpenLine:
    """A trainer incarnation begins at `sample`, from checkpoint `parent` (None: from scratch).

    `sources` are those of the job, in its order: one that earlier lines name and this one doesn't
    is retired, one that they don't name is added, and one with more samples is extended, from
    `sample` on. `quantum` and `accumulation` are those of the step at `sample`. If the quantum
    changes later, `quanta` has (first sample, quantum, accumulation) of every stretch from `sample`
    on; otherwise the file lacks that key. `uid` tells the run from others of its id; the file lacks
    it where no incarnation had a key to check orders with. With `rewind`, or where steps lie
    otherwise than recorded before, the segments after `sample` are cut.
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
    quanta: tuple[tuple[int, ...], ...] = ()
    uid: str = ""

    @property
    def stages(self) -> Stages:
        """(first sample, quantum) from this line on."""
        if not self.quanta:
            return ((self.sample, self.quantum),)
        return tuple((first, size) for first, size, _ in self.quanta)

    def step_of(self, sample: int) -> int:
        """The step of this incarnation that takes a sample."""
        return self.step + BatchSchedule(self.stages).index(sample)


@dataclass(frozen=True)
class SegmentLine:
    """From `sample` on these integer weights (summing to 2^24) are in force."""

    incarnation: int
    sample: int
    step: int
    weights: Mapping[str, int]
    fence: int
    generation: int
    decision: str = ""


@dataclass(frozen=True)
class VoidLine:
    """The segment recorded for `sample` did not come into force in time."""

    incarnation: int
    sample: int
    fence: int
    generation: int
    reason: str = ""


Line = OpenLine | SegmentLine | VoidLine
_KINDS: dict[str, type[Line]] = {"open": OpenLine, "segment": SegmentLine, "void": VoidLine}
_NAMES = {kind: name for name, kind in _KINDS.items()}


def encode_line(line: Line) -> bytes:
    """One line of the file: JSON with the CRC-32 of the canonical JSON without it, newline."""
    body = {"schema": SCHEDULE_SCHEMA, "line": _NAMES[type(line)], **encode(line)}
    for name in ("quanta", "uid"):
        if not body.get(name, True):
            del body[name]
    crc = zlib.crc32(canonical(body))
    return _in_order({**body, "crc": f"{crc:08x}"}) + b"\n"


def _in_order(value: dict[str, Any]) -> bytes:
    """Compact JSON with the keys as they come, `schema` first, for people's eyes."""
    parts = (canonical(key) + b":" + canonical(item) for key, item in value.items())
    return b"{" + b",".join(parts) + b"}"


def decode_line(data: bytes) -> Line:
    """One line, checked.

    Raises:
        ValueError: it is torn or altered, or of an unknown kind.
    """
    value = parse_json(data.decode())
    if not isinstance(value, dict):
        raise RecordError("not an object")
    crc = value.pop("crc", None)
    if crc != f"{zlib.crc32(canonical(value)):08x}":
        raise RecordError("its CRC does not match")
    kind = _KINDS.get(str(value.get("line")))
    if value.get("schema") != SCHEDULE_SCHEMA or kind is None:
        raise RecordError(f"unknown schema or kind of line {str(value.get('line'))[:40]!r}")
    line = decode(kind, value)
    if isinstance(line, SegmentLine):
        if sum(line.weights.values()) != SCALE:
            raise RecordError(f"weights sum to {sum(line.weights.values())}, not {SCALE}")
        # thousands of lines name the same thousands of sources
        line = replace(line, weights={sys.intern(name): w for name, w in line.weights.items()})
    if isinstance(line, OpenLine):
        _check_quanta(line)
    return line


def _check_quanta(line: OpenLine) -> None:
    if any(len(stage) != 3 for stage in line.quanta):
        raise RecordError("quanta: not all are a first sample, a quantum and an accumulation")
    try:
        stages = BatchSchedule(line.stages).stages
    except ValueError as error:
        raise RecordError(f"quanta: {error}") from error
    if stages[0] != (line.sample, line.quantum):
        raise RecordError(f"quanta begin with {stages[0]}, not {(line.sample, line.quantum)}")


@dataclass(frozen=True)
class Schedule:
    """The lines of a schedule, oldest first, and what they amount to."""

    lines: tuple[Line, ...] = ()

    @property
    def latest_open(self) -> OpenLine | None:
        """The newest incarnation's first line."""
        return next((line for line in reversed(self.lines) if isinstance(line, OpenLine)), None)

    @property
    def uid(self) -> str:
        """What tells the run from others of its id; empty where nothing is signed."""
        opened = self.latest_open
        return opened.uid if opened is not None else ""

    @property
    def incarnation(self) -> int:
        """The highest incarnation that ever opened this schedule; 0 for none."""
        return max((line.incarnation for line in self.lines), default=0)

    @cached_property
    def _effective(self) -> _Effective:
        return _replay(self.lines)

    @property
    def segments(self) -> tuple[SegmentLine, ...]:
        """Segments that hold, by sample: voids and rewind cuts applied."""
        return self._effective.segments

    @property
    def batch_stages(self) -> Stages:
        """(first sample, samples of a step) of every stretch of the run, past and to come."""
        return self._effective.stages

    @property
    def sources(self) -> Mapping[str, SourceHistory]:
        """Every source the run ever had, the retired too: what it was, and from which sample on.

        In the order in which the lines first name them. It numbers the sources of the data order,
        so that a job may list them otherwise, and add some, without moving anything.
        """
        return self._effective.sources

    @property
    def cuts(self) -> tuple[OpenLine, ...]:
        """The incarnations that cut what was recorded beyond their first sample, oldest first."""
        return self._effective.cuts

    @cached_property
    def mixture(self) -> tuple[Segment, ...]:
        """What :class:`mixloop.trainer.mixing.MixtureOrder` needs, other step sizes included."""
        return tuple(_stretches(self.segments, dict(self.batch_stages)))

    @property
    def sizes(self) -> dict[str, tuple[tuple[int, int], ...]]:
        """The sources' sizes as :class:`mixloop.trainer.mixing.MixtureOrder` takes them."""
        sizes: dict[str, tuple[tuple[int, int], ...]] = {}
        for name, history in self.sources.items():
            versions = [(0, history[0][1].samples)]
            for sample, entry in history[1:]:
                if entry.samples != versions[-1][1]:
                    versions.append((sample, entry.samples))
            sizes[name] = tuple(versions)
        return sizes

    @property
    def accepted(self) -> tuple[int, int]:
        """Highest fence and highest generation of the effective schedule; (0, 0) for none."""
        return (
            max((line.fence for line in self.segments), default=0),
            max((line.generation for line in self.segments), default=0),
        )


@dataclass(frozen=True)
class _Effective:
    segments: tuple[SegmentLine, ...]
    stages: Stages
    sources: Mapping[str, SourceHistory]
    cuts: tuple[OpenLine, ...]


_Histories = dict[str, list[tuple[int, SourceEntry]]]


def _replay(lines: Sequence[Line]) -> _Effective:
    """What the lines amount to, applied one after the other."""
    segments: dict[int, SegmentLine] = {}
    stages: Stages = ()
    sources: _Histories = {}
    latest: OpenLine | None = None
    constant = True
    cuts: list[OpenLine] = []
    for line in lines:
        if isinstance(line, OpenLine):
            constant = constant and not line.quanta
            if line.rewind or _other_steps(line, latest, stages, constant):
                if latest is not None:
                    cuts.append(line)
                segments = {at: held for at, held in segments.items() if at <= line.sample}
                stages = (*(stage for stage in stages if stage[0] < line.sample), *line.stages)
            _list_sources(sources, line)
            latest = line
        elif isinstance(line, SegmentLine):
            segments[line.sample] = line
        elif (held := segments.get(line.sample)) and (held.fence, held.generation) == (
            line.fence,
            line.generation,
        ):
            del segments[line.sample]
    return _Effective(
        tuple(segments[at] for at in sorted(segments)),
        stages,
        {name: tuple(history) for name, history in sources.items()},
        tuple(cuts),
    )


def _other_steps(line: OpenLine, latest: OpenLine | None, stages: Stages, constant: bool) -> bool:
    """Whether an incarnation's steps lie otherwise than recorded."""
    if latest is None:
        return True
    if constant:  # also where an earlier rewind had another quantum
        return line.quantum != latest.quantum
    recorded = BatchSchedule(stages).since(line.sample)
    return recorded.stages != BatchSchedule(line.stages).plain().stages


def _list_sources(sources: _Histories, line: OpenLine) -> None:
    """Note what an incarnation finds: what is new holds from its sample on."""
    if line.rewind:
        for history in sources.values():
            history[:] = [version for version in history if version[0] < line.sample] or history[:1]
    for entry in line.sources:
        history = sources.setdefault(entry.name, [])
        if history and history[-1][1] == entry:
            continue
        history[:] = [version for version in history if version[0] < line.sample]
        history.append((line.sample, entry))


def _stretches(segments: Sequence[SegmentLine], stages: Mapping[int, int]) -> Iterator[Segment]:
    by_sample = {segment.sample: segment.weights for segment in segments}
    weights: Mapping[str, int] | None = None
    step_samples = 0
    for at in sorted(by_sample.keys() | stages.keys()):
        weights = by_sample.get(at, weights)
        step_samples = stages.get(at, step_samples)
        if weights is not None and step_samples > 0:
            yield Segment(at, dict(weights), step_samples)


def read_schedule(path: str | os.PathLike[str]) -> Schedule:
    """The schedule; empty when there is no file. A torn last line is left out.

    It raises where the other readers report: a run that went on from a damaged schedule would
    train on other data. :func:`schedule_of` is for those who only look on.

    Raises:
        ScheduleError: a line other than the last is damaged.
        OSError: the file is there and can't be read.
    """
    try:
        handle = open_regular(path)
    except FileNotFoundError:
        return Schedule()
    try:
        data = schedule_bytes(handle, Path(path))
    finally:
        os.close(handle)
    return _scanned(data, Path(path))


def schedule_bytes(handle: int, path: Path, start: int = 0) -> bytes:
    """What an open schedule holds from ``start`` on, without the hole that it may end with.

    Raises:
        ScheduleError: it holds more than is worth reading.
        OSError: it can't be read.
    """
    size = os.fstat(handle).st_size
    if size > LARGEST:  # small ones are read as they are: a hole in them costs nothing
        size = min(size, data_end(handle, LARGEST_SCHEDULE))
    if size > LARGEST_SCHEDULE:
        raise _refused(path, "", TOO_LONG)
    with os.fdopen(handle, "rb", closefd=False) as stream:
        stream.seek(start)
        data = stream.read(max(0, size - start))
    if len(data) > LARGEST and data.count(b"\n") > MOST_LINES:
        raise _refused(path, "", f"more than {MOST_LINES:,} lines")
    return data


def schedule_of(path: str | os.PathLike[str]) -> ReadResult[Schedule]:
    """What who looks on can say of the schedule: :func:`read_schedule` that never raises.

    A file with nothing but a torn line is no schedule.
    """
    try:
        schedule = read_schedule(path)
        torn = not schedule.lines and bool(read_regular(path, 1).data)
    except FileNotFoundError:
        return ReadResult(Schedule())
    except ScheduleError as error:
        return ReadResult(problem=error.problem)
    except (OSError, ValueError) as error:
        return ReadResult(problem=problem_of(error))
    if torn:
        return ReadResult(problem=Problem("line 1", "line 1: torn or damaged"))
    return ReadResult(schedule)


@functools.lru_cache(maxsize=1)  # the controller looks at it many times between two lines
def _scanned(data: bytes, path: Path) -> Schedule:
    return Schedule(tuple(scan(data, path)[0]))


def scan(data: bytes, path: Path) -> tuple[list[Line], int]:
    """Lines of the file and the length of its sound part, which may lack its newline.

    Raises:
        ScheduleError: a line is damaged, and it is not the last one, torn.
    """
    lines: list[Line] = []
    sound = 0
    while sound < len(data):
        end = data.find(b"\n", sound)
        last = end < 0 or end == len(data) - 1
        end = len(data) if end < 0 else end
        if end - sound > LONGEST_LINE:
            if last and data.find(b"\0", sound) >= 0:  # blocks that never reached the disk
                break
            where = f"line {len(lines) + 1}"
            raise _refused(path, where, f"{where}: longer than {LONGEST_LINE:,} bytes")
        try:
            lines.append(decode_line(data[sound:end]))
        except (ValueError, RecursionError) as error:
            if last and _is_torn(data[sound:end]):
                break
            raise _damaged(path, len(lines) + 1, error) from error
        sound = min(end + 1, len(data))
    return lines, sound


def _is_torn(line: bytes) -> bool:
    """Whether a line is the first part of one, or has blocks in it that never reached the disk."""
    try:
        json.loads(line.decode())
    except (json.JSONDecodeError, UnicodeDecodeError):
        return True
    except (ValueError, RecursionError):  # an integer of thousands of digits, a depth: written so
        return False
    return False


def _damaged(path: Path, line: int, error: Exception) -> ScheduleError:
    problem = problem_of(error)
    where = f"line {line}"
    return _refused(path, where, f"{where}: {problem.text if problem is not None else ''}")


def _refused(path: Path, where: str, text: str) -> ScheduleError:
    mend = "restore the file from a copy, or start a new run from a checkpoint"
    return ScheduleError(f"{path}: {text}; {mend}", Problem(where, text))
