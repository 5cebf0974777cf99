"""The engine: shared tokens computed once, with the numbers and texts of lm-eval's `hf` model."""

from __future__ import annotations

import random
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixloop.evals.engine.prefix_tree import (
    PrefixFamily,
    Row,
    batches,
    plan_prefixes,
    prompt_families,
)
from mixloop.evals.engine.speculation import NgramIndex, NgramSpeculator

LETTERS = "abcdefghijklmnopqrstuvwxyz .\n"
CONTEXT = 768

Sequences = st.lists(
    st.lists(st.integers(0, 2), min_size=1, max_size=12).map(tuple), min_size=1, max_size=30
)


def every_row(
    family: PrefixFamily, above: Sequence[tuple[int, int]] = ()
) -> list[list[tuple[int, int]]]:
    """Per row of a family: (slot, token) from the first token of the prefix on, by branch."""
    prefix = [*above, *zip(family.prefix.slots, family.prefix.tokens, strict=True)]
    paths = [prefix]
    for row in family.rows:
        for leaf in range(len(row.tokens)):
            chain: list[tuple[int, int]] = []
            place = leaf
            while place >= 0:
                chain.insert(0, (row.slots[place], row.tokens[place]))
                place = row.parents[place]
            paths.append([*prefix, *chain])
    for child in family.families:
        paths += every_row(child, prefix)
    return paths


@given(Sequences)
@settings(max_examples=150, deadline=None)
def test_a_plan_computes_every_sequence_and_shares(sequences: list[tuple[int, ...]]) -> None:
    unique = list(dict.fromkeys(sequences))
    plan = plan_prefixes(unique)
    paths = {tuple(slot for slot, _ in path): path for path in every_row(plan.family)}
    for index, sequence in enumerate(unique):
        slots = tuple(plan.slots(index, len(sequence)))
        assert tuple(token for _, token in paths[slots]) == sequence
        assert plan.slots(index, 1) == [slots[-1]]
    assert plan.family.tokens() <= sum(map(len, unique))


@given(st.integers(1, 5), st.integers(65, 200), st.integers(2, 9), st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_a_long_prefix_is_computed_once(
    families: int, length: int, members: int, seed: int
) -> None:
    source = random.Random(seed)
    sequences = set()
    for family in range(families):
        prefix = (1000 + family, *source.choices(range(9), k=length))
        for member in range(members):
            rest = source.choices(range(9), k=source.randint(100, 400))
            sequences.add((*prefix, 100 + member, *rest))
    ordered = sorted(sequences)
    plan = plan_prefixes(ordered)
    longest = sum(len(s) for s in ordered) - families * (members - 1) * (length + 1)
    assert plan.family.tokens() <= longest
    grouped = prompt_families(ordered)
    assert sorted(i for _, rest in grouped for i in rest) == list(range(len(ordered)))
    if (length + 1) * (members - 1) >= 64:
        assert [depth for depth, _ in grouped] == [length + 1] * families


def test_batches_keep_to_their_tokens() -> None:
    rows = [
        Row((0,) * n, tuple(range(n)), tuple(range(n)), tuple(range(-1, n - 1)))
        for n in (9, 5, 5, 1)
    ]
    assert [[len(row.tokens) for row in batch] for batch in batches(rows, 10)] == [[9], [5, 5], [1]]


def test_a_guess_continues_what_recurs() -> None:
    speculator = NgramSpeculator(NgramIndex([7, 8, 9, 10, 11, 12]), [1, 2, 3, 4, 1, 2, 3])
    assert speculator.guess(0.1, 10)[:1] == [4]
    speculator.append(5)
    assert speculator.guess(0.1, 10) == []
    for token in (7, 8, 9):
        speculator.append(token)
    assert speculator.guess(0.1, 2) == [10, 11]
    assert speculator.guess(0.9, 10) == []  # dear tokens are not worth an even chance


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {"<|endoftext|>": 0} | {letter: i for i, letter in enumerate(LETTERS, start=1)}
    raw = Tokenizer(models.WordLevel(words, unk_token="<|endoftext|>"))
    raw.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    raw.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, eos_token="<|endoftext|>", pad_token="<|endoftext|>"
    )


