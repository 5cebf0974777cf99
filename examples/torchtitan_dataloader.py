"""torchtitan on a mixture: `torchrun --nproc_per_node=8 torchtitan_dataloader.py run.yaml`.

What it adds to torchtitan's own configuration is one call. In a code base of yours, put the
function into a config_registry module and name it to torchtitan's launcher with --module, --config.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from torchtitan.models.llama3.config_registry import llama3_debugmodel
from torchtitan.trainer import Trainer

from mixloop.trainer.adapters.torchtitan import with_mixture
from mixloop.trainer.config import load_run

WORLD = int(os.environ.get("WORLD_SIZE", "1"))


def llama3_on_a_mixture(run: Path) -> Trainer.Config:
    """torchtitan's debug model on the run's sources; its steps are the run's."""
    config = llama3_debugmodel()
    config.hf_assets_path = str(run.parent / "tokenizer")
    config.dump_folder = str(run.parent / "titan")
    job = load_run(run)
    settings = job.settings
    config.training.seq_len = job.sequence_length
    config.training.local_batch_size = settings.micro_batch
    config.training.global_batch_size = settings.micro_batch * settings.accumulation * WORLD
    config.training.steps = job.budget // (
        config.training.global_batch_size * config.training.seq_len
    )
    config.checkpoint.enable = True
    config.validator.enable = False
    # safetensors for the controller, where there is a Hugging Face configuration to go with them
    export = Path(config.hf_assets_path, "config.json").is_file()
    return with_mixture(config, run, export=export)


if __name__ == "__main__":
    trainer = llama3_on_a_mixture(Path(sys.argv[1])).build()
    try:
        trainer.train()
    finally:
        trainer.close()
