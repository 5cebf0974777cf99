"""The pure parts of bench/real.py: items, texts, mixtures, configurations, the table."""

from __future__ import annotations

import importlib
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixloop.contract import AcceptedOrder, OrderInForce, RunPaths, Status, write_status
from mixloop.controller.config import RunConfig
from mixloop.policies.interface import load_policy, policy_names
from mixloop.tools.demo.decontamination import HeldOut

sys.path.insert(0, str(Path(__file__).parents[2] / "bench"))
arms, items, markdown, pace, runs, table, texts = (
    importlib.import_module(f"real_{name}")
    for name in ("arms", "items", "markdown", "pace", "runs", "table", "texts")
)

Json = dict[str, Any]


# -- items -------------------------------------------------------------------------------------


def _rows(count: int, subjects: int = 1) -> list[Json]:
    return [{"question": f"what is {n}?", "subject": f"s{n % subjects}"} for n in range(count)]


@given(st.integers(2, 60), st.integers(1, 5), st.integers(0, 3))
def test_sides_are_disjoint_complete_and_even(count: int, subjects: int, seed: int) -> None:
    rows = _rows(count, subjects)
    steering, judging = items.split(rows, seed)
    sides = [{row["question"] for row in side} for side in (steering, judging)]
    assert not sides[0] & sides[1]
    assert sides[0] | sides[1] == {row["question"] for row in rows}
    for subject in {row["subject"] for row in rows}:
        counts = [sum(row["subject"] == subject for row in side) for side in (steering, judging)]
        assert abs(counts[0] - counts[1]) <= 1


def test_the_split_depends_on_the_seed_and_not_on_the_order() -> None:
    rows = _rows(40)
    assert items.split(rows, 1) == items.split(rows[::-1], 1)
    assert items.split(rows, 1) != items.split(rows, 2)


def test_a_question_asked_twice_is_on_one_side() -> None:
    rows = [*_rows(20), *_rows(20)]
    steering, judging = items.split(rows, 1)
    assert len(steering) + len(judging) == 20


def test_items_are_written_by_side_and_held_out_with_their_answers(tmp_path: Path) -> None:
    rows = [
        {"question": f"question {n}", "answer": f"because {n}", "choices": ["a"]} for n in range(4)
    ]
    counts = items.write_items({"gsm8k": rows}, tmp_path, 3)
    assert counts == {"steering": {"gsm8k": 2}, "judging": {"gsm8k": 2}}
    written = [items.read_rows(tmp_path / side / "gsm8k" / "test.jsonl") for side in items.SIDES]
    assert sorted(row["question"] for side in written for row in side) == [
        row["question"] for row in rows
    ]
    assert "question 2 because 2 a" in set(items.held_out({"gsm8k": rows}))


def test_without_data_the_packages_serve() -> None:
    problems = items.worked_problems(None)
    assert len(problems) > 8
    assert all("Answer: " in text or "Solution: " in text for text in problems)


# -- texts -------------------------------------------------------------------------------------


def test_a_source_has_no_copies_no_labels_no_items_and_ends_at_its_limit(tmp_path: Path) -> None:
    asked = "how many apples are left when seven of the nineteen apples are eaten by two friends"
    long = [f"document {n} " + "word " * 60 for n in range(10)]
    index = HeldOut([asked])
    path = tmp_path / "source.jsonl"
    made = texts.write_source(path, ["short", long[0], *long, f"{asked} " * 4], 1.0, index)
    assert made["documents"] == 10
    assert made["overlapping"] == 1
    assert made["bytes"] == sum(len(text.strip()) for text in long)
    assert texts.write_source(path, long, 700 / 1e6, index)["documents"] == 2


def test_flat_shards_hold_every_good_document_once(tmp_path: Path) -> None:
    for name in ("code", "prose", "licences"):
        lines = "".join(json.dumps({"text": f"{name} {n}"}) + "\n" for n in range(9))
        (tmp_path / f"{name}.jsonl").write_text(lines)
    texts.deal(tmp_path, tmp_path / "flat", 4, 1)
    dealt = [
        json.loads(line)["text"]
        for shard in sorted((tmp_path / "flat").glob("*.jsonl"))
        for line in shard.read_text().splitlines()
    ]
    assert sorted(dealt) == sorted(f"{name} {n}" for name in ("code", "prose") for n in range(9))


def test_scrambled_text_keeps_the_words_and_not_their_order() -> None:
    document = " ".join(f"w{n}" for n in range(100))
    (out,) = texts.scrambled([document], 1)
    assert out != document
    assert sorted(out.split()) == sorted(document.split())


def test_sources_are_found_where_mixloop_is_installed(tmp_path: Path) -> None:
    found = texts.FOUND["records"](1)
    assert texts.write_source(tmp_path / "s.jsonl", found, 0.06, HeldOut([]))["documents"] >= 1


def test_what_is_declared_is_consistent() -> None:
    assert set(texts.HAND_MADE) == {name for name, recipe in texts.RECIPES.items() if recipe.good}
    assert sum(texts.HAND_MADE.values()) == pytest.approx(1)
    assert len(texts.RECIPES) >= texts.LEAST_SOURCES
    useful = sum(recipe.megabytes for recipe in texts.RECIPES.values() if recipe.good)
    assert useful < 0.4 * sum(recipe.megabytes for recipe in texts.RECIPES.values())


