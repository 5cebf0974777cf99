"""Work that a thread does ahead: every part once, by whoever comes first; failures are heard."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from mixloop.contract import BatchSchedule, Segment
from mixloop.trainer.batches import BatchLayout, RankBatches, rank_batches
from mixloop.trainer.batches.prefetch import LazyParts, LazyValue, Prefetcher
from mixloop.trainer.mixing import MixtureOrder
from mixloop.trainer.sources import Store, StoreInfo
from mixloop.trainer.sources.stream import Stream, file_piece

Floats = npt.NDArray[np.float64]

PATIENCE = 10.0


def ends(thread: threading.Thread) -> bool:
    thread.join(PATIENCE)
    return not thread.is_alive()


def running(name: str) -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == name]


def test_every_part_is_done_once_whoever_does_it() -> None:
    ahead = Prefetcher("test-parts")
    drawing, by = np.random.default_rng(3), set()
    for _ in range(300):
        done: list[int] = []
        pauses = drawing.choice([0.0, 0.0, 1e-5, 2e-4], 6)

        def do(number: int, done: list[int] = done, pauses: Floats = pauses) -> None:
            by.add(threading.current_thread().name)
            if pauses[number]:
                time.sleep(pauses[number])  # gives the other one the GIL
            done.append(number)

        parts = LazyParts(6, do)
        ahead.submit(parts.ahead)
        for number in range(6):
            parts.need(number)
            assert number in done
        assert sorted(done) == list(range(6))
    ahead.close()
    assert len(by) == 2


def test_nobody_waits_for_a_thread_that_has_not_begun() -> None:
    ahead, held, free = Prefetcher("test-held"), threading.Event(), threading.Event()

    def hold(stop: threading.Event) -> None:
        held.set()
        assert free.wait(PATIENCE)

    ahead.submit(hold)
    assert held.wait(PATIENCE)
    by = []
    parts = LazyParts(3, lambda number: by.append(threading.current_thread()))
    ahead.submit(parts.ahead)
    for number in range(3):
        parts.need(number)
    assert by == [threading.current_thread()] * 3
    free.set()
    ahead.close()


def test_a_part_under_way_is_waited_for_and_the_next_done_meanwhile() -> None:
    begun, free, by = threading.Event(), threading.Event(), {}

    def do(number: int) -> None:
        by[number] = threading.current_thread().name
        if number == 0:
            begun.set()
            assert free.wait(PATIENCE)
        else:
            free.set()  # only ever set by the one who found part 0 under way

    parts, ahead = LazyParts(2, do), Prefetcher("test-way")
    ahead.submit(parts.ahead)
    assert begun.wait(PATIENCE)
    parts.need(0)
    assert by == {0: "test-way", 1: threading.current_thread().name}
    ahead.close()


def test_what_fails_in_the_thread_is_raised_where_it_is_needed() -> None:
    tried: list[str] = []

    def do(number: int) -> None:
        tried.append(threading.current_thread().name)
        raise OSError("gone")

    ahead, parts = Prefetcher("test-fails"), LazyParts(1, do)
    ahead.submit(parts.ahead)
    while not tried:
        time.sleep(0.001)
    with pytest.raises(OSError, match="gone"):
        parts.need(0)
    assert tried == ["test-fails", threading.current_thread().name]
    value = LazyValue(lambda: parts.need(0))
    for _ in range(2):
        with pytest.raises(OSError, match="gone"):
            value.get()
    ahead.submit(lambda stop: tried.append("alive"))
    while tried[-1] != "alive":
        time.sleep(0.001)
    ahead.close()


def test_a_later_part_that_fails_does_not_hold_up_one_that_is_done() -> None:
    begun, tried = threading.Event(), threading.Event()

    def do(number: int) -> None:
        if number == 0:
            begun.set()
            assert tried.wait(PATIENCE)
        else:
            tried.set()
            raise OSError("gone")

    parts, ahead = LazyParts(2, do), Prefetcher("test-later")
    ahead.submit(parts.ahead)
    assert begun.wait(PATIENCE)
    parts.need(0)
    with pytest.raises(OSError, match="gone"):
        parts.need(1)
    ahead.close()


def test_close_leaves_what_is_not_begun_and_stops_what_is() -> None:
    done: list[int] = []
    begun = threading.Event()

    def do(number: int) -> None:
        begun.set()
        time.sleep(0.005)
        done.append(number)

    ahead = Prefetcher("test-close")
    ahead.submit(LazyParts(10_000, do).ahead)
    assert begun.wait(PATIENCE)
    ahead.close()
    assert len(done) < 1000
    assert not running("test-close")
    ahead.close()


def test_a_prefetcher_that_nobody_has_ends() -> None:
    ahead = Prefetcher("test-lost")
    (thread,) = running("test-lost")
    assert thread.daemon
    del ahead
    gc.collect()
    assert ends(thread)


# --- in the feed ---------------------------------------------------------------------------

LENGTH, ROWS, SOURCES = 32, 4, 5


@pytest.fixture
def stores(tmp_path: Path) -> dict[str, Store]:
    found = {}
    for number in range(SOURCES):
        tokens = (np.arange(LENGTH * 40) // LENGTH + 1000 * number).astype(np.uint16)
        folder = tmp_path / f"s{number}"
        folder.mkdir()
        tokens.tofile(folder / "tokens.bin")
        info = StoreInfo(tokens.size, 1, "uint16", 60_000, "t", "sha256:0", 0)
        stream = Stream([file_piece(folder / "tokens.bin", tokens.dtype, tokens.size)], np.uint16)
        found[f"s{number}"] = Store(folder, info, stream)
    return found


def feed_of(stores: dict[str, Store], prefetch: int) -> RankBatches:
    weights = dict(zip(stores, (0.4, 0.3, 0.15, 0.1, 0.05), strict=True))
    order = MixtureOrder(dict.fromkeys(stores, 40), 7, [Segment(0, weights, 2 * ROWS)])
    layout, schedule = BatchLayout(ROWS, 0, 1, LENGTH), BatchSchedule([(0, 2 * ROWS)])
    return RankBatches(stores, order, layout, schedule, prefetch, dtype=np.int32)


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread is told of every block, however soon its steps are asked for."""
    monkeypatch.setattr(rank_batches, "_MIN_BUSY", 0.0)


