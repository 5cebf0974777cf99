"""torchtitan's own Trainer on CPU ranks: ``python titan_run.py JSON``, or under torchrun.

Each rank leaves the first tokens it was given in ``NAME-RANK``; after ``order_at`` steps rank 0
orders another mixture, as the controller would.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ["TORCHDYNAMO_DISABLE"] = "1"
sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
import titan_cpu  # noqa: F401 - before torchtitan
from torchtitan_dataloader import llama3_on_a_mixture

from mixloop.contract import Order, RunPaths, write_order


def train(asked: dict[str, Any]) -> None:
    folder, rank = Path(asked["folder"]), int(os.environ["RANK"])
    config = llama3_on_a_mixture(folder / "run.yaml")
    config.training.steps = asked["steps"]
    config.training.disable_cuda_graphs = True
    config.training.global_batch_size = asked["global_batch_size"]
    config.checkpoint.interval = 4
    config.checkpoint.async_mode = asked["async_mode"]
    config.checkpoint.last_save_model_only = asked["last"]
    config.activation_checkpoint = None
    config.parallelism.spmd_backend = "partial_dtensor"
    layers = config.model_spec.model.layers
    del layers[1:]
    trainer = config.build()
    for module in trainer.model_parts[0].modules():
        if hasattr(module, "set_force_sum_reduction_for_comms"):
            module.set_force_sum_reduction_for_comms(True)  # gloo knows sums alone
    seen: list[int] = []
    step = trainer.train_step

    def recorded(batches: Any) -> None:
        def tee() -> Any:
            for inputs, labels in batches:
                assert (inputs["input"][:, 1:] == labels[:, :-1]).all()
                seen.extend(inputs["input"][:, 0].tolist())
                yield inputs, labels

        step(tee())
        if trainer.step == asked["order_at"] and rank == 0:
            weights = {"a": 0.2, "b": 0.2, "c": 0.6}
            write_order(RunPaths(folder / "run").mixture, Order("r", 1, 1, weights))

    trainer.train_step = recorded
    try:
        trainer.train()
    finally:
        trainer.close()
    (folder / f"{asked['name']}-{rank}").write_text(json.dumps(seen))


if __name__ == "__main__":
    train(json.loads(sys.argv[1]))
