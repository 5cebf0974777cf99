"""`evals.average`: what is scored is the mean of the last checkpoints' weights."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from mixloop.evals import EvalSettings, Scorecard
from mixloop.evals.scoring import Scorer
from mixloop.evals.workers import Evaluator

FILE = "model.safetensors"
SETTINGS = EvalSettings.model_validate(
    {
        "threads": 1,
        "average": 3,
        "samples_tokens": 4,
        "benchmarks": {
            "humaneval": {"items": 4, "data": "packages", "generate_items": 0},
        },
    }
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Four checkpoints of one training, and the mean of the last three."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("run")
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    vocabulary = {"<|endoftext|>": 0, **{byte: i for i, byte in enumerate(sorted(alphabet), 1)}}
    raw = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<|endoftext|>")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=1500,
        eos_token_id=0,
        initializer_range=0.3,
    )
    model = LlamaForCausalLM(config)
    made = [folder / f"step-{step}" for step in range(4)]
    for step, place in enumerate(made):
        model.save_pretrained(place)
        tokenizer.save_pretrained(place)
        (place / "manifest.json").write_text(json.dumps({"step": step, "tokens": 100 * step}))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
    mean = shutil.copytree(made[3], folder / "mean")
    tensors = [load_file(place / FILE) for place in made[1:]]
    save_file(
        {name: torch.stack([t[name] for t in tensors]).mean(0) for name in tensors[0]},
        mean / FILE,
        {"format": "pt"},
    )
    return [*made, mean]


def score(checkpoint: Path, earlier: list[Path], settings: EvalSettings = SETTINGS) -> Scorecard:
    scorer = Scorer(settings)
    try:
        return scorer.score(checkpoint, earlier=earlier)
    finally:
        scorer.close()


def bits(card: Scorecard) -> float:
    return card.benchmarks["humaneval"].metrics["bits_per_byte"].value


def test_the_mean_s_score_is_the_checkpoint_s(run: list[Path]) -> None:
    one, two, three, mean = run[1:]
    card = score(three, [two, one])
    alone = SETTINGS.model_copy(update={"average": 1})
    assert bits(card) == pytest.approx(bits(score(mean, [], alone)), abs=1e-6)
    assert abs(bits(card) - bits(score(three, [], alone))) > 1e-3
    assert card.averaged == (str(one), str(two), str(three))
    assert (card.average, card.step, card.tokens) == (3, 3, 300)
    assert Scorecard.model_validate_json(card.to_json()) == card


def test_fewer_are_averaged_where_one_is_gone_and_the_card_says_so(
    run: list[Path], tmp_path: Path
) -> None:
    card = score(run[3], [tmp_path / "gone", run[2]])
    assert card.averaged == (str(run[2]), str(run[3]))
    assert bits(card) == bits(score(run[3], [run[2]]))
    first = score(run[0], [])
    assert (first.average, first.averaged) == (3, (str(run[0]),))


def test_one_of_another_shape_is_missing_with_the_reason(run: list[Path], tmp_path: Path) -> None:
    other = shutil.copytree(run[2], tmp_path / "other")
    tensors = load_file(other / FILE)
    save_file(
        {name: tensor[:-1].clone() for name, tensor in tensors.items()},
        other / FILE,
        {"format": "pt"},
    )
    benchmark = score(run[3], [other]).benchmarks["humaneval"]
    assert benchmark.status == "missing"
    assert "another shape" in (benchmark.reason or "")


def test_a_mean_compares_with_means_alone() -> None:
    alone = SETTINGS.model_copy(update={"average": 1})
    assert len({SETTINGS.digest(), alone.digest()}) == 2
    before = EvalSettings.model_validate(alone.model_dump(exclude={"average"}))
    assert alone.digest() == before.digest()
    with pytest.raises(ValueError, match="average"):
        EvalSettings.model_validate({"average": 0})


def test_the_worker_averages_what_it_is_told(run: list[Path], tmp_path: Path) -> None:
    evaluator = Evaluator(SETTINGS, tmp_path / "worker.log")
    try:
        evaluator.start(run[3], tmp_path / "card.json", earlier=[run[2], run[1]])
        result: Any = None
        deadline = time.monotonic() + 200
        while result is None and time.monotonic() < deadline:
            result = evaluator.poll()
            time.sleep(0.05)
        while evaluator.writing and time.monotonic() < deadline:
            evaluator.poll()
            time.sleep(0.05)
    finally:
        evaluator.stop()
    assert isinstance(result, Scorecard), result
    assert result.measured() == score(run[3], [run[2], run[1]]).measured()
    # the samples are the mean's too: read from the model that was scored
    assert (tmp_path / "card.samples.json").is_file()
