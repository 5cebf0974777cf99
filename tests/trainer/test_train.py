"""Real training runs of a tiny model: switches, crashes, ranks, rewinds, bad orders, signals."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from mixloop.cli.audit import examine
from mixloop.contract import (
    BatchSchedule,
    OpenLine,
    Order,
    RunPaths,
    ScheduleWriter,
    SegmentLine,
    Stage,
    Status,
    read_manifest,
    read_schedule,
    read_status,
    write_holds,
    write_order,
    write_status,
)
from mixloop.trainer.config import Job, JobError
from mixloop.trainer.mixing import MixtureOrder
from mixloop.trainer.prepare import prepare
from mixloop.trainer.reference import Session, Trainer, session
from mixloop.trainer.run import (
    Incarnation,
    SingleProcess,
    begin,
    checkpoint_retry,
    checkpoint_store,
    plan_resume,
)
from mixloop.trainer.sources import open_stores, train_tokenizer
from mixloop.trainer.train import Stop, main, train

LENGTH = 16
WEIGHTS = {"web": 0.6, "code": 0.3, "maths": 0.1}
OTHER = {"web": 0.2, "code": 0.2, "maths": 0.6}
WORDS = [
    "the",
    "of",
    "a",
    "loop",
    "mixes",
    "data",
    "while",
    "model",
    "learns",
    "to",
    "read",
    "write",
    "and",
    "count",
]


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stores")
    random = np.random.default_rng(0)
    train_tokenizer([" ".join(WORDS)] * 3, folder / "tokenizer", 280)
    for size, name in enumerate(WEIGHTS, start=2):
        lines = [" ".join(random.choice(WORDS, 40)) for _ in range(20 * size)]
        (folder / f"{name}.jsonl").write_text("\n".join(json.dumps({"text": t}) for t in lines))
        prepare([str(folder / f"{name}.jsonl")], folder / name, str(folder / "tokenizer"))
    return folder


def make_job(folder: Path, stores: Path, *, steps: int = 40, **settings: Any) -> Job:
    """A job of `steps` steps of 8 samples, whatever the layout."""
    tiny = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    values = {
        "model": {**tiny, "num_attention_heads": 2},
        "sequence_length": LENGTH,
        "micro_batch": 4,
        "accumulation": 2,
        "threads": 1,
        "device": "cpu",
        "poll_every": 5,
        "status_every": 2,
        "warmup": 20 * LENGTH,
        "checkpoint_every": 80 * LENGTH,  # every 10 steps
    }
    body = {
        "run": "tiny",
        "dir": str(folder),
        "seed": 5,
        "budget": steps * 8 * LENGTH,
        "sources": {n: {"path": str(stores / n), "weight": w} for n, w in WEIGHTS.items()},
        "settings": values | settings,
    }
    return Job.model_validate(body)


def write_job(job: Job, path: Path) -> str:
    path.write_text(job.model_dump_json())
    return str(path)


def read_trace(path: Path) -> dict[int, dict[str, Any]]:
    """Trace lines by step; of a step taken twice (crash, resume) the last."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return {line["step"]: line for line in lines}


def final_weights(folder: Path) -> bytes:
    newest = sorted((folder / "checkpoints").iterdir())[-1]
    return (newest / "model.safetensors").read_bytes()


def wait_for(path: Path, wanted: Callable[[Status], bool], seconds: float = 60) -> Status:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        status = read_status(path).value
        if status is not None and wanted(status):
            return status
        time.sleep(0.005)
    raise AssertionError(f"not seen in {path} in {seconds} s: {read_status(path).value}")


@contextmanager
def beside(work: Callable[[], None]) -> Iterator[None]:
    """Run `work` in a thread while the trainer runs in this one; then SIGTERM the trainer."""
    problems: list[BaseException] = []

    def guarded() -> None:
        try:
            work()
        except BaseException as error:
            problems.append(error)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=guarded)
    thread.start()
    yield
    thread.join()
    if problems:
        raise problems[0]


