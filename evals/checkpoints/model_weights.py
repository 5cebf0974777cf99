"""A checkpoint's weights, every one of them from its files, none memory-mapped.

transformers fills what a checkpoint lacks with random numbers and goes on; such a model is another
than was trained. Here a name that is missing, too much or of another shape is an error.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from .weight_files import bare_names, is_weight, some
from .weight_sums import WeightSum, read_sum

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def read_model(
    folder: Path, config: Any, device: str, dtype: str, weights: WeightSum | None = None
) -> Any:
    """The model in a checkpoint's folder, on a device, all of it as the folder has it.

    Args:
        folder: The checkpoint's.
        config: Its model's, of transformers.
        device: torch's name of it.
        dtype: `auto` is float32 on a CPU and the checkpoint's own elsewhere.
        weights: What the model is to hold instead of the folder's own weights.

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
    if quantised and weights is not None:
        raise ValueError("its weights are quantised: no mean or merge can be made of them")
    tensors = read_sum(weights or WeightSum(((1.0, folder),)), upcast=upcast)
    with _no_report():
        model, info = type(empty).from_pretrained(
            None,
            config=empty.config,
            state_dict=_own_weights(tensors, expected),
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


def _own_weights(
    tensors: Mapping[str, torch.Tensor], expected: Collection[str]
) -> dict[str, torch.Tensor]:
    """The model's tensors by its own names, without masks and places that it computes."""
    return {
        name: tensors[stored]
        for name, stored in bare_names(tensors, expected).items()
        if name in expected or is_weight(name, tensors[stored].ndim, expected)
    }


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
    told = [f"{len(names)} {how} ({some(names)})" for how, names in wrong.items() if names]
    if told:
        raise ValueError(f"its weights are not those of its config's model: {'; '.join(told)}")
