"""How the samples of a step are dealt to ranks and micro-batches."""

from __future__ import annotations

import numpy as np

from mixloop.trainer.batches import BatchLayout


def test_every_position_of_a_step_is_dealt_once() -> None:
    layouts = [BatchLayout(3, 2, rank, 4, 16) for rank in range(4)]
    assert layouts[0].quantum == 24
    dealt = np.concatenate([layout.positions().ravel() for layout in layouts])
    assert sorted(dealt.tolist()) == list(range(24))
    assert layouts[1].positions().tolist() == [[3, 4, 5], [15, 16, 17]]
