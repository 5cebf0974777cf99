"""Texts for a person beside the scorecard: the same every time, whole, and never a crash."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from mixloop.cli.app import app
from mixloop.common.errors import BadInput
from mixloop.controller.views import read_samples
from mixloop.evals import EvalSettings, Scorecard
from mixloop.evals.scoring import Samples
from mixloop.evals.scoring.samples import PROMPTS, write_samples


@pytest.fixture(scope="module")
def lm() -> Any:
    """A real model of random weights with one token per byte."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    from mixloop.evals.engine.plain_lm import PlainLM

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = Tokenizer(models.BPE({"<end>": 0, **{c: i + 1 for i, c in enumerate(letters)}}, []))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<end>")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        eos_token_id=0,
        bos_token_id=0,
    )
    return PlainLM(LlamaForCausalLM(config), tokenizer, max_length=96)


SETTINGS = EvalSettings(samples_tokens=8)


def card(step: int | None = None, tokens: int | None = None) -> Scorecard:
    return Scorecard(
        checkpoint="c", step=step, tokens=tokens, benchmarks={}, seconds=1.0, settings_digest="d"
    )


def test_every_prompt_that_fits_is_continued_and_kept(lm: Any, tmp_path: Path) -> None:
    beside = tmp_path / "step-7.json"
    path = write_samples(lm, card(7, 700), beside, SETTINGS)
    assert path == tmp_path / "step-7.samples.json"
    first = path.read_bytes()
    samples = Samples.read(path)
    assert (samples.step, samples.tokens, samples.max_new_tokens) == (7, 700, 8)
    fitting = {p for prompts in PROMPTS.values() for p in prompts if len(p) + 8 <= 96}
    assert len(fitting) > 3
    assert {sample.prompt for sample in samples.samples} == fitting
    assert all(sample.greedy is not None for sample in samples.samples)
    assert all(sample.sampled is not None or sample.reason for sample in samples.samples)
    write_samples(lm, card(7, 700), beside, SETTINGS)
    assert path.read_bytes() == first
    assert [entry.name for entry in tmp_path.iterdir()] == ["step-7.samples.json"]


def test_switched_off_nothing_is_written(lm: Any, tmp_path: Path) -> None:
    off = EvalSettings(samples=False)
    assert write_samples(lm, card(), tmp_path / "card.json", off) is None
    assert list(tmp_path.iterdir()) == []


class Sampler:
    """A model that can sample, and one in whose context one prompt only fits."""

    def has_room(self, prompt: str, tokens: int) -> bool:
        return prompt.startswith("# prints")

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        return [json.dumps(request.args[1], sort_keys=True) for request in requests]


def test_both_ways_of_writing_are_asked_for_with_what_the_file_says(tmp_path: Path) -> None:
    path = write_samples(Sampler(), card(), tmp_path / "card.json", SETTINGS)
    assert path is not None
    (sample,) = Samples.read(path).samples
    assert sample.domain == "code"
    greedy, sampled = json.loads(sample.greedy or ""), json.loads(sample.sampled or "")
    assert greedy == {"do_sample": False, "max_gen_toks": 8, "until": []}
    assert (sampled["temperature"], sampled["top_p"]) == (sample.temperature, sample.top_p)
    assert (sampled["seed"], sampled["do_sample"]) == (sample.seed, True)
    assert sample.reason is None


def test_a_run_shows_its_first_and_last_checkpoint_side_by_side(tmp_path: Path) -> None:
    cards = tmp_path / "scorecards"
    for step in (1, 2, 3):
        write_samples(Sampler(), card(step, 1000), cards / f"step-{step:08d}.json", SETTINGS)
    shown = CliRunner().invoke(app, ["samples", str(tmp_path)])
    assert shown.exit_code == 0
    assert "step 1 (" in shown.stdout
    assert "step 3 (" in shown.stdout
    assert "step 2" not in shown.stdout
    assert shown.stdout.count("greedy") == 1
    chosen = CliRunner().invoke(app, ["samples", str(tmp_path), "--step", "2", "--json"])
    assert [samples["step"] for samples in json.loads(chosen.stdout)] == [2]


def test_what_is_no_samples_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.samples.json").write_text("{}")
    for target, said in (
        (tmp_path / "x.samples.json", r"x\.samples\.json: not a samples file"),
        (tmp_path / "y.samples.json", r"y\.samples\.json: can't be read: No such file"),
        (tmp_path, "no samples; they are written beside each scorecard"),
        (tmp_path / "nowhere", "nowhere: no run here"),
    ):
        with pytest.raises(BadInput, match=said):
            read_samples([target], ())
