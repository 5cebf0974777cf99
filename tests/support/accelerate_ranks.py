"""One of two gloo ranks that gives a MixtureDataset to accelerate.

``python accelerate_ranks.py RUN SOURCES DISPATCH`` with the sources as JSON; prints the refusal.
"""

from __future__ import annotations

import json
import sys

from accelerate import Accelerator, DataLoaderConfiguration
from torch.utils.data import DataLoader

from mixloop.trainer.config import JobError
from mixloop.trainer.loader import MixtureDataset

DISPATCH = {"None": None, "True": True, "False": False}


def main(run: str, sources: str, dispatch: str) -> None:
    configuration = DataLoaderConfiguration(dispatch_batches=DISPATCH[dispatch])
    accelerator = Accelerator(cpu=True, dataloader_config=configuration)
    dataset = MixtureDataset(
        run, run="r", sources=json.loads(sources), budget=8 * 160, sequence_length=8,
        micro_batch=2, accumulation=2,
    )  # fmt: skip
    try:
        loader = accelerator.prepare(DataLoader(dataset, batch_size=None))
        next(iter(loader))
    except JobError as error:
        sys.stdout.write(f"refused: {error}\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
