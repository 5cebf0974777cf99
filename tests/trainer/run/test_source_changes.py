"""Sources that are added, retired, extended or listed otherwise while a run goes on."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixloop.cli.audit import examine
from mixloop.contract import (
    OpenLine,
    Order,
    RunPaths,
    Segment,
    Stage,
    read_order,
    read_schedule,
    read_status,
    write_order,
)
from mixloop.trainer.config import JobError
from mixloop.trainer.loader import MixtureLoader
from mixloop.trainer.mixing import MixtureOrder
from mixloop.trainer.run import fork_run

LENGTH, ROWS = 8, 4
SAMPLES = {"a": 23, "b": 101, "c": 61}
BASE = {"a": 1000, "b": 2000, "c": 3000}
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")

Sizes = dict[str, int | list[tuple[int, int]]]


# --- the order ---------------------------------------------------------------------------------


def drawn_of(order: MixtureOrder, name: str, samples: int) -> list[int]:
    source, index = order.batch(0, samples)
    return [int(i) for i in index[source == order.names.index(name)]]


@settings(deadline=None)
@given(
    st.integers(1, 40),
    st.lists(st.tuples(st.integers(0, 300), st.integers(0, 40)), min_size=1, max_size=3),
    st.integers(1, 16),
    st.integers(0, 5),
)
def test_a_source_that_grows_repeats_nothing_within_an_epoch_and_moves_nobody(
    size: int, grown: list[tuple[int, int]], quantum: int, seed: int
) -> None:
    history = [(0, size)]
    for at, more in sorted(grown):
        history.append((max(at, history[-1][0]), history[-1][1] + more))
    plan = [
        Segment(0, {"a": 0.5, "b": 0.5}, quantum),
        Segment(20 * quantum, {"a": 0.8, "b": 0.2}, quantum),
    ]
    order = MixtureOrder({"a": history, "b": 50}, seed, plan)
    still = MixtureOrder({"a": size, "b": 50}, seed, plan)
    total = 600
    source, index = order.batch(0, total)
    was, before = still.batch(0, total)
    assert (source == was).all()
    assert (index[source == 1] == before[was == 1]).all()
    draws = [int(i) for i in index[source == 0]]
    at = np.flatnonzero(source == 0)
    begun = epoch = 0
    while begun < len(draws):  # an epoch has the size that held when its first sample was drawn
        first = int(at[begun])
        here = [n for sample, n in history if sample <= first][-1]
        part = draws[begun : begun + here]
        assert len(set(part)) == len(part)
        assert max(part) < here
        if len(part) == here:
            assert sorted(part) == list(range(here))
        passed = order.epochs(first)["a"]
        assert passed == epoch
        begun, epoch = begun + here, epoch + 1
    # computed from the middle as from the start
    middle = MixtureOrder({"a": history, "b": 50}, seed, plan).batch(333, 100)
    assert (middle[0] == source[333:433]).all()
    assert (middle[1] == index[333:433]).all()


@settings(deadline=None)
@given(st.integers(0, 9), st.integers(1, 12))
def test_a_source_that_comes_or_goes_moves_nobody(seed: int, quantum: int) -> None:
    start = {"a": 0.4, "b": 0.6}
    few = MixtureOrder({"a": 23, "b": 101}, seed, [Segment(0, start, quantum)])
    more = MixtureOrder({"a": 23, "b": 101, "c": 61}, seed, [Segment(0, start, quantum)])
    for one, other in zip(few.batch(0, 400), more.batch(0, 400), strict=True):
        assert (one == other).all()
    late = more.with_segment(Segment(30 * quantum, {"a": 0.2, "b": 0.3, "c": 0.5}, quantum))
    for name in ("a", "b"):  # each source goes on through its own order, only slower
        ours, theirs = drawn_of(late, name, 700), drawn_of(few, name, 700)
        both = min(len(ours), len(theirs))
        assert ours[:both] == theirs[:both]


# --- a running job -----------------------------------------------------------------------------


class Job:
    """A run whose sources lie in one folder, and all that it handed out."""

    def __init__(self, folder: Path, windows: Any) -> None:
        self.folder = folder
        self.paths = RunPaths(folder / "run")
        self._windows = windows
        for name, samples in SAMPLES.items():
            self.write(name, samples)
        self.state: dict[str, Any] | None = None
        self.handed: list[int] = []
        self.generation = 0

    def write(self, name: str, samples: int, history: Any = ()) -> None:
        """Put a source's store there, in place of what was."""
        self._windows(self.folder / name, BASE[name], samples, LENGTH, history)

    def extend(self, name: str, samples: int) -> None:
        """More at a store's end, as `mixloop prepare --append` leaves it."""
        before = json.loads((self.folder / name / "store.json").read_text())
        was = [*before.get("history", []), {k: before[k] for k in ("tokens", "fingerprint")}]
        self.write(name, samples, was)

    def options(self, weights: Mapping[str, float], **changed: Any) -> dict[str, Any]:
        return {
            "run": "r",
            "sources": {name: self.folder / name for name in weights},
            "budget": "1M",
            "weights": weights,
            "seed": 3,
            "sequence_length": LENGTH,
            "micro_batch": ROWS,
            "poll_every": 2,
            "status_every": 1,
        } | changed

    def train(self, weights: Mapping[str, float], steps: int, **changed: Any) -> None:
        """An incarnation on these sources, of some steps, that goes on where the last ended."""
        options = self.options(weights, prefetch=2, pin_memory=False, **changed)
        with MixtureLoader(self.folder / "run", **options) as loader:
            if self.state is not None:
                loader.load_state_dict(self.state)
            for _ in range(steps):
                time.sleep(0.002)  # for the side thread
                self.handed += [int(token) for token in next(loader)["input_ids"][:, 0]]
            self.state = json.loads(json.dumps(loader.state_dict()))

    def order(self, weights: Mapping[str, float], **more: Any) -> None:
        self.generation += 1
        write_order(self.paths.mixture, Order("r", 1, self.generation, weights, **more))

    def pure(self) -> list[int]:
        """What the schedule alone says that was handed out."""
        schedule = read_schedule(self.paths.schedule)
        opened = schedule.latest_open
        assert opened is not None
        order = MixtureOrder(schedule.sizes, opened.seed, schedule.mixture)
        source, index = order.batch(0, len(self.handed))
        names = list(schedule.sources)
        return [BASE[names[s]] + i for s, i in zip(source.tolist(), index.tolist(), strict=True)]

    def check(self) -> None:
        assert self.handed == self.pure()
        given = [f"{name}={self.folder / name}" for name in SAMPLES]
        known = set(read_schedule(self.paths.schedule).sources)
        report = examine(self.folder / "run", [], [g for g in given if g.split("=")[0] in known])
        assert not report.findings, report.findings[0]

    def ledger(self) -> dict[str, int]:
        status = read_status(self.paths.status).value
        assert status is not None
        return {name: one.tokens // LENGTH for name, one in status.sources.items()}

    def counted(self) -> Counter[str]:
        return Counter(
            next(n for n, b in BASE.items() if b == t // 1000 * 1000) for t in self.handed
        )


@pytest.fixture
def job(tmp_path: Path, windows: Any) -> Job:
    return Job(tmp_path, windows)


def test_a_source_joins_and_another_leaves(job: Job) -> None:
    job.train({"a": 0.5, "b": 0.5}, 20)
    # listed first, and otherwise ordered: names count, not places
    job.train({"c": 0.0, "b": 0.5, "a": 0.5}, 20)
    assert job.counted()["c"] == 0
    job.order({"c": 0.6, "b": 0.4})
    job.train({"c": 0.0, "b": 0.5, "a": 0.5}, 40)
    assert job.counted()["c"] > 60
    at = len(job.handed)
    a = job.counted()["a"]
    job.train({"b": 0.5, "c": 0.5}, 20)  # a is retired
    job.order({"b": 0.1, "c": 0.9})
    job.train({"b": 0.5, "c": 0.5}, 40)
    assert job.counted()["a"] == a
    assert job.counted()["c"] > 0.7 * (len(job.handed) - at)
    job.check()
    assert job.ledger() == dict(job.counted())  # the retired one's stays
    schedule = read_schedule(job.paths.schedule)
    assert list(schedule.sources) == ["a", "b", "c"]
    job.train({"a": 0.3, "b": 0.3, "c": 0.4}, 10)  # and comes back, at 0
    job.order({"a": 1.0})
    job.train({"a": 0.3, "b": 0.3, "c": 0.4}, 40)
    assert job.counted()["a"] > a + 80
    job.check()


def test_a_source_grows_at_its_next_epoch(job: Job) -> None:
    job.train({"a": 0.5, "b": 0.5}, 15)  # 30 draws of a's 23: in its second epoch
    job.extend("a", 40)
    job.train({"a": 0.5, "b": 0.5}, 45)
    job.extend("a", 45)
    job.train({"a": 0.5, "b": 0.5}, 40)
    job.check()
    draws = [token - BASE["a"] for token in job.handed if token // 1000 == 1]
    assert sorted(draws[:23]) == sorted(draws[23:46]) == list(range(23))
    assert sorted(draws[46:86]) == sorted(draws[86:126]) == list(range(40))
    assert len(set(draws[126:171])) == 45
    status = read_status(job.paths.status).value
    assert status is not None
    a = status.sources["a"]
    assert a.epochs == pytest.approx(4 + (len(draws) - 126) / 45)
    assert a.unique_tokens == 45 * LENGTH


def test_what_would_lose_or_repeat_samples_is_refused(job: Job) -> None:
    job.train({"a": 0.5, "b": 0.5}, 10)
    with pytest.raises(JobError, match=r"sources\.a: no longer in the job, but .* weight 0.5"):
        job.train({"b": 1.0}, 1)
    job.write("b", 90)
    with pytest.raises(JobError, match=r"sources\.b: the store has changed.*does not say that it"):
        job.train({"a": 0.5, "b": 0.5}, 1)
    job.write("b", 120)  # larger, but of what?
    with pytest.raises(JobError, match=r"append to it with `mixloop prepare --append`"):
        job.train({"a": 0.5, "b": 0.5}, 1)
    job.write("b", SAMPLES["b"])
    job.train({"a": 0.5, "b": 0.5}, 10)
    job.check()
    assert sum(isinstance(x, OpenLine) for x in read_schedule(job.paths.schedule).lines) == 2


def test_an_order_still_to_come_keeps_its_source(job: Job) -> None:
    job.train({"a": 0.5, "b": 0.5, "c": 0.0}, 4)
    job.order({"a": 0.5, "b": 0.0, "c": 0.5})
    with MixtureLoader(
        job.folder / "run", **job.options({"a": 0.5, "b": 0.5, "c": 0.0}, prefetch=2)
    ) as loader:
        loader.load_state_dict(job.state or {})
        while len(read_schedule(job.paths.schedule).segments) < 2:
            time.sleep(0.005)
            next(loader)  # recorded, perhaps announced, not yet in force in the state we keep
    with pytest.raises(JobError, match=r"sources\.c: no longer in the job"):
        job.train({"a": 0.5, "b": 0.5}, 1)


def test_orders_may_mention_a_retired_source_without_weight(job: Job) -> None:
    job.train({"a": 0.5, "b": 0.5}, 4)
    job.order({"a": 0.0, "b": 1.0}, then=(Stage(9000, {"a": 0.5, "b": 0.5}),))
    job.train({"a": 0.5, "b": 0.5}, 30)
    job.train({"b": 0.5, "c": 0.5}, 10)  # the plan's stage with `a` is dropped
    assert "a, which is no longer in the job" in rejected(job)
    job.order({"a": 0.0, "b": 0.5, "c": 0.5})
    job.train({"b": 0.5, "c": 0.5}, 40)
    assert job.counted()["c"] > 30
    job.order({"a": 0.2, "b": 0.3, "c": 0.5})
    job.train({"b": 0.5, "c": 0.5}, 20)
    assert "'a' is retired from this run" in rejected(job)
    job.check()
    told = read_order(job.paths.mixture, run="r", sources=["b", "c"], after=(0, 0))
    assert "'a' is no source of this run" in getattr(told, "reason", "")


def rejected(job: Job) -> str:
    status = read_status(job.paths.status).value
    assert status is not None
    return "; ".join(one.reason for one in status.rejected)


def test_a_fork_has_the_sources_of_its_past(job: Job) -> None:
    job.train({"a": 0.5, "b": 0.5}, 10)
    job.extend("a", 40)
    job.train({"b": 0.5, "a": 0.5, "c": 0.0}, 30)
    fork_run(job.folder / "run", job.folder / "new", "n", step=40)
    ledger = job.ledger()
    again = read_status(RunPaths(job.folder / "new").status).value
    assert again is not None
    assert {name: one.tokens // LENGTH for name, one in again.sources.items()} == ledger
    options = job.options({"b": 0.5, "a": 0.5, "c": 0.0}, run="n")
    with MixtureLoader(job.folder / "new", **options) as loader:
        loader.load_state_dict(job.state or {})
        job.handed += [int(token) for _ in range(20) for token in next(loader)["input_ids"][:, 0]]
    job.paths = RunPaths(job.folder / "new")
    assert job.handed == job.pure()
