"""MixtureLoader: the order it hands out, its switches, state, files, limits and costs."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset
from typer.testing import CliRunner

from mixloop.cli.app import app
from mixloop.contract import (
    OpenLine,
    Order,
    RunPaths,
    ScheduleWriter,
    SegmentLine,
    Stage,
    Status,
    VoidLine,
    quantise,
    read_schedule,
    read_status,
    write_order,
)
from mixloop.controller.config import job_of, load_config
from mixloop.trainer.config import JobError, load_run
from mixloop.trainer.loader import MixtureLoader
from mixloop.trainer.loader.incarnation import Change
from mixloop.trainer.mixing import MixtureOrder
from mixloop.trainer.run import SingleProcess, StepMetrics, checkpoint_store, fork_run
from mixloop.trainer.sources import StoreInfo

LENGTH, ROWS, MICROS = 8, 4, 2
QUANTUM = ROWS * MICROS
POLL = 5
SIZES = {"a": 53, "b": 101, "c": 149}
LOOP = Path(__file__).parents[2] / "support" / "loader_loop.py"


def write_store(folder: Path, number: int, samples: int) -> Path:
    """A store whose windows begin with ``number * 1000 + index``."""
    folder.mkdir(parents=True)
    tokens = np.zeros((samples, LENGTH), "<u2")
    tokens[:, 0] = number * 1000 + np.arange(samples)
    tokens.tofile(folder / "tokens.bin")
    info = StoreInfo(tokens.size, 1, "uint16", 2**16, "t", f"sha256:{folder.name}", 0)
    (folder / "store.json").write_text(json.dumps(info.to_json()))
    return folder


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("stores")
    return {n: write_store(folder / n, i, size) for i, (n, size) in enumerate(SIZES.items())}


def make(folder: Path, stores: Mapping[str, Any], **options: Any) -> MixtureLoader:
    values: dict[str, Any] = {
        "run": "r",
        "budget": 60 * QUANTUM * LENGTH,
        "weights": {"a": 0.5, "b": 0.5},
        "seed": 3,
        "sequence_length": LENGTH,
        "micro_batch": ROWS,
        "accumulation": MICROS,
        "poll_every": POLL,
        "pin_memory": False,
    }
    return MixtureLoader(folder / "run", sources=stores, **(values | options))


def firsts(batch: Mapping[str, torch.Tensor]) -> list[int]:
    return [int(token) for token in batch["input_ids"][:, 0]]


def pure(folder: Path, samples: int) -> list[int]:
    """First tokens of the global order, from `schedule.jsonl` alone."""
    schedule = read_schedule(RunPaths(folder / "run").schedule)
    opened = schedule.latest_open
    assert opened is not None
    sizes = {entry.name: entry.samples for entry in opened.sources}
    order = MixtureOrder(sizes, opened.seed, schedule.mixture)
    source, index = order.batch(0, samples)
    return [int(token) for token in source * 1000 + index]


def order(folder: Path, generation: int, weights: Mapping[str, float], **more: Any) -> None:
    write_order(RunPaths(folder / "run").mixture, Order("r", 1, generation, weights, **more))


def until(true: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 20
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def recorded(folder: Path) -> int:
    return read_schedule(RunPaths(folder / "run").schedule).accepted[1]


def steps(loader: MixtureLoader, count: int) -> list[int]:
    """First tokens of this many steps."""
    tokens: list[int] = []
    for _ in range(count * loader.job.settings.accumulation):
        tokens += firsts(next(loader))
    return tokens


def status(folder: Path) -> Status:
    path = RunPaths(folder / "run").status
    until(path.exists)  # the side thread writes it
    newest = read_status(path).value
    assert newest is not None
    return newest


def heard(folder: Path, loader: MixtureLoader, generation: int, **weights: float) -> list[int]:
    """Write an order and train until it is recorded."""
    order(folder, generation, weights)
    tokens: list[int] = []
    while recorded(folder) < generation:
        tokens += steps(loader, 1)
        time.sleep(0.005)
    assert loader._incarnation is not None
    lead = loader._incarnation.live.lead
    assert lead is not None
    until(lambda: lead.inbox.state().pending)  # offered: the next poll announces it
    return tokens


def test_what_is_handed_out_is_the_pure_function_of_the_schedule(
    tmp_path: Path, stores: dict[str, Path]
) -> None:
    changes: list[tuple[int, Change]] = []
    loader = make(tmp_path, stores)
    loader.on_change = lambda change: changes.append((loader.step, change))
    with loader:
        assert loader.weights == {"a": 0.5, "b": 0.5, "c": 0.0}
        tokens = steps(loader, 3)
        tokens += heard(tmp_path, loader, 1, a=0.25, b=0.25, c=0.5)
        for batch in loader:
            tokens += firsts(batch)
            assert batch["labels"] is batch["input_ids"]
            assert [token // 1000 for token in firsts(batch)] == batch["source"].tolist()
        assert tokens == pure(tmp_path, 60 * QUANTUM)
        [(step, change)] = changes
        assert change.step == step == change.sample // QUANTUM
        assert (change.generation, change.fence) == (1, 1)
        assert dict(change.before) == {"a": 0.5, "b": 0.5, "c": 0.0}
        assert change.weights == loader.weights
        assert loader.weights["c"] == 0.5
        drawn = {name: sum(t // 1000 == i for t in tokens) for i, name in enumerate(SIZES)}
        assert loader.drawn() == drawn
        assert loader.epochs()["c"] == drawn["c"] / SIZES["c"]
        assert (loader.step, loader.sample) == (60, 60 * QUANTUM)
        assert len(loader) == 60 * MICROS
    newest = status(tmp_path)
    assert newest.finished
    assert newest.in_force.sample == change.sample
    assert {name: s.tokens for name, s in newest.sources.items()} == {
        name: count * LENGTH for name, count in drawn.items()
    }


def test_a_state_between_micro_batches_goes_on_exactly(
    tmp_path: Path, stores: dict[str, Path]
) -> None:
    with make(tmp_path, stores) as first:
        tokens = steps(first, 11) + firsts(next(first))
        state = json.loads(json.dumps(first.state_dict()))
    assert (state["step"], state["sample"], state["micro"]) == (11, 11 * QUANTUM, 1)
    with make(tmp_path, stores) as second:
        second.load_state_dict(state)
        assert (second.step, second.sample) == (11, 11 * QUANTUM)
        for batch in second:
            tokens += firsts(batch)
    assert tokens == pure(tmp_path, 60 * QUANTUM)
    opened = read_schedule(RunPaths(tmp_path / "run").schedule).latest_open
    assert opened is not None
    assert opened.parent == "step-00000011"


def test_a_state_loaded_in_mid_run_goes_back(tmp_path: Path, stores: dict[str, Path]) -> None:
    with make(tmp_path, stores) as loader:
        steps(loader, 4)
        state = loader.state_dict()
        there = steps(loader, 6)
        loader.load_state_dict(state)
        assert steps(loader, 6) == there
        assert read_schedule(RunPaths(tmp_path / "run").schedule).incarnation == 2


def test_an_order_recorded_but_not_reached_survives_a_crash(
    tmp_path: Path, stores: dict[str, Path]
) -> None:
    loader = make(tmp_path, stores)
    tokens = steps(loader, 3)
    state = loader.state_dict()
    heard(tmp_path, loader, 1, c=1.0)
    loader._end(publish=False)  # as a crash would: nothing is written
    with make(tmp_path, stores) as again:
        again.load_state_dict(state)
        for batch in again:
            tokens += firsts(batch)
    assert tokens == pure(tmp_path, 60 * QUANTUM)
    assert {token // 1000 for token in tokens} == {0, 1, 2}


def test_a_segment_that_never_came_into_force_is_void(
    tmp_path: Path, stores: dict[str, Path]
) -> None:
    with make(tmp_path, stores) as loader:
        tokens = steps(loader, 12)
        state = loader.state_dict()
    writer = ScheduleWriter(RunPaths(tmp_path / "run").schedule)
    weights = quantise({"a": 0.0, "b": 0.0, "c": 1.0})
    writer.append(SegmentLine(1, 6 * QUANTUM, 6, weights, 1, 1))  # durable, never announced
    with make(tmp_path, stores) as again:
        again.load_state_dict(state)
        tokens += steps(again, 5)
    assert tokens == pure(tmp_path, 17 * QUANTUM)
    voids = [
        line
        for line in read_schedule(RunPaths(tmp_path / "run").schedule).lines
        if isinstance(line, VoidLine)
    ]
    assert [(v.sample, v.generation) for v in voids] == [(6 * QUANTUM, 1)]


def test_a_state_inside_a_step_keeps_the_switch_that_began_with_it(
    tmp_path: Path, stores: dict[str, Path]
) -> None:
    began: list[int] = []
    tokens: list[int] = []
    with make(tmp_path, stores, on_change=lambda change: began.append(change.step)) as loader:
        tokens += steps(loader, 1)
        tokens += heard(tmp_path, loader, 1, b=0.5, c=0.5)
        while not began:
            tokens += firsts(next(loader))
        state = loader.state_dict()
        assert (state["micro"], state["step"]) == (1, began[0])
    with make(tmp_path, stores) as again:
        again.load_state_dict(state)
        tokens += firsts(next(again)) + steps(again, 8)
    assert tokens == pure(tmp_path, len(tokens))
    lines = read_schedule(RunPaths(tmp_path / "run").schedule).lines
    assert not any(isinstance(line, VoidLine) for line in lines)


def test_a_run_resumed_at_a_switch_is_told_of_it(tmp_path: Path, stores: dict[str, Path]) -> None:
    changes: list[Change] = []
    states = {}
    with make(tmp_path, stores, on_change=changes.append) as loader:
        steps(loader, 1)
        heard(tmp_path, loader, 1, b=0.5, c=0.5)
        while not changes:
            states[loader.step] = loader.state_dict()
            steps(loader, 1)
    again: list[Change] = []
    with make(tmp_path, stores, on_change=again.append) as loader:
        loader.load_state_dict(states[changes[0].step])
        steps(loader, 3)
    assert again == changes


class Killed(Exception):  # noqa: N818 - stands for a signal
    """What ends a loop before it can close."""


def left(folder: Path, stores: Mapping[str, Path], count: int, save: str = "") -> None:
    """A loop that is killed after some steps; it may have saved one."""
    with contextlib.suppress(Killed), make(folder, stores, budget=10 * QUANTUM * LENGTH) as loader:
        steps(loader, count)
        if save == "state":
            loader.state_dict()
        elif save:
            loader.mark_checkpoint(folder)
        steps(loader, 1)
        raise Killed


@pytest.mark.parametrize("how", ["state", "mark", "closed", "spent"])
def test_a_run_with_a_place_to_go_on_from_is_not_begun_again_unasked(
    tmp_path: Path, stores: dict[str, Path], capsys: pytest.CaptureFixture[str], how: str
) -> None:
    if how in ("state", "mark"):
        left(tmp_path, stores, 3, save=how)
    else:
        with make(tmp_path, stores, budget=10 * QUANTUM * LENGTH) as loader:
            steps(loader, 10 if how == "spent" else 4)
            if how == "spent":
                assert list(loader) == []
    before = RunPaths(tmp_path / "run").schedule.read_bytes()
    at = 10 if how == "spent" else 4
    said = (
        rf"^\S+: this run was at step {at}, and no state was loaded; load .*load_state_dict, "
        r"restore, .* or pass from_scratch=True to begin again at step 0$"
    )
    with pytest.raises(JobError, match=said):
        next(make(tmp_path, stores))
    assert RunPaths(tmp_path / "run").schedule.read_bytes() == before
    with make(tmp_path, stores, from_scratch=True) as loader:
        assert steps(loader, 3) == pure(tmp_path, 3 * QUANTUM)
    assert f"this run was at step {at} and no state was loaded" in capsys.readouterr().err


def test_a_run_killed_before_it_saved_anything_begins_again(
    tmp_path: Path, stores: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in range(2):
        left(tmp_path, stores, 4)
    assert "it begins again at step 0" in capsys.readouterr().err
    with contextlib.suppress(Killed), make(tmp_path, stores) as loader:
        steps(loader, 4)
        loader.state_dict()
        raise Killed  # while it writes its first checkpoint
    left(tmp_path, stores, 4, save="state")
    with pytest.raises(JobError, match="from_scratch=True"):
        next(make(tmp_path, stores))


def test_a_new_run_and_a_loaded_state_need_no_asking(
    tmp_path: Path, stores: dict[str, Path]
) -> None:
    with make(tmp_path, stores, from_scratch=True) as loader:
        first = steps(loader, 2)
        state = loader.state_dict()
    with make(tmp_path, stores, from_scratch=True) as loader:
        loader.load_state_dict(state)
        assert first + steps(loader, 2) == pure(tmp_path, 4 * QUANTUM)


def test_another_quantum_needs_rewind(tmp_path: Path, stores: dict[str, Path]) -> None:
    with make(tmp_path, stores) as loader:
        tokens = steps(loader, 6)
        state = loader.state_dict()
        heard(tmp_path, loader, 1, c=1.0)
    with make(tmp_path, stores, micro_batch=3) as other:
        other.load_state_dict(state)
        with pytest.raises(JobError, match=r"a step takes 6 samples now .*pass rewind=True"):
            next(other)
    with make(tmp_path, stores, micro_batch=3, rewind=True) as other:
        other.load_state_dict(state)
        tokens += steps(other, 10)
    assert tokens == pure(tmp_path, 6 * QUANTUM + 60)
    assert {token // 1000 for token in tokens} == {0, 1}  # the order recorded beyond is cut


def test_a_micro_batch_of_another_layout_is_refused(
    tmp_path: Path, stores: dict[str, Path]
) -> None:
    with make(tmp_path, stores) as loader:
        next(loader)
        state = loader.state_dict()
    with make(tmp_path, stores, micro_batch=8, accumulation=1) as other:
        other.load_state_dict(state)
        with pytest.raises(JobError, match="no multiple of a micro-batch over all ranks"):
            next(other)
    with make(tmp_path, stores, micro_batch=1, accumulation=8) as other:
        other.load_state_dict(state)
        [token] = firsts(next(other))
    assert token == pure(tmp_path, ROWS + 1)[-1]


def test_a_spent_budget_ends_it_for_good(tmp_path: Path, stores: dict[str, Path]) -> None:
    with make(tmp_path, stores, budget=4 * QUANTUM * LENGTH) as loader:
        assert len(list(loader)) == 4 * MICROS
        assert list(loader) == []
        state = loader.state_dict()
    assert status(tmp_path).finished
    with make(tmp_path, stores, budget=4 * QUANTUM * LENGTH) as again:
        again.load_state_dict(state)
        assert list(again) == []
    assert read_schedule(RunPaths(tmp_path / "run").schedule).incarnation == 1


def test_batches_that_are_kept_stay_as_they_are(tmp_path: Path, stores: dict[str, Path]) -> None:
    with make(tmp_path, stores, budget=200 * QUANTUM * LENGTH) as loader:
        kept = [next(loader) for _ in range(50 * MICROS)]
        views = [batch["input_ids"][:, 0] for batch in kept]
        del kept
        steps(loader, 100)
        assert [int(t) for view in views for t in view] == pure(tmp_path, 50 * QUANTUM)
        assert loader._incarnation is not None
        buffers = loader._incarnation._batches._buffers
        assert buffers is not None
        allocated = buffers.allocated
        steps(loader, 40)
        # nobody keeps these: the same memory again, but for what more is drawn ahead at a moment
        assert buffers.allocated < allocated + 5


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_page_locked_batches_arrive_whole(tmp_path: Path, stores: dict[str, Path]) -> None:
    with make(tmp_path, stores, pin_memory=True) as loader:
        arrived = []
        for batch in loader:
            assert batch["input_ids"].is_pinned()
            arrived.append(batch["input_ids"].to("cuda", non_blocking=True))
        assert [int(t) for ids in arrived for t in ids[:, 0]] == pure(tmp_path, 60 * QUANTUM)


def test_page_locked_memory_without_a_device_is_refused(
    tmp_path: Path, stores: dict[str, Path]
) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    with (
        make(tmp_path, stores, pin_memory=True) as loader,
        pytest.raises(JobError, match="pin_memory: there is no CUDA device"),
    ):
        next(loader)


def test_files_that_fail_cost_the_change_not_the_loop(
    tmp_path: Path, stores: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    with make(tmp_path, stores) as loader:
        tokens = steps(loader, 6)
        (tmp_path / "run").rename(tmp_path / "gone")  # at once, whatever is being written
        for batch in loader:
            tokens += firsts(batch)
            loader.report(loss=1.0)
            time.sleep(0.001)
        assert len(tokens) == 60 * QUANTUM
        assert not loader.mark_checkpoint(tmp_path / "nowhere")
    errors = capsys.readouterr().err
    assert "status not written" in errors
    assert "the mixture in force is kept" in errors
    assert "mixloop.json not written" in errors


def test_limits_bind_whoever_writes(tmp_path: Path, stores: dict[str, Path]) -> None:
    with make(tmp_path, stores, limits={"cap": 0.6}, status_every=1) as loader:
        steps(loader, 1)
        order(tmp_path, 1, {"c": 1.0})
        while not status(tmp_path).rejected:
            steps(loader, 1)
            time.sleep(0.01)
            assert loader.step < 60
    assert "cap" in status(tmp_path).rejected[0].reason
    assert loader.weights["c"] == 0


def test_the_plan_of_an_order_is_carried_out(tmp_path: Path, stores: dict[str, Path]) -> None:
    changes: list[Change] = []
    at = 40 * QUANTUM * LENGTH
    # the stage is near: drawn further ahead it would come at the first sample it still can
    with make(tmp_path, stores, on_change=changes.append, prefetch=2) as loader:
        steps(loader, 1)
        order(tmp_path, 1, {"a": 1.0}, then=(Stage(at, {"c": 1.0}),))
        for _ in loader:
            time.sleep(0.003)
    assert [change.weights["c"] for change in changes] == [0.0, 1.0]
    assert changes[1].sample * LENGTH == at


def test_a_newer_incarnation_is_left_alone(
    tmp_path: Path, stores: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    # a budget that outlasts the side thread's look, however busy the machine
    often = {"status_every": 1, "budget": 10**6 * QUANTUM * LENGTH}
    with make(tmp_path, stores, **often) as old, make(tmp_path, stores, **often) as new:
        steps(old, 3)
        steps(new, 1)
        while "writes nothing more" not in capsys.readouterr().err:
            steps(old, 1)
            time.sleep(0.01)
        steps(new, 1)
        new.report(loss=7.0)
        until(lambda: status(tmp_path).incarnation == 2)
        steps(old, 5)
    schedule = status(tmp_path)
    assert (schedule.incarnation, schedule.step, schedule.loss) == (2, 2, 7.0)


def test_reports_reach_the_status(
    tmp_path: Path, stores: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    phases = {"stable": 80 * LENGTH, "decay": 160 * LENGTH}
    with make(tmp_path, stores, status_every=2, phases=phases) as loader:
        for _ in range(2):
            for _ in range(MICROS):
                source = next(loader)["source"]
                loader.report(losses=source.float() + 1)
            loss = torch.tensor(2.5, requires_grad=True)
            loader.report(loss=loss, lr=0.5, grad_norm=float("nan"))
        until(lambda: status(tmp_path).step == 2)
        newest = status(tmp_path)
        assert (newest.loss, newest.lr, newest.grad_norm, newest.phase) == (
            2.5,
            0.5,
            None,
            "warmup",
        )
        assert {n: s.loss for n, s in newest.sources.items()} == {"a": 1.0, "b": 2.0, "c": None}
        with pytest.raises(ValueError, match="3 values for the 4 sequences"):
            loader.report(losses=torch.zeros(3))
        steps(loader, 10)
        loader.report(step=12, lr=0.4)
        until(lambda: status(tmp_path).step == 12)
        assert status(tmp_path).phase == "stable"
        steps(loader, 8)
        loader.report(step=400, phase="warmup")
        loader.report(step=401)
        until(lambda: status(tmp_path).step == 20)
        assert status(tmp_path).phase == "warmup"
        steps(loader, 4)  # a loop that tells nothing is seen all the same
        until(lambda: status(tmp_path).step == 22)
        assert status(tmp_path).phase == "decay"
    assert capsys.readouterr().err.count("status.json counts those") == 1


def test_saved_and_restored_from_a_foreign_checkpoint(
    tmp_path: Path, stores: dict[str, Path]
) -> None:
    folder = tmp_path / "checkpoint-9"
    folder.mkdir()
    (folder / "model.bin").write_bytes(b"weights")
    with make(tmp_path, stores) as loader:
        tokens = steps(loader, 9)
        loader.report(loss=1.5)
        assert loader.mark_checkpoint(folder, files=["model.bin"])
    left = json.loads((folder / "mixloop.json").read_text())
    assert (left["step"], left["sample"], left["run"]) == (9, 9 * QUANTUM, "r")
    assert left["files"]["model.bin"]["bytes"] == 7
    assert left["in_force"]["weights"]["a"] == 0.5
    assert sum(s["tokens"] for s in left["sources"].values()) == left["tokens"]
    with make(tmp_path, stores) as again:
        again.restore(folder)
        tokens += steps(again, 3)
    assert tokens == pure(tmp_path, 12 * QUANTUM)
    with pytest.raises(JobError, match=r"mixloop\.json: unreadable"):
        again.restore(tmp_path)


def test_documents_in_windows(tmp_path: Path, stores: dict[str, Path]) -> None:
    with make(tmp_path, stores, documents=True, dtype="int32") as loader:
        batch = next(loader)  # the end of text is 0: every token but the first, mostly, is one
    ids = batch["input_ids"].tolist()
    assert batch["input_ids"].dtype == torch.int32
    for row, documents, places in zip(
        ids, batch["document_ids"].tolist(), batch["position_ids"].tolist(), strict=True
    ):
        document, place = 0, 0
        for token, number, at in zip(row, documents, places, strict=True):
            assert (number, at) == (document, place)
            document, place = (document + 1, 0) if token == 0 else (document, place + 1)
    info = json.loads((stores["c"] / "store.json").read_text())
    other = write_store(tmp_path / "other", 7, 9)
    (other / "store.json").write_text(json.dumps(info | {"tokens": 72, "eos_id": 5}))
    with pytest.raises(JobError, match=r"documents: sources\.d ends documents with 5"):
        make(tmp_path, {**stores, "d": other}, documents=True)


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")
def test_torch_distributed_checkpoints_keep_it(tmp_path: Path, stores: dict[str, Path]) -> None:
    import torch.distributed.checkpoint as dcp

    with make(tmp_path, stores) as loader:
        tokens = steps(loader, 7)
        dcp.save({"loader": loader}, checkpoint_id=tmp_path / "dcp")
    with make(tmp_path, stores) as again:
        dcp.load({"loader": again}, checkpoint_id=tmp_path / "dcp")
        assert again.step == 7
        tokens += steps(again, 3)
    assert tokens == pure(tmp_path, 10 * QUANTUM)


def test_what_cannot_work_is_refused(
    tmp_path: Path, stores: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    for options, said in (
        ({"weights": {"x": 1.0}}, "weights.x: no such source"),
        ({"weights": {"a": 0.3}}, "the weights sum to 0.3"),
        ({"budget": "lots"}, "budget: 'lots' is not a token count"),
        ({"dtype": "uint16"}, "dtype"),
        ({"limits": {"top": 1}}, "top: unknown key"),
        ({"micro_batch": 0}, "micro_batch: "),
        ({"phases": {"hot": 1}}, "phases"),
    ):
        with pytest.raises(JobError, match=said):
            make(tmp_path, stores, **options)
    with pytest.raises(JobError, match=r"rank 1 of 4, but torch\.distributed is not initialised"):
        next(make(tmp_path, stores, rank=1, world=4))
    with pytest.raises(JobError, match="rank: 4 is not below"):
        next(make(tmp_path, stores, rank=4, world=4, peers=SingleProcess()))
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(JobError, match=r"WORLD_SIZE=2, but torch\.distributed is not initialised"):
        next(make(tmp_path, stores))
    monkeypatch.delenv("WORLD_SIZE")
    with pytest.raises(JobError, match="schema None is not"):
        make(tmp_path, stores).load_state_dict({})
    with make(tmp_path, stores) as loader:
        steps(loader, 2)
        state = loader.state_dict()
        with pytest.raises(JobError, match="of run 'r', not 'q'"):
            make(tmp_path, stores, run="q").load_state_dict(state)
        loader.load_state_dict(state)
        next(loader)
    with pytest.raises(JobError, match=r"went on from step-00000002, and no state was loaded"):
        next(make(tmp_path, stores))
    assert not (tmp_path / "run" / "mixture.json").exists()


class Wrapped(IterableDataset[Any]):
    def __init__(self, loader: MixtureLoader) -> None:
        self.loader = loader

    def __iter__(self) -> Iterator[Any]:
        return iter(self.loader)


def test_a_loader_in_workers_is_refused(tmp_path: Path, stores: dict[str, Path]) -> None:
    wrapped = Wrapped(make(tmp_path, stores))
    with pytest.raises(JobError, match=r"^MixtureLoader: num_workers=1: .*; set num_workers=0$"):
        next(iter(DataLoader(wrapped, batch_size=None, num_workers=1)))


CONFIG = """
run: {{id: r, dir: run, seed: 3}}
budget: {budget}
sources:
  a: {{path: {a}, weight: 0.5, tags: [x]}}
  b: {{path: {b}, weight: 0.5, tokens: 1M}}
  c: {{path: {c}, standby: true}}
