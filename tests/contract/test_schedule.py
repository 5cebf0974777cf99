"""The schedule: lines, voids, rewinds, torn ends, and one writer at a time."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from mixloop.contract import (
    SCALE,
    AcceptedOrders,
    OpenLine,
    RunPaths,
    ScheduleError,
    ScheduleTaken,
    ScheduleWriter,
    Segment,
    SegmentLine,
    SourceEntry,
    VoidLine,
    encode_line,
    read_schedule,
    schedule,
    schedule_of,
    schedule_writer,
)
from mixloop.contract.schedule import LONGEST_LINE, MOST_LINES, Line, decode_line
from mixloop.trainer.mixing import MixtureOrder

SOURCES = ("web", "code", "math")


def opening(incarnation: int, sample: int = 0, quantum: int = 8, rewind: bool = False) -> OpenLine:
    sources = tuple(SourceEntry(name, 1000, "sha256:0") for name in SOURCES)
    step = sample // quantum
    return OpenLine(
        incarnation, None, sample, step, 7, sources, 256, quantum, 1, quantum, 1, rewind
    )  # fmt: skip


def segment(sample: int, generation: int, share: int = SCALE // 2, fence: int = 1) -> SegmentLine:
    weights = {"web": share, "code": SCALE - share, "math": 0}
    return SegmentLine(1, sample, sample // 8, weights, fence if generation else 0, generation)


def written(path: Path, *lines: OpenLine | SegmentLine | VoidLine) -> ScheduleWriter:
    writer = ScheduleWriter(path)
    for line in lines:
        writer.append(line)
    return writer


def test_lines_come_back_as_they_were_written(tmp_path: Path) -> None:
    path = tmp_path / "schedule.jsonl"
    assert read_schedule(path).accepted == (0, 0)
    lines = (opening(1), segment(0, 0), segment(80, 1, fence=2), VoidLine(1, 80, 2, 1, "late"))
    written(path, *lines)
    schedule = read_schedule(path)
    assert schedule.lines == lines
    assert schedule.latest_open == lines[0]
    assert schedule.incarnation == 1
    for row in path.read_text().splitlines():
        assert row.startswith('{"schema":"mixloop/schedule/1","line":')


def test_void_segments_and_rewind_cuts(tmp_path: Path) -> None:
    path = tmp_path / "schedule.jsonl"
    start, first, second, third = segment(0, 0), segment(80, 1), segment(160, 2), segment(240, 3)
    again = segment(96, 1)
    writer = written(path, opening(1), start, first, VoidLine(1, 80, 1, 1), again, second)
    assert read_schedule(path).segments == (start, again, second)
    writer = written(path, opening(2, 88))  # a crash; the same quantum: everything is re-applied
    assert read_schedule(path).segments == (start, again, second)
    writer.append(replace(third, incarnation=2))
    assert read_schedule(path).accepted == (1, 3)
    written(path, opening(3, 160, quantum=12, rewind=True))
    schedule = read_schedule(path)
    assert schedule.segments == (start, again, second)
    assert schedule.accepted == (1, 2)
    assert schedule.mixture == (
        Segment(0, start.weights, 8),
        Segment(96, again.weights, 8),
        Segment(160, second.weights, 12),
    )
    written(path, opening(4, 100, quantum=12, rewind=True))
    assert read_schedule(path).mixture[-1] == Segment(100, again.weights, 12)


def test_a_rewind_leaves_what_was_drawn_before(tmp_path: Path) -> None:
    path = tmp_path / "schedule.jsonl"
    written(path, opening(1), segment(0, 0), segment(80, 1, SCALE // 3), segment(160, 2))
    sizes = dict.fromkeys(SOURCES, 1000)
    before = MixtureOrder(sizes, 7, read_schedule(path).mixture).batch(0, 120)
    written(path, opening(2, 120, quantum=6, rewind=True))
    after = MixtureOrder(sizes, 7, read_schedule(path).mixture).batch(0, 120)
    assert [a.tolist() for a in before] == [a.tolist() for a in after]


def test_a_torn_last_line_is_cut_wherever_it_ends(tmp_path: Path) -> None:
    path = tmp_path / "schedule.jsonl"
    written(path, opening(1), segment(0, 0))
    sound = path.read_bytes()
    written(path, segment(80, 1))
    whole = path.read_bytes()
    tails = [whole[: len(sound) + length] for length in range(len(whole) - len(sound))]
    tails.pop()  # but for the newline it is whole
    tails += [whole[:-20] + b"\0" * 20, whole[:-9] + b"\0" + whole[-8:]]
    for torn_file in tails:
        path.write_bytes(torn_file)
        assert len(read_schedule(path).lines) == 2
        written(path, segment(160, 2))
        assert [line.sample for line in read_schedule(path).segments] == [0, 160]
    path.write_bytes(whole[:-30])
    ScheduleWriter(path)
    assert path.read_bytes() == sound


@pytest.mark.parametrize(
    "line",
    [
        encode_line(replace(segment(80, 1), generation=2**62 + 1)),
        encode_line(segment(80, 1)).replace(b'"sample":80', b'"sample":88'),
        b'{"schema":"mixloop/schedule/2","line":"segment"}\n',
        b'{"line":"void","line":"void"}\n',
        b"[" * 100_000 + b"\n",
        b"7" * 5000,
    ],
)
def test_a_last_line_that_is_wrong_and_not_torn_is_never_cut(tmp_path: Path, line: bytes) -> None:
    """It was taken for torn, and the run began again where it had been 900 steps before."""
    path = tmp_path / "schedule.jsonl"
    written(path, opening(1), segment(0, 0))
    with path.open("ab") as file:
        file.write(line)
    content = path.read_bytes()
    for use in (read_schedule, ScheduleWriter):
        with pytest.raises(ScheduleError, match="line 3: "):
            use(path)
    assert path.read_bytes() == content


def test_a_line_without_its_newline_counts(tmp_path: Path) -> None:
    path = tmp_path / "schedule.jsonl"
    written(path, opening(1), segment(0, 0), segment(80, 1))
    path.write_bytes(path.read_bytes()[:-1])
    assert read_schedule(path).accepted == (1, 1)
    written(path, segment(160, 2))
    assert [line.sample for line in read_schedule(path).segments] == [0, 80, 160]
    assert path.read_bytes().count(b"\n") == 4


def test_damage_in_the_middle_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "schedule.jsonl"
    written(path, opening(1), segment(0, 0), segment(80, 1))
    path.write_bytes(path.read_bytes().replace(b'"sample":0', b'"sample":8', 1))
    for use in (read_schedule, ScheduleWriter):
        with pytest.raises(ScheduleError, match=r"line 1: its CRC does not match"):
            use(path)


def test_an_older_trainer_stops_writing(tmp_path: Path) -> None:
    path = tmp_path / "schedule.jsonl"
    old = written(path, opening(1), segment(0, 0))
    old.check()
    with pytest.raises(ScheduleTaken, match="incarnation 1"):
        ScheduleWriter(path).append(opening(1))
    new = written(path, opening(2))
    content = path.read_bytes()
    with path.open("ab") as half_written:
        half_written.write(b'{"schema":')
    for attempt in (old.check, old.reopen, lambda: old.append(segment(80, 1))):
        with pytest.raises(ScheduleTaken, match="incarnation 2"):
            attempt()
    assert path.read_bytes() == content + b'{"schema":'  # the newer one's line is left alone
    new.check()
    new.append(replace(segment(80, 1), incarnation=2))
    assert [line.sample for line in read_schedule(path).segments] == [0, 80]


@pytest.mark.parametrize("how", ["gone", "cut short"])
def test_a_lost_schedule_is_not_begun_anew(tmp_path: Path, how: str) -> None:
    path = tmp_path / "schedule.jsonl"
    writer = written(path, opening(1), segment(0, 0))
    whole = path.read_bytes()
    if how == "gone":
        path.unlink()
    else:
        os.truncate(path, len(whole) - 5)
    left = path.read_bytes() if path.exists() else None
    for attempt in (writer.check, writer.reopen, lambda: writer.append(segment(80, 1))):
        with pytest.raises(ScheduleError, match=f"{how} while the run writes it; restore"):
            attempt()
    assert (path.read_bytes() if path.exists() else None) == left
    path.write_bytes(whole)
    writer.check()
    writer.append(segment(80, 1))
    assert [line.sample for line in read_schedule(path).segments] == [0, 80]


def test_a_hole_at_the_end_is_cut_and_not_read(tmp_path: Path) -> None:
    """`truncate -s 20G`: it costs its author nothing, and had a trainer killed for memory."""
    path = tmp_path / "schedule.jsonl"
    writer = written(path, opening(1))
    whole = path.read_bytes()
    with path.open("ab") as file:
        file.truncate(20 * 2**30)
    assert len(read_schedule(path).lines) == 1
    assert AcceptedOrders(RunPaths(tmp_path), "r").recorded() == (0, 0)
    writer.append(segment(0, 0))
    assert path.read_bytes().startswith(whole)
    assert len(read_schedule(path).lines) == 2
    assert path.stat().st_size < 10_000


@pytest.mark.parametrize(
    ("tail", "why"),
    [
        (b"x" * (LONGEST_LINE + 1) + b"\n", "line 2: longer than 16,777,216 bytes"),
        (b"\n" * (MOST_LINES + 2**20), "more than 262,144 lines"),
    ],
)
def test_more_than_a_schedule_may_hold_is_told(tmp_path: Path, tail: bytes, why: str) -> None:
    path = tmp_path / "schedule.jsonl"
    written(path, opening(1))
    with path.open("ab") as file:
        file.write(tail)
    with pytest.raises(ScheduleError, match=why):
        read_schedule(path)
    problem = schedule_of(path).problem
    assert problem is not None
    assert problem.text == why


def test_one_longer_than_any_reader_takes_is_told_and_never_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was read short, as if its end had been torn: orders in force were forgotten."""
    path = tmp_path / "schedule.jsonl"
    size = len(encode_line(segment(8, 1)))
    for module in (schedule, schedule_writer):
        monkeypatch.setattr(module, "LARGEST_SCHEDULE", 9 * size)
    monkeypatch.setattr(schedule_writer, "_FOR_STARTS", 5 * size)
    writer = ScheduleWriter(path)
    for number in (1, 2, 3):
        writer.append(segment(8 * number, number))
    with pytest.raises(ScheduleError, match="no more orders fit in it"):
        writer.append(segment(32, 4))
    writer.append(VoidLine(1, 24, 1, 3, "there is room for what ends or begins"))
    writer.append(opening(2, 16))
    assert len(read_schedule(path).lines) == 5
    path.write_bytes(path.read_bytes() * 2)
    with pytest.raises(ScheduleError, match=r"schedule.jsonl: longer than .* bytes, the most"):
        read_schedule(path)
    with pytest.raises(ScheduleError, match="longer than"):
        ScheduleWriter(path)
    problem = schedule_of(path).problem
    assert problem is not None
    assert "longer than" in problem.text


def test_what_is_recorded_is_not_parsed_again_for_each_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "schedule.jsonl"
    parsed: list[bytes] = []

    def counted(line: bytes) -> Line:
        parsed.append(line)
        return decode_line(line)

    monkeypatch.setattr(schedule, "decode_line", counted)
    writer = ScheduleWriter(path)
    writer.append(opening(1))
    for number in range(1, 9):
        writer.append(segment(8 * number, number))
    assert parsed == []
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + lines[1].replace(b"web", b"wob") + b"".join(lines[2:]))
    with pytest.raises(ScheduleError, match="line 2: its CRC does not match"):
        writer.append(segment(80, 10))
