"""Texts become tokens and tokens texts: nothing of either is lost on the way."""

from __future__ import annotations

import itertools
import json
import math
import random
import string
import warnings
from pathlib import Path
from typing import Any

import pytest

CONTEXT = 512


def scripted(tokenizer: Any, says: list[int], **config: Any) -> Any:
    """A Llama whose next token follows from the newest one: `says` from any other token on.

    One-hot embeddings, attention and MLP of zeros, the transitions in the head.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    assert len(set(says)) == len(says)
    size = len(tokenizer)
    width = (size + 7) // 8 * 8
    shape = {
        "vocab_size": size,
        "hidden_size": width,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": width // 8,
        "max_position_embeddings": CONTEXT,
        "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": tokenizer.eos_token_id,
    }
    model = LlamaForCausalLM(LlamaConfig(**(shape | config))).eval()
    follows = dict.fromkeys(range(size), says[0]) | dict(itertools.pairwise(says))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.fill_(float("norm" in name))
        model.model.embed_tokens.weight.copy_(torch.eye(size, width))
        for token, following in follows.items():
            model.lm_head.weight[following, token] = 1.0
    return model


def byte_tokenizer(*added: str, special: tuple[str, ...] = ()) -> Any:
    """A token a byte, and whole texts as one token each."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = Tokenizer(models.BPE({sign: i for i, sign in enumerate(alphabet)}, []))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    raw.add_special_tokens([AddedToken("<|end|>", special=True)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<|end|>")
    tokenizer.add_tokens([AddedToken(text, special=True) for text in special])
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in added])
    return tokenizer


def metaspace_tokenizer(*words: str) -> Any:
    """As Llama 2's: `▁` for a space, one in front of every text, bytes where nothing else fits."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers
    from transformers import PreTrainedTokenizerFast

    special = ["<unk>", "</s>"]
    signs = [*special, *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *string.ascii_letters]
    vocabulary = {sign: i for i, sign in enumerate(signs)}
    merges = []
    for word in words:
        for end in range(2, len(word) + 1):
            merges.append((word[: end - 1], word[end - 1]))
            vocabulary.setdefault(word[:end], len(vocabulary))
    unique = list(dict.fromkeys(merges))
    raw = Tokenizer(models.BPE(vocabulary, unique, unk_token="<unk>", byte_fallback=True))
    raw.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    raw.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    raw.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in special])
    return PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="<unk>", eos_token="</s>")


def spanning_tokenizer(*texts: str) -> Any:
    """Tokens may hold spaces and punctuation, and so span where a context ends."""
    from tokenizers import Tokenizer, decoders, models, normalizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {"<|end|>": 0} | {sign: i for i, sign in enumerate(string.printable, start=1)}
    merges = []
    for text in texts:
        for end in range(2, len(text) + 1):
            merges.append((text[: end - 1], text[end - 1]))
            vocabulary.setdefault(text[:end], len(vocabulary))
    raw = Tokenizer(models.BPE(vocabulary, merges))
    raw.normalizer = normalizers.NFC()
    raw.decoder = decoders.Fuse()
    raw.add_special_tokens(["<|end|>"])
    return PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<|end|>")


def saved(folder: Path, model: Any, tokenizer: Any, **generation: Any) -> Path:
    """A checkpoint's folder, some of its `generation_config.json` set."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    path = folder / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | generation))
    return folder


def load(folder: Path) -> Any:
    from mixloop.evals.engine import load_checkpoint

    return load_checkpoint(folder)


def stock(folder: Path) -> Any:
    from lm_eval.models.huggingface import HFLM

    with warnings.catch_warnings():
        # transformers announces deprecations to lm-eval's code, not to ours
        warnings.simplefilter("ignore")
        return HFLM(pretrained=str(folder), device="cpu", dtype="float32", batch_size=1)


def write(lm: Any, *prompts: str, until: tuple[str, ...] = (), most: int = 32) -> list[str]:
    from lm_eval.api.instance import Instance

    options = {"until": list(until), "max_gen_toks": most, "do_sample": False}
    asked = [Instance("generate_until", {}, (prompt, dict(options)), 0) for prompt in prompts]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        texts: list[str] = lm.generate_until(asked, disable_tqdm=True)
    return texts


def read(lm: Any, *pairs: tuple[str, str]) -> list[tuple[float, bool]]:
    from lm_eval.api.instance import Instance

    asked = [Instance("loglikelihood", {}, pair, 0) for pair in pairs]
    answers: list[tuple[float, bool]] = lm.loglikelihood(asked, disable_tqdm=True)
    return answers


