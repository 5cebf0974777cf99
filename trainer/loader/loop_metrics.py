"""What a foreign loop tells of itself, kept until it is time for `status.json`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import numpy.typing as npt

from mixloop.contract import Phase
from mixloop.trainer.config import Job
from mixloop.trainer.run import LossPerSource, SingleProcess, StepMetrics

if TYPE_CHECKING:
    import torch


def phase_at(job: Job, tokens: int) -> Phase | None:
    """The learning rate's phase by tokens: `phases` says where each begins, else warm-up and decay.

    None when neither is configured: unknown.
    """
    settings = job.settings
    begins: Mapping[Any, int] | None = settings.phases
    if begins is None:
        if not (settings.warmup or settings.decay):
            return None
        decay = {"decay": job.budget - settings.decay} if settings.decay else {}
        begins = {"warmup": 0, "stable": settings.warmup, **decay}
    warms = "warmup" in begins or begins.get("stable", 0) > 0
    reached: Phase = "warmup" if warms else "stable"
    for phase in get_args(Phase):
        if phase in begins and tokens >= begins[phase]:
            reached = phase
    return reached


class LoopMetrics:
    """The newest of what was reported; tensors stay where they are until `at`."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._loss: Any = None
        self._lr: Any = None
        self._phase: Phase | None = None
        self._grad_norm: Any = None
        self._per_source: LossPerSource | None = None
        self._miscounted = False

    def update(self, loss: Any, lr: Any, phase: Phase | None, grad_norm: Any) -> None:
        """Keep what is given; what is None keeps its last value, but for the phase."""
        self._loss = self._loss if loss is None else _detached(loss)
        self._lr = self._lr if lr is None else lr
        self._phase = phase
        self._grad_norm = self._grad_norm if grad_norm is None else _detached(grad_norm)

    def miscounts(self, step: int, ours: int) -> bool:
        """Whether the loop counts its steps otherwise than we do; True once."""
        if step in (ours, ours - 1) or self._miscounted:
            return False
        self._miscounted = True
        return True

    def add_losses(self, source: npt.NDArray[np.int64], losses: torch.Tensor) -> None:
        """Add losses per sequence, of sequences of the given sources [sequences].

        Raises:
            ValueError: as many losses as sequences are wanted.
        """
        losses = losses.detach().reshape(-1)
        if losses.numel() != source.size:
            raise ValueError(
                f"losses: {losses.numel()} values for the {source.size} sequences handed out last; "
                "give one loss per sequence of the micro-batch"
            )
        if self._per_source is None:
            self._per_source = LossPerSource(len(self._job.sources), losses.device)
        self._per_source.add(source, losses)

    def at(self, step: int, sample: int, finished: bool, resumable: bool) -> StepMetrics:
        """What the status says at a step; this waits for the device."""
        losses: dict[str, float] = {}
        loss = _finite(self._loss)
        if self._per_source is not None:
            sums, counts = self._per_source.take(SingleProcess())
            names = list(self._job.sources)
            losses = {names[i]: float(sums[i] / counts[i]) for i in np.flatnonzero(counts)}
            if loss is None and counts.sum():
                loss = _finite(sums.sum() / counts.sum())
        tokens = sample * self._job.sequence_length
        return StepMetrics(
            step=step,
            sample=sample,
            lr=_finite(self._lr),
            phase=self._phase or phase_at(self._job, tokens),
            loss=loss,
            grad_norm=_finite(self._grad_norm),
            losses={name: value for name, value in losses.items() if math.isfinite(value)},
            finished=finished,
            resumable=resumable,
        )


def _detached(value: Any) -> Any:
    """A tensor without its graph."""
    return value.detach() if hasattr(value, "detach") else value


def _finite(value: Any) -> float | None:
    """A finite float, or None."""
    if value is None:
        return None
    number = float(value)
    return number if math.isfinite(number) else None
