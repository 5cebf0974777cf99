"""Loss spikes and gradients that are not finite: noticed and counted. Pure; no torch.

A loss is a spike when it lies more than `threshold` robust standard deviations above the median of
the steps before it, the deviation being 1.4826 times the median absolute deviation (Rousseeuw and
Croux 1993): one wild step moves neither, as it would mean and variance.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import asdict, replace
from statistics import median
from typing import Any

from mixloop.contract import Health

_NORMAL = 1.4826
"""Standard deviations of a normal distribution per median absolute deviation."""
_MIN_STEPS = 16
"""Steps before there is a range to leave."""
_RESOLUTION = 1e-3
"""Least deviation as a part of the median: below it a loss that stands still has no range."""


class SpikeDetector:
    """Follows the loss step by step; the same on every rank, which all feed it the same.

    Args:
        threshold: robust standard deviations above the median that make a spike; None: none does.
        window: steps that the median is taken over.
    """

    def __init__(self, threshold: float | None, window: int) -> None:
        self.health = Health()
        self.streak = 0
        self._threshold = threshold
        self._losses: deque[float] = deque(maxlen=window)
        self._spiking = False

    def add(self, step: int, loss: float, skipped: bool) -> str | None:
        """Take in a step; what a person should hear of it, if anything.

        Args:
            step: optimizer steps done, this one included.
            loss: mean over the step's sequences, nats per token; may be NaN.
            skipped: its gradient was not finite and the optimizer step was left out.
        """
        if skipped or not math.isfinite(loss):
            return self._not_finite(step, loss, skipped)
        self.streak = 0
        excess = self._excess(loss)
        note = None
        if excess is not None and not self._spiking:
            note = (
                f"step {step}: loss {loss:.4f} is a spike, {excess:.1f} deviations above the "
                f"median {median(self._losses):.4f} of the last {len(self._losses)} steps"
            )
            self.health = replace(
                self.health, spikes=self.health.spikes + 1, last_spike_step=step, note=note
            )
        self._spiking = excess is not None
        # kept among them: a level that stays is the new range after half a window
        self._losses.append(loss)
        return note

    def forget(self) -> None:
        """The mixture changed: what the loss was before is no measure of what it should be."""
        self._losses.clear()
        self._spiking = False

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps, in plain values."""
        return asdict(self.health) | {"losses": list(self._losses)}

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint's `state`."""
        health = dict(state)
        self._losses.extend(health.pop("losses"))
        self.health = Health(**health)

    def _not_finite(self, step: int, loss: float, skipped: bool) -> str | None:
        self.streak += 1
        what = "the gradient is not finite: optimizer step skipped" if skipped else f"loss {loss}"
        note = f"step {step}: {what} ({self.streak} in a row)"
        self.health = replace(
            self.health, nan_steps=self.health.nan_steps + 1, last_nan_step=step, note=note
        )
        return note if self.streak == 1 else None

    def _excess(self, loss: float) -> float | None:
        """Robust standard deviations above the median, where they make a spike."""
        if self._threshold is None or len(self._losses) < _MIN_STEPS:
            return None
        centre = median(self._losses)
        spread = _NORMAL * median(abs(other - centre) for other in self._losses)
        excess = (loss - centre) / max(spread, _RESOLUTION * abs(centre), 1e-12)
        return excess if excess > self._threshold else None
