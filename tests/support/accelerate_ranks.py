"""One of two gloo ranks that gives a MixtureDataset to accelerate.

``python accelerate_ranks.py RUN SOURCES DISPATCH`` with the sources as JSON; prints the refusal.
With ``out`` for DISPATCH accelerate gets the model alone: prints the first token of every row.
"""

from __future__ import annotations

import json
import sys

import torch
from accelerate import Accelerator, DataLoaderConfiguration
from torch.utils.data import DataLoader

from mixloop.trainer.config import JobError
from mixloop.trainer.loader import MixtureDataset

DISPATCH = {"None": None, "True": True, "False": False, "out": None}


def train(accelerator: Accelerator, dataset: MixtureDataset) -> None:
    """What works: each process has its own batches, accelerate the model and the optimizer."""
    model = torch.nn.Embedding(2**16, 1)
    prepared = accelerator.prepare(model, torch.optim.SGD(model.parameters(), 0.1))
    model, optimizer = prepared
    rows: list[int] = []
    for batch in DataLoader(dataset, batch_size=None):
        accelerator.backward(model(batch["input_ids"]).mean())
        if dataset.step_ends:
            optimizer.step()
            optimizer.zero_grad()
            dataset.report(loss=0.0)
        rows += batch["input_ids"][:, 0].tolist()
    sys.stdout.write(f"rows: {json.dumps(rows)}\n")


def main(run: str, sources: str, dispatch: str) -> None:
    configuration = DataLoaderConfiguration(dispatch_batches=DISPATCH[dispatch])
    accelerator = Accelerator(cpu=True, dataloader_config=configuration)
    dataset = MixtureDataset(
        run, run="r", sources=json.loads(sources), budget=8 * 160, sequence_length=8,
        micro_batch=2, accumulation=2,
    )  # fmt: skip
    if dispatch == "out":
        train(accelerator, dataset)
        return
    try:
        loader = accelerator.prepare(DataLoader(dataset, batch_size=None))
        next(iter(loader))
    except JobError as error:
        sys.stdout.write(f"refused: {error}\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
