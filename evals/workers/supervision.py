"""What a scoring process is under: its environment, its memory limit, its input's other end.

Both watches must see while the main thread is deep in a model, and neither may need the process
that started the worker: under a launcher's command that one can be on another machine.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import sys
import threading
from collections.abc import Callable

from mixloop.common.process import resident
from mixloop.evals import EvalSettings

POLL_SECONDS = 0.2
_GRACE_SECONDS = 5.0  # what an orderly end may take


def set_up_process(settings: EvalSettings, too_large: Callable[[str], None]) -> None:
    """Environment, memory limit, threads and log levels, in this order.

    The environment is set before the numerical libraries are imported, which is a worker's slow
    start: quiet, and off the hub unless it is asked.

    Args:
        settings: The run's; `memory` is the limit, None: none.
        too_large: Called with the reason, from a thread of its own, once more memory is held.
    """
    os.environ |= _environment(settings)
    if settings.memory is not None:
        _watch_memory(settings.memory, too_large)
    import datasets
    import torch
    import transformers

    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    logging.getLogger("lm_eval").setLevel(logging.ERROR)


def _environment(settings: EvalSettings) -> dict[str, str]:
    environment = {
        "TOKENIZERS_PARALLELISM": "false",
        "TQDM_DISABLE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "USE_HUB_KERNELS": "0",  # code that a model's config may ask for
        # threads that spin while they wait for one whose processor is taken by the trainer make
        # everything many times slower
        "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "PASSIVE"),
    }
    if settings.threads is not None:
        environment["OMP_NUM_THREADS"] = environment["MKL_NUM_THREADS"] = str(settings.threads)
    if all(asked.data not in ("auto", "hub") for asked in settings.asked.values()):
        environment["HF_HUB_OFFLINE"] = "1"
    return environment


def _watch_memory(limit: int, too_large: Callable[[str], None]) -> None:
    def look() -> str | None:
        held = round((resident() or 0.0) * 1e9)
        if held <= limit:
            return None
        return f"the worker held {held} bytes of memory, more than {limit}"

    _watch(look, too_large)


def watch_input(descriptor: int) -> None:
    """Ends this process when nobody can write to its input any more."""
    poll = select.poll()
    poll.register(descriptor, 0)  # a hang-up is always told

    def look() -> str | None:
        return "gone" if any(event & select.POLLHUP for _, event in poll.poll(0)) else None

    _watch(look, lambda _: end_process())


def _watch(look: Callable[[], str | None], then: Callable[[str], None]) -> None:
    def run() -> None:
        never = threading.Event()
        while (reason := look()) is None:
            never.wait(POLL_SECONDS)
        then(reason)

    threading.Thread(target=run, daemon=True).start()


def end_process() -> None:
    """Ends this process from any thread.

    As a request first (see `end_on_request`), so that what it wrote and started is tidied up, and
    for certain some seconds later.
    """
    os.kill(os.getpid(), signal.SIGTERM)
    threading.Event().wait(_GRACE_SECONDS)
    os._exit(0)


def end_on_request() -> None:
    """Makes SIGTERM an orderly end: what is being done is left through its `finally`s."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