def recorded_order(job: Job) -> MixtureOrder:
    """The data order, from nothing but the schedule file and the stores."""
    sizes = {name: store.samples(LENGTH) for name, store in open_stores(job).items()}
    return MixtureOrder(sizes, job.seed, read_schedule(RunPaths(job.dir).schedule).mixture)


def test_a_run_reports_and_saves_what_it_did(tmp_path: Path, stores: Path) -> None:
    job = make_job(tmp_path / "run", stores, decay=160 * LENGTH, keep=2)
    assert train(job, trace=tmp_path / "trace") == 0
    paths = RunPaths(job.dir)
    status = read_status(paths.status).value
    assert status is not None
    assert (status.step, status.sample, status.tokens) == (40, 320, job.budget)
    assert status.finished
    assert status.phase == "decay"
    assert sum(source.tokens for source in status.sources.values()) == status.tokens
    drawn = recorded_order(job).drawn(320)
    opened = open_stores(job)
    for name, source in status.sources.items():
        assert source.tokens == drawn[name] * LENGTH
        assert source.unique_tokens == opened[name].samples(LENGTH) * LENGTH
        assert source.epochs == pytest.approx(drawn[name] / opened[name].samples(LENGTH))
        assert source.loss is not None
        assert 0 < source.loss < 7
    names = sorted(path.name for path in paths.checkpoints.iterdir())
    assert names == ["step-00000030", "step-00000040"]
    manifest = read_manifest(paths.checkpoints / names[-1]).value
    assert manifest is not None
    assert {name: s.tokens for name, s in manifest.sources.items()} == {
        name: s.tokens for name, s in status.sources.items()
    }
    assert {"model.safetensors", "config.json", "tokenizer.json", "trainer_state.pt"} <= set(
        manifest.files
    )
    assert train(job) == 0  # spent: nothing to do, nothing written
    assert read_status(paths.status).value == status
    write_status(paths.status, replace(status, finished=False))  # killed just before the end
    assert train(job) == 0
    ended = read_status(paths.status).value
    assert ended is not None
    assert ended.finished


def test_a_model_of_a_tokenizer_without_eos_names_none(tmp_path: Path) -> None:
    folder = train_tokenizer(["some text of a corpus"] * 9, tmp_path / "tokenizer", 270)
    (folder / "tokenizer_config.json").write_text("{}")
    text = tmp_path / "a.txt"
    text.write_text("some text of a corpus " * 300)
    for name in WEIGHTS:
        prepare([str(text)], tmp_path / name, str(folder), eos=False)
    job = make_job(tmp_path / "run", tmp_path, steps=10)
    assert train(job) == 0
    config = json.loads((job.dir / "checkpoints" / "step-00000010" / "config.json").read_text())
    assert config["eos_token_id"] is None
    assert config["bos_token_id"] is None


def test_a_checkpoint_loads_in_transformers_and_gives_the_loss_we_report(
    tmp_path: Path, stores: Path
) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from mixloop.trainer.reference.model import sequence_losses

    job = make_job(tmp_path / "run", stores, steps=10)
    assert train(job) == 0
    folder = job.dir / "checkpoints" / "step-00000010"
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert model.config.eos_token_id == tokenizer.eos_token_id
    ids = torch.from_numpy(open_stores(job)["code"].gather(np.arange(3), LENGTH))
    with torch.no_grad():
        ours = sequence_losses(model, ids)
        theirs = [model(input_ids=row[None], labels=row[None]).loss for row in ids]
    assert torch.allclose(ours, torch.stack(theirs), atol=1e-5)
    again = make_job(tmp_path / "more", stores, steps=4, model=None, init_from=str(folder))
    assert train(again) == 0


