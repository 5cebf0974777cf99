"""Work that a thread does ahead of time, and that whoever needs it first does himself.

Two threads that hand work to and fro wait for each other's waking up, which costs more than a
batch does. So nothing is handed over: each part of the work has a lock, the thread takes parts one
after the other, and the consumer who finds the part he needs not begun does it, and one being done
just then leaves alone for the next. He sleeps only if all that is left is under way.
"""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Callable
from queue import SimpleQueue
from typing import Generic, TypeVar

T = TypeVar("T")
Action = Callable[[threading.Event], None]


class LazyParts:
    """Parts 0, 1, ... of some work, each done once, by whatever thread.

    Args:
        count: how many there are.
        do: does a part, given its number; called from several threads, never twice for a part
            that it didn't fail at.
    """

    def __init__(self, count: int, do: Callable[[int], None]) -> None:
        self._do = do
        self._done = [False] * count
        self._locks = [threading.Lock() for _ in range(count)]

    def need(self, number: int) -> None:
        """Return when a part is done. What `do` raises is raised here."""
        done = self._done
        self._attempt(number)
        for later in range(number + 1, len(done)):  # rather than wait for one that is being done
            if done[number]:
                return
            with contextlib.suppress(Exception):  # raised when that one is needed
                self._attempt(later)
        if not done[number]:
            with self._locks[number]:
                self._finish(number)  # unless the other one did

    def ahead(self, stop: threading.Event) -> None:
        """Do what nobody has begun."""
        for number in range(len(self._done)):
            if stop.is_set():
                return
            self._attempt(number)

    def _attempt(self, number: int) -> None:
        if self._done[number] or not self._locks[number].acquire(blocking=False):
            return
        try:
            self._finish(number)
        finally:
            self._locks[number].release()

    def _finish(self, number: int) -> None:
        if not self._done[number]:
            self._do(number)
            self._done[number] = True


class LazyValue(Generic[T]):
    """A value that is made by whoever asks first; another one who asks meanwhile waits."""

    def __init__(self, make: Callable[[], T]) -> None:
        self._lock = threading.Lock()
        self._make: Callable[[], T] | None = make
        self._values: list[T] = []

    def get(self) -> T:
        """The value. What `make` raises is raised here, and the next one tries again."""
        with self._lock:
            if self._make is not None:
                self._values.append(self._make())
                self._make = None  # it holds whoever made this
            return self._values[0]


class Prefetcher:
    """A daemon thread that does what it was told last, and keeps what fails to itself.

    It ends with `close`, or when nobody refers to this any more.
    """

    def __init__(self, name: str) -> None:
        self._actions: SimpleQueue[Action | None] = SimpleQueue()
        self._stop = threading.Event()
        shared = (self._actions, self._stop)  # and not self: the thread would keep it alive
        self._thread = threading.Thread(target=_work, args=shared, name=name, daemon=True)
        self._thread.start()
        weakref.finalize(self, _end, *shared)

    def submit(self, action: Action) -> None:
        """Have something done, in place of what is not begun yet.

        Args:
            action: is given what is set when it had better stop.
        """
        self._actions.put(action)

    def close(self) -> None:
        """Wait for what is being done; what is not begun is left."""
        _end(self._actions, self._stop)
        self._thread.join()


def _end(actions: SimpleQueue[Action | None], stop: threading.Event) -> None:
    stop.set()
    actions.put(None)


def _work(actions: SimpleQueue[Action | None], stop: threading.Event) -> None:
    while (action := actions.get()) is not None and not stop.is_set():
        if actions.empty():  # else there is a newer one
            with contextlib.suppress(Exception):  # whoever needs it tries it too, and hears of it
                action(stop)
        del action  # it holds memory that is used again
