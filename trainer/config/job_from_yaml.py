"""The training job inside a `run.yaml`, for whoever trains.

The controller validates the whole file; a training loop needs `run`, `budget`, `sources` and
`trainer` of it. Both go through :func:`job_from`, so that they mean the same job.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from mixloop.common.errors import BadInput, explain_error
from mixloop.common.yaml import read_sections

from .job import Job, JobError, JobSource
from .trainer_settings import LimitSettings, TrainerSettings


class _Run(BaseModel):
    model_config = ConfigDict(extra="forbid")

    id: str
    dir: Path
    seed: int = 0


class _Trainer(TrainerSettings):
    limits: LimitSettings = LimitSettings()
    tokenizer: Path | None = None


class _Source(JobSource):
    tags: Any = None  # planning is the controller's alone
    tokens: Any = None


class _File(BaseModel):
    """The sections of run.yaml that make a job; others are left alone."""

    model_config = ConfigDict(extra="ignore")

    run: _Run
    budget: Any
    sources: dict[str, _Source]
    trainer: _Trainer = _Trainer()
    evals: dict[str, Any] = {}


def job_from(sections: Mapping[str, Any], base: Path) -> Job:
    """The job that the sections of a run file describe; relative paths are seen from `base`.

    Raises:
        ValidationError: a key is missing, unknown or out of range.
    """
    file = _File.model_validate(sections)
    trainer = file.trainer
    settings = TrainerSettings.model_validate(
        trainer.model_dump(exclude={"limits", "tokenizer"})
        | {
            "init_from": _at(base, trainer.init_from),
            "key_file": _at(base, trainer.key_file),
            "checkpoint_every": trainer.checkpoint_every or file.evals.get("every"),
        }
    )
    return Job(
        run=file.run.id,
        dir=base / file.run.dir,
        seed=file.run.seed,
        budget=file.budget,
        sources={
            name: JobSource(
                **source.model_dump(exclude={"tags", "tokens", "path"}), path=base / source.path
            )
            for name, source in file.sources.items()
        },
        limits=trainer.limits,
        tokenizer=_at(base, trainer.tokenizer),
        settings=settings,
    )


def _at(base: Path, path: Path | None) -> Path | None:
    return None if path is None else base / path


def load_run(path: str | Path) -> Job:
    """The job of a `run.yaml`; relative paths are relative to the file.

    Raises:
        JobError: one line naming the file, the key, the value and what would be right.
    """
    path = Path(path)
    try:
        return job_from(read_sections(path), path.parent.resolve())
    except BadInput as error:
        raise JobError(str(error)) from error
    except ValidationError as error:
        raise JobError(f"{path}: {explain_error(error, _File, Job)}") from error