def test_killed_and_resumed_is_bit_identical_to_never_killed(tmp_path: Path, stores: Path) -> None:
    job = make_job(tmp_path / "run", stores, steps=100_000)
    paths = RunPaths(job.dir)
    command = [sys.executable, "-m", "mixloop.trainer.train", write_job(job, tmp_path / "job.json")]
    process = subprocess.Popen([*command, "--trace", str(tmp_path / "crashed")])
    try:
        wait_for(paths.status, lambda s: s.step >= 20)
        write_order(paths.mixture, Order("tiny", 1, 1, OTHER))
        killed = wait_for(
            paths.status, lambda s: s.in_force.generation == 1 and s.step > s.in_force.step + 4
        )
    finally:
        process.kill()
        process.wait()
    switch = next(s for s in read_schedule(paths.schedule).segments if s.generation == 1)
    crashed = read_trace(tmp_path / "crashed")
    with paths.schedule.open("ab") as file:
        file.write(b'{"schema":"mixloop/schedule/1","line":"segm')  # torn by the crash
    for step, folder in checkpoint_store.list_steps(paths.checkpoints).items():
        if step * 8 > switch.sample - 16:  # and so were the last checkpoints
            os.truncate(folder / "model.safetensors", 100)

    end = max(crashed) + 20
    shorter = make_job(job.dir, stores, steps=end)
    assert train(shorter, trace=tmp_path / "resumed") == 0
    resumed = read_trace(tmp_path / "resumed")
    opened = read_schedule(paths.schedule).latest_open
    assert opened is not None
    assert (opened.incarnation, opened.parent is not None) == (2, True)
    assert opened.sample < switch.sample <= killed.sample
    shared = set(crashed) & set(resumed)
    assert min(shared) * 8 < switch.sample < max(shared) * 8
    for step in shared:
        assert crashed[step] == resumed[step]

    calm = make_job(tmp_path / "calm", stores, steps=end)
    calm.dir.mkdir()
    begun, *lines = paths.schedule.read_bytes().splitlines(keepends=True)
    rest = [line for line in lines if b'"line":"open"' not in line]  # it was never resumed
    RunPaths(calm.dir).schedule.write_bytes(b"".join([begun, *rest]))
    assert train(calm, trace=tmp_path / "uninterrupted") == 0
    uninterrupted = read_trace(tmp_path / "uninterrupted")
    assert sorted(uninterrupted) == list(range(end))
    for step, line in uninterrupted.items():
        assert line == resumed.get(step, crashed.get(step))
    assert final_weights(calm.dir) == final_weights(job.dir)
    status = read_status(RunPaths(calm.dir).status).value
    assert status is not None
    assert (status.in_force.generation, status.in_force.sample) == (1, switch.sample)


