"""The learning rate as a pure function of tokens: warm-up/stable/decay, or cosine.

Hu et al. 2024 (MiniCPM) for WSD; Hägele et al. 2024 for its 1-sqrt decay; Loshchilov and Hutter
2017 (SGDR, without restarts) for the cosine.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from mixloop.contract import Phase

from .job import JobError
from .trainer_settings import TrainerSettings


@dataclass(frozen=True)
class LearningRate:
    """Learning rate over a budget: linear warm-up, `peak`, decay to `floor`; extents in tokens.

    A cosine decays from the end of the warm-up on, and its phase says so from the first token,
    because a part of every gain between two checkpoints comes from annealing. Guards give no credit
    for such gains; who accepts them writes `guards: {decay: allow}`.
    """

    peak: float
    floor: float
    budget: int
    warmup: int
    decay: int
    shape: Literal["linear", "1-sqrt", "cosine"] = "linear"

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
        if self.shape == "linear":
            left = 1 - done
        elif self.shape == "1-sqrt":
            left = 1 - math.sqrt(done)
        else:
            left = (1 + math.cos(math.pi * done)) / 2
        return self.floor + (self.peak - self.floor) * left


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
    peak, floor, warmup = settings.learning_rate, settings.min_learning_rate, settings.warmup
    if settings.lr_schedule == "cosine":
        return LearningRate(peak, floor, budget, warmup, max(1, budget - warmup), "cosine")
    return LearningRate(peak, floor, budget, warmup, settings.decay, settings.decay_shape)
