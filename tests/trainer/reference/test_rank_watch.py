"""Ranks that are killed or stopped: one line says which, and a restart draws what it would have."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch.distributed import TCPStore

from mixloop.cli.audit import examine
from mixloop.contract import Order, RunPaths, write_order
from mixloop.trainer.config import Job
from mixloop.trainer.prepare import prepare
from mixloop.trainer.reference import RankLostError, RankWatch, rank_watch
from mixloop.trainer.run import checkpoint_store
from mixloop.trainer.sources import train_tokenizer
from mixloop.trainer.train import naming_the_missing

LENGTH, STEPS = 16, 24
WEIGHTS = {"web": 0.6, "code": 0.3, "maths": 0.1}
OTHER = {"web": 0.2, "code": 0.2, "maths": 0.6}


@pytest.fixture
def store() -> Any:
    return TCPStore("127.0.0.1", 0, 1, is_master=True, timeout=timedelta(seconds=5))


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rank_watch, "BEAT_SECONDS", 0.05)
    monkeypatch.setattr(rank_watch, "_LOST_SECONDS", 0.5)


def test_a_rank_that_stops_counting_is_told_of_and_named(store: Any, hasty: None) -> None:
    said: list[str] = []
    watches = [RankWatch(store, r, 3, 60.0, said.append, silent=0.4) for r in range(3)]
    try:
        time.sleep(0.2)
        assert watches[0].lost() is None  # whoever takes long goes on counting
        assert said == []
        watches[1].close()
        lost = watches[0].lost()
        assert isinstance(lost, RankLostError)
        assert lost.missing == [1]
        assert str(lost).startswith("rank 1 of 3 is not heard of any more: killed, stopped")
        assert [lost.told_by(r) for r in range(3)] == [True, False, False]
        end = time.monotonic() + 10
        while not said and time.monotonic() < end:
            time.sleep(0.02)
        assert said == [
            "rank 1 is not heard of for 0 s: the others wait, for 60 s at most "
            "(trainer.rank_timeout)"
        ]
        watches[0].close()
        lost = watches[2].lost()
        assert lost is not None
        assert lost.missing == [0, 1]
        assert lost.told_by(2)
    finally:
        for watch in watches:
            watch.close()


def test_a_store_that_is_gone_is_the_first_ranks_end(store: Any, hasty: None) -> None:
    client = TCPStore("127.0.0.1", store.port, 2, is_master=False, wait_for_workers=False)
    watch = RankWatch(client, 1, 2, 60.0, lambda text: None)
    try:
        lost = watch.lost()  # rank 0 has never counted
        assert lost is not None
        assert lost.missing == [0]
    finally:
        watch.close()


def test_the_missing_are_named_in_place_of_torchs_error(store: Any, hasty: None) -> None:
    watch = RankWatch(store, 0, 2, 60.0, lambda text: None)
    try:
        with pytest.raises(RankLostError, match="rank 1 of 2"), naming_the_missing(watch):
            raise RuntimeError("[pair.cc:547] Connection closed by peer")
        other = RankWatch(store, 1, 2, 60.0, lambda text: None)
        with pytest.raises(RuntimeError, match="our own"), naming_the_missing(watch):
            raise RuntimeError("our own")
        other.close()
    finally:
        watch.close()


def make_stores(folder: Path) -> None:
    random = np.random.default_rng(0)
    words = ["the", "of", "a", "loop", "mixes", "data", "while", "it", "learns", "to", "count"]
    train_tokenizer([" ".join(words)] * 3, folder / "tokenizer", 280)
    for size, name in enumerate(WEIGHTS, start=2):
        lines = [" ".join(random.choice(words, 40)) for _ in range(20 * size)]
        (folder / f"{name}.jsonl").write_text("\n".join(json.dumps({"text": t}) for t in lines))
        prepare([str(folder / f"{name}.jsonl")], folder / name, str(folder / "tokenizer"))


def make_job(folder: Path, stores: Path) -> Path:
    """The file of a job of two ranks that waits 6 s for them; an order lies there already."""
    tiny = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    settings = {
        "model": {**tiny, "num_attention_heads": 2},
        "sequence_length": LENGTH,
        "micro_batch": 2,
        "accumulation": 2,
        "threads": 1,
        "device": "cpu",
        "poll_every": 4,
        "status_every": 2,
        "checkpoint_every": 64 * LENGTH,  # every 8 steps
        "rank_timeout": 6.0,
    }
    job = Job.model_validate(
        {
            "run": "tiny",
            "dir": str(folder / "run"),
            "seed": 5,
            "budget": STEPS * 8 * LENGTH,
            "sources": {n: {"path": str(stores / n), "weight": w} for n, w in WEIGHTS.items()},
            "settings": settings,
        }
    )
    (folder / "run").mkdir(parents=True)
    write_order(RunPaths(job.dir).mixture, Order("tiny", 1, 1, OTHER))
    (folder / "job.json").write_text(job.model_dump_json())
    return folder / "job.json"


def drawn(trace: Path) -> dict[int, Any]:
    """What a rank drew, by step; of a step taken twice it must have been the same."""
    steps: dict[int, Any] = {}
    for line in trace.read_text().splitlines():
        content = json.loads(line)
        kept = {key: content[key] for key in ("sample", "source", "index")}
        assert steps.setdefault(content["step"], kept) == kept
    return steps


def doomed(folder: Path, trials: list[tuple[str, int, int, str]]) -> None:
    """Carry out trials, each with a restart, and see that all is well after each."""
    make_stores(folder)
    listed = []
    for number, (at, nth, rank, fate) in enumerate(trials):
        place = folder / f"{number:02d}-{at}-{fate}-{rank}"
        job = make_job(place, folder)
        first = {"job": str(job), "trace": str(place / "trace"), "at": at}
        first |= {"nth": nth, "rank": rank, "fate": fate}
        listed += [first, first | {"at": None}]
    (folder / "trials.json").write_text(json.dumps(listed))
    script = Path(__file__).parents[2] / "support" / "doomed_ranks.py"
    done = subprocess.run(
        [sys.executable, str(script), str(folder), str(folder / "trials.json")],
        capture_output=True,
        text=True,
        timeout=120 + 60 * len(listed),
        check=False,
    )
    assert done.returncode == 0, done.stderr
    outcomes = [json.loads(line) for line in done.stdout.splitlines()]
    for trial, met, again in zip(listed[::2], outcomes[::2], outcomes[1::2], strict=True):
        well(trial, met, again)


def well(trial: dict[str, Any], met: dict[str, Any], again: dict[str, Any]) -> None:
    about = f"{trial}: {met}, then {again}"
    there = 1 - trial["rank"]
    # with the last checkpoint written there is nothing that a rank would wait for
    done = trial["at"] in ("end", "goodbye") and met["codes"][there] == 0
    if trial["fate"] == "pause":
        assert met["codes"] == [0, 0], about
        assert "not heard of any more" not in "".join(met["said"]), about
    elif not done:
        lines = [line for line in met["said"][there].splitlines() if line.startswith("mixloop")]
        assert met["codes"][there] == 1, about
        assert sum(f"rank {trial['rank']} of 2 is not heard of any more" in x for x in lines) == 1
        assert "Traceback" not in met["said"][there], about
        assert met["seconds"] < 60, about
    assert again["codes"] == [0, 0], about
    job = Job.model_validate_json(Path(trial["job"]).read_text())
    steps = [drawn(Path(trial["trace"] + suffix)) for suffix in ("", ".rank1")]
    assert [sorted(rank) for rank in steps] == [list(range(STEPS))] * 2, about
    assert checkpoint_store.newest(RunPaths(job.dir).checkpoints)[1].step == STEPS, about  # type: ignore[index]
    report = examine(job.dir, [Path(trial["trace"])], [])
    assert report.ok, f"{about}: {report.findings}"
    assert report.trace is not None
    assert report.trace.verified == report.trace.lines


POINTS = {  # and at which call: before the first step, within, and where an order is taken over
    "start": 1,
    "model": 1,
    "first-batch": 1,
    "draw": 11,
    "step": 1,
    "order": 2,
    "order-heard": 2,
    "checkpoint": 1,
    "checkpoint-gathered": 2,
    "checkpoint-written": 1,
    "end": 1,
    "goodbye": 1,
}


@pytest.mark.soak
@pytest.mark.parametrize("fate", ["kill", "stop", "pause"])
@pytest.mark.parametrize("rank", [0, 1])
def test_ranks_killed_and_stopped_in_every_phase(tmp_path: Path, fate: str, rank: int) -> None:
    doomed(tmp_path, [(at, nth, rank, fate) for at, nth in POINTS.items()])
