"""What a training job is: the reference trainer's settings and `job.json`.

Light on purpose (pydantic only): the controller embeds :class:`TrainerSettings` in `run.yaml` and
writes the :class:`Job` that ``python -m mixloop.trainer.train JOB.json`` carries out.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidationError

from mixloop.common.errors import explain_error
from mixloop.common.files import LARGEST_JSON, read_whole
from mixloop.common.units import Tokens

from .trainer_settings import LimitSettings, StrictModel, TrainerSettings

SUM_TOLERANCE = 1e-6
"""How far from 1 the weights of a mixture may sum."""


class JobError(ValueError):
    """A job that cannot start; the message is one line for a person (exit code 2)."""


def _at_least_one(budget: int) -> int:
    if budget == 0:
        raise ValueError("the budget is 0 tokens: give at least one")
    return budget


Budget = Annotated[Tokens, AfterValidator(_at_least_one)]
"""Tokens of a whole run."""


class JobSource(StrictModel):
    """Where a source lies and its share at the start (`standby` waits at weight 0).

    `format` is found out from the files. `eos_id` is the id that ends a document, `column` the one
    of an arrow dataset that holds the ids, `dtype` the width of a datatrove folder's ids where it
    has no metadata.
    """

    path: Path
    weight: float | None = Field(None, ge=0.0, le=1.0)
    standby: bool = False
    format: Literal["auto", "store", "megatron", "datatrove", "arrow"] = "auto"
    eos_id: int | None = Field(None, ge=0)
    column: str | None = None
    dtype: Literal["uint16", "uint32"] | None = None

    @property
    def options(self) -> dict[str, Any]:
        """What `open_source` is told besides the path."""
        return self.model_dump(include={"format", "eos_id", "column", "dtype"})


class Job(StrictModel):
    """One training job, `job.json`. Relative paths are relative to the working directory."""

    run: str = Field(min_length=1)
    dir: Path
    seed: int = Field(0, ge=0, lt=2**63)
    budget: Budget
    sources: dict[str, JobSource] = Field(min_length=1)
    limits: LimitSettings = LimitSettings()
    tokenizer: Path | None = None
    settings: TrainerSettings = TrainerSettings()

    @property
    def sequence_length(self) -> int:
        """Tokens of a sample."""
        return self.settings.sequence_length


def start_weights(sources: Mapping[str, JobSource], sizes: Mapping[str, int]) -> dict[str, float]:
    """The configured first mixture, by source, in their order; sums to 1.

    Args:
        sources: the job's.
        sizes: size of each source's store (any unit), used when no weight is given at all.

    Raises:
        JobError: weights that don't sum to 1, are missing in part, or a standby with weight.
    """
    for name, source in sources.items():
        if source.standby and source.weight:
            raise JobError(
                f"sources.{name}: weight {source.weight:g} on a standby source; drop one of the two"
            )
    active = {name: source for name, source in sources.items() if not source.standby}
    if not active:
        raise JobError("sources: all are standby, so there is nothing to train on")
    weights = {name: s.weight for name, s in active.items() if s.weight is not None}
    if not weights:
        total = sum(sizes[name] for name in active)
        return {name: sizes[name] / total if name in active else 0.0 for name in sources}
    if absent := [name for name in active if name not in weights]:
        raise JobError(
            f"sources.{absent[0]}: no weight though others have one; "
            "give every source a weight, or none, or mark it standby"
        )
    total_weight = math.fsum(weights.values())
    if abs(total_weight - 1) > SUM_TOLERANCE:
        listed = ", ".join(f"{name} {weight:g}" for name, weight in weights.items())
        raise JobError(
            f"sources: the weights sum to {total_weight:.6g}, not 1 ({listed}); "
            f"change them by {1 - total_weight:+.6g} in all"
        )
    return {name: weights.get(name, 0.0) / total_weight for name in sources}


def load_job(path: Path) -> Job:
    """Read `job.json`.

    Raises:
        JobError: one line naming the file, the key, the value and what would be right.
    """
    try:
        raw: Any = json.loads(read_whole(path, LARGEST_JSON))
        return Job.model_validate(raw)
    except OSError as error:
        raise JobError(f"{path}: {error.strerror or error}") from error
    except ValidationError as error:
        raise JobError(f"{path}: {explain_error(error, Job)}") from error
    except ValueError as error:
        raise JobError(f"{path}: not JSON: {error}") from error
