"""What a running trainer tells: losses by source, `status.json`, manifests."""

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
    FailedCheckpoint,
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
from .resume import Incarnation, ResumePlan

if TYPE_CHECKING:
    import torch


Floats = npt.NDArray[np.float64]


def now_utc() -> str:
    """The time as `2026-11-24T18:00:00Z`, for people; nothing compares it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class LossPerSource:
    """Losses by source since the last `take`, summed on the device without waiting for it."""

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
    resumable: bool = False
    health: Health | None = None
    system: Callable[[float | None], System] | None = None
    failed_checkpoint: FailedCheckpoint | None = None


def ledger(
    drawn: Mapping[str, int],
    versions: Mapping[str, SourceVersions],
    sequence_length: int,
    losses: Mapping[str, float],
) -> dict[str, SourceStatus]:
    """What every source has given.

    Args:
        drawn: samples of each.
        versions: where the epochs of each begin.
        sequence_length: tokens of a sample.
        losses: of a source, where it is known.
    """
    return {
        name: SourceStatus(
            tokens=count * sequence_length,
            epochs=passes(versions[name], count),
            unique_tokens=versions[name][-1].size * sequence_length,
            loss=losses.get(name),
        )
        for name, count in drawn.items()
    }


class StatusBuilder:
    """Words a rank-0 trainer's state as status and manifest.

    Args:
        plan: what the incarnation began from.
        start: the incarnation; it knows also the sources that the job no longer has.
    """

    def __init__(self, plan: ResumePlan, start: Incarnation) -> None:
        self._job = plan.job
        self._world = plan.world
        self._incarnation = start.incarnation
        self._batch_schedule = start.batch_schedule
        self._versions = start.order(plan.job.seed).versions
        self._losses: dict[str, float] = {}
        self._heartbeat = 0
        self._last = (time.monotonic(), plan.sample)
        self.speed: float | None = None

    def status(self, metrics: StepMetrics, drawn: Mapping[str, int], orders: OrderState) -> Status:
        """The next heartbeat."""
        self._losses.update(metrics.losses)
        self._heartbeat += 1
        self._pace(metrics.sample)
        pending = orders.pending
        return Status(
            run=self._job.run,
            incarnation=self._incarnation,
            pid=os.getpid(),
            host=socket.gethostname(),
            step=metrics.step,
            sample=metrics.sample,
            tokens=metrics.sample * self._job.sequence_length,
            budget=self._job.budget,
            lr=metrics.lr,
            phase=metrics.phase,
            loss=metrics.loss,
            grad_norm=metrics.grad_norm,
            tokens_per_second=self.speed,
            sources=self._sources(drawn),
            accepted=AcceptedOrder(*orders.accepted),
            in_force=self._in_force(orders.in_force),
            pending=None
            if pending is None
            else PendingOrder(pending.fence, pending.generation, pending.sample),
            rejected=orders.rejected,
            world_size=self._world,
            heartbeat=self._heartbeat,
            finished=metrics.finished,
            resumable=metrics.resumable,
            updated_at=now_utc(),
            health=metrics.health,
            system=metrics.system(self.speed) if metrics.system is not None else None,
            failed_checkpoint=metrics.failed_checkpoint,
        )

    def manifest(
        self,
        metrics: StepMetrics,
        drawn: Mapping[str, int],
        orders: OrderState,
        files: Mapping[str, FileEntry],
    ) -> Manifest:
        """The manifest of a checkpoint made now."""
        sources = self._sources(drawn).items()
        return Manifest(
            run=self._job.run,
            step=metrics.step,
            sample=metrics.sample,
            tokens=metrics.sample * self._job.sequence_length,
            phase=metrics.phase,
            in_force=self._in_force(orders.in_force),
            sources={name: SourceLedger(source.tokens, source.epochs) for name, source in sources},
            incarnation=self._incarnation,
            sequence_length=self._job.sequence_length,
            quantum=self._batch_schedule.at(metrics.sample),
            files=dict(files),
            created_at=now_utc(),
        )

    def _pace(self, sample: int) -> None:
        now, (then, before) = time.monotonic(), self._last
        if sample > before and now > then:
            self.speed = (sample - before) * self._job.sequence_length / (now - then)
            self._last = (now, sample)

    def _sources(self, drawn: Mapping[str, int]) -> dict[str, SourceStatus]:
        length = self._job.sequence_length
        return ledger(drawn, self._versions, length, self._losses)

    def _in_force(self, switch: Switch) -> OrderInForce:
        weights = zip(self._job.sources, switch.weights, strict=True)
        shares = {name: units / SCALE for name, units in weights}
        return OrderInForce(switch.fence, switch.generation, switch.sample, switch.step, shares)
