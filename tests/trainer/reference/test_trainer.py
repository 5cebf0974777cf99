"""The reference loop: sharding, elastic restarts, recomputation, schedules, bad steps, metrics."""

from __future__ import annotations

import json
import math
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mixloop.cli import output
from mixloop.contract import RunPaths, Status, read_manifest, read_status
from mixloop.controller import views
from mixloop.controller.core import curves_entry
from mixloop.controller.service import check_run
from mixloop.trainer.config import Job, JobError, TrainerSettings, learning_rate
from mixloop.trainer.prepare import prepare
from mixloop.trainer.run import checkpoint_store, flops_per_token
from mixloop.trainer.sources import train_tokenizer
from mixloop.trainer.train import main, train

LENGTH = 16
STEPS = 12
WORDS = [
    "the",
    "of",
    "a",
    "loop",
    "mixes",
    "data",
    "while",
    "model",
    "learns",
    "to",
    "read",
    "write",
    "and",
    "count",
]
MODEL = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sources `web` and `code`, and `bad`, the only one with a digit in it."""
    folder = tmp_path_factory.mktemp("stores")
    random = np.random.default_rng(0)
    train_tokenizer([" ".join(WORDS)] * 3, folder / "tokenizer", 280)
    for name in ("web", "code", "bad"):
        lines = [" ".join(random.choice(WORDS, 40)) for _ in range(60)]
        if name == "bad":
            lines = [line.replace(" ", "7") for line in lines]
        (folder / f"{name}.jsonl").write_text("\n".join(json.dumps({"text": t}) for t in lines))
        prepare([str(folder / f"{name}.jsonl")], folder / name, str(folder / "tokenizer"))
    return folder


def make_job(folder: Path, stores: Path, *, steps: int = STEPS, bad: float = 0.0, **kw: Any) -> Job:
    """A job of `steps` steps of 8 samples; `bad` is that source's share."""
    values = {
        "model": MODEL,
        "sequence_length": LENGTH,
        "micro_batch": 4,
        "accumulation": 2,
        "learning_rate": 0.01,
        "threads": 1,
        "device": "cpu",
        "precision": "fp32",
        "status_every": 4,
    }
    weights = {"web": 0.75 * (1 - bad), "code": 0.25 * (1 - bad), "bad": bad}
    return Job.model_validate(
        {
            "run": "tiny",
            "dir": str(folder),
            "seed": 5,
            "budget": steps * 8 * LENGTH,
            "sources": {n: {"path": str(stores / n), "weight": w} for n, w in weights.items()},
            "settings": values | kw,
        }
    )


def status_of(job: Job) -> Status:
    status = read_status(RunPaths(job.dir).status).value
    assert status is not None
    return status


def step_folder(job: Job, step: int = STEPS) -> Path:
    return RunPaths(job.dir).checkpoints / checkpoint_store.folder_name(step)


def kept(job: Job, step: int = STEPS) -> dict[str, Any]:
    import torch

    state: dict[str, Any] = torch.load(
        step_folder(job, step) / "trainer_state.pt", weights_only=True
    )
    return state


def losses(job: Job, step: int = STEPS) -> list[float]:
    """The loss of every step over all ranks."""
    found: list[float] = kept(job, step)["watch"]["losses"]
    assert len(found) == step
    return found


def weights(job: Job, step: int = STEPS) -> dict[str, Any]:
    from safetensors.torch import load_file

    return load_file(step_folder(job, step) / "model.safetensors")


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, stores: Path) -> Job:
    """The run that all others are compared with: one process, nothing special."""
    job = make_job(tmp_path_factory.mktemp("alone") / "run", stores)
    assert train(job) == 0
    return job


