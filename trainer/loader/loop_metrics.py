"""What a foreign loop tells of itself, kept until it is time for `status.json`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mixloop.contract import Phase
from mixloop.trainer.config import Job
from mixloop.trainer.run import LossPerSource, SingleProcess, StepMetrics

if TYPE_CHECKING:
    import torch


def phase_at(job: Job, tokens: int, phases: Mapping[str, int] | None = None) -> Phase | None:
    """The learning rate's phase by tokens: `phases` says where each begins, else warm-up and decay.

    None when neither is configured: unknown.
    """
    settings = job.settings
    begins: Mapping[Any, int] | None = phases or settings.phases
    if begins is None:
        if not (settings.warmup or settings.decay):
            return None
        begins = {"warmup": 0, "stable": settings.warmup}
        if settings.decay:
            begins = {**begins, "decay": job.budget - settings.decay}
    order: tuple[Phase, ...] = ("warmup", "stable", "decay")
    warms = "warmup" in begins or begins.get("stable", 0) > 0
    reached: Phase = "warmup" if warms else "stable"
    for name in order:
        if name in begins and tokens >= begins[name]:
            reached = name
    return reached


class Reports:
    """The newest of what was reported; tensors stay where they are until `moment`."""

    def __init__(self, job: Job, names: Sequence[str], phases: Mapping[str, int] | None) -> None:
        self._job = job
        self._names = tuple(names)
        self._phases = phases
        self._loss: Any = None
        self._lr: Any = None
        self._phase: Phase | None = None
        self._grad_norm: Any = None
        self._totals: LossPerSource | None = None
        self._odd = False

    def take(self, loss: Any, lr: Any, phase: Phase | None, grad_norm: Any) -> None:
        """Keep what is given; what is None keeps its last value."""
        self._loss = self._loss if loss is None else _plain(loss)
        self._lr = self._lr if lr is None else lr
        self._phase = phase
        self._grad_norm = self._grad_norm if grad_norm is None else _plain(grad_norm)

    def odd(self, step: int, ours: int) -> bool:
        """Whether the loop counts otherwise than we do; True once."""
        if step in (ours, ours - 1) or self._odd:
            return False
        self._odd = True
        return True

    def add(self, source: npt.NDArray[np.int64], losses: torch.Tensor) -> None:
        """Add losses per sequence, of sequences of the given sources.

        Raises:
            ValueError: as many losses as sequences are wanted.
        """
        losses = losses.detach().reshape(-1)
        if losses.numel() != source.size:
            raise ValueError(
                f"losses: {losses.numel()} values for the {source.size} sequences handed out last; "
                "give one loss per sequence of the micro-batch"
            )
        if self._totals is None:
            self._totals = LossPerSource(len(self._names), losses.device)
        self._totals.add(source.reshape(-1), losses)

    def moment(self, step: int, sample: int, finished: bool) -> StepMetrics:
        """What the status says; this waits for the device."""
        losses: dict[str, float] = {}
        loss = _number(self._loss)
        if self._totals is not None:
            sums, counts = self._totals.take(SingleProcess())
            losses = {self._names[i]: float(sums[i] / counts[i]) for i in np.flatnonzero(counts)}
            if loss is None and counts.sum():
                loss = _number(sums.sum() / counts.sum())
        losses = {name: value for name, value in losses.items() if math.isfinite(value)}
        tokens = sample * self._job.sequence_length
        return StepMetrics(
            step=step,
            sample=sample,
            lr=_number(self._lr),
            phase=self._phase or phase_at(self._job, tokens, self._phases),
            loss=loss,
            grad_norm=_number(self._grad_norm),
            losses=losses,
            finished=finished,
        )


def _plain(value: Any) -> Any:
    """A tensor without its graph."""
    return value.detach() if hasattr(value, "detach") else value


def _number(value: Any) -> float | None:
    """A finite float, or None."""
    if value is None:
        return None
    number = float(value)
    return number if math.isfinite(number) else None
