"""How an order becomes a switch: lead, durability, lateness, plans, take-overs, failing disks."""

from __future__ import annotations

import io
import sys
import threading
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixloop.contract import (
    BatchSchedule,
    Line,
    OpenLine,
    Order,
    RunPaths,
    ScheduleWriter,
    SegmentLine,
    SourceEntry,
    Stage,
    VoidLine,
    read_schedule,
    write_order,
)
from mixloop.trainer.config import TrainerSettings, durable_steps
from mixloop.trainer.run import Switch
from mixloop.trainer.run.live_mixture import SideThread
from mixloop.trainer.run.order_inbox import OrderInbox, StepClock

START = {"a": 2**23, "b": 2**23}
QUANTUM, LENGTH, POLL = 4, 10, 5
LEAD = (POLL + 1) * QUANTUM  # the next poll and a prefetch of one step


class FullDisk(ScheduleWriter):
    """A schedule on a disk that is full when told so, before or after the line got through."""

    full: str | None = None

    def append(self, line: Line) -> None:
        if self.full == "before":
            raise OSError(28, "No space left on device")
        super().append(line)
        if self.full == "after":
            raise OSError(5, "Input/output error")


class Stand:
    """An order inbox whose training thread is this test: `step` is where it stands."""

    def __init__(self, folder: Path, poll: int = POLL, prefetch: int = 1, **options: Any) -> None:
        self.poll = poll
        folder.mkdir(parents=True, exist_ok=True)
        self.paths = RunPaths(folder)
        self.step = 0
        self.writer = FullDisk(self.paths.schedule)
        incarnation = read_schedule(self.paths.schedule).incarnation + 1
        sources = (SourceEntry("a", 100, ""), SourceEntry("b", 100, ""))
        self.writer.append(
            OpenLine(incarnation, None, 0, 0, 0, sources, LENGTH, QUANTUM, 1, QUANTUM, 1)
        )
        if incarnation == 1:
            self.writer.append(SegmentLine(1, 0, 0, START, 0, 0))
        past = [
            Switch(s.sample, s.fence, s.generation, (s.weights["a"], s.weights["b"]), s.step)
            for s in read_schedule(self.paths.schedule).segments
        ]
        clock = StepClock(0, 0, BatchSchedule(((0, QUANTUM),)), LENGTH, poll, prefetch)
        self.inbox = OrderInbox(
            self.paths, "r", ("a", "b"), self.writer, incarnation, clock, past,
            now=lambda: self.step, **options,
        )  # fmt: skip

    def order(
        self, generation: int, a: float, fence: int = 1, then: tuple[Stage, ...] = ()
    ) -> None:
        weights = {"a": a, "b": 1 - a}
        write_order(self.paths.mixture, Order("r", fence, generation, weights, then))

    def run_to(
        self, step: int, look: bool = True, glance: bool = False
    ) -> list[tuple[int, Switch]]:
        """Train up to `step`; the side thread looks right after each poll. Announced switches."""
        announced = []
        while self.step < step:
            if self.step % self.poll == 0:
                switch = self.inbox.take(self.step)
                if switch is not None:
                    announced.append((self.step, switch))
                if look:
                    self.inbox.look()
            if glance:
                self.inbox.glance()
            self.step += 1
            self.inbox.consumed(self.step * QUANTUM)
        return announced

    @property
    def recorded(self) -> list[tuple[int, int, int]]:
        """(sample, fence, generation) of the effective schedule."""
        segments = read_schedule(self.paths.schedule).segments
        return [(s.sample, s.fence, s.generation) for s in segments]