def on_ranks(folder: Path, runs: list[tuple[int, Job]], traces: bool = False) -> list[Path]:
    """Carry out jobs on so many ranks each, one after the other; their traces."""
    listed, traced = [], []
    for number, (ranks, job) in enumerate(runs):
        file = folder / f"job-{number}.json"
        file.write_text(job.model_dump_json())
        traced.append(folder / f"trace-{number}")
        listed.append([ranks, str(file), str(traced[-1]) if traces else None])
    (folder / "runs.json").write_text(json.dumps(listed))
    script = Path(__file__).parents[2] / "support" / "forked_ranks.py"
    environment = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE")}
    done = subprocess.run(
        [sys.executable, str(script), str(folder / "runs.json")],
        env=environment | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return traced


def same_training(job: Job, other: Job, step: int = STEPS) -> None:
    """Losses and weights agree as far as fp32 sums in another order do."""
    import torch

    assert losses(job, step) == pytest.approx(losses(other, step), rel=2e-5)
    ours, theirs = weights(job, step), weights(other, step)
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], rtol=1e-3, atol=2e-4)


def test_sharded_training_is_the_same_training_and_moves_between_world_sizes(
    tmp_path: Path, stores: Path, alone: Job
) -> None:
    fsdp = {"parallel": "fsdp", "activation_checkpointing": True}

    def part(steps: int, rows: int, micros: int, **changes: Any) -> Job:
        layout = {"micro_batch": rows, "accumulation": micros}
        return make_job(tmp_path / "moving", stores, steps=steps, **layout, **changes)

    # two ranks, then one, then four: 8 samples a step throughout
    moving = [(2, part(4, 2, 2, **fsdp)), (1, part(8, 4, 2, **fsdp)), (4, part(12, 2, 1, **fsdp))]
    traces = on_ranks(tmp_path, moving, traces=True)
    last = moving[-1][1]
    same_training(last, alone)
    manifest = read_manifest(step_folder(last)).value
    assert manifest is not None
    parts = {name for name in manifest.files if name.startswith("trainer_state/")}
    assert {"trainer_state/.metadata", "trainer_state/__3_0.distcp"} <= parts
    assert "optimizer" not in kept(last)
    for name, entry in manifest.files.items():
        assert checkpoint_store.entry(step_folder(last) / name) == entry
    assert not list(RunPaths(last.dir).checkpoints.glob(f"{checkpoint_store.SCRATCH}*"))

    # the same samples at the same steps, whoever drew them
    seen: dict[int, list[tuple[int, int]]] = {}
    for file in sorted(p for t in traces for p in t.parent.glob(f"{t.name}*")):
        for line in map(json.loads, file.read_text().splitlines()):
            pairs = zip(np.ravel(line["source"]), np.ravel(line["index"]), strict=True)
            seen.setdefault(line["step"], []).extend((int(s), int(i)) for s, i in pairs)
    again = make_job(tmp_path / "again", stores)
    assert train(again, trace=tmp_path / "one") == 0
    for line in map(json.loads, (tmp_path / "one").read_text().splitlines()):
        pairs = zip(np.ravel(line["source"]), np.ravel(line["index"]), strict=True)
        assert sorted(seen[line["step"]]) == sorted((int(s), int(i)) for s, i in pairs)

    # what evaluators load is whole
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(step_folder(last))
    assert type(model).__name__ == "LlamaForCausalLM"


