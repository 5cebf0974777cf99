"""What a running trainer tells: loss per source, `status.json`, manifests, the trace."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from mixloop.contract import (
    SCALE,
    AcceptedOrder,
    FileEntry,
    Health,
    Manifest,
    OrderInForce,
    PendingOrder,
    Phase,
    SourceLedger,
    SourceStatus,
    Status,
    System,
)
from mixloop.trainer.mixing import SourceVersions, passes

from .collectives import Collectives
from .order_inbox import OrderState, Switch

if TYPE_CHECKING:
    import torch


Floats = npt.NDArray[np.float64]


def now_utc() -> str:
    """The time as `2026-11-24T18:00:00Z`, for people; nothing compares it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class LossPerSource:
    """Loss per source since the last look, summed on the device without waiting for it."""

    def __init__(self, sources: int, device: torch.device) -> None:
        import torch

        self._losses = torch.zeros(sources, dtype=torch.float64, device=device)
        self._counts = np.zeros(sources, dtype=np.float64)

    def add(self, source: npt.NDArray[np.int64], losses: torch.Tensor) -> None:
        """Add the losses [rows] of sequences of the given sources [rows]."""
        import torch

        where = torch.from_numpy(source).to(losses.device)
        self._losses.index_add_(0, where, losses.double())
        self._counts += np.bincount(source, minlength=len(self._counts))

    def take(self, peers: Collectives) -> tuple[Floats, Floats]:
        """Sums of loss and sequences per source over all ranks, and start anew; collective."""
        both = np.stack([self._losses.cpu().numpy(), self._counts])
        self._losses.zero_()
        self._counts[:] = 0
        sums, counts = peers.sum(both)
        return sums, counts


@dataclass(frozen=True)
class StepMetrics:
    """What the loop knows at a status step; `system` reads the machine, given tokens per second."""

    step: int
    sample: int
    lr: float | None
    phase: Phase | None
    loss: float | None
    grad_norm: float | None
    losses: Mapping[str, float]
    finished: bool = False
    health: Health | None = None
    system: Callable[[float | None], System] | None = None


class StatusBuilder:
    """Words a rank-0 trainer's state as status and manifest.

    Args:
        quantum: samples of a step by its first sample.
        sizes: samples of each source's store; unique tokens are `unique`.
        versions: where the epochs of every source begin, also of those that the job no longer has.
    """

    def __init__(
        self,
        run: str,
        budget: int,
        incarnation: int,
        sequence_length: int,
        quantum: Callable[[int], int],
        world: int,
        sizes: Mapping[str, int],
        unique: Mapping[str, int],
        sample: int,
        versions: Mapping[str, SourceVersions],
    ) -> None:
        self._run = run
        self._budget = budget
        self._incarnation = incarnation
        self._length = sequence_length
        self._quantum = quantum
        self._world = world
        self._sizes = sizes
        self._unique = unique
        self._versions = versions
        self._losses: dict[str, float] = {}
        self._heartbeat = 0
        self._last = (time.monotonic(), sample)
        self.speed: float | None = None

    def status(self, moment: StepMetrics, drawn: Mapping[str, int], view: OrderState) -> Status:
        """The next heartbeat."""
        self._losses.update(moment.losses)
        self._heartbeat += 1
        self._pace(moment.sample)
        return Status(
            run=self._run,
            incarnation=self._incarnation,
            pid=os.getpid(),
            host=socket.gethostname(),
            step=moment.step,
            sample=moment.sample,
            tokens=moment.sample * self._length,
            budget=self._budget,
            lr=moment.lr,
            phase=moment.phase,
            loss=moment.loss,
            grad_norm=moment.grad_norm,
            tokens_per_second=self.speed,
            sources=self._sources(drawn),
            accepted=AcceptedOrder(*view.accepted),
            in_force=self._in_force(view.in_force),
            pending=_pending(view.pending),
            rejected=view.rejected,
            world_size=self._world,
            heartbeat=self._heartbeat,
            finished=moment.finished,
            updated_at=now_utc(),
            health=moment.health,
            system=moment.system(self.speed) if moment.system is not None else None,
        )

    def manifest(
        self,
        moment: StepMetrics,
        drawn: Mapping[str, int],
        view: OrderState,
        files: Mapping[str, FileEntry],
    ) -> Manifest:
        """The manifest of a checkpoint made now."""
        return Manifest(
            run=self._run,
            step=moment.step,
            sample=moment.sample,
            tokens=moment.sample * self._length,
            phase=moment.phase,
            in_force=self._in_force(view.in_force),
            sources={
                name: SourceLedger(source.tokens, source.epochs)
                for name, source in self._sources(drawn).items()
            },
            incarnation=self._incarnation,
            sequence_length=self._length,
            quantum=self._quantum(moment.sample),
            files=dict(files),
            created_at=now_utc(),
        )

    def _pace(self, sample: int) -> None:
        now, (then, before) = time.monotonic(), self._last
        if sample > before and now > then:
            self.speed = (sample - before) * self._length / (now - then)
            self._last = (now, sample)

    def _sources(self, drawn: Mapping[str, int]) -> dict[str, SourceStatus]:
        return {
            name: SourceStatus(
                tokens=count * self._length,
                epochs=passes(self._versions[name], count),
                unique_tokens=self._unique_tokens(name),
                loss=self._losses.get(name),
            )
            for name, count in drawn.items()
        }

    def _unique_tokens(self, name: str) -> int:
        """Of a source that the job no longer has, as far as it was ever drawn from."""
        return self._unique.get(name, self._versions[name][-1].size * self._length)

    def _in_force(self, switch: Switch) -> OrderInForce:
        shares = {n: w / SCALE for n, w in zip(self._sizes, switch.weights, strict=True)}
        return OrderInForce(switch.fence, switch.generation, switch.sample, switch.step, shares)


def _pending(switch: Switch | None) -> PendingOrder | None:
    if switch is None:
        return None
    return PendingOrder(switch.fence, switch.generation, switch.sample)
