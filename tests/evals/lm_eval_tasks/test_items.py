"""Benchmarks beyond the four, on local files in the hub's own fields and a model of random weights.

The prompts are written out by hand, and the outcomes computed from the model's own answers.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mixloop.evals import BenchmarkScore, EvalSettings
from mixloop.evals.benchmarks import load_items
from mixloop.evals.items import ItemsError
from mixloop.evals.lm_eval_tasks import unknown_benchmarks
from mixloop.evals.lm_eval_tasks.catalog import catalog, members

ENDINGS = ["eats an apple [title] slowly", "runs", "sleeps in the sun", "reads it aloud"]
LETTERS = ["A", "B", "C", "D"]


def hellaswag(index: int) -> dict[str, Any]:
    return {
        "activity_label": "Cooking",
        "ctx_a": f"Man {index} stands.",
        "ctx_b": "he",
        "endings": ENDINGS,
        "label": str(index % 4),
    }


def arc(index: int) -> dict[str, Any]:
    choices = {"text": [f"the {word}" for word in ("sun", "moon", "sea", "air")], "label": LETTERS}
    return {"question": f"What shines {index}?", "choices": choices, "answerKey": "ABCD"[index % 4]}


def lambada(index: int) -> dict[str, Any]:
    return {"text": f"the {index} cats sat on the mat"}


def winogrande(index: int) -> dict[str, Any]:
    sentence = f"The cup {index} broke on the floor because the _ was hard."
    return {
        "sentence": sentence,
        "option1": "cup",
        "option2": "floor",
        "answer": str(index % 2 + 1),
    }


def trivia(index: int) -> dict[str, Any]:
    return {"question": f"Who is number {index}", "answer": [f"Ann {index}", f"Bob {index}"]}


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of random weights over bytes."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("bytes")
    vocabulary = ["<|endoftext|>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    raw = Tokenizer(models.BPE({text: index for index, text in enumerate(vocabulary)}, []))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<|endoftext|>").save_pretrained(folder)
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=1500,
        eos_token_id=0,
        initializer_range=0.5,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def lm(checkpoint: Path) -> Any:
    """The model in this process, for direct computation."""
    from mixloop.evals.checkpoints import read_checkpoint
    from mixloop.evals.engine.plain_lm import PlainLM

    found = read_checkpoint(checkpoint, device="cpu", dtype="auto")
    return PlainLM(found.model, found.tokenizer, max_length=1500)


@pytest.fixture
def score(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Scores benchmarks on the checkpoint; the hub is switched off."""
    from mixloop.evals.scoring import Scorer

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    opened: list[Scorer] = []

    def scored(**benchmarks: Any) -> dict[str, BenchmarkScore]:
        opened.append(Scorer(EvalSettings.model_validate({"benchmarks": benchmarks})))
        return opened[-1].score(checkpoint).benchmarks

    yield scored
    for scorer in opened:
        scorer.close()


def logprobs(lm: Any, pairs: list[tuple[str, str]]) -> list[tuple[float, bool]]:
    from lm_eval.api.instance import Instance

    requests = [Instance("loglikelihood", {}, pair, 0) for pair in pairs]
    answers: list[tuple[float, bool]] = lm.loglikelihood(requests, disable_tqdm=True)
    return answers


def continued(lm: Any, prompt: str, tokens: int) -> str:
    from lm_eval.api.instance import Instance

    options = {"until": ["\n", ".", ","], "max_gen_toks": tokens}
    text: str = lm.generate_until([Instance("generate_until", {}, (prompt, options), 0)])[0]
    assert text.strip(), "the model says nothing"
    return text


def bits_per_byte(lm: Any, pairs: list[tuple[str, str]]) -> float:
    bits = -sum(answer[0] for answer in logprobs(lm, pairs)) / math.log(2)
    return bits / sum(len(text.strip().encode()) for _, text in pairs)


def best(lm: Any, pairs: list[tuple[str, str]], lengths: list[int]) -> int:
    scores = [a[0] / n for a, n in zip(logprobs(lm, pairs), lengths, strict=True)]
    return scores.index(max(scores))


