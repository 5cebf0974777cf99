"""Every family of models gets the numbers and texts of lm-eval's `hf` model.

Tiny random models; a few families of each kind run always, all of them with `make soak`.
"""

from __future__ import annotations

import random
import warnings
from pathlib import Path
from typing import Any

import pytest

CONTEXT = 512
SIGNS = "abcdefghijklmnopqrstuvwxyz0123456789 .,;:?!+-*/=()[]"

# numbers that make any family small, under whatever name its configuration has them
SMALL: dict[str, Any] = {
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "embedding_dim"), 32),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "n_inner"), 48),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "num_layers", "n_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads"), 4),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len"), CONTEXT),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), 4),
    "head_dim": 8,
    "moe_intermediate_size": 24,
    "num_experts_per_tok": 2,
    "num_key_value_heads": 2,
    "initializer_range": 0.2,
}

NARROW = {"sliding_window": 16}
WIDE = {"sliding_window": 4096}
LINEAR = {
    "layer_types": ["linear_attention", "full_attention"],
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
HEADS = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_chunk_size": 16}
MAMBA2 = {"state_size": 8, "num_heads": 8, "head_dim": 8, "n_groups": 1, "chunk_size": 16}
XLSTM = {
    "hidden_size": 64,
    "embedding_dim": 64,
    "head_dim": 16,
    "num_blocks": 2,
    "v_dim_factor": 1.0,
}
CONV = {"layer_types": ["conv", "full_attention"]}
CHUNKED = {
    "attention_chunk_size": 16,
    "intermediate_size_mlp": 48,
    "attn_temperature_tuning": False,
}
MLA = {
    "q_lora_rank": 16,
    "kv_lora_rank": 8,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "qk_head_dim": 16,
    "v_head_dim": 8,
    "num_key_value_heads": 4,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
}


def rope(kind: str, **more: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 1e4, **more}}


LONG = rope("longrope", short_factor=[1.0] * 4, long_factor=[4.0] * 4, factor=8.0)
LONG["original_max_position_embeddings"] = 64
YARN = rope("yarn", factor=4.0, original_max_position_embeddings=64)
LLAMA3 = rope(
    "llama3",
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=64,
)

# how each is computed: on shared prefixes, in rows that may be padded, row by row
SHARED, PADDED, ALONE = "shared", "padded", "alone"
Case = tuple[str, dict[str, Any], str]

ALWAYS: dict[str, Case] = {
    "llama": ("llama", {}, SHARED),
    "gemma3": ("gemma3_text", WIDE, SHARED),
    "mistral in a window": ("mistral", NARROW, PADDED),
    "gpt_oss": ("gpt_oss", NARROW, PADDED),
    "bloom": ("bloom", {}, PADDED),
    "llama4 in chunks": ("llama4_text", CHUNKED, ALONE),
    "phi3 longrope": ("phi3", {"sliding_window": None} | LONG, ALONE),
    "mamba": ("mamba", {"state_size": 8}, ALONE),
    "lfm2": ("lfm2", CONV, ALONE),
    "qwen3_5": ("qwen3_5_text", LINEAR, ALONE),
    "falcon_h1": ("falcon_h1", {"mamba_d_ssm": 64} | HEADS, ALONE),
    "rwkv": ("rwkv", {"context_length": CONTEXT, "attention_hidden_size": 32}, ALONE),
    "recurrent_gemma": (
        "recurrent_gemma",
        {"attention_window_size": 16, "lru_width": 32, "num_hidden_layers": 3},
        ALONE,
    ),
    "openai-gpt": ("openai-gpt", {}, ALONE),
    "jetmoe": ("jetmoe", {"kv_channels": 8}, ALONE),
}

AS_THEY_ARE = """
    apertus apertus1p5_text arcee aria_text biogpt bitnet cohere ctrl diffllama ernie4_5
    ernie4_5_moe exaone flex_olmo gemma glm glm4 glm4_moe gpt2 gpt_bigcode gpt_neox granite
    granitemoe granitemoeshared helium hunyuan_v1_dense hunyuan_v1_moe hyperclovax internlm3
    iquestcoder jais2 laguna mellum minimax_m2 mixtral nanochat nemotron olmo olmo2 olmoe persimmon
    phi qwen2 qwen3 qwen3_moe sarvam_moe seed_oss smollm3 solar_open stablelm
"""