# -- mixtures and configurations -----------------------------------------------------------------

UNIQUE = {name: int(recipe.megabytes * 300_000) for name, recipe in texts.RECIPES.items()}


@pytest.mark.parametrize("arm", list(arms.ARMS))
@pytest.mark.parametrize("start", arms.STARTS)
@pytest.mark.parametrize("size", ["quick", "full"])
def test_every_run_begins_inside_the_epoch_cap(arm: str, start: str, size: str) -> None:
    tokens = arms.SIZES[size].tokens
    searched = {"worked": 0.9, "code": 0.1}
    weights = arms.first_mixture(arms.ARMS[arm], start, UNIQUE, tokens, searched)
    assert sum(weights.values()) == pytest.approx(1)
    for name, weight in weights.items():
        assert weight * tokens <= arms.MAX_EPOCHS * UNIQUE[name]


def test_too_little_text_is_refused() -> None:
    with pytest.raises(ValueError, match="fewer than"):
        arms.inside_cap({"a": 1.0}, {"a": 100}, 1000)


@pytest.mark.parametrize("name", list(arms.ARMS))
@pytest.mark.parametrize("size", list(arms.SIZES))
def test_the_product_accepts_every_configuration(tmp_path: Path, name: str, size: str) -> None:
    arm = arms.ARMS[name]
    if arm.policy not in policy_names():
        pytest.skip(f"no policy {arm.policy} yet")
    weights = arms.first_mixture(arm, "uniform", UNIQUE, arms.SIZES[size].tokens, {"code": 1.0})
    config = arms.run_yaml(
        "a-run",
        arm,
        arms.SIZES[size],
        seed=1,
        weights=weights,
        work=tmp_path,
        benchmarks=["mmlu", "humaneval"],
    )
    read = RunConfig.model_validate(config)
    assert read.budget == arms.SIZES[size].tokens
    load_policy(read.policy.use, read.policy.options)


def test_a_searchs_proxies_cost_about_what_a_run_does() -> None:
    for name in ("quick", "full"):
        size = arms.SIZES[name]
        points = [{"measured": n % 2 == 0} for n in range(size.proxies)]
        cost = runs.searched_tokens(points, size.proxy)
        assert cost == size.proxies // 2 * (size.proxy + size.proxy // 2)
        assert 0.8 * size.tokens <= cost <= 1.2 * size.tokens


# -- the pace ----------------------------------------------------------------------------------

PARENT = """
import subprocess, sys
print(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]).pid, flush=True)
sys.stdin.read()
"""


def _state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def _until(wanted: Any) -> bool:
    ends = time.monotonic() + 30
    while not (seen := wanted()) and time.monotonic() < ends:
        time.sleep(0.02)
    return bool(seen)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_trainer_waits_half_an_interval_after_a_checkpoint_that_is_not_decided_on(
    tmp_path: Path,
) -> None:
    paths = RunPaths(tmp_path)
    settings = {"sequence_length": 2, "micro_batch": 1, "accumulation": 1}
    paths.job.write_text(json.dumps({"budget": 200, "settings": settings}))
    (paths.checkpoints / "step-00000010").mkdir(parents=True)
    command = [sys.executable, "-c", PARENT]
    parent = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert parent.stdout is not None
    trainer = int(parent.stdout.readline())
    accepted, in_force = AcceptedOrder(0, 0), OrderInForce(0, 0, 0, 0, {"a": 1.0})

    def at(step: int) -> None:
        numbers = (step, step, 2 * step, 200, 1e-3, "stable", 1.0, 1.0, 1.0)
        status = Status("r", 1, trainer, "here", *numbers, {}, accepted, in_force)  # type: ignore[arg-type]
        write_status(paths.status, status)

    try:
        at(14)
        with pace.Pace(tmp_path, 10).kept(parent):
            time.sleep(0.3)
            assert _state(trainer) != "T"  # not half of the interval yet
            at(15)
            assert _until(lambda: _state(trainer) == "T")
            (paths.checkpoints / "step-00000010").rmdir()  # nothing to wait for any more
            assert _until(lambda: _state(trainer) != "T")
    finally:
        os.kill(trainer, signal.SIGKILL)
        parent.communicate()


# -- the table -----------------------------------------------------------------------------------


def _result(seed: int, level: float, **changes: Any) -> Json:
    rng = Random(3)
    judged = {
        name: {
            "value": level,
            "items": {f"{name}-{n}": [level + rng.gauss(0, 1), 1.0] for n in range(50)},
        }
        for name in ("mmlu", "math")
    }
    return {
        "seed": seed,
        "every": 40,
        "judged": judged,
        "curve": [[100, level + 1], [200, level]],
        "decisions": [
            {"verdict": "intervene", "step": 40, "applied_step": 64},
            {"verdict": "intervene", "step": 80, "applied_step": None},
            {"verdict": "hold", "step": 120, "applied_step": None},
        ],
        "segments": [{"tokens": 0, "weights": {"a": 0.5, "b": 0.5}}],
        "charged": 0,
        "tokens": 200,
        **changes,
    }


