"""Lightning's Trainer under DDP on CPU ranks: ``python lightning_ranks.py JSON``, one per rank.

Each rank leaves the first tokens it trained on in ``NAME-RANK``; rank 0 orders after step 9.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch

from mixloop.contract import Order, RunPaths, write_order
from mixloop.trainer.adapters.lightning import MixtureCheckpoint, MixtureDataModule


class Module(pl.LightningModule):
    """A bigram; remembers the first token of each row."""

    def __init__(self, mixture: Path) -> None:
        super().__init__()
        self.logits = torch.nn.Embedding(600, 600)
        self.mixture = mixture
        self.seen: list[int] = []

    def training_step(self, batch: Any, index: int) -> torch.Tensor:
        self.seen += batch["input_ids"][:, 0].tolist()
        logits = self.logits(batch["input_ids"][:, :-1]).transpose(1, 2)
        return torch.nn.functional.cross_entropy(logits, batch["labels"][:, 1:])

    def on_train_batch_end(self, *_: Any) -> None:
        time.sleep(0.01)  # else all steps are over before a disk has taken an order
        if self.trainer.global_step == 9 and self.trainer.is_global_zero:
            write_order(self.mixture, Order("r", 1, 1, {"a": 0.2, "b": 0.2, "c": 0.6}))

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def train(asked: dict[str, Any]) -> None:
    folder = Path(asked["folder"])
    module = Module(RunPaths(folder / "run").mixture)
    trainer = pl.Trainer(
        strategy="ddp", accelerator="cpu", devices=2, max_steps=asked["steps"],
        accumulate_grad_batches=2, logger=False, enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[MixtureCheckpoint(folder / "out", every_n_train_steps=8)],
    )  # fmt: skip
    data = MixtureDataModule(folder / "run.yaml")
    trainer.fit(module, datamodule=data, ckpt_path=asked["resume"])
    (folder / f"{asked['name']}-{os.environ['LOCAL_RANK']}").write_text(json.dumps(module.seen))


if __name__ == "__main__":
    train(json.loads(sys.argv[1]))
