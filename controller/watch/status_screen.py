"""``mixloop status --watch``: the screen that stays. Thin: looks, builds, draws, waits."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from mixloop.common.process import handling, interrupt
from mixloop.common.types import Json
from mixloop.controller import views
from mixloop.controller.views import Watcher

from .view import View, build

if TYPE_CHECKING:
    from rich.console import Console


def watch(target: Path, every: float, *, as_json: bool = False) -> int:
    """Show a run until it has ended or somebody stops it. Returns the exit code.

    On a terminal one screen is drawn again and again; elsewhere a block of plain lines per change,
    or, as JSON, one object a line per look.

    Raises:
        BadInput: no such run.
    """
    watcher = Watcher(views.run_folder(target), time.monotonic)
    console = views.console()
    with _gentle_stops() as pause:
        if as_json:
            return _follow(watcher, every, pause, _json_line)
        if console.is_terminal and not console.is_dumb_terminal:
            return _screen(watcher, every, pause, console)
        return _follow(watcher, every, pause, _Blocks().block)


Pause = Callable[[float], object]


@contextmanager
def _gentle_stops() -> Iterator[Pause]:
    """SIGTERM ends it like Ctrl-C, so that the terminal is always given back as it was."""
    with handling([signal.SIGTERM], interrupt):
        yield threading.Event().wait


def _ended(view: View) -> bool:
    """Whether there is nothing more to come: training is over, and the controller has ended."""
    over = view.word == "finished" and view.controller == "not running"
    return over and not view.pending


def _follow(watcher: Watcher, every: float, pause: Pause, block: Callable[[View], str]) -> int:
    while True:
        view = build(watcher.look())
        if text := block(view):
            print(text, flush=True)  # noqa: T201 - the command's output
        if _ended(view):
            return 0
        pause(every)


def _json_line(view: View) -> str:
    return json.dumps(view.to_json(), ensure_ascii=True, allow_nan=False)


class _Blocks:
    """One block of plain lines per change."""

    def __init__(self) -> None:
        self._last: Json | None = None

    def block(self, view: View) -> str:
        from .screen import plain

        last, self._last = self._last, view.key()
        if self._last == last:
            return ""
        return ("" if last is None else "\n") + "\n".join(plain(view))


def _screen(watcher: Watcher, every: float, pause: Pause, console: Console) -> int:
    from rich.console import Group
    from rich.live import Live

    from .screen import ASCII, Signs, screen

    signs = ASCII if console.options.ascii_only else Signs()
    with Live(console=console, screen=True, auto_refresh=False, redirect_stdout=False) as live:
        while True:
            view = build(watcher.look())
            began, drawn = time.monotonic(), None
            while time.monotonic() - began < every:
                if (size := console.size) != drawn:  # also when the window changes
                    drawn = size
                    live.update(Group(*screen(view, size[0], size[1], signs)), refresh=True)
                pause(min(0.2, every))
            if _ended(view):
                break
    for line in screen(view, console.width, 200, signs):
        console.print(line, soft_wrap=True)
    return 0
