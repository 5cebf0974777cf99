"""A plain PyTorch loop on a mixture: `python plain_loop.py run.yaml`, beside `mixloop control`."""

import sys

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from mixloop.trainer.loader import MixtureLoader

loader = MixtureLoader.from_config(sys.argv[1], on_change=print)
config = LlamaConfig(
    vocab_size=loader.vocab_size,
    bos_token_id=loader.eos_token_id,
    eos_token_id=loader.eos_token_id,
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=2,
    num_attention_heads=4,
)
model = LlamaForCausalLM(config).train()
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

for batch in loader:  # one micro-batch of this rank
    loss = model(input_ids=batch["input_ids"], labels=batch["labels"]).loss
    (loss / loader.accumulation).backward()
    if loader.step_ends:
        optimizer.step()
        optimizer.zero_grad()
        loader.report(loss=loss.detach(), lr=1e-3, phase="stable")

folder = loader.job.dir / f"checkpoint-{loader.step}"
model.save_pretrained(folder)
loader.mark_checkpoint(folder)  # its mixture and tokenizer: for the controller, and to go on from
loader.close()
