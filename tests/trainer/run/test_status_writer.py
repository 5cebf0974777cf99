"""Losses by source."""

from __future__ import annotations

import numpy as np

from mixloop.trainer.run import LossPerSource, SingleProcess


def test_loss_per_source_is_the_mean_over_its_sequences() -> None:
    import torch

    totals = LossPerSource(3, torch.device("cpu"))
    totals.add(np.array([0, 2, 0]), torch.tensor([1.0, 5.0, 3.0]))
    totals.add(np.array([2, 2]), torch.tensor([6.0, 7.0]))
    sums, counts = totals.take(SingleProcess())
    assert (sums.tolist(), counts.tolist()) == ([4.0, 0.0, 18.0], [2.0, 0.0, 3.0])
    assert totals.take(SingleProcess())[1].tolist() == [0.0, 0.0, 0.0]
