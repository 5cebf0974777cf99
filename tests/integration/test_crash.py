"""The daemon struck down at its steps on the disk, replaced, and left without room."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from mixloop.contract import (
    Order,
    RunPaths,
    SegmentLine,
    read_order,
    read_schedule,
    read_status,
)
from mixloop.controller.config import load_config
from mixloop.controller.decisions import observation_builder
from mixloop.controller.journal import Journal, queries
from mixloop.controller.journal.packing import pack, unpack
from mixloop.controller.tracking import mlflow_database

SUPPORT = Path(__file__).parents[1] / "support"
SOAK = pytest.mark.soak


def harness(script: str, *arguments: object, timeout: float = 3000) -> dict[str, Any]:
    """Run one of the harnesses; its summary, which says that everything held."""
    command = [sys.executable, str(SUPPORT / script), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=timeout)
    last = (done.stdout.strip().splitlines() or ["{}"])[-1]
    assert done.returncode == 0, f"{last}\n{done.stderr[-2000:]}"
    summary: dict[str, Any] = json.loads(last)
    return summary


def memory() -> list[object]:
    """Where a run lies that is made thousands of times: in memory, where there is such a place."""
    return ["--dir", "/dev/shm"] if os.access("/dev/shm", os.W_OK) else []


# -- every step --------------------------------------------------------------------------------


RECEIPTS = "experiment,decision,request,acknowledge,scores"  # where they come further


@pytest.mark.parametrize(
    ("fate", "command"),
    [
        ("kill", "crash_receipts.py --during experiment --every 150"),
        ("stop", "crash_points.py --during start-experiment,publish --first 40 --every 25"),
        ("full", "crash_points.py --first 40 --every 1900"),
        pytest.param("readonly", "crash_points.py --first 40 --every 1500", marks=SOAK),
    ],
)
def test_struck_down_at_a_few_of_its_steps(fate: str, command: str) -> None:
    """Some of the steps; `make soak` takes all of them."""
    summary = harness(*command.split(), "--fate", fate, *memory(), timeout=250)
    assert summary["broken"] == []
    assert summary["trials"] >= 2
    if fate == "kill":
        assert summary["deaths"] == summary["trials"]
        assert summary["receipts done"] >= summary["trials"]
    if fate in ("full", "readonly"):
        assert summary["starts"] > summary["trials"] or summary["troubles"] >= 3


@pytest.mark.soak
@pytest.mark.parametrize("fate", ["kill", "stop", "full", "readonly"])
def test_struck_down_at_every_step(fate: str) -> None:
    summary = harness("crash_points.py", "--fate", fate, *memory(), timeout=3500)
    assert summary["broken"] == []
    assert summary["trials"] == summary["steps"]


@pytest.mark.soak
@pytest.mark.parametrize(
    ("fate", "every"), [("kill", 1), ("stop", 1), ("full", 3), ("readonly", 3)]
)
def test_struck_down_at_the_steps_of_receipts(fate: str, every: int) -> None:
    """Where they are planned, begun, made and told; what a disk refuses, at a third of them."""
    options = ("--during", RECEIPTS, "--fate", fate, "--every", every)
    summary = harness("crash_receipts.py", *options, *memory(), timeout=3500)
    assert summary["broken"] == []
    assert summary["trials"] >= 90
    assert summary["receipts done"] >= summary["trials"]


@pytest.mark.soak
def test_chains_of_deaths() -> None:
    summary = harness("crash_points.py", "--chains", 300, "--seed", 1, *memory())
    assert summary["broken"] == []
    assert summary["deaths"] >= 600


@pytest.mark.soak
def test_five_hundred_random_kills_of_the_real_command() -> None:
    summary = harness("random_kills.py", "--kills", 500, *memory(), timeout=3500)
    assert summary["killed_while"]["working"] + summary["killed_while"].get("started", 0) >= 100
    assert summary["longest_silence"] < 5


@pytest.mark.soak
def test_five_hundred_random_kills_beside_the_real_trainer(tmp_path: Path) -> None:
    """On a real disk: the trainer's checkpoints are fsynced there as well.

    A quick machine trains three steps a second and starts and kills a daemon in two: 3,300 steps
    leave time for some 650 kills there, and end within the hour on one that is three times slower.
    """
    options = ("--trainer", "real", "--seconds", 1500, "--pace", 2.2, "--kills", 500, "--life", 1.0)
    summary = harness("random_kills.py", *options, "--dir", tmp_path, timeout=3500)
    assert summary["kills"] >= 500
    assert summary["killed_while"]["working"] + summary["killed_while"].get("started", 0) >= 100
    assert summary["applied"] >= 10
    assert summary["kept"] < summary["checkpoints"]
    assert summary["longest_silence"] < 60


@pytest.mark.soak
def test_five_thousand_decisions() -> None:
    summary = harness("long_run.py", "--decisions", 5000, *memory(), timeout=3500)
    last = summary["notes"][-1]
    assert last["journal_mb"] < 20
    assert last["look_ms"] < 20
    assert summary["rss_slope"] < 1024


@pytest.mark.soak
def test_at_the_end_of_a_history_of_five_thousand_decisions() -> None:
    """The same limits in minutes: the history is made by copying, what comes after it is real."""
    half = ("--copied", 2500, "--decisions", 12, "--every", 4)
    fresh = harness("long_run.py", *half, *memory())["notes"][-1]
    whole = harness("long_run.py", "--copied", 5000, "--decisions", 12, "--every", 4, *memory())
    last = whole["notes"][-1]
    assert last["journal_mb"] < 20
    assert last["look_ms"] < 20
    assert (last["rss_mb"] - fresh["rss_mb"]) * 2**20 / 2500 < 1024


# -- no room -----------------------------------------------------------------------------------


def own_mounts() -> bool:
    """Whether this machine lets us mount something that nobody else sees."""
    probe = ["unshare", "-Um", "--map-root-user", "mount", "-t", "tmpfs", "none", "/mnt"]
    return (
        shutil.which("unshare") is not None
        and not subprocess.run(probe, capture_output=True, check=False).returncode
    )


@pytest.mark.soak
def test_a_disk_that_fills_up_and_has_room_again(tmp_path: Path) -> None:
    if not own_mounts():
        pytest.skip("no mount namespaces here; the injected ENOSPC of the other tests must do")
    command = ["unshare", "-Um", "--map-root-user", sys.executable]
    command += [str(SUPPORT / "small_disk.py"), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    summary = json.loads(done.stdout)
    assert summary["said"] == ["trouble: OperationalError: database or disk is full; trying again"]
    assert "disk is full" in summary["start_full"] or "No space left" in summary["start_full"]
    assert "Read-only file system" in summary["start_readonly"]


# -- two controllers ---------------------------------------------------------------------------


@contextlib.contextmanager
def control(run_file: Path, log: Path, *program: str) -> Iterator[subprocess.Popen[bytes]]:
    begun = list(program) or ["-m", "mixloop.cli.app"]
    command = [sys.executable, *begun, "control", str(run_file)]
    with log.open("wb") as stream:
        process = subprocess.Popen(command, stdout=stream, stderr=stream)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def wait(until: Callable[[], object], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not until():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.soak
@pytest.mark.parametrize("years", [-30, 0, 70])
def test_the_trainer_obeys_one_of_two_controllers(
    tmp_path: Path, played_run: ModuleType, years: int
) -> None:
    """A is paused and B takes over, on another machine (it doesn't see A's lock) whose clock is
    off by years; A goes on, finds out and ends."""
    worker = [sys.executable, str(SUPPORT / "formula_worker.py"), "{command}"]
    evals = {"benchmarks": {"gsm8k": {"data": "packages"}}, "launcher": worker}
    run_file = played_run.make_run(tmp_path, budget=10**7, evals=evals, controller={"poll": 0.05})
    config = load_config(run_file)
    paths = RunPaths(config.run.dir)
    trainer = played_run.FileTrainer(config)
    read = tmp_path.joinpath

    def fence() -> int:
        status = read_status(paths.status).value
        return status.accepted.fence if status is not None else 0

    def advanced(to: Callable[[], object]) -> bool:
        if not to():
            trainer.advance()
            time.sleep(0.1)
        return bool(to())

    with control(run_file, read("a.log")) as a:
        wait(lambda: b"controlling run" in read("a.log").read_bytes())
        wait(lambda: advanced(lambda: fence() == 1))  # an order of A is followed
        a.send_signal(signal.SIGSTOP)
        paths.dir.joinpath("controller.lock").unlink()
        with control(run_file, read("b.log"), str(SUPPORT / "wrong_clock.py"), str(years)) as b:
            wait(lambda: b"controlling run" in read("b.log").read_bytes())
            wait(lambda: advanced(lambda: fence() == 2))
            a.send_signal(signal.SIGCONT)
            assert a.wait(60) == 1
            before = read_schedule(paths.schedule).accepted[1]
            wait(lambda: advanced(lambda: read_schedule(paths.schedule).accepted[1] > before))
            b.send_signal(signal.SIGTERM)
            assert b.wait(60) == 130
    last = read("a.log").read_text().splitlines()[-1]
    assert last.startswith("another controller has taken this run over (fence 1 was replaced by 2)")
    lines = [x for x in read_schedule(paths.schedule).lines if isinstance(x, SegmentLine)]
    assert [x.generation for x in lines] == list(range(len(lines)))
    assert [x.fence for x in lines] == sorted(x.fence for x in lines)
    assert {x.fence for x in lines} == {0, 1, 2}
    order = read_order(paths.mixture, run="r", sources=list(config.sources), after=(0, 0))
    assert isinstance(order, Order)
    assert order.fence == 2
    journal = Journal(paths.journal)
    decisions = queries.decisions(journal)
    journal.close()
    assert [d.fence for d in decisions] == sorted(d.fence for d in decisions)
    assert [d.step for d in decisions] == sorted(d.step for d in decisions)
    year = [int(d.decided_at[:4]) for d in decisions]
    assert (year[-1] - year[0]) // 10 * 10 in (years, years - 10)


# -- what the harnesses found ------------------------------------------------------------------


def test_mlflows_store_appears_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed while MLflow made its tables, a drain left a store that nothing could use again."""
    store = tmp_path / "mlflow.db"

    def torn(uri: str) -> None:
        Path(uri.removeprefix("sqlite:///")).write_bytes(b"half of the tables")
        raise KeyboardInterrupt

    def whole(uri: str) -> None:
        Path(uri.removeprefix("sqlite:///")).write_bytes(b"all of them")

    monkeypatch.setattr(mlflow_database, "_make_tables", torn)
    with pytest.raises(KeyboardInterrupt):
        mlflow_database.make_database(f"sqlite:///{store}", "u")
    assert not store.exists()
    monkeypatch.setattr(mlflow_database, "_make_tables", whole)
    mlflow_database.make_database(f"sqlite:///{store}", "u")
    assert store.read_bytes() == b"all of them"
    assert list(tmp_path.iterdir()) == [store]
    monkeypatch.setattr(mlflow_database, "_make_tables", torn)
    mlflow_database.make_database(f"sqlite:///{store}", "u")  # it is there: left alone
    mlflow_database.make_database("http://mlflow.example:5000", "u")
    assert store.read_bytes() == b"all of them"


