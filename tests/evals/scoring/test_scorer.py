"""Checkpoints scored by the real worker on real items, checked against direct computation."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pyarrow import parquet

from mixloop.common import estimates
from mixloop.evals import EvalSettings, Scorecard
from mixloop.evals.benchmarks import load_items
from mixloop.evals.workers import EvaluationError, Evaluator, Failure, evaluate

CONTEXT = 512

SETTINGS = EvalSettings.model_validate(
    {
        "threads": 1,
        "timeout": 200,
        "idle_seconds": 120,
        "program_timeout": 1,
        "benchmarks": {
            "mmlu": {"items": 24, "shots": 0, "data": "packages"},
            "gsm8k": {"data": "packages", "max_new_tokens": 24, "shots": 0},
            "math": {"data": "packages", "max_new_tokens": 24},
            "humaneval": {
                "items": 24,
                "generate_items": 6,
                "max_new_tokens": 24,
                "data": "packages",
            },
        },
    }
)
HEADLINE = {
    "mmlu": "accuracy",
    "gsm8k": "exact_match",
    "math": "exact_match",
    "humaneval": "pass_at_1",
}


def make_checkpoint(folder: Path, context: int = CONTEXT) -> Path:
    """A Llama of random weights and a byte-level BPE tokenizer in Hugging Face format."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1024,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator([json.__doc__ or "", *_prose()], trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<|endoftext|>")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=context,
        eos_token_id=0,
        # spread the weights, or every text is about equally likely
        initializer_range=0.3,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _prose() -> list[str]:
    rows = load_items("humaneval", "packages").rows
    return [row["prompt"] for row in rows[:80]] + [
        f"{row['question']} {row['gold']}" for row in load_items("mmlu", "packages").rows[:80]
    ]


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="session")
def evaluator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Evaluator]:
    """The one worker of the session."""
    evaluator = Evaluator(SETTINGS, tmp_path_factory.mktemp("worker") / "worker.log")
    yield evaluator
    evaluator.stop()


def wait(evaluator: Evaluator, seconds: float = 200) -> Scorecard | Failure:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        result = evaluator.poll()
        if result is not None:
            return result
        time.sleep(0.02)
    raise AssertionError(f"no answer; the worker last said {evaluator.progress!r}")


