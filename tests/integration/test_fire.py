"""Change under fire: ranks are killed and jobs restarted at other sizes while orders pour in.

Real processes and real gloo groups. Whatever happened, what was consumed is the pure function of
`schedule.jsonl`, nothing is lost or repeated within an epoch, and all ranks switch together.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mixloop.cli.audit import examine
from mixloop.common.process import PARENT
from mixloop.contract import (
    OpenLine,
    Order,
    RunPaths,
    Schedule,
    SegmentLine,
    VoidLine,
    read_schedule,
    read_status,
    write_order,
)
from mixloop.trainer.mixing import MixtureOrder
from mixloop.trainer.sources.token_store import SCHEMA as STORE_SCHEMA

LENGTH = 8
SIZES = {"web": 2003, "code": 769, "books": 401, "maths": 97, "wiki": 1201, "small": 13}
LAYOUTS = {8: (2, 1), 4: (2, 2), 2: (4, 2), 1: (4, 4)}  # world: (micro_batch, accumulation)
QUANTUM = 16


def make_stores(folder: Path) -> None:
    """Stores whose samples say which source and sample they are."""
    for number, (name, size) in enumerate(SIZES.items()):
        tokens = np.random.default_rng(number).integers(0, 4096, (size, LENGTH)).astype("<u2")
        tokens[:, 0] = number
        tokens[:, 1], tokens[:, 2] = np.divmod(np.arange(size), 4096)
        (folder / name).mkdir()
        (folder / name / "tokens.bin").write_bytes(tokens.tobytes())
        header = {
            "schema": STORE_SCHEMA,
            "tokens": tokens.size,
            "documents": size,
            "dtype": "uint16",
            "vocab_size": 4096,
            "tokenizer": "none",
            "fingerprint": f"sha256:{name}",
            "eos_id": 0,
        }
        (folder / name / "store.json").write_text(json.dumps(header))


@dataclass
class Fire:
    """A run under fire: jobs one after another, and a writer of orders beside them."""

    folder: Path
    seed: int
    changes: int
    random: random.Random = field(init=False)
    jobs: list[dict[str, Any]] = field(default_factory=list)
    kills: Counter[str] = field(default_factory=Counter)
    problems: list[BaseException] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        self.paths = RunPaths(self.folder / "run")
        self.paths.dir.mkdir()
        make_stores(self.folder)
        self.written = 0
        script = Path(__file__).parents[1] / "support" / "fire_ranks.py"
        self.launcher = subprocess.Popen(
            [sys.executable, str(script), str(self.folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"GLOO_SOCKET_IFNAME": "lo", PARENT: str(os.getpid())},
        )
        self.writer = threading.Thread(target=self._write, daemon=True)

    # --- the writer ----------------------------------------------------------------------

    def _write(self) -> None:
        """Publish orders as controllers do, also before the last was seen, and take over."""
        dice = random.Random(self.seed + 1)
        try:
            fence, generation = 1, 0
            while self.written < self.changes:
                if dice.random() < 0.05:  # a controller takes over: same order, higher fence
                    fence += 1
                generation += 1
                weights = random_weights(dice)
                write_order(self.paths.mixture, Order("fire", fence, generation, weights))
                self.written += 1
                if dice.random() < 0.9:
                    self._await(generation)
                time.sleep(dice.uniform(0, 0.04))
        except BaseException as error:
            self.problems.append(error)

    def _await(self, generation: int) -> None:
        end = time.monotonic() + 30
        while time.monotonic() < end:
            status = read_status(self.paths.status).value
            if status is not None and status.accepted.generation >= generation:
                return
            time.sleep(0.005)

    # --- jobs ----------------------------------------------------------------------------

    def start(self, world: int) -> list[int]:
        """Start a job of `world` ranks; their process ids."""
        micro, accumulation = LAYOUTS[world]
        job = {
            "job": len(self.jobs),
            "world": world,
            "micro_batch": micro,
            "accumulation": accumulation,
            "sources": list(SIZES),
            "weights": {"web": 0.5, "code": 0.3, "books": 0.2},
            "seed": self.seed,
            "sequence_length": LENGTH,
            "prefetch": self.random.choice([0, 1, 3]),
            "poll_every": 2,
            "save_every": 24,
        }
        self.jobs.append(job)
        assert self.launcher.stdin is not None
        self.launcher.stdin.write(json.dumps(job) + "\n")
        self.launcher.stdin.flush()
        return list(self._answer())

    def _answer(self) -> list[int]:
        assert self.launcher.stdout is not None
        answer: list[int] = json.loads(self.launcher.stdout.readline())
        return answer

    def steps_done(self) -> int:
        """Steps that rank 0 of the running job has recorded."""
        path = self.folder / f"trace-{len(self.jobs) - 1:03d}"
        return path.read_bytes().count(b"\n") if path.exists() else 0

    def strike(self, world: int, until: int) -> None:
        """Run a job until so many orders are out, then kill a rank of it, or all at once."""
        ranks = self.start(world)
        if self.random.random() < 0.85:  # else anywhere, also while it starts
            end = time.monotonic() + 120
            while not self.steps_done() and time.monotonic() < end:
                time.sleep(0.01)
            while self.written < until and self.writer.is_alive():
                time.sleep(0.005)
        time.sleep(self.random.uniform(0, 0.3))
        victims = ranks if self.random.random() < 0.3 else [self.random.choice(ranks)]
        for victim in victims:
            with suppress(ProcessLookupError):
                os.kill(victim, signal.SIGKILL)
        self.kills["job" if len(victims) == len(ranks) else "rank"] += 1
        codes = self._answer()
        assert -signal.SIGKILL in codes, self.logs()

    def finish(self, world: int) -> None:
        """Run a last job until every order is out, and some steps on; it ends by itself."""
        self.start(world)
        self.writer.join(600)
        assert not self.writer.is_alive()
        last = self.steps_done() + 60
        while self.steps_done() < last and self.launcher.poll() is None:
            time.sleep(0.02)
        (self.folder / f"stop-{len(self.jobs) - 1}").touch()
        assert set(self._answer()) == {0}, self.logs()

    def logs(self) -> str:
        """What the ranks of the last job said."""
        paths = sorted(self.folder.glob(f"log-{len(self.jobs) - 1:03d}.rank*"))
        return "\n".join(f"{path.name}: {path.read_text()[-2000:]}" for path in paths)

    def close(self) -> None:
        """End the launcher, and with it whatever still runs."""
        self.launcher.kill()  # the ranks follow it
        self.launcher.wait()
        for stream in (self.launcher.stdin, self.launcher.stdout):
            if stream is not None:
                stream.close()


def random_weights(dice: random.Random) -> dict[str, float]:
    """Weights of any kind: small ones, zeros, now and then a single source."""
    raw = {n: dice.choice([0.0, dice.random(), dice.random(), 1e-3]) for n in SIZES}
    if dice.random() < 0.05 or not sum(raw.values()):
        raw = dict.fromkeys(SIZES, 0.0) | {dice.choice(list(SIZES)): 1.0}
    total = sum(raw.values())
    return {name: value / total for name, value in raw.items()}


# --- what has to hold --------------------------------------------------------------------


@dataclass(frozen=True)
class Recorded:
    """A rank's record of a step."""

    line: dict[str, Any]

    def places(self) -> Iterator[tuple[int, int, int]]:
        """Place in the global order, source, index."""
        rank, world = self.line["rank"], self.line["world"]
        rows = len(self.line["source"][0])
        pairs = zip(self.line["source"], self.line["index"], strict=True)
        for micro, (sources, indices) in enumerate(pairs):
            for row, (source, index) in enumerate(zip(sources, indices, strict=True)):
                place = self.line["sample"] + (micro * world + rank) * rows + row
                yield place, source, index


