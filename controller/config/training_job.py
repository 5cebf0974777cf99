"""The training job that a run.yaml describes, the same that a foreign loop reads from it."""

from __future__ import annotations

from pathlib import Path

from mixloop.trainer.config import Job, job_from

from .run_yaml import RunConfig


def job_of(config: RunConfig) -> Job:
    """The job of a run whose paths are absolute, as :func:`load_config` makes them."""
    sections = config.model_dump(include={"run", "budget", "sources", "trainer"})
    return job_from(sections | {"evals": {"every": config.evals.every}}, Path())
