"""Means and merges of checkpoints' weights, and deltas in half precision."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from mixloop.evals.checkpoints import CheckpointError, WeightSum, same_weights, write_delta
from mixloop.evals.engine import load_checkpoint

Score = Callable[[Any], list[float]]
Tensors = dict[str, torch.Tensor]
FILE = "model.safetensors"
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


def moved(made: Path, to: Path, seed: int, by: float = 0.02) -> Path:
    """The same checkpoint with its weights moved a little at random."""
    folder = shutil.copytree(made, to)
    source = torch.Generator().manual_seed(seed)
    tensors = {
        name: tensor + by * torch.randn(tensor.shape, generator=source)
        for name, tensor in load_file(folder / FILE).items()
    }
    save(tensors, folder)
    return folder


def save(tensors: Tensors, folder: Path) -> None:
    save_file(tensors, folder / FILE, {"format": "pt"})


def shard(folder: Path) -> None:
    """The same weights in two files and an index."""
    tensors = load_file(folder / FILE)
    names = sorted(tensors)
    parts = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
    for file, part in parts.items():
        save_file({name: tensors[name] for name in part}, folder / file, {"format": "pt"})
    index = {"weight_map": {name: file for file, part in parts.items() for name in part}}
    (folder / f"{FILE}.index.json").write_text(json.dumps(index))
    (folder / FILE).unlink()


def weights_of(lm: Any) -> Tensors:
    return dict(lm.model.named_parameters())


def test_the_mean_is_that_of_every_weight(made: Path, tmp_path: Path, score: Score) -> None:
    folders = [moved(made, tmp_path / str(seed), seed) for seed in range(3)]
    shard(folders[1])
    lm = load_checkpoint(folders[0], weights=WeightSum.mean(folders))
    singly = [load_checkpoint(folder) for folder in folders]
    for name, mean in weights_of(lm).items():
        wanted = torch.stack([weights_of(one)[name] for one in singly]).mean(0)
        torch.testing.assert_close(mean, wanted, atol=1e-7, rtol=1e-6)
    assert score(lm) not in [score(one) for one in singly]


def test_a_checkpoint_averaged_with_itself_is_itself(made: Path) -> None:
    lm = load_checkpoint(made, weights=WeightSum.mean([made, made]))
    for name, weight in weights_of(load_checkpoint(made)).items():
        assert torch.equal(weights_of(lm)[name], weight)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_a_checkpoint_and_its_whole_delta_are_the_expert(
    dtype: Any, made: Path, tmp_path: Path
) -> None:
    expert, delta = moved(made, tmp_path / "expert", 1), tmp_path / "delta.safetensors"
    shard(expert)
    write_delta(made, expert, delta, dtype)
    steps = {"bfloat16": 2**-8, "float16": 2**-11, "float32": 2**-23}[dtype]
    lm = load_checkpoint(made, weights=WeightSum.merge(made, {delta: 1.0}))
    before, after = weights_of(load_checkpoint(made)), weights_of(load_checkpoint(expert))
    for name, weight in weights_of(lm).items():
        change = (after[name] - before[name]).abs().max().item()
        assert (weight - after[name]).abs().max() <= steps * change + 1e-6
    size = sum(weight.numel() for weight in after.values())
    assert delta.stat().st_size <= size * (4 if dtype == "float32" else 2) + 10_000
    assert [path.name for path in tmp_path.iterdir() if path.name.endswith(".tmp")] == []


def test_a_delta_is_read_by_safetensors_itself(made: Path, tmp_path: Path) -> None:
    expert, delta = moved(made, tmp_path / "expert", 1), tmp_path / "delta.safetensors"
    write_delta(made, expert, delta)
    before, after = load_file(made / FILE), load_file(expert / FILE)
    for name, tensor in load_file(delta).items():
        assert torch.equal(tensor, (after[name] - before[name]).bfloat16())


def test_half_precision_is_rounded_once(made: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(made, tmp_path / "half")
    save({name: tensor.bfloat16() for name, tensor in load_file(made / FILE).items()}, folder)
    expert, delta = shutil.copytree(folder, tmp_path / "expert"), tmp_path / "delta.safetensors"
    # a hundredth of what bfloat16 can add to 1: lost in each, not in the float32 sum of many
    save({name: tensor.float() + 1e-5 for name, tensor in load_file(folder / FILE).items()}, expert)
    write_delta(folder, expert, delta)
    merge = WeightSum.merge(folder, {delta: 1000.0})
    lm = load_checkpoint(folder, weights=merge)
    for name, weight in weights_of(lm).items():
        assert weight.dtype == torch.float32
        wanted = load_file(folder / FILE)[name].float() + 0.01
        torch.testing.assert_close(weight, wanted, atol=1e-4, rtol=0)
    halved = load_checkpoint(folder, weights=merge, dtype="bfloat16")
    assert {weight.dtype for weight in weights_of(halved).values()} == {torch.bfloat16}


@pytest.mark.parametrize("twice", ["the checkpoint", "the expert"])
def test_tied_weights_may_be_saved_once_or_twice(twice: str, made: Path, tmp_path: Path) -> None:
    once = shutil.copytree(made, tmp_path / "once")
    config = json.loads((once / "config.json").read_text()) | {"tie_word_embeddings": True}
    (once / "config.json").write_text(json.dumps(config))
    tensors = load_file(once / FILE)
    del tensors[HEAD]
    save(tensors, once)
    other = moved(once, tmp_path / "other", 1)
    tensors = load_file(other / FILE)
    save(tensors | {HEAD: tensors[EMBEDDING].clone()}, other)
    before, after = (other, once) if twice == "the checkpoint" else (once, other)
    delta = tmp_path / "delta.safetensors"
    write_delta(before, after, delta, "float32")
    for weights in (WeightSum.merge(before, {delta: 1.0}), WeightSum.mean([after, after])):
        lm = load_checkpoint(before, weights=weights)
        assert lm.model.lm_head.weight is lm.model.model.embed_tokens.weight
        wanted = load_file(after / FILE)[EMBEDDING]
        torch.testing.assert_close(lm.model.lm_head.weight, wanted, atol=1e-6, rtol=0)


def test_wrappers_names_and_whole_numbers_are_left_alone(made: Path, tmp_path: Path) -> None:
    expert, delta = moved(made, tmp_path / "expert", 1), tmp_path / "delta.safetensors"
    tensors = load_file(expert / FILE)
    save({f"_orig_mod.{name}": tensor for name, tensor in tensors.items()}, expert)
    folder = shutil.copytree(made, tmp_path / "folder")
    places = {"model.position_ids": torch.arange(9), "model.layers.0.inv_freq": torch.ones(3)}
    save(load_file(made / FILE) | places, folder)
    write_delta(folder, expert, delta)
    assert set(load_file(delta)) == set(load_file(made / FILE))
    lm = load_checkpoint(folder, weights=WeightSum.mean([folder, expert]))
    wanted = (load_file(made / FILE)[HEAD] + tensors[HEAD]) / 2
    torch.testing.assert_close(weights_of(lm)[HEAD], wanted, atol=1e-7, rtol=1e-6)


def _another_shape(tensors: Tensors) -> Tensors:
    return tensors | {HEAD: tensors[HEAD][:-1].clone()}


def _another_name(tensors: Tensors) -> Tensors:
    return {name.replace("up_proj", "upper"): tensor for name, tensor in tensors.items()}


def _one_less(tensors: Tensors) -> Tensors:
    return {name: tensor for name, tensor in tensors.items() if name != HEAD}


def _not_finite(tensors: Tensors) -> Tensors:
    return tensors | {HEAD: tensors[HEAD] / 0}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_another_shape, rf"another shape of {HEAD} \(\[599, 32\], not \[600, 32\]\)"),
        (_another_name, r"only one has model\.layers\.0\.mlp\.up_proj\.weight, "),
        (_one_less, rf"only one has {HEAD}"),
        (_not_finite, rf"{HEAD} is not finite"),
    ],
)
def test_weights_of_another_model_are_told_in_one_line(
    change: Callable[[Tensors], Tensors], said: str, made: Path, tmp_path: Path
) -> None:
    other = shutil.copytree(made, tmp_path / "other")
    save(change(load_file(made / FILE)), other)
    out = tmp_path / "delta.safetensors"
    with pytest.raises(CheckpointError, match=said) as caught:
        write_delta(made, other, out)
    assert len(str(caught.value).splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["other"], "nothing is left behind"
    if change is not _not_finite:
        with pytest.raises(CheckpointError, match=said):
            load_checkpoint(made, weights=WeightSum.mean([made, other]))


def test_what_is_gone_or_damaged_is_told(made: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no delta"):
        write_delta(made, tmp_path / "nowhere", tmp_path / "delta.safetensors")
    (tmp_path / "delta.safetensors").write_bytes(b"\0" * 20)
    with pytest.raises(CheckpointError, match=r"delta\.safetensors"):
        load_checkpoint(made, weights=WeightSum.merge(made, {tmp_path / "delta.safetensors": 1.0}))


def test_weights_are_the_same_however_they_are_saved(made: Path, tmp_path: Path) -> None:
    again = Path(shutil.copytree(made, tmp_path / "again"))
    tensors = load_file(again / FILE)
    save({name: tensor.bfloat16() for name, tensor in tensors.items()}, again)
    shard(again)
    assert same_weights(made, again)
    assert same_weights(again, made)
    assert not same_weights(made, moved(made, tmp_path / "moved", 1))
    tensors[next(iter(tensors))][0] += 1
    save(tensors, Path(shutil.copytree(made, tmp_path / "one")))
    assert not same_weights(made, tmp_path / "one")