@pytest.mark.soak
def test_every_way_to_share_a_model_continues_every_other(
    tmp_path: Path, stores: Path, alone: Job
) -> None:
    """DDP and FSDP2 on two ranks, either format, resumed as the other; bf16 close to fp32."""
    layout = {"micro_batch": 2, "accumulation": 2}

    def two(name: str, steps: int = STEPS, **changes: Any) -> tuple[int, Job]:
        return 2, make_job(tmp_path / name, stores, steps=steps, **layout, **changes)

    runs = [
        two("ddp"),
        two("fsdp", parallel="fsdp"),
        two("recomputed", activation_checkpointing=True),
        two("ddp-dcp", steps=6, checkpoint_format="dcp"),
        two("ddp-dcp", parallel="fsdp"),
        two("single", steps=6),
        two("single", parallel="fsdp"),
        two("back", steps=6, parallel="fsdp", checkpoint_initial=True),
        two("back"),
        two("bf16", parallel="fsdp", precision="bf16"),
        two("bf16-ddp", precision="bf16"),
    ]
    untied = {**MODEL, "tie_word_embeddings": False}
    apart = make_job(tmp_path / "apart", stores, model=untied)
    apart_fsdp = two("apart-fsdp", model=untied, parallel="fsdp")
    on_ranks(tmp_path, [*runs, (1, apart), apart_fsdp])
    same_training(apart_fsdp[1], apart)
    for _, job in runs:
        if job.settings.precision == "fp32" and job.budget == STEPS * 8 * LENGTH:
            same_training(job, alone)
        if job.settings.precision == "bf16":
            assert losses(job) == pytest.approx(losses(alone), rel=0.02)
            assert {str(t.dtype) for t in weights(job).values()} == {"torch.float32"}


@pytest.mark.soak
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_compiled_layers_train_the_same(
    tmp_path: Path, stores: Path, alone: Job, parallel: str
) -> None:
    job = make_job(
        tmp_path / "run", stores, parallel=parallel, compile=True, activation_checkpointing=True,
        micro_batch=2,
    )  # fmt: skip
    on_ranks(tmp_path, [(2, job)])
    same_training(job, alone)


@pytest.mark.soak
def test_sharded_ranks_stop_together_and_go_on(tmp_path: Path, stores: Path, alone: Job) -> None:
    import signal
    import time

    job = make_job(
        tmp_path / "run", stores, steps=10**6, micro_batch=2, processes=2, parallel="fsdp",
        status_every=1, spike_window=10**5,
    )  # fmt: skip
    file = tmp_path / "job.json"
    file.write_text(job.model_dump_json())
    process = subprocess.Popen([sys.executable, "-m", "mixloop.trainer.train", str(file)])
    try:
        end = time.monotonic() + 120
        while time.monotonic() < end:
            status = read_status(RunPaths(job.dir).status).value
            if status is not None and status.step >= 3:
                break
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 130
    finally:
        process.kill()
        process.wait()
    stopped = status_of(job).step
    assert checkpoint_store.fault(step_folder(job, stopped)) is None
    end_at = stopped + 4
    longer = make_job(tmp_path / "run", stores, steps=end_at, parallel="fsdp", spike_window=10**5)
    assert train(longer) == 0
    both = min(end_at, STEPS)
    assert losses(longer, end_at)[:both] == pytest.approx(losses(alone)[:both], rel=2e-5)


def test_recomputed_activations_change_nothing(tmp_path: Path, stores: Path, alone: Job) -> None:
    job = make_job(tmp_path / "run", stores, activation_checkpointing=True)
    assert train(job) == 0
    assert losses(job) == losses(alone)


def test_a_sharded_state_resumes_bit_for_bit_and_runs_no_code(
    tmp_path: Path, stores: Path, alone: Job, capsys: pytest.CaptureFixture[str]
) -> None:
    first = make_job(tmp_path / "run", stores, steps=5, checkpoint_format="dcp")
    assert train(first) == 0
    job = make_job(tmp_path / "run", stores, checkpoint_format="dcp")
    assert train(job) == 0
    assert losses(job) == losses(alone)
    for name, tensor in weights(alone).items():
        assert tensor.equal(weights(job)[name])

    class Attack:
        def __reduce__(self) -> Any:
            return os.system, ("true",)

    metadata = step_folder(job) / "trainer_state" / ".metadata"
    real = metadata.stat().st_size
    attack = pickle.dumps(Attack())
    metadata.write_bytes(attack + b"\0" * (real - len(attack)))
    file = tmp_path / "job.json"
    file.write_text(make_job(tmp_path / "run", stores, steps=20).model_dump_json())
    assert main([str(file)]) == 2
    assert "metadata that names posix.system is not read" in capsys.readouterr().err


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path, stores: Path) -> None:
    assert train(make_job(tmp_path / "run", stores, steps=2, checkpoint_format="dcp")) == 0
    wider = make_job(tmp_path / "run", stores, model={**MODEL, "intermediate_size": 48})
    with pytest.raises(JobError, match="step-00000002: not a checkpoint of this model"):
        train(wider)


