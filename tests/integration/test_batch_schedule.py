"""Steps whose size changes: the batch-size schedule, `batch` on any number of ranks, workers."""

from __future__ import annotations

import json
import shutil
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixloop.cli.audit import examine
from mixloop.contract import (
    BatchSchedule,
    Order,
    RunPaths,
    read_schedule,
    read_status,
    stages_from,
    write_order,
)
from mixloop.trainer.config import JobError
from mixloop.trainer.loader import MixtureDataset, MixtureLoader
from mixloop.trainer.mixing import MixtureOrder
from mixloop.trainer.run import SingleProcess, fork_run

LENGTH, ROWS = 8, 4
SIZES = {"a": 53, "b": 101, "c": 149}
WEIGHTS = {"a": 0.5, "b": 0.4, "c": 0.1}
# steps of 8 samples, from sample 90 (inside one) of 16, from 200 of 24
GROWS: list[dict[str, Any]] = [
    {"from": 90 * LENGTH, "accumulation": 4},
    {"from": 200 * LENGTH, "batch": 24},
]
STEPS = [8] * 12 + [16] * 7 + [24] * 8  # 96 + 112 + 192 = 400 samples
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*set_vital"),
]


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory, windows: Any) -> dict[str, Path]:
    return {
        name: windows(tmp_path_factory.mktemp(name), number * 1000, samples, LENGTH)
        for number, (name, samples) in enumerate(SIZES.items())
    }


def options(stores: Mapping[str, Path], **changed: Any) -> dict[str, Any]:
    values: dict[str, Any] = {
        "run": "r",
        "sources": stores,
        "budget": sum(STEPS) * LENGTH,
        "weights": WEIGHTS,
        "seed": 3,
        "sequence_length": LENGTH,
        "micro_batch": ROWS,
        "accumulation": 2,
        "batch_schedule": GROWS,
        "poll_every": 2,
        "status_every": 1,
    }
    return values | changed


def make(folder: Path, stores: Mapping[str, Path], **changed: Any) -> MixtureLoader:
    return MixtureLoader(folder / "run", pin_memory=False, **options(stores, **changed))


def firsts(batch: Mapping[str, Any]) -> list[int]:
    return [int(token) for token in batch["input_ids"][:, 0]]


def pure(folder: Path, samples: int) -> list[int]:
    """First tokens of the global order, from `schedule.jsonl` alone."""
    schedule = read_schedule(RunPaths(folder / "run").schedule)
    opened = schedule.latest_open
    assert opened is not None
    source, index = MixtureOrder(schedule.sizes, opened.seed, schedule.mixture).batch(0, samples)
    return [int(token) for token in source * 1000 + index]


def steps_of(loader: MixtureLoader, most: int | None = None, pause: float = 0.0) -> list[list[int]]:
    """What is handed out, step by step, each ended where the loader says so."""
    steps: list[list[int]] = [[]]
    for batch in loader:
        time.sleep(pause)  # for the side thread
        steps[-1] += firsts(batch)
        if loader.step_ends:
            steps.append([])
            if len(steps) - 1 == most:
                break
    assert not steps[-1]
    return steps[:-1]


@st.composite
def staged(draw: st.DrawFn) -> list[tuple[int, int]]:
    starts = draw(st.lists(st.integers(1, 400), max_size=4, unique=True))
    sizes = draw(st.lists(st.integers(1, 30), min_size=5, max_size=5))
    return list(zip([0, *sorted(starts)], sizes, strict=False))


@settings(deadline=None)
@given(staged(), st.integers(0, 60))
def test_steps_follow_one_another_wherever_a_run_was_interrupted(
    wanted: list[tuple[int, int]], stop: int
) -> None:
    quanta = BatchSchedule(stages_from(wanted, 0))
    firsts = [quanta.first(step) for step in range(120)]
    assert firsts[0] == 0
    for step, first in enumerate(firsts[:-1]):
        size = quanta.at(first)
        assert firsts[step + 1] == first + size
        # the size asked for from the step's first sample on
        assert size == [quantum for at, quantum in wanted if at <= first][-1]
        assert {quanta.index(sample) for sample in range(first, first + size)} == {step}
        assert quanta.boundary(first) == first
        assert size == 1 or quanta.boundary(first + 1) == first + size
    resumed = BatchSchedule(stages_from(wanted, firsts[stop]))
    assert resumed.stages == quanta.since(firsts[stop]).stages
    assert [resumed.first(step) for step in range(20)] == firsts[stop : stop + 20]


