"""A small real run, trained once, and experiments from its checkpoint."""

from __future__ import annotations

import gc
import random
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from mixloop.contract import RunPaths, read_manifest
from mixloop.controller.config import RunConfig, job_of, load_config
from mixloop.controller.core import CheckpointRow
from mixloop.controller.experiments import ExperimentSpec, spec_of
from mixloop.policies.interface import Experiment
from mixloop.trainer.prepare import prepare
from mixloop.trainer.run import checkpoint_store
from mixloop.trainer.sources import train_tokenizer
from mixloop.trainer.train import train

LENGTH, ROWS = 64, 4
STEP_TOKENS = LENGTH * ROWS
AT, STEPS = 30, 40  # steps: of the checkpoint, and of the run


@pytest.fixture(scope="session")
def run_config(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """A run on code, prose and scrambled text, finished, with a checkpoint ten steps before."""
    folder = tmp_path_factory.mktemp("experiments")
    library = Path(sysconfig.get_path("stdlib"))
    code = (library / "argparse.py").read_text("utf-8")[:60_000]
    words = code.split()
    random.Random(0).shuffle(words)
    prose = (library / "pydoc_data" / "topics.py").read_text("utf-8")[:60_000]
    texts = {"code": code, "prose": prose, "noise": " ".join(words)}
    for name, text in texts.items():
        (folder / f"{name}.txt").write_text(text)
    tokenizer = train_tokenizer(list(texts.values()), folder / "tokenizer", 512)
    for name in texts:
        prepare([str(folder / f"{name}.txt")], folder / name, str(tokenizer))
    weights = {"code": 0.2, "prose": 0.3, "noise": 0.5}
    asked = {"data": "packages", "shots": 0}
    config = {
        "run": {"id": "small", "dir": "run", "seed": 5},
        "budget": STEPS * STEP_TOKENS,
        "sources": {name: {"path": name, "weight": share} for name, share in weights.items()},
        "evals": {
            "threads": 1,
            "benchmarks": {
                "humaneval": {**asked, "items": 6},
                "gsm8k": {**asked, "items": 4},
            },
            "watch": {"math": {**asked, "items": 2}},
        },
        "objective": {"humaneval": {"weight": 2}},
        "trainer": {
            "model": {
                "hidden_size": 32,
                "intermediate_size": 64,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "max_position_embeddings": 512,
            },
            "sequence_length": LENGTH,
            "micro_batch": ROWS,
            "learning_rate": 0.005,
            "checkpoint_every": 10 * STEP_TOKENS,
            "threads": 1,
            "device": "cpu",
            "precision": "fp32",
        },
    }
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(config))
    loaded = load_config(path)
    assert train(job_of(loaded)) == 0
    gc.freeze()  # as the process does: models are collected between branches
    return loaded


def row_of(config: RunConfig, step: int) -> CheckpointRow:
    folder = RunPaths(config.run.dir).checkpoints / checkpoint_store.folder_name(step)
    manifest = read_manifest(folder).value
    assert manifest is not None
    weights = dict(manifest.in_force.weights)
    return CheckpointRow(
        step,
        manifest.tokens,
        manifest.sample,
        str(folder),
        manifest.phase,
        0,
        weights,
        "",
        {},
        {},
        1,
    )


@pytest.fixture
def experiment(run_config: RunConfig, tmp_path: Path) -> Callable[..., ExperimentSpec]:
    """A spec of branches from the run's checkpoint, in a folder of its own."""

    def make(branches: list[dict[str, float]], steps: int = 4, **asked: Any) -> ExperimentSpec:
        wanted = Experiment(branches, steps * STEP_TOKENS, "to see what they do", **asked)
        spec = spec_of(run_config, wanted, row_of(run_config, AT), run_config.evals, id="e-1")
        return spec.model_copy(update={"out": tmp_path / "e-1"})

    return make
