"""`bench/gpu.py`, adapters: other people's trainers on a device, on a mixture that changes."""

from __future__ import annotations

import argparse
import importlib.util
import json
import time
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import yaml
from gpu_common import audit, unless
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments

from mixloop.contract import Order, RunPaths, read_schedule, read_status, write_order
from mixloop.trainer.adapters.huggingface import MixtureMixin
from mixloop.trainer.loader import MixtureLoader
from mixloop.trainer.mixing import MixtureOrder
from mixloop.trainer.sources import StoreInfo

LENGTH, ROWS, MICROS, STEPS, ASKED = 128, 8, 2, 60, 20
QUANTUM = ROWS * MICROS
SIZES = {"a": 211, "b": 307, "c": 401}
NUMBER = 1000  # what sets the first tokens of two sources apart


def make_run(folder: Path, name: str) -> Path:
    """Stores whose windows say in their first token which they are, and a run.yaml."""
    sources = {}
    for number, (source, samples) in enumerate(SIZES.items()):
        store = folder / source
        if not store.exists():
            store.mkdir(parents=True)
            drawn = np.random.default_rng(number)
            tokens = drawn.integers(0, 4000, (samples, LENGTH)).astype("<u2")
            tokens[:, 0] = number * NUMBER + np.arange(samples)
            tokens.tofile(store / "tokens.bin")
            info = StoreInfo(tokens.size, 1, "uint16", 4096, "t", f"sha256:{source}", 0)
            (store / "store.json").write_text(json.dumps(info.to_json()))
        sources[source] = {"path": str(store), "weight": {"a": 0.5, "b": 0.5, "c": 0.0}[source]}
    own = folder / name
    own.mkdir()
    run = {
        "run": {"id": name, "dir": str(own / "run"), "seed": 3},
        "budget": STEPS * QUANTUM * LENGTH,
        "sources": sources,
        "guards": {"max_epochs": None},
        "tracking": {"enabled": False},
        "trainer": {"sequence_length": LENGTH, "micro_batch": ROWS, "accumulation": MICROS,
                    "poll_every": 2, "status_every": 2},
    }  # fmt: skip
    path = own / "run.yaml"
    path.write_text(yaml.safe_dump(run))
    return path


def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=4096, hidden_size=128, intermediate_size=256, num_hidden_layers=2,
        num_attention_heads=4, max_position_embeddings=LENGTH, pad_token_id=None,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def publish(config: Path) -> None:
    """Another mixture, as the controller publishes it."""
    weights = {"a": 0.25, "b": 0.25, "c": 0.5}
    write_order(RunPaths(config.parent / "run").mixture, Order(config.parent.name, 1, 1, weights))


def huggingface(config: Path, device: str) -> torch.Tensor:
    """First tokens [samples] of what the model was given, where it was given it."""

    class Recorder(MixtureMixin, Trainer):
        seen: ClassVar[list[torch.Tensor]] = []

        def compute_loss(
            self, model: Any, inputs: Mapping[str, Any], *rest: Any, **more: Any
        ) -> Any:
            self.seen.append(inputs["input_ids"][:, 0].clone())
            return super().compute_loss(model, inputs, *rest, **more)

    class Orders(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == ASKED:
                publish(config)

    cuda = device == "cuda"
    arguments = TrainingArguments(
        str(config.parent / "out"), per_device_train_batch_size=ROWS,
        gradient_accumulation_steps=MICROS, logging_steps=10, save_steps=30, report_to=[],
        disable_tqdm=True, use_cpu=not cuda, bf16=cuda,
    )  # fmt: skip
    loader = MixtureLoader.from_config(config)
    trainer = Recorder(llama(), arguments, mixture=loader, callbacks=[Orders()])
    assert trainer.train().global_step == STEPS
    return torch.cat(Recorder.seen)


def lightning(config: Path, device: str) -> torch.Tensor:
    """The same under Lightning."""
    import lightning.pytorch as pl

    from mixloop.trainer.adapters.lightning import MixtureCheckpoint, MixtureDataModule

    seen: list[torch.Tensor] = []

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = llama()

        def training_step(self, batch: dict[str, torch.Tensor], index: int) -> torch.Tensor:
            seen.append(batch["input_ids"][:, 0].clone())
            if len(seen) == ASKED * MICROS:
                publish(config)
            return self.model(input_ids=batch["input_ids"], labels=batch["labels"]).loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.AdamW(self.parameters(), lr=1e-3)

    def export(module: Module, into: Path) -> None:
        module.model.save_pretrained(into)

    out = config.parent / "out"
    trainer = pl.Trainer(
        accelerator="gpu" if device == "cuda" else "cpu", devices=1, max_steps=STEPS,
        precision="bf16-mixed" if device == "cuda" else "32-true", accumulate_grad_batches=MICROS,
        callbacks=[MixtureCheckpoint(out, export=export, every_n_train_steps=30)],
        logger=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(Module(), datamodule=MixtureDataModule(config))
    assert trainer.global_step == STEPS
    return torch.cat(seen)


def checked(
    train: Callable[[Path, str], torch.Tensor], config: Path, device: str
) -> dict[str, Any]:
    """Trains, and compares what the model saw with the one order that the schedule makes."""
    began = time.perf_counter()
    seen = train(config, device)
    seconds = time.perf_counter() - began
    paths = RunPaths(config.parent / "run")
    schedule, status = read_schedule(paths.schedule), read_status(paths.status).value
    opened = schedule.latest_open
    if opened is None or status is None:
        raise RuntimeError(f"{paths.dir}: no schedule or no status")
    sizes = {entry.name: entry.samples for entry in opened.sources}
    source, index = MixtureOrder(sizes, opened.seed, schedule.mixture).batch(0, STEPS * QUANTUM)
    applied = next((one.step for one in schedule.segments if one.generation == 1), -1)
    audited = audit(config)
    return {
        "problems": unless(
            batches_came_on_the_device=seen.device.type == device,
            batches_are_those_of_the_schedule=seen.tolist() == (source * NUMBER + index).tolist(),
            applied_later_than_asked=ASKED < applied < STEPS,
            in_force_at_the_end=status.finished and status.in_force.generation == 1,
            the_audit_is_consistent=audited["consistent"],
        ),
        "steps": STEPS,
        "asked_at_step": ASKED,
        "applied_at_step": applied,
        "samples_compared": len(seen),
        "loss": status.loss,
        "seconds": seconds,
        "audit": audited,
    }


def run(options: argparse.Namespace) -> dict[str, Callable[[], Any]]:
    """The part's steps."""
    warnings.simplefilter("ignore")
    folder = options.scratch / "adapters"
    ways = {"huggingface": huggingface}
    if importlib.util.find_spec("lightning") is not None:
        ways["lightning"] = lightning
    return {
        name: partial(checked, train, make_run(folder, name), options.device)
        for name, train in ways.items()
    }
