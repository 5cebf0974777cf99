"""Batches drawn ahead: the same ones, by whoever comes first; failures are heard."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mixloop.contract import BatchSchedule, Segment
from mixloop.trainer.batches import BatchLayout, RankBatches, rank_batches
from mixloop.trainer.mixing import MixtureOrder
from mixloop.trainer.sources import Store, StoreInfo
from mixloop.trainer.sources.stream import Stream, file_piece

LENGTH, ROWS, SOURCES = 32, 4, 5


@pytest.fixture
def stores(tmp_path: Path) -> dict[str, Store]:
    opened = {}
    for number in range(SOURCES):
        tokens = (np.arange(LENGTH * 40) // LENGTH + 1000 * number).astype(np.uint16)
        folder = tmp_path / f"s{number}"
        folder.mkdir()
        tokens.tofile(folder / "tokens.bin")
        info = StoreInfo(tokens.size, 1, "uint16", 60_000, "t", "sha256:0", 0)
        stream = Stream([file_piece(folder / "tokens.bin", tokens.dtype, tokens.size)], np.uint16)
        opened[f"s{number}"] = Store(folder, info, stream)
    return opened


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
        expected, other = plain.batch(at * quantum), ahead.batch(at * quantum)
        assert expected.sample == other.sample == at * quantum
        for key in ("ids", "source", "index", "counts"):
            assert np.array_equal(getattr(expected, key), getattr(other, key)), (at, key)
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
    (thread,) = (t for t in threading.enumerate() if t.name == "mixloop-prefetch")
    gone = weakref.ref(feed)
    del feed
    gc.collect()
    thread.join(10.0)
    assert not thread.is_alive()
    assert gone() is None


def test_every_position_of_a_step_is_dealt_once() -> None:
    layouts = [BatchLayout(3, rank, 4, 16) for rank in range(4)]
    dealt = np.concatenate([layout.positions(24).ravel() for layout in layouts])
    assert sorted(dealt.tolist()) == list(range(24))
    assert layouts[1].positions(24).tolist() == [[3, 4, 5], [15, 16, 17]]
