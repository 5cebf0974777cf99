"""Which proposals a person has to approve first. Pure.

What counts is the change that was *asked* for, before the trust region trims it: ten small steps
towards a mixture that nobody wants are asked for once.


The ``search:`` section of run.yaml, and the plan of a search that follows from it. Pure.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from mixloop.common.units import Tokens
from mixloop.trainer.config import ModelSettings

Share = Annotated[float, Field(ge=0, le=1)]


class ApprovalSection(BaseModel):
    """When a person decides. Nothing given: never."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    above: Share | None = Field(
        None, description="total variation of the requested change above which a person decides"
    )
    sources: dict[str, Share] = Field(
        default_factory=dict,
        description="per source, the change of its share above which a person decides",
    )
    timeout: Tokens | None = Field(
        None,
        description="training tokens a proposal waits before it expires and the mixture is held; "
        "default: until the next proposal",
    )


class SearchSection(BaseModel):
    """Proxy runs of the reference trainer that look for a starting mixture."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    dir: Path | None = Field(None, description="its folder; default: search in the run folder")
    tokens: Tokens | None = Field(None, description="training tokens of one proxy")
    trials: int | None = Field(None, ge=3, description="proxies; default: 3 (sources + 1)")
    workers: int = Field(1, ge=1, description="proxies that train side by side")
    rungs: int = Field(2, ge=1, le=6, description="times a proxy is scored, its end included")
    reduction: int = Field(2, ge=2, description="of proxies at a rung, one in this many goes on")
    model: ModelSettings | None = Field(None, description="the proxies' model; default: the run's")
    learning_rate: float | None = Field(None, gt=0, description="default: the run's")
    micro_batch: int | None = Field(None, gt=0, description="default: the run's")
    threads: int | None = Field(None, gt=0, description="of one proxy; default: the run's")

    def at(self, base: Path) -> SearchSection:
        """The same with its folder absolute, seen from ``base``."""
        return self.model_copy(update={"dir": base / self.dir if self.dir else None})


@dataclass(frozen=True)
class SearchPlan:
    """What a search will do.

    ``ratio`` is a proxy's length over the target's (the run's, or what is left of it after the
    checkpoint): every source is subsampled to this share of its tokens, so that a mixture repeats
    it as often in a proxy as it would in the target. ``unique`` are the subsamples' tokens.
    """

    folder: Path
    tokens: int
    target: int
    trials: int
    workers: int
    rungs: tuple[int, ...]
    reduction: int
    ratio: float
    unique: Mapping[str, int]
    sizes: Mapping[str, int]
    most: Mapping[str, float]
    start: Mapping[str, float]
    importance: Mapping[str, float]
    seed: int
    checkpoint: Path | None = None

    def epochs(self) -> dict[str, tuple[float, float]]:
        """Per source, epochs under the starting mixture: of the target, and of a proxy."""
        return {
            name: (
                self.start[name] * self.target / self.sizes[name],
                self.start[name] * self.tokens / self.unique[name],
            )
            for name in self.unique
        }

    def cost(self) -> tuple[int, int]:
        """Training tokens of all proxies: when halving stops as many as it may, and without."""
        kept, total, before = float(self.trials), 0.0, 0
        for rung in self.rungs:
            total += kept * (rung - before)
            kept, before = max(1.0, kept / self.reduction), rung
        return round(total), self.trials * self.tokens

    def identity(self) -> dict[str, Any]:
        """What must not change while a search goes on: its trials would not compare."""
        return {
            "tokens": self.tokens,
            "target": self.target,
            "rungs": list(self.rungs),
            "reduction": self.reduction,
            "unique": dict(self.unique),
            "start": dict(self.start),
            "objective": dict(self.importance),
            "checkpoint": str(self.checkpoint) if self.checkpoint is not None else None,
            "seed": self.seed,
        }


def rungs_of(tokens: int, rungs: int, reduction: int) -> tuple[int, ...]:
    """Tokens at which a proxy is scored: its length, and that divided by the reduction, earlier."""
    return tuple(max(1, tokens // reduction**left) for left in reversed(range(rungs)))


def subsampled(size: int, ratio: float, window: int) -> int:
    """Tokens of a source's subsample: the ratio's, in whole windows, one at least."""
    whole = size // window
    return window * min(whole, max(1, math.floor(size * ratio / window + 0.5)))
