"""The Lightning adapter under Lightning's own Trainer, where that is installed."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch.utils.data import DataLoader

from mixloop.contract import Order, RunPaths, read_schedule, read_status, write_order
from mixloop.controller.config.checkpoint_layouts import Layout
from mixloop.trainer.config import JobError
from mixloop.trainer.loader import MixtureDataset, MixtureLoader
from mixloop.trainer.mixing import MixtureOrder
from mixloop.trainer.run import SingleProcess
from mixloop.trainer.sources import StoreInfo

lightning = pytest.importorskip("lightning.pytorch")
from mixloop.trainer.adapters.lightning import MixtureCheckpoint, MixtureDataModule  # noqa: E402

LENGTH, ROWS, MICROS = 8, 4, 2
QUANTUM = ROWS * MICROS
STEPS = 64
SIZES = {"a": 53, "b": 101, "c": 149}
RANKS = Path(__file__).parents[2] / "support" / "lightning_ranks.py"
EXAMPLE = Path(__file__).parents[3] / "examples" / "lightning_loop.py"
pytestmark = pytest.mark.filterwarnings(
    "default",  # Lightning's and torch's own are not ours to mend
    "error:You're resuming from a checkpoint that ended before the epoch",
)


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folders = {}
    for number, (name, samples) in enumerate(SIZES.items()):
        folder = folders[name] = tmp_path_factory.mktemp(name)
        tokens = np.zeros((samples, LENGTH), "<u2")
        tokens[:, 0] = number * 200 + np.arange(samples)
        tokens.tofile(folder / "tokens.bin")
        info = StoreInfo(tokens.size, 1, "uint16", 600, "t", f"sha256:{name}", 0)
        (folder / "store.json").write_text(json.dumps(info.to_json()))
    return folders


class Module(lightning.LightningModule):  # type: ignore[misc]
    """Two layers; remembers the first token of each row it was trained on."""

    def __init__(self, mixture: Path) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(600, 8)
        self.head = torch.nn.Linear(8, 600)
        self.mixture, self.seen, self.losses = mixture, [], []
        self.awaited = 0

    def training_step(self, batch: Mapping[str, Any], index: int) -> dict[str, Any]:
        self.seen += batch["input_ids"][:, 0].tolist()
        logits = self.head(self.embed(batch["input_ids"][:, :-1])).transpose(1, 2)
        labels = batch["labels"][:, 1:]
        losses = torch.nn.functional.cross_entropy(logits, labels, reduction="none").mean(1)
        self.losses.append(float(losses.mean()))
        return {"loss": losses.mean(), "losses": losses.detach()}

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=1.0)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]

    def on_train_batch_end(self, *_: Any) -> None:
        if self.awaited:  # steps of this model are over before a disk has taken an order
            segments = read_schedule(self.mixture.with_name("schedule.jsonl")).segments
            self.awaited *= all(segment.generation < self.awaited for segment in segments)
            time.sleep(0.02)
        for step, share in ((10, 0.5), (25, 0.125)):  # plays the controller
            if self.trainer.global_step == step:
                rest = (1 - share) / 2
                order = Order("r", 1, step, {"a": rest, "b": rest, "c": share})
                write_order(self.mixture, order)
                self.awaited = step


def mixture(
    folder: Path, stores: Mapping[str, Path], kind: Any = MixtureLoader, **options: Any
) -> Any:
    values: dict[str, Any] = {
        "run": "r",
        "budget": STEPS * QUANTUM * LENGTH,
        "weights": {"a": 0.5, "b": 0.5},
        "seed": 3,
        "sequence_length": LENGTH,
        "micro_batch": ROWS,
        "accumulation": MICROS,
        "poll_every": 2,
        "status_every": 2,
    }
    return kind(folder / "run", sources=stores, **(values | options))


def export(module: Any, folder: Path) -> None:
    from safetensors.torch import save_file

    (folder / "config.json").write_text("{}")
    save_file(dict(module.state_dict()), folder / "model.safetensors")


def trainer(folder: Path, **options: Any) -> Any:
    values: dict[str, Any] = {
        "accumulate_grad_batches": MICROS,
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "callbacks": [MixtureCheckpoint(folder / "out", export=export, every_n_train_steps=8)],
    }
    return lightning.Trainer(**(values | options))


def pure(folder: Path, samples: int) -> list[int]:
    """First tokens of the global order, from `schedule.jsonl` alone."""
    schedule = read_schedule(RunPaths(folder / "run").schedule)
    opened = schedule.latest_open
    assert opened is not None
    sizes = {entry.name: entry.samples for entry in opened.sources}
    source, index = MixtureOrder(sizes, opened.seed, schedule.mixture).batch(0, samples)
    return [int(token) for token in source * 200 + index]


@pytest.mark.parametrize("kind", [MixtureLoader, MixtureDataset], ids=["loader", "dataset"])
def test_it_trains_on_the_order_through_changes_and_a_resume(
    tmp_path: Path, stores: dict[str, Path], kind: Any
) -> None:
    orders = RunPaths(tmp_path / "run").mixture
    first = Module(orders)
    data = MixtureDataModule(mixture(tmp_path, stores, kind))
    trainer(tmp_path, max_steps=20).fit(first, datamodule=data)
    assert first.seen == pure(tmp_path, 20 * QUANTUM)
    layout = Layout("hf-trainer", tmp_path / "out")
    manifest = layout.manifest("checkpoint-16")
    assert manifest is not None
    assert (manifest.step, manifest.sample, manifest.tokens) == (
        16,
        16 * QUANTUM,
        16 * QUANTUM * LENGTH,
    )

    second = Module(orders)
    data = MixtureDataModule(mixture(tmp_path, stores, kind))
    again = trainer(tmp_path)
    ckpt = tmp_path / "out" / "checkpoint-16" / "lightning.ckpt"
    again.fit(second, datamodule=data, ckpt_path=ckpt)
    assert (again.global_step, again.current_epoch) == (STEPS, 1)
    # what was trained on, from the checkpoint on, is the rest of the one order: nothing replayed
    assert second.seen == pure(tmp_path, STEPS * QUANTUM)[16 * QUANTUM :]
    segments = read_schedule(RunPaths(tmp_path / "run").schedule).segments
    assert [segment.generation for segment in segments if segment.generation][-2:] == [10, 25]

    status = read_status(RunPaths(tmp_path / "run").status).value
    assert status is not None
    assert (status.step, status.finished, status.in_force.generation) == (STEPS, True, 25)
    assert status.loss == pytest.approx(sum(second.losses[-MICROS:]) / MICROS, rel=1e-5)
    assert status.lr == pytest.approx(1 / STEPS)  # of the last step, not of the one after it
    assert any(source.loss is not None for source in status.sources.values())


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"accumulate_grad_batches": 1}, r"accumulate_grad_batches=1\): make it 2"),
        ({"max_steps": STEPS + 1}, f"max_steps={STEPS + 1}.*spent after {STEPS}"),
        ({"overfit_batches": 2}, r"overfit_batches=2\): the mixture never repeats"),
    ],
)
def test_a_step_that_is_not_the_loaders_is_refused(
    tmp_path: Path, stores: dict[str, Path], options: dict[str, Any], says: str
) -> None:
    data = MixtureDataModule(mixture(tmp_path, stores))
    module = Module(RunPaths(tmp_path / "run").mixture)
    with pytest.raises(JobError, match=says):
        trainer(tmp_path, **options).fit(module, datamodule=data)
    assert module.seen == []


def test_other_ways_to_go_wrong_are_told(tmp_path: Path, stores: dict[str, Path]) -> None:
    module = Module(RunPaths(tmp_path / "run").mixture)
    shared = MixtureDataModule(mixture(tmp_path, stores, world=2, rank=0, peers=SingleProcess()))
    with pytest.raises(JobError, match="has 1 processes, the mixture is shared among 2"):
        trainer(tmp_path).fit(module, datamodule=shared)
    left = mixture(tmp_path, stores)
    for _ in range(2 * MICROS):
        next(left)
    with pytest.raises(JobError, match="begins at step 0, the loader at 2: resume both"):
        trainer(tmp_path).fit(module, datamodule=MixtureDataModule(left))
    with pytest.raises(JobError, match="made in setup"):
        _ = MixtureDataModule("run.yaml").mixture
    data = MixtureDataModule(mixture(tmp_path, stores), seed=4)
    with pytest.raises(JobError, match="seed: give them to the loader itself"):
        data.setup("fit")


def test_workers_are_refused(tmp_path: Path, stores: dict[str, Path]) -> None:
    with pytest.raises(JobError, match=r"^MixtureDataModule: num_workers=2: .*set num_workers=0$"):
        MixtureDataModule("run.yaml", num_workers=2)
    with mixture(tmp_path, stores, MixtureDataset) as dataset:
        loader = DataLoader(dataset, batch_size=None, num_workers=2)
        with pytest.raises(JobError, match=r"^MixtureDataset: num_workers=2: .*set num_workers=0$"):
            trainer(tmp_path, callbacks=[]).fit(Module(tmp_path), train_dataloaders=loader)


def test_checkpoints_that_are_not_kept_take_their_folder_along(
    tmp_path: Path, stores: dict[str, Path]
) -> None:
    data = MixtureDataModule(mixture(tmp_path, stores))
    checkpoints = MixtureCheckpoint(tmp_path / "out", every_n_train_steps=8, save_top_k=1)
    trainer(tmp_path, callbacks=[checkpoints]).fit(
        Module(RunPaths(tmp_path / "run").mixture), datamodule=data
    )
    [left] = (tmp_path / "out").iterdir()
    assert sorted(path.name for path in left.iterdir()) == ["lightning.ckpt", "mixloop.json"]
    assert left.name == f"checkpoint-{STEPS}"


@pytest.mark.soak
def test_ranks_share_the_order_out(tmp_path: Path, stores: dict[str, Path]) -> None:
    """Two gloo ranks under DDP: a change in the middle, a resume, and what both saw together."""
    quantum = QUANTUM * 2
    shares = {"a": 0.5, "b": 0.5, "c": 0.0}
    sources = {name: {"path": str(stores[name]), "weight": w} for name, w in shares.items()}
    run = {
        "run": {"id": "r", "dir": "run", "seed": 3},
        "budget": STEPS * quantum * LENGTH,
        "sources": sources,
        "trainer": {"sequence_length": LENGTH, "micro_batch": ROWS, "accumulation": MICROS,
                    "poll_every": 2},
    }  # fmt: skip
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(run))
    asked = {"folder": str(tmp_path)}
    on_two_ranks(**asked, name="first", steps=12, resume=None)
    last = tmp_path / "out" / "checkpoint-8" / "lightning.ckpt"
    on_two_ranks(**asked, name="second", steps=STEPS, resume=str(last))
    for name, begun, ended in (("first", 0, 12), ("second", 8, STEPS)):
        traces = [json.loads((tmp_path / f"{name}-{rank}").read_text()) for rank in (0, 1)]
        micros = [[trace[at : at + ROWS] for at in range(0, len(trace), ROWS)] for trace in traces]
        together = [sorted(a + b) for a, b in zip(*micros, strict=True)]
        order = pure(tmp_path, ended * quantum)[begun * quantum :]
        both = 2 * ROWS
        assert together == [sorted(order[at : at + both]) for at in range(0, len(order), both)]
    segments = read_schedule(RunPaths(tmp_path / "run").schedule).segments
    assert [segment.generation for segment in segments][-1] == 1


def on_two_ranks(**asked: Any) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        environment = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(probe.getsockname()[1])}
    environment |= {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    environment |= {"TORCHELASTIC_RUN_ID": "1", "GROUP_RANK": "0"}  # as under torchrun
    ranks = [
        subprocess.Popen(
            [sys.executable, str(RANKS), json.dumps(asked)],
            env=os.environ | environment | {"RANK": rank, "LOCAL_RANK": rank},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for rank in ("0", "1")
    ]  # fmt: skip
    outputs = [rank.communicate(timeout=200)[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], outputs[0][-4000:]


def test_the_example_goes_on_where_it_was(tmp_path: Path) -> None:
    script = [sys.executable, str(EXAMPLE), str(tmp_path)]
    for steps in ("60", "120"):
        output = subprocess.run(
            [*script, "--steps", steps], check=True, capture_output=True, text=True, timeout=200
        ).stdout
    assert "from checkpoint-60" in output
    assert Layout("hf-trainer", tmp_path / "out").manifest("checkpoint-120") is not None
