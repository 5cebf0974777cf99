"""Every weight comes from the files, by whatever names a trainer's wrappers gave it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mixloop.evals.checkpoints import CheckpointError
from mixloop.evals.engine import load_checkpoint

Weights = dict[str, Any]
Score = Callable[[Any], list[float]]


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    return shutil.copytree(made, tmp_path / "checkpoint")


def read(folder: Path) -> Weights:
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


def write(folder: Path, weights: Weights, name: str = "model.safetensors") -> None:
    from safetensors.torch import save_file

    save_file(weights, folder / name, metadata={"format": "pt"})


def shard(folder: Path, weights: Weights, parts: int = 2) -> list[str]:
    (folder / "model.safetensors").unlink()
    names = [f"model-{n + 1:05d}-of-{parts:05d}.safetensors" for n in range(parts)]
    index = {}
    for number, name in enumerate(names):
        part = {key: weights[key] for key in sorted(weights)[number::parts]}
        write(folder, part, name)
        index |= dict.fromkeys(part, name)
    content = {"metadata": {}, "weight_map": index}
    (folder / "model.safetensors.index.json").write_text(json.dumps(content))
    return names


WRAPPED: dict[str, Callable[[str], str]] = {
    "compiled": lambda name: f"_orig_mod.{name}",
    "ddp": lambda name: f"module.{name}",
    "compiled inside ddp": lambda name: f"module._orig_mod.{name}",
    "ddp inside compiled": lambda name: f"_orig_mod.module.{name}",
    "blocks compiled one by one": lambda name: name.replace("layers.0.", "layers.0._orig_mod."),
    "fsdp, blocks checkpointed": lambda name: (
        "_fsdp_wrapped_module." + name.replace("s.1.", "s.1._checkpoint_wrapped_module.")
    ),
    "without the base model's prefix": lambda name: name.removeprefix("model."),
}


@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("kind", WRAPPED)
def test_wrappers_prefixes_are_left_out(
    kind: str, sharded: bool, made: Path, folder: Path, score: Score
) -> None:
    weights = {WRAPPED[kind](name): tensor for name, tensor in read(folder).items()}
    if sharded:
        shard(folder, weights)
    else:
        write(folder, weights)
    assert score(load_checkpoint(folder)) == score(load_checkpoint(made))


def without(*parts: str) -> Callable[[Weights], Weights]:
    def drop(weights: Weights) -> Weights:
        return {name: t for name, t in weights.items() if not any(part in name for part in parts)}

    return drop


SPOILT: dict[str, tuple[Callable[[Weights], Weights], str]] = {
    "a layer is lost": (without("layers.1."), r"9 missing \(model.layers.1.* and 4 more\)"),
    "half was gathered": (without(".mlp."), r"6 missing \(model.layers.0.mlp.down_proj.weight"),
    "no head": (without("lm_head"), r"1 missing \(lm_head.weight\)"),
    "no embedding": (without("embed_tokens"), r"1 missing \(model.embed_tokens.weight\)"),
    "a layer too many": (
        lambda weights: (
            weights | {"model.layers.2.mlp.up_proj.weight": weights["lm_head.weight"] + 1}
        ),
        r"1 not the model's \(model.layers.2.mlp.up_proj.weight\)",
    ),
    "another model's": (
        lambda weights: {f"transformer.{name}": tensor for name, tensor in weights.items()},
        r"21 missing .*; 21 not the model's",
    ),
    "another width": (
        lambda weights: weights | {"model.norm.weight": weights["model.norm.weight"][:16].clone()},
        r"1 of another shape \(model.norm.weight \(\[16\], the model has \[32\]\)\)",
    ),
    "one under two names": (
        lambda weights: weights | {"_orig_mod.lm_head.weight": weights["lm_head.weight"] + 1},
        "two weights are lm_head.weight",
    ),
}


@pytest.mark.parametrize("kind", SPOILT)
def test_what_is_not_the_model_is_not_scored(kind: str, folder: Path) -> None:
    spoil, said = SPOILT[kind]
    write(folder, spoil(read(folder)))
    with pytest.raises(CheckpointError, match=said) as refused:
        load_checkpoint(folder)
    assert str(refused.value).startswith(f"{folder}: can't be scored: ")
    assert "\n" not in str(refused.value)


def test_a_config_of_another_size_is_told(folder: Path) -> None:
    config = folder / "config.json"
    content = json.loads(config.read_text())
    for layers, said in ((3, "9 missing"), (1, "9 not the model's")):
        config.write_text(json.dumps(content | {"num_hidden_layers": layers}))
        with pytest.raises(CheckpointError, match=said):
            load_checkpoint(folder)


def test_tied_weights_need_not_be_there_twice(folder: Path, score: Score) -> None:
    config = folder / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"tie_word_embeddings": True}))
    weights = read(folder)
    embedding = weights["model.embed_tokens.weight"]
    scores = []
    for kept in (without("lm_head")(weights), weights | {"lm_head.weight": embedding.clone()}):
        write(folder, kept)
        scores.append(score(load_checkpoint(folder)))
    assert scores[0] == scores[1]


def test_shards_in_doubt_are_told(folder: Path) -> None:
    weights = read(folder)
    names = shard(folder, weights)
    load_checkpoint(folder)
    write(folder, weights)
    with pytest.raises(CheckpointError, match="are both there"):
        load_checkpoint(folder)
    (folder / "model.safetensors").unlink()
    whole = (folder / names[1]).read_bytes()
    (folder / names[1]).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match=f"{names[1]}: "):
        load_checkpoint(folder)
    (folder / names[1]).unlink()
    with pytest.raises(CheckpointError, match=f"names {names[1]}, which the folder lacks"):
        load_checkpoint(folder)
    outside = {"weight_map": {"lm_head.weight": "../model.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(outside))
    with pytest.raises(CheckpointError, match="outside it"):
        load_checkpoint(folder)


def test_an_adapter_beside_its_base_model_is_not_the_base_model(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="save the merged model"):
        load_checkpoint(folder)


def test_a_vision_model_s_text_part_has_its_own_length(
    tmp_path: Path, write_tokenizer: Callable[[Path], Path]
) -> None:
    from transformers import AutoModelForCausalLM, Gemma3Config

    text = {
        "vocab_size": 600,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "max_position_embeddings": 777,
    }
    vision = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
    }
    config = Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    assert load_checkpoint(write_tokenizer(tmp_path)).max_length == 777


def test_masks_that_older_versions_saved_are_no_weights(folder: Path, score: Score) -> None:
    import torch

    expected, weights = score(load_checkpoint(folder)), read(folder)
    block = "model.layers.0.self_attn"
    mask = torch.ones(1, 1, 8, 8).tril()
    masks = {f"{block}.bias": mask, f"{block}.masked_bias": torch.tensor(-1e9)}
    write(folder, weights | masks | {f"{block}.rotary_emb.inv_freq": torch.ones(4)})
    assert score(load_checkpoint(folder)) == expected
    write(folder, weights | {f"{block}.bias": torch.ones(32)})
    with pytest.raises(CheckpointError, match=r"1 not the model's \(model.layers.0.self_attn.bias"):
        load_checkpoint(folder)
