"""Epochs are draws by windows, whoever counts them: trainer, audit, controller, guards."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from mixloop.cli.app import app
from mixloop.contract import RunPaths, read_status
from mixloop.controller.config import load_config
from mixloop.controller.decisions import observation_builder
from mixloop.controller.journal import Journal
from mixloop.policies.mixture import describe_overruns, epochs, headroom
from mixloop.trainer.loader import MixtureLoader, read_saved_manifest
from mixloop.trainer.sources import StoreInfo

LENGTH, WINDOWS, DRAWS = 32, 51, 256


@pytest.fixture(scope="module")
def run_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has drawn 256 samples of a source of 51, at whose end 23 tokens are left over."""
    folder = tmp_path_factory.mktemp("run")
    for name, tokens in (("tiny", WINDOWS * LENGTH + 23), ("large", 9000 * LENGTH)):
        (folder / name).mkdir()
        np.zeros(tokens, "<u2").tofile(folder / name / "tokens.bin")
        info = StoreInfo(tokens, 1, "uint16", 2**16, "t", f"sha256:{name}", 0)
        (folder / name / "store.json").write_text(json.dumps(info.to_json()))
    data = {
        "run": {"id": "r", "dir": "run"},
        "budget": 2 * DRAWS * LENGTH,
        "sources": {name: {"path": name, "weight": 0.5} for name in ("tiny", "large")},
        "guards": {"max_epochs": 6},
        "trainer": {"sequence_length": LENGTH, "micro_batch": 8, "poll_every": 100},
    }
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(data))
    with MixtureLoader.from_config(path) as loader:
        for _ in loader:
            pass
        loader.mark_checkpoint(folder / "run")
        assert loader.drawn()["tiny"] == DRAWS
        assert loader.epochs()["tiny"] == DRAWS / WINDOWS
    return path


def ask(*command: str) -> Any:
    result = CliRunner().invoke(app, [*command, "--json"])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_trainer_and_audit_agree_and_the_tokens_say_the_same(run_file: Path) -> None:
    status = read_status(RunPaths(run_file.parent / "run").status).value
    saved = read_saved_manifest(run_file.parent / "run").value
    assert status is not None
    assert saved is not None
    tiny = status.sources["tiny"]
    assert tiny.epochs == saved.sources["tiny"].epochs == DRAWS / WINDOWS
    assert tiny.tokens / tiny.unique_tokens == DRAWS / WINDOWS
    assert ask("audit", str(run_file))["sources"]["tiny"]["epochs"] == DRAWS / WINDOWS
    shown = ask("status", str(run_file))["ledger"]["tiny"]
    assert shown["epochs"] == shown["tokens"] / shown["unique_tokens"] == DRAWS / WINDOWS
    planned = ask("check", str(run_file))["sources"]["tiny"]
    assert planned["projected_epochs"] == DRAWS / WINDOWS


def test_policies_and_the_cap_on_epochs_count_draws_too(run_file: Path, tmp_path: Path) -> None:
    config = load_config(run_file)
    status = read_status(RunPaths(config.run.dir).status).value
    sizes = observation_builder.unique_tokens(config)
    assert sizes["tiny"] == observation_builder.planned_tokens(config)["tiny"] == WINDOWS * LENGTH
    sources = observation_builder.standing(
        Journal(tmp_path / "journal.db", create=True), config, sizes, status
    ).sources
    drawn = {name: float(source.drawn) for name, source in sources.items()}
    assert sources["tiny"].epochs == epochs(sources, drawn)["tiny"] == DRAWS / WINDOWS
    left = headroom(sources, drawn, 6)["tiny"]
    assert left == (6 * WINDOWS - DRAWS) * LENGTH
    stretch = {"tiny": 1.0}
    assert not describe_overruns(sources, drawn, 0, (int(left), stretch), 6)
    assert "6.02 epochs" in describe_overruns(sources, drawn, 0, (int(left) + LENGTH, stretch), 6)


def test_a_source_shorter_than_a_window_is_told(run_file: Path, tmp_path: Path) -> None:
    data = yaml.safe_load(run_file.read_text())
    data["sources"]["tiny"]["path"] = str(run_file.parent / "tiny")
    data["sources"]["large"]["path"] = str(run_file.parent / "large")
    data["trainer"]["sequence_length"] = 4096
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(data))
    result = CliRunner().invoke(app, ["check", str(tmp_path / "run.yaml")])
    assert result.exit_code != 0
    assert str(result.exception).startswith(
        "sources.tiny: 1655 tokens are fewer than one sample of"
    )