@pytest.fixture(scope="session")
def card(
    evaluator: Evaluator, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> Scorecard:
    evaluator.start(checkpoint, tmp_path_factory.mktemp("card") / "scorecard.json")
    result = wait(evaluator)
    assert isinstance(result, Scorecard), result
    return result


@pytest.fixture(scope="session")
def lm(checkpoint: Path) -> Any:
    """The model in this process, for direct computation."""
    import torch

    from mixloop.evals.engine import load_checkpoint

    torch.set_num_threads(1)
    return load_checkpoint(checkpoint)


def direct_bits(lm: Any, context: str, continuation: str) -> float:
    """-log2 p(continuation | context), one sequence, no batching, the whole vocabulary."""
    import torch

    kept = context.rstrip()
    head = lm.tokenizer.encode(kept)
    whole = lm.tokenizer.encode(context + continuation)
    assert whole[: len(head)] == head
    with torch.inference_mode():
        scores = lm.model(torch.tensor([whole])).logits[0].double().log_softmax(-1)
    total = sum(float(scores[i - 1, whole[i]]) for i in range(len(head), len(whole)))
    return -total / math.log(2)


def test_every_benchmark_is_scored(card: Scorecard, checkpoint: Path) -> None:
    assert list(card.benchmarks) == ["mmlu", "gsm8k", "math", "humaneval"]
    assert card.checkpoint == str(checkpoint)
    for name, benchmark in card.benchmarks.items():
        assert benchmark.status == "ok", benchmark.reason
        if name != "humaneval" or card.engine["sandbox"] != "none":
            assert {"bits_per_byte", HEADLINE[name]} <= set(benchmark.metrics)
        assert benchmark.data.startswith(f"packages: {benchmark.asked} of ")
        assert benchmark.asked == len(benchmark.items) + benchmark.excluded
        assert benchmark.metrics["bits_per_byte"].value > 0
        for metric in benchmark.metrics.values():
            assert metric.asked == metric.n + metric.excluded


def test_metrics_are_those_of_their_items(card: Scorecard) -> None:
    for benchmark, score in card.benchmarks.items():
        for name, metric in score.metrics.items():
            kept = {i: item for i, item in score.items.items() if name in item}
            outcomes = list(kept.values())
            subjects = [i.split("/")[0] for i in kept] if benchmark == "mmlu" else None
            if name == "bits_per_byte":
                weights = [item["bytes"] for item in outcomes]
                totals = [item[name] * item["bytes"] for item in outcomes]
                expected = estimates.ratio_of_totals(totals, weights, subjects)
            else:
                expected = estimates.mean([item[name] for item in outcomes], subjects)
            assert len(outcomes) == metric.n
            assert metric.value == pytest.approx(expected[0])
            assert metric.stderr == pytest.approx(expected[1])
            assert metric.interval is not None
            assert metric.interval[0] <= metric.value <= metric.interval[1]


def stock_prompt(name: str, row: dict[str, Any]) -> tuple[str, str]:
    """lm-eval's zero-shot prompt and the gold continuation, written out by hand."""
    if name == "mmlu":
        subject = row["subject"].replace("_", " ")
        head = f"The following are questions (with answers) about {subject}.\n\n"
        return f"{head}Question: {row['question']}\nAnswer:", f" {row['gold']}"
    if name == "gsm8k":
        return f"Question: {row['question']}\nAnswer:", f" {row['gold']}"
    if name == "math":
        return f"Problem:\n{row['problem']}\n\nSolution:", f" {row['gold']}"
    return row["prompt"], row["gold"]


@pytest.mark.parametrize("name", ["mmlu", "gsm8k", "math", "humaneval"])
def test_bits_per_byte_is_the_direct_computation(name: str, card: Scorecard, lm: Any) -> None:
    rows = {row["id"]: row for row in load_items(name, "packages").rows}
    scored = [(i, item) for i, item in card.benchmarks[name].items.items() if "bytes" in item]
    assert len(scored) >= 4
    for item, outcome in scored[:8]:
        assert outcome["bytes"] == len(rows[item]["gold"].encode())
        bits = direct_bits(lm, *stock_prompt(name, rows[item]))
        assert outcome["bits_per_byte"] == pytest.approx(bits / outcome["bytes"], rel=1e-5)


def test_mmlu_accuracy_is_the_direct_computation(card: Scorecard, lm: Any) -> None:
    rows = {row["id"]: row for row in load_items("mmlu", "packages").rows}
    scored = [(i, item) for i, item in card.benchmarks["mmlu"].items.items() if "accuracy" in item]
    for item, outcome in scored:
        row = rows[item]
        subject = row["subject"].replace("_", " ")
        letters = "".join(f"{c}. {text}\n" for c, text in zip("ABCD", row["choices"], strict=True))
        prompt = (
            "The following are multiple choice questions (with answers) about "
            f"{subject}.\n\n{row['question']}\n{letters}Answer:"
        )
        bits = [direct_bits(lm, prompt, f" {letter}") for letter in "ABCD"]
        assert outcome["accuracy"] == float(bits.index(min(bits)) == row["answer"])
        cloze = [
            direct_bits(lm, *stock_prompt("mmlu", {**row, "gold": text})) / len(text)
            for text in row["choices"]
        ]
        assert outcome["cloze_accuracy"] == float(cloze.index(min(cloze)) == row["answer"])


def test_items_that_do_not_fit_are_those_excluded(card: Scorecard, lm: Any) -> None:
    rows = load_items("humaneval", "packages").rows
    benchmark = card.benchmarks["humaneval"]
    lengths = {r["id"]: len(lm.tokenizer.encode(r["prompt"] + r["gold"])) - 1 for r in rows}
    subset = load_subset("humaneval")
    fits = {i for i in subset if lengths[i] <= CONTEXT}
    assert {i for i, outcome in benchmark.items.items() if "bytes" in outcome} == fits
    assert benchmark.metrics["bits_per_byte"].excluded == len(subset) - len(fits) > 0


def load_subset(name: str) -> list[str]:
    from mixloop.evals.items import choose

    benchmark = SETTINGS.benchmarks[name]
    return [
        r["id"]
        for r in choose(load_items(name, benchmark.data).rows, benchmark.items, SETTINGS.seed)
    ]


def test_a_second_scoring_is_identical(
    card: Scorecard, evaluator: Evaluator, checkpoint: Path, tmp_path: Path
) -> None:
    pid = evaluator.pid
    evaluator.start(checkpoint, tmp_path / "again.json")
    with pytest.raises(RuntimeError, match="still being scored"):
        evaluator.start(checkpoint, tmp_path / "third.json")
    again = wait(evaluator)
    assert isinstance(again, Scorecard)
    assert again.benchmarks == card.benchmarks
    assert evaluator.pid == pid is not None
    assert Scorecard.read(tmp_path / "again.json") == again
    beside = parquet.read_table(tmp_path / "again.items.parquet").to_pylist()
    scored = [(row["benchmark"], row["item"], row["metric"], row["value"]) for row in beside]
    assert scored == [
        (name, item, metric, value)
        for name, benchmark in card.benchmarks.items()
        for item, outcome in benchmark.items.items()
        for metric, value in outcome.items()
        if metric != "bytes"
    ]


@pytest.mark.parametrize("damage", ["truncated", "pickle", "tokenizer", "gone"])
def test_a_damaged_checkpoint_is_missing_with_the_reason(
    damage: str, evaluator: Evaluator, card: Scorecard, checkpoint: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "damaged"
    shutil.copytree(checkpoint, folder)
    weights = folder / "model.safetensors"
    if damage == "truncated":
        weights.write_bytes(weights.read_bytes()[:5000])
    elif damage == "pickle":
        weights.rename(folder / "pytorch_model.bin")
    elif damage == "tokenizer":
        for path in folder.glob("tokenizer*"):
            path.unlink()
    else:
        shutil.rmtree(folder)
    evaluator.start(folder, tmp_path / "scorecard.json")
    result = wait(evaluator)
    assert isinstance(result, Scorecard)
    for benchmark in result.benchmarks.values():
        assert benchmark.status == "missing"
        assert benchmark.metrics == {}
        assert benchmark.reason is not None
        assert str(folder) in benchmark.reason


def test_a_benchmark_without_items_costs_only_itself(checkpoint: Path, tmp_path: Path) -> None:
    from mixloop.evals.scoring import Scorer

    empty = tmp_path / "nothing.jsonl"
    benchmarks = {"gsm8k": {"data": [str(empty)]}, "math": {"data": "packages"}}
    settings = EvalSettings.model_validate({"benchmarks": benchmarks, "threads": 1})
    card = scored(Scorer(settings), checkpoint)
    assert card.benchmarks["gsm8k"].status == "missing"
    assert "nothing.jsonl" in (card.benchmarks["gsm8k"].reason or "")
    assert card.benchmarks["math"].status == "ok"


def scored(scorer: Any, checkpoint: Path) -> Scorecard:
    try:
        card = scorer.score(checkpoint)
    finally:
        scorer.close()
    assert isinstance(card, Scorecard)
    return card


def test_no_sandbox_leaves_bits_per_byte(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mixloop.evals.scoring import Scorer

    monkeypatch.setenv("PATH", "")
    asked = {"items": 6, "data": "packages"}
    settings = EvalSettings.model_validate(
        {"benchmarks": {"humaneval": asked}, "sandbox": "bwrap", "threads": 1}
    )
    benchmark = scored(Scorer(settings), checkpoint).benchmarks["humaneval"]
    assert benchmark.status == "ok"
    assert set(benchmark.metrics) == {"bits_per_byte"}
    assert benchmark.reason == "pass_at_1: no usable sandbox (bwrap: bubblewrap is not installed)"


def test_a_context_that_holds_nothing_is_missing(checkpoint: Path) -> None:
    from mixloop.evals.scoring import Scorer

    settings = EvalSettings.model_validate(
        {"benchmarks": {"math": {"data": "packages"}}, "max_length": 16, "threads": 1}
    )
    benchmark = scored(Scorer(settings), checkpoint).benchmarks["math"]
    assert benchmark.status == "missing"
    assert benchmark.excluded == benchmark.asked == 4
    assert (
        benchmark.reason
        == "exact_match: no item fits the context; bits_per_byte: no item fits the context"
    )


def plan_of(name: str, lm: Any, **own: Any) -> Any:
    from mixloop.evals import BenchmarkSettings
    from mixloop.evals.benchmarks import fit_shots, make_benchmark
    from mixloop.evals.sandbox import Sandbox

    settings = BenchmarkSettings.model_validate(own)
    items = load_items(name, settings.data)
    benchmark = make_benchmark(name, items, items.rows[: own.get("items")], Sandbox())
    ids = tuple(row["id"] for row in items.rows[: own.get("items")])
    return fit_shots(benchmark, ids, settings, lm)


@pytest.mark.parametrize("context", [300, 500, 9000])
def test_shots_are_the_most_that_fit(lm: Any, tmp_path: Path, context: int) -> None:
    from mixloop.evals.engine.plain_lm import PlainLM

    tight = PlainLM(lm.model, lm.tokenizer, max_length=context)
    path = tmp_path / "own.jsonl"
    question = "Ann has 3 apples and eats 1. How many are left?"
    rows = [{"question": f"{i}. {question}", "answer": "2 #### 2"} for i in range(5)]
    path.write_text("\n".join(json.dumps(row) for row in rows))
    plan = plan_of("gsm8k", tight, data=[str(path)], max_new_tokens=32)
    prompt = next(iter(plan.answered.values())).prompt.args[0]
    assert prompt.count("Question:") - 1 == plan.shots
    assert (plan.shots == 5) == (context == 9000)
    longest = max(len(lm.tokenizer.encode(q.prompt.args[0])) for q in plan.answered.values())
    assert longest + 32 <= context
    if plan.shots < 5:
        wide = PlainLM(lm.model, lm.tokenizer, max_length=9000)
        more = plan_of("gsm8k", wide, data=[str(path)], max_new_tokens=32, shots=plan.shots + 1)
        shortest = min(len(lm.tokenizer.encode(q.prompt.args[0])) for q in more.answered.values())
        assert shortest + 32 > context


def test_no_item_is_shown_its_own_answer(lm: Any, tmp_path: Path) -> None:
    from mixloop.evals.engine.plain_lm import PlainLM

    wide = PlainLM(lm.model, lm.tokenizer, max_length=20_000)
    rows = {row["id"]: row for row in load_items("mmlu", "packages").rows}
    plan = plan_of("mmlu", wide, data="packages", items=40)
    assert plan.shots == 4
    for item, question in plan.answered.items():
        for choice in question.choices:
            assert choice.args[0].count(rows[item]["question"].strip()) == 1
            assert choice.args[0].endswith("Answer:")
    plan = plan_of("gsm8k", wide, data="packages")
    assert plan.shots == 5
    rows = {row["id"]: row for row in load_items("gsm8k", "packages").rows}
    for item, question in plan.answered.items():
        assert question.prompt.args[0].count("Question:") == 6
        assert question.prompt.args[0].count(rows[item]["question"]) == 1
        assert rows[item]["answer"] not in question.prompt.args[0]
    assert plan_of("math", wide, data="packages").shots == 0


def test_a_subject_of_one_s_own_is_asked_like_mmlu_s(lm: Any, tmp_path: Path) -> None:
    from mixloop.evals.engine.plain_lm import PlainLM

    wide = PlainLM(lm.model, lm.tokenizer, max_length=20_000)
    row = {"subject": "Bee Keeping", "choices": ["1", "2", "3", "4"], "answer": "B"}
    for name, count in (("dev", 2), ("test", 3)):
        rows = [{**row, "question": f"{name} {i}?"} for i in range(count)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    plan = plan_of("mmlu", wide, data=[str(tmp_path)])
    about = "questions (with answers) about bee keeping.\n\n"
    for question in plan.answered.values():
        letters, text = question.choices[0].args[0], question.choices[4].args[0]
        assert letters.startswith(f"The following are multiple choice {about}dev 0?\nA. 1\n")
        assert text.startswith(f"The following are {about}Question: dev 0?\nAnswer: 2\n\n")
        assert [choice.args[1] for choice in question.choices[:4]] == [" A", " B", " C", " D"]
        assert question.gold == question.choices[5].args


def test_a_stray_item_of_the_pool_takes_no_example_from_the_others(lm: Any, tmp_path: Path) -> None:
    from mixloop.evals.engine.plain_lm import PlainLM

    wide = PlainLM(lm.model, lm.tokenizer, max_length=20_000)
    pool = [{"question": f"How many are {i}?", "answer": f"#### {i}"} for i in range(6)]
    rows = [pool[2], {"question": "How many are all?", "answer": "#### 15"}]
    for name, content in (("train", pool), ("test", rows)):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(json.dumps(row) for row in content))
    plan = plan_of("gsm8k", wide, data=[str(tmp_path)])
    shown = [re.findall(r"How many are (\w+)", q.prompt.args[0]) for q in plan.answered.values()]
    assert sorted(shown) == [["0", "1", "2", "3", "4", "all"], ["0", "1", "3", "4", "5", "2"]]


def request(kind: str, *arguments: Any) -> Any:
    from lm_eval.api.instance import Instance

    return Instance(request_type=kind, doc={}, arguments=arguments, idx=0)


def test_generation_is_greedy_and_stops(lm: Any) -> None:
    import torch

    prompts = ["def add(a, b):\n", "Question: why?\nAnswer:", "x" * 90, "The answer is"]
    options = {"until": [], "max_gen_toks": 20}
    texts = lm.generate_until([request("generate_until", p, options) for p in prompts])
    for prompt, text in zip(prompts, texts, strict=True):
        ids = lm.tokenizer.encode(prompt)
        begin = len(ids)
        with torch.inference_mode():
            for _ in range(20):
                ids.append(int(lm.model(torch.tensor([ids])).logits[0, -1].argmax()))
                if ids[-1] == lm.eot_token_id:
                    break
        assert text == lm.tokenizer.decode(ids[begin:], skip_special_tokens=True)
    stop = texts[0][len(texts[0]) // 2 :][:3]
    stopped = {"until": [stop], "max_gen_toks": 20}
    assert lm.generate_until([request("generate_until", prompts[0], stopped)]) == [
        texts[0].split(stop)[0]
    ]


def test_nothing_is_truncated(lm: Any) -> None:
    from mixloop.evals.engine.checkpoint_lm import TooLongError

    long = "word " * 2000
    assert not lm.holds(long, " end")
    with pytest.raises(TooLongError):
        lm.loglikelihood([request("loglikelihood", long, " end")], disable_tqdm=True)
    with pytest.raises(TooLongError):
        lm.generate_until([request("generate_until", long, {"max_gen_toks": 4})])


# --- the worker's failures


def test_a_killed_worker_is_a_failure_and_the_next_start_recovers(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    only = {"math": {"data": "packages", "max_new_tokens": 4}}
    settings = EvalSettings.model_validate({"benchmarks": only, "threads": 1, "idle_seconds": 0.1})
    evaluator = Evaluator(settings, tmp_path / "worker.log")
    try:
        evaluator.start(checkpoint, tmp_path / "one.json")
        assert evaluator.pid is not None
        os.kill(evaluator.pid, signal.SIGKILL)
        result = wait(evaluator, 10)
        assert isinstance(result, Failure)
        assert "worker died (signal SIGKILL)" in result.reason
        assert not evaluator.busy
        evaluator.start(checkpoint, tmp_path / "two.json")
        assert isinstance(wait(evaluator), Scorecard)
        # and ends by itself when there is nothing to do
        deadline = time.monotonic() + 20
        while evaluator.pid is not None and time.monotonic() < deadline:
            time.sleep(0.05)
        assert evaluator.pid is None
        assert evaluator.poll() is None
    finally:
        evaluator.stop()
    assert list(scratch.iterdir()) == [], "temporary files are left behind"


def test_a_hanging_worker_is_ended(checkpoint: Path, tmp_path: Path) -> None:
    settings = SETTINGS.model_copy(update={"timeout": 0.5})
    evaluator = Evaluator(settings, tmp_path / "worker.log")
    evaluator.start(checkpoint, tmp_path / "card.json")
    pid = evaluator.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    result = wait(evaluator, 10)
    assert result == Failure("no scorecard within 0.5 s")
    assert not Path(f"/proc/{pid}").exists()


def test_a_worker_that_grows_is_ended(checkpoint: Path, tmp_path: Path) -> None:
    settings = SETTINGS.model_copy(update={"memory": 60 * 2**20})
    evaluator = Evaluator(settings, tmp_path / "worker.log")
    evaluator.start(checkpoint, tmp_path / "card.json")
    result = wait(evaluator, 60)
    assert isinstance(result, Failure)
    assert "bytes of memory, more than 62914560" in result.reason
    assert evaluator.pid is None


def test_a_worker_dies_with_its_parent(checkpoint: Path, tmp_path: Path) -> None:
    script = (
        "import os, sys\nfrom pathlib import Path\n"
        "from mixloop.evals.settings import EvalSettings\n"
        "from mixloop.evals.workers.client import Evaluator\n"
        "e = Evaluator(EvalSettings(), Path(sys.argv[2]) / 'worker.log')\n"
        "e.start(Path(sys.argv[1]), Path(sys.argv[2]) / 'card.json')\n"
        "print(e.pid, flush=True)\nos.kill(os.getpid(), 9)\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", script, str(checkpoint), str(tmp_path)],
        check=False,
        capture_output=True,
        text=True,
    )
    pid = int(run.stdout)
    deadline = time.monotonic() + 10
    while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not Path(f"/proc/{pid}").exists()


def test_evaluate_says_why_there_is_no_scorecard(checkpoint: Path) -> None:
    heard: list[str] = []
    settings = SETTINGS.model_copy(update={"timeout": 0.2})
    with pytest.raises(EvaluationError, match=r"no scorecard within 0\.2 s"):
        evaluate(checkpoint, settings, progress=heard.append)
    assert heard[0] == "starting"


def test_the_client_is_light() -> None:
    code = (
        "import sys, mixloop.evals.workers.client, mixloop.evals.settings\n"
        "heavy = {'torch', 'lm_eval', 'transformers', 'datasets', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# --- against lm-eval's own model


def stock_samples(model: Any, options: dict[str, Any], benchmark: Any, name: str) -> Any:
    """lm-eval's own samples of one benchmark's tasks, zero-shot, by (item, filter)."""
    import lm_eval

    tasks = [benchmark._task] if name != "mmlu" else benchmark._tasks.values()
    results = lm_eval.simple_evaluate(
        model=model,
        tasks=[task.task for task in tasks if "continuation" not in task.name],
        num_fewshot=0,
        bootstrap_iters=0,
        gen_kwargs=None if name == "mmlu" else {"max_gen_toks": 24},
        **options,
    )
    samples = [sample for task in results["samples"].values() for sample in task]
    return {(s["doc_hash"], s["filter"]): s for s in samples}


@pytest.mark.soak
@pytest.mark.parametrize("name", ["mmlu", "gsm8k", "math"])
def test_scores_are_those_of_the_stock_model(
    name: str, card: Scorecard, checkpoint: Path, lm: Any
) -> None:
    """Log-likelihoods, texts and outcomes agree with lm-eval's `hf` model on the same items."""
    pytest.importorskip("accelerate")  # what lm-eval's `hf` model needs
    from mixloop.evals.benchmarks import make_benchmark
    from mixloop.evals.sandbox import Sandbox

    items = load_items(name, "packages")
    by_id = {row["id"]: row for row in items.rows}
    outcomes = card.benchmarks[name].items
    asked = [by_id[i] for i, outcome in outcomes.items() if HEADLINE[name] in outcome]
    chosen = replace(items, rows=tuple(asked))
    benchmarks = [make_benchmark(name, chosen, asked, Sandbox()) for _ in range(2)]
    arguments = {"pretrained": str(checkpoint), "max_length": CONTEXT, "dtype": "float32"}
    options = {"model_args": arguments, "device": "cpu", "batch_size": 4}
    with warnings.catch_warnings():
        # transformers and accelerate announce deprecations to lm-eval's code, not to ours
        warnings.simplefilter("ignore")
        stock = stock_samples("hf", options, benchmarks[0], name)
        ours = stock_samples(lm, {}, benchmarks[1], name)
    assert stock.keys() == ours.keys()
    assert len(stock) == len(asked) * (2 if name == "gsm8k" else 1)
    for key, theirs in stock.items():
        mine = ours[key]
        if name == "mmlu":
            pairs = zip(theirs["filtered_resps"], mine["filtered_resps"], strict=True)
            assert all(a[0] == pytest.approx(b[0], abs=1e-4) and a[1] == b[1] for a, b in pairs)
            assert outcomes[mine["doc"]["id"]]["accuracy"] == theirs["acc"]
        else:
            assert mine["resps"] == theirs["resps"]
            assert mine["exact_match"] == theirs["exact_match"]
