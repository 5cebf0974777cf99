"""Hostile input: whatever lies in the run folder, the daemon goes on and the commands say what is
wrong in one line. A few hundred files here; 10,000 under `make soak`."""

from __future__ import annotations

import collections
import contextlib
import importlib.util
import json
import random
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from mixloop.controller import daemon
from mixloop.controller.cli import app
from mixloop.controller.config import load_config
from mixloop.controller.errors import BadInput
from mixloop.evals.scorecard import Scorecard
from mixloop.trainer.contract import (
    RunPaths,
    Schedule,
    ScheduleError,
    read_holds,
    read_manifest,
    read_order,
    read_schedule,
    read_status,
    write_holds,
)
from mixloop.trainer.job import JobError
from mixloop.trainer.runfile import load_run

_spec = importlib.util.spec_from_file_location(
    "hostile", Path(__file__).parent / "support" / "hostile.py"
)
assert _spec is not None
assert _spec.loader is not None
hostile = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(hostile)

Json = dict[str, Any]
Test = Callable[[random.Random], None]

CONTROLS = {chr(c) for c in range(32)} - {"\n"} | {chr(c) for c in range(127, 160)}
FRESH = 40  # examples on one run before it begins anew from the template
COUNTS = {  # few and many
    "status": (20, 2000),
    "schedule": (20, 1500),
    "mixture": (20, 1500),
    "manifest": (16, 1000),
    "request": (20, 1000),
    "holds": (60, 1200),
    "scorecard": (20, 500),
    "journal": (15, 300),
    "config": (20, 1000),
}
assert sum(many for _, many in COUNTS.values()) == 10_000


def thrown(count: int, test: Test) -> None:
    """Throw that many hostile files at a test; the examples share a run, so none is replayed."""

    @settings(
        max_examples=count,
        derandomize=True,
        database=None,
        deadline=None,
        phases=(Phase.generate,),
        suppress_health_check=list(HealthCheck),
    )
    @given(st.integers(0, 2**64 - 1), st.randoms(use_true_random=False))
    def every(seed: int, rng: random.Random) -> None:
        # hypothesis likes to begin with the simplest choices: the seed spreads them
        test(random.Random(seed ^ rng.getrandbits(64)))

    every()


class Field:
    """A controller beside which files go bad and are mended, from one played run."""

    def __init__(self, template: Path, scratch: Path, played: ModuleType) -> None:
        self.template, self.scratch, self._played = template, scratch, played
        self._made = 0
        self.run: Any = None
        self.seen: collections.Counter[str] = collections.Counter()

    def fresh(self) -> Path:
        """A copy of the template's folder."""
        self._made += 1
        folder = self.scratch / str(self._made)
        shutil.copytree(self.template, folder)
        if self._made > 2:
            shutil.rmtree(self.scratch / str(self._made - 2), ignore_errors=True)
        return folder

    def start(self) -> None:
        """Begin anew."""
        self.stop()
        self.run = self._played.Run(self.fresh() / "run.yaml")
        self.run.settle()

    def stop(self) -> None:
        """End the controller."""
        if self.run is not None:
            self.run.controller.close()
        self.run = None

    def count(self, text: str) -> None:
        self.seen[text] += 1

    def step(self, steps: int) -> None:
        """Look and act as often, with nothing raised but what a replaced controller may."""
        for _ in range(steps):
            if not self.run.controller.step():
                return

    def throw(self, kind: str, place: Callable[[Any], Path], data: bytes, steps: int = 4) -> None:
        """Put a hostile file in place, let the controller look, mend it, and see it recover."""
        self.seen[kind] += 1
        if self.run is None or self.seen[kind] % FRESH == 1:
            self.start()
        path = place(self.run)
        sound = path.read_bytes() if path.exists() else None
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        try:
            self.step(steps)
            commands(self.run.paths.dir, "status")
        except Exception as error:
            shown = data if len(data) < 3000 else data[:1500] + b" ... " + data[-200:]
            raise AssertionError(f"{kind}: {error!r} by {shown!r}") from error
        finally:
            if sound is None:
                path.unlink(missing_ok=True)
            else:
                path.write_bytes(sound)


def one_line(error: BadInput) -> None:
    """What a person is told is one line."""
    assert "\n" not in str(error)


