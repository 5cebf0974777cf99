"""What a worker watches while it scores: its input's other end, and its own memory.

Both must be seen while the main thread is deep in a model, and neither may need the process that
started the worker: under a launcher's command that one can be on another machine.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from mixloop.evals import EvalSettings

# seconds between two looks, and those an orderly end may take
_LOOK, _GRACE = 0.2, 5.0


def resident() -> int:
    """This process's resident bytes; 0 where the system does not say (only Linux does, here)."""
    try:
        pages = int(Path("/proc/self/statm").read_text("ascii").split()[1])
    except (OSError, ValueError, IndexError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def watch_memory(limit: int | None, above: Callable[[str], None]) -> None:
    """Calls `above` with the reason, from a thread of its own, once more than `limit` is held."""
    if limit is None:
        return

    def look() -> str | None:
        held = resident()
        return (
            f"the worker held {held} bytes of memory, more than {limit}" if held > limit else None
        )

    _watch(look, above)


def watch_input(descriptor: int) -> None:
    """Ends this process when nobody can write to its input any more."""
    poll = select.poll()
    poll.register(descriptor, 0)  # a hang-up is always told

    def look() -> str | None:
        return "gone" if any(event & select.POLLHUP for _, event in poll.poll(0)) else None

    _watch(look, lambda _: end_process())


def end_process() -> None:
    """Ends this process from any thread: as a request first (see `end_on_request`), so that what
    it wrote and started is tidied up, and for certain some seconds later.
    """
    os.kill(os.getpid(), signal.SIGTERM)
    threading.Event().wait(_GRACE)
    os._exit(0)


def end_on_request() -> None:
    """Makes SIGTERM an orderly end: what is being done is left through its `finally`s."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))


def _watch(look: Callable[[], str | None], then: Callable[[str], None]) -> None:
    def run() -> None:
        never = threading.Event()
        while (found := look()) is None:
            never.wait(_LOOK)
        then(found)

    threading.Thread(target=run, daemon=True).start()


def quieten(settings: EvalSettings) -> None:
    """Threads and log levels; the imports here are the worker's slow start."""
    import datasets
    import torch
    import transformers

    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
