"""Merges of a real model's experts against the engine, and their gradient against differences."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from mixloop.evals import EvalSettings
from mixloop.evals.benchmarks import load_items
from mixloop.evals.checkpoints import CheckpointError, write_delta
from mixloop.evals.merging import Merges, NoGradientsError
from mixloop.evals.scoring import Scorer

SOURCES = ("prose", "code", "noise")
SETTINGS = EvalSettings.model_validate(
    {
        "threads": 1,
        "benchmarks": {
            "mmlu": {"items": 8, "shots": 0, "data": "packages", "generate_items": 0},
            "gsm8k": {"items": 6, "shots": 0, "data": "packages", "generate_items": 0},
            "humaneval": {"items": 6, "data": "packages", "generate_items": 0},
        },
        "watch": {"math": {"data": "packages", "generate_items": 0}},
    }
)
FILE = "model.safetensors"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tied Llama of random weights with a tokenizer of bytes and common words."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("base")
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    rows = load_items("humaneval", "packages").rows[:20]
    raw.train_from_iterator([row["prompt"] for row in rows], trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<|endoftext|>")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=600,
        eos_token_id=0,
        initializer_range=0.2,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def experts(base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("experts")
    made = {}
    for seed, source in enumerate(SOURCES):
        made[source] = shutil.copytree(base, folder / source)
        draw = torch.Generator().manual_seed(seed)
        moved = {
            name: tensor + 0.02 * torch.randn(tensor.shape, generator=draw)
            for name, tensor in load_file(base / FILE).items()
        }
        save_file(moved, made[source] / FILE, {"format": "pt"})
    return made


@pytest.fixture(scope="module")
def deltas(base: Path, experts: dict[str, Path]) -> dict[str, Path]:
    files = {source: folder / "delta.safetensors" for source, folder in experts.items()}
    for source, file in files.items():
        write_delta(base, experts[source], file)
    return files


@pytest.fixture(scope="module")
def merges(base: Path, deltas: dict[str, Path]) -> Iterator[Merges]:
    merges = Merges(base, deltas, SETTINGS)
    yield merges
    merges.close()


def score(checkpoint: Path) -> dict[str, Any]:
    scorer = Scorer(SETTINGS)
    try:
        card = scorer.score(checkpoint)
    finally:
        scorer.close()
    return {name: card.benchmarks[name] for name in SETTINGS.benchmarks}


def losses(scores: dict[str, Any]) -> dict[str, float]:
    return {name: score.metrics["bits_per_byte"].value for name, score in scores.items()}


def test_without_deltas_it_is_the_checkpoint(merges: Merges, base: Path) -> None:
    card = score(base)
    assert merges.losses({}) == pytest.approx(losses(card), rel=1e-5)
    assert merges.benchmarks == tuple(SETTINGS.benchmarks), "what is watched doesn't steer"
    for name, items in merges.outcomes({}).items():
        assert list(items) == list(card[name].items)
        for item, outcome in items.items():
            wanted = card[name].items[item]
            assert outcome["bytes"] == wanted["bytes"]
            assert outcome["bits_per_byte"] == pytest.approx(wanted["bits_per_byte"], rel=1e-4)


def test_a_whole_delta_is_its_expert(merges: Merges, experts: dict[str, Path]) -> None:
    """To half precision: the losses of experts and checkpoint differ by 0.01 to 0.1."""
    at_base = merges.losses({})
    for source, folder in experts.items():
        found, wanted = merges.losses({source: 1.0}), losses(score(folder))
        for name in found:
            assert abs(found[name] - wanted[name]) < 2e-3
            assert abs(found[name] - wanted[name]) < 0.1 * abs(at_base[name] - wanted[name]) + 2e-4


def test_the_gradient_is_that_of_finite_differences(merges: Merges) -> None:
    at = {"prose": 0.5, "code": 0.3, "noise": -0.2}
    found, slopes = merges.losses_and_gradients(at)
    assert found == pytest.approx(merges.losses(at), rel=1e-5)
    step = 0.03
    for source in SOURCES:
        above = merges.losses(at | {source: at[source] + step})
        below = merges.losses(at | {source: at[source] - step})
        for name in found:
            wanted = (above[name] - below[name]) / (2 * step)
            assert slopes[name][source] == pytest.approx(wanted, rel=0.02, abs=3e-4)


def test_an_objective_s_slope_is_the_sum_of_its_benchmarks(merges: Merges) -> None:
    at = dict.fromkeys(SOURCES, 1 / 3)
    _, slopes = merges.losses_and_gradients(at)
    objective = {"mmlu": 0.25, "humaneval": 2.0}
    found, slope = merges.losses_and_slope(at, objective)
    assert set(found) == set(objective)
    for source in SOURCES:
        wanted = sum(factor * slopes[name][source] for name, factor in objective.items())
        assert slope[source] == pytest.approx(wanted, rel=1e-4, abs=1e-6)


def test_a_draw_of_items_is_seeded_and_asked_alone(merges: Merges) -> None:
    items = merges.draw(3, seed=1)
    assert items == merges.draw(3, seed=1) != merges.draw(3, seed=2)
    assert {len(ids) for ids in items.values()} == {3}
    whole, some = merges.outcomes({"code": 1.0}), merges.outcomes({"code": 1.0}, items)
    for name, ids in items.items():
        assert list(some[name]) == list(ids)
        for item in ids:
            assert some[name][item]["bits_per_byte"] == pytest.approx(
                whole[name][item]["bits_per_byte"], rel=1e-4
            )
    found, slopes = merges.losses_and_gradients({"code": 1.0}, {"mmlu": items["mmlu"]})
    assert set(found) == set(slopes) == {"mmlu"}
    with pytest.raises(ValueError, match="no gold answer of nothing"):
        merges.losses({}, {"mmlu": ["nothing"]})
    with pytest.raises(ValueError, match="no delta of source 'other'"):
        merges.losses({"other": 1.0})


def test_what_is_not_kept_is_streamed_to_the_same_end(
    base: Path, deltas: dict[str, Path], merges: Merges
) -> None:
    at = dict.fromkeys(SOURCES, 0.4)
    streamed = Merges(base, deltas, SETTINGS, memory=5_000)
    try:
        for _ in range(2):
            assert streamed.losses_and_gradients(at) == merges.losses_and_gradients(at)
            assert streamed.losses({}) == merges.losses({})
    finally:
        streamed.close()


def test_in_half_precision_it_is_the_engine_s_half_precision(
    base: Path, deltas: dict[str, Path], merges: Merges
) -> None:
    half = Merges(base, deltas, SETTINGS.model_copy(update={"dtype": "bfloat16"}))
    try:
        at = dict.fromkeys(SOURCES, 0.4)
        found, slopes = half.losses_and_gradients(at)
        exact, wanted = merges.losses_and_gradients(at)
        assert found == pytest.approx(exact, rel=0.02)
        one = [slopes[name][source] for name in slopes for source in SOURCES]
        other = [wanted[name][source] for name in slopes for source in SOURCES]
        assert torch.corrcoef(torch.tensor([one, other]))[0, 1] > 0.9
    finally:
        half.close()


def test_a_step_down_the_gradient_is_a_better_merge(merges: Merges) -> None:
    at = dict.fromkeys(SOURCES, 1 / 3)
    before, slope = merges.losses_and_slope(at, dict.fromkeys(merges.benchmarks, 1.0))
    steepest = max(abs(value) for value in slope.values())
    better = {source: at[source] - 0.2 * slope[source] / steepest for source in SOURCES}
    assert sum(merges.losses(better).values()) < sum(before.values())


def test_token_logprobs_add_up_to_the_losses(merges: Merges) -> None:
    at = {"prose": 1.0}
    logprobs, wanted = merges.token_logprobs(at), merges.losses(at)
    for name, items in logprobs.items():
        bits = -sum(map(sum, items.values())) / torch.log(torch.tensor(2.0)).item()
        assert bits / merges.gold_bytes(name) == pytest.approx(wanted[name], rel=1e-5)


def test_a_model_computed_with_other_weights_than_are_saved_is_merged_without_gradients(
    base: Path, experts: dict[str, Path], tmp_path: Path
) -> None:
    """transformers puts a mixture of experts' matrices together when it loads them."""
    from transformers import MixtralConfig, MixtralForCausalLM

    folder, expert = tmp_path / "mixtral", tmp_path / "expert"
    config = MixtralConfig(
        vocab_size=400,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=2,
        num_experts_per_tok=1,
        max_position_embeddings=600,
        eos_token_id=0,
    )
    for seed, place in enumerate((folder, expert)):
        torch.manual_seed(seed)
        MixtralForCausalLM(config).save_pretrained(place)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(base / name, place / name)
    write_delta(folder, expert, tmp_path / "delta.safetensors")
    merges = Merges(folder, {"all": tmp_path / "delta.safetensors"}, SETTINGS)
    try:
        assert merges.losses({"all": 1.0}) == pytest.approx(losses(score(expert)), abs=0.01)
        assert merges.losses({}) == pytest.approx(losses(score(folder)), rel=1e-5)
        assert merges.obstacle is not None
        with pytest.raises(NoGradientsError, match="other weights than are saved"):
            merges.losses_and_gradients({"all": 1.0})
    finally:
        merges.close()


def test_deltas_of_another_model_are_told(base: Path, tmp_path: Path) -> None:
    save_file({"other.weight": torch.ones(3)}, tmp_path / "delta.safetensors")
    with pytest.raises(CheckpointError, match=r"no merge: .*only one has"):
        Merges(base, {"web": tmp_path / "delta.safetensors"}, SETTINGS)
    with pytest.raises(CheckpointError, match="no merge"):
        Merges(base, {"web": tmp_path / "none.safetensors"}, SETTINGS)
