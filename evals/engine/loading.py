"""Loads a checkpoint: its context, and the way in which its model is computed."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from mixloop.common.tokenizing import TokenProbe
from mixloop.evals.checkpoints import CheckpointError, WeightSum, read_checkpoint

from .checkpoint_lm import CheckpointLM
from .plain_lm import PlainLM
from .shared_prefix_lm import SharedPrefixLM, why_not_shared

log = logging.getLogger(__name__)

_CONTEXTS = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "context_length")


def load_checkpoint(
    folder: Path,
    *,
    device: str = "cpu",
    dtype: str = "auto",
    max_length: int | None = None,
    batch_tokens: int | None = None,
    seed: int = 1234,
    add_bos: bool | None = None,
    trained: TokenProbe | None = None,
    tokenizer: Path | None = None,
    weights: WeightSum | None = None,
) -> CheckpointLM:
    """Loads a Hugging Face checkpoint folder into the fastest engine that its model allows.

    Args:
        folder: Safetensors only; no code from the checkpoint is run.
        device: torch's name of it.
        dtype: `auto` is float32 on a CPU and the checkpoint's own elsewhere.
        max_length: The longest sequence in tokens; None: the model's own.
        batch_tokens: Tokens of a forward pass; None: what suits the device.
        seed: Of the texts that are drawn.
        add_bos: Whether the beginning-of-text token stands in front of every text; None: as in
            front of the documents of the training data, where that is recorded.
        trained: The probe of the tokenizer that made the training data; None: not known.
        tokenizer: The folder of that tokenizer, for a checkpoint that carries none; None: such a
            one can't be scored.
        weights: What the model is to hold instead of the folder's own weights.

    Raises:
        CheckpointError: one line naming the folder and the reason.
    """
    checkpoint = read_checkpoint(
        folder,
        device=device,
        dtype=dtype,
        trained=trained,
        tokenizer=tokenizer,
        weights=weights,
    )
    model, used = checkpoint.model, checkpoint.tokenizer
    add_bos = checkpoint.begins if add_bos is None else add_bos
    if add_bos and used.bos_token_id is None:
        raise CheckpointError(
            f"{folder}: add_bos: a token is to begin texts, but its tokenizer has no bos_token"
        )
    max_length = max_length or _context(folder, checkpoint.config)
    obstacle = why_not_shared(model, max_length)
    if obstacle is not None:
        log.warning("%s: prefixes are not shared: %s", folder, obstacle)
    engine = SharedPrefixLM if obstacle is None else PlainLM
    options = {"max_length": max_length, "batch_tokens": batch_tokens, "seed": seed}
    return engine(model, used, encode=checkpoint.encode, add_bos=add_bos, **options)


def _context(folder: Path, config: Any) -> int:
    """The longest text that the model's config allows for; that of its text part, if it has some.

    A vision part's length, at the top of some configs, is none of the text's.
    """
    for part in (config.get_text_config(), config):
        for name in _CONTEXTS:
            value = getattr(part, name, None)
            if isinstance(value, int) and value > 0:
                return value
    raise CheckpointError(
        f"{folder}: the model's config names no context length: set evals.max_length"
    )
