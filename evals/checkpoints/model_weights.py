"""A checkpoint's weights, every one of them from its files, none memory-mapped.

transformers fills what a checkpoint lacks with random numbers and goes on; such a model is another
than was trained. Here a name that is missing, too much or of another shape is an error.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from mixloop.common.errors import one_line

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"

_ADAPTER = "adapter_config.json"
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_HALF = (torch.bfloat16, torch.float16)

# what torch.compile, DDP, FSDP, activation checkpointing and DeepSpeed put between a model's names
_WRAPPERS = frozenset(
    {
        "_orig_mod",
        "module",
        "_module",
        "_fsdp_wrapped_module",
        "_checkpoint_wrapped_module",
        "_forward_module",
    }
)
# what older versions of transformers saved beside the weights and now compute: masks and places
_COMPUTED = frozenset({"masked_bias", "causal_mask", "inv_freq", "position_ids"})
_NAMED = 5  # names that an error tells


def read_model(folder: Path, config: Any, device: str, dtype: str) -> Any:
    """The model in a checkpoint's folder, on a device, all of it as the folder has it.

    Args:
        folder: The checkpoint's.
        config: Its model's, of transformers.
        device: torch's name of it.
        dtype: `auto` is float32 on a CPU and the checkpoint's own elsewhere.

    Raises:
        OSError: a file is missing or can't be read.
        ValueError: the weights are not those of the model: one line with names.
    """
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoModelForCausalLM, GenerationConfig

    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ValueError(f"transformers has no causal language model for {config.model_type!r}")
    stored = torch.float32 if torch.device(device).type == "cpu" else "auto"
    wanted = _DTYPES.get(dtype, stored)
    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    quantised = getattr(config, "quantization_config", None) is not None
    upcast = wanted == torch.float32 and not quantised
    expected = empty.state_dict().keys()
    weights = _without_computed(unwrapped(_read_tensors(folder, upcast), expected), expected)
    with _no_report():
        model, info = type(empty).from_pretrained(
            None,
            config=empty.config,
            state_dict=weights,
            dtype=wanted,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are told below, by name
            local_files_only=True,
        )
    if type(empty.config) is not type(config):
        info["unexpected_keys"] = _of_text_part(info["unexpected_keys"], expected)
    _must_be_whole(info)
    if (folder / "generation_config.json").is_file() and model.can_generate():
        model.generation_config = GenerationConfig.from_pretrained(folder, local_files_only=True)
    return model.to(device)


@contextmanager
def _no_report() -> Iterator[None]:
    """Without transformers' table of what it has made up: that is an error here, told by name."""

    def other(record: logging.LogRecord) -> bool:
        return "LOAD REPORT" not in record.getMessage()

    logger = logging.getLogger("transformers.modeling_utils")
    logger.addFilter(other)
    try:
        yield
    finally:
        logger.removeFilter(other)


def _of_text_part(unexpected: Collection[str], expected: Collection[str]) -> set[str]:
    """Without the weights of a vision or audio part, whose text part alone was asked for."""
    own = {name.split(".")[0] for name in expected} | {"language_model"}
    return {name for name in unexpected if name.split(".")[0] in own}


def _read_tensors(folder: Path, upcast: bool) -> dict[str, torch.Tensor]:
    """All tensors of a folder's weight files, in memory of their own.

    Memory-mapped ones, as transformers leaves them, would change with the file. With `upcast`
    those of half precision become float32 one by one, so that all are never held twice.
    """
    from safetensors import SafetensorError, safe_open

    tensors: dict[str, torch.Tensor] = {}
    for file in weight_files(folder):
        try:
            with safe_open(folder / file, framework="pt", device="cpu", backend="pread") as opened:
                for name in opened.keys():  # noqa: SIM118 - no mapping
                    if name in tensors:
                        raise ValueError(f"{name} is in another weight file too")
                    tensor = opened.get_tensor(name)
                    half = upcast and tensor.dtype in _HALF
                    tensors[name] = tensor.float() if half else tensor
        except (SafetensorError, ValueError) as error:
            raise ValueError(f"{file}: {one_line(error)}") from error
    return tensors


