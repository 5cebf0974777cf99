"""The examples work as they stand."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from transformers import LlamaConfig

from mixloop.contract import read_schedule, read_status
from mixloop.evals.engine import load_checkpoint
from mixloop.policies.interface import (
    BenchmarkScore,
    Evaluation,
    Hold,
    Metric,
    Observation,
    PolicyError,
    Proposal,
    Source,
    load_policy,
)
from mixloop.trainer.loader import read_saved_manifest
from mixloop.trainer.prepare import prepare
from mixloop.trainer.sources import inspect_tokenizer, load_raw, train_tokenizer

EXAMPLES = Path(__file__).parents[2] / "examples"
REF = "./keep_moving.py:KeepMoving"
OPTIONS = {"to": "maths", "from": "web", "step": 0.05}


def evaluation(step: int, values: list[float]) -> Evaluation:
    items = {f"i{n}": {"bits_per_byte": value, "bytes": 10.0} for n, value in enumerate(values)}
    metric = Metric(
        value=sum(values) / len(values), stderr=0.1, n=len(values), higher_is_better=False
    )
    score = BenchmarkScore(metrics={"bits_per_byte": metric}, items=items)
    return Evaluation(step=step, tokens=step * 10, benchmarks={"gsm8k": score})


def observation(*evaluations: Evaluation) -> Observation:
    sources = {name: Source(unique_tokens=1000) for name in ("web", "maths")}
    return Observation(sources=sources, weights={"web": 0.9, "maths": 0.1}, evaluations=evaluations)


def test_it_waits_then_moves_then_lets_a_gain_stand() -> None:
    policy = load_policy(REF, OPTIONS, base=EXAMPLES)
    first = evaluation(1, [2.0, 2.1, 1.9, 2.2])
    same = evaluation(2, [2.01, 2.09, 1.91, 2.2])
    better = evaluation(3, [1.5, 1.61, 1.39, 1.7])
    waiting = policy.decide(observation(first))
    assert isinstance(waiting, Hold)
    assert waiting.verdict == "inconclusive"
    moving = policy.decide(observation(first, same))
    assert isinstance(moving, Proposal)
    assert moving.weights == pytest.approx({"web": 0.85, "maths": 0.15})
    assert isinstance(policy.decide(observation(same, better)), Hold)


def test_a_wrong_option_is_named() -> None:
    with pytest.raises(PolicyError, match="stepp"):
        load_policy(REF, {**OPTIONS, "stepp": 1}, base=EXAMPLES)


def test_the_plain_loop_trains_to_the_end_of_its_budget(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    length, rows, micros, steps = 16, 4, 2, 6
    texts = {name: f"{name} is what this says; " * 100 for name in ("web", "code")}
    tokenizer = train_tokenizer(texts.values(), tmp_path / "tokenizer", 280)
    for name, text in texts.items():
        (tmp_path / f"{name}.txt").write_text(text)
        prepare([str(tmp_path / f"{name}.txt")], tmp_path / name, str(tokenizer))
    run = {
        "run": {"id": "plain", "dir": "run"},
        "budget": length * rows * micros * steps,
        "sources": {n: {"path": n, "weight": w} for n, w in (("web", 0.75), ("code", 0.25))},
        "trainer": {"sequence_length": length, "micro_batch": rows, "accumulation": micros},
    }
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(run))
    script = EXAMPLES / "plain_loop.py"
    assert len(script.read_text().splitlines()) < 40
    monkeypatch.setattr(sys, "argv", [str(script), str(path)])
    runpy.run_path(str(script), run_name="__main__")
    status = read_status(tmp_path / "run" / "status.json").value
    assert status is not None
    assert (status.step, status.finished, status.phase, status.lr) == (steps, True, "stable", 1e-3)
    assert status.loss is not None
    folder = tmp_path / "run" / f"checkpoint-{steps}"
    saved = read_saved_manifest(folder).value
    assert saved is not None
    assert {name: source.tokens for name, source in saved.sources.items()} == {
        "web": length * rows * micros * steps * 3 // 4,
        "code": length * rows * micros * steps // 4,
    }
    config = LlamaConfig.from_pretrained(folder)
    ends = inspect_tokenizer(tmp_path / "tokenizer")
    assert (config.vocab_size, config.eos_token_id) == (ends.vocab_size, ends.eos_id)
    told = load_checkpoint(folder).tokenizer("this says").input_ids  # as evaluation does
    assert told == load_raw(tmp_path / "tokenizer").encode("this says").ids


@pytest.mark.soak
def test_the_hugging_face_example_shows_one_step_from_both_sides(tmp_path: Path) -> None:
    """A real Trainer beside a real controller, and an operator's order in the middle."""
    script = [sys.executable, str(EXAMPLES / "hf_trainer.py")]
    told = subprocess.run(
        [*script, "--demo", str(tmp_path), "--steps", "240"],
        check=True, capture_output=True, text=True, timeout=280,
    ).stdout  # fmt: skip
    [trainer] = re.findall(r"^trainer: generation 1 from step (\d+)", told, re.M)
    [history] = re.findall(r"^history: d-\d+ in force from step (\d+)", told, re.M)
    [segment] = (
        s for s in read_schedule(tmp_path / "run" / "schedule.jsonl").segments if s.generation
    )
    assert int(trainer) == int(history) == segment.step
    # every checkpoint of the Trainer was found and scored
    assert "trouble" not in told
    scored = re.findall(r"^control: step (\d+): gsm8k", told, re.M)
    assert [int(step) for step in scored] == [100, 200, 240]