def read_lines(path: Path) -> list[dict[str, Any]]:
    """JSON lines; a torn last one, of a killed rank, is left out."""
    whole, _, _ = path.read_text().rpartition("\n")
    return [json.loads(line) for line in whole.splitlines()]


def surviving(schedule: Schedule) -> list[tuple[int, int, int | None]]:
    """Incarnation, first sample and end of what counts of it: it ends where a later one began."""
    opens = [line for line in schedule.lines if isinstance(line, OpenLine)]
    pieces = []
    for at, opened in enumerate(opens):
        end = min((later.sample for later in opens[at + 1 :]), default=None)
        if end is None or end > opened.sample:
            pieces.append((opened.incarnation, opened.sample, end))
    return pieces


def consumed(folder: Path, schedule: Schedule) -> np.ndarray[Any, Any]:
    """The global sequence as consumed, (source, index) by place, from the ranks' records alone."""
    by_incarnation: dict[int, list[Recorded]] = defaultdict(list)
    for path in folder.glob("trace-*"):
        for line in read_lines(path):
            by_incarnation[line["incarnation"]].append(Recorded(line))
    drawn: dict[int, tuple[int, int]] = {}
    for incarnation, first, end in surviving(schedule):
        for record in by_incarnation[incarnation]:
            for place, source, index in record.places():
                if first <= place and (end is None or place < end):
                    assert place not in drawn, f"sample {place} was consumed twice"
                    drawn[place] = (source, index)
    length = max(drawn) + 1
    assert sorted(drawn) == list(range(length)), "samples were never consumed"
    return np.array([drawn[place] for place in range(length)])