def test_the_gain_is_paired_over_items() -> None:
    gain, error = table.paired_gain(_result(1, 3.0), _result(1, 2.9))
    assert gain == pytest.approx(0.1)
    assert error < 1e-9  # the same items, each better by as much


def test_gap_and_tokens_to_reach() -> None:
    assert table.gap_closed(3.0, 2.8, 2.9) == pytest.approx(0.5)
    assert table.gap_closed(3.0, 2.8, 3.1) == pytest.approx(-0.5)
    assert table.gap_closed(3.0, 3.0, 2.9) is None
    assert table.gap_closed(3.0, 3.1, 2.9) is None
    curve = [[100, 4.0], [200, 3.0], [300, 3.2], [400, 2.0]]
    assert table.tokens_to_reach(curve, 3.5) == pytest.approx(150)
    assert table.tokens_to_reach(curve, 2.6) == pytest.approx(350)
    assert table.tokens_to_reach(curve, 5.0) == 100
    assert table.tokens_to_reach(curve, 1.9) is None


def test_a_row_charges_what_was_spent_beside_the_run() -> None:
    start = {1: _result(1, 3.0), 2: _result(2, 3.1)}
    searched = {1: _result(1, 2.9, charged=150)}
    against = {"start": start, "uniform": start, "search": searched}
    row = table.row("law", {1: _result(1, 2.8, charged=30)}, against)
    assert row["gains"]["uniform"][1]["gain"] == pytest.approx(0.2)
    assert row["gaps"]["search"][1] == pytest.approx(2.0)
    assert row["reach"][1]["search"] == {"own": pytest.approx(190), "total": pytest.approx(220)}
    assert row["interventions"] == [2]
    assert row["delay_steps"] == [24]
    assert row["delay_parts"] == [0.6]


def test_a_flat_run_is_moved_by_the_mean_of_its_last_quarter() -> None:
    segments = [
        {"tokens": 0, "weights": {"a": 0.5, "b": 0.5}},
        {"tokens": 175, "weights": {"a": 0.7, "b": 0.3}},
    ]
    assert table.moved(_result(1, 3.0, segments=segments)) == pytest.approx(0.1)
    assert table.moved(_result(1, 3.0)) == 0


def test_jitter_is_that_around_a_smooth_course() -> None:
    rng = Random(1)
    course = [[n, 5.0 - 0.01 * n + rng.gauss(0, 0.02)] for n in range(400)]
    found = table.jitter({"curve": course, "tokens": 400}, 0.2)
    assert found == pytest.approx(0.02, rel=0.2)
    assert table.jitter({"curve": course[:3], "tokens": 3}, 0.2) is None


def test_twins_are_held_against_the_items_errors() -> None:
    rng = Random(2)

    def one(shift: float) -> Json:
        points = [
            {"math": {f"i{n}": [3 + shift + rng.gauss(0, 1), 1.0] for n in range(80)}}
            for _ in range(60)
        ]
        curve = [[n, 3.0] for n in range(60)]
        return _result(1, 3.0 + rng.gauss(0, 0.01), items=points, curve=curve)

    alike, apart = one(0), one(0.8)
    found = table.coverage([table.twin_pairs(alike, one(0), 0.2)])
    assert 0.88 <= found["checkpoints"] <= 1.0
    assert found["sd_of_z"] == pytest.approx(1, rel=0.3)
    assert table.coverage([table.twin_pairs(alike, apart, 0.2)])["checkpoints"] < 0.1


def test_jitter_that_no_item_shows_is_in_the_second_error() -> None:
    rng = Random(4)

    def one() -> Json:
        course = [3 + rng.gauss(0, 0.1) for _ in range(80)]
        points = [
            {"math": {f"i{n}": [level + 0.01 * rng.gauss(0, 1), 1.0] for n in range(40)}}
            for level in course
        ]
        curve = [[n, level] for n, level in enumerate(course)]
        return _result(1, 3.0 + rng.gauss(0, 0.1), items=points, curve=curve, tokens=80)

    pairs = [table.twin_pairs(one(), one(), 0.2)]
    assert table.coverage(pairs)["checkpoints"] < 0.3
    assert 0.85 <= table.coverage(pairs, "z_jitter")["checkpoints"] <= 1


def test_the_tables_name_every_arm_and_what_is_missing() -> None:
    results = {
        "uniform": {"static": {1: _result(1, 3.0)}, "law": {1: _result(1, 2.9)}},
        "reference": {"hand-made": {1: _result(1, 2.8)}},
        "flat": {"law": {1: _result(1, 3.0)}},
    }
    found = markdown.tables(results)
    text = markdown.markdown(found, ["uniform bayes seed 1: not run yet"])
    json.dumps(found)
    assert "| law | 1 | 2.9000 |" in text
    assert "0.50" in text  # of the gap to hand-made
    assert "- uniform bayes seed 1: not run yet" in text
    assert "All sources alike" in text
    assert not math.isnan(found["uniform"][0]["score"]["mean"])
