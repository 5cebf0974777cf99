"""Who may not draw: worker processes, and what would batch the batches or deal them out again."""

from __future__ import annotations

import sys

from mixloop.trainer.config import JobError

DRAWN_HERE = (
    "batches are drawn in the training process, at thousands of times the rate a GPU consumes them"
)


class WorkersError(JobError):
    """Worker processes are asked for.

    torch raises what a worker raised anew in the training process, with the worker's traceback for
    a message; the last line of that is ours.
    """

    def __init__(self, message: str) -> None:
        last = message.strip().splitlines()[-1]
        super().__init__(last.removeprefix(f"{__name__}.{type(self).__name__}: "))


def check_workers(option: str, workers: int) -> None:
    """That no worker processes are asked for.

    Args:
        option: what says how many, as a person would look for it.

    Raises:
        JobError: some are.
    """
    if workers:
        raise WorkersError(f"{option}={workers}: {DRAWN_HERE}; set {option.rpartition(' ')[2]}=0")


def check_drawing_process(who: str) -> None:
    """That batches are asked for in the training process, one by one, and not by accelerate.

    A DataLoader that accelerate has prepared reads on one process for all (`dispatch_batches`), or
    on each for all (`split_batches`, slices), and a batch ahead of the one trained on. One with a
    `batch_size` of its own stacks micro-batches, of several steps too.

    Args:
        who: the class that is asked by our caller's caller, for the message.

    Raises:
        JobError: they are asked for elsewhere, or in another way.
    """
    if "torch.utils.data" in sys.modules:
        from torch.utils.data import get_worker_info

        if (worker := get_worker_info()) is not None:
            check_workers(f"{who}: num_workers", worker.num_workers)
    frame = sys._getframe(1) if "accelerate.data_loader" in sys.modules else None
    while frame is not None:
        if frame.f_globals.get("__name__") == "accelerate.data_loader":
            raise JobError(
                f"{who}: accelerate would deal its batches out a second time (dispatch_batches, "
                "split_batches) and read ahead of the place that is saved; leave the DataLoader "
                "out of accelerator.prepare(): it gives each process its own batches"
            )
        frame = frame.f_back
    fetcher = sys._getframe(2)  # of torch's DataLoader, if that asks
    whole = fetcher.f_globals.get("__name__") != "torch.utils.data._utils.fetch"
    if not whole and fetcher.f_locals.get("auto_collation"):
        raise JobError(
            f"{who}: the DataLoader's batch_size would stack micro-batches, which have their rows "
            "already; set batch_size=None"
        )
