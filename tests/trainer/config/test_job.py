"""Job files, and the mixture that a job begins with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mixloop.trainer.config import Job, JobError, load_job, start_weights


def body(tmp_path: Path, **changes: Any) -> dict[str, Any]:
    sources = {"a": {"path": str(tmp_path / "a")}, "b": {"path": str(tmp_path / "b")}}
    settings = {"sequence_length": 8, "device": "cpu"}
    start: dict[str, Any] = {"run": "r", "dir": str(tmp_path / "run"), "budget": "1M"}
    return start | {"sources": sources, "settings": settings} | changes


def test_job_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(JobError, match=r"none\.json: No such file"):
        load_job(tmp_path / "none.json")
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(JobError, match=r"bad\.json: not JSON"):
        load_job(tmp_path / "bad.json")


def test_start_weights(tmp_path: Path) -> None:
    sizes = {"a": 30, "b": 10, "c": 5}
    plain = {name: {"path": name} for name in sizes}
    free = Job.model_validate(body(tmp_path, sources=plain))
    assert start_weights(free.sources, sizes) == {"a": 30 / 45, "b": 10 / 45, "c": 5 / 45}
    waiting = Job.model_validate(
        body(tmp_path, sources=plain | {"c": {"path": "c", "standby": True}})
    )
    assert start_weights(waiting.sources, sizes) == {"a": 0.75, "b": 0.25, "c": 0.0}
    given = {n: {"path": n, "weight": w} for n, w in (("a", 0.1), ("b", 0.2), ("c", 0.7))}
    chosen = Job.model_validate(body(tmp_path, sources=given))
    assert start_weights(chosen.sources, sizes) == pytest.approx({"a": 0.1, "b": 0.2, "c": 0.7})