def bits_of(lm: Any, head: list[int], tail: list[int]) -> float:
    """Log-likelihood by the plain forward pass."""
    import torch

    with torch.inference_mode():
        logits = lm.model.double()(input_ids=torch.tensor([head + tail])).logits[0]
    lm.model.float()
    scores = logits.log_softmax(-1)
    return math.fsum(float(scores[len(head) + i - 1, token]) for i, token in enumerate(tail))


@pytest.mark.parametrize("family", ["Llama", "Mistral"])
def test_a_continuation_keeps_its_first_space(family: str, tmp_path: Path) -> None:
    """Llama 2's and Mistral's decoders drop the first space of what they are given."""
    tokenizer = metaspace_tokenizer("▁return", "▁▁▁")
    said = tokenizer.convert_tokens_to_ids(["▁▁▁", "▁return", "▁", "x", "</s>"])
    config = {"sliding_window": 64} if family == "Mistral" else {}
    model = scripted(tokenizer, said, **config)
    lm = load(saved(tmp_path, model, tokenizer))
    assert tokenizer.decode(said[:-1]) == "   return x"  # alone
    assert write(lm, "def f():\n", "") == ["    return x", "    return x"[1:]]


def test_a_stop_string_may_begin_with_the_first_space(tmp_path: Path) -> None:
    tokenizer = metaspace_tokenizer("▁stop")
    said = tokenizer.convert_tokens_to_ids(["▁stop", "x", "</s>"])
    lm = load(saved(tmp_path, scripted(tokenizer, said), tokenizer))
    assert write(lm, "Go", until=(" stop",)) == [""]


def test_broken_bytes_spoil_no_prompt(tmp_path: Path) -> None:
    """Bytes are decoded together with those in front of them, all or none."""
    tokenizer = metaspace_tokenizer()
    said = tokenizer.convert_tokens_to_ids(["<0xE2>", "x", "</s>"])
    lm = load(saved(tmp_path, scripted(tokenizer, said), tokenizer))
    assert write(lm, "Look: 🦊") == ["\ufffdx"]


def test_signs_of_several_tokens_come_out_whole(tmp_path: Path) -> None:
    tokenizer = metaspace_tokenizer()
    said = [*tokenizer.convert_tokens_to_ids(["▁", *(f"<0x{b:02X}>" for b in "🦊é".encode())]), 1]
    lm = load(saved(tmp_path, scripted(tokenizer, said), tokenizer))
    assert write(lm, "Look:", "Look 🦊:") == [" 🦊é", " 🦊é"]
    assert write(lm, "Look:", until=("é",)) == [" 🦊"]


@pytest.mark.parametrize("where", ["generation_config.json", "config.json", "both"])
@pytest.mark.parametrize("several", [True, False])
def test_every_end_of_text_ends_a_text(where: str, several: bool, tmp_path: Path) -> None:
    """As Llama 3's and Gemma's instruct models have them: a turn ends before the text does."""
    tokenizer = byte_tokenizer(" It is 18.", " No, 99.", special=("<|turn|>", "<|tool|>"))
    names = [" It is 18.", "<|turn|>", " No, 99.", "<|end|>"]
    says = tokenizer.convert_tokens_to_ids(names)
    ends = [tokenizer.convert_tokens_to_ids("<|tool|>"), says[1]] if several else says[1]
    model = scripted(tokenizer, says)
    if where != "generation_config.json":
        model.config.eos_token_id = ends
    set_ = {} if where == "config.json" else {"eos_token_id": ends}
    folder = saved(tmp_path, model, tokenizer, **set_)
    assert write(load(folder), "9 + 9?") == [" It is 18."]
    if where != "config.json":
        assert write(stock(folder), "9 + 9?") == [" It is 18."]


