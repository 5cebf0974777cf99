"""Loads a checkpoint into the engine that its model allows."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch

from .checkpoint_lm import Checkpoint, CheckpointLM, read_checkpoint
from .prefix_tree import chain
from .shared_prefix_lm import SharedPrefixLM

log = logging.getLogger(__name__)


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

    Raises CheckpointError.
    """
    read = read_checkpoint(folder, device=device, dtype=dtype, max_length=max_length)
    reason = why_not_shared(read)
    if reason is not None:
        log.warning("%s: prefixes are not shared: %s", folder, reason)
    engine = SharedPrefixLM if reason is None else CheckpointLM
    return engine(
        read.model,
        read.tokenizer,
        max_length=read.max_length,
        batch_tokens=batch_tokens,
        seed=seed,
    )


def why_not_shared(read: Checkpoint) -> str | None:
    """Why a model can't run on shared prefixes, or None.

    What a model does with its attention (soft caps, sinks, relative biases) can't be told from its
    class, so a short text is computed both ways and compared; only a window that the short text
    does not fill is looked up.
    """
    window = _window(read.model.config.get_text_config())
    if window is not None and window < read.max_length:
        return f"its attention slides over a window of {window} tokens"
    kind = _rope_kind(read.model.config.get_text_config())
    if kind in ("dynamic", "longrope"):
        return f"its rotary positions ({kind}) depend on the length of the whole text"
    own = read.model.config._attn_implementation
    try:
        difference = _trial(read)
    # a model that can't be run this way fails in whatever way its code fails
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
    else:
        exact = read.model.dtype == torch.float32
        if difference <= (1e-3 if exact else TRIAL_TOLERANCE):
            return None
        reason = f"its attention is of another kind (results differ by {difference:.2g} deviations)"
    read.model.set_attn_implementation(own)
    return reason


# share of the logits' standard deviation by which the two ways may differ on average in half
# precision: rounding stays well below, another kind of attention far above
TRIAL_TOLERANCE = 0.05


def _rope_kind(config: Any) -> str:
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    return str(rope.get("rope_type", "")) if isinstance(rope, dict) else ""


def _window(config: Any) -> int | None:
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None)
    slides = "sliding_attention" in kinds if kinds else getattr(config, "use_sliding_window", True)
    return window if window and slides else None


def _trial(read: Checkpoint) -> float:
    """How far a text computed in three parts is from the same text computed plainly."""
    model = read.model.eval()
    length = min(48, read.max_length)
    generator = torch.Generator().manual_seed(0)
    size = int(model.config.get_text_config().vocab_size)
    tokens = torch.randint(size, (length,), generator=generator).tolist()
    with torch.inference_mode():
        inputs = torch.tensor([tokens], device=model.device)
        plain = model(input_ids=inputs, use_cache=False).logits[0, -1].float()
        lm = SharedPrefixLM(model, read.tokenizer, max_length=read.max_length)
        prefix = lm.prefill(chain(tuple(tokens[: length // 2])), None, None)
        rest = tokens[length // 2 :]
        # two rows of unlike lengths behind the prefix, so that padding is tried as well
        shared, _, _ = lm.read_prompts([rest, rest[:1]], prefix, length // 2)
    return float((shared[0].float() - plain).abs().mean() / plain.std().clamp(min=1e-6))