def weight_files(folder: Path) -> list[str]:
    """Names of the files that hold a checkpoint's weights.

    Raises:
        OSError: there are none, or the index names one that isn't there.
        ValueError: what is there isn't the whole model, or it is in doubt which is.
    """
    if (folder / _ADAPTER).is_file():
        raise ValueError(
            f"{_ADAPTER}: the folder holds an adapter beside its base model; save the merged model"
        )
    whole, index = (folder / WEIGHTS).is_file(), folder / INDEX
    if not index.is_file():
        if not whole:
            raise FileNotFoundError(
                f"no {WEIGHTS} and no {INDEX}: weights are read from safetensors alone"
            )
        return [WEIGHTS]
    names = _indexed(index)
    if whole and WEIGHTS not in names:
        raise ValueError(
            f"{WEIGHTS} and the shards of {INDEX} are both there; remove what is not this model's"
        )
    gone = [name for name in names if not (folder / name).is_file()]
    if gone:
        raise FileNotFoundError(f"{INDEX} names {_some(gone)}, which the folder lacks")
    return names


def _indexed(index: Path) -> list[str]:
    try:
        names = set(json.loads(index.read_text("utf-8"))["weight_map"].values())
        strange = [name for name in names if Path(name).name != name]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{index.name}: no index of safetensors: {error!r}") from error
    if strange or not names:
        raise ValueError(f"{index.name}: names no file of the folder, or one outside it")
    return sorted(names)


def unwrapped(
    tensors: Mapping[str, torch.Tensor], expected: Collection[str]
) -> dict[str, torch.Tensor]:
    """The tensors by the model's own names, without what a wrapper put between their parts.

    Args:
        tensors: By the names they were saved under: `_orig_mod.model.norm.weight`,
            `model.layers.0._orig_mod.mlp.up_proj.weight`, `module.model.norm.weight`.
        expected: The model's names; a part of these is no wrapper's.

    Raises:
        ValueError: two names become one.
    """
    wrappers = _WRAPPERS - {part for name in expected for part in name.split(".")}
    bare: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        own = ".".join(part for part in name.split(".") if part not in wrappers)
        if own in bare:
            raise ValueError(f"two weights are {own} once their wrappers' prefixes are left out")
        bare[own] = tensor
    return bare


def _without_computed(
    tensors: Mapping[str, torch.Tensor], expected: Collection[str]
) -> dict[str, torch.Tensor]:
    """The tensors without masks and places that no training changes and the model computes."""
    computed = _COMPUTED - {name.split(".")[-1] for name in expected}

    def is_weight(name: str, tensor: torch.Tensor) -> bool:
        last = name.rsplit(".", maxsplit=1)[-1]
        # GPT's causal mask is a bias by name; those of layers have one axis
        return last not in computed and not (last == "bias" and tensor.ndim == 4)

    return {name: t for name, t in tensors.items() if name in expected or is_weight(name, t)}


def _must_be_whole(info: Mapping[str, Any]) -> None:
    """That every weight came from the files, and every tensor of the files is one."""
    shapes = [
        f"{name} ({list(has)}, the model has {list(wants)})"
        for name, has, wants in sorted(info["mismatched_keys"])
    ]
    wrong = {
        "missing": sorted(info["missing_keys"]),
        "not the model's": sorted(info["unexpected_keys"]),
        "of another shape": shapes,
        "not readable": sorted(info["error_msgs"]),
    }
    told = [f"{len(names)} {how} ({_some(names)})" for how, names in wrong.items() if names]
    if told:
        raise ValueError(f"its weights are not those of its config's model: {'; '.join(told)}")


def _some(names: Collection[str]) -> str:
    """The first of some names, and how many more there are."""
    more = len(names) - _NAMED
    return ", ".join(list(names)[:_NAMED]) + (f" and {more} more" if more > 0 else "")