# --- learning rate


def test_a_cosine_run_ends_in_decay(tmp_path: Path, stores: Path) -> None:
    job = make_job(
        tmp_path / "run", stores, lr_schedule="cosine", warmup=2 * 8 * LENGTH,
        min_learning_rate=0.001,
    )  # fmt: skip
    assert train(job) == 0
    status = status_of(job)
    assert status.phase == "decay"
    done = (STEPS - 0.5 - 2) / (STEPS - 2)
    assert status.lr == pytest.approx(0.001 + 0.009 * (1 + math.cos(math.pi * done)) / 2)


def test_check_tells_what_cosine_means_for_the_guards(tmp_path: Path, stores: Path) -> None:
    file = tmp_path / "run.yaml"
    text = (
        f"run: {{id: tiny, dir: run}}\nbudget: 40k\nsources: {{web: {{path: {stores / 'web'}}}}}\n"
        "evals: {every: 10k, benchmarks: {mmlu: {}}}\nguards: {max_epochs: null}\n"
        "trainer: {sequence_length: 16, lr_schedule: cosine, warmup: 1k}\n"
    )
    file.write_text(text)
    assert "trainer.lr_schedule cosine decays from" in " ".join(check_run(file)["notes"])
    file.write_text(text.replace("epochs: null", "epochs: null, decay: allow"))
    assert "cosine" not in " ".join(check_run(file)["notes"])


def test_settings_that_contradict_one_another_are_refused() -> None:
    with pytest.raises(ValueError, match="decay 200 belongs to lr_schedule wsd"):
        TrainerSettings(lr_schedule="cosine", decay=200)
    with pytest.raises(ValueError, match="checkpoint_format single needs parallel ddp"):
        TrainerSettings(parallel="fsdp", checkpoint_format="single")
    with pytest.raises(JobError, match="warmup 300 and decay 0 tokens together exceed"):
        learning_rate(TrainerSettings(lr_schedule="cosine", warmup=300), 200)


# --- bad steps