def test_two_ranks_switch_together_and_draw_the_single_rank_order(
    tmp_path: Path, stores: Path
) -> None:
    layout = {"micro_batch": 2, "accumulation": 2}
    job = make_job(tmp_path / "run", stores, steps=120, processes=2, poll_every=10, **layout)
    paths = RunPaths(job.dir)
    job.dir.mkdir()
    write_order(paths.mixture, Order("tiny", 1, 1, OTHER))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = ["-m", "mixloop.trainer.train", write_job(job, tmp_path / "job.json")]
    done = subprocess.run(
        [*torchrun, *command, "--trace", str(tmp_path / "trace")],
        env={name: value for name, value in os.environ.items() if name != "RANK"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    status = read_status(paths.status).value
    assert status is not None
    assert (status.world_size, status.step, status.in_force.generation) == (2, 120, 1)
    ranks = [read_trace(tmp_path / "trace"), read_trace(tmp_path / "trace.rank1")]
    order = recorded_order(job)
    for step in range(120):
        source, index = order.batch(step * 8, 8)
        for rank, trace in enumerate(ranks):
            # position p of a step is (micro * world + rank) * rows + row
            for key, expected in (("source", source), ("index", index)):
                got = np.array(trace[step][key])
                assert got.tolist() == expected.reshape(2, 2, 2)[:, rank].tolist()

    # one rank at the same quantum, by the same schedule, draws the same
    alone = make_job(tmp_path / "alone", stores, steps=120)
    alone.dir.mkdir()
    shutil.copy(paths.schedule, RunPaths(alone.dir).schedule)
    assert train(alone, trace=tmp_path / "single") == 0
    for step, line in read_trace(tmp_path / "single").items():
        assert np.ravel(line["index"]).tolist() == order.batch(step * 8, 8)[1].tolist()
    one = read_status(RunPaths(alone.dir).status).value
    assert one is not None
    for name, source_status in one.sources.items():
        theirs = status.sources[name]
        assert source_status.tokens == theirs.tokens
        assert source_status.loss == pytest.approx(theirs.loss, rel=0.02)


def test_ranks_stop_together_with_a_checkpoint(tmp_path: Path, stores: Path) -> None:
    job = make_job(
        tmp_path / "run", stores, steps=10**6, micro_batch=2, processes=2, checkpoint_every=None
    )
    command = [sys.executable, "-m", "mixloop.trainer.train", write_job(job, tmp_path / "job.json")]
    process = subprocess.Popen(command)
    try:
        status = wait_for(RunPaths(job.dir).status, lambda s: s.step >= 4)
        assert (status.world_size, status.pid != process.pid) == (2, True)
        process.terminate()
        assert process.wait(60) == 130
    finally:
        process.kill()
        process.wait()
    assert len(list(RunPaths(job.dir).checkpoints.iterdir())) == 1


def malformed(good: bytes) -> Iterator[bytes]:
    """Orders no trainer may follow, made from a good one."""
    body = json.loads(good)
    yield from (b"", b"{", b"null", b"[]", b"\xff\xfe", good[:-30], b"[" * 5000, good * 2)
    for key, value in (
        ("schema", "mixloop/order/9"),
        ("run", "another"),
        ("generation", "2"),
        ("fence", -1),
        ("weights", {"web": 1.5, "code": -0.5}),
        ("weights", {"web": 0.5}),
        ("weights", {"elsewhere": 1.0}),
        ("weights", {"web": True}),
        ("checksum", "sha256:0"),
    ):
        yield json.dumps(body | {key: value}).encode()


def test_no_malformed_order_stops_or_changes_a_run(
    tmp_path: Path, stores: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    job = make_job(tmp_path / "run", stores, steps=10**6, checkpoint_every=None, poll_every=1)
    paths = RunPaths(job.dir)
    seen: list[Status] = []

    def steer() -> None:
        wait_for(paths.status, lambda s: s.step > 5)
        write_order(tmp_path / "good.json", Order("tiny", 1, 1, OTHER))
        good = (tmp_path / "good.json").read_bytes()
        for _ in range(20):
            for data in malformed(good):
                paths.mixture.write_bytes(data)
                time.sleep(0.002)
        paths.mixture.unlink()
        paths.mixture.mkdir()
        time.sleep(0.02)
        paths.mixture.rmdir()
        paths.mixture.symlink_to(tmp_path / "good.json")
        time.sleep(0.02)
        paths.mixture.unlink()
        now = wait_for(paths.status, lambda s: True).step
        seen.append(wait_for(paths.status, lambda s: s.step > now + 5))
        write_order(paths.mixture, Order("tiny", 1, 1, OTHER))
        seen.append(wait_for(paths.status, lambda s: s.in_force.generation == 1))

    with beside(steer):
        assert train(job) == 130
    before, after = seen
    assert before.in_force.weights == pytest.approx(WEIGHTS, abs=1e-6)
    assert (before.accepted.generation, before.pending) == (0, None)
    assert len(before.rejected) == 8
    assert all(rejected.reason for rejected in before.rejected)
    assert after.in_force.weights == pytest.approx(OTHER, abs=1e-6)
    assert [s.generation for s in read_schedule(paths.schedule).segments] == [0, 1]
    assert "order rejected: " in capfd.readouterr().err
    # SIGTERM left a checkpoint to go on from
    last = read_status(paths.status).value
    assert last is not None
    assert not last.finished
    assert [path.name for path in paths.checkpoints.iterdir()] == [f"step-{last.step:08d}"]


def test_a_plan_and_a_new_fence_survive_a_restart(tmp_path: Path, stores: Path) -> None:
    job = make_job(tmp_path / "run", stores, steps=10**6, checkpoint_every=None)
    paths = RunPaths(job.dir)
    later = Stage(10**9, {"maths": 1.0})

    def steer() -> None:
        wait_for(paths.status, lambda s: s.step > 5)
        write_order(paths.mixture, Order("tiny", 1, 1, OTHER, then=(later,)))
        wait_for(paths.status, lambda s: s.in_force.generation == 1)
        write_order(paths.mixture, Order("tiny", 4, 1, OTHER, then=(later,)))
        wait_for(paths.status, lambda s: s.accepted.fence == 4)

    with beside(steer):
        assert train(job) == 130
    status = read_status(paths.status).value
    assert status is not None
    stage = (status.step + 30) * 8 * LENGTH - 5
    plan = (Stage(stage, {"maths": 1.0}),)
    # as if the plan had named that count from the start; the shared file is gone
    paths.mixture.unlink()
    write_order(job.dir / "accepted.json", Order("tiny", 4, 1, OTHER, then=plan))
    steps = status.step + 60
    assert train(make_job(job.dir, stores, steps=steps)) == 0
    *_, second, third = read_schedule(paths.schedule).segments
    assert (second.generation, third.generation, third.fence) == (1, 1, 4)
    assert third.sample == (status.step + 30) * 8
    assert third.weights["maths"] == 2**24
    last = read_status(paths.status).value
    assert last is not None
    assert last.in_force.sample == third.sample
    assert (last.accepted.fence, last.accepted.generation) == (4, 1)


def test_another_quantum_needs_rewind(
    tmp_path: Path, stores: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = make_job(tmp_path / "run", stores, steps=10)
    paths = RunPaths(job.dir)
    assert train(job) == 0
    ahead = SegmentLine(1, 160, 20, {"web": 2**24, "code": 0, "maths": 0}, 1, 1)
    ScheduleWriter(paths.schedule).append(ahead)
    wider = make_job(tmp_path / "run", stores, steps=40, micro_batch=6)
    path = write_job(wider, tmp_path / "job.json")
    capsys.readouterr()
    assert main([path]) == 2
    told = capsys.readouterr().err.strip().splitlines()
    assert len(told) == 1
    assert "12 samples" in told[0]
    assert "--rewind" in told[0]
    assert main([path, "--rewind", "--trace", str(tmp_path / "trace")]) == 0
    order = recorded_order(wider)
    trace = read_trace(tmp_path / "trace")
    assert min(trace) == 10
    for line in trace.values():
        source, index = order.batch(line["sample"], 12)
        assert np.ravel(line["source"]).tolist() == source.tolist()
        assert np.ravel(line["index"]).tolist() == index.tolist()
    assert [s.sample for s in read_schedule(paths.schedule).segments] == [0]  # the later is cut
    status = read_status(paths.status).value
    assert status is not None
    assert (status.sample, status.step) == (80 + 12 * 20, 30)


def test_larger_steps_and_changed_sources_in_the_reference_loop(
    tmp_path: Path, stores: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(stores, tmp_path / "stores")
    stores = tmp_path / "stores"
    grows = [{"from": 100 * LENGTH, "batch": 16}, {"from": 200 * LENGTH, "batch": "384 tokens"}]
    steps = [8] * 13 + [16] * 6 + [24] * 5  # 104 + 96 + 120 = 320 samples
    settings = {"accumulation": 1, "batch": 8, "batch_schedule": grows}
    calm = make_job(tmp_path / "calm", stores, **settings)
    assert train(calm, trace=tmp_path / "calm.jsonl") == 0
    undisturbed = read_trace(tmp_path / "calm.jsonl")
    assert [np.size(line["source"]) for line in undisturbed.values()] == steps
    assert not examine(calm.dir, [tmp_path / "calm.jsonl"], []).findings

    job = make_job(tmp_path / "run", stores, steps=22, **settings)  # ends inside the second size
    assert train(job, trace=tmp_path / "first") == 0
    shutil.copytree(job.dir, tmp_path / "same")
    same = job.model_copy(update={"dir": tmp_path / "same", "budget": calm.budget})
    assert train(same, trace=tmp_path / "second") == 0
    assert read_trace(tmp_path / "first") | read_trace(tmp_path / "second") == undisturbed
    assert final_weights(same.dir) == final_weights(calm.dir)

    text = json.dumps({"text": " ".join(WORDS * 20)})
    (tmp_path / "more.jsonl").write_text("\n".join([text] * 30))
    more = str(tmp_path / "more.jsonl")
    prepare([more], stores / "maths", str(stores / "tokenizer"), append=True)
    prepare([more], stores / "new", str(stores / "tokenizer"))
    body = job.model_dump(mode="json") | {"budget": calm.budget + 4000}
    body["sources"] = {"new": {"path": str(stores / "new"), "standby": True}, **body["sources"]}
    changed = Job.model_validate(body)
    capsys.readouterr()
    assert train(changed, trace=tmp_path / "third") == 0
    said = capsys.readouterr()
    assert "sources.new: new to this run" in said.out + said.err
    assert "sources.maths: extended from" in said.out + said.err
    report = examine(
        job.dir, [tmp_path / "first", tmp_path / "third"],
        [f"{name}={stores / name}" for name in (*WEIGHTS, "new")],
    )  # fmt: skip
    assert not report.findings
    assert report.trace is not None
    assert report.trace.verified == report.trace.lines > 24
    status = read_status(RunPaths(job.dir).status).value
    assert status is not None
    assert status.sources["new"].tokens == 0
    maths = open_stores(changed)["maths"]
    assert status.sources["maths"].unique_tokens == maths.samples(LENGTH) * LENGTH


def test_a_newer_incarnation_silences_the_older(
    tmp_path: Path, stores: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    job = make_job(tmp_path / "run", stores, steps=10**6, checkpoint_every=None)
    paths = RunPaths(job.dir)
    heartbeats: list[int] = []

    def steer() -> None:
        wait_for(paths.status, lambda s: s.step > 5)
        opened = read_schedule(paths.schedule).latest_open
        assert opened is not None
        values = {**vars(opened), "incarnation": 2}
        ScheduleWriter(paths.schedule).append(OpenLine(**values))
        for _ in range(2):
            time.sleep(0.3)
            heartbeats.append(wait_for(paths.status, lambda s: True).heartbeat)
        write_order(paths.mixture, Order("tiny", 1, 1, OTHER))
        time.sleep(0.1)

    with beside(steer):
        assert train(job) == 130
    assert heartbeats[0] == heartbeats[1]
    assert not paths.checkpoints.exists()
    assert [s.generation for s in read_schedule(paths.schedule).segments] == [0]
    assert "writes nothing more" in capfd.readouterr().err


def test_held_checkpoints_are_kept(tmp_path: Path, stores: Path) -> None:
    job = make_job(tmp_path / "run", stores, keep=1)
    job.dir.mkdir()
    write_holds(RunPaths(job.dir).holds, [10])
    assert train(job) == 0
    names = sorted(path.name for path in (job.dir / "checkpoints").iterdir())
    assert names == ["step-00000010", "step-00000040"]


class Failing:
    """A call that the disk refuses the first few times."""

    def __init__(self, real: Callable[..., Any], times: int) -> None:
        self._real = real
        self._times = times

    def __call__(self, *arguments: Any) -> Any:
        self._times -= 1
        if self._times >= 0:
            raise OSError(28, "No space left on device")
        return self._real(*arguments)


def test_a_last_checkpoint_that_failed_is_tried_again(
    tmp_path: Path, stores: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make_job(tmp_path / "run", stores, steps=10)
    monkeypatch.setattr(checkpoint_store, "save", Failing(checkpoint_store.save, times=1))
    assert train(job) == 0
    assert [path.name for path in RunPaths(job.dir).checkpoints.iterdir()] == ["step-00000010"]


def test_no_rank_holds_saved_what_another_could_not(tmp_path: Path, stores: Path) -> None:
    class Second(SingleProcess):
        failed = True

        def any(self, flag: bool) -> bool:
            return flag or self.failed

    job, peers = make_job(tmp_path / "run", stores), Second()
    plan = plan_resume(job, open_stores(job), 1, rewind=False)
    trainer: Any = SimpleNamespace(
        peers=peers, recent=list, state=dict, written=dict, release=lambda: None
    )
    session = Session(
        plan,
        Incarnation(1, (), (), {}, BatchSchedule(((0, 8),))),
        trainer,
        cast(Any, None),
        tmp_path,
    )
    assert not session.save()
    assert not session.save()
    peers.failed = False
    assert session.save()


def test_old_checkpoints_that_stay_cost_only_a_word(
    tmp_path: Path,
    stores: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    job = make_job(tmp_path / "run", stores, steps=20, keep=1)
    monkeypatch.setattr(checkpoint_store, "discard", Failing(checkpoint_store.discard, times=99))
    assert train(job) == 0
    told = capsys.readouterr().err
    assert "step 20: old checkpoints not retired: " in told
    assert "not written" not in told
    assert len(list(RunPaths(job.dir).checkpoints.iterdir())) == 2


def test_unreadable_holds_retire_nothing(
    tmp_path: Path, stores: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = make_job(tmp_path / "run", stores, steps=20, keep=1)
    job.dir.mkdir()
    RunPaths(job.dir).holds.write_text("{")
    assert train(job) == 0
    assert "holds.json is unreadable: no checkpoint is retired" in capsys.readouterr().err
    assert len(list(RunPaths(job.dir).checkpoints.iterdir())) == 2


def test_lost_checkpoints_are_no_reason_to_begin_again(tmp_path: Path, stores: Path) -> None:
    job = make_job(tmp_path / "run", stores)
    paths, opened = RunPaths(job.dir), open_stores(job)
    plan = plan_resume(job, opened, 1, rewind=False)  # nothing there: a new run

    def refused(trouble: str) -> None:
        with pytest.raises(JobError, match=trouble) as told:
            plan_resume(job, opened, 1, rewind=False)
        assert str(paths.checkpoints) in str(told.value)
        assert len(str(told.value).splitlines()) == 1

    begin(plan, None)
    plan_resume(job, opened, 1, rewind=False)  # it ended before its first checkpoint
    begin(replace(plan, schedule=read_schedule(paths.schedule), parent=Path("step-00000010")), None)
    refused("no checkpoint there, though this run went on from step-00000010; restore it, or")
    paths.checkpoints.symlink_to(tmp_path / "unmounted")
    refused("a link to nothing")
    paths.checkpoints.unlink()
    paths.checkpoints.touch()
    refused(r"unreadable \(Not a directory\)")
    paths.checkpoints.unlink()
    (paths.checkpoints / "step-00000010").mkdir(parents=True)
    refused("none of its 1 checkpoints is complete")
    assert plan_resume(job, opened, 1, rewind=True).step == 0


def test_a_run_whose_log_is_full_trains_on(
    tmp_path: Path, stores: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make_job(tmp_path / "run", stores, steps=12, log_every=1)
    with contextlib.suppress(OSError), Path("/dev/full").open("w") as full:
        monkeypatch.setattr(sys, "stderr", full)
        code = train(job)
    assert code == 0


def test_a_run_without_room_for_checkpoints_trains_on(
    tmp_path: Path,
    stores: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    job = make_job(tmp_path / "run", stores, steps=12)
    monkeypatch.setattr(checkpoint_store, "save", Failing(checkpoint_store.save, times=99))
    monkeypatch.setattr(session, "LAST_SECONDS", 0.0)
    assert train(job) == 1
    told = capsys.readouterr().err
    assert "step 10: checkpoint not written: [Errno 28] No space left on device; tried ag" in told
    assert "ended without its last checkpoint: no checkpoint since step 10, tried " in told
    status = read_status(RunPaths(job.dir).status).value
    assert status is not None
    assert status.step == 12
    assert status.failed_checkpoint is not None
    assert status.failed_checkpoint.saved is None
    # it is to be gone on with, which the controller waits for
    assert not status.finished
    assert train(job) == 1
    monkeypatch.undo()
    assert train(job) == 0
    status = read_status(RunPaths(job.dir).status).value
    assert status is not None
    assert status.finished
    assert status.failed_checkpoint is None


def test_a_checkpoint_that_failed_is_tried_again_before_the_next_is_due(
    tmp_path: Path,
    stores: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A real full disk: writes fail half-way, what they left goes, older checkpoints stay."""
    job = make_job(tmp_path / "run", stores, steps=39, keep=1, status_every=1)
    paths = RunPaths(job.dir)
    real, tries = Trainer.save, []

    def save(self: Any, folder: Path, *rest: Any) -> None:
        tries.append(folder.name)
        if 1 < len(tries) < 4:  # the second checkpoint's first two tries
            (folder / "model.safetensors").write_bytes(b"half")
            raise OSError(28, "No space left on device")
        assert len(list(paths.checkpoints.glob(".writing-*"))) == 1
        assert len(tries) == 1 or checkpoint_store.newest(paths.checkpoints) is not None
        real(self, folder, *rest)

    monkeypatch.setattr(Trainer, "save", save)
    monkeypatch.setattr(checkpoint_retry, "PAUSE", (0.001, 0.002))
    monkeypatch.setattr(checkpoint_retry, "SHARE", 0)
    assert train(job) == 0
    names = [name.removeprefix(".writing-").split("-")[1] for name in tries]
    assert names[:3] == ["00000010", "00000020", "00000021"]
    assert int(names[3]) < 30
    told = capsys.readouterr().err
    assert f"step {int(names[3])}: checkpoints are written again" in told
    assert [path.name for path in paths.checkpoints.iterdir()] == ["step-00000039"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 6}, "seed: 6 in the job, but this run was begun with 5"),
        ({"run": "other"}, "a checkpoint of run 'tiny', not 'other'"),
        (
            {"sources": {"web": {}, "code": {}}},
            "sources.maths: no longer in the job, but from sample 80 on it has weight",
        ),
    ],
)
def test_a_resume_that_would_not_continue_is_refused(
    tmp_path: Path, stores: Path, change: dict[str, Any], message: str
) -> None:
    job = make_job(tmp_path / "run", stores, steps=10)
    if not (job.dir / "checkpoints").exists():
        assert train(job) == 0
    if "sources" in change:
        change = {"sources": {n: {"path": str(stores / n)} for n in change["sources"]}}
    with pytest.raises(JobError, match=message):
        train(Job.model_validate(job.model_dump() | {"budget": 10**6} | change))
    RunPaths(job.dir).schedule.unlink()
    with pytest.raises(JobError, match=r"schedule\.jsonl: missing"):
        train(job)


def test_every_sigterm_and_sighup_is_the_same_wish(
    monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    now = [100.0]
    monkeypatch.setattr("mixloop.trainer.train.time.monotonic", lambda: now[0])
    # a shell starts what runs in its background with SIGINT ignored
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    with Stop() as stop:
        for _ in range(3):
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGHUP)
            now[0] += 10
        assert stop.asked
        signal.raise_signal(signal.SIGINT)
        now[0] += 1
        signal.raise_signal(signal.SIGINT)  # an echo of the first
        now[0] += 1.5
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)
