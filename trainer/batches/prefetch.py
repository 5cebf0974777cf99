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
from collections import deque
from collections.abc import Callable
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
        self._queue = _Queue()
        arguments = (self._queue,)
        self._thread = threading.Thread(target=_work, args=arguments, name=name, daemon=True)
        self._thread.start()
        weakref.finalize(self, self._queue.close)

    def submit(self, action: Action) -> None:
        """Have something done, in place of what is not begun yet. It is given what is set when it
        had better stop."""
        self._queue.put(action)

    def close(self) -> None:
        """Wait for what is being done; what is not begun is left."""
        self._queue.close()
        self._thread.join()


class _Queue:
    """What the thread is to do next, one action at most: others hold memory for nothing."""

    def __init__(self) -> None:
        self.stop = threading.Event()
        self._action: deque[Action] = deque(maxlen=1)
        self._bell = threading.Lock()
        self._bell.acquire()

    def put(self, action: Action) -> None:
        self._action.append(action)
        self._ring()

    def close(self) -> None:
        self.stop.set()
        self._action.clear()
        self._ring()

    def take(self) -> Action | None:
        """Sleeps until there is something to do; None: end."""
        while not self.stop.is_set():
            self._bell.acquire()
            with contextlib.suppress(IndexError):
                return self._action.popleft()
        return None

    def _ring(self) -> None:
        with contextlib.suppress(RuntimeError):  # it rings already
            self._bell.release()


def _work(queue: _Queue) -> None:
    while (action := queue.take()) is not None:
        with contextlib.suppress(Exception):  # whoever needs it tries it too, and hears of it
            action(queue.stop)
        del action  # it holds memory that is used again
