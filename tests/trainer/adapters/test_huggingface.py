"""The Hugging Face adapter under a real `transformers.Trainer`: order, changes, resume, files."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments

from mixloop.contract import Order, RunPaths, read_schedule, read_status, write_order
from mixloop.trainer.adapters.huggingface import MixtureMixin
from mixloop.trainer.config import JobError
from mixloop.trainer.loader import MixtureDataset, MixtureLoader, read_saved_manifest
from mixloop.trainer.mixing import MixtureOrder
from mixloop.trainer.run import SingleProcess
from mixloop.trainer.sources import StoreInfo, train_tokenizer
from mixloop.trainer.sources.tokenizer import END_OF_TEXT

LENGTH, ROWS, MICROS = 8, 4, 2
QUANTUM = ROWS * MICROS
STEPS = 80
SIZES = {"a": 53, "b": 101, "c": 149}
RANKS = Path(__file__).parents[2] / "support" / "hf_ranks.py"
pytestmark = pytest.mark.filterwarnings(
    "ignore:This DataLoader will create", "ignore:'pin_memory' argument is set as true"
)


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folders = {}
    for number, (name, samples) in enumerate(SIZES.items()):
        folder = folders[name] = tmp_path_factory.mktemp(name)
        tokens = np.zeros((samples, LENGTH), "<u2")
        tokens[:, 0] = number * 200 + np.arange(samples)
        tokens.tofile(folder / "tokens.bin")
        info = StoreInfo(tokens.size, 1, "uint16", 2**16, "t", f"sha256:{name}", 0)
        (folder / "store.json").write_text(json.dumps(info.to_json()))
    return folders


class Recorder(MixtureMixin, Trainer):  # type: ignore[misc]  # transformers carries no types here
    """A Trainer that remembers the first token of every row it trained on."""

    seen: list[int]

    def training_step(self, model: Any, inputs: Mapping[str, Any], *rest: Any) -> Any:
        self.seen += inputs["input_ids"][:, 0].tolist()
        return super().training_step(model, inputs, *rest)


class Orders(TrainerCallback):  # type: ignore[misc]
    """Plays the controller: an order after step 10, another after step 25."""

    def __init__(self, mixture: Path) -> None:
        self.mixture = mixture

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        for step, share in ((10, 0.5), (25, 0.125)):
            if state.global_step == step:
                rest = (1 - share) / 2
                weights = {"a": rest, "b": rest, "c": share}
                write_order(self.mixture, Order("r", 1, step, weights))


def loader(
    folder: Path, stores: Mapping[str, Path], kind: Any = MixtureLoader, **options: Any
) -> Any:
    values: dict[str, Any] = {
        "run": "r",
        "budget": STEPS * QUANTUM * LENGTH,
        "weights": {"a": 0.5, "b": 0.5},
        "seed": 3,
        "sequence_length": LENGTH,
        "micro_batch": ROWS,
        "accumulation": MICROS,
        "poll_every": 2,
        "status_every": 2,
    }
    return kind(folder / "run", sources=stores, **(values | options))


def arguments(folder: Path, **options: Any) -> TrainingArguments:
    values: dict[str, Any] = {
        "output_dir": str(folder / "out"),
        "per_device_train_batch_size": ROWS,
        "gradient_accumulation_steps": MICROS,
        "logging_steps": 4,
        "save_steps": 16,
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
    }
    return TrainingArguments(**(values | options))


def trainer(mixture: Any, args: TrainingArguments) -> Recorder:
    config = LlamaConfig(
        vocab_size=600, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
        num_attention_heads=2, max_position_embeddings=LENGTH, pad_token_id=None,
    )  # fmt: skip
    orders = Orders(RunPaths(mixture.job.dir).mixture)
    recorder = Recorder(LlamaForCausalLM(config), args, mixture=mixture, callbacks=[orders])
    recorder.seen = []
    return recorder


def pure(folder: Path, samples: int) -> list[int]:
    """First tokens of the global order, from `schedule.jsonl` alone."""
    schedule = read_schedule(RunPaths(folder / "run").schedule)
    opened = schedule.latest_open
    assert opened is not None
    sizes = {entry.name: entry.samples for entry in opened.sources}
    source, index = MixtureOrder(sizes, opened.seed, schedule.mixture).batch(0, samples)
    return [int(token) for token in source * 200 + index]


@pytest.mark.parametrize("kind", [MixtureLoader, MixtureDataset], ids=["loader", "dataset"])
def test_it_trains_on_the_order_through_changes_and_a_resume(
    tmp_path: Path, stores: dict[str, Path], kind: Any
) -> None:
    args = arguments(tmp_path)
    changes: list[Any] = []
    first = trainer(loader(tmp_path, stores, kind, on_change=changes.append), args)
    first.add_callback(_Stop(20))
    first.train()
    assert first.seen == pure(tmp_path, 20 * QUANTUM)
    manifest = read_saved_manifest(tmp_path / "out" / "checkpoint-16").value
    assert manifest is not None
    assert (manifest.step, manifest.sample, manifest.tokens) == (
        16,
        16 * QUANTUM,
        16 * QUANTUM * LENGTH,
    )

    forgetful = trainer(loader(tmp_path, stores, kind), args)
    with pytest.raises(JobError, match=r"was at step 20, and no state was loaded; .* resume"):
        forgetful.train()

    (tmp_path / "out" / "checkpoint-18").mkdir()  # one whose writing was cut short
    second = trainer(loader(tmp_path, stores, kind, on_change=changes.append), args)
    assert second.train(resume_from_checkpoint=True).global_step == STEPS
    # what was trained on, from the checkpoint on, is the rest of the one order: nothing replayed
    begun = STEPS * QUANTUM - len(second.seen)
    assert begun == 16 * QUANTUM
    assert second.seen == pure(tmp_path, STEPS * QUANTUM)[begun:]

    status = read_status(RunPaths(tmp_path / "run").status).value
    assert status is not None
    assert (status.step, status.finished, status.in_force.generation) == (STEPS, True, 25)
    logged = [entry for entry in second.state.log_history if "loss" in entry][-1]
    assert (logged["step"], logged["epoch"]) == (STEPS, 1.0)
    assert (status.loss, status.lr) == pytest.approx((logged["loss"], logged["learning_rate"]))
    assert status.grad_norm == pytest.approx(logged["grad_norm"])
    applied = {segment.generation: segment.sample for segment in _segments(tmp_path)}
    assert {c.generation: c.sample for c in changes if c.generation} == {
        generation: applied[generation] for generation in (10, 25)
    }

    third = trainer(loader(tmp_path, stores, kind), args)
    third.train(resume_from_checkpoint=str(tmp_path / "out" / f"checkpoint-{STEPS}"))
    assert third.seen == []  # the budget is spent


def _segments(folder: Path) -> Iterator[Any]:
    return iter(read_schedule(RunPaths(folder / "run").schedule).segments)


class _Stop(TrainerCallback):  # type: ignore[misc]
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == self.step:
            control.should_training_stop = True


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"per_device_train_batch_size": 8}, "per_device_train_batch_size: 8; make it 4"),
        ({"gradient_accumulation_steps": 1}, "gradient_accumulation_steps: 1; make it 2"),
        (
            {"dataloader_num_workers": 2},
            r"^TrainingArguments\.dataloader_num_workers=2: .*; set .*dataloader_num_workers=0$",
        ),
        ({"accelerator_config": {"dispatch_batches": True}}, "dispatch_batches: True; leave it"),
        ({"accelerator_config": {"split_batches": True}}, "split_batches: True; leave it out"),
        ({"auto_find_batch_size": True}, "auto_find_batch_size: True; make it False"),
        ({"max_steps": STEPS + 1}, f"max_steps: {STEPS + 1}, but the budget.* after {STEPS}"),
    ],
)
def test_a_step_that_is_not_the_loaders_is_refused(
    tmp_path: Path, stores: dict[str, Path], options: dict[str, Any], says: str
) -> None:
    with pytest.raises(JobError, match=says):
        trainer(loader(tmp_path, stores), arguments(tmp_path, **options))


@pytest.mark.soak
def test_ranks_share_the_order_out(tmp_path: Path, stores: dict[str, Path]) -> None:
    """Two gloo ranks under DDP: a change in the middle, a resume, and what both saw together."""
    asked = {"folder": str(tmp_path), "sources": {name: str(at) for name, at in stores.items()}}
    subprocess.run([sys.executable, str(RANKS), json.dumps(asked)], check=True, timeout=200)
    steps = QUANTUM * 2
    for name, begun, ended in (("first", 0, 12), ("second", 8, 40)):
        traces = [json.loads((tmp_path / f"{name}-{rank}").read_text()) for rank in (0, 1)]
        micros = [[trace[at : at + ROWS] for at in range(0, len(trace), ROWS)] for trace in traces]
        together = [sorted(a + b) for a, b in zip(*micros, strict=True)]
        order = pure(tmp_path, ended * steps)[begun * steps :]
        both = 2 * ROWS
        assert together == [sorted(order[at : at + both]) for at in range(0, len(order), both)]
    [applied] = [line for line in _segments(tmp_path) if line.generation]
    assert 8 * steps < applied.sample < 40 * steps


class Plain(Trainer):  # type: ignore[misc]
    """A Trainer without the mixin, which has accelerate prepare its batches."""


@pytest.mark.parametrize("workers", [0, 2])
def test_a_trainer_that_gives_its_dataset_to_accelerate_is_refused(
    tmp_path: Path, stores: dict[str, Path], workers: int
) -> None:
    args = arguments(tmp_path, max_steps=4, dataloader_num_workers=workers)
    model = trainer(loader(tmp_path, stores), arguments(tmp_path)).model
    with loader(tmp_path, stores, MixtureDataset) as dataset:
        plain = Plain(model, args, train_dataset=dataset)
        refusal = "num_workers=2: .*; set num_workers=0$" if workers else "accelerate would deal"
        with pytest.raises(JobError, match=f"^MixtureDataset: {refusal}"):
            plain.train()


def test_other_ways_to_go_wrong_are_told(tmp_path: Path, stores: dict[str, Path]) -> None:
    with pytest.raises(JobError, match="1 processes share the batches out, the loader knows of 2"):
        trainer(loader(tmp_path, stores, world=2, peers=SingleProcess()), arguments(tmp_path))
    recorder = trainer(loader(tmp_path, stores), arguments(tmp_path))
    with pytest.raises(JobError, match=r"no checkpoint-N with mixloop.json"):
        recorder.train(resume_from_checkpoint=True)
    model, args = recorder.model, arguments(tmp_path)
    with pytest.raises(JobError, match="args= is missing"):
        Recorder(model, mixture=recorder.mixture)
    with pytest.raises(JobError, match="train_dataset= beside mixture="):
        Recorder(model, args, mixture=recorder.mixture, train_dataset=[1])


def test_checkpoints_by_epoch_are_marked_before_the_end(
    tmp_path: Path, stores: dict[str, Path]
) -> None:
    """An epoch of the Trainer is the budget: one checkpoint, at its end, while the loader runs."""
    recorder = trainer(loader(tmp_path, stores), arguments(tmp_path, save_strategy="epoch"))
    recorder.train()
    assert [path.name for path in (tmp_path / "out").glob("checkpoint-*")] == [
        f"checkpoint-{STEPS}"
    ]
    manifest = read_saved_manifest(tmp_path / "out" / f"checkpoint-{STEPS}").value
    assert manifest is not None
    assert manifest.step == STEPS


def test_processes_that_share_a_batch_are_refused(tmp_path: Path, stores: dict[str, Path]) -> None:
    class Split(Recorder):
        def get_tp_size(self) -> int:  # as it is where transformers dealt a model out to two
            return 2

    model = trainer(loader(tmp_path, stores), arguments(tmp_path)).model
    with pytest.raises(JobError, match="tensor parallelism of 2"):
        Split(model, arguments(tmp_path), mixture=loader(tmp_path, stores))


def test_a_checkpoint_that_cannot_be_scored_is_told_once(
    tmp_path: Path, stores: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    recorder = trainer(loader(tmp_path, stores), arguments(tmp_path))
    recorder.save_model = lambda *_, **__: None  # as FSDP does with sharded states: no safetensors
    for step in range(16, STEPS + 1, 16):
        (tmp_path / "out" / f"checkpoint-{step}").mkdir()
    recorder.train()
    assert capsys.readouterr().err.count("the controller will not score it") == 1


def test_a_loader_that_was_left_elsewhere_is_refused(
    tmp_path: Path, stores: dict[str, Path]
) -> None:
    mixture = loader(tmp_path, stores)
    for _, _batch in zip(range(4), mixture, strict=False):
        pass
    with pytest.raises(JobError, match="begins at step 0, the loader at 2: resume both"):
        trainer(mixture, arguments(tmp_path)).train()
    mixture.close()


def sft(base: type) -> type:
    """TRL's trainer, or what asks for as much, before which the mixin is put."""

    class Sft(MixtureMixin, base):  # type: ignore[misc]
        seen: list[int]

        def training_step(self, model: Any, inputs: Mapping[str, Any], *rest: Any) -> Any:
            self.seen += inputs["input_ids"][:, 0].tolist()
            return super().training_step(model, inputs, *rest)

    return Sft


