"""Warm-up, stable, decay (WSD): the learning rate as a pure function of tokens.

Hu et al. 2024 (MiniCPM) for the schedule; Hägele et al. 2024 for the 1-sqrt decay.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from mixloop.trainer.contract import Phase
from mixloop.trainer.job import Job, JobError


@dataclass(frozen=True)
class WarmupStableDecay:
    """Learning rate over a budget; all extents in tokens."""

    peak: float
    floor: float
    budget: int
    warmup: int
    decay: int
    shape: Literal["linear", "1-sqrt"] = "linear"

    @classmethod
    def of(cls, job: Job) -> WarmupStableDecay:
        """The schedule of a job.

        Raises:
            JobError: warm-up and decay together exceed the budget.
        """
        settings = job.settings
        if settings.warmup + settings.decay > job.budget:
            raise JobError(
                f"settings: warmup {settings.warmup:,} and decay {settings.decay:,} tokens "
                f"together exceed the budget of {job.budget:,}"
            )
        return cls(
            peak=settings.learning_rate,
            floor=settings.min_learning_rate,
            budget=job.budget,
            warmup=settings.warmup,
            decay=settings.decay,
            shape=settings.decay_shape,
        )

    def phase(self, tokens: float) -> Phase:
        """Phase at a token count."""
        if tokens < self.warmup:
            return "warmup"
        return "decay" if tokens >= self.budget - self.decay and self.decay else "stable"

    def rate(self, start: int, end: int) -> float:
        """Learning rate of a step that takes the run from `start` to `end` tokens.

        Taken at the step's middle, so neither the first nor the last step is wasted at zero.
        """
        tokens = (start + end) / 2
        phase = self.phase(tokens)
        if phase == "warmup":
            return self.peak * tokens / self.warmup
        if phase == "stable":
            return self.peak
        done = min(1.0, (tokens - (self.budget - self.decay)) / self.decay)
        left = 1 - done if self.shape == "linear" else 1 - math.sqrt(done)
        return self.floor + (self.peak - self.floor) * left