def test_multiple_choice(lm: Any, score: Any, tmp_path: Path) -> None:
    rows = [hellaswag(index) for index in range(9)]
    benchmark = score(hellaswag={"data": str(write(tmp_path / "mine.jsonl", rows))})["hellaswag"]
    assert benchmark.status == "ok", benchmark.reason
    assert benchmark.data == f"files: 9 of 9 items ({tmp_path}/mine.jsonl)"
    assert set(benchmark.metrics) == {"bits_per_byte", "acc", "acc_norm"}
    endings = ["eats an apple. slowly", *ENDINGS[1:]]
    asked = [[(f"Cooking: Man {i} stands. He", f" {e}") for e in endings] for i in range(9)]
    plain = [best(lm, pairs, [1] * 4) == i % 4 for i, pairs in enumerate(asked)]
    by_length = [
        best(lm, pairs, [len(e) for e in endings]) == i % 4 for i, pairs in enumerate(asked)
    ]
    assert benchmark.metrics["acc"].value == pytest.approx(sum(plain) / 9)
    assert benchmark.metrics["acc_norm"].value == pytest.approx(sum(by_length) / 9)
    gold = [pairs[i % 4] for i, pairs in enumerate(asked)]
    assert benchmark.metrics["bits_per_byte"].value == pytest.approx(
        bits_per_byte(lm, gold), rel=1e-5
    )
    assert not benchmark.metrics["bits_per_byte"].higher_is_better


def test_several_inputs_and_a_last_word(lm: Any, score: Any, tmp_path: Path) -> None:
    cups = write(tmp_path / "cups.jsonl", [winogrande(index) for index in range(4)])
    cats = write(tmp_path / "cats.jsonl", [lambada(index) for index in range(3)])
    scores = score(winogrande={"data": str(cups)}, lambada_openai={"data": str(cats)})
    because = [f"The cup {i} broke on the floor because the" for i in range(4)]
    asked = [[(f"{text} {word}", " was hard.") for word in ("cup", "floor")] for text in because]
    right = [best(lm, pairs, [1, 1]) == i % 2 for i, pairs in enumerate(asked)]
    metrics = scores["winogrande"].metrics
    assert metrics["acc"].value == pytest.approx(sum(right) / 4)
    gold = [pairs[i % 2] for i, pairs in enumerate(asked)]
    assert metrics["bits_per_byte"].value == pytest.approx(bits_per_byte(lm, gold), rel=1e-5)
    # lambada's perplexity is no mean of its items
    assert set(scores["lambada_openai"].metrics) == {"acc", "bits_per_byte"}
    last = [(f"the {i} cats sat on the", " mat") for i in range(3)]
    metrics = scores["lambada_openai"].metrics
    assert metrics["acc"].value == sum(greedy for _, greedy in logprobs(lm, last)) / 3
    assert metrics["bits_per_byte"].value == pytest.approx(bits_per_byte(lm, last), rel=1e-5)


def test_generated_answers_and_the_pool_s_first_examples(
    lm: Any, score: Any, tmp_path: Path
) -> None:
    def prompt(index: int) -> str:
        shown = [shot for shot in (1, 8, 9) if shot != index][:2]
        examples = "".join(f"Q: Who is number {i}?\nA: Ann {i}\n" for i in shown)
        return f"Answer these questions:\n\n{examples}Q: Who is number {index}?\nA:"

    rows = [trivia(index) for index in range(4)]
    rows[2]["answer"] = [continued(lm, prompt(2), 6)]
    write(tmp_path / "validation.jsonl", rows)
    # one of the items is an example too, and is left out in front of itself alone
    write(tmp_path / "train.jsonl", [trivia(index) for index in (1, 8, 9)])
    asked = {"data": str(tmp_path), "max_new_tokens": 6, "shots": 2}
    benchmark = score(nq_open=asked)["nq_open"]
    assert benchmark.status == "ok", benchmark.reason
    assert (benchmark.shots, benchmark.max_new_tokens) == (2, 6)
    gold = [(prompt(i), f" {rows[i]['answer'][0]}") for i in range(4)]
    assert benchmark.metrics["bits_per_byte"].value == pytest.approx(
        bits_per_byte(lm, gold), rel=1e-5
    )
    assert benchmark.metrics["exact_match"].value == 1 / 4


def test_a_tag_is_its_tasks_together(score: Any, tmp_path: Path) -> None:
    write(tmp_path / "arc_easy" / "test.jsonl", [arc(index) for index in range(4)])
    write(tmp_path / "arc_challenge" / "test.jsonl", [arc(index) for index in range(6)])
    tasks = {"arc_easy": {"data": str(tmp_path / "arc_easy")}}
    tasks |= {"arc_challenge": {"data": str(tmp_path / "arc_challenge")}}
    scores = score(ai2_arc={"data": str(tmp_path)}, **tasks)
    whole, parts = scores["ai2_arc"], [scores["arc_easy"], scores["arc_challenge"]]
    assert whole.items == parts[0].items | parts[1].items
    assert whole.metrics["acc"].n == 10


def test_an_item_has_one_id_in_every_order(tmp_path: Path) -> None:
    rows = [arc(index) for index in range(5)]
    first = load_items("arc_easy", (write(tmp_path / "a.jsonl", rows),))
    again = load_items("arc_easy", (write(tmp_path / "b.jsonl", [*rows[::-1], rows[2]]),))
    assert {row["id"] for row in first.rows} == {row["id"] for row in again.rows}
    assert len(again.rows) == 5