class Demanding(Trainer):  # type: ignore[misc]
    """What TRL 1.16's SFTTrainer checks of its dataset and its batches."""

    def __init__(self, *args: Any, train_dataset: Any = None, **kwargs: Any) -> None:
        assert isinstance(train_dataset, datasets.Dataset)
        assert "input_ids" in next(iter(train_dataset))
        super().__init__(*args, train_dataset=train_dataset, **kwargs)

    def compute_loss(self, model: Any, inputs: Mapping[str, Any], *rest: Any, **more: Any) -> Any:
        assert inputs["attention_mask"].all()
        return super().compute_loss(model, inputs, *rest, **more)


Demanding.__name__, Demanding.__module__ = "SFTTrainer", "trl.trainer.sft_trainer"


@pytest.mark.parametrize("real", [False, True], ids=["as demanding", "real"])
def test_trls_sft_trainer_trains_on_the_order_and_resumes(
    tmp_path: Path, stores: dict[str, Path], real: bool
) -> None:
    trl = pytest.importorskip("trl") if real else None
    base, kind = (trl.SFTTrainer, trl.SFTConfig) if trl else (Demanding, TrainingArguments)
    from transformers import PreTrainedTokenizerFast

    made = train_tokenizer(["some words"], tmp_path / "tokenizer", 300) / "tokenizer.json"
    ends = {"eos_token": END_OF_TEXT, "pad_token": END_OF_TEXT}
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(made), **ends)
    more = {"bf16": False, "gradient_checkpointing": False} if real else {}

    def start(steps: int) -> Any:
        args = kind(**arguments(tmp_path, max_steps=steps).to_dict() | more)
        model = trainer(loader(tmp_path, stores), arguments(tmp_path)).model
        mixture = loader(tmp_path, stores)
        begun = sft(base)(model=model, args=args, mixture=mixture, processing_class=tokenizer)
        begun.seen = []
        return begun

    first = start(20)
    first.train()
    assert first.seen == pure(tmp_path, 20 * QUANTUM)
    second = start(STEPS)
    assert second.train(resume_from_checkpoint=True).global_step == STEPS
    assert second.seen == pure(tmp_path, STEPS * QUANTUM)[20 * QUANTUM :]


def test_what_trl_would_do_to_the_rows_is_refused(tmp_path: Path, stores: dict[str, Path]) -> None:
    mixture, args = loader(tmp_path, stores), arguments(tmp_path)
    model = trainer(mixture, args).model
    args.packing = True
    with pytest.raises(JobError, match=r"^SFTConfig\.packing: True; leave it out \(the loader's"):
        sft(Demanding)(model=model, args=args, mixture=mixture)
    preferences = type("DPOTrainer", (Trainer,), {"__module__": "trl.trainer.dpo_trainer"})
    with pytest.raises(JobError, match=r"^DPOTrainer: it learns from prompts or preferences, "):
        sft(preferences)(model=model, args=arguments(tmp_path), mixture=mixture)
