"""MixtureDataset under DataLoader workers: order, switches, states, and what is refused."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch.utils.data import DataLoader

from mixloop.contract import Order, RunPaths, read_schedule, read_status, write_order
from mixloop.trainer.config import JobError
from mixloop.trainer.loader import MixtureDataset
from mixloop.trainer.loader.incarnation import Change
from mixloop.trainer.mixing import MixtureOrder
from mixloop.trainer.sources import StoreInfo

LENGTH, ROWS, MICROS = 8, 4, 2
QUANTUM = ROWS * MICROS
SIZES = {"a": 53, "b": 101, "c": 149}
STEPS = 80
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = {}
    for number, (name, samples) in enumerate(SIZES.items()):
        folder = made[name] = tmp_path_factory.mktemp(name)
        tokens = np.zeros((samples, LENGTH), "<u2")
        tokens[:, 0] = number * 1000 + np.arange(samples)
        tokens.tofile(folder / "tokens.bin")
        info = StoreInfo(tokens.size, 1, "uint16", 2**16, "t", f"sha256:{name}", 0)
        (folder / "store.json").write_text(json.dumps(info.to_json()))
    return made


def make(folder: Path, stores: Mapping[str, Path], **options: Any) -> MixtureDataset:
    values: dict[str, Any] = {
        "run": "r",
        "budget": STEPS * QUANTUM * LENGTH,
        "weights": {"a": 0.5, "b": 0.5},
        "seed": 3,
        "sequence_length": LENGTH,
        "micro_batch": ROWS,
        "accumulation": MICROS,
        "poll_every": 4,
    }
    return MixtureDataset(folder / "run", sources=stores, **(values | options))


def pure(folder: Path, samples: int) -> list[int]:
    """First tokens of the global order, from `schedule.jsonl` alone."""
    schedule = read_schedule(RunPaths(folder / "run").schedule)
    opened = schedule.latest_open
    assert opened is not None
    sizes = {entry.name: entry.samples for entry in opened.sources}
    source, index = MixtureOrder(sizes, opened.seed, schedule.mixture).batch(0, samples)
    return [int(token) for token in source * 1000 + index]


def firsts(batch: Mapping[str, Any]) -> list[int]:
    return [int(token) for token in batch["input_ids"][:, 0]]


def train(
    dataset: MixtureDataset, batches: Iterator[Any], steps: int | None = None, pause: float = 0.0
) -> list[int]:
    """Some steps, or all there are, each reported; their first tokens."""
    seen: list[int] = []
    for micro, batch in enumerate(batches, start=1):
        seen += firsts(batch)
        if micro % MICROS == 0:
            dataset.report(loss=1.0, lr=0.1, losses=batch["source"] * 1.0, source=batch["source"])
            time.sleep(pause)
            if micro // MICROS == steps:
                break
    return seen


def order(folder: Path, generation: int, weights: Mapping[str, float]) -> None:
    write_order(RunPaths(folder / "run").mixture, Order("r", 1, generation, weights))


@pytest.mark.parametrize(
    "how",
    [
        {"num_workers": 0},
        {"num_workers": 3},
        {"num_workers": 2, "prefetch_factor": 4, "persistent_workers": True},
        {"num_workers": 1, "multiprocessing_context": "spawn"},
    ],
    ids=["none", "fork", "persistent", "spawn"],
)
def test_a_change_reaches_the_workers_at_its_sample(
    tmp_path: Path, stores: dict[str, Path], how: dict[str, Any]
) -> None:
    told: list[tuple[int, Change]] = []
    with make(tmp_path, stores, prefetch_factor=how.get("prefetch_factor", 2)) as dataset:
        dataset.on_change = lambda change: told.append((dataset.step, change))
        batches = iter(DataLoader(dataset, batch_size=None, **how))
        seen = train(dataset, batches, steps=3)
        order(tmp_path, 1, {"a": 0.25, "b": 0.25, "c": 0.5})
        seen += train(dataset, batches, pause=0.01)
        assert seen == pure(tmp_path, STEPS * QUANTUM)
        [(step, change)] = told
        assert change.step == step == change.sample // QUANTUM
        assert dataset.weights["c"] == 0.5
        assert dataset.drawn() == {
            name: sum(token // 1000 == number for token in seen)
            for number, name in enumerate(SIZES)
        }
        assert len(dataset) == STEPS * MICROS
        del batches
    found = read_status(RunPaths(tmp_path / "run").status).value
    assert found is not None
    assert (found.finished, found.step, found.in_force.sample) == (True, STEPS, change.sample)
    assert found.sources["c"].loss == 2.0


def test_workers_go_on_from_a_reported_state(tmp_path: Path, stores: dict[str, Path]) -> None:
    with make(tmp_path, stores) as dataset:
        batches = iter(DataLoader(dataset, batch_size=None, num_workers=2))
        seen = train(dataset, batches, steps=11)
        state = json.loads(json.dumps(dataset.state_dict()))
        assert (state["step"], state["micro"]) == (11, 0)
        order(tmp_path, 1, {"c": 1.0})
        train(dataset, batches, steps=20, pause=0.01)
        del batches
    assert len(read_schedule(RunPaths(tmp_path / "run").schedule).segments) == 2
    for workers in (3, 0):  # any number of them
        with make(tmp_path, stores) as again:
            again.load_state_dict(state)
            rest = train(again, iter(DataLoader(again, batch_size=None, num_workers=workers)))
        assert seen + rest == pure(tmp_path, STEPS * QUANTUM)


def test_a_second_loop_goes_on_from_what_was_reported(
    tmp_path: Path, stores: dict[str, Path]
) -> None:
    with make(tmp_path, stores) as dataset:
        loader = DataLoader(dataset, batch_size=None, num_workers=2, persistent_workers=True)
        seen = train(dataset, iter(loader), steps=5)
        seen += train(dataset, iter(loader), steps=5)
        loader = DataLoader(dataset, batch_size=None, num_workers=4)  # new ones, and more of them
        seen += train(dataset, iter(loader))
        assert seen == pure(tmp_path, STEPS * QUANTUM)
        assert list(DataLoader(dataset, batch_size=None, num_workers=2)) == []


def test_a_loop_that_does_not_report_is_stopped(tmp_path: Path, stores: dict[str, Path]) -> None:
    with make(tmp_path, stores) as dataset:
        batches = iter(DataLoader(dataset, batch_size=None, num_workers=2))
        with pytest.raises(JobError, match=r"call dataset\.report\(\) after every step"):
            list(batches)
        del batches


def test_what_is_in_the_way_is_told_by_the_workers(tmp_path: Path, stores: dict[str, Path]) -> None:
    with make(tmp_path, stores) as dataset:
        train(dataset, iter(DataLoader(dataset, batch_size=None, num_workers=1)), steps=2)
        state = dataset.state_dict()
    with make(tmp_path, stores, micro_batch=3) as dataset:
        dataset.load_state_dict(state)
        with pytest.raises(JobError, match="a step takes 6 samples now"):
            next(iter(DataLoader(dataset, batch_size=None, num_workers=2)))
    with make(tmp_path, stores, run="q") as dataset, pytest.raises(JobError, match="not 'q'"):
        dataset.load_state_dict(state)


def test_a_dataset_left_alone_leaves_nothing_behind(
    tmp_path: Path, stores: dict[str, Path]
) -> None:
    dataset = make(tmp_path, stores)
    folder = dataset._board.folder
    assert folder.is_dir()
    del dataset
    deadline = time.monotonic() + 10
    while folder.exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.filterwarnings("ignore:'set_vital' is deprecated")  # torchdata's call
@pytest.mark.parametrize("workers", [0, 3])
@pytest.mark.parametrize("steps", [17, 0])
def test_torchdatas_loader_is_exact_to_the_micro_batch(
    tmp_path: Path, stores: dict[str, Path], workers: int, steps: int
) -> None:
    torchdata = pytest.importorskip("torchdata.stateful_dataloader")
    loader_of = torchdata.StatefulDataLoader
    with make(tmp_path, stores) as dataset:
        loader = loader_of(dataset, batch_size=None, num_workers=workers)
        batches = iter(loader)
        seen: list[int] = []
        if steps:
            seen += train(dataset, batches, steps=9)
            order(tmp_path, 1, {"c": 1.0})
            seen += train(dataset, batches, steps=steps - 9, pause=0.01)
        seen += firsts(next(batches))  # in the middle of a step
        state = json.loads(json.dumps(loader.state_dict()))
        seen_on = firsts(next(batches))
        dataset.report()
        train(dataset, batches, steps=5)
        del batches, loader
    with make(tmp_path, stores) as again:
        loader = loader_of(again, batch_size=None, num_workers=workers)
        loader.load_state_dict(state)
        batches = iter(loader)
        assert firsts(next(batches)) == seen_on
        again.report(loss=1.0)
        seen += seen_on + train(again, batches)
        del batches, loader
    assert len(read_schedule(RunPaths(tmp_path / "run").schedule).segments) == 1 + (steps > 0)
    assert seen == pure(tmp_path, STEPS * QUANTUM)