def test_packed_entries_come_back_as_they_were() -> None:
    for value in (
        {},
        {"a": 1},
        {"reason": "±" * 500},
        [{"guard": "dwell", "n": n} for n in range(99)],
    ):
        stored = pack(value)
        assert stored is not None
        assert unpack(stored) == value
    assert isinstance(pack({"x": "y" * 200}), bytes)


def test_a_checkpoint_older_than_those_settled_is_scored(play: Any) -> None:
    """What was looked through once is looked through again when something older turns up."""
    run = play(policy={"use": "static"})
    run.train(20)
    journal = run.journal
    scored = "SELECT COUNT(*) FROM evaluations WHERE state = 'scored'"
    before = journal.value(scored)
    assert before >= 4
    folder = sorted(run.paths.checkpoints.iterdir())[0]
    late = folder.with_name("step-00000010")
    shutil.copytree(folder, late)
    manifest = json.loads((late / "manifest.json").read_text())
    manifest |= {"step": 10, "sample": 80, "tokens": 800}
    (late / "manifest.json").write_text(json.dumps(manifest))
    run.settle()
    assert journal.value(scored) == before + 1
    steps = [evaluation.step for evaluation in observation_builder.evaluations(journal)]
    assert steps[0] == 10
    assert observation_builder.newest_evaluation(journal).step == steps[-1]  # type: ignore[union-attr]
