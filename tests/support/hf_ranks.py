"""`transformers.Trainer` on two gloo ranks, stopped at step 12 and resumed from step 8.

``python hf_ranks.py JSON`` with the folder and the sources; each rank leaves the first tokens it
trained on in ``first-RANK`` and ``second-RANK``. The ranks are forked from one warm interpreter.
"""

from __future__ import annotations

import json
import os
import socket
import sys
from pathlib import Path
from typing import Any

from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.models.llama.modeling_llama import LlamaConfig, LlamaForCausalLM

from mixloop.contract import Order, RunPaths, write_order
from mixloop.trainer.adapters.huggingface import MixtureMixin
from mixloop.trainer.loader import MixtureLoader

LENGTH, ROWS, MICROS, STEPS = 8, 4, 2, 40


class Recorder(MixtureMixin, Trainer):
    """Remembers the first token of every row."""

    seen: list[int]

    def training_step(self, model: Any, inputs: Any, *rest: Any) -> Any:
        self.seen += inputs["input_ids"][:, 0].tolist()
        return super().training_step(model, inputs, *rest)


class Order9(TrainerCallback):
    """Rank 0 orders after step 9; the first run stops at `stop`."""

    def __init__(self, mixture: Path, stop: int) -> None:
        self.mixture, self.stop = mixture, stop

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == 9 and args.process_index == 0:
            write_order(self.mixture, Order("r", 1, 1, {"a": 0.2, "b": 0.2, "c": 0.6}))
        if state.global_step == self.stop:
            control.should_training_stop = True


def train(asked: dict[str, Any], name: str, stop: int, resume: bool) -> None:
    folder = Path(asked["folder"])
    arguments = TrainingArguments(
        output_dir=str(folder / "out"), per_device_train_batch_size=ROWS,
        gradient_accumulation_steps=MICROS, logging_steps=4, save_steps=8, report_to=[],
        use_cpu=True, ddp_backend="gloo", disable_tqdm=True,
    )  # fmt: skip
    loader = MixtureLoader(
        folder / "run", run="r", sources=asked["sources"], weights={"a": 0.5, "b": 0.5}, seed=3,
        budget=STEPS * ROWS * MICROS * 2 * LENGTH, sequence_length=LENGTH, micro_batch=ROWS,
        accumulation=MICROS, poll_every=2,
    )  # fmt: skip
    config = LlamaConfig(
        vocab_size=600, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
        num_attention_heads=2, max_position_embeddings=LENGTH,
    )  # fmt: skip
    callback = Order9(RunPaths(folder / "run").mixture, stop)
    trainer = Recorder(LlamaForCausalLM(config), arguments, mixture=loader, callbacks=[callback])
    trainer.seen = []
    trainer.train(resume_from_checkpoint=resume or None)
    (folder / f"{name}-{os.environ['RANK']}").write_text(json.dumps(trainer.seen))


def on_two_ranks(*given: Any) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    children = []
    for rank in ("0", "1"):
        child = os.fork()
        if child == 0:
            os.environ |= {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2"}
            os.environ |= {"LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
            os.environ |= {"MASTER_PORT": port}
            code = 1
            try:
                train(*given)
                code = 0
            finally:
                sys.stderr.flush()
                os._exit(code)
        children.append(child)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    if any(codes):
        sys.exit(f"{given[1:]}: ranks ended with {codes}")


if __name__ == "__main__":
    asked = json.loads(sys.argv[1])
    on_two_ranks(asked, "first", 12, False)
    on_two_ranks(asked, "second", STEPS, True)
