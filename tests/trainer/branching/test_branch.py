"""A branch: the run's own next steps where nothing is changed, and shared windows where it is."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mixloop.contract import RunPaths, ScheduleWriter, SegmentLine, quantise, read_schedule
from mixloop.trainer.branching import HALF, Branch, read_report, train_branch
from mixloop.trainer.branching.branch import BranchReport
from mixloop.trainer.branching.branch_start import manifest_of, rate_of, start_of
from mixloop.trainer.config import Job, JobError
from mixloop.trainer.prepare import prepare
from mixloop.trainer.run import checkpoint_store
from mixloop.trainer.sources import train_tokenizer
from mixloop.trainer.train import train

LENGTH, QUANTUM = 16, 8
WORDS = ("the", "of", "a", "loop", "mixes", "data", "while", "model", "learns", "to", "read")
START = {"web": 0.5, "code": 0.3, "logs": 0.2}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Job:
    """A finished run of twelve steps with checkpoints at 6 and 12."""
    folder = tmp_path_factory.mktemp("branching")
    random = np.random.default_rng(0)
    train_tokenizer([" ".join(WORDS)] * 3, folder / "tokenizer", 280)
    for name in START:
        lines = [" ".join(random.choice(WORDS, 40)) for _ in range(60)]
        (folder / f"{name}.jsonl").write_text("\n".join(json.dumps({"text": t}) for t in lines))
        prepare([str(folder / f"{name}.jsonl")], folder / name, str(folder / "tokenizer"))
    job = Job.model_validate(
        {
            "run": "tiny",
            "dir": str(folder / "run"),
            "seed": 5,
            "budget": 12 * QUANTUM * LENGTH,
            "sources": {n: {"path": str(folder / n), "weight": w} for n, w in START.items()},
            "settings": {
                "model": {
                    "hidden_size": 16,
                    "intermediate_size": 32,
                    "num_hidden_layers": 2,
                    "num_attention_heads": 2,
                },
                "sequence_length": LENGTH,
                "micro_batch": 4,
                "accumulation": 2,
                "learning_rate": 0.01,
                "warmup": 2 * QUANTUM * LENGTH,
                "decay": 4 * QUANTUM * LENGTH,
                "threads": 1,
                "device": "cpu",
                "precision": "fp32",
                "checkpoint_every": 6 * QUANTUM * LENGTH,
            },
        }
    )
    assert train(job) == 0
    return job


def checkpoint(job: Job, step: int) -> Path:
    return RunPaths(job.dir).checkpoints / checkpoint_store.folder_name(step)


def weights_of(folder: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


def same(one: Path, other: Path) -> bool:
    import torch

    first, second = weights_of(one), weights_of(other)
    return first.keys() == second.keys() and all(torch.equal(first[n], second[n]) for n in first)


def branch(job: Job, out: Path, weights: Mapping[str, float] = START, **kw: Any) -> BranchReport:
    start = kw.pop("checkpoint", checkpoint(job, 6))
    tokens = kw.pop("tokens", 6 * QUANTUM * LENGTH)
    return train_branch(Branch(job, start, weights, tokens, **kw), out)


def files_of(folder: Path) -> dict[str, str]:
    return {
        str(path): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_on_the_mixture_in_force_it_is_the_runs_own_next_steps_bit_for_bit(
    run: Job, tmp_path: Path
) -> None:
    before = files_of(run.dir)
    report = branch(run, tmp_path / "control", schedule="as the run")
    assert same(tmp_path / "control", checkpoint(run, 12))
    assert files_of(run.dir) == before
    assert (report.steps, report.tokens) == (6, 6 * QUANTUM * LENGTH)
    assert not report.fresh
    assert read_report(tmp_path / "control") == report


def test_a_checkpoint_of_sharded_state_and_steps_that_grow_go_on_the_same(
    run: Job, tmp_path: Path
) -> None:
    grown = {"from_tokens": 9 * QUANTUM * LENGTH, "accumulation": 3}
    settings = {"checkpoint_format": "dcp", "batch_schedule": [grown]}
    job = Job.model_validate(
        run.model_dump()
        | {"dir": tmp_path / "run", "settings": run.settings.model_dump() | settings}
    )
    assert train(job) == 0
    assert (checkpoint(job, 6) / "trainer_state").is_dir()
    report = branch(job, tmp_path / "control", schedule="as the run", checkpoint=checkpoint(job, 6))
    assert report.steps == 5
    assert same(tmp_path / "control", checkpoint(job, 11))


def test_what_the_run_recorded_for_later_plays_no_part(run: Job, tmp_path: Path) -> None:
    later = tmp_path / "run"
    shutil.copytree(run.dir, later)
    job = run.model_copy(update={"dir": later})
    line = SegmentLine(1, 9 * QUANTUM, 9, quantise({"logs": 1.0}), fence=1, generation=1)
    ScheduleWriter(RunPaths(later).schedule).append(line)
    assert len(read_schedule(RunPaths(later).schedule).segments) == 2
    branch(job, tmp_path / "control", schedule="as the run", checkpoint=checkpoint(job, 6))
    assert same(tmp_path / "control", checkpoint(run, 12))


def test_branches_see_the_same_windows_of_a_source_in_the_runs_order(run: Job) -> None:
    manifest = manifest_of(checkpoint(run, 6))
    seen = []
    for weights in (START, {"web": 0.2, "code": 0.3, "logs": 0.5}, {"logs": 1.0}):
        start = start_of(run, manifest, weights)
        source, index = start.order.batch(manifest.sample, 40)
        seen.append([list(index[source == n]) for n in range(3)])
    control, tilt, expert = seen
    for number in range(3):
        shared = min(len(control[number]), len(tilt[number]))
        assert control[number][:shared] == tilt[number][:shared]
    assert expert[2][: len(tilt[2])] == tilt[2]
    assert len(expert[2]) == 40
    assert not expert[0]


def test_the_rate_goes_on_or_falls_to_zero_from_where_the_run_is(run: Job) -> None:
    manifest, step = manifest_of(checkpoint(run, 6)), QUANTUM * LENGTH
    tokens = 6 * step
    places = [(manifest.tokens + n * step, manifest.tokens + (n + 1) * step) for n in range(6)]
    own = rate_of(run, manifest, tokens, "as the run", fresh=False)
    assert [own.rate(*place) for place in places][:2] == [0.01, 0.01]
    falling = rate_of(run, manifest, tokens, "to zero", fresh=False)
    rates = np.array([falling.rate(*place) for place in places])
    assert rates == pytest.approx(0.01 * (5.5 - np.arange(6)) / 6)
    fresh = rate_of(run, manifest, 20 * step, "to zero", fresh=True)
    assert fresh.rate(*places[0]) < fresh.rate(*places[1]) < fresh.rate(*places[2])


def test_half_way_weights_are_those_of_the_same_steps(run: Job, tmp_path: Path) -> None:
    report = branch(run, tmp_path / "whole", {"web": 1.0}, halfway=True)
    assert report.early == pytest.approx(0.75)
    assert same(tmp_path / "whole" / HALF, tmp_path / "whole") is False
    branch(run, tmp_path / "again", {"web": 1.0}, halfway=True)
    assert same(tmp_path / "whole" / HALF, tmp_path / "again" / HALF)
    assert same(tmp_path / "whole", tmp_path / "again")


def test_a_checkpoint_without_optimizer_state_begins_with_a_fresh_one_and_says_so(
    run: Job, tmp_path: Path
) -> None:
    bare = tmp_path / "step-00000006"
    shutil.copytree(checkpoint(run, 6), bare)
    (bare / checkpoint_store.STATE_FILE).unlink()
    # and as another loop's adapter leaves it
    manifest = json.loads((bare / "manifest.json").read_text()) | {"schema": "mixloop/saved/1"}
    (bare / "mixloop.json").write_text(json.dumps(manifest | {"state": {}}))
    (bare / "manifest.json").unlink()
    said: list[str] = []
    report = train_branch(
        Branch(run, bare, START, 2 * QUANTUM * LENGTH), tmp_path / "b", said.append
    )
    assert report.fresh
    assert said == [
        "step-00000006 has no optimizer state: branches begin with a fresh one",
    ]


def test_what_is_no_start_is_refused_in_one_line(run: Job, tmp_path: Path) -> None:
    torn = tmp_path / "step-00000006"
    shutil.copytree(checkpoint(run, 6), torn)
    (torn / checkpoint_store.STATE_FILE).write_bytes(b"no zip file")
    with pytest.raises(JobError, match=r"trainer_state\.pt can't be read"):
        branch(run, tmp_path / "a", checkpoint=torn)
    with pytest.raises(JobError, match="wiki"):
        branch(run, tmp_path / "a", {"wiki": 1.0})
    manifest = json.loads((torn / "manifest.json").read_text())
    manifest["sources"]["web"]["tokens"] += LENGTH
    (torn / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(JobError, match="a branch that the run has left"):
        branch(run, tmp_path / "a", checkpoint=torn)
    (torn / "manifest.json").unlink()
    with pytest.raises(JobError, match="neither manifest"):
        branch(run, tmp_path / "a", checkpoint=torn)
    assert not list(tmp_path.glob(f"{checkpoint_store.SCRATCH}*"))
    assert not (tmp_path / "a").exists()
