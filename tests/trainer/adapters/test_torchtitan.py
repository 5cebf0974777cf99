"""The torchtitan adapter: its components, and torchtitan's own Trainer on CPU ranks.

Skipped where torchtitan is not installed. Its Trainer asks for an accelerator; support/titan_cpu.py
lends torch.cpu what is missing.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from mixloop.contract import RunPaths, read_schedule, read_status
from mixloop.controller.config.checkpoint_layouts import Layout
from mixloop.trainer.config import JobError
from mixloop.trainer.mixing import MixtureOrder
from mixloop.trainer.sources import StoreInfo

pytest.importorskip("torchtitan.components.dataloader")
from torchtitan.components.checkpoint import CheckpointManager
from torchtitan.components.dataloader import BaseDataLoader, ParallelAwareDataloader
from torchtitan.components.loss import IGNORE_INDEX
from torchtitan.components.metrics import MetricsProcessor

from mixloop.trainer.adapters.torchtitan import (
    MixtureCheckpoints,
    MixtureDataLoader,
    MixtureMetrics,
    check_trainer,
    with_mixture,
)

LENGTH, ROWS, MICROS, STEPS = 16, 2, 2, 16
SIZES = {"a": 53, "b": 101, "c": 149}
SCRIPT = Path(__file__).parents[2] / "support" / "titan_run.py"
pytestmark = pytest.mark.filterwarnings("default")


@pytest.fixture
def run_file(tmp_path: Path) -> Path:
    for number, (name, samples) in enumerate(SIZES.items()):
        folder = tmp_path / name
        folder.mkdir()
        tokens = np.random.default_rng(number).integers(1, 2000, (samples, LENGTH), "<u2")
        tokens[:, 0] = number * 200 + np.arange(samples)
        tokens[:, 9] = 0  # a document ends
        tokens.tofile(folder / "tokens.bin")
        info = StoreInfo(tokens.size, samples, "uint16", 2048, "t", f"sha256:{name}", 0)
        (folder / "store.json").write_text(json.dumps(info.to_json()))
    return write_run(tmp_path)


def write_run(folder: Path, world: int = 1) -> Path:
    run = {
        "run": {"id": "r", "dir": "run", "seed": 3},
        "budget": STEPS * ROWS * MICROS * world * LENGTH,
        "sources": {"a": {"path": "a", "weight": 0.5}, "b": {"path": "b", "weight": 0.5},
                    "c": {"path": "c", "weight": 0.0}},
        "checkpoints": {"layout": "torchtitan", "dir": "titan/checkpoint"},
        "trainer": {"sequence_length": LENGTH, "micro_batch": ROWS, "accumulation": MICROS,
                    "poll_every": 2, "status_every": 2},
    }  # fmt: skip
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(run))
    return path


def build(run_file: Path, **changed: Any) -> MixtureDataLoader:
    """As torchtitan's Trainer builds its dataloader."""
    config = MixtureDataLoader.Config(run=str(run_file), documents=changed.pop("documents", False))
    values: dict[str, Any] = {
        "dp_world_size": 1, "dp_rank": 0, "tokenizer": None, "seq_len": LENGTH,
        "local_batch_size": ROWS, "snapshot_every_n_steps": None,
    }  # fmt: skip
    dataloader: MixtureDataLoader = config.build(**(values | changed))
    return dataloader


def pure(folder: Path, samples: int) -> list[int]:
    """First tokens of the global order, from `schedule.jsonl` alone."""
    schedule = read_schedule(RunPaths(folder / "run").schedule)
    opened = schedule.latest_open
    assert opened is not None
    sizes = {entry.name: entry.samples for entry in opened.sources}
    source, index = MixtureOrder(sizes, opened.seed, schedule.mixture).batch(0, samples)
    return [int(token) for token in source * 200 + index]


def test_the_dataloader_deals_the_order_and_goes_on_through_dcp(run_file: Path) -> None:
    import torch.distributed.checkpoint as dcp

    first = build(run_file)
    assert isinstance(first, BaseDataLoader)
    tokens = []
    batches = iter(first)
    for _ in range(5):
        inputs, labels = next(batches)
        assert inputs["input"].shape == inputs["positions"].shape == labels.shape
        assert torch.equal(inputs["input"][:, 1:], labels[:, :-1])
        assert (labels[:, -1] == IGNORE_INDEX).all()
        assert torch.equal(inputs["positions"][0], torch.arange(LENGTH))
        tokens += inputs["input"][:, 0].tolist()
    dcp.save({"dataloader": first}, checkpoint_id=run_file.parent / "dcp", no_dist=True)
    first.loader.close()
    second = build(run_file)
    dcp.load({"dataloader": second}, checkpoint_id=run_file.parent / "dcp", no_dist=True)
    for inputs, _ in second:
        tokens += inputs["input"][:, 0].tolist()
    second.loader.close()
    assert tokens == pure(run_file.parent, STEPS * MICROS * ROWS)


def test_positions_begin_anew_with_a_document(run_file: Path) -> None:
    loader = build(run_file, documents=True)
    inputs, _ = next(iter(loader))
    loader.loader.close()
    assert inputs["positions"][0].tolist() == [*range(10), *range(LENGTH - 10)]


