"""The controller as a process: killed anywhere and restarted, replaced, lied to, left idle."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from mixloop.contract import Order, RunPaths, read_order, read_schedule, read_status, write_order
from mixloop.controller import views
from mixloop.controller.config import load_config
from mixloop.controller.journal import Journal, queries

SCRIPT = Path(__file__).parents[1] / "support" / "kill_controller.py"
BUDGET = 12_000  # tokens: 150 steps of 80
POLICY = '''
from mixloop.policies import Hold, Proposal


class Sway:
    """Moves a tenth to and fro, so that every decision asks for something."""

    def decide(self, observation):
        if not observation.in_force:
            return Hold("waiting for the last order")
        now = observation.weights["code"]
        code = now + 0.1 if now < 0.25 else now - 0.1
        return Proposal({"web": 1 - code, "code": code}, f"code {now:.2f} -> {code:.2f}")
'''


def write_store(folder: Path, tokens: int = 10_000) -> None:
    folder.mkdir(parents=True)
    (folder / "tokens.bin").write_bytes(b"\0\0" * tokens)
    header = {"schema": "mixloop/store/1", "tokens": tokens, "documents": 1, "dtype": "uint16"}
    header |= {"vocab_size": 65536, "tokenizer": "t", "fingerprint": "f", "eos_id": 0}
    (folder / "store.json").write_text(json.dumps(header))


@pytest.fixture
def run_file(tmp_path: Path) -> Path:
    for name in ("web", "code"):
        write_store(tmp_path / name)
    (tmp_path / "sway.py").write_text(POLICY)
    data: dict[str, Any] = {
        "run": {"id": "r", "dir": "run"},
        "budget": BUDGET,
        "sources": {"web": {"path": "web", "weight": 0.9}, "code": {"path": "code", "weight": 0.1}},
        "evals": {"benchmarks": {"gsm8k": {"data": "packages"}}},
        "policy": {"use": "./sway.py:Sway"},
        "guards": {"max_change": 0.2, "max_epochs": None},
        "tracking": {"enabled": False},
        "controller": {"poll": 0.01},
        "trainer": {"sequence_length": 10, "micro_batch": 8, "poll_every": 2},
    }
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(data))
    return path


def controller(run_file: Path, kill_at: int | str = 0) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), str(run_file), str(kill_at)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


def journal_of(run_file: Path) -> Journal:
    return Journal(load_config(run_file).run.dir / "journal.db")


def check_nothing_lost_or_doubled(run_file: Path) -> list[dict[str, Any]]:
    """The facts every finished run must show, however it got there. Returns the history."""
    paths = RunPaths(load_config(run_file).run.dir)
    journal = journal_of(run_file)
    states = queries.checkpoint_states(journal)
    steps = list(range(20, 141, 20))
    assert [(row.step, row.state) for row in states] == [(step, "scored") for step in steps]
    entries = views.history(journal)
    assert [e["id"] for e in entries] == [f"d-{n:06d}" for n in range(1, len(entries) + 1)]
    by_policy = [e["step"] for e in entries if e["asked_by"] == "policy"]
    assert by_policy == sorted(set(by_policy)), "a checkpoint was decided on twice"
    assert by_policy[-1] == steps[-1]
    orders = queries.orders(journal)
    assert [order.generation for order in orders] == list(range(1, len(orders) + 1))
    segments = read_schedule(paths.schedule).segments
    generations = [s.generation for s in segments]
    assert generations == sorted(set(generations)), "an order was applied twice"
    applied = {s.generation: (s.sample, s.step) for s in segments if s.generation}
    for order in orders:
        if order.applied_step is not None:
            assert applied[order.generation] == (order.applied_sample, order.applied_step)
    steering = queries.events(journal, "steering")
    assert [event.detail["step"] for event in steering] == [steps[0]], "told more than once"
    keys = [key for (key,) in journal.cells("SELECT key FROM outbox")]
    assert len(keys) == len(set(keys))
    for wanted in ("run", "mixture:0", f"end:{BUDGET}", *(f"model:{s}" for s in steps)):
        assert wanted in keys
    assert sum(key.startswith("decision:") for key in keys) == len(entries)
    journal.close()
    return entries


def test_an_undisturbed_run_changes_its_mixture_and_tells_everything(run_file: Path) -> None:
    done = controller(run_file)
    assert done.returncode == 0, done.stderr
    entries = check_nothing_lost_or_doubled(run_file)
    changed = [e for e in entries if e["verdict"] == "intervene"]
    assert len(changed) >= 2
    scored = [e for e in changed if e["outcome"]["state"] == "scored"]
    outcome = scored[0]["outcome"]["benchmarks"]["gsm8k"]
    steps = outcome["to_step"] - outcome["from_step"]
    assert outcome["gain"] == pytest.approx(steps / 1000)  # the formula's fall
    assert outcome["n"] == 5


@pytest.mark.parametrize("stride", [1, 2])
def test_killed_again_and_again_nothing_is_lost_or_doubled(run_file: Path, stride: int) -> None:
    """Each start dies one or two writes later than the one before it."""
    deaths, at = 0, 2
    while (done := controller(run_file, at)).returncode == -signal.SIGKILL:
        deaths += 1
        at += stride
        assert deaths < 60
    assert done.returncode == 0, done.stderr
    assert deaths >= 6
    entries = check_nothing_lost_or_doubled(run_file)
    assert sum(e["verdict"] == "intervene" for e in entries) >= 2
    journal = journal_of(run_file)
    assert journal.value("SELECT fence FROM lease") == deaths + 1
    journal.close()


def test_workers_that_die_cost_scores_and_never_the_run(run_file: Path) -> None:
    data = yaml.safe_load(run_file.read_text())
    data["evals"]["launcher"] = [sys.executable, "-c", "raise SystemExit(3)", "{command}"]
    run_file.write_text(yaml.safe_dump(data))
    done = controller(run_file, "real")
    assert done.returncode == 0, done.stderr
    journal = journal_of(run_file)
    rows = journal.cells("SELECT step, state, attempts, reason FROM evaluations ORDER BY step")
    assert [step for step, *_ in rows] == list(range(20, 141, 20))
    for _, state, attempts, reason in rows:
        assert (state, attempts) == ("failed", 2)
        assert reason.startswith("the evaluation worker died (exit code 3): see ")
    journal.close()


def test_evaluations_are_planned_once_for_the_whole_run(run_file: Path) -> None:
    """Killed with the plan journaled and its file not yet written."""
    data = yaml.safe_load(run_file.read_text())
    data["evals"]["budget"] = "0.05%"  # of 12,000 s: 1 s a unit of 128 items, 0.1 s an item
    run_file.write_text(yaml.safe_dump(data))
    plan_file = load_config(run_file).run.dir / "evals-plan.json"
    assert controller(run_file, 5).returncode == -signal.SIGKILL
    assert not plan_file.exists()
    assert controller(run_file, 30).returncode == -signal.SIGKILL
    assert json.loads(plan_file.read_text())["benchmarks"]["gsm8k"]["items"] == 46
    journal = journal_of(run_file)
    cards = [row.scorecard for row in queries.scored(journal)]
    assert len(cards) >= 2
    assert {len(card["benchmarks"]["gsm8k"]["items"]) for card in cards} == {46}
    assert journal.value("SELECT COUNT(*) FROM events WHERE kind = 'evals-planned'") == 1
    journal.close()


STRANGER = Order("r", 99, 50, {"web": 0.5, "code": 0.5}, decision="mine", reason="by hand")


def test_a_strangers_file_gives_way_to_an_order_that_waits(run_file: Path) -> None:
    paths = RunPaths(load_config(run_file).run.dir)
    assert controller(run_file, 12).returncode == -signal.SIGKILL
    write_order(paths.mixture, STRANGER)
    assert controller(run_file).returncode == 0
    entries = check_nothing_lost_or_doubled(run_file)
    assert all(entry["asked_by"] == "policy" for entry in entries)
    journal = journal_of(run_file)
    events = queries.events(journal, "stranger")
    assert [event.detail["found"] for event in events] == ["an order of generation 50"]
    journal.close()


def test_a_strangers_order_that_the_trainer_follows_is_undone(run_file: Path) -> None:
    """Its fence and generation are far above ours; ours rise above them, and it is told."""
    paths = RunPaths(load_config(run_file).run.dir)
    assert controller(run_file, 30).returncode == -signal.SIGKILL
    write_order(paths.mixture, STRANGER)
    assert controller(run_file, "advance").returncode == 0
    status = read_status(paths.status).value
    assert status is not None
    assert (status.accepted.fence, status.accepted.generation) == (99, 50)
    done = controller(run_file)
    assert done.returncode == 0, done.stderr
    journal = journal_of(run_file)
    entries = views.history(journal)
    (ours,) = [entry for entry in entries if entry["asked_by"] == "controller"]
    assert "an order of generation 50" in ours["reason"]
    assert ours["generation"] == 51
    assert ours["applied_step"] is not None
    assert journal.value("SELECT fence FROM lease") > 99
    journal.close()


def test_a_lost_journal_does_not_send_the_run_back_to_its_start(run_file: Path) -> None:
    paths = RunPaths(load_config(run_file).run.dir)
    assert controller(run_file, 40).returncode == -signal.SIGKILL
    assert controller(run_file, "advance").returncode == 0
    before = read_status(paths.status).value
    assert before is not None
    assert before.in_force.generation >= 1
    paths.journal.unlink()
    assert controller(run_file, 8).returncode == -signal.SIGKILL
    after = read_order(paths.mixture, run="r", sources=["web", "code"], after=(0, 0))
    assert isinstance(after, Order)
    assert after.generation > before.accepted.generation
    assert after.fence > before.accepted.fence
    assert after.weights == pytest.approx(before.in_force.weights)


def test_a_raised_budget_keeps_the_run_controlled(run_file: Path) -> None:
    assert controller(run_file).returncode == 0
    data = yaml.safe_load(run_file.read_text())
    run_file.write_text(yaml.safe_dump(data | {"budget": 2 * BUDGET}))
    with control(run_file) as process:
        time.sleep(2)
        assert process.poll() is None, "it took the old end for the new one"
        process.send_signal(signal.SIGTERM)


@pytest.mark.parametrize(
    "held", [b'{"generation": 1e400, "fence": 1, "weights": {}, "decision": ""}', b"\0" * 99, None]
)
def test_rubbish_in_the_shared_file_is_replaced(run_file: Path, held: bytes | None) -> None:
    paths = RunPaths(load_config(run_file).run.dir)
    assert controller(run_file, 30).returncode == -signal.SIGKILL
    order = read_order(paths.mixture, run="r", sources=["web", "code"], after=(0, 0))
    paths.mixture.unlink()
    if held is None:
        os.mkfifo(paths.mixture)
    else:
        paths.mixture.write_bytes(held)
    with control(run_file) as process:
        deadline = time.monotonic() + 20
        again = None
        while not isinstance(again, Order) and time.monotonic() < deadline:
            time.sleep(0.1)
            again = read_order(paths.mixture, run="r", sources=["web", "code"], after=(0, 0))
        process.send_signal(signal.SIGTERM)
    assert isinstance(order, Order)
    assert isinstance(again, Order)
    assert (again.generation, again.weights) == (order.generation, order.weights)


def test_a_source_that_the_run_draws_from_must_stay(run_file: Path) -> None:
    assert controller(run_file, 30).returncode == -signal.SIGKILL
    write_store(run_file.parent / "maths")
    data = yaml.safe_load(run_file.read_text())
    kept = data["sources"]
    for sources, said in (
        ({"maths": {"path": "maths", "weight": 1.0}}, "sources: none of those of the run"),
        ({"web": {"path": "web", "weight": 1.0}}, "sources.code: missing, though the run"),
    ):
        run_file.write_text(yaml.safe_dump({**data, "sources": sources}))
        with control(run_file) as process:
            output, _ = process.communicate(timeout=30)
        assert process.returncode == 2
        assert said in output
    run_file.write_text(yaml.safe_dump({**data, "sources": kept}))


def control(run_file: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "mixloop.cli.app", "control", str(run_file)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def test_a_file_that_cannot_be_written_is_tried_again_until_it_can(run_file: Path) -> None:
    paths = RunPaths(load_config(run_file).run.dir)
    paths.mixture.mkdir(parents=True)
    (paths.mixture / "in the way").touch()
    command = [sys.executable, str(SCRIPT), str(run_file), "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and not troubles(paths):
            time.sleep(0.1)
        assert process.poll() is None, process.stderr and process.stderr.read()
        (paths.mixture / "in the way").unlink()
        paths.mixture.rmdir()
        assert process.wait(timeout=60) == 0
    check_nothing_lost_or_doubled(run_file)
    assert any("mixture.json" in trouble for trouble in troubles(paths))


def troubles(paths: RunPaths) -> list[str]:
    if not paths.journal.exists():
        return []
    with contextlib.closing(Journal(paths.journal)) as journal:
        return [event.detail["error"] for event in queries.events(journal, "trouble")]


def test_a_second_controller_is_refused_with_one_line(run_file: Path) -> None:
    command = [sys.executable, "-m", "mixloop.cli.app", "control", str(run_file)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout is not None
        assert "controlling run 'r'" in first.stdout.readline()
        second = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        first.send_signal(signal.SIGTERM)
        assert first.wait(timeout=20) == 130
    assert second.returncode == 2
    assert "another controller is running here" in second.stderr
    assert second.stderr.count("\n") == 1


def test_an_idle_controller_is_small(run_file: Path) -> None:
    data = yaml.safe_load(run_file.read_text())
    data["controller"] = {"poll": 1.0}
    run_file.write_text(yaml.safe_dump(data))
    command = [sys.executable, "-m", "mixloop.cli.app", "control", str(run_file)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        watched = psutil.Process(process.pid)
        time.sleep(1)
        before, began = sum(watched.cpu_times()[:2]), time.monotonic()
        time.sleep(4)
        used = sum(watched.cpu_times()[:2]) - before
        share = used / (time.monotonic() - began)
        memory = watched.memory_info().rss
        children = watched.children()
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=20)
    assert children == []
    assert memory < 150 * 2**20
    assert share < 0.05  # the bound is 1%: measured by the bench, where nothing else runs