def test_an_order_is_durable_first_then_announced_then_consumed(tmp_path: Path) -> None:
    stand = Stand(tmp_path)
    stand.order(1, 0.25)
    stand.inbox.look()
    assert stand.recorded == [(0, 0, 0), (LEAD, 1, 1)]
    view = stand.inbox.state()
    assert view.accepted == (1, 1)
    assert view.in_force.generation == 0
    assert view.pending is not None
    assert view.pending.sample == LEAD
    [(step, switch)] = stand.run_to(LEAD // QUANTUM)
    assert step == 0
    assert switch.weights == (2**22, 3 * 2**22)
    assert Switch.unpack(switch.pack()) == Switch(LEAD, 1, 1, switch.weights)
    assert stand.inbox.state().in_force.generation == 0  # its first sample is not consumed yet
    stand.run_to(LEAD // QUANTUM + 1)
    view = stand.inbox.state()
    assert (view.in_force.generation, view.in_force.step) == (1, LEAD // QUANTUM)
    assert view.pending is None


@given(
    poll=st.integers(1, 30),
    prefetch=st.integers(0, 9),
    published=st.integers(0, 60),
    glance=st.booleans(),
)
@settings(max_examples=15, deadline=None)
def test_an_order_is_in_force_as_soon_as_the_settings_say_and_no_sooner_than_it_is_heard(
    poll: int, prefetch: int, published: int, glance: bool
) -> None:
    with TemporaryDirectory() as folder:
        stand = Stand(Path(folder), poll, prefetch)
        assert stand.run_to(published, glance=glance) == []
        stand.order(1, 0.25)
        [(step, switch)] = stand.run_to(published + 4 * poll + 4, glance=glance)
        assert step % poll == 0
        assert switch.sample >= (step + prefetch) * QUANTUM  # what nobody has drawn
        late = switch.sample // QUANTUM - published
        chosen = TrainerSettings(poll_every=poll, prefetch=prefetch)
        least = durable_steps(poll)
        assert late - prefetch >= least
        assert late <= (least + poll - 1 + prefetch if glance else chosen.switching_steps)


def test_a_glance_looks_only_at_what_is_new(tmp_path: Path) -> None:
    stand = Stand(tmp_path)
    stand.inbox.glance()  # there is no order yet
    stand.order(1, 0.25)
    stand.inbox.glance()
    assert stand.inbox.state().accepted == (1, 1)
    stand.run_to(20, look=False)
    assert stand.inbox.state().in_force.generation == 1
    stand.paths.mixture.write_text("[]")
    stand.inbox.glance()
    assert len(stand.inbox.state().rejected) == 1
    stand.writer.full = "before"
    stand.order(2, 0.5)
    stand.inbox.glance()
    stand.writer.full = None
    stand.inbox.glance()  # nothing new: what the disk did not take, the next poll tries again
    assert stand.inbox.state().accepted == (1, 1)
    stand.inbox.look()
    assert stand.inbox.state().accepted == (1, 2)


def test_one_switch_is_pending_at_a_time_and_the_newest_order_follows(tmp_path: Path) -> None:
    stand = Stand(tmp_path)
    stand.order(1, 0.25)
    stand.run_to(2)
    stand.order(2, 0.3)
    stand.run_to(8)
    stand.order(3, 0.35)
    stand.run_to(60)
    generations = [generation for _, _, generation in stand.recorded]
    assert generations == [0, 1, 3]
    samples = [sample for sample, _, _ in stand.recorded]
    assert samples[2] - samples[1] > LEAD


def test_durable_too_late_is_voided_and_tried_further_ahead(tmp_path: Path) -> None:
    stand = Stand(tmp_path)
    stand.order(1, 0.25)
    stand.inbox.look()  # recorded at step 0 ...
    stand.step = 15  # ... while training raced on: the first sample is gone
    assert stand.inbox.take(15) is None
    assert stand.inbox.state().pending is not None
    announced = stand.run_to(60)
    lines = read_schedule(stand.paths.schedule).lines
    assert [type(line) for line in lines[2:]] == [SegmentLine, VoidLine, SegmentLine]
    retried = (15 + 2 * POLL + 1) * QUANTUM  # twice the polls ahead
    assert stand.recorded == [(0, 0, 0), (retried, 1, 1)]
    assert [switch.sample for _, switch in announced] == [retried]
    assert stand.inbox.state().in_force.sample == retried


@pytest.mark.parametrize("late", [False, True])
def test_what_the_ranks_never_heard_of_is_void_when_training_ends(
    tmp_path: Path, late: bool
) -> None:
    stand = Stand(tmp_path)
    stand.order(1, 0.25)
    stand.inbox.look()
    stand.step = LEAD // QUANTUM
    stand.inbox.end()
    assert len(stand.recorded) == 2  # its first sample is the next to be drawn: the next trainer's
    stand.step += 1
    if late:
        assert stand.inbox.take(stand.step) is None
    stand.inbox.end()
    stand.inbox.end()
    assert stand.recorded == [(0, 0, 0)]
    lines = read_schedule(stand.paths.schedule).lines
    assert [type(line) for line in lines[2:]] == [SegmentLine, VoidLine]


def test_what_the_disk_took_after_all_is_void_when_training_ends(tmp_path: Path) -> None:
    stand = Stand(tmp_path)
    stand.writer.full = "after"
    stand.order(1, 0.25)
    stand.inbox.look()
    stand.writer.full = None
    stand.step = 20
    side = SideThread(stand.inbox)
    assert side.close()
    assert stand.recorded == [(0, 0, 0)]


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_failing_disk_keeps_the_mixture_and_the_order_comes_later(
    tmp_path: Path, when: str
) -> None:
    stand = Stand(tmp_path)
    stand.order(1, 0.25)
    stand.writer.full = when
    assert stand.run_to(12) == []
    view = stand.inbox.state()
    assert (view.accepted, view.pending) == ((0, 0), None)
    assert len(view.rejected) == 1
    assert "the mixture in force is kept" in view.rejected[0].reason
    stand.writer.full = None
    [(step, switch)] = stand.run_to(40)
    assert switch.sample >= (step + 1) * QUANTUM
    assert stand.recorded == [(0, 0, 0), (switch.sample, 1, 1)]  # what got through is void


def test_a_full_disk_while_retrying_loses_no_order(tmp_path: Path) -> None:
    stand = Stand(tmp_path)
    stand.order(1, 0.25)
    stand.inbox.look()
    stand.step = 15
    stand.writer.full = "before"
    stand.run_to(30)
    stand.writer.full = None
    stand.run_to(90)
    assert stand.inbox.state().in_force.generation == 1
    assert [generation for _, _, generation in stand.recorded] == [0, 1]


def test_a_plan_is_carried_out_at_its_token_counts(tmp_path: Path) -> None:
    stand = Stand(tmp_path)
    plan = (Stage(1501, {"a": 0.1, "b": 0.9}), Stage(3000, {"b": 1.0}))
    stand.order(1, 0.25, then=plan)
    stand.run_to(130)
    # 1,501 tokens end inside step 37 (40 tokens a step): the stage begins with step 38
    assert stand.recorded[2:] == [(38 * QUANTUM, 1, 1), (75 * QUANTUM, 1, 1)]
    assert stand.inbox.state().in_force.weights == (0, 2**24)


def test_a_newer_order_ends_the_plan(tmp_path: Path) -> None:
    stand = Stand(tmp_path)
    stand.order(1, 0.25, then=(Stage(1500, {"b": 1.0}),))
    stand.run_to(20)
    stand.order(2, 0.3)
    stand.run_to(80)
    assert [generation for _, _, generation in stand.recorded] == [0, 1, 2]


def test_a_take_over_raises_the_fence_and_nothing_else(tmp_path: Path) -> None:
    stand = Stand(tmp_path)
    plan = (Stage(1000, {"a": 0.1, "b": 0.9}),)
    stand.order(1, 0.25, then=plan)
    stand.run_to(40)  # the stage is in force by now
    stand.order(1, 0.25, fence=3, then=plan)
    stand.run_to(50)
    assert stand.inbox.state().accepted == (3, 1)
    assert [fence for _, fence, _ in stand.recorded] == [0, 1, 1]
    stand.order(2, 0.5, fence=2)  # the controller that was replaced
    stand.run_to(60)
    assert stand.inbox.state().accepted == (3, 1)
    assert "fence 2 is below 3" in stand.inbox.state().rejected[-1].reason
    # a restart remembers the fence, though no segment carries it and the order file is another's
    again = Stand(tmp_path)
    assert again.inbox.state().accepted == (3, 1)
    again.run_to(90)
    assert again.recorded == stand.recorded  # the stage is not carried out twice


def test_recorded_segments_ahead_are_followed_before_new_orders(tmp_path: Path) -> None:
    stand = Stand(tmp_path)
    stand.order(1, 0.25)
    stand.inbox.look()
    again = Stand(tmp_path)  # from step 0: the segment lies ahead
    pending = again.inbox.state().pending
    assert pending is not None
    assert pending.sample == LEAD
    again.order(2, 0.3)
    assert again.run_to(9) == []
    again.run_to(60)
    assert [generation for _, _, generation in again.recorded] == [0, 1, 2]
    assert again.recorded[2][0] > LEAD


def test_a_superseded_desk_writes_nothing(tmp_path: Path) -> None:
    stand = Stand(tmp_path)
    newer = Stand(tmp_path)
    stand.order(1, 0.25)
    stand.run_to(20)
    assert stand.inbox.state().superseded
    assert [generation for _, _, generation in newer.recorded] == [0]


def test_the_side_thread_survives_what_fails_in_it(tmp_path: Path) -> None:
    stand = Stand(tmp_path)
    side = SideThread(stand.inbox)
    stand.order(1, 0.25)
    written = threading.Event()

    def fails() -> None:
        written.set()
        raise OSError(28, "No space left on device")

    side.write(fails)
    assert written.wait(10)
    side.poll()
    finished: list[bool] = []
    side.write(lambda: finished.append(True))
    assert side.close()
    assert finished == [True]
    assert stand.inbox.state().accepted == (1, 1)


def test_the_side_thread_survives_a_look_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(28, "No space left on device")

    stand = Stand(tmp_path)
    monkeypatch.setattr(sys, "stderr", Broken())
    stand.paths.mixture.write_text("[]")
    stand.inbox.look()  # the rejection can't be said
    assert len(stand.inbox.state().rejected) == 1
    looked = threading.Event()

    def fails() -> None:
        looked.set()
        raise RuntimeError("a bug")

    monkeypatch.setattr(stand.inbox, "look", fails)
    side = SideThread(stand.inbox)
    side.poll()
    assert looked.wait(10)
    finished: list[bool] = []
    side.write(lambda: finished.append(True))
    assert side.close()
    assert finished == [True]


def test_a_retry_that_is_late_at_once_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand = Stand(tmp_path)
    stand.order(1, 0.25)
    stand.inbox.look()
    stand.step = 30
    assert stand.inbox.take(stand.step) is None  # too late
    record = stand.inbox._record

    def overtaken(*arguments: Any, **options: Any) -> None:
        record(*arguments, **options)
        stand.step = 100  # before `look` has come back, the training thread is past it again
        assert stand.inbox.take(stand.step) is None

    with monkeypatch.context() as patch:
        patch.setattr(stand.inbox, "_record", overtaken)
        stand.inbox.look()
    stand.run_to(200)
    assert stand.inbox.state().in_force.generation == 1


def test_a_lost_schedule_keeps_the_mixture_until_it_is_back(tmp_path: Path) -> None:
    stand = Stand(tmp_path)
    away = stand.paths.schedule.rename(tmp_path / "away")
    stand.order(1, 0.25)
    stand.run_to(40)
    assert not stand.paths.schedule.exists()
    view = stand.inbox.state()
    assert (view.accepted, view.pending, view.superseded) == ((0, 0), None, False)
    [noted] = view.rejected
    assert "schedule.jsonl: gone while the run writes it" in noted.reason
    away.rename(stand.paths.schedule)
    stand.run_to(80)
    assert stand.inbox.state().in_force.generation == 1
