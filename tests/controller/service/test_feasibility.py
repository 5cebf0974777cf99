"""What can't work is refused before a run starts, what is doubtful is said."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from mixloop.cli.app import app
from mixloop.common.errors import BadInput
from mixloop.controller.config import load_config
from mixloop.controller.service.feasibility import doubts, impossible
from mixloop.controller.service.preflight import check_feasible

SHARES = {"web": 0.5, "code": 0.3, "maths": 0.2}
TRAINER = {"sequence_length": 100, "micro_batch": 10, "poll_every": 1}  # 1,000 tokens a step


def write(folder: Path, **changes: Any) -> Path:
    """A run.yaml with a million tokens; dotted keys in ``changes`` written with two underscores."""
    data: dict[str, Any] = {
        "run": {"id": "r", "dir": "run"},
        "budget": "1M",
        "sources": {name: {"path": name, "weight": share} for name, share in SHARES.items()},
        "evals": {"every": "100k"},
        "trainer": dict(TRAINER),
    }
    for key, value in changes.items():
        *path, last = key.split("__")
        here = data
        for part in path:
            here = here.setdefault(part, {})
        here[last] = value
    file = folder / "run.yaml"
    file.write_text(yaml.safe_dump(data, sort_keys=False))
    return file


def stores(**digests: str) -> dict[str, Any]:
    """What the sources are, each with tokens of its own unless a digest says otherwise."""
    digests = {name: f"sha256:{name}" for name in SHARES} | digests
    return {n: SimpleNamespace(fingerprint=d, tokens=10**6) for n, d in digests.items()}


def problems(file: Path, needs: dict[str, int] | None = None, **digests: str) -> list[str]:
    return list(impossible(load_config(file), stores(**digests), SHARES, needs or {}))


def test_an_ordinary_run_is_possible_and_beyond_doubt(tmp_path: Path) -> None:
    file = write(tmp_path, guards={"floor": 0.02, "cap": 0.9, "dwell": "100k"})
    assert problems(file, {"law": 4}) == []
    assert doubts(load_config(file), SHARES, {"law": 4}) == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"guards__floor": 0.34}, "guards.floor: 0.34 for each of 3 sources is 1.02 in all"),
        ({"trainer__limits": {"floor": 0.5}}, "trainer.limits.floor: 0.5 for each of 3 sources"),
        ({"guards__cap": 0.3}, "guards.cap: 0.3 for each of 3 sources is 0.9 in all"),
        ({"trainer__limits": {"cap": 0.2}}, "trainer.limits.cap: 0.2 for each of 3 sources"),
        (
            {"guards__floor": 0.3, "trainer__limits": {"cap": 0.25}},
            "guards.floor: 0.3 is above trainer.limits.cap 0.25; lower the floor",
        ),
    ],
)
def test_bounds_that_leave_no_mixture(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    found = problems(write(tmp_path, **changes))
    assert words in found[0]


@pytest.mark.parametrize("budget", [2, 1.0, "1_999", "0.00001%"])
def test_a_budget_of_experiments_that_is_none_for_any(tmp_path: Path, budget: object) -> None:
    (found,) = problems(write(tmp_path, experiments__budget=budget))
    assert "a branch and its control of one step take 2,000" in found
    assert problems(write(tmp_path, experiments__budget="0.02")) == []
    assert problems(write(tmp_path, experiments__budget=0)) == []


def test_one_store_under_two_names(tmp_path: Path) -> None:
    (tmp_path / "code").mkdir()
    (tmp_path / "other").symlink_to("code")
    (line,) = problems(write(tmp_path, sources__maths={"path": "other", "weight": 0.2}))
    assert "sources.maths.path" in line
    assert "the same place as sources.code" in line
    column = {"format": "arrow", "column": "other"}
    file = write(tmp_path, sources__maths={"path": "other", "weight": 0.2, **column})
    assert problems(file) == [], "another column is another store"
    (line,) = problems(write(tmp_path), maths="sha256:web")
    assert "sources.maths.path" in line
    assert "the same tokens as sources.web" in line


@pytest.mark.parametrize(
    "uri",
    ["mlflow.example:5000", "localhost:5000", "mlruns", "/somewhere/mlruns", "http:/host:5000",
     "htp://host:5000", "sqlite://mlflow.db", "sqlite:///", "https://", "http://[::1",
     "sqlite:/all.db", "http://localhost:99999", "http://local host:5000"],
)  # fmt: skip
def test_tracking_uris_of_no_kind(tmp_path: Path, uri: str) -> None:
    (line,) = problems(write(tmp_path, tracking__uri=uri))
    assert line.startswith("tracking.uri: ")
    assert uri in line or "sqlite" in uri
    assert "write http://HOST:PORT, sqlite:///FILE" in line


@pytest.mark.parametrize(
    "uri",
    ["http://localhost:5000", "https://mlflow.example/x", "sqlite:///all.db", "databricks",
     "postgresql+psycopg://u@db/mlflow", "file:///mlruns"],
)  # fmt: skip
def test_tracking_uris_that_mlflow_takes(tmp_path: Path, uri: str) -> None:
    config = load_config(write(tmp_path, tracking__uri=uri))
    assert list(impossible(config, stores(), SHARES, {})) == []
    assert bool(doubts(config, SHARES, {})) is uri.startswith("file:")


def test_a_run_whose_only_checkpoint_is_its_last_teaches_nothing(tmp_path: Path) -> None:
    model = {"hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 1}
    file = write(tmp_path, evals={}, trainer=TRAINER | {"model": model})
    (line,) = problems(file, {"law": 4})
    assert line.startswith("trainer.checkpoint_every: ")
    assert "comes too late" in line
    assert problems(write(tmp_path, evals={}), {"law": 4}) == [], "another loop has its own rhythm"


def test_too_few_evaluations_to_learn_from(tmp_path: Path) -> None:
    (line,) = problems(write(tmp_path, evals__every="400k"), {"law": 4})
    assert "evals.every: 400k of 1M tokens leaves 2 evaluations" in line
    assert "needs 4" in line
    assert problems(write(tmp_path, evals__every="400k"), {"rule": 2, "late": 9}) == []
    said = doubts(load_config(write(tmp_path, evals__every="400k")), SHARES, {"a": 2, "late": 9})
    assert any("late needs 9 evaluations, the run has 2" in one for one in said)


def test_nothing_that_steers_is_scored(tmp_path: Path) -> None:
    file = write(tmp_path, evals__benchmarks={}, evals__watch=["piqa"])
    (line,) = problems(file, {"law": 4})
    assert line.startswith("evals.benchmarks: none is asked that steers")
    assert problems(file, {"the timetable": 0, "rule": 2}) == []


def test_publication_that_comes_too_late(tmp_path: Path) -> None:
    slow = write(tmp_path, evals__every="100k", trainer__poll_every=30)
    said = doubts(load_config(slow), SHARES, {"law": 4})
    assert any("61k tokens to come into force" in one and "61%" in one for one in said)
    slower = write(tmp_path, evals__every="100k", trainer__poll_every=480)
    (line,) = problems(slower, {"a rule": 1})
    assert "comes too late" in line
    assert problems(slower, {}) == [], "a policy that learns nothing needs no time"


def test_doubts_of_bounds_dwell_and_decay(tmp_path: Path) -> None:
    def said(**changes: Any) -> str:
        return " | ".join(doubts(load_config(write(tmp_path, **changes)), SHARES, {"law": 4}))

    assert "web: starts at 0.5, above the cap 0.4" in said(guards__cap=0.4)
    assert "maths: starts at 0.2, below the floor 0.25" in said(guards__floor=0.25)
    assert "leaves room for one change" in said(guards__dwell="900k")
    assert "only 3 evaluations lie before the learning rate decays" in said(trainer__decay="700k")
    law = {"policy": {"use": "law", "with": {"decay": 0.1}}}
    assert "policy.with.decay: 0.1 of the budget is 100k" in said(**law, trainer__decay="300k")
    assert "policy.with.decay" not in said(**law, trainer__decay="100k")


def test_every_policy_that_learns_says_what_it_needs(tmp_path: Path) -> None:
    rule = {"name": "r", "when": {"plateau": {"benchmark": "gsm8k", "over": 3}}}
    rule |= {"move": {"to": "maths", "from": "web", "step": 0.05}}
    tried = {
        **rule,
        "name": "t",
        "when": {"level": {"benchmark": "gsm8k", "above": 1}},
        "trial": {},
    }
    rules = {"use": "rules", "with": {"interventions": [rule, tried]}}
    expected = {
        "static": ({"use": "static"}, {}),
        "law": ({"use": "law"}, {"law": 4}),
        "bayes": ({"use": "bayes"}, {"bayes": 6}),
        "rules": (rules, {"r": 7, "t": 10}),
    }
    for policy, needs in expected.values():
        file = write(tmp_path, policy=policy)
        config = load_config(file)
        infos = {name: SimpleNamespace(fingerprint="", tokens=10**6) for name in config.sources}
        assert check_feasible(file, config, infos) == needs


def test_check_refuses_in_one_line(tmp_path: Path) -> None:
    for name in SHARES:
        folder = tmp_path / name
        folder.mkdir()
        (folder / "tokens.bin").write_bytes(b"\0\0" * 10_000)
        header = {"schema": "mixloop/store/1", "tokens": 10_000, "documents": 1, "dtype": "uint16"}
        header |= {"vocab_size": 9, "tokenizer": "t", "fingerprint": "sha256:1", "eos_id": 0}
        (folder / "store.json").write_text(json.dumps(header))
    model = {"hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 1}
    file = write(tmp_path, trainer=TRAINER | {"model": model}, evals={"benchmarks": {"gsm8k": {}}})
    result = CliRunner().invoke(app, ["check", str(file)])
    assert isinstance(result.exception, BadInput)
    assert str(result.exception).startswith(f"{file}: sources.code.path: ")
