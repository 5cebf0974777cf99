"""What ``mixloop eval`` is to score, from its options and a run.yaml."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from mixloop.cli.app import main
from mixloop.common.errors import BadInput
from mixloop.evals import BENCHMARKS, Cost, Scorecard
from mixloop.tools import EvalArgs
from mixloop.trainer.prepare import prepare
from mixloop.trainer.sources import Store, copy_tokenizer, train_tokenizer


@pytest.fixture
def items(tmp_path: Path) -> Path:
    path = tmp_path / "mine.jsonl"
    path.write_text("{}")
    return path


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    content: dict[str, Any] = {
        "run": {"id": "r", "dir": "run"},
        "budget": "1M",
        "sources": {"web": {"path": "web"}},
        "evals": {
            "seed": 5,
            "benchmarks": {"mmlu": {"items": 9, "shots": 2}, "math": {"items": 8}},
            "watch": {"piqa": {"items": 7}},
        },
    }
    path.write_text(yaml.safe_dump(content))
    return path


def test_data_alone_says_what_is_scored(items: Path, tmp_path: Path) -> None:
    named = EvalArgs(data=[f"gsm8k={items}", f"mmlu={tmp_path}", f"gsm8k={tmp_path}"], items=4)
    settings = named.settings()
    assert list(settings.asked) == ["mmlu", "gsm8k"]
    assert settings.asked["gsm8k"].data == (items, tmp_path)
    assert settings.asked["mmlu"].items == 4
    assert EvalArgs(data=["math=packages"]).settings().asked["math"].data == "packages"
    assert tuple(EvalArgs().settings().asked) == BENCHMARKS


def test_benchmarks_are_those_named(items: Path) -> None:
    wanted = EvalArgs(benchmarks=["hellaswag,gsm8k", "math"], data=[f"gsm8k={items}"])
    settings = wanted.settings()
    assert list(settings.asked) == ["gsm8k", "math", "hellaswag"]
    assert settings.asked["gsm8k"].data == (items,)
    assert settings.asked["math"].data == "auto"


def test_a_configuration_stays_what_it_is(config: Path, items: Path) -> None:
    settings = EvalArgs(config, data=[f"mmlu={items}", f"gsm8k={items}"]).settings()
    assert list(settings.asked) == ["mmlu", "gsm8k", "math", "piqa"]
    assert (settings.asked["mmlu"].data, settings.asked["mmlu"].shots) == ((items,), 2)
    assert settings.asked["piqa"].items == 7
    assert settings.seed == 5
    only = EvalArgs(config, benchmarks=["math"], items=3, device="cuda:1").settings()
    assert {name: benchmark.items for name, benchmark in only.asked.items()} == {"math": 3}
    assert only.device == "cuda:1"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--data", "mmul={items}"], "'mmul' is no benchmark; did you mean 'mmlu'?"),
        (["--benchmarks", "mmlu,hellaswga"], "'hellaswga' is no benchmark; did you mean 'hella"),
        (["--data", "mmlu"], "--data mmlu: give it as BENCHMARK=FILE"),
        (["--data", "mmlu={items}l"], "mine.jsonll; did you mean '{items}'?"),
        (["--data", "mmlu=nowhere/x"], "there is no nowhere/x; give a file or folder"),
        (["--benchmarks", "math", "--data", "mmlu={items}"], "not among --benchmarks math"),
    ],
)
def test_bad_options_end_with_one_line_and_code_2(
    options: list[str],
    said: str,
    items: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (items.parent / "config.json").write_text("{}")
    arguments = [option.format(items=items) for option in options]
    monkeypatch.setattr(sys, "argv", ["mixloop", "eval", str(items.parent), *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    printed = capsys.readouterr()
    assert ended.value.code == 2
    assert printed.err.startswith("error: ")
    assert said.format(items=items) in printed.err
    assert printed.err.count("\n") == 1


def test_no_checkpoint_is_told_first(tmp_path: Path) -> None:
    from mixloop.tools import score_checkpoint

    with pytest.raises(BadInput, match=r"config\.json is missing"):
        score_checkpoint(tmp_path, EvalArgs(data=["nothing"]), None)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    texts = [f"Question: {n} and {n}?\nAnswer: {2 * n}" for n in range(300)]
    tokenizer = train_tokenizer(texts, tmp_path / "tokenizer", 400)
    lines = [json.dumps({"text": text}) for text in texts]
    (tmp_path / "web.jsonl").write_text("\n".join(lines))
    prepare([str(tmp_path / "web.jsonl")], tmp_path / "web", str(tokenizer))
    return tmp_path / "web"


def test_a_configuration_says_what_the_data_was_tokenised_with(config: Path, store: Path) -> None:
    probe = EvalArgs(config).settings().trained_probe
    assert probe is not None
    assert probe == Store.open(store).info.probe
    assert EvalArgs(config).settings().trained_tokenizer == store / "tokenizer"
    assert EvalArgs().settings().trained_probe is None
    assert EvalArgs().settings().trained_tokenizer is None


def save_model(folder: Path, store: Path, **options: Any) -> Path:
    from transformers import MistralConfig, MistralForCausalLM

    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
    model = MistralForCausalLM(MistralConfig(vocab_size=400, **sizes, **heads, **options))
    model.save_pretrained(folder)
    copy_tokenizer(store / "tokenizer", folder)
    return folder


def score(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str
) -> tuple[int, Scorecard, str]:
    """Exit code, scorecard and standard error of the command."""
    monkeypatch.setattr(sys, "argv", ["mixloop", "eval", *arguments, "--items", "1", "--json"])
    code = 0
    try:
        main()
    except SystemExit as ended:
        code = int(ended.code or 0)
    printed = capsys.readouterr()
    return code, Scorecard.model_validate_json(printed.out), printed.err


def test_nothing_scored_ends_with_1_and_every_reason_whole(
    store: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = save_model(tmp_path / "c", store, tie_word_embeddings=True)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False}))
    asked = ("--data", "gsm8k=packages", "--data", "math=packages")
    code, card, said = score(monkeypatch, capsys, str(folder), *asked)
    assert code == 1
    reasons = {name: benchmark.reason for name, benchmark in card.benchmarks.items()}
    assert reasons["gsm8k"] == reasons["math"]
    assert f"  gsm8k, math: {reasons['math']}\n" in said
    assert (reasons["math"] or "").endswith("1 missing (lm_head.weight)")


def test_what_the_worker_warns_of_is_told(
    store: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    folder = save_model(tmp_path / "c", store, sliding_window=8, max_position_embeddings=2048)
    code, _, said = score(monkeypatch, capsys, str(folder), "--data", "gsm8k=packages")
    assert code == 0
    assert f"warning: {folder}: prefixes are not shared: " in said
    assert not list(tmp_path.glob("mixloop-eval*"))


def test_what_it_cost_is_shown() -> None:
    from rich.console import Console

    from mixloop.tools import cost_table

    cost = Cost(seconds=4, cpu_seconds=3.5, items=10, tokens=2000, asked_tokens=9000)
    card = Scorecard(
        checkpoint="c",
        benchmarks={},
        seconds=10,
        cost={"mmlu": cost, "math": cost},
        settings_digest="d",
    )
    console = Console(width=100)
    with console.capture() as shown:
        console.print(cost_table(card))
    lines = [" ".join(line.split()) for line in shown.get().splitlines()]
    assert "mmlu 4.0 3.5 2.50 2k 9k (4.5x)" in lines
    assert "all 10.0 7.0 2.00 4k 18k (4.5x)" in lines
