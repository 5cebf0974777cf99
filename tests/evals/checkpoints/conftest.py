"""A small checkpoint whose tokenizer is one that transformers would build anew by its class."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

# groups of up to three digits, as in cl100k; GPT-2's own pre-tokenizer keeps all digits together
SPLIT = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
BEGIN, END = "<|begin|>", "<|end|>"

WriteTokenizer = Callable[..., Path]


@pytest.fixture(scope="session")
def write_tokenizer() -> WriteTokenizer:
    """Writes a tokenizer into a folder; `template` is what its post-processor makes of a text."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    def write(folder: Path, kind: str = "GPT2Tokenizer", template: str = "") -> Path:
        raw = Tokenizer(models.BPE())
        raw.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(SPLIT), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        raw.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=600,
            special_tokens=[END, BEGIN],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        numbers = [f"In {n} there were {7919 * n % 99991} things\n" for n in range(1000, 1400)]
        raw.train_from_iterator([*numbers, json.__doc__ or ""], trainer)
        if template:
            raw.post_processor = processors.TemplateProcessing(
                single=template, special_tokens=[(END, 0), (BEGIN, 1)]
            )
        folder.mkdir(parents=True, exist_ok=True)
        raw.save(str(folder / "tokenizer.json"))
        config = {"tokenizer_class": kind, "eos_token": END, "bos_token": BEGIN}
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
        return folder

    return write


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory, write_tokenizer: WriteTokenizer) -> Path:
    """The checkpoint; a test copies what it changes."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("made")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=600,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        eos_token_id=0,
        bos_token_id=1,
        initializer_range=0.3,
        tie_word_embeddings=False,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return write_tokenizer(folder)


@pytest.fixture(scope="session")
def score() -> Callable[[Any], list[float]]:
    """Log-likelihoods of the four letters behind a question."""
    from lm_eval.api.instance import Instance

    def ask(lm: Any) -> list[float]:
        question = "In 1997 there were 12345 things.\nA. 3\nB. 4\nC. 5\nD. 6\nAnswer:"
        requests = [
            Instance("loglikelihood", doc={}, arguments=(question, f" {letter}"), idx=0)
            for letter in "ABCD"
        ]
        return [total for total, _ in lm.loglikelihood(requests, disable_tqdm=True)]

    return ask
