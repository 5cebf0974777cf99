"""Adapters, against the real frameworks; checkpoints of others as the controller reads them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from mixloop.controller.config import load_config
from mixloop.controller.layouts import Layout
from mixloop.trainer import MixtureLoader
from mixloop.trainer.contract import RunPaths, read_schedule, read_status
from mixloop.trainer.job import JobError
from mixloop.trainer.order import MixtureOrder

EXAMPLES = Path(__file__).parent.parent / "examples"
LENGTH, ROWS, MICROS, STEPS = 16, 2, 2, 12


@pytest.fixture
def run_file(tmp_path: Path) -> Path:
    for number, name in enumerate(("web", "code")):
        folder = tmp_path / name
        folder.mkdir()
        ids = np.random.default_rng(number).integers(0, 500, 2000).astype("<u2")
        ids.tofile(folder / "tokens.bin")
        header = {"schema": "mixloop/store/1", "tokens": ids.size, "documents": 1}
        header |= {"dtype": "uint16", "vocab_size": 512, "tokenizer": "t", "fingerprint": name}
        (folder / "store.json").write_text(json.dumps(header | {"eos_id": 0}))
    run = {
        "run": {"id": "r", "dir": "run"},
        "budget": STEPS * MICROS * ROWS * LENGTH,
        "sources": {"web": {"path": "web", "weight": 0.7}, "code": {"path": "code", "weight": 0.3}},
        "checkpoints": {"layout": "hf-trainer", "dir": "out"},
        "trainer": {"sequence_length": LENGTH, "micro_batch": ROWS, "accumulation": MICROS},
    }
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(run))
    return path


def expected(run_file: Path, loader: MixtureLoader) -> np.ndarray[Any, Any]:
    """Every row of the run, by the pure function of the schedule."""
    schedule = read_schedule(RunPaths(load_config(run_file).run.dir).schedule)
    order = MixtureOrder(loader.sizes, loader.job.seed, schedule.mixture)
    source, index = order.batch(0, STEPS * MICROS * ROWS)
    stores = list(loader.stores.values())
    return np.stack(
        [stores[s].gather(np.array([i]), LENGTH)[0] for s, i in zip(source, index, strict=True)]
    )


def hf_trainer(run_file: Path, seen: list[Any], **changed: Any) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

    from mixloop.trainer.adapters.huggingface import MixtureMixin

    class Recording(MixtureMixin, Trainer):  # type: ignore[misc]
        def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            seen.append(inputs["input_ids"].numpy().copy())
            return super().compute_loss(model, inputs, *args, **kwargs)

    settings = {
        "output_dir": str(run_file.parent / "out"), "per_device_train_batch_size": ROWS,
        "gradient_accumulation_steps": MICROS, "save_steps": 5, "logging_steps": 1,
        "report_to": [], "use_cpu": True, "disable_tqdm": True, "save_total_limit": 3,
    }  # fmt: skip
    arguments = TrainingArguments(**settings | changed)
    config = LlamaConfig(
        vocab_size=512, hidden_size=16, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2,
    )  # fmt: skip
    loader = MixtureLoader.from_config(run_file, poll_every=2, status_every=2)
    return Recording(LlamaForCausalLM(config), arguments, mixture=loader)


@pytest.mark.filterwarnings("ignore")
def test_the_trainer_trains_on_the_global_order_and_goes_on_where_it_was(run_file: Path) -> None:
    first: list[Any] = []
    trainer = hf_trainer(run_file, first, max_steps=5)
    trainer.train()
    assert len(first) == 5 * MICROS
    again: list[Any] = []
    trainer = hf_trainer(run_file, again)
    assert trainer.args.max_steps == STEPS
    trainer.train(resume_from_checkpoint=True)
    rows = np.concatenate([*first, *again])
    np.testing.assert_array_equal(rows, expected(run_file, trainer.mixture))
    paths = RunPaths(load_config(run_file).run.dir)
    status = read_status(paths.status)
    assert status is not None
    assert (status.step, status.finished) == (STEPS, True)
    assert status.loss is not None
    assert status.lr is not None
    layout = Layout("hf-trainer", run_file.parent / "out")
    manifest = layout.manifest("checkpoint-10")
    assert manifest is not None
    assert (manifest.step, manifest.sample) == (10, 10 * MICROS * ROWS)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"per_device_train_batch_size": 3}, "per_device_train_batch_size: 3; make it 2"),
        ({"gradient_accumulation_steps": 1}, "gradient_accumulation_steps: 1; make it 2"),
        ({"dataloader_num_workers": 2}, "draws ahead in a thread of its own"),
    ],
)
def test_steps_that_would_not_be_the_loaders_are_refused(
    run_file: Path, changed: dict[str, Any], said: str
) -> None:
    with pytest.raises(JobError, match=said):
        hf_trainer(run_file, [], **changed)


def test_only_whole_checkpoints_of_the_layout_are_seen(run_file: Path) -> None:
    loader = MixtureLoader.from_config(run_file)
    next(loader), next(loader)
    out = run_file.parent / "out"
    folder = out / "checkpoint-1"
    folder.mkdir(parents=True)
    layout = Layout("hf-trainer", out)
    loader.saved(folder)
    loader.close()
    assert layout.manifest("checkpoint-1") is None, "no model in it yet"
    (folder / "config.json").write_text("{}")
    (folder / "model.bin").write_bytes(b"a pickle")
    assert layout.manifest("checkpoint-1") is None, "a pickle is no model"
    (folder / "model.safetensors").write_bytes(b"")
    assert layout.manifest("checkpoint-1") is not None
    assert [layout.step(name) for name in ("checkpoint-7", "step-00000007", "runs")] == [
        7,
        None,
        None,
    ]
    assert Layout("torchtitan", out).step("step-7") == 7
    (folder / "mixloop.json").write_text("{")
    assert layout.manifest("checkpoint-1") is None
    assert load_config(run_file).checkpoints.dir == out


def test_the_plain_loop_is_short_and_runs(run_file: Path) -> None:
    script = EXAMPLES / "plain_loop.py"
    assert len(script.read_text().splitlines()) < 40
    done = subprocess.run(
        [sys.executable, str(script), str(run_file)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    folder = load_config(run_file).run.dir / f"checkpoint-{STEPS}"
    assert Layout("hf-trainer", folder.parent).manifest(folder.name) is not None