def tiny(kind: str, spread: float = 5, **more: Any) -> Any:
    """A random model of a family, its weights spread so that texts differ."""
    import torch
    import transformers

    torch.manual_seed(1)
    common = {
        "vocab_size": len(LETTERS) + 1,
        "eos_token_id": 0,
        "bos_token_id": 0,
        "pad_token_id": 0,
    }
    if kind == "GPT2":
        shape = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": CONTEXT}
    elif kind == "Bloom":
        shape = {"hidden_size": 32, "n_layer": 2, "n_head": 4}
    else:
        shape = {
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "max_position_embeddings": CONTEXT,
        }
        if kind not in ("GPTNeoX", "Phi"):
            shape["num_key_value_heads"] = 2
    config = getattr(transformers, f"{kind}Config")(**(common | shape | more))
    name = "GPT2LMHeadModel" if kind == "GPT2" else f"{kind}ForCausalLM"
    model = getattr(transformers, name)(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(spread)
    return model


def words(source: random.Random, count: int) -> str:
    return "".join(source.choices(LETTERS, k=count))


def requests(seed: int) -> list[Any]:
    """Log-likelihood requests: few-shot families, letters and long choices, and loners."""
    from lm_eval.api.instance import Instance

    source = random.Random(seed)
    pairs = []
    for _ in range(2):
        shots = words(source, 200)
        for _ in range(4):
            question = shots + words(source, source.randint(5, 60))
            pairs += [(question, f" {letter}") for letter in "abcd"]
            stem = words(source, 6)
            pairs += [(question, stem + words(source, source.randint(1, 20))) for _ in range(3)]
    pairs += [(words(source, source.randint(1, 700)), words(source, 20)) for _ in range(4)]
    source.shuffle(pairs)
    return [Instance("loglikelihood", {}, pair, index) for index, pair in enumerate(pairs)]


def prompts(number: int, count: int = 9, **options: Any) -> list[Any]:
    from lm_eval.api.instance import Instance

    source = random.Random(number)
    shots = words(source, 150)
    asked = {"until": ["\n", "ab"], "max_gen_toks": 40, **options}
    texts = [shots + words(source, source.randint(3, 80)) for _ in range(count)]
    texts += [words(source, 30)]
    return [Instance("generate_until", {}, (text, asked), i) for i, text in enumerate(texts)]


def engine(model: Any, tokenizer: Any, **options: Any) -> Any:
    from mixloop.evals.engine.shared_prefix_lm import SharedPrefixLM, why_not_shared

    assert why_not_shared(model, CONTEXT) is None
    return SharedPrefixLM(model, tokenizer, max_length=CONTEXT, **options)


FAMILIES = ["Llama", "Qwen2", "Qwen3", "GPTNeoX", "GPT2", "Phi"]


@pytest.fixture(scope="module")
def stock(tokenizer: Any) -> Any:
    """Answers of lm-eval's `hf` model, by family."""
    from lm_eval.models.huggingface import HFLM

    def answers(kind: str, dtype: Any = None) -> tuple[list[Any], list[str]]:
        with warnings.catch_warnings():
            # transformers announces deprecations to lm-eval's code, not to ours
            warnings.simplefilter("ignore")
            read = tiny(kind) if dtype is None else tiny(kind).to(dtype)
            model = HFLM(read, tokenizer=tokenizer, max_length=CONTEXT, batch_size=5)
            return (
                model.loglikelihood(requests(1), disable_tqdm=True),
                model.generate_until(prompts(2), disable_tqdm=True),
            )

    return answers


@pytest.mark.parametrize("kind", FAMILIES)
def test_numbers_and_texts_are_the_stock_models(kind: str, stock: Any, tokenizer: Any) -> None:
    logs, texts = stock(kind)
    lm = engine(tiny(kind), tokenizer)
    ours = lm.loglikelihood(requests(1), disable_tqdm=True)
    assert max(abs(a[0] - b[0]) for a, b in zip(logs, ours, strict=True)) < 1e-4
    assert [greedy for _, greedy in logs] == [greedy for _, greedy in ours]
    assert lm.tokens < 0.6 * lm.asked_tokens
    assert lm.generate_until(prompts(2)) == texts
    assert len(set(texts)) > 3


@pytest.mark.parametrize("kind", ["Llama", "GPTNeoX"])
def test_half_precision_is_as_good_as_the_stock_models(
    kind: str, stock: Any, tokenizer: Any
) -> None:
    """The engine in bfloat16 is no further from float32 than lm-eval's `hf` model is."""
    import torch

    exact, _ = stock(kind)
    theirs, _ = stock(kind, torch.bfloat16)
    ours = engine(tiny(kind).bfloat16(), tokenizer).loglikelihood(requests(1), disable_tqdm=True)

    def away(answers: list[Any]) -> float:
        return sum(abs(a[0] - b[0]) for a, b in zip(answers, exact, strict=True)) / len(exact)

    assert 0 < away(ours) < 1.25 * away(theirs)


def test_numbers_do_not_depend_on_how_much_fits_a_pass(tokenizer: Any) -> None:
    model = tiny("Llama")
    whole, small = engine(model, tokenizer), engine(model, tokenizer, batch_tokens=24)
    assert small.packed.pass_tokens == 24
    for a, b in zip(
        whole.loglikelihood(requests(3), disable_tqdm=True),
        small.loglikelihood(requests(3), disable_tqdm=True),
        strict=True,
    ):
        assert a[0] == pytest.approx(b[0], abs=1e-4)
    small.max_rows = 2
    assert whole.generate_until(prompts(4)) == small.generate_until(prompts(4))


def test_rows_decoded_together_write_the_same(
    tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on devices where one padded product beats many small ones."""
    from mixloop.evals.engine import generation
    from mixloop.evals.engine.kv_cache import RowCaches

    lm = engine(tiny("Llama", 2), tokenizer)
    lm.max_rows = 4
    asked = prompts(4, until=[])
    apart = lm.generate_until(asked)
    monkeypatch.setattr(
        generation, "RowCaches", lambda places, padded: RowCaches(places, padded=True)
    )
    assert lm.generate_until(asked) == apart


def test_what_is_worth_sharing_changes_no_number(tokenizer: Any) -> None:
    """On a device, a small model's prefix is computed again rather than in a pass of its own."""
    model = tiny("Llama", 2)
    shared, apart = engine(model, tokenizer), engine(model, tokenizer)
    apart.min_shared_tokens = 10**9
    answers = [lm.loglikelihood(requests(3), disable_tqdm=True) for lm in (shared, apart)]
    for a, b in zip(*answers, strict=True):
        assert a[0] == pytest.approx(b[0], abs=1e-4)
    assert shared.generate_until(prompts(5)) == apart.generate_until(prompts(5))
    assert shared.tokens < apart.tokens


def test_the_smaller_a_model_the_more_a_prefix_has_to_save() -> None:
    from mixloop.evals.engine.shared_prefix_lm import device_min_shared, device_pass

    sizes = [(135_000_000, 30), (1_700_000_000, 24), (8_000_000_000, 32), (70_000_000_000, 80)]
    least = [device_min_shared(*size) for size in sizes]
    assert least == sorted(least, reverse=True)
    assert least[0] > 10_000
    assert 64 <= least[-1] < 200
    passes = [device_pass(size) for size, _ in sizes]
    assert passes == [32768, 8192, 8192, 8192]


def test_nothing_is_continued_from_the_start_of_a_text(tokenizer: Any) -> None:
    from lm_eval.api.instance import Instance

    lm = engine(tiny("Llama"), tokenizer)
    options = {"until": [], "max_gen_toks": 9}
    asked = [Instance("generate_until", {}, (text, options), 0) for text in ("", "<|endoftext|>")]
    nothing, start = lm.generate_until(asked)
    assert nothing == start


def test_a_pass_that_runs_out_of_memory_is_halved(
    tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from mixloop.evals.engine.shared_prefix_lm import SharedPrefixLM

    asked = [r for r in requests(5) if len(r.args[0]) < 100]
    source = random.Random(0)
    for index, request in enumerate(asked * 4):
        request.arguments = (words(source, 40 + index), request.args[1])
    model = tiny("Llama")
    whole = engine(model, tokenizer).loglikelihood(asked, disable_tqdm=True)
    small = SharedPrefixLM(model, tokenizer, max_length=CONTEXT)
    forward = small.packed.forward

    def short(tokens: Any, *rest: Any) -> Any:
        if len(tokens) > 120:
            raise torch.OutOfMemoryError("no more")
        return forward(tokens, *rest)

    monkeypatch.setattr(small.packed, "forward", short)
    halved = small.loglikelihood(asked, disable_tqdm=True)
    assert [a[0] for a in whole] == pytest.approx([b[0] for b in halved], abs=1e-4)


def test_guesses_change_no_text_and_save_passes(tokenizer: Any) -> None:
    """A model that repeats itself is read several tokens a pass."""
    from lm_eval.api.instance import Instance

    lm = engine(tiny("Llama", 2), tokenizer)
    asked = {"until": [], "max_gen_toks": 200}
    requests = [Instance("generate_until", {}, ("abc" * 30, asked), 0)]
    passes = 0
    forward = lm.model.forward

    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal passes
        passes += 1
        return forward(*args, **kwargs)

    lm.model.forward = counted
    text = lm.generate_until(requests)[0]
    lm.model.forward = forward
    assert passes < 100
    from mixloop.evals.engine.plain_lm import PlainLM

    plain = PlainLM(tiny("Llama", 2), tokenizer, max_length=CONTEXT)
    assert plain.generate_until(requests)[0] == text


def test_sampled_texts_depend_on_the_seed_and_nothing_else(tokenizer: Any) -> None:
    lm = engine(tiny("Llama"), tokenizer)
    options = {"do_sample": True, "temperature": 0.7, "top_p": 0.9, "until": []}
    texts = lm.generate_until(prompts(6, **options))
    backwards = lm.generate_until(prompts(6, **options)[::-1])[::-1]
    assert texts == backwards
    assert texts != lm.generate_until(prompts(6, **options, seed=5))
    twice = lm.generate_until([prompts(6, **options)[0]] * 2)
    assert twice[0] == texts[0]
    assert twice[1] != twice[0]
    from mixloop.evals.engine.plain_lm import PlainLM

    plain = PlainLM(tiny("Llama"), tokenizer, max_length=CONTEXT)
    assert plain.generate_until(prompts(6, **options)) == texts
    with pytest.raises(ValueError, match="repetition_penalty"):
        lm.generate_until(prompts(6, repetition_penalty=1.2))


@pytest.mark.parametrize(
    ("kind", "more", "why"),
    [
        ("Mistral", {"sliding_window": 64}, "window of 64 tokens"),
        ("Bloom", {}, "more than a softmax"),
        ("Gemma2", {"head_dim": 8, "sliding_window": 4096}, "more than a softmax"),
    ],
)
def test_other_attention_is_left_alone(
    kind: str, more: dict[str, Any], why: str, tokenizer: Any, tmp_path: Path, caplog: Any
) -> None:
    from mixloop.evals.engine import load_checkpoint
    from mixloop.evals.engine.shared_prefix_lm import SharedPrefixLM

    model = tiny(kind, **more)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    lm = load_checkpoint(tmp_path, max_length=CONTEXT)
    assert not isinstance(lm, SharedPrefixLM)
    assert why in caplog.text
    asked = requests(7)[:6]
    assert all(value < 0 for value, _ in lm.loglikelihood(asked, disable_tqdm=True))


def test_dense_attention_is_the_fused_one() -> None:
    """What runs where no fused kernel gives its log-sum-exp."""
    import torch

    from mixloop.evals.engine import attention

    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 3, 7, 8, generator=generator) for _ in range(3))
    mask = torch.zeros(2, 1, 7, 7).masked_fill(torch.ones(7, 7).triu(1).bool(), -torch.inf)
    for options in ({}, {"causal": True}, {"mask": mask}):
        fused = attention.attend_to(q, k, v, 0.3, **options)
        plain = attention.dense(q, k, v, 0.3, **options)
        for expected, actual in zip(fused, plain, strict=True):
            torch.testing.assert_close(expected, actual)


@pytest.fixture(scope="module")
def bytes_tokenizer() -> Any:
    """A token a byte: real items keep all they say."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator(["the answer is"], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, eos_token="<|endoftext|>", pad_token="<|endoftext|>"
    )


@pytest.mark.soak
@pytest.mark.parametrize("kind", ["Llama", "GPTNeoX"])
@pytest.mark.parametrize("name", ["mmlu", "gsm8k", "math", "humaneval"])
def test_real_items_come_out_as_with_the_stock_model(
    name: str, kind: str, bytes_tokenizer: Any
) -> None:
    """Every request of a benchmark, gold answers included, answered by both models."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    from mixloop.evals import BenchmarkSettings
    from mixloop.evals.benchmarks import fit_shots, load_items, make_benchmark
    from mixloop.evals.engine.shared_prefix_lm import SharedPrefixLM
    from mixloop.evals.items import choose
    from mixloop.evals.sandbox import Sandbox

    size = {"vocab_size": len(bytes_tokenizer), "max_position_embeddings": 6144}
    items = load_items(name, "packages")
    subset = choose(items.rows, 12, 0)
    benchmark = make_benchmark(name, items, subset, Sandbox())
    lm = SharedPrefixLM(tiny(kind, **size), bytes_tokenizer, max_length=6144)
    asked = BenchmarkSettings(max_new_tokens=48)
    plan = fit_shots(benchmark, tuple(row["id"] for row in subset), asked, lm)
    reads = [choice for question in plan.answered.values() for choice in question.choices]
    for question in plan.questions.values():
        reads.append(Instance("loglikelihood", {}, question.gold, 0))
    writes = [q.prompt for q in plan.answered.values() if q.prompt is not None]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        read = tiny(kind, **size)
        stock = HFLM(read, tokenizer=bytes_tokenizer, max_length=6144, batch_size=2)
        theirs = stock.loglikelihood(reads, disable_tqdm=True)
        texts = stock.generate_until(writes, disable_tqdm=True) if writes else []
    mine = lm.loglikelihood(reads, disable_tqdm=True)
    assert len(plan.questions) == len(subset) or name == "mmlu"
    # a sum over hundreds of bytes: the bound is on each of them
    for request, (a, _), (b, _) in zip(reads, theirs, mine, strict=True):
        assert abs(a - b) < 1e-4 * max(1, len(request.args[1].encode()) / 8)
    assert [greedy for _, greedy in mine] == [greedy for _, greedy in theirs]
    assert (lm.generate_until(writes) if writes else []) == texts
