"""`bench/gpu.py`, evals: the engine on a device beside lm-eval's `hf` model, and `mixloop eval`.

Weights are random, of SmolLM2-135M's shape: times and agreement are what is asked, not scores. A
random model soon repeats itself, which the engine's guesses profit from; how many tokens a pass
of it computed is shown beside its times, and generated texts of a trained model repeat less.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml

# bench/evals.py: this folder comes before the repository's own `evals` on the path
from evals import CONTEXT, ask, count_tokens, largest_difference, mmlu_shape, outcomes, requests_of
from gpu_common import make_corpus, mixloop, unless
from lm_eval.api.instance import Instance
from transformers import LlamaConfig, LlamaForCausalLM

from mixloop.evals import BenchmarkSettings, EvalSettings
from mixloop.evals.benchmarks import fit_shots, load_items, make_benchmark
from mixloop.evals.engine import load_checkpoint
from mixloop.evals.items import choose
from mixloop.evals.sandbox import Sandbox
from mixloop.evals.scoring import Scorer
from mixloop.trainer.sources import copy_tokenizer, inspect_tokenizer

NAMES = ("mmlu", "gsm8k", "math", "humaneval")
SHAPE = {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
         "num_attention_heads": 9, "num_key_value_heads": 3}  # fmt: skip
SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
         "num_attention_heads": 2, "num_key_value_heads": 1}  # fmt: skip
FULL = {"subjects": 8, "each": 8, "items": 32, "room": 96, "batch": 32, "few": 4}
QUICK = {"subjects": 2, "each": 2, "items": 2, "room": 8, "batch": 4, "few": 2}
AGREE = {"float32": 0.02, "bfloat16": 2.0}  # nats, the largest difference of a log-likelihood


@dataclass
class Side:
    """One model's answers, seconds of each repeat, tokens (padding included) and passes."""

    lm: Any
    tokens: Callable[[], int]
    passes: list[int]
    seconds: list[float] = field(default_factory=list)
    answers: list[Any] = field(default_factory=list)
    spent: tuple[int, int] = (0, 0)

    def ask(self, requests: Sequence[Any]) -> None:
        """One timed repeat."""
        tokens, passes = self.tokens(), self.passes[0]
        settle()
        began = time.perf_counter()
        self.answers = ask(self.lm, requests)
        settle()
        self.seconds.append(time.perf_counter() - began)
        self.spent = (self.tokens() - tokens, self.passes[0] - passes)


def settle() -> None:
    """Wait until the device has nothing left to do."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def count_passes(model: Any) -> list[int]:
    count = [0]

    def hook(module: Any, args: Any) -> None:
        count[0] += 1

    model.register_forward_pre_hook(hook)
    return count


def make_checkpoint(folder: Path, tokenizer: Path, quick: bool) -> int:
    """Random weights in Hugging Face format; their number."""
    torch.manual_seed(0)
    info = inspect_tokenizer(tokenizer)
    config = LlamaConfig(
        vocab_size=info.vocab_size, bos_token_id=info.eos_id, eos_token_id=info.eos_id,
        max_position_embeddings=CONTEXT, tie_word_embeddings=True, initializer_range=0.05,
        **(SMALL if quick else SHAPE),
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    model.save_pretrained(folder)
    copy_tokenizer(tokenizer, folder)
    return sum(parameter.numel() for parameter in model.parameters())


def stock_model(folder: Path, device: str, dtype: str) -> Any:
    from lm_eval.models.huggingface import HFLM

    return HFLM(pretrained=str(folder), device=device, dtype=dtype, batch_size=1,
                max_length=CONTEXT)  # fmt: skip


def short(request: Any) -> Any:
    """A request to warm up with: kernels are chosen and memory is taken the first time."""
    if request.request_type == "loglikelihood":
        return request
    context, options = request.args
    return Instance("generate_until", {}, (context, {**options, "max_gen_toks": 3}), 0)


def compare(
    name: str, data: Mapping[str, Path], sides: tuple[Side, Side], size: Any, repeats: int,
) -> dict[str, Any]:  # fmt: skip
    """Both sides' times on one benchmark and how far apart their answers are."""
    items = load_items(name, (data[name],) if name in data else "packages")
    if name == "mmlu":
        subset, _ = mmlu_shape(items, size["subjects"], size["each"])
        items = replace(items, rows=tuple(subset))
    else:
        subset = choose(items.rows, size["items"], 0)
    theirs, mine = (Side(one.lm, one.tokens, one.passes) for one in sides)
    sandbox = Sandbox()
    benchmark = make_benchmark(name, items, subset, sandbox)
    asked = BenchmarkSettings(max_new_tokens=None if name == "mmlu" else size["room"])
    plan = fit_shots(benchmark, tuple(row["id"] for row in subset), asked, mine.lm)
    requests = requests_of(plan.answered)
    theirs.lm.batch_size_per_gpu = size["batch"] if name == "mmlu" else len(requests)
    for side in (theirs, mine):
        ask(side.lm, [short(one) for one in requests[:4]])
    for _ in range(repeats):
        theirs.ask(requests)
        mine.ask(requests)
    figures: dict[str, Any] = {
        "benchmark": name,
        "items": len(plan.answered),
        "shots": plan.shots,
        "room": plan.max_new_tokens,
        "stock_batch": theirs.lm.batch_size_per_gpu,
        "stock_s": min(theirs.seconds),
        "ours_s": min(mine.seconds),
        "repeats": [theirs.seconds, mine.seconds],
        "ratio": min(theirs.seconds) / min(mine.seconds),
        "stock_tokens": theirs.spent[0],
        "ours_tokens": mine.spent[0],
        "stock_passes": theirs.spent[1],
        "ours_passes": mine.spent[1],
        "tokens_a_pass": mine.spent[0] / max(1, mine.spent[1]),
        "difference": largest_difference(theirs.answers, mine.answers),
        "answers_different": None,
        "outcomes_different": None,
    }
    if name != "mmlu":
        pairs = zip(theirs.answers, mine.answers, strict=True)
        figures["answers_different"] = sum(a != b for a, b in pairs)
    if name != "humaneval" or sandbox.unusable() is None:
        scored = [
            outcomes(benchmark, plan.answered, requests, one.answers) for one in (theirs, mine)
        ]
        figures["outcomes_different"] = sum(scored[0][i] != scored[1][i] for i in scored[0])
    sandbox.close()
    return figures


