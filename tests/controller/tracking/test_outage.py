"""What MLflow costs the loop: next to nothing, whatever the server does."""

from __future__ import annotations

import contextlib
import socket
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from mixloop.controller.journal import records
from mixloop.controller.tracking import drain_child

ALLOWED = 0.050  # seconds of the loop's time for one decision, from its trace to its outcome


@contextlib.contextmanager
def server_that_hangs() -> Iterator[str]:
    """Takes every connection and never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=128) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


@contextlib.contextmanager
def server_that_is_down() -> Iterator[str]:
    """A port of our own that nobody listens on."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{taken.getsockname()[1]}"


class Clock:
    """Seconds spent inside what only MLflow needs, by the wall."""

    def __init__(self) -> None:
        self.spent: list[float] = []
        self._inside = False

    def around(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            if self._inside:
                return call(*args, **kwargs)
            self._inside, began = True, time.perf_counter()
            try:
                return call(*args, **kwargs)
            finally:
                self._inside = False
                self.spent.append(time.perf_counter() - began)

        return timed


@pytest.mark.parametrize("server", [server_that_hangs, server_that_is_down])
def test_telling_of_a_decision_costs_the_loop_under_50_ms(
    play: Any,
    monkeypatch: pytest.MonkeyPatch,
    server: Callable[[], contextlib.AbstractContextManager[str]],
) -> None:
    clock = Clock()
    # the curves are the heartbeats', not a decision's, and are not counted
    for place, name in (
        (drain_child.MlflowDrain, "start"),
        (drain_child.MlflowDrain, "poll"),
        (records, "enqueue"),
        (records, "outcome"),
    ):
        monkeypatch.setattr(place, name, clock.around(getattr(place, name)))
    monkeypatch.setattr(drain_child, "BACKOFF", (0.0, 0.0))  # it never rests: the worst there is
    with server() as uri:
        run = play(tracking={"uri": uri, "experiment": "outage"})
        run.train(2)
        began = time.monotonic()
        while run.controller.mlflow.child is None:  # a drain is under way from the start
            run.controller.step()
            assert time.monotonic() - began < 60
        run.train(24)
        decided = run.journal.value("SELECT COUNT(*) FROM decisions")
        waiting = run.journal.value("SELECT COUNT(*) FROM outbox WHERE done_at IS NULL")
        everything = run.journal.value("SELECT COUNT(*) FROM outbox")
        durable = []  # what one durable write costs on this disk, of which an outcome needs one
        for number in range(9):
            began = time.perf_counter()
            run.journal.event("measured", number=number)
            durable.append(time.perf_counter() - began)
        run.controller.close()
    cost = sum(clock.spent) / decided
    assert decided >= 6
    assert waiting == everything > 5 * decided, "told nobody, kept it all"
    assert cost < ALLOWED + statistics.median(durable)
