"""The mixture as a dataset: for torch's DataLoader and torchdata's StatefulDataLoader.

dataset = MixtureDataset.from_config("run.yaml")
for batch in DataLoader(dataset, batch_size=None, num_workers=0):
    loss = train_on(batch["input_ids"], batch["labels"])
    dataset.report(loss=loss, lr=lr)
"""

from __future__ import annotations

from typing import Any

from torch.utils.data import IterableDataset

from .loader import MixtureLoader
from .refusals import check_drawing_process


class MixtureDataset(MixtureLoader, IterableDataset[dict[str, Any]]):
    """A :class:`MixtureLoader` for a DataLoader with `batch_size=None` and `num_workers=0`.

    Make it after `torch.distributed.init_process_group`; don't shuffle or shard it again: worker
    processes and accelerate's `prepare` are refused.
    """

    @property
    def generator(self) -> None:
        """None; accelerate asks for it when it is about to slice the batches, and is refused."""
        check_drawing_process(type(self).__name__)
