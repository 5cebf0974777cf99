"""torchtitan on a mixture: `torchrun --nproc_per_node=8 torchtitan_dataloader.py run.yaml`.

What it adds to torchtitan's own configuration is one call. In a code base of yours, put the
function into a config_registry module and name it to torchtitan's launcher with --module, --config.
"""

from __future__ import annotations

import sys
from pathlib import Path

from torchtitan.models.llama3 import model_registry
from torchtitan.models.llama3.config_registry import llama3_debugmodel
from torchtitan.trainer import Trainer

from mixloop.trainer.adapters.torchtitan import with_mixture
from mixloop.trainer.runfile import load_run


def llama3_on_a_mixture(run: Path, attention: str = "flex") -> Trainer.Config:
    """torchtitan's debug model on the run's sources; its steps are the run's."""
    config = llama3_debugmodel()
    config.model_spec = model_registry("debugmodel", attn_backend=attention)
    config.hf_assets_path = str(run.parent / "tokenizer")
    config.dump_folder = str(run.parent / "titan")
    job = load_run(run)
    settings = job.settings
    config.training.seq_len = job.sequence_length
    config.training.local_batch_size = settings.micro_batch
    config.checkpoint.enable = True
    config.validator.enable = False
    return with_mixture(config, run, export=True)


if __name__ == "__main__":
    trainer = llama3_on_a_mixture(Path(sys.argv[1])).build()
    try:
        trainer.train()
    finally:
        trainer.close()