def test_the_tokenizers_end_ends_a_text_that_no_configuration_names(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer(" It is 18.", " No, 99.", special=("<|turn|>",))
    says = tokenizer.convert_tokens_to_ids([" It is 18.", "<|end|>", " No, 99."])
    turn = tokenizer.convert_tokens_to_ids("<|turn|>")
    model = scripted(tokenizer, says, eos_token_id=turn)
    assert write(load(saved(tmp_path, model, tokenizer)), "9 + 9?") == [" It is 18."]


def test_an_ordinary_token_that_ends_texts_is_told(tmp_path: Path, caplog: Any) -> None:
    """A Llama's configuration has 2 where nobody says what ends a text."""
    tokenizer = byte_tokenizer()
    model = scripted(tokenizer, [5, 2, 6, tokenizer.eos_token_id], eos_token_id=2)
    folder = saved(tmp_path, model, tokenizer)
    text = write(load(folder), "Go")
    assert text == write(stock(folder), "Go") == [tokenizer.decode([5, 2])]
    assert f"eos_token_id 2 is the ordinary token {tokenizer.decode([2])!r}" in caplog.text


SETTINGS: list[dict[str, Any]] = [
    {},
    {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "top_k": 5, "max_length": 9},
    {"repetition_penalty": 1.3},
    {"no_repeat_ngram_size": 2},
    {"suppress_tokens": [66, 67, 68]},
    {"bad_words_ids": [[66], [70, 71]]},
    {"min_new_tokens": 12},
    {"num_beams": 3},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda settings: ",".join(settings) or "none")
def test_a_generation_config_does_what_it_does_to_the_stock_model(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = byte_tokenizer()
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=CONTEXT,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=tokenizer.eos_token_id,
        initializer_range=0.3,
    )
    folder = saved(tmp_path, LlamaForCausalLM(config), tokenizer, **settings)
    prompts = ["Question: why?\nAnswer:", "abcabcabc", "def f(x):\n    return"]
    # under beams the stock model's stop strings are looked for in the first one alone
    until = () if "num_beams" in settings else ("\n", "ab")
    lm = load(folder)
    texts = write(lm, *prompts, until=until, most=24)
    assert texts == write(stock(folder), *prompts, until=until, most=24)
    # log-likelihoods still share their prefixes afterwards
    pair = (prompts[0], " Because")
    head, tail = (tokenizer.encode(text) for text in pair)
    assert read(lm, pair)[0][0] == pytest.approx(bits_of(lm, head, tail), abs=1e-4)


def random_model(tokenizer: Any) -> Any:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(5)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=CONTEXT,
        initializer_range=0.3,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=tokenizer.eos_token_id,
    )
    return LlamaForCausalLM(config)


def test_a_token_that_spans_the_end_of_a_context_is_counted(tmp_path: Path) -> None:
    tokenizer = spanning_tokenizer("Answer: B", "nd th", ": 1")
    lm = load(saved(tmp_path, random_model(tokenizer), tokenizer))

    def expected(head: str | list[str], tail: list[str]) -> float:
        ids = [tokenizer.convert_tokens_to_ids(list(part)) for part in (head, tail)]
        return bits_of(lm, ids[0] or [0], ids[1])

    pairs = [
        ("Q?\nAnswer:", " B"),  # all of it in one token, which begins in the context
        ("Q?\nAnswer:", " A"),
        ("Q?\nAnswer:", " B or A"),  # the token, and more behind it
        ("bread a", "nd the"),
        ("x: 12 a", "nd"),  # the context's own tokens are those of the whole
        ("Answer", ": B"),  # nothing is left of the context
    ]
    right = [
        expected("Q?\n", ["Answer: B"]),
        expected("Q?\n", ["Answer: ", "A"]),
        expected("Q?\n", ["Answer: B", *" or A"]),
        expected("bread a", ["nd th", "e"]),
        expected(["x", ": 1", *"2 a"], ["nd"]),
        expected("", ["Answer: B"]),
    ]
    answers = read(lm, *pairs)
    assert [answer for answer, _ in answers] == pytest.approx(right, abs=1e-4)
    assert all(lm.holds(*pair) for pair in pairs)


def test_where_no_token_spans_the_split_is_the_stock_models(tmp_path: Path) -> None:
    """Spaces that end a context, empty contexts and continuations, signs of several tokens."""
    tokenizer = byte_tokenizer(" the", "\n\n")
    folder = saved(tmp_path, random_model(tokenizer), tokenizer)
    lm, hf = load(folder), stock(folder)
    source = random.Random(0)
    signs = [*"ab 🦊é\n\t ", " the", "\n\n", "<|end|>"]

    def text(most: int) -> str:
        return "".join(source.choices(signs, k=source.randint(1, most)))

    pairs = [(text(20), text(6)) for _ in range(60)]
    pairs = [pair for pair in pairs if pair[0].strip() and pair[1]]
    pairs += [("", text(6)) for _ in range(5)] + [("a  \n", "b"), ("", " x")]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = read(hf, *pairs)
    ours = read(lm, *pairs)
    assert [a for a, _ in ours] == pytest.approx([a for a, _ in theirs], abs=1e-3)
    assert [greedy for _, greedy in ours] == [greedy for _, greedy in theirs]


def test_nothing_said_is_certain_and_spaces_alone_are_no_context(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    lm = load(saved(tmp_path, random_model(tokenizer), tokenizer))
    for_nothing, after_spaces, whole = read(lm, ("a", ""), (" \n", "b"), ("", " \nb"))
    assert for_nothing == (0.0, True)
    assert read(lm, ("", "")) == [(0.0, True)]
    assert after_spaces == whole
    assert not lm.holds("a", "")