def test_what_would_not_be_the_runs_steps_is_refused(run_file: Path) -> None:
    with pytest.raises(JobError, match=r"training\.seq_len is 32: make it 16"):
        build(run_file, seq_len=32)
    with pytest.raises(JobError, match=r"training\.local_batch_size is 8: make it 2"):
        build(run_file, local_batch_size=8)
    loader = build(run_file)
    training = SimpleNamespace(steps=STEPS)
    trainer = SimpleNamespace(
        config=SimpleNamespace(training=training), gradient_accumulation_steps=1,
        num_pipeline_parallel_microbatches=1,
    )  # fmt: skip
    with pytest.raises(JobError, match=r"make training\.global_batch_size 4"):
        check_trainer(trainer, loader)
    trainer.gradient_accumulation_steps, training.steps = MICROS, STEPS + 1
    with pytest.raises(JobError, match=r"training\.steps: 17, but the budget is spent after 16"):
        check_trainer(trainer, loader)
    with pytest.raises(JobError, match="is of another dataloader"):
        loader.load_state_dict({"dp_rank_0": b""})


def test_a_configuration_keeps_what_it_was_set_to() -> None:
    config = SimpleNamespace(
        metrics=MetricsProcessor.Config(log_freq=3),
        dataloader=ParallelAwareDataloader.Config(num_workers=2),
        checkpoint=CheckpointManager.Config(enable=True, interval=7, async_mode="async"),
    )  # fmt: skip
    with pytest.raises(JobError, match=r"^dataloader\.num_workers=2: .*num_workers=0$"):
        with_mixture(config, "run.yaml")
    config.dataloader.num_workers = 0
    with_mixture(config, "run.yaml", documents=True)
    assert (config.dataloader.run, config.dataloader.documents) == ("run.yaml", True)
    assert type(config.metrics) is MixtureMetrics.Config
    assert (config.metrics.log_freq, config.checkpoint.interval) == (3, 7)
    assert (config.checkpoint.async_mode, config.checkpoint.export) == ("async", False)
    with pytest.raises(JobError, match=r"only MetricsProcessor\.Config can be extended"):
        with_mixture(config, "run.yaml")  # a second time


def test_an_export_that_could_not_be_scored_is_refused(run_file: Path) -> None:
    trainer = SimpleNamespace(
        config=SimpleNamespace(
            training=SimpleNamespace(steps=STEPS), hf_assets_path=str(run_file.parent)
        ),
        gradient_accumulation_steps=MICROS, num_pipeline_parallel_microbatches=1,
        metrics_processor=None,
    )  # fmt: skip
    config = MixtureCheckpoints.Config(enable=True, export=True)
    parts: dict[str, Any] = {"dataloader": build(run_file), "states": {"train_state": trainer}}
    with pytest.raises(JobError, match="no state_dict_adapter of this model"):
        config.build(**parts, sd_adapter=None)
    with pytest.raises(JobError, match=r"no config\.json in hf_assets_path"):
        config.build(**parts, sd_adapter=object())
    with pytest.raises(JobError, match="torchtitan's dataloader is a NoneType"):
        config.build(dataloader=None, states={"train_state": trainer}, sd_adapter=object())


def write_assets(folder: Path) -> None:
    """A tokenizer, and the configuration of torchtitan's debug model with one layer."""
    from transformers import LlamaConfig

    from mixloop.trainer.sources import train_tokenizer

    train_tokenizer(["a few words of text"] * 3, folder, 300)
    LlamaConfig(
        architectures=["LlamaForCausalLM"], vocab_size=2048, hidden_size=256, rms_norm_eps=1e-5,
        intermediate_size=768, num_hidden_layers=1, num_attention_heads=16,
    ).save_pretrained(folder)  # fmt: skip


def torchtitan(world: int, **asked: Any) -> None:
    """One run of the Trainer on `world` gloo ranks."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    environment = {"WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world)}
    environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), json.dumps(asked)],
            env=os.environ | environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for rank in range(world)
    ]  # fmt: skip
    outputs = [rank.communicate(timeout=250)[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0] * world, outputs[0][-4000:]


@pytest.mark.soak
@pytest.mark.parametrize(("world", "saves"), [(1, "async"), (2, "disabled")])
def test_the_trainer_trains_on_the_order_through_a_change_and_a_resume(
    run_file: Path, world: int, saves: str
) -> None:
    folder = run_file.parent
    write_run(folder, world)
    write_assets(folder / "tokenizer")
    quantum = ROWS * MICROS * world
    asked: dict[str, Any] = {"folder": str(folder), "global_batch_size": quantum, "order_at": 5}
    asked["async_mode"] = saves
    torchtitan(world, name="first", steps=10, last=False, **asked)
    # as if it had died before that was saved
    shutil.rmtree(folder / "titan" / "checkpoint" / "step-10")
    torchtitan(world, name="second", steps=STEPS, last=True, **(asked | {"order_at": -1}))
    for name, begun, ended in (("first", 0, 10), ("second", 8, STEPS)):
        traces = [json.loads((folder / f"{name}-{rank}").read_text()) for rank in range(world)]
        micros = (np.array(trace).reshape(-1, ROWS) for trace in traces)
        together = np.sort(np.concatenate(list(micros), axis=1), axis=1).tolist()
        order = pure(folder, ended * quantum)[begun * quantum :]
        size = ROWS * world
        assert together == [sorted(order[at : at + size]) for at in range(0, len(order), size)]
    segments = read_schedule(RunPaths(folder / "run").schedule).segments
    assert any(segment.generation == 1 for segment in segments)
    status = read_status(RunPaths(folder / "run").status).value
    assert status is not None
    assert (status.step, status.finished, status.in_force.generation) == (STEPS, True, 1)
    assert status.loss is not None
    assert status.grad_norm is not None
    assert status.lr is not None
    layout = Layout("torchtitan", folder / "titan" / "checkpoint")
    for step in (4, 8, STEPS):
        manifest = layout.manifest(f"step-{step}")
        assert manifest is not None, step
        assert (manifest.step, manifest.sample) == (step, step * quantum)
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(layout.folder / f"step-{STEPS}")
    assert all(torch.isfinite(value).all() for value in model.state_dict().values())
