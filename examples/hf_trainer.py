"""`transformers.Trainer` on a mixture that changes while it trains.

    python hf_trainer.py --demo                 all of it, in about a minute

or by hand, each in a shell of its own:

    python hf_trainer.py DIR --prepare          data and run.yaml
    mixloop control DIR/run.yaml                beside the training
    python hf_trainer.py DIR                    the training; --resume goes on
    mixloop set DIR/run.yaml code=0.5           while it trains

The data are the standard library's own files: modules as code, docstrings as prose. A small Llama
is trained from nothing; the demo orders more code in the middle, and shows the step at which
trainer and controller say the new mixture came into force.
"""

from __future__ import annotations

import argparse
import ast
import json
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path

import yaml

LENGTH, ROWS = 128, 8


def read_texts() -> dict[str, list[str]]:
    """The standard library's modules as code, their docstrings as prose."""
    texts: dict[str, list[str]] = {"code": [], "prose": []}
    for file in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        source = file.read_text("utf-8", errors="ignore")
        texts["code"].append(source)
        try:
            nodes = list(ast.walk(ast.parse(source)))
        except SyntaxError:
            continue
        kinds = (ast.Module, ast.ClassDef, ast.FunctionDef)
        docs = [ast.get_docstring(node) for node in nodes if isinstance(node, kinds)]
        texts["prose"] += [doc for doc in docs if doc and len(doc) > 80]
    return texts


def make_run(folder: Path, steps: int) -> Path:
    """Token stores, a tokenizer and a run.yaml in `folder`."""
    from mixloop.trainer.prepare import prepare
    from mixloop.trainer.sources import train_tokenizer

    folder.mkdir(parents=True, exist_ok=True)
    texts = read_texts()
    documents = [text for source in texts.values() for text in source]
    tokenizer = train_tokenizer(documents[::3], folder / "tokenizer", 2048)
    for name, documents in texts.items():
        file = folder / f"{name}.jsonl"
        file.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
        prepare([str(file)], folder / name, str(tokenizer))
    run = {
        "run": {"id": "hf", "dir": "run", "seed": 7},
        "budget": steps * ROWS * LENGTH,
        "sources": {
            "prose": {"path": "prose", "weight": 0.9},
            "code": {"path": "code", "weight": 0.1},
        },
        "evals": {"benchmarks": {"gsm8k": {"data": "packages", "items": 8}}},
        "checkpoints": {"layout": "hf-trainer", "dir": "out"},
        "guards": {"max_epochs": None},
        "controller": {"poll": 0.5},
        "tracking": {"enabled": False},
        "trainer": {"sequence_length": LENGTH, "micro_batch": ROWS, "poll_every": 5,
                    "status_every": 5},
    }  # fmt: skip
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(run))
    return path


def train(folder: Path, resume: bool = False) -> None:
    """What a user's script looks like: a loader in place of a dataset."""
    from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

    from mixloop.trainer.adapters.huggingface import MixtureMixin
    from mixloop.trainer.loader import MixtureLoader
    from mixloop.trainer.loader.incarnation import Change

    class MixtureTrainer(MixtureMixin, Trainer):
        pass

    def show(change: Change) -> None:
        shares = ", ".join(f"{name} {share:.2f}" for name, share in change.weights.items())
        print(f"trainer: generation {change.generation} from step {change.step}: {shares}")
        sys.stdout.flush()

    arguments = TrainingArguments(
        output_dir=str(folder / "out"), per_device_train_batch_size=ROWS, learning_rate=1e-3,
        logging_steps=20, save_steps=100, report_to=[], use_cpu=True, disable_tqdm=True,
    )  # fmt: skip
    loader = MixtureLoader.from_config(folder / "run.yaml", on_change=show)
    config = LlamaConfig(
        vocab_size=loader.vocab_size, bos_token_id=loader.eos_token_id,
        eos_token_id=loader.eos_token_id, hidden_size=96, intermediate_size=256,
        num_hidden_layers=3, num_attention_heads=4, max_position_embeddings=LENGTH,
    )  # fmt: skip
    trainer = MixtureTrainer(LlamaForCausalLM(config), arguments, mixture=loader)
    trainer.train(resume_from_checkpoint=resume or None)


def mixloop(*command: str) -> list[str]:
    """The command line of a mixloop command."""
    return [sys.executable, "-m", "mixloop.cli.app", *command]


def demo(folder: Path, steps: int) -> None:
    """Trainer and controller side by side, and an operator's order in the middle."""
    run = make_run(folder, steps)
    with (folder / "control.log").open("w") as log:
        control = subprocess.Popen(mixloop("control", str(run)), stdout=log, stderr=log)
    training = subprocess.Popen([sys.executable, __file__, str(folder)])
    try:
        wait_for_step(folder / "run" / "status.json", steps // 4, training)
        reason = "more code, from the example"
        print("operator:", output(mixloop("set", str(run), "code=0.5", "--reason", reason)))
        code = training.wait()
        control.wait(timeout=120)
    finally:
        for process in (training, control):
            if process.poll() is None:
                process.terminate()
                process.wait()
    for line in (folder / "control.log").read_text().splitlines():
        print("control:", line)
    for entry in json.loads(output(mixloop("history", str(run), "--json"))):
        if entry["asked_by"] == "operator":
            print(f"history: {entry['id']} in force from step {entry['applied_step']}")
    if code:
        sys.exit(f"the training ended with {code}")


def output(command: list[str]) -> str:
    """What a command prints."""
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def wait_for_step(status: Path, step: int, training: subprocess.Popen[bytes]) -> None:
    """Wait until the trainer says that it has come this far, or has ended."""
    while training.poll() is None:
        if status.exists() and json.loads(status.read_text())["step"] >= step:
            return
        time.sleep(0.2)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--demo", action="store_true")
    parser.add_argument("--prepare", action="store_true")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--resume", action="store_true")
    options = parser.parse_args()
    if options.demo:
        with tempfile.TemporaryDirectory() as temporary:
            demo(options.folder or Path(temporary), options.steps)
    elif options.folder is None:
        parser.error("give a folder, or --demo")
    elif options.prepare:
        print(make_run(options.folder, options.steps))
    else:
        train(options.folder, options.resume)