SOAK: dict[str, Case] = {
    **{kind: (kind, {}, SHARED) for kind in AS_THEY_ARE.split()},
    "llama linear": ("llama", rope("linear", factor=4.0), SHARED),
    "llama yarn": ("llama", YARN, SHARED),
    "llama 3": ("llama", LLAMA3, SHARED),
    "llama dynamic": ("llama", rope("dynamic", factor=2.0), ALONE),
    "codegen": ("codegen", {"rotary_dim": 8}, SHARED),
    "cohere2": ("cohere2", NARROW, PADDED),
    "cohere2 wide": ("cohere2", WIDE, SHARED),
    "cohere2_moe": ("cohere2_moe", NARROW, PADDED),
    "cohere2_moe wide": ("cohere2_moe", WIDE, SHARED),
    "cwm": ("cwm", NARROW, PADDED),
    "cwm wide": ("cwm", WIDE, SHARED),
    "exaone_moe": ("exaone_moe", NARROW, PADDED),
    "exaone_moe wide": ("exaone_moe", WIDE, SHARED),
    "exaone4": ("exaone4", NARROW, PADDED),
    "exaone4 wide": ("exaone4", WIDE, SHARED),
    "falcon": ("falcon", {}, PADDED),
    "falcon alibi": ("falcon", {"alibi": True}, PADDED),
    "falcon new": ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2}, PADDED),
    "gemma2": ("gemma2", NARROW, PADDED),
    "gemma2 wide": ("gemma2", WIDE, PADDED),
    "gemma3 in a window": ("gemma3_text", NARROW, PADDED),
    "gpt2 by layer": ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, SHARED),
    "gpt_neo": (
        "gpt_neo",
        {"attention_types": [[["global", "local"], 1]], "window_size": 16},
        PADDED,
    ),
    "gpt_neox in turn": ("gpt_neox", {"use_parallel_residual": False}, SHARED),
    "gpt_oss wide": ("gpt_oss", WIDE, PADDED),
    "gptj": ("gptj", {"rotary_dim": 8}, SHARED),
    "granite_swa": ("granite_swa", NARROW, PADDED),
    "granite_swa wide": ("granite_swa", WIDE, PADDED),
    "ministral": ("ministral", NARROW, PADDED),
    "ministral wide": ("ministral", WIDE, SHARED),
    "mistral": ("mistral", {"sliding_window": None}, SHARED),
    "mixtral in a window": ("mixtral", NARROW, PADDED),
    "mpt": ("mpt", {}, PADDED),
    "olmo3": ("olmo3", NARROW, PADDED),
    "olmo3 wide": ("olmo3", WIDE, SHARED),
    "opt": ("opt", {"word_embed_proj_dim": 32}, SHARED),
    "phi3": ("phi3", {"sliding_window": None}, SHARED),
    "phimoe": ("phimoe", {"sliding_window": None}, SHARED),
    "phimoe in a window": ("phimoe", NARROW, PADDED),
    "qwen2 in a window": (
        "qwen2",
        {"use_sliding_window": True, "max_window_layers": 1} | NARROW,
        PADDED,
    ),
    "qwen2_moe": ("qwen2_moe", {"shared_expert_intermediate_size": 24}, SHARED),
    "smollm3 in a window": (
        "smollm3",
        {"layer_types": ["sliding_attention", "full_attention"]} | NARROW,
        PADDED,
    ),
    "starcoder2": ("starcoder2", {"sliding_window": None}, SHARED),
    "starcoder2 in a window": ("starcoder2", NARROW, PADDED),
    "vaultgemma": ("vaultgemma", NARROW, PADDED),
    "xglm": ("xglm", {"attention_heads": 4}, PADDED),
    # places, chunks, choices of keys, and attention that has not been looked at
    "llama4 by place": (
        "llama4_text",
        CHUNKED | {"attn_temperature_tuning": True, "floor_scale": 16, "attn_scale": 0.5},
        ALONE,
    ),
    "afmoe": ("afmoe", NARROW, ALONE),
    "deepseek_v2": ("deepseek_v2", MLA, ALONE),
    "deepseek_v32": (
        "deepseek_v32",
        MLA | {"index_topk": 16, "index_n_heads": 4, "index_head_dim": 8},
        ALONE,
    ),
    "deepseek_v3": ("deepseek_v3", MLA, ALONE),
    "doge": ("doge", {"keep_window_size": 16}, ALONE),
    "gemma4": ("gemma4_text", NARROW, ALONE),
    "hrm_text": ("hrm_text", {}, ALONE),
    "mimo_v2_flash": ("mimo_v2_flash", NARROW, ALONE),
    "modernbert-decoder": ("modernbert-decoder", {"local_attention": 16}, ALONE),
    # recurrent, convolutional and hybrid layers
    "bamba": ("bamba", {"attn_layer_indices": [1]} | HEADS, ALONE),
    "falcon_mamba": ("falcon_mamba", {"state_size": 8}, ALONE),
    "granitemoehybrid": (
        "granitemoehybrid",
        {"layer_types": ["mamba", "attention"]} | HEADS,
        ALONE,
    ),
    "jamba": (
        "jamba",
        {
            "mamba_d_state": 8,
            "use_mamba_kernels": False,
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "expert_layer_period": 2,
            "expert_layer_offset": 1,
        },
        ALONE,
    ),
    "kimi_linear": ("kimi_linear", {"layer_types": LINEAR["layer_types"]} | MLA, ALONE),
    "lfm2_moe": ("lfm2_moe", {"num_dense_layers": 1} | CONV, ALONE),
    "mamba2": ("mamba2", MAMBA2, ALONE),
    "minimax": ("minimax", {"block_size": 16}, ALONE),
    "nemotron_h": ("nemotron_h", {}, ALONE),
    "olmo_hybrid": ("olmo_hybrid", {}, ALONE),
    "xlstm": ("xlstm", {"qk_dim_factor": 1.0} | XLSTM, ALONE),
    "zamba2": (
        "zamba2",
        {
            "layers_block_type": ["mamba", "hybrid"],
            "hybrid_layer_ids": [1],
            "mamba_d_state": 8,
            "mamba_headdim": 8,
            "n_mamba_heads": 8,
            "mamba_ngroups": 1,
            "num_mem_blocks": 1,
            "chunk_size": 16,
        },
        ALONE,
    ),
    "qwen3_next": ("qwen3_next", {"shared_expert_intermediate_size": 24} | LINEAR, ALONE),
}


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    signs = {"<|end|>": 0} | {sign: i for i, sign in enumerate(SIGNS, start=1)}
    raw = Tokenizer(models.WordLevel(signs, unk_token="<|end|>"))
    raw.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    raw.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<|end|>", pad_token="<|end|>")