def test_what_cannot_be_asked_says_why(
    score: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = str(write(tmp_path / "mine.jsonl", [arc(1)]))
    wrong = str(write(tmp_path / "wrong.jsonl", [winogrande(0), winogrande(1) | {"answer": "x"}]))
    scores = score(
        winogrande={"data": wrong},
        wikitext={"data": path},
        humaneval_plus={"data": path},
        squadv2={"data": path},
        gsm8k_cot_self_consistency={"data": path},
        arc_eazy={"data": path},
        hellaswag={"data": path},
        piqa={},
        arc_easy={"data": path},
    )
    said = {name: benchmark.reason or "" for name, benchmark in scores.items()}
    assert "has output type loglikelihood_rolling" in said["wikitext"]
    assert "runs generated programs outside the sandbox" in said["humaneval_plus"]
    assert "is written as a Python class" in said["squadv2"]
    assert "asks every item 64 times" in said["gsm8k_cot_self_consistency"]
    assert "no such task; did you mean 'arc_easy'?" in said["arc_eazy"]
    assert "hellaswag: KeyError: 'ctx_a'" in said["hellaswag"]
    assert "winogrande: document 2 can't be asked: " in said["winogrande"]
    assert "correct that row of its data" in said["winogrande"]
    assert "the hub can't be reached; name local files" in said["piqa"]
    assert said.pop("arc_easy") == ""
    assert all(scores[name].status == "missing" for name in said)


def test_names_are_those_of_lm_eval() -> None:
    assert unknown_benchmarks(["mmlu", "math"]) == {}
    unknown = unknown_benchmarks(["hellaswag", "mmlu_stem", "ai2_arc", "helaswag", "gsm9k", "zzzz"])
    assert list(unknown) == ["helaswag", "gsm9k", "zzzz"]
    assert unknown["helaswag"] == "did you mean 'hellaswag'?"
    assert unknown["gsm9k"] == "did you mean 'gsm8k'?"
    assert unknown["zzzz"].startswith("name one of mmlu, gsm8k, math, humaneval or a task")
    assert len(catalog().names()) > 10_000
    assert list(members("ai2_arc")) == ["arc_challenge", "arc_easy"]
    # a group of tags of tasks
    assert "mmlu_astronomy" in members("mmlu_stem")
    with pytest.raises(ItemsError, match="changes its tasks"):
        members("openllm")


def test_requests_are_those_of_lm_eval_s_own_loop() -> None:
    from mixloop.evals.lm_eval_tasks import build_task

    rows = load_items("gsm8k", "packages").rows
    task = build_task("gsm8k", "gsm8k/gsm8k.yaml", rows[:4], rows, leave_one_out=True)
    asked = task.requests([row["id"] for row in rows[:4]], 5)
    task.task.build_all_requests()
    theirs = task.task.instances
    assert [ours[0].args for ours in asked.values()] == [instance.args for instance in theirs]
    assert [ours[0].metadata for ours in asked.values()] == [one.metadata for one in theirs]
    assert theirs[0].args[0].count("Question:") == 6


def test_a_task_without_a_gold_text_is_generated_all_the_same(lm: Any) -> None:
    from mixloop.evals import BenchmarkSettings
    from mixloop.evals.benchmarks import fit_shots
    from mixloop.evals.benchmarks.any_task import AnyTask
    from mixloop.evals.items import stock_tasks
    from mixloop.evals.lm_eval_tasks import StockTask
    from mixloop.evals.lm_eval_tasks.stock_task import load_task

    config = {"doc_to_target": "", "training_split": None, "fewshot_split": None, "num_fewshot": 0}
    rows = [{"question": f"How many are {index}?", "answer": "4"} for index in range(3)]
    stock = stock_tasks() / "gsm8k" / "gsm8k.yaml"
    task = load_task("free", stock, config, {"test": rows})
    ids = ("a", "b", "c")
    benchmark = AnyTask([StockTask(task, list(task.eval_docs), ids)])
    plan = fit_shots(benchmark, ids, BenchmarkSettings(max_new_tokens=5), lm)
    assert plan.questions == {}
    assert list(plan.answered) == list(ids)
    assert plan.answered["b"].prompt.args[0] == "Question: How many are 1?\nAnswer:"


def test_lower_may_be_better() -> None:
    from mixloop.evals.scoring.metrics import mean_metrics

    outcomes = {"a": {"edits": 3.0, "acc": 1.0}, "b": {"edits": 1.0, "acc": 0.0}}
    metrics = mean_metrics(outcomes, 2, better={"edits": False})
    assert (metrics["edits"].value, metrics["edits"].higher_is_better) == (2.0, False)
    assert metrics["acc"].higher_is_better
