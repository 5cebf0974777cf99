"""The side thread of rank 0: looks for orders and writes the status while training goes on."""

from __future__ import annotations

import threading
from collections.abc import Callable

from mixloop.trainer.hotreload import Desk
from mixloop.trainer.voice import say


class SideThread:
    """Runs a desk's looks and the newest status write, so that training waits for neither."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._wake = threading.Event()
        self._polls = False
        self._write: Callable[[], None] | None = None
        self._closing = False
        self._thread = threading.Thread(target=self._work, name="mixloop-side", daemon=True)
        self._thread.start()

    def poll(self) -> None:
        """Ask for one look; returns at once."""
        self._polls = True
        self._wake.set()

    def write(self, action: Callable[[], None]) -> None:
        """Ask for a file to be written; a newer request replaces one not yet begun."""
        self._write = action
        self._wake.set()

    def close(self, timeout: float = 10.0) -> bool:
        """Finish what was asked; False if a hanging disk did not let it in time."""
        self._closing = True
        self._wake.set()
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _work(self) -> None:
        while True:
            self._wake.wait()
            self._wake.clear()
            closing = self._closing
            if self._polls:
                self._polls = False
                self._attempt(self._desk.look, "no look for orders")
            action, self._write = self._write, None
            if action is not None:
                self._attempt(action, "status not written")
            if closing:
                return

    def _attempt(self, action: Callable[[], None], failed: str) -> None:
        try:
            action()
        except Exception as error:
            # whatever fails here fails once: without this thread the run is deaf and mute
            say(f"{failed}: {error}", "mixloop")