def brittle(folder: Path, stores: Path) -> str:
    """A model that the digit 7 breaks: its embedding is not finite."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    job = make_job(folder / "seed", stores, steps=1, model={**MODEL, "tie_word_embeddings": False})
    assert train(job) == 0
    model = AutoModelForCausalLM.from_pretrained(step_folder(job, 1))
    tokenizer = AutoTokenizer.from_pretrained(step_folder(job, 1))
    seven = tokenizer("7", add_special_tokens=False).input_ids
    with torch.no_grad():
        model.model.embed_tokens.weight[seven] = math.nan
    model.save_pretrained(folder / "brittle")
    return str(folder / "brittle")


def test_a_gradient_that_is_not_finite_costs_its_step_and_no_more(
    tmp_path: Path, stores: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    init = brittle(tmp_path, stores)
    job = make_job(tmp_path / "run", stores, model=None, init_from=init, bad=1 / 32)
    assert train(job, trace=tmp_path / "trace") == 0
    lines = [json.loads(line) for line in (tmp_path / "trace").read_text().splitlines()]
    broken = [line["step"] + 1 for line in lines if 2 in np.ravel(line["source"])]
    assert 0 < len(broken) < STEPS
    health = status_of(job).health
    assert health is not None
    assert (health.nan_steps, health.last_nan_step) == (len(broken), broken[-1])
    assert f"step {broken[0]}: the gradient is not finite" in capsys.readouterr().err
    shown = output.status_lines(views.look(RunPaths(job.dir), None))
    assert f"Trouble    {len(broken)} steps without a finite gradient, 0 loss spikes; " in str(
        shown
    )
    assert all(math.isfinite(loss) for loss in kept(job)["watch"]["losses"])
    steps = {float(entry["step"]) for entry in kept(job)["optimizer"]["state"].values()}
    assert steps == {STEPS - len(broken)}
    for name, tensor in weights(job).items():
        assert bool(tensor.isfinite().all()) == (name != "model.embed_tokens.weight")


def test_a_start_from_weights_that_are_not_there_is_refused(tmp_path: Path, stores: Path) -> None:
    from safetensors.torch import load_file, save_file

    init = Path(brittle(tmp_path, stores))
    job = make_job(tmp_path / "run", stores, model=None, init_from=str(init))
    saved = load_file(init / "model.safetensors")
    wrapped = {f"_orig_mod.{name}": tensor for name, tensor in saved.items()}
    narrow = saved | {"model.norm.weight": saved["model.norm.weight"][:8].clone()}
    for weights_there, said in (
        (wrapped, r"init_from: .* lacks 2\d of its model's weights, such as lm_head.weight"),
        (narrow, "init_from: .*mismatched"),
    ):
        save_file(weights_there, init / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(JobError, match=said):
            train(job)


def test_a_run_that_has_diverged_ends_and_keeps_what_it_had(
    tmp_path: Path, stores: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = make_job(
        tmp_path / "run", stores, model=None, init_from=brittle(tmp_path, stores), bad=0.5,
        nan_limit=3, keep=1, checkpoint_initial=True, checkpoint_every=2 * 8 * LENGTH,
    )  # fmt: skip
    file = tmp_path / "job.json"
    file.write_text(job.model_dump_json())
    assert main([str(file)]) == 1
    told = capsys.readouterr().err
    assert "step 4: 4 gradients in a row were not finite, nan_limit is 3" in told
    assert "the checkpoint of step 2 is the newest" in told
    assert status_of(job).step == 4
    names = [path.name for path in sorted(RunPaths(job.dir).checkpoints.iterdir())]
    assert names == ["step-00000000", "step-00000002"]
    before, after = weights(job, 0), weights(job, 2)
    assert all(before[name].equal(after[name]) for name in before if "embed" not in name)

    file.write_text(
        make_job(
            tmp_path / "strict", stores, model=None, init_from=str(tmp_path / "brittle"), bad=0.5,
            on_nan="stop",
        ).model_dump_json()
    )  # fmt: skip
    assert main([str(file)]) == 1
    assert "nan_limit is 1; no checkpoint is made now, none is" in capsys.readouterr().err


# --- the machine


def test_the_status_tells_of_the_machine_and_mlflow_hears_it(tmp_path: Path, stores: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    job = make_job(tmp_path / "run", stores, peak_flops=1e12)
    assert train(job) == 0
    system = status_of(job).system
    assert system is not None
    assert system.device == "cpu"
    assert system.gpu_memory_gb is system.gpu_utilisation is None
    assert system.rss_gb is not None
    assert 0.1 < system.rss_gb < 50
    assert system.tokens_per_second is not None
    model = LlamaForCausalLM(LlamaConfig(vocab_size=280, tie_word_embeddings=True, **MODEL))
    count = sum(parameter.numel() for parameter in model.parameters())
    flops = 6 * count + 12 * 2 * 16 * LENGTH
    assert flops_per_token(model, LENGTH) == flops
    assert system.mfu == pytest.approx(system.tokens_per_second * flops / 1e12)
    apart = LlamaForCausalLM(LlamaConfig(vocab_size=280, tie_word_embeddings=False, **MODEL))
    assert flops_per_token(apart, LENGTH) == flops  # looking a token up multiplies nothing

    metrics = curves_entry(status_of(job), 0).payload["metrics"]
    assert metrics["system/mfu"] == system.mfu
    assert metrics["system/rss_gb"] == system.rss_gb
    assert metrics["train/nan_steps"] == 0
    assert "system/device" not in metrics
    assert "system/gpu_memory_gb" not in metrics
