"""Lightning on a mixture: `python lightning_loop.py DIR`, in under a minute on a CPU.

Makes token stores out of the standard library's files and a run.yaml in DIR, and trains a small
Llama. Called again with more --steps it goes on from its newest checkpoint. Beside it, as ever:

    mixloop control DIR/run.yaml                scores DIR/out/checkpoint-N
    mixloop set DIR/run.yaml code=0.5           while it trains
"""

from __future__ import annotations

import argparse
import ast
import json
import sysconfig
from pathlib import Path

import lightning.pytorch as pl
import torch
import yaml
from transformers import LlamaConfig, LlamaForCausalLM

from mixloop.trainer.adapters.lightning import MixtureCheckpoint, MixtureDataModule
from mixloop.trainer.prepare import prepare
from mixloop.trainer.sources import TokenizerInfo, inspect_tokenizer, train_tokenizer

LENGTH, ROWS, ACCUMULATION, BUDGET_STEPS = 64, 4, 2, 400


def make_run(folder: Path) -> Path:
    """Token stores, a tokenizer and a run.yaml: modules as code, their docstrings as prose."""
    folder.mkdir(parents=True, exist_ok=True)
    texts: dict[str, list[str]] = {"code": [], "prose": []}
    for file in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))[:60]:
        source = file.read_text("utf-8", errors="ignore")
        texts["code"].append(source)
        nodes = ast.walk(ast.parse(source))
        kinds = (ast.Module, ast.ClassDef, ast.FunctionDef)
        docs = [ast.get_docstring(node) for node in nodes if isinstance(node, kinds)]
        texts["prose"] += [doc for doc in docs if doc and len(doc) > 80]
    documents = [text for source in texts.values() for text in source]
    tokenizer = train_tokenizer(documents[::3], folder / "tokenizer", 1024)
    for name, documents in texts.items():
        file = folder / f"{name}.jsonl"
        file.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
        prepare([str(file)], folder / name, str(tokenizer))
    run = {
        "run": {"id": "lightning", "dir": "run", "seed": 7},
        "budget": BUDGET_STEPS * ROWS * ACCUMULATION * LENGTH,
        "sources": {
            "prose": {"path": "prose", "weight": 0.9},
            "code": {"path": "code", "weight": 0.1},
        },
        "evals": {"benchmarks": {"gsm8k": {"data": "packages", "items": 8}}},
        "checkpoints": {"layout": "hf-trainer", "dir": "out"},
        "guards": {"max_epochs": None},
        "tracking": {"enabled": False},
        "trainer": {"sequence_length": LENGTH, "micro_batch": ROWS, "accumulation": ACCUMULATION,
                    "poll_every": 5, "status_every": 5},
    }  # fmt: skip
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(run))
    return path


class Llama(pl.LightningModule):
    """What is yours: a model, its loss, its optimizer."""

    def __init__(self, tokenizer: TokenizerInfo) -> None:
        super().__init__()
        config = LlamaConfig(
            vocab_size=tokenizer.vocab_size, bos_token_id=tokenizer.eos_id,
            eos_token_id=tokenizer.eos_id, hidden_size=64, intermediate_size=128,
            num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=LENGTH,
        )  # fmt: skip
        self.model = LlamaForCausalLM(config)

    def training_step(self, batch: dict[str, torch.Tensor], index: int) -> torch.Tensor:
        """The loss of a micro-batch."""
        return self.model(input_ids=batch["input_ids"], labels=batch["labels"]).loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW."""
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


def train(folder: Path, steps: int) -> None:
    """Train to `steps`, from the newest checkpoint where there is one."""

    def export(module: Llama, into: Path) -> None:  # what the controller scores
        module.model.save_pretrained(into)

    trainer = pl.Trainer(
        accelerator="cpu", devices=1, max_steps=steps, accumulate_grad_batches=ACCUMULATION,
        callbacks=[MixtureCheckpoint(folder / "out", export=export, every_n_train_steps=20)],
        logger=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    data = MixtureDataModule(folder / "run.yaml", on_change=print)
    saved = {int(path.parent.name.split("-")[1]): path
             for path in (folder / "out").glob("checkpoint-*/lightning.ckpt")}  # fmt: skip
    newest = saved[max(saved)] if saved else None
    print(f"from {newest.parent.name}" if newest else "from the beginning")
    model = Llama(inspect_tokenizer(folder / "tokenizer"))
    trainer.fit(model, datamodule=data, ckpt_path=newest)
    print(f"step {trainer.global_step}, {data.mixture.sample} samples")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=100)
    options = parser.parse_args()
    if not (options.folder / "run.yaml").exists():
        make_run(options.folder)
    train(options.folder, options.steps)