def beside(
    checkpoint: Path, dtype: str, data: Mapping[str, Path], options: Any, size: Any
) -> dict[str, Any]:
    """Every benchmark in one precision."""
    ours = load_checkpoint(checkpoint, device=options.device, dtype=dtype, max_length=CONTEXT)
    assert type(ours).__name__ == "SharedPrefixLM", "the engine refused a plain Llama"
    stock = stock_model(checkpoint, options.device, dtype)
    sides = (
        Side(stock, count_tokens(stock.model), count_passes(stock.model)),
        Side(ours, lambda: ours.tokens, count_passes(ours.model)),
    )
    repeats = 2 if dtype == "bfloat16" and not options.quick else 1
    rows = [compare(name, data, sides, size, repeats) for name in NAMES]
    return {
        "problems": unless(log_likelihoods_agree=rows[0]["difference"] < AGREE[dtype]),
        "rows": rows,
    }


def settings(data: Mapping[str, Path], device: str, items: int, room: int | None) -> EvalSettings:
    """The four benchmarks in float32; no room: log-likelihoods alone."""
    asked = {
        name: BenchmarkSettings(
            items=items,
            data=(data[name],) if name in data else "packages",
            max_new_tokens=None if name == "mmlu" else room,
            generate_items=0 if room is None and name != "mmlu" else None,
        )
        for name in NAMES
    }
    return EvalSettings(benchmarks=asked, device=device, dtype="float32", max_length=CONTEXT)


def on_both(checkpoint: Path, data: Mapping[str, Path], device: str, few: int) -> dict[str, Any]:
    """The same items on the device and on the CPU, in float32: bits per byte of gold answers."""
    cards = []
    seconds = []
    for where in (device, "cpu"):
        scorer = Scorer(settings(data, where, few, None))
        began = time.perf_counter()
        cards.append(scorer.score(checkpoint))
        seconds.append(time.perf_counter() - began)
        scorer.close()
    values = [
        {n: where.metrics["bits_per_byte"].value for n, where in card.benchmarks.items()}
        for card in cards
    ]
    away = {name: abs(values[0][name] - values[1][name]) for name in NAMES}
    return {
        "problems": unless(bits_per_byte_agree=max(away.values()) < 1e-3),
        "items": few,
        "bits_per_byte": values,
        "apart": away,
        "seconds": seconds,
    }


def command(
    checkpoint: Path, data: Mapping[str, Path], stores: Mapping[str, Path], options: Any, size: Any
) -> dict[str, Any]:
    """`mixloop eval` as a user starts it."""
    asked = settings(data, options.device, size["items"], size["room"])
    folder = options.scratch / "evals"
    plain = asked.model_dump(mode="json", include={"device", "max_length"})
    plain["benchmarks"] = {
        name: score.model_dump(mode="json", exclude_none=True)
        for name, score in asked.benchmarks.items()
    }
    run = {
        "run": {"id": "evals", "dir": str(folder / "run")},
        "budget": 10**9,
        "sources": {name: {"path": str(path)} for name, path in stores.items()},
        "evals": plain,
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(run))
    began = time.perf_counter()
    done = mixloop("eval", str(checkpoint), "--config", str(folder / "run.yaml"), "--json")
    seconds = time.perf_counter() - began
    if done.returncode:
        raise RuntimeError(f"exit code {done.returncode}: {done.stderr.strip()[-300:]}")
    card = json.loads(done.stdout)
    scored = [n for n, score in card["benchmarks"].items() if "bits_per_byte" in score["metrics"]]
    return {
        "problems": unless(every_benchmark_was_scored=sorted(scored) == sorted(NAMES)),
        "seconds": seconds,
        "scoring_seconds": card["seconds"],
        "cost": {name: score["seconds"] for name, score in card["cost"].items()},
        "missing": {
            n: score["reason"] for n, score in card["benchmarks"].items() if score["reason"]
        },
        "engine": card["engine"],
    }


def run(options: argparse.Namespace) -> dict[str, Callable[[], Any]]:
    """The part's steps."""
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    size = QUICK if options.quick else FULL
    data = {
        n: Path(p).resolve() for n, _, p in (argument.partition("=") for argument in options.data)
    }
    stores = make_corpus(options.scratch / "corpus", options.quick)
    checkpoint = options.scratch / "evals" / "checkpoint"
    tokenizer = options.scratch / "corpus" / "tokenizer"
    parameters = make_checkpoint(checkpoint, tokenizer, options.quick)
    return {
        "parameters": lambda: parameters,
        **{
            dtype: partial(beside, checkpoint, dtype, data, options, size)
            for dtype in ("bfloat16", "float32")
        },
        "command": lambda: command(checkpoint, data, stores, options, size),
        "on_both": lambda: on_both(checkpoint, data, options.device, size["few"]),
    }