def check_epochs(sequence: np.ndarray[Any, Any]) -> None:
    """Within an epoch of a source no sample is lost or repeated."""
    for number, size in enumerate(SIZES.values()):
        indices = sequence[sequence[:, 0] == number, 1]
        for first in range(0, len(indices), size):
            epoch = indices[first : first + size]
            assert len(set(epoch)) == len(epoch)
            assert len(epoch) < size or set(epoch) == set(range(size))


def check_switches(folder: Path, schedule: Schedule, jobs: list[dict[str, Any]]) -> int:
    """All ranks of a job switch at the same steps, where the schedule has them; how many did."""
    segments = {
        (line.sample, line.generation): line.step
        for line in schedule.lines
        if isinstance(line, SegmentLine)
    }
    switched: set[tuple[int, int]] = set()
    for job in jobs:
        changes_by_rank, reached = [], []
        for rank in range(job["world"]):
            changes = folder / f"changes-{job['job']:03d}.rank{rank}"
            trace = folder / f"trace-{job['job']:03d}{f'.rank{rank}' if rank else ''}"
            changes_by_rank.append(
                {(c["sample"], c["generation"]): c["step"] for c in read_lines(changes)}
                if changes.exists()
                else {}
            )
            reached.append(max((s["step"] for s in read_lines(trace)), default=-1)
                           if trace.exists() else -1)  # fmt: skip
        for switch in {switch for of_rank in changes_by_rank for switch in of_rank}:
            steps = {of_rank[switch] for of_rank in changes_by_rank if switch in of_rank}
            assert steps == {segments[switch]}, f"{switch} at steps {steps}"
            for of_rank, last in zip(changes_by_rank, reached, strict=True):
                assert switch in of_rank or last < segments[switch], f"{switch} missed by a rank"
            switched.add(switch)
    return len(switched)


def prove(fire: Fire) -> dict[str, int]:
    """Everything that has to hold of a run that was under fire; what happened, in numbers."""
    assert not fire.problems, fire.problems
    schedule = read_schedule(fire.paths.schedule)
    sequence = consumed(fire.folder, schedule)
    order = MixtureOrder(SIZES, fire.seed, schedule.mixture)
    source, index = order.batch(0, len(sequence))
    wrong = np.flatnonzero((sequence[:, 0] != source) | (sequence[:, 1] != index))
    assert not wrong.size, f"sample {wrong[0]} is not the schedule's ({wrong.size} are not)"
    check_epochs(sequence)
    switches = check_switches(fire.folder, schedule, fire.jobs)
    report = examine(
        fire.paths.dir,
        sorted(path for path in fire.folder.glob("trace-*") if ".rank" not in path.name),
        [f"{name}={fire.folder / name}" for name in SIZES],
    )
    assert report.ok, report.findings[:5]
    assert report.trace is not None
    assert report.sample == len(sequence)
    assert (report.trace.steps, report.trace.gaps) == (len(sequence) // QUANTUM, 0)
    assert report.trace.hashed == report.trace.lines
    assert {entry.store for entry in report.sources.values()} == {"as recorded"}
    return {
        "samples": len(sequence),
        "steps": len(sequence) // QUANTUM,
        "jobs": len(fire.jobs),
        "killed ranks": fire.kills["rank"],
        "killed jobs": fire.kills["job"],
        "orders": fire.written,
        "switches": switches,
        "void": sum(isinstance(line, VoidLine) for line in schedule.lines),
        "batches left": report.trace.left,
        "batches": report.trace.lines,
    }


def under_fire(
    folder: Path, seed: int, changes: int, worlds: list[int], last: int
) -> dict[str, int]:
    """A run with a kill in each of the jobs but the last; then the proof."""
    fire = Fire(folder, seed, changes)
    try:
        fire.writer.start()
        for number, world in enumerate(worlds, start=1):
            fire.strike(world, changes * number // (len(worlds) + 1))
        fire.finish(last)
        return prove(fire)
    except BaseException:
        sys.stderr.write(f"seed {seed}, {fire.written} orders, {len(fire.jobs)} jobs\n")
        sys.stderr.write(fire.logs() + "\n")
        raise
    finally:
        fire.close()


def test_kills_and_restarts_under_changing_orders(tmp_path: Path) -> None:
    happened = under_fire(tmp_path, seed=6, changes=20, worlds=[2, 1], last=2)
    assert happened["switches"] >= 5


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_500_changes_with_kills_on_8_ranks(tmp_path: Path) -> None:
    seed = int(os.environ.get("MIXLOOP_FIRE_SEED", "2026"))
    dice = random.Random(seed)
    worlds = [8, *(dice.choice([8, 8, 4, 2, 1]) for _ in range(15))]
    happened = under_fire(tmp_path, seed, changes=500, worlds=worlds, last=8)
    sys.stderr.write(f"{happened}\n")
    assert happened["switches"] >= 300
    assert happened["killed ranks"] + happened["killed jobs"] == 16