def tiny(kind: str, own: dict[str, Any], dtype: Any) -> Any:
    """A random model of a family."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    base = AutoConfig.for_model(kind)
    known = set(base.to_dict()) | set(getattr(base, "attribute_map", {}))
    small = {name: value for name, value in SMALL.items() if name in known}
    size = {"vocab_size": len(SIGNS) + 1, "eos_token_id": 0, "bos_token_id": 0, "pad_token_id": 0}
    config = AutoConfig.for_model(kind, **(small | size | own))
    return AutoModelForCausalLM.from_config(config, dtype=dtype).eval()


def text(source: random.Random, count: int) -> str:
    return "".join(source.choices(SIGNS, k=count))


def pairs() -> list[tuple[str, str]]:
    """Questions behind shared examples, each with its choices and a longer answer; and others."""
    source = random.Random(0)
    shots = text(source, 90)
    asked = []
    for _ in range(3):
        question = shots + text(source, source.randint(5, 30))
        asked += [*((question, choice) for choice in "abcd"), (question, text(source, 9))]
    return [*asked, (text(source, 3), text(source, 4)), ("", text(source, 40))]


def prompts() -> list[str]:
    source = random.Random(1)
    shots = text(source, 80)
    return [*(shots + text(source, n) for n in (1, 20, 20)), text(source, 2), text(source, 130)]


def instances(kind: str, arguments: list[Any]) -> list[Any]:
    from lm_eval.api.instance import Instance

    return [Instance(kind, {}, argument, i) for i, argument in enumerate(arguments)]


def way(lm: Any) -> str:
    from mixloop.evals.architectures import may_be_padded
    from mixloop.evals.engine.shared_prefix_lm import SharedPrefixLM

    if isinstance(lm, SharedPrefixLM):
        return SHARED
    return PADDED if may_be_padded(lm.model) else ALONE


def check(case: Case, tokenizer: Any, folder: Path) -> None:
    """Log-likelihoods, greediness and greedy texts are those of lm-eval's `hf` model."""
    import torch
    from lm_eval.models.huggingface import HFLM

    from mixloop.evals.engine import load_checkpoint

    kind, own, expected = case
    model = tiny(kind, own, torch.float32)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    reads = instances("loglikelihood", pairs())
    options = {"until": ["ab"], "max_gen_toks": 16, "do_sample": False}
    writes = instances("generate_until", [(prompt, options) for prompt in prompts()])
    with warnings.catch_warnings():
        # transformers announces deprecations to lm-eval's code, not to ours
        warnings.simplefilter("ignore")
        lm = load_checkpoint(folder, max_length=CONTEXT)
        stock = HFLM(model, tokenizer=lm.tokenizer, max_length=CONTEXT, batch_size=1)
        numbers = stock.loglikelihood(reads, disable_tqdm=True)
        texts = stock.generate_until(writes, disable_tqdm=True)
        ours = lm.loglikelihood(reads, disable_tqdm=True)
        written = lm.generate_until(writes)
    assert way(lm) == expected
    assert [a for a, _ in ours] == pytest.approx([a for a, _ in numbers], abs=2e-3, rel=1e-5)
    assert [greedy for _, greedy in ours] == [greedy for _, greedy in numbers]
    assert written == texts
    assert len(set(texts)) > 2