evals: {{every: 100k, benchmarks: {{gsm8k: {{}}}}}}
policy: {{use: rules}}
trainer:
  {{sequence_length: 8, micro_batch: 4, accumulation: 2, poll_every: 5, limits: {{cap: 0.99}}}}
"""


def write_config(folder: Path, stores: Mapping[str, Path]) -> Path:
    path = folder / "run.yaml"
    links = {name: os.path.relpath(store, folder) for name, store in stores.items()}
    path.write_text(CONFIG.format(budget=60 * QUANTUM * LENGTH, **links))
    return path


def test_both_sides_read_the_same_job(tmp_path: Path, stores: dict[str, Path]) -> None:
    path = write_config(tmp_path, stores)
    job = load_run(path)
    assert job == job_of(load_config(path))
    assert job.settings.checkpoint_every == 100_000
    assert job.limits.cap == 0.99
    with MixtureLoader.from_config(path, status_every=3) as loader:
        assert loader.job.settings.status_every == 3
        assert steps(loader, 4) == pure(tmp_path, 4 * QUANTUM)
    with pytest.raises(JobError, match="microbatch: no such option"):
        MixtureLoader.from_config(path, microbatch=3)
    path.write_text(path.read_text().replace("seed: 3", "seed: 3, speed: 4"))
    with pytest.raises(JobError, match=r"run\.yaml: run\.speed: unknown key"):
        MixtureLoader.from_config(path)


def launch(world: int, config: Path, out: Path, *more: str, killed: bool = False) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ranks = []
    for rank in range(world):
        places = {"RANK": rank, "WORLD_SIZE": world, "MASTER_PORT": port}
        environment = os.environ | {k: str(v) for k, v in places.items()}
        environment["MASTER_ADDR"] = "127.0.0.1"
        command = [sys.executable, str(LOOP), str(config), str(out), *more]
        ranks.append(subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True))
    for rank in ranks:
        errors = rank.communicate(timeout=120)[1]
        assert rank.returncode == (-9 if killed else 0), errors


def consumed(out: Path) -> list[int]:
    """The global sequence that was trained on; of what was done twice, the second time."""
    ranks = [
        {
            (line["step"], line["micro"]): line
            for line in map(json.loads, path.read_text().splitlines())
        }
        for path in sorted(out.glob("trace-*.jsonl"))
    ]
    return [
        token
        for key in sorted(ranks[0])
        for rank in range(ranks[0][key]["world"])
        for token in ranks[rank][key]["first"]
    ]


def test_ranks_killed_and_resumed_as_one_are_as_if_never_killed(
    tmp_path: Path, stores: dict[str, Path]
) -> None:
    config = write_config(tmp_path, stores)
    launch(2, config, tmp_path, "--orders", "--micro-batch", "2", "--kill", "33", killed=True)
    last = [(tmp_path / f"trace-{n}.jsonl").read_text().splitlines()[-1] for n in range(2)]
    changes = [json.loads(line)["changes"] for line in last]
    assert changes[0] == changes[1]
    assert changes[0]
    assert len(consumed(tmp_path)) == 33 * QUANTUM
    launch(1, config, tmp_path, "--orders")  # one rank with four rows goes on with the same order
    assert consumed(tmp_path) == pure(tmp_path, 60 * QUANTUM)
    assert len(read_schedule(RunPaths(tmp_path / "run").schedule).segments) > 2


class Crowd(SingleProcess):
    """One of very many ranks, which all hear what this one says."""

    def __init__(self, rank: int, world: int) -> None:
        self.rank, self.world = rank, world

    def share(self, value: Any) -> Any:
        return value


def test_a_thousand_sources_ten_thousand_ranks_long_history(tmp_path: Path) -> None:
    many = {f"s{i:03}": write_store(tmp_path / "s" / f"s{i:03}", i % 60, 3) for i in range(1000)}
    share = dict.fromkeys(many, 1 / 1000)
    quantum = 10_000

    def timed(name: str, world: int, history: int) -> tuple[float, int]:
        folder = tmp_path / name
        paths = RunPaths(folder / "run")
        options: dict[str, Any] = {"weights": share, "budget": "10T", "prefetch": 0}
        place = {"rank": 0, "world": world, "peers": Crowd(0, world)}
        settings = {"micro_batch": quantum // world, "accumulation": 1, "poll_every": 1000}
        with make(folder, many, **options, **place, **settings) as loader:
            next(loader)
            loader.load_state_dict({**loader.state_dict(), "step": 0, "sample": 0})
        writer = ScheduleWriter(paths.schedule)
        swap = dict(zip(many, quantise(share).values(), strict=True))
        first, second = list(many)[:2]
        for n in range(1, history):
            swap[first] += 1 - 2 * (n % 2)
            swap[second] -= 1 - 2 * (n % 2)
            writer.append(SegmentLine(1, n * quantum, n, swap, 1, n))
        with make(folder, many, **options, **place, **settings, rewind=False) as loader:
            last = (history - 1) * quantum
            state = {"switches": [[last, history - 1]], "sample": last + quantum}
            base = {"schema": "mixloop/loader/1", "run": "r", "step": history, "micro": 0}
            rest = {"begun": 0, "quantum": quantum, "sequence_length": LENGTH, "seed": 3}
            loader.load_state_dict(base | rest | state | {"incarnation": 1})
            next(loader)
            times = []
            for _ in range(8):
                before = time.thread_time()
                next(loader)
                times.append(time.thread_time() - before)
            return min(times), len(json.dumps(loader.state_dict()))

    few, small = timed("few", 1, 2)
    crowd, crowded = timed("crowd", 10_000, 2)
    old, grown = timed("old", 10_000, 24)
    assert crowd < 2 * few
    assert old < 3 * crowd
    assert max(crowded, grown) < small + 200
    opened = read_schedule(RunPaths(tmp_path / "old" / "run").schedule).latest_open
    assert isinstance(opened, OpenLine)
    assert opened.world_size == 10_000


def test_a_fork_begins_as_the_run_did(
    tmp_path: Path, stores: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    run, new = tmp_path / "run", tmp_path / "new" / "run"
    with make(tmp_path, stores) as loader:
        tokens = steps(loader, 2)
        tokens += heard(tmp_path, loader, 1, b=0.5, c=0.5)
        while loader.weights["c"] == 0:
            tokens += steps(loader, 1)
        at = loader.step
        state, drawn = loader.state_dict(), loader.drawn()
        order(tmp_path, 2, {"a": 1.0})
        steps(loader, 8)
        assert loader._incarnation is not None
        moment = StepMetrics(loader.step, loader.sample, None, None, None, None, {})
        manifest = loader._incarnation.live.manifest(moment, loader.drawn())
        assert manifest is not None

        def write(folder: Path) -> None:
            (folder / "weights").write_bytes(b"w")

        checkpoint_store.save(RunPaths(run).checkpoints, at, write, manifest)
    with pytest.raises(JobError, match="has come to step"):
        fork_run(run, new, "f", step=55)
    with pytest.raises(JobError, match="is inside step 1; fork at a step"):
        fork_run(run, new, "f", sample=QUANTUM + 1)
    result = CliRunner().invoke(
        app, ["fork", str(run), str(new), "--at", str(at), "--id", "f", "--json"]
    )
    assert result.exit_code == 0, result.output
    assert json.loads(result.output)["sample"] == at * QUANTUM
    checkpoint = checkpoint_store.newest(RunPaths(new).checkpoints)
    assert checkpoint is not None
    assert (checkpoint[0].name, checkpoint[1].run) == (checkpoint_store.folder_name(at), "f")
    assert (checkpoint[0] / "weights").read_bytes() == b"w"
    with pytest.raises(JobError, match="a run lies there already"):
        fork_run(run, new, "f", step=at)
    newest = status(tmp_path / "new")
    assert (newest.run, newest.step, newest.accepted.generation) == ("f", at, 1)
    assert {name: s.tokens // LENGTH for name, s in newest.sources.items()} == drawn
    with pytest.raises(JobError, match="no state was loaded"):
        next(make(tmp_path / "new", stores, run="f"))
    with make(tmp_path / "new", stores, run="f") as forked:
        with pytest.raises(JobError, match=f"was forked from 'r' at sample {at * QUANTUM}"):
            forked.load_state_dict({**state, "sample": state["sample"] - QUANTUM})
        forked.load_state_dict(state)
        assert forked.weights == forked._start
        tokens += steps(forked, 1)
        assert forked.weights["c"] == 0.5
        tokens += steps(forked, 3)
        write_order(RunPaths(new).mixture, Order("f", 1, 2, {"b": 1.0}))
        while recorded(tmp_path / "new") < 2:
            tokens += steps(forked, 1)
            time.sleep(0.005)
    assert tokens == pure(tmp_path / "new", len(tokens))
    assert read_schedule(RunPaths(run).schedule).accepted[1] <= 2
