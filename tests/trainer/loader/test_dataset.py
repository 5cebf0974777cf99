"""MixtureDataset under torch's and torchdata's loaders; workers and accelerate are refused."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
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
RANKS = Path(__file__).parents[2] / "support" / "accelerate_ranks.py"
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folders = {}
    for number, (name, samples) in enumerate(SIZES.items()):
        folder = folders[name] = tmp_path_factory.mktemp(name)
        tokens = np.zeros((samples, LENGTH), "<u2")
        tokens[:, 0] = number * 1000 + np.arange(samples)
        tokens.tofile(folder / "tokens.bin")
        info = StoreInfo(tokens.size, 1, "uint16", 2**16, "t", f"sha256:{name}", 0)
        (folder / "store.json").write_text(json.dumps(info.to_json()))
    return folders


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
    tokens: list[int] = []
    for micro, batch in enumerate(batches, start=1):
        tokens += firsts(batch)
        if micro % MICROS == 0:
            dataset.report(loss=1.0, lr=0.1, losses=batch["source"] * 1.0, source=batch["source"])
            time.sleep(pause)
            if micro // MICROS == steps:
                break
    return tokens


def order(folder: Path, generation: int, weights: Mapping[str, float]) -> None:
    write_order(RunPaths(folder / "run").mixture, Order("r", 1, generation, weights))


def test_a_change_reaches_the_loop_at_its_sample(tmp_path: Path, stores: dict[str, Path]) -> None:
    changes: list[tuple[int, Change]] = []
    with make(tmp_path, stores) as dataset:
        dataset.on_change = lambda change: changes.append((dataset.step, change))
        batches = iter(DataLoader(dataset, batch_size=None))
        tokens = train(dataset, batches, steps=3)
        order(tmp_path, 1, {"a": 0.25, "b": 0.25, "c": 0.5})
        tokens += train(dataset, batches, pause=0.01)
        assert tokens == pure(tmp_path, STEPS * QUANTUM)
        [(step, change)] = changes
        assert change.step == step == change.sample // QUANTUM
        assert dataset.weights["c"] == 0.5
        assert dataset.drawn() == {
            name: sum(token // 1000 == number for token in tokens)
            for number, name in enumerate(SIZES)
        }
        assert len(dataset) == STEPS * MICROS
        assert list(DataLoader(dataset, batch_size=None)) == []
    status = read_status(RunPaths(tmp_path / "run").status).value
    assert status is not None
    assert (status.finished, status.step, status.in_force.sample) == (True, STEPS, change.sample)
    assert status.sources["c"].loss == 2.0


def test_a_second_loop_goes_on_where_the_first_was_left(
    tmp_path: Path, stores: dict[str, Path]
) -> None:
    with make(tmp_path, stores) as dataset:
        tokens = train(dataset, iter(DataLoader(dataset, batch_size=None)), steps=5)
        tokens += train(dataset, iter(DataLoader(dataset, batch_size=None)), steps=5)
        state = json.loads(json.dumps(dataset.state_dict()))
        train(dataset, iter(DataLoader(dataset, batch_size=None)), steps=5)
    with make(tmp_path, stores) as again:
        again.load_state_dict(state)
        tokens += train(again, iter(DataLoader(again, batch_size=None)))
    assert tokens == pure(tmp_path, STEPS * QUANTUM)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_are_refused(tmp_path: Path, stores: dict[str, Path], method: str) -> None:
    with make(tmp_path, stores) as dataset:
        loader = DataLoader(dataset, batch_size=None, num_workers=3, multiprocessing_context=method)
        with pytest.raises(JobError, match=r"^MixtureDataset: [^\n]*; set num_workers=0$"):
            next(iter(loader))
    assert not (tmp_path / "run" / "schedule.jsonl").exists()


STATEFUL = pytest.mark.filterwarnings("ignore:'set_vital' is deprecated")  # torchdata's call


@STATEFUL
def test_workers_of_torchdata_are_refused(tmp_path: Path, stores: dict[str, Path]) -> None:
    torchdata = pytest.importorskip("torchdata.stateful_dataloader")
    with make(tmp_path, stores) as dataset:
        loader = torchdata.StatefulDataLoader(
            dataset, batch_size=None, num_workers=2, snapshot_every_n_steps=5
        )
        with pytest.raises(JobError, match=r"^MixtureDataset: num_workers=2: .*set num_workers=0$"):
            next(iter(loader))


@STATEFUL
@pytest.mark.parametrize("every", [1, 5])
@pytest.mark.parametrize("steps", [17, 0])
def test_torchdatas_loader_is_exact_to_the_micro_batch(
    tmp_path: Path, stores: dict[str, Path], every: int, steps: int
) -> None:
    torchdata = pytest.importorskip("torchdata.stateful_dataloader")

    def loader_of(dataset: MixtureDataset) -> Any:
        return torchdata.StatefulDataLoader(
            dataset, batch_size=None, num_workers=0, snapshot_every_n_steps=every
        )

    with make(tmp_path, stores) as dataset:
        loader = loader_of(dataset)
        batches = iter(loader)
        tokens: list[int] = []
        if steps:
            tokens += train(dataset, batches, steps=9)
            order(tmp_path, 1, {"c": 1.0})
            tokens += train(dataset, batches, steps=steps - 9, pause=0.01)
        tokens += firsts(next(batches))  # in the middle of a step
        state = json.loads(json.dumps(loader.state_dict()))
        following = firsts(next(batches))
        train(dataset, batches, steps=5)
    with make(tmp_path, stores) as again:
        loader = loader_of(again)
        loader.load_state_dict(state)
        batches = iter(loader)
        assert (again.step, again.state_dict()["micro"]) == (steps, 1)
        assert firsts(next(batches)) == following
        again.report(loss=1.0)
        tokens += following + train(again, batches)
    assert len(read_schedule(RunPaths(tmp_path / "run").schedule).segments) == 1 + (steps > 0)
    assert tokens == pure(tmp_path, STEPS * QUANTUM)


@pytest.mark.parametrize("dispatch", [None, True, False])
def test_a_loader_that_accelerate_has_prepared_is_refused(
    tmp_path: Path, stores: dict[str, Path], dispatch: bool | None
) -> None:
    accelerate = pytest.importorskip("accelerate")
    configuration = accelerate.DataLoaderConfiguration(dispatch_batches=dispatch)
    accelerator = accelerate.Accelerator(cpu=True, dataloader_config=configuration)
    with make(tmp_path, stores) as dataset:
        loader = accelerator.prepare(DataLoader(dataset, batch_size=None))
        with pytest.raises(JobError, match=r"^MixtureDataset: .*dispatch_batches.*prepare\(\)"):
            next(iter(loader))


def two_ranks(folder: Path, stores: Mapping[str, Path], dispatch: str) -> list[tuple[str, str]]:
    """What each rank of ``accelerate_ranks.py`` says, on both streams."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(probe.getsockname()[1])}
    place |= {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    sources = json.dumps({name: str(path) for name, path in stores.items()})
    ranks = [
        subprocess.Popen(
            [sys.executable, str(RANKS), str(folder / "run"), sources, dispatch],
            env=os.environ | place | {"RANK": rank, "LOCAL_RANK": rank},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in ("0", "1")
    ]  # fmt: skip
    return [rank.communicate(timeout=60) for rank in ranks]


@pytest.mark.parametrize("dispatch", ["None", "True", "False"])
def test_accelerate_on_two_ranks_is_refused_on_both(
    tmp_path: Path, stores: dict[str, Path], dispatch: str
) -> None:
    """None of them waits for the other."""
    pytest.importorskip("accelerate")
    for out, err in two_ranks(tmp_path, stores, dispatch):
        assert out.startswith("refused: MixtureDataset: accelerate would deal"), err


def test_accelerate_trains_the_model_on_batches_that_are_left_out_of_it(
    tmp_path: Path, stores: dict[str, Path]
) -> None:
    pytest.importorskip("accelerate")
    told = two_ranks(tmp_path, stores, "out")
    assert all(out.startswith("rows: ") for out, _ in told), told
    first, second = (json.loads(out.removeprefix("rows: ")) for out, _ in told)
    whole = pure(tmp_path, 160)
    assert len(first) == len(second) == 80
    assert sorted(first + second) == sorted(whole)
    assert sorted(first[:4] + second[:4]) == sorted(whole[:8])  # the first step, on both


def test_a_batch_size_of_the_dataloaders_own_is_refused(
    tmp_path: Path, stores: dict[str, Path]
) -> None:
    with make(tmp_path, stores) as dataset:
        for loader in (DataLoader(dataset), DataLoader(dataset, batch_size=4)):
            with pytest.raises(JobError, match=r"^MixtureDataset: .*; set batch_size=None$"):
                next(iter(loader))


def test_what_is_in_the_way_is_told(tmp_path: Path, stores: dict[str, Path]) -> None:
    with make(tmp_path, stores) as dataset:
        train(dataset, iter(DataLoader(dataset, batch_size=None)), steps=2)
        state = dataset.state_dict()
    with make(tmp_path, stores, micro_batch=3) as dataset:
        dataset.load_state_dict(state)
        with pytest.raises(JobError, match="a step takes 6 samples now"):
            next(iter(DataLoader(dataset, batch_size=None)))
    with make(tmp_path, stores, run="q") as dataset, pytest.raises(JobError, match="not 'q'"):
        dataset.load_state_dict(state)
