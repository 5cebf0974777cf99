"""Checkpoints of other trainers: which the controller finds, and what it makes of each."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from mixloop.common.errors import BadInput
from mixloop.contract import RunPaths, read_manifest
from mixloop.controller.config import load_config
from mixloop.controller.config.checkpoint_layouts import Layout, LayoutName
from mixloop.controller.journal import queries
from mixloop.trainer.loader import MixtureLoader
from mixloop.trainer.sources import StoreInfo

LENGTH = 8


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A `mixloop.json` that a real loader left after step 3."""
    folder = tmp_path_factory.mktemp("saved")
    tokens = np.zeros(LENGTH * 100, "<u2")
    (folder / "a").mkdir()
    tokens.tofile(folder / "a" / "tokens.bin")
    info = StoreInfo(tokens.size, 1, "uint16", 2**16, "t", "sha256:a", 0)
    (folder / "a" / "store.json").write_text(json.dumps(info.to_json()))
    loader = MixtureLoader(
        folder / "run", run="r", sources={"a": folder / "a"}, budget=LENGTH * 4 * 9,
        sequence_length=LENGTH, micro_batch=4,
    )  # fmt: skip
    with loader:
        for _, _batch in zip(range(3), loader, strict=False):
            loader.report(loss=1.0)
        assert loader.mark_checkpoint(folder)
    return folder / "mixloop.json"


def write_model(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text("{}")
    save_file({"w": torch.zeros(1)}, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("layout", "name"), [("hf-trainer", "checkpoint-3"), ("torchtitan", "step-3")]
)
def test_a_foreign_checkpoint_counts_once_it_is_whole(
    tmp_path: Path, saved: Path, layout: LayoutName, name: str
) -> None:
    here = Layout(layout, tmp_path)
    folder = tmp_path / name
    assert here.step(name) == 3
    assert here.manifest(name) is None
    write_model(folder)
    assert here.manifest(name) is None  # mixloop.json is the last to be written
    shutil.copy(saved, folder)
    found = here.manifest(name)
    assert found is not None
    assert (found.run, found.step, found.tokens) == ("r", 3, 3 * 4 * LENGTH)
    assert found.sources["a"].tokens == 3 * 4 * LENGTH
    # weights are read from safetensors alone: a pickle is no checkpoint
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    assert here.manifest(name) is None
    (folder / "pytorch_model.bin").rename(folder / "model.safetensors")
    # a step that is not the folder's own is another checkpoint's file
    other = folder.with_name(name.replace("3", "4"))
    folder.rename(other)
    assert here.manifest(other.name) is None


def test_an_index_names_shards_that_are_all_there(tmp_path: Path, saved: Path) -> None:
    here, folder = Layout("torchtitan", tmp_path), tmp_path / "step-3"
    write_model(folder)
    shutil.copy(saved, folder)
    weights = {"w": "model.safetensors", "v": "model-00002-of-00002.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weights}))
    assert here.manifest("step-3") is None
    save_file({"v": torch.zeros(1)}, folder / "model-00002-of-00002.safetensors")
    assert here.manifest("step-3") is not None
    for damaged in ('{"weight_map": []}', "[", '{"weight_map": {"w": "../a"}}'):
        (folder / "model.safetensors.index.json").write_text(damaged)
        assert here.manifest("step-3") is None


@pytest.mark.parametrize(
    ("layout", "names"),
    [
        ("mixloop", ["checkpoint-3", "step-3", "step-00000003x"]),
        ("hf-trainer", ["step-3", "checkpoint-", "checkpoint-3-tmp", "tmp-checkpoint-3"]),
        ("torchtitan", ["checkpoint-3", "step-", "step-3.tmp", "step--3"]),
    ],
)
def test_folders_of_something_else_are_no_checkpoints(layout: LayoutName, names: list[str]) -> None:
    here = Layout(layout, Path())
    assert [here.step(name) for name in names] == [None] * len(names)


def test_the_controller_scores_what_the_hugging_face_trainer_leaves(
    play: Any, tmp_path: Path
) -> None:
    run = play(checkpoints={"layout": "hf-trainer", "dir": "out"})
    for step in (20, 40):
        while (manifest := read_manifest(run.paths.checkpoints / f"step-{step:08d}").value) is None:
            run.trainer.advance()
        folder = tmp_path / "out" / f"checkpoint-{step}"
        write_model(folder)
        body = manifest.to_json() | {"schema": "mixloop/saved/1"}
        (folder / "mixloop.json").write_text(json.dumps(body))
        if step == 20:
            run.settle()
    for _ in range(1000):
        run.controller.step()
        if queries.checkpoint(run.journal, 40) is not None:
            break
    shutil.rmtree(tmp_path / "out" / "checkpoint-40")  # the Trainer's own retention
    run.settle()
    paths = [Path(row.path).name for row in queries.checkpoints(run.journal)]
    assert paths == ["checkpoint-20", "checkpoint-40"]
    states = queries.checkpoint_states(run.journal)
    assert [row.state for row in states] == ["scored", "failed"]
    assert "the checkpoint is gone" in (states[1].reason or "")


def test_the_section_is_read_beside_the_file_and_a_wrong_layout_named(
    play: Any, tmp_path: Path, played_run: Any
) -> None:
    path = played_run.make_run(tmp_path, checkpoints={"layout": "torchtitan", "dir": "out"})
    config = load_config(path)
    assert config.checkpoints.dir == tmp_path / "out"
    path.write_text(path.read_text().replace("torchtitan", "lightning"))
    with pytest.raises(BadInput, match=r"checkpoints\.layout"):
        load_config(path)
    assert RunPaths(config.run.dir).checkpoints == tmp_path / "run" / "checkpoints"