@pytest.mark.parametrize("name", ALWAYS)
def test_a_family_has_the_stock_models_numbers_and_texts(
    name: str, tokenizer: Any, tmp_path: Path
) -> None:
    check(ALWAYS[name], tokenizer, tmp_path)


@pytest.mark.soak
@pytest.mark.parametrize("name", SOAK)
def test_every_family_has_the_stock_models_numbers_and_texts(
    name: str, tokenizer: Any, tmp_path: Path
) -> None:
    check(SOAK[name], tokenizer, tmp_path)


@pytest.mark.parametrize("name", ["mamba", "lfm2", "qwen3_5", "falcon_h1", "llama4 in chunks"])
def test_half_precision_changes_no_way(name: str, tokenizer: Any, tmp_path: Path) -> None:
    """Rounding hides a recurrent layer from a trial; each request is right all the same."""
    import torch

    from mixloop.evals.engine import load_checkpoint

    kind, own, expected = ALWAYS[name]
    model = tiny(kind, own, torch.bfloat16)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    lm = load_checkpoint(tmp_path, dtype="bfloat16", max_length=CONTEXT)
    assert way(lm) == expected
    asked = pairs()
    answers = lm.loglikelihood(instances("loglikelihood", asked), disable_tqdm=True)
    for (context, continuation), (answer, _) in zip(asked, answers, strict=True):
        head, tail = lm.encode_pair(context, continuation)
        with torch.inference_mode():
            logits = model(input_ids=torch.tensor([head + tail[:-1]])).logits[0, -len(tail) :]
        alone = logits.float().log_softmax(-1).gather(1, torch.tensor(tail)[:, None]).sum()
        assert answer == pytest.approx(float(alone), abs=0.02)


@pytest.mark.parametrize("name", ["bloom", "mistral in a window", "mamba", "rwkv"])
def test_what_lies_in_a_pass_changes_nothing(name: str, tokenizer: Any, tmp_path: Path) -> None:
    import torch

    from mixloop.evals.engine import load_checkpoint

    kind, own, _ = ALWAYS[name]
    tiny(kind, own, torch.float32).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    many, few = (
        load_checkpoint(tmp_path, max_length=CONTEXT, batch_tokens=tokens) for tokens in (4096, 16)
    )
    reads = instances("loglikelihood", pairs())
    options = {"until": [], "max_gen_toks": 12, "do_sample": False}
    writes = instances("generate_until", [(prompt, options) for prompt in prompts()])
    together, apart = (lm.loglikelihood(reads, disable_tqdm=True) for lm in (many, few))
    assert [a for a, _ in together] == pytest.approx([a for a, _ in apart], abs=1e-3)
    assert many.generate_until(writes) == few.generate_until(writes)
    assert many.generate_until(writes[::-1])[::-1] == few.generate_until(writes)