def commands(target: Path, *names: str) -> None:
    """Reading commands end well, or with one line for a person; no control character gets out."""
    for name in names:
        more = ["1"] if name == "explain" else ["--json"] if name == "report" else []
        done = CliRunner().invoke(app, [name, str(target), *more])
        if done.exception is not None and not isinstance(done.exception, BadInput):
            raise AssertionError(f"{name}: {done.exception!r}") from done.exception
        if isinstance(done.exception, BadInput):
            assert "\n" not in str(done.exception)
        elif name != "report":
            assert not CONTROLS & set(done.output), done.output


@pytest.fixture(scope="module")
def field(tmp_path_factory: pytest.TempPathFactory, played_run: ModuleType) -> Iterator[Field]:
    base = tmp_path_factory.mktemp("hostile")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(daemon, "Evaluator", played_run.QuickEvaluator)
        (base / "template").mkdir()
        run = played_run.Run(played_run.make_run(base / "template"))
        run.train(12)
        assert run.history()
        run.controller.close()
        run.trainer.writer.close() if hasattr(run.trainer.writer, "close") else None
        made = Field(base / "template", base, played_run)
        yield made
        made.stop()


def scaled(kind: str) -> Any:
    few, many = COUNTS[kind]
    return pytest.mark.parametrize(
        "count", [few, pytest.param(many, marks=[pytest.mark.soak, pytest.mark.timeout(3600)])]
    )


@scaled("status")
def test_statuses(field: Field, count: int) -> None:
    field.start()
    valid = field.run.paths.status.read_bytes()

    def throw(rng: random.Random) -> None:
        field.throw("status", lambda run: run.paths.status, hostile.made(rng, valid))

    thrown(count, throw)
    recovers(field)


@scaled("schedule")
def test_schedules(field: Field, count: int) -> None:
    field.start()
    valid = field.run.paths.schedule.read_bytes()

    def throw(rng: random.Random) -> None:
        data = hostile.schedule(rng, valid)
        with contextlib.suppress(OSError, ScheduleError):
            path = field.scratch / "schedule.jsonl"
            path.write_bytes(data)
            assert isinstance(read_schedule(path), Schedule)
        field.throw("schedule", lambda run: run.paths.schedule, data)

    thrown(count, throw)
    recovers(field)


@scaled("mixture")
def test_orders(field: Field, count: int) -> None:
    field.start()
    valid = field.run.paths.mixture.read_bytes()

    def throw(rng: random.Random) -> None:
        data = hostile.made(rng, valid, hostile.sealed_order)
        path = field.scratch / "mixture.json"
        path.write_bytes(data)
        read_order(path, run="r", sources=("web", "code", "maths"), after=(0, 0))
        field.throw("mixture", lambda run: run.paths.mixture, data)

    thrown(count, throw)
    recovers(field)


@scaled("manifest")
def test_manifests(field: Field, count: int) -> None:
    field.start()
    valid = next(iter(sorted(field.run.paths.checkpoints.glob("*/manifest.json")))).read_bytes()

    def throw(rng: random.Random) -> None:
        data = hostile.made(rng, valid)
        folder = f"step-{1000 + field.seen['manifest']:08d}"
        path = field.scratch / "manifest.json"
        path.write_bytes(data)
        read_manifest(field.scratch)
        field.throw(
            "manifest", lambda run: run.paths.checkpoints / folder / "manifest.json", data, steps=8
        )

    thrown(count, throw)
    recovers(field)


@scaled("request")
def test_requests(field: Field, count: int) -> None:
    field.start()
    body = {
        "schema": "mixloop/request/1", "run": "r", "id": "r-000000000000", "verb": "set",
        "by": "ann@host", "at": "now", "weights": {"code": 0.2}, "sources": ["web"],
        "decision": "d-000001", "reason": "because", "force": False,
    }  # fmt: skip

    def throw(rng: random.Random) -> None:
        number = field.seen["request"]
        verb = rng.choice(["set", "pin", "unpin", "pause", "resume", "approve", "rollback"])
        valid = json.dumps(body | {"id": f"r-{number:012x}", "verb": verb}).encode()
        name = f"{number:013d}-r-{number:012x}.json"
        data = hostile.made(rng, valid)
        field.throw("request", lambda run: run.paths.requests / name, data, steps=6)

    thrown(count, throw)
    recovers(field)