@pytest.mark.parametrize(("pause", "who"), [(0.0, "MainThread"), (0.002, "mixloop-prefetch")])
def test_the_thread_draws_while_the_loop_is_busy_elsewhere(
    stores: dict[str, Store], monkeypatch: pytest.MonkeyPatch, pause: float, who: str
) -> None:
    feed, by = feed_of(stores, 4), list[str]()
    fill = feed._gatherer.fill

    def noted(*args: Any) -> None:
        by.append(threading.current_thread().name)
        fill(*args)

    monkeypatch.setattr(feed._gatherer, "offsets", lambda *_: None)
    monkeypatch.setattr(feed._gatherer, "fill", noted)
    if not pause:  # a loop that takes no time
        monkeypatch.setattr(rank_batches, "perf_counter", lambda: 0.0)
        feed._busy = 0.0
    for step in range(40):
        feed.batch(step * 2 * ROWS)
        time.sleep(pause)
    feed.close()
    assert by.count(who) > len(by) / 2
    assert pause or set(by) == {who}


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("prefetch", [1, 2, 8, 16, 40])
def test_batches_are_the_same_however_far_ahead_they_are_drawn(
    stores: dict[str, Store], prefetch: int
) -> None:
    """Also when the consumer is slow or goes back, and weights change just beyond the prefetch."""
    plain, ahead = feed_of(stores, 0), feed_of(stores, prefetch)
    drawing, quantum, at = np.random.default_rng(prefetch), 2 * ROWS, 0
    for _ in range(1500):
        if drawing.random() < 0.02:
            share = drawing.dirichlet(np.ones(SOURCES))
            first = (at + prefetch) * quantum
            change = Segment(first, dict(zip(stores, share, strict=True)), quantum)
            plain.switch(change)
            ahead.switch(change)
        if drawing.random() < 0.01:
            at = max(0, at - int(drawing.integers(1, 5)))
        if drawing.random() < 0.05:
            time.sleep(2e-4)
        one, other = plain.batch(at * quantum), ahead.batch(at * quantum)
        assert one.sample == other.sample == at * quantum
        for key in ("ids", "source", "index", "counts"):
            assert np.array_equal(getattr(one, key), getattr(other, key)), (at, key)
        assert (other.ids[..., 0] == 1000 * other.source + other.index).all()
        at += 1
    ahead.close()


@pytest.mark.usefixtures("always")
def test_a_source_that_fails_in_the_thread_is_heard_of(
    stores: dict[str, Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    feed = feed_of(stores, 8)
    feed.batch(0)

    def gone(*_: object) -> None:
        raise OSError("the disk is gone")

    monkeypatch.setattr(feed._gatherer, "fill_from", gone)
    steps = iter(range(1, 40))
    with pytest.raises(OSError, match="the disk is gone"):
        deque((feed.batch(step * 2 * ROWS) for step in steps), maxlen=0)
    assert next(steps) <= 10  # what was drawn ahead before was still handed out
    feed.close()


@pytest.mark.usefixtures("always")
def test_a_feed_that_nobody_has_leaves_no_thread(stores: dict[str, Store]) -> None:
    feed = feed_of(stores, 4)
    feed.batch(0)
    (thread,) = running("mixloop-prefetch")
    gone = weakref.ref(feed)
    del feed
    gc.collect()
    assert ends(thread)
    assert gone() is None
