"""What a run can't decide is said before it starts, in plain lines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from mixloop.controller.config import load_config
from mixloop.controller.service.undecided import undecided
from mixloop.evals.planning import EvalPlan


def said(folder: Path, policy: str = "law", sources: int = 4, **changes: Any) -> list[str]:
    """Of a run of a million tokens with equal sources, a thousand tokens a step."""
    plan = changes.pop("plan", None)
    data: dict[str, Any] = {
        "run": {"id": "r", "dir": "run"},
        "budget": "1M",
        "sources": {f"s{i}": {"path": f"s{i}", "weight": 1 / sources} for i in range(sources)},
        "policy": {"use": policy, "with": changes.pop("options", {})},
        "evals": {"every": "20k", **changes.pop("evals", {})},
        "trainer": {"sequence_length": 100, "micro_batch": 10, "poll_every": 1, **changes},
    }
    file = folder / "run.yaml"
    file.write_text(yaml.safe_dump(data, sort_keys=False))
    config = load_config(file)
    return undecided(config, dict.fromkeys(data["sources"], 1 / sources), {policy: 4}, plan)


def test_enough_of_everything_is_no_line(tmp_path: Path) -> None:
    assert said(tmp_path) == []
    assert said(tmp_path, "bayes", evals={"every": "10k"}) == []


def test_more_sources_than_evaluations_tell_apart(tmp_path: Path) -> None:
    (line,) = said(tmp_path, sources=14)
    assert "14 sources can't be told apart by law: 25 evaluations" in line
    assert "13 contrasts with their opposites take 26" in line
    assert "evaluate every 19.2k tokens" in line
    assert said(tmp_path, sources=14, options={"explore": 0.6}) == []
    assert said(tmp_path, "static", sources=14) == []


def test_a_few_evaluations_tell_no_jitter(tmp_path: Path) -> None:
    lines = said(tmp_path, "rules", evals={"every": "200k"}, options={"interventions": []})
    assert any("4 evaluations to decide after hardly tell" in line for line in lines)


@pytest.mark.parametrize(("poll", "share", "late"), [(1, 0.2, False), (3, 0.2, True)])
def test_scoring_and_the_lead_make_an_order_late(
    tmp_path: Path, poll: int, share: float, late: bool
) -> None:
    lines = said(tmp_path, poll_every=poll, evals={"budget": share})
    assert [line for line in lines if "into force up to 11k tokens after" in line] == (
        lines if late else []
    )
    fields: dict[str, Any] = {"budget": share, "device": "cpu", "checkpoint": "x", "benchmarks": {}}
    slow = EvalPlan(**fields, training_seconds=10, seconds=9)
    (line,) = said(tmp_path, evals={"budget": share}, plan=slow)
    assert "110% of the 20k" in line