def test_steps_grow_at_the_step_boundary_there_or_next(
    tmp_path: Path, stores: Mapping[str, Path]
) -> None:
    loader = make(tmp_path, stores)
    length = len(loader)
    steps = steps_of(loader)
    loader.close()
    assert [len(step) for step in steps] == STEPS
    assert length == sum(STEPS) // ROWS
    handed = [token for step in steps for token in step]
    assert handed == pure(tmp_path, sum(STEPS))
    done = 0
    for step in steps:  # exact after every step, whatever its size
        done += len(step)
        counts = Counter(token // 1000 for token in handed[:done])
        for number, weight in enumerate(WEIGHTS.values()):
            assert abs(counts[number] - weight * done) < 1 + 1e-6 * done
    status = read_status(RunPaths(tmp_path / "run").status).value
    assert status is not None
    assert (status.step, status.sample, status.finished) == (len(STEPS), sum(STEPS), True)
    opened = read_schedule(RunPaths(tmp_path / "run").schedule).latest_open
    assert opened is not None
    assert opened.quanta == ((0, 8, 2), (96, 16, 4), (208, 24, 6))
    report = examine(tmp_path / "run", [], [f"{n}={path}" for n, path in stores.items()])
    assert not report.findings
    assert [segment.quantum for segment in report.segments] == [8, 16, 24]


@pytest.mark.parametrize("taken", [3, 23, 24, 26, 45, 60])
def test_a_state_from_anywhere_goes_on_as_if_nothing_had_been(
    tmp_path: Path, stores: Mapping[str, Path], taken: int
) -> None:
    loader = make(tmp_path, stores)
    handed = [
        token for _, batch in zip(range(taken), loader, strict=False) for token in firsts(batch)
    ]
    state = json.loads(json.dumps(loader.state_dict()))
    loader.close()
    again = make(tmp_path, stores)
    again.load_state_dict(state)
    handed += [token for batch in again for token in firsts(batch)]
    again.close()
    assert handed == pure(tmp_path, sum(STEPS))


def test_new_weights_and_new_sizes_meet(tmp_path: Path, stores: Mapping[str, Path]) -> None:
    loader = make(tmp_path, stores, prefetch=2)
    changes: list[Any] = []
    loader.on_change = changes.append
    steps = steps_of(loader, 3)
    write_order(
        RunPaths(tmp_path / "run").mixture, Order("r", 1, 1, {"a": 0.1, "b": 0.1, "c": 0.8})
    )
    steps += steps_of(loader, pause=0.01)
    loader.close()
    assert [len(step) for step in steps] == STEPS
    assert [token for step in steps for token in step] == pure(tmp_path, sum(STEPS))
    (change,) = changes
    line = read_schedule(RunPaths(tmp_path / "run").schedule).segments[-1]
    assert (change.step, change.sample) == (line.step, line.sample)
    assert sum(STEPS[: line.step]) == line.sample  # on a step, by the schedule of sizes
    tail = [token // 1000 for step in steps[line.step :] for token in step]
    assert abs(tail.count(2) - 0.8 * len(tail)) < 2
    assert not examine(tmp_path / "run", [], []).findings


def test_one_batch_on_any_number_of_ranks(tmp_path: Path, stores: Mapping[str, Path]) -> None:
    batching = {"batch": "192 tokens", "accumulation": 1, "batch_schedule": ()}  # 24 samples
    loader = make(tmp_path, stores, **batching)
    steps = steps_of(loader, 4)
    state = loader.state_dict()
    loader.close()
    assert [len(step) for step in steps] == [24] * 4
    parts: list[list[list[int]]] = []
    for rank in range(3):  # each beside a copy of the files, as they would share one
        folder = tmp_path / str(rank)
        shutil.copytree(tmp_path / "run", folder / "run")
        mine = make(folder, stores, rank=rank, world=3, peers=SingleProcess(), **batching)
        mine.load_state_dict(state)
        parts.append(steps_of(mine, 3))
        mine.close()
    for three in zip(*parts, strict=True):  # micro-batch after micro-batch, rank after rank
        micros = range(len(three[0]) // ROWS)
        steps.append([t for m in micros for r in three for t in r[m * ROWS : (m + 1) * ROWS]])
    assert [token for step in steps for token in step] == pure(tmp_path / "0", 7 * 24)


@pytest.mark.parametrize("taken", [1, 23, 24, 27, 49, 60])
def test_a_dataset_goes_on_in_steps_of_every_size(
    tmp_path: Path, stores: Mapping[str, Path], taken: int
) -> None:
    torchdata = pytest.importorskip("torchdata.stateful_dataloader")
    tokens: list[int] = []
    sizes: list[int] = []
    state = None
    for most in (taken, 10**6):
        dataset = MixtureDataset(tmp_path / "run", **options(stores))
        loader = torchdata.StatefulDataLoader(dataset, batch_size=None)
        if state is not None:
            loader.load_state_dict(state)
        for number, batch in enumerate(loader, start=1):
            tokens += firsts(batch)
            if dataset.step_ends:
                dataset.report()
                sizes.append(dataset.accumulation * ROWS)
            if number == most:
                state = json.loads(json.dumps(loader.state_dict()))
                break
        dataset.close()
    assert tokens == pure(tmp_path, sum(STEPS))
    assert sizes == STEPS
    assert not examine(tmp_path / "run", [], []).findings


def test_a_fork_goes_on_in_the_same_steps(tmp_path: Path, stores: Mapping[str, Path]) -> None:
    loader = make(tmp_path, stores)
    steps = steps_of(loader, 16)
    state = loader.state_dict()
    loader.close()
    fork_run(tmp_path / "run", tmp_path / "new" / "run", "n", step=16)
    forked = MixtureLoader(tmp_path / "new" / "run", pin_memory=False, **options(stores, run="n"))
    forked.load_state_dict(state)
    steps += steps_of(forked)
    forked.close()
    assert [len(step) for step in steps] == STEPS
    assert [token for step in steps for token in step] == pure(tmp_path / "new", sum(STEPS))
    assert not examine(tmp_path / "new" / "run", [], []).findings


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"batch": 16}, "accumulation and batch are both given"),
        ({"batch": 18, "accumulation": 1}, "18 samples can't be cut into micro-batches of 4"),
        (
            {"batch": 24, "accumulation": 1, "world": 4, "rank": 0, "peers": SingleProcess()},
            "24 samples can't be shared out to 4 ranks in micro-batches of 4; worlds that can: "
            "1, 2, 3, 6",
        ),
        ({"batch": "100 tokens", "accumulation": 1}, "100 tokens are no whole number of samples"),
        ({"batch": "many", "accumulation": 1}, "batch"),
        ({"batch_schedule": [{"from": 80}]}, "give either accumulation or batch"),
        (
            {"batch_schedule": [{"from": 80, "batch": 8}, {"from": 80, "batch": 16}]},
            "list them in order",
        ),
        ({"batch_schedule": [{"from": 80, "batch": 9}]}, "batch_schedule.0.batch: 9 samples"),
    ],
)
def test_a_batch_that_cannot_be_is_refused_by_name(
    tmp_path: Path, stores: Mapping[str, Path], changed: dict[str, Any], said: str
) -> None:
    changed_options = options(stores, batch_schedule=()) | changed
    with pytest.raises(JobError, match=said.replace("(", r"\(")):
        next(iter(MixtureLoader(tmp_path / "run", pin_memory=False, **changed_options)))
    assert not (tmp_path / "run" / "schedule.jsonl").exists()


def test_another_schedule_of_sizes_needs_rewind(tmp_path: Path, stores: Mapping[str, Path]) -> None:
    loader = make(tmp_path, stores)
    steps_of(loader, 5)
    state = loader.state_dict()
    loader.close()
    other = {"batch_schedule": [GROWS[0]]}
    refused = make(tmp_path, stores, **other)
    refused.load_state_dict(state)
    with pytest.raises(JobError, match=r"steps take 8 samples, then 16 from sample 96 now, but"):
        next(iter(refused))
    again = make(tmp_path, stores, rewind=True, **other)
    again.load_state_dict(state)
    sizes = [len(step) for step in steps_of(again)]
    again.close()
    assert sizes[:14] == [8] * 7 + [16] * 7
    assert not examine(tmp_path / "run", [], []).findings
    past = [{"from": 8 * LENGTH, "batch": 8}, *GROWS]  # what is over may read otherwise
    third = make(tmp_path, stores, rewind=True, batch_schedule=past)
    third.load_state_dict(state)
    assert [len(step) for step in steps_of(third)] == STEPS[5:]
    third.close()
