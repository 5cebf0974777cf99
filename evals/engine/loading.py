"""Loads a checkpoint: its context, and the way in which its model is computed."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch

from mixloop.common.errors import one_line
from mixloop.common.tokenizing import TokenProbe
from mixloop.evals.checkpoints import CheckpointError, read_checkpoint

from .checkpoint_lm import CheckpointLM
from .passes import PackedModel
from .plain_lm import PlainLM
from .prefix_tree import chain
from .shared_prefix_lm import SharedPrefixLM

log = logging.getLogger(__name__)

HALF_PRECISION_TOLERANCE = 0.05
"""Share of the logits' standard deviation by which the two ways may differ on average in half
precision: rounding stays well below, another kind of attention far above."""

_CONTEXTS = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "context_length")
_EXACT_TOLERANCE = 1e-3  # the same in float32


def load_checkpoint(
    folder: Path,
    *,
    device: str = "cpu",
    dtype: str = "auto",
    max_length: int | None = None,
    batch_tokens: int | None = None,
    seed: int = 1234,
    add_bos: bool = False,
    trained: TokenProbe | None = None,
) -> CheckpointLM:
    """Loads a Hugging Face checkpoint folder into the fastest engine that its model allows.

    Args:
        folder: Safetensors only; no code from the checkpoint is run.
        device: torch's name of it.
        dtype: `auto` is float32 on a CPU and the checkpoint's own elsewhere.
        max_length: The longest sequence in tokens; None: the model's own.
        batch_tokens: Tokens of a forward pass; None: what suits the device.
        seed: Of the texts that are drawn.
        add_bos: Whether the beginning-of-text token stands in front of every text.
        trained: The probe of the tokenizer that made the training data; None: not known.

    Raises:
        CheckpointError: one line naming the folder and the reason.
    """
    checkpoint = read_checkpoint(folder, device=device, dtype=dtype, trained=trained)
    model, tokenizer = checkpoint.model, checkpoint.tokenizer
    if add_bos and tokenizer.bos_token_id is None:
        raise CheckpointError(f"{folder}: add_bos is set, but its tokenizer has no bos_token")
    max_length = max_length or _context(folder, checkpoint.config)
    obstacle = why_not_shared(model, max_length)
    if obstacle is not None:
        log.warning("%s: prefixes are not shared: %s", folder, obstacle)
    engine = SharedPrefixLM if obstacle is None else PlainLM
    options = {"max_length": max_length, "batch_tokens": batch_tokens, "seed": seed}
    return engine(model, tokenizer, add_bos=add_bos, **options)


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


def why_not_shared(model: Any, max_length: int) -> str | None:
    """Why a model can't run on shared prefixes, or None.

    What a model does with its attention (soft caps, sinks, relative biases) can't be told from its
    class, so a short text is computed both ways and compared; only a window that the short text
    does not fill is looked up.
    """
    config = model.config.get_text_config()
    window = _window(config)
    if window is not None and window < max_length:
        return f"its attention slides over a window of {window} tokens"
    kind = _rope_kind(config)
    if kind in ("dynamic", "longrope"):
        return f"its rotary positions ({kind}) depend on the length of the whole text"
    stock_attention = model.config._attn_implementation
    try:
        difference = _compare(model, max_length)
    # a model that can't be run this way fails in whatever way its code fails
    except Exception as error:
        reason = one_line(error)
    else:
        exact = model.dtype == torch.float32
        if difference <= (_EXACT_TOLERANCE if exact else HALF_PRECISION_TOLERANCE):
            return None
        reason = f"its attention is of another kind (results differ by {difference:.2g} deviations)"
    model.set_attn_implementation(stock_attention)
    return reason


def _rope_kind(config: Any) -> str:
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    return str(rope.get("rope_type", "")) if isinstance(rope, dict) else ""


def _window(config: Any) -> int | None:
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None)
    slides = "sliding_attention" in kinds if kinds else getattr(config, "use_sliding_window", True)
    return window if window and slides else None


def _compare(model: Any, max_length: int) -> float:
    """How far a text computed in three parts is from the same text computed plainly."""
    model.eval()
    length = min(48, max_length)
    generator = torch.Generator().manual_seed(0)
    size = int(model.config.get_text_config().vocab_size)
    tokens = torch.randint(size, (length,), generator=generator).tolist()
    with torch.inference_mode():
        inputs = torch.tensor([tokens], device=model.device)
        plain = model(input_ids=inputs, use_cache=False).logits[0, -1].float()
        packed = PackedModel(model, pass_tokens=length)
        prefix = packed.prefill(chain(tuple(tokens[: length // 2])), None, None)
        rest = tokens[length // 2 :]
        # two rows of unlike lengths behind the prefix, so that padding is tried as well
        shared, _, _ = packed.read_prompts([rest, rest[:1]], prefix, length // 2)
    return float((shared[0].float() - plain).abs().mean() / plain.std().clamp(min=1e-6))