def test_a_model_whose_cache_fails_is_computed_without(tokenizer: Any, tmp_path: Path) -> None:
    """As xLSTM's does in transformers, where keys are narrower than values."""
    import torch

    from mixloop.evals.engine import load_checkpoint

    model = tiny("xlstm", {"qk_dim_factor": 0.5} | XLSTM, torch.float32)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    lm = load_checkpoint(tmp_path, max_length=CONTEXT)
    prompt = text(random.Random(3), 20)
    options = {"until": [], "max_gen_toks": 8, "do_sample": False}
    (written,) = lm.generate_until(instances("generate_until", [(prompt, options)]))
    ids = tokenizer.encode(prompt)
    for _ in range(8):
        with torch.inference_mode():
            logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits
        ids.append(int(logits[0, -1].argmax()))
    assert written == tokenizer.decode(ids, skip_special_tokens=True)[len(prompt) :]


def test_positions_that_grow_do_not_depend_on_what_was_read_before(
    tokenizer: Any, tmp_path: Path
) -> None:
    """Dynamic rotary positions keep those of the longest text until one is short again."""
    import torch

    from mixloop.evals.engine import load_checkpoint

    own = rope("dynamic", factor=2.0) | {"max_position_embeddings": 32}
    tiny("llama", own, torch.float32).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    lm = load_checkpoint(tmp_path, max_length=CONTEXT)
    source = random.Random(2)
    asked = [(text(source, n), text(source, 5)) for n in (200, 60, 100, 20)]
    together = lm.loglikelihood(instances("loglikelihood", asked), disable_tqdm=True)
    for pair, answer in zip(asked, together, strict=True):
        fresh = load_checkpoint(tmp_path, max_length=CONTEXT)
        assert fresh.loglikelihood(instances("loglikelihood", [pair]), disable_tqdm=True) == [
            pytest.approx(answer, abs=1e-4)
        ]


@pytest.mark.parametrize(
    ("own", "why"),
    [
        ({"layer_types": ["full_attention", "linear_attention"]}, "linear_attention"),
        ({"attention_chunk_size": 16}, "chunks of 16"),
        ({"sliding_window": 16}, "window of 16"),
        (
            {"rope_parameters": {"a": {"rope_type": "longrope"}, "b": {"rope_type": "yarn"}}},
            "longrope",
        ),
        ({"rope_parameters": {"rope_type": "ntk-of-tomorrow"}}, "ntk-of-tomorrow"),
        ({"attn_logit_softcapping": 30.0}, "capped"),
        ({"use_bidirectional_attention": True}, "not causal"),
        ({"model_type": "tomorrow"}, "tomorrow is not known"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_not_plain_attention_is_told_by_its_configuration(
    own: dict[str, Any], why: str
) -> None:
    from types import SimpleNamespace

    import torch

    from mixloop.evals.architectures import why_not_prefixes

    class Model(torch.nn.Linear):
        config = SimpleNamespace(**({"model_type": "llama"} | own))

    Model.config.get_text_config = lambda: Model.config
    assert why in str(why_not_prefixes(Model(2, 2), CONTEXT))


def test_a_convolution_in_a_known_family_is_seen() -> None:
    import torch

    from mixloop.evals.architectures import may_be_padded, why_not_prefixes

    model = tiny("llama", {}, torch.float32)
    assert why_not_prefixes(model, CONTEXT) is None
    assert may_be_padded(model)
    model.model.layers[1].mixer = torch.nn.Conv1d(4, 4, 3)
    assert "model.layers.1.mixer (Conv1d)" in str(why_not_prefixes(model, CONTEXT))
    assert not may_be_padded(model)
