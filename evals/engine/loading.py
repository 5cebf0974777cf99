"""Loads a checkpoint: its weights, its context, and the way in which its model is computed."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch

from .checkpoint_lm import CheckpointLM
from .plain_lm import PlainLM
from .shared_prefix_lm import SharedPrefixLM, why_not_shared
from .tokenization import read_tokenizer

log = logging.getLogger(__name__)

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class CheckpointError(Exception):
    """The checkpoint can't be loaded: one line naming the folder and the reason."""


def load_checkpoint(
    folder: Path,
    *,
    device: str = "cpu",
    dtype: str = "auto",
    max_length: int | None = None,
    batch_tokens: int | None = None,
    seed: int = 1234,
) -> CheckpointLM:
    """Loads a Hugging Face checkpoint folder into the fastest engine that its model allows.

    Args:
        folder: Safetensors only; no code from the checkpoint is run.
        device: torch's name of it.
        dtype: `auto` is float32 on a CPU and the checkpoint's own elsewhere.
        max_length: The longest sequence in tokens; None: the model's own.
        batch_tokens: Tokens of a forward pass; None: what suits the device.
        seed: Of the texts that are drawn.

    Raises:
        CheckpointError: one line naming the folder and the reason.
    """
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        tokenizer = read_tokenizer(folder)
        model = read_model(folder, device, dtype)
    # a folder that vanishes or is damaged fails in whatever way the parser at hand fails
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise CheckpointError(f"{folder}: can't be loaded: {reason}") from error
    if tokenizer.eos_token_id is None:
        raise CheckpointError(f"{folder}: its tokenizer has no end-of-text token")
    max_length = max_length or _context(config)
    obstacle = why_not_shared(model, max_length)
    if obstacle is not None:
        log.warning("%s: prefixes are not shared: %s", folder, obstacle)
    engine = SharedPrefixLM if obstacle is None else PlainLM
    return engine(model, tokenizer, max_length=max_length, batch_tokens=batch_tokens, seed=seed)


def read_model(folder: Path, device: str, dtype: str) -> Any:
    """The weights in a checkpoint's folder, on a device: safetensors only, no code of its own."""
    from transformers import AutoModelForCausalLM

    stored = torch.float32 if torch.device(device).type == "cpu" else "auto"
    return AutoModelForCausalLM.from_pretrained(
        folder,
        use_safetensors=True,
        dtype=_DTYPES.get(dtype, stored),
        local_files_only=True,
        trust_remote_code=False,
    ).to(device)


def _context(config: Any) -> int:
    for name in ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len"):
        value = getattr(config, name, None)
        if isinstance(value, int) and value > 0:
            return value
    raise CheckpointError("the model's config names no context length: set evals.max_length")
