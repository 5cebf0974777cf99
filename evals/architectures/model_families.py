"""Which models are plain causal attention, told by family, configuration and modules.

The lists name what is known to be right; whatever is in none of them (recurrent, convolutional and
hybrid layers, chunked and sparse attention, families that are new) is computed row by row. A trial
can't tell: what a state or a convolution carries along may lie below the rounding of half precision
on a short text and far above it on a long one.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

# every layer a softmax over the keys of all earlier tokens through transformers' attention
# interface, every place told by position ids alone
_PLAIN_ATTENTION = """
    apertus apertus1p5_text arcee aria_text biogpt bitnet codegen cohere cohere2 cohere2_moe ctrl
    cwm diffllama ernie4_5 ernie4_5_moe exaone exaone4 exaone_moe flex_olmo gemma gemma3_text glm
    glm4 glm4_moe gpt2 gpt_bigcode gpt_neox gptj granite granitemoe granitemoeshared helium
    hunyuan_v1_dense hunyuan_v1_moe hyperclovax internlm3 iquestcoder jais2 laguna llama mellum
    minicpm3 minimax_m2 ministral ministral3 mistral mixtral nanochat nemotron olmo olmo2 olmo3
    olmoe opt persimmon phi phi3 phimoe qwen2 qwen2_moe qwen3 qwen3_moe sarvam_moe seed_oss smollm3
    solar_open stablelm starcoder2
"""
# attention as well, but with caps, sinks, biases by distance or code of its own: rows of unlike
# lengths may lie in one pass, as padding behind a row is never looked at
_OTHER_ATTENTION = "bloom falcon gemma2 gemma3 gpt_neo gpt_oss granite_swa mpt vaultgemma xglm"
_SHARED = frozenset(_PLAIN_ATTENTION.split())
_PADDED = frozenset(_OTHER_ATTENTION.split())

_LAYERS = {"full_attention", "sliding_attention"}
_ROPES = {"default", "linear", "yarn", "llama3"}
# settings that make more of attention than a softmax over keys, in families that can have them
_MORE = {
    "attn_logit_softcapping": "its attention scores are capped",
    "attn_temperature_tuning": "its attention is scaled by place",
    "alibi": "its attention is biased by distance",
    "use_bidirectional_attention": "its attention is not causal",
    "add_cross_attention": "it attends to an encoder",
}
_BY_ROW = frozenset({"attn_logit_softcapping", "alibi"})  # of these, what no padding changes
# state that runs along a row, in models of whatever name; images are convolved along two axes
_CARRYING = (torch.nn.Conv1d, torch.nn.RNNBase)


def why_not_prefixes(model: Any, max_length: int) -> str | None:
    """Why a model can't be computed on shared prefixes, or None.

    Args:
        model: A causal language model of transformers.
        max_length: The longest sequence it is to read, in tokens.
    """
    config = model.config.get_text_config()
    kind = model.config.model_type
    if kind in _PADDED:
        return f"attention of {kind} is more than a softmax over keys"
    if kind not in _SHARED:
        return f"{kind} is not known as plain causal attention"
    return _another_layer(model, config) or _narrow(config, max_length) or _another_rope(config)


def may_be_padded(model: Any) -> bool:
    """Whether rows of unlike lengths may be computed in one pass, the shorter ones padded."""
    config = model.config.get_text_config()
    known = model.config.model_type in _SHARED | _PADDED
    return known and not (_another_layer(model, config, _BY_ROW) or _another_rope(config))


def _another_layer(model: Any, config: Any, allowed: frozenset[str] = frozenset()) -> str | None:
    """What of its layers is no plain attention."""
    others = sorted(set(getattr(config, "layer_types", None) or ()) - _LAYERS)
    if others:
        return f"its layers are not all attention ({', '.join(others)})"
    for name, reason in _MORE.items():
        if name not in allowed and getattr(config, name, None):
            return f"{reason} ({name})"
    for name, module in model.named_modules():
        if isinstance(module, _CARRYING):
            return f"its {name} ({type(module).__name__}) carries state along a row"
    return None


def _narrow(config: Any, max_length: int) -> str | None:
    """A reach that is shorter than what is read."""
    kinds = getattr(config, "layer_types", None)
    slides = "sliding_attention" in kinds if kinds else getattr(config, "use_sliding_window", True)
    window = getattr(config, "sliding_window", None) if slides else None
    if window and window < max_length:
        return f"its attention slides over a window of {window} tokens"
    chunk = getattr(config, "attention_chunk_size", None)
    if chunk and chunk < max_length:
        return f"its attention keeps to chunks of {chunk} tokens"
    return None


def _another_rope(config: Any) -> str | None:
    """Rotary positions of a kind that depends on the length of the whole pass."""
    others = sorted(set(rope_kinds(config)) - _ROPES)
    return f"its rotary positions ({others[0]}) may depend on the whole text" if others else None


def rope_kinds(config: Any) -> Iterator[str]:
    """The kinds of a model's rotary positions; its kinds of layers may each have their own."""
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    for part in (rope, *rope.values()) if isinstance(rope, dict) else ():
        kind = part.get("rope_type", part.get("type")) if isinstance(part, dict) else None
        if isinstance(kind, str):
            yield kind
