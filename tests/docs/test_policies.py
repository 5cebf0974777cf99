"""docs/policies.md: its code runs, its example is what the command writes, its tables are whole."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from mixloop.policies import interface as seen
from mixloop.policies.guards import GuardContext, GuardSettings, GuardState
from mixloop.policies.interface import Source
from mixloop.policies.testing.suite import PolicyConformance
from mixloop.tools.policy_authoring import write_policy

TEXT = (Path(__file__).parents[2] / "docs" / "policies.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```$", TEXT, re.M | re.S)
NAMED = re.compile(r"# (\w+\.py)\n")


def test_the_code_runs_as_it_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    namespace: dict[str, object] = {"__name__": "docs"}
    for block in BLOCKS:
        named = NAMED.match(block)
        if named:
            (tmp_path / named[1]).write_text(block)
        else:
            exec(compile(block, "docs/policies.md", "exec"), namespace)
    monkeypatch.delitem(sys.modules, "tandem")
    suite = namespace["TestReturns"]
    assert isinstance(suite, type)
    assert issubclass(suite, PolicyConformance)
    suite().test_stateless()  # type: ignore[attr-defined]
    guards(namespace["OneAtATime"])


def guards(own: object) -> None:
    """The document's guard on a proposal that raises two sources."""
    assert isinstance(own, type)
    names = ("web", "code", "maths")
    context = GuardContext(
        sources={name: Source(unique_tokens=10**12) for name in names},
        weights={"web": 0.8, "code": 0.1, "maths": 0.1},
        drawn=dict.fromkeys(names, 0),
        tokens=0,
        budget=10**9,
        horizon=10**8,
    )
    weights = {"web": 0.7, "code": 0.17, "maths": 0.13}
    state = GuardState(context, GuardSettings(), weights, [])
    own().apply(state)
    assert state.weights == pytest.approx({"web": 0.7, "code": 0.2, "maths": 0.1})
    own().apply(state)
    assert [note.action for note in state.notes] == ["changed", "passed"]


def test_the_example_is_what_the_command_writes(tmp_path: Path) -> None:
    write_policy("returns", tmp_path)
    written = (tmp_path / "returns.py").read_text()
    assert f"# returns.py\n{written}" in BLOCKS


@pytest.mark.parametrize(
    "model",
    [
        seen.Observation,
        seen.Source,
        seen.Evaluation,
        seen.BenchmarkScore,
        seen.Metric,
        seen.Goal,
        seen.Limits,
        seen.PastDecision,
        seen.ExperimentResult,
    ],
)
def test_every_field_is_explained(model: type[seen.Observation]) -> None:
    tables = re.split(r"^\n", TEXT, flags=re.M)
    mine = next(
        t for t in tables if t.startswith("|") and f"`{model.__name__}`" in t.split("\n")[0]
    )
    explained = {name for row in mine.split("\n")[2:] for name in re.findall(r"`(\w+)`", row[:70])}
    assert set(model.model_fields) <= explained
