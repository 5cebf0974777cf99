"""What the ranks of a job say to one another: a few bytes, on a gloo group of their own.

The data order and its switches need only :class:`Collectives`; a foreign training loop may bring
its own (MPI, Ray, a store) instead of :class:`GlooCollectives`.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from mixloop.trainer.config import JobError


class Collectives(Protocol):
    """The other ranks. Every method is collective: all ranks call it at the same point."""

    rank: int
    world: int

    def broadcast(self, values: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Rank 0's `values` on every rank (same shape everywhere)."""

    def sum(self, values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Element-wise sum over the ranks."""

    def any(self, flag: bool) -> bool:
        """Whether any rank's flag is set."""

    def share(self, value: Any) -> Any:
        """Rank 0's picklable `value` on every rank; for the start, not for steps."""

    def collect(self, value: Any) -> list[Any]:
        """Every rank's picklable `value`, by rank; for checkpoints, not for steps."""


class SingleProcess(Collectives):
    """A job of one process."""

    rank = 0
    world = 1

    def broadcast(self, values: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        return values

    def sum(self, values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        return values

    def any(self, flag: bool) -> bool:
        return flag

    def share(self, value: Any) -> Any:
        return value

    def collect(self, value: Any) -> list[Any]:
        return [value]


class GlooCollectives(Collectives):
    """Ranks under `torchrun`; `torch.distributed` must be initialised.

    Args:
        timeout: Seconds in which ranks wait for one another; None: torch's default.
    """

    def __init__(self, timeout: float | None = None) -> None:
        import torch.distributed as dist

        self._dist = dist
        # its own group: a few bytes never queue behind gradients, and the CPU waits for no GPU
        limit = timedelta(seconds=timeout) if timeout is not None else None
        self._group = dist.new_group(backend="gloo", timeout=limit)
        self.rank = dist.get_rank()
        self.world = dist.get_world_size()

    def broadcast(self, values: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        import torch

        tensor = torch.from_numpy(values.copy())
        self._dist.broadcast(tensor, src=0, group=self._group)
        return tensor.numpy()

    def sum(self, values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        import torch

        tensor = torch.from_numpy(values.copy())
        self._dist.all_reduce(tensor, group=self._group)
        return tensor.numpy()

    def any(self, flag: bool) -> bool:
        return bool(self.sum(np.array([float(flag)]))[0])

    def share(self, value: Any) -> Any:
        box = [value]
        self._dist.broadcast_object_list(box, src=0, group=self._group)
        return box[0]

    def collect(self, value: Any) -> list[Any]:
        box: list[Any] = [None] * self.world
        self._dist.all_gather_object(box, value, group=self._group)
        return box


def on_first(peers: Collectives, make: Callable[[], Any]) -> Any:
    """What rank 0 makes, on every rank; its JobError is raised on every rank. Collective."""
    outcome: Any = None
    if peers.rank == 0:
        try:
            outcome = make()
        except JobError as error:
            outcome = error
    outcome = peers.share(outcome)
    if isinstance(outcome, JobError):
        raise outcome
    return outcome