@scaled("holds")
def test_holds(field: Field, count: int, tmp_path: Path) -> None:
    path = tmp_path / "holds.json"
    write_holds(path, {20, 40})
    valid = path.read_bytes()

    def throw(rng: random.Random) -> None:
        path.write_bytes(hostile.made(rng, valid))
        found = read_holds(path)
        assert found is None or isinstance(found, frozenset)

    thrown(count, throw)


@scaled("scorecard")
def test_scorecards(field: Field, count: int, tmp_path: Path) -> None:
    field.start()
    valid = next(iter(sorted((field.run.paths.dir / "scorecards").glob("step-*.json"))))
    body, path = valid.read_bytes(), tmp_path / "card.json"

    def throw(rng: random.Random) -> None:
        path.write_bytes(hostile.made(rng, body))
        with contextlib.suppress(ValueError):
            assert Scorecard.read(path).benchmarks is not None
        done = CliRunner().invoke(app, ["compare", str(path), str(valid)])
        assert done.exception is None or isinstance(done.exception, (BadInput, SystemExit)), (
            done.exception,
            path.read_bytes()[:2000],
        )

    thrown(count, throw)


@scaled("journal")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_journals(field: Field, count: int) -> None:
    field.stop()
    folder = field.fresh()
    config = load_config(folder / "run.yaml")
    journal = RunPaths(config.run.dir).journal
    valid = journal.read_bytes()

    def throw(rng: random.Random) -> None:
        # other inodes: locks of a controller that refused to start lie on those before
        for name in ("journal.db", "journal.db-journal", "controller.lock"):
            journal.with_name(name).unlink(missing_ok=True)
        journal.write_bytes(valid)
        how = hostile.journal(rng, journal)
        try:
            commands(config.run.dir, "status", "history", "explain", "report")
            _controls(field, folder, how)
        except Exception as error:
            raise AssertionError(f"{how}: {error!r}") from error

    thrown(count, throw)
    for name in ("journal.db", "journal.db-journal", "controller.lock"):
        journal.with_name(name).unlink(missing_ok=True)
    journal.write_bytes(valid)
    outcomes = {how: n for how, n in field.seen.items() if how.startswith("journal ")}
    assert sum(outcomes.values()) == count
    sys.stderr.write(f"{outcomes}\n")
    run = field._played.Run(folder / "run.yaml")
    try:
        run.settle()
        assert run.history()
    finally:
        run.controller.close()


def _controls(field: Field, folder: Path, how: str) -> None:
    """A daemon over that journal refuses to start with one line, or goes on in spite of it."""
    from mixloop.controller.service import start_controller

    said: list[str] = []
    try:
        controller = start_controller(load_config(folder / "run.yaml"), folder, said.append)
    except BadInput as error:
        one_line(error)
        field.count(f"journal {how}: refused")
        return
    try:
        for attempt in range(3):
            try:
                controller.step()
            except Exception as error:  # what `run` does of it, without the pause
                controller.stop()
                controller._trouble(error, attempt)
                assert any("trouble" in line for line in said)
                field.count(f"journal {how}: trouble")
                return
        field.count(f"journal {how}: goes on")
    finally:
        controller.close()


@scaled("config")
def test_configs(field: Field, count: int) -> None:
    folder = field.fresh()
    path = folder / "run.yaml"
    valid = path.read_bytes()
    body = yaml.safe_load(valid)

    def throw(rng: random.Random) -> None:
        if rng.randint(0, 2):
            wrong = hostile.wrong(rng, body)
            try:
                data = yaml.safe_dump(wrong).encode("utf-8", "surrogatepass")
            except Exception:
                data = hostile.text(wrong)
        else:
            data = hostile.damaged(rng, valid)
        path.write_bytes(data)
        try:
            with contextlib.suppress(JobError):
                load_run(path)
            try:
                load_config(path)
            except BadInput:
                commands(path, "check", "status")
        except Exception as error:
            raise AssertionError(f"{error!r} by {data[:2000]!r}") from error

    thrown(count, throw)
    path.write_bytes(valid)
    load_config(path)


def recovers(field: Field) -> None:
    """With every file sound again, the loop closes as before."""
    if field.run is None:
        return
    beat = read_status(field.run.paths.status)
    assert beat is not None
    field.run.settle()
    assert field.run.controller._eyes.status == beat
