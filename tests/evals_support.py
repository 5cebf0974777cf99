"""A tiny real checkpoint: random weights, a real byte-level BPE tokenizer, Hugging Face format."""

from __future__ import annotations

from pathlib import Path

TEXTS = (
    "The following are multiple choice questions (with answers) about anatomy. Question: Answer:",
    "def add(a, b):\n    return a + b\n\n\nfor index in range(10):\n    print(index)\n",
    "Natalia sold 48 clips in April, and then half as many in May. The answer is 72.",
    "Problem:\nFind the value of $x$ such that $\\frac{x}{2} = 3$.\n\nSolution: $\\boxed{6}$",
)


def make_checkpoint(
    folder: Path, *, vocabulary: int = 512, hidden: int = 32, layers: int = 2, context: int = 256
) -> Path:
    """Writes a Llama of random weights (seeded) and its tokenizer; returns the folder."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator([*TEXTS, *_source_texts(vocabulary)], trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<|endoftext|>")
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=hidden,
            intermediate_size=hidden * 8 // 3,
            num_hidden_layers=layers,
            num_attention_heads=hidden // 16,
            num_key_value_heads=hidden // 16,
            max_position_embeddings=context,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=0,
            # spread the weights, or every log-likelihood is nearly the same
            initializer_range=0.2,
        )
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _source_texts(vocabulary: int) -> list[str]:
    """Enough real text for larger vocabularies: modules of the standard library."""
    if vocabulary <= 1024:
        return []
    return [
        path.read_text("utf-8")
        for path in sorted(Path(__import__("os").__file__).parent.glob("*.py"))
    ]
