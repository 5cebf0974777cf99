"""Work that a thread does ahead: every part once, by whoever comes first; failures are heard."""

from __future__ import annotations

import gc
import threading
import time

import numpy as np
import numpy.typing as npt
import pytest

from mixloop.trainer.batches.prefetch import LazyParts, LazyValue, Prefetcher

Floats = npt.NDArray[np.float64]

TIMEOUT = 10.0


def ends(thread: threading.Thread) -> bool:
    thread.join(TIMEOUT)
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
        assert free.wait(TIMEOUT)

    ahead.submit(hold)
    assert held.wait(TIMEOUT)
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
            assert free.wait(TIMEOUT)
        else:
            free.set()  # only ever set by the one who found part 0 under way

    parts, ahead = LazyParts(2, do), Prefetcher("test-way")
    ahead.submit(parts.ahead)
    assert begun.wait(TIMEOUT)
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
            assert tried.wait(TIMEOUT)
        else:
            tried.set()
            raise OSError("gone")

    parts, ahead = LazyParts(2, do), Prefetcher("test-later")
    ahead.submit(parts.ahead)
    assert begun.wait(TIMEOUT)
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
    assert begun.wait(TIMEOUT)
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
