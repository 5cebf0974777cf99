"""The learning rate as a pure function of tokens: warm-up/stable/decay, or cosine.

Hu et al. 2024 (MiniCPM) for WSD; Hägele et al. 2024 for its 1-sqrt decay; Loshchilov and Hutter
2017 (SGDR, without restarts) for the cosine.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from mixloop.contract import Phase

from .job import Job, JobError
from .trainer_settings import TrainerSettings


@dataclass(frozen=True)
class WarmupStableDecay:
    """Learning rate over a budget; all extents in tokens."""

    peak: float
    floor: float
    budget: int
    warmup: int
    decay: int
    shape: Literal["linear", "1-sqrt"] = "linear"

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


@dataclass(frozen=True)
class Cosine:
    """Linear warm-up, then half a cosine from `peak` to `floor` at the budget; in tokens.

    After the warm-up its phase is `decay`, from the first token on, because that is what the rate
    does: a part of every gain between two checkpoints comes from annealing. Guards give no credit
    for such gains; who accepts them writes `guards: {decay: allow}`.
    """

    peak: float
    floor: float
    budget: int
    warmup: int

    def phase(self, tokens: float) -> Phase:
        """Phase at a token count: `warmup`, then `decay`."""
        return "warmup" if tokens < self.warmup else "decay"

    def rate(self, start: int, end: int) -> float:
        """Learning rate of a step from `start` to `end` tokens, taken at its middle."""
        tokens = (start + end) / 2
        if tokens < self.warmup:
            return self.peak * tokens / self.warmup
        done = min(1.0, (tokens - self.warmup) / max(1, self.budget - self.warmup))
        return self.floor + (self.peak - self.floor) * (1 + math.cos(math.pi * done)) / 2


LearningRate = WarmupStableDecay | Cosine


def learning_rate(settings: TrainerSettings, budget: int) -> LearningRate:
    """The schedule that the settings ask for, over a budget of tokens.

    Raises:
        JobError: warm-up and decay together exceed the budget.
    """
    if settings.warmup + settings.decay > budget:
        raise JobError(
            f"settings: warmup {settings.warmup:,} and decay {settings.decay:,} tokens "
            f"together exceed the budget of {budget:,}"
        )
    peak, floor = settings.learning_rate, settings.min_learning_rate
    if settings.lr_schedule == "cosine":
        return Cosine(peak, floor, budget, settings.warmup)
    return WarmupStableDecay(
        peak, floor, budget, settings.warmup, settings.decay, settings.decay_shape
    )


def learning_rate_of(job: Job) -> LearningRate:
    """The schedule of a job.

    Raises:
        JobError: warm-up and decay together exceed the budget.
    """
    return learning_rate(job.settings, job.budget)
