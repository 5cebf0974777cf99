"""A job from a loader's arguments."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from mixloop.common.errors import explain_error

from .job import Job, JobError, JobSource
from .trainer_settings import LimitSettings, TrainerSettings

_SETTINGS = (
    "sequence_length", "micro_batch", "accumulation", "prefetch", "poll_every", "status_every",
    "phases", "accept_uid", "key_file", "batch", "batch_schedule",
)  # fmt: skip
_MODELS = (Job, JobSource, LimitSettings, TrainerSettings)


def make_job(
    folder: str | Path,
    run: str,
    sources: Mapping[str, Any],
    budget: int | str,
    weights: Mapping[str, float] | None,
    seed: int,
    limits: Mapping[str, float] | LimitSettings | None,
    **settings: Any,
) -> Job:
    """The job that a loader's arguments describe.

    Raises:
        JobError: one line naming the argument, the value and what would be right.
    """
    if weights is not None and (unknown := [name for name in weights if name not in sources]):
        raise JobError(f"weights.{unknown[0]}: no such source; known: {', '.join(sources)}")
    try:
        return Job(
            run=run,
            dir=Path(folder),
            seed=seed,
            budget=budget,
            sources={name: _source(name, source, weights) for name, source in sources.items()},
            limits=LimitSettings.model_validate(limits or {}),
            settings=TrainerSettings.model_validate(settings),
        )
    except ValidationError as error:
        raise JobError(explain_error(error, *_MODELS)) from error


def _source(name: str, source: Any, weights: Mapping[str, float] | None) -> JobSource:
    """A source from a path or a mapping, with its share."""
    if isinstance(source, JobSource):
        source = source.model_dump(exclude_unset=True)
    body = dict(source) if isinstance(source, Mapping) else {"path": source}
    if weights is not None:
        share = weights.get(name, 0.0)
        body |= {"weight": share or None, "standby": not share}
    return JobSource.model_validate(body)


def with_settings(job: Job, options: Mapping[str, Any]) -> Job:
    """The job with some of its settings, or its limits, replaced.

    Raises:
        JobError: an unknown option or a value out of range.
    """
    options = dict(options)
    if "limits" in options:
        limits = options.pop("limits")
        if limits is not None:
            job = job.model_copy(update={"limits": LimitSettings.model_validate(limits)})
    if unknown := [name for name in options if name not in _SETTINGS]:
        raise JobError(f"{unknown[0]}: no such option; known: {', '.join(_SETTINGS)}, limits")
    try:
        settings = TrainerSettings.model_validate(job.settings.model_dump() | options)
    except ValidationError as error:
        raise JobError(explain_error(error, TrainerSettings)) from error
    return job.model_copy(update={"settings": settings})
