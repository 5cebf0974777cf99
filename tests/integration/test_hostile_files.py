"""Hostile input: whatever lies in the run folder, the daemon goes on, and it and the commands say
what is wrong in one line. A few hundred files here; 10,000 under `make soak`."""

from __future__ import annotations

import collections
import contextlib
import functools
import importlib.util
import itertools
import json
import random
import resource
import shutil
import signal
import sqlite3
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from typer.main import get_command
from typer.testing import CliRunner

from mixloop.cli.app import app
from mixloop.common.errors import BadInput
from mixloop.common.json_records import ReadResult
from mixloop.contract import (
    RunPaths,
    Schedule,
    ScheduleError,
    read_holds,
    read_manifest,
    read_order,
    read_schedule,
    read_status,
    schedule_of,
)
from mixloop.controller.config import load_config
from mixloop.controller.journal import queries, unreadable_files
from mixloop.controller.loop import daemon, scoring
from mixloop.evals import Scorecard
from mixloop.trainer.config import JobError, load_run

_spec = importlib.util.spec_from_file_location(
    "hostile", Path(__file__).parents[1] / "support" / "hostile.py"
)
assert _spec is not None
assert _spec.loader is not None
hostile = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(hostile)

Json = dict[str, Any]
Test = Callable[[random.Random], None]
Reader = Callable[[Path], ReadResult[Any]]

CONTROLS = {chr(c) for c in range(32)} - {"\n"} | {chr(c) for c in range(127, 160)}
FRESH = 40  # examples on one run before it begins anew from the template
COUNTS = {  # few and many
    "status": (20, 2000),
    "schedule": (20, 1500),
    "mixture": (20, 1500),
    "manifest": (16, 1000),
    "request": (20, 1000),
    "holds": (20, 1200),
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
    """A controller beside which files go bad and are mended, from one played run.

    Its clock moves on by the time between two examinations at every look.
    """

    def __init__(self, template: Path, scratch: Path, played: ModuleType) -> None:
        self.template, self.scratch, self._played = template, scratch, played
        self._made = 0
        self._ahead = 0.0
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
        self.run.controller.clock = lambda: time.monotonic() + self._ahead
        self.run.settle()

    def stop(self) -> None:
        """End the controller."""
        if self.run is not None:
            self.run.controller.close()
        self.run = None

    def count(self, text: str) -> None:
        self.seen[text] += 1

    def step(self, steps: int) -> bool:
        """Look and act as often, with nothing raised but what a replaced controller may.

        Returns whether the controller goes on.
        """
        for _ in range(steps):
            self._ahead += unreadable_files.EXAMINE_SECONDS
            if not self.run.controller.step():
                return False
        return True

    def throw(
        self,
        kind: str,
        place: Callable[[Any], Path],
        data: bytes,
        steps: int = 4,
        find: Reader | None = None,
        check: Callable[[Path, list[str]], None] | None = None,
    ) -> None:
        """Put a hostile file in place, let the controller look, mend it, and see it recover.

        With ``find``, the reader of such files, what it rejects has to be said by the daemon, once
        and by name, and shown by ``status``; of what it takes nothing may be said. ``check`` looks
        at what was said of files that the controller deals with otherwise.
        """
        self.seen[kind] += 1
        if self.run is None or self.seen[kind] % FRESH == 1:
            self.start()
        path = place(self.run)
        sound = path.read_bytes() if path.exists() else None
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        try:
            if find is None:
                before = len(self.run.said)
                self.step(steps)
                commands(self.run.paths.dir, "status")
                if check is not None:
                    check(path, self.run.said[before:])
            else:
                self._reported(kind, path, steps, find)
        except Exception as error:
            shown = data if len(data) < 3000 else data[:1500] + b" ... " + data[-200:]
            raise AssertionError(f"{kind}: {error!r} by {shown!r}") from error
        finally:
            if sound is None:
                path.unlink(missing_ok=True)
            else:
                path.write_bytes(sound)
        if find is not None:
            self._mended(path)

    def _reported(self, kind: str, path: Path, steps: int, find: Reader) -> None:
        name = str(path.relative_to(self.run.paths.dir))
        rejected = find(path).problem is not None
        self.count(f"{kind} {'rejected' if rejected else 'taken'}")
        before = len(self.run.said)
        ours = path == self.run.paths.holds  # the daemon writes it anew once it has told
        named = ours and name in unreadable(self.run.paths.dir)
        went_on = self.step(steps)
        said = [line for line in self.run.said[before:] if line.startswith(f"{name} can't be read")]
        named = named or name in unreadable(self.run.paths.dir)
        commands(self.run.paths.dir, "status")
        assert went_on or not rejected
        assert len(said) == rejected, (rejected, said, self.run.said[before:])
        assert not any(CONTROLS & set(line) or "\n" in line for line in said), said
        assert all(len(line) < 500 and line.count("; ") for line in said), said
        assert named == rejected
        assert not ours or find(path).problem is None

    def _mended(self, path: Path) -> None:
        """Looks at the file that is sound again, until the daemon has forgotten that it wasn't."""
        before = len(self.run.said)
        reported = path in self.run.controller._unreadable.reported
        went_on = self.step(unreadable_files.PERSISTS)
        name = str(path.relative_to(self.run.paths.dir))
        again = f"{name} can be read again" in self.run.said[before:]
        assert again == reported or not went_on
        self._ahead += 3 * unreadable_files.PAUSE_SECONDS[0]


def unreadable(folder: Path) -> list[str]:
    """The files that ``mixloop status --json`` names."""
    done = CliRunner().invoke(app, ["status", str(folder), "--json"])
    assert done.exception is None, done.exception
    return [entry["file"] for entry in json.loads(done.output)["unreadable"]]


def one_line(error: BadInput, path: Path) -> None:
    """What a person is told is one line that names the file."""
    assert "\n" not in str(error)
    assert str(path) in str(error)


def refused(path: Path, why: str, *names: str) -> None:
    """Commands over such a run file end with this line."""
    for name in names:
        done = CliRunner().invoke(app, [name, str(path)])
        assert isinstance(done.exception, BadInput), (name, done.exception)
        assert str(done.exception) == why


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
        patch.setattr(scoring, "Evaluator", played_run.QuickEvaluator)
        patch.setattr(unreadable_files, "AGAIN_SECONDS", 0.0)
        # what Typer makes of the command's signatures, once and not for each of ten thousand files
        patch.setattr("typer.testing._get_command", functools.cache(get_command))
        (base / "template").mkdir()
        run = played_run.Run(played_run.make_run(base / "template"))
        run.train(12)
        assert run.history()
        run.controller.close()
        run.trainer.writer.close() if hasattr(run.trainer.writer, "close") else None
        hostile_field = Field(base / "template", base, played_run)
        yield hostile_field
        hostile_field.stop()


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
        data = hostile.made(rng, valid)
        field.throw("status", lambda run: run.paths.status, data, find=read_status)

    thrown(count, throw)
    both_happened(field, "status")
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
        field.throw("schedule", lambda run: run.paths.schedule, data, find=schedule_of)

    thrown(count, throw)
    both_happened(field, "schedule")
    recovers(field)


@scaled("mixture")
def test_orders(field: Field, count: int) -> None:
    field.start()
    valid = field.run.paths.mixture.read_bytes()

    def explained(data: bytes) -> Callable[[Path, list[str]], None]:
        def check(path: Path, said: list[str]) -> None:
            """What was replaced was an order of this journal, or it was said."""
            if path.read_bytes() == data or any("mixture.json held" in line for line in said):
                return
            if any("which this controller did not write" in line for line in said):
                return
            held = json.loads(data)
            order = queries.order(field.run.journal, int(held["generation"]))
            assert order is not None, said
            assert (order.weights, order.decision) == (held["weights"], held["decision"])

        return check

    def throw(rng: random.Random) -> None:
        data = hostile.made(rng, valid, hostile.sealed_order)
        path = field.scratch / "mixture.json"
        path.write_bytes(data)
        read_order(path, run="r", sources=("web", "code", "maths"), after=(0, 0))
        field.throw("mixture", lambda run: run.paths.mixture, data, check=explained(data))

    thrown(count, throw)
    recovers(field)


@scaled("manifest")
def test_manifests(field: Field, count: int) -> None:
    field.start()
    valid = next(iter(sorted(field.run.paths.checkpoints.glob("*/manifest.json")))).read_bytes()

    def throw(rng: random.Random) -> None:
        data = hostile.made(rng, valid)
        folder = f"step-{1000 + field.seen['manifest']:08d}"
        field.throw(
            "manifest",
            lambda run: run.paths.checkpoints / folder / "manifest.json",
            data,
            steps=8,
            find=lambda path: read_manifest(path.parent),
        )

    thrown(count, throw)
    both_happened(field, "manifest")
    recovers(field)


@scaled("request")
def test_requests(field: Field, count: int) -> None:
    field.start()
    body = {
        "schema": "mixloop/request/1", "run": "r", "id": "r-000000000000", "verb": "set",
        "by": "ann@host", "at": "now", "weights": {"code": 0.2}, "sources": ["web"],
        "decision": "d-000001", "reason": "because", "force": False,
    }  # fmt: skip

    def answered(path: Path, said: list[str]) -> None:
        assert not path.exists()
        aside = [path.parent / name / path.name for name in ("refused", "taken")]
        assert any(moved.exists() for moved in aside)
        assert any(line.startswith(f"{path.name} refused: ") or " by " in line for line in said)

    def throw(rng: random.Random) -> None:
        number = field.seen["request"]
        verb = rng.choice(["set", "pin", "unpin", "pause", "resume", "approve", "rollback"])
        valid = json.dumps(body | {"id": f"r-{number:012x}", "verb": verb}).encode()
        name = f"{number:013d}-r-{number:012x}.json"
        data = hostile.made(rng, valid)
        field.throw("request", lambda run: run.paths.requests / name, data, steps=6, check=answered)

    thrown(count, throw)
    recovers(field)


@scaled("holds")
def test_holds(field: Field, count: int) -> None:
    field.start()
    valid = json.dumps({"schema": "mixloop/holds/1", "steps": [20, 40]}).encode()

    def throw(rng: random.Random) -> None:
        data = hostile.made(rng, valid)
        path = field.scratch / "holds.json"
        path.write_bytes(data)
        steps = read_holds(path).value
        assert steps is None or isinstance(steps, frozenset)
        field.throw("holds", lambda run: run.paths.holds, data, find=read_holds)

    thrown(count, throw)
    both_happened(field, "holds")
    recovers(field)


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
    before = field.seen.copy()
    folder = field.fresh()
    config = load_config(folder / "run.yaml")
    journal = RunPaths(config.run.dir).journal
    valid, unspoilt = journal.read_bytes(), content(journal)

    def throw(rng: random.Random) -> None:
        # other inodes: locks of a controller that refused to start lie on those before
        for name in ("journal.db", "journal.db-journal", "controller.lock"):
            journal.with_name(name).unlink(missing_ok=True)
        journal.write_bytes(valid)
        how = hostile.journal(rng, journal)
        try:
            commands(config.run.dir, "status", "history", "explain", "report")
            _controls(field, folder, journal, how, unspoilt)
        except Exception as error:
            raise AssertionError(f"{how}: {error!r}") from error

    thrown(count, throw)
    for name in ("journal.db", "journal.db-journal", "controller.lock"):
        journal.with_name(name).unlink(missing_ok=True)
    journal.write_bytes(valid)
    outcomes = {how: n for how, n in (field.seen - before).items() if how.startswith("journal ")}
    assert sum(outcomes.values()) == count
    sys.stderr.write(f"{outcomes}\n")
    run = field._played.Run(folder / "run.yaml")
    try:
        run.settle()
        assert run.history()
    finally:
        run.controller.close()


def content(journal: Path) -> Any:
    """All that the file says, value by value; None when it can't be read."""
    db = sqlite3.connect(journal)
    try:
        if db.execute("PRAGMA integrity_check(1)").fetchone()[0] != "ok":
            return None
        rows = {"version": db.execute("PRAGMA user_version").fetchall()}
        rows["schema"] = db.execute("SELECT type, name, sql FROM sqlite_master").fetchall()
        for kind, table, _ in rows["schema"]:
            if kind == "table":
                rows[table] = sorted(map(ascii, db.execute(f"SELECT * FROM {table}")))
    except (sqlite3.DatabaseError, UnicodeDecodeError):  # its message quotes what is damaged
        return None
    finally:
        db.close()
    return rows


def _controls(field: Field, folder: Path, journal: Path, how: str, valid: Any) -> None:
    """A daemon over that journal refuses to start with one line, or goes on in spite of it."""
    from mixloop.controller.service.service import start_controller

    said: list[str] = []
    same = content(journal) == valid
    try:
        controller = start_controller(load_config(folder / "run.yaml"), folder, said.append)
    except BadInput as error:
        one_line(error, journal)
        field.count(f"journal {how}: refused")
        return
    try:
        for attempt in range(3):
            try:
                controller.step()
            except Exception as error:  # what `run` does of it, without the pause
                controller.stop()
                controller._retry_later(error, attempt)
                assert any("trouble" in line for line in said)
                field.count(f"journal {how}: trouble")
                return
        reported = any(str(journal) in line for line in said)
        assert reported or same, "other rows than a controller wrote, and nothing was said"
        field.count(f"journal {how}: goes on{' and says so' if reported else ', as it was'}")
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
            except BadInput as error:
                one_line(error, path)
                refused(path, str(error), "check")
                commands(path, "status")  # which shows the run all the same, where it is found
                field.count("config refused")
        except Exception as error:
            raise AssertionError(f"{error!r} by {data[:2000]!r}") from error

    before = field.seen["config refused"]
    thrown(count, throw)
    sys.stderr.write(f"config: {field.seen['config refused'] - before} of {count} refused\n")
    assert field.seen["config refused"] > before
    path.write_bytes(valid)
    load_config(path)


FILES = (
    "status.json", "schedule.jsonl", "mixture.json", "accepted.json", "holds.json", "job.json",
    "fork.json", "evals.json", "checkpoints/{step}/manifest.json",
    "checkpoints/{step}/mixloop.json", "scorecards/{step}.json", "scorecards/{step}.samples.json",
    "policy.log", "evals.log", "experiments.log", "mlflow.log", "controller.log", "trainer.log",
    "requests/0000000000001-r-000000000000.json",
)  # fmt: skip
READING = ("status", "history", "report", "samples", "explain")
PATIENCE = 20  # seconds for a few looks and all commands, which take one


@pytest.mark.parametrize(
    "share", [13, pytest.param(1, marks=[pytest.mark.soak, pytest.mark.timeout(1800)])]
)
def test_places(field: Field, share: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever lies in a file's place, nothing waits for it or fills memory with it; the daemon
    goes on, and says so of a log."""
    monkeypatch.setattr(daemon, "RETRY", (0.0, 0.0))
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    resource.setrlimit(resource.RLIMIT_AS, (taken + 3 * 2**30, hard))
    try:
        for number, (name, kind) in enumerate(itertools.product(FILES, hostile.PLACES)):
            if number % share == number // len(hostile.PLACES) % share:
                _placed(field, name, kind)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
    recovers(field)


def _placed(field: Field, name: str, kind: str) -> None:
    if field.run is None:
        field.start()
    run = field.run
    step = sorted(path.name for path in run.paths.checkpoints.iterdir())[-1]
    path = run.paths.dir / name.format(step=step)
    path.parent.mkdir(parents=True, exist_ok=True)
    sound = path.read_bytes() if path.exists() else None
    if sound is not None and kind != "a sparse file":
        path.unlink()
    before, began = len(run.said), time.monotonic()

    def late(number: int, frame: Any) -> None:
        raise AssertionError(f"{name}: {kind} is waited for, or read without end")

    earlier = signal.signal(signal.SIGALRM, late)
    signal.alarm(PATIENCE)
    try:
        hostile.PLACES[kind](path)
        run.trainer.advance() if name == "policy.log" else None
        for _ in range(unreadable_files.PERSISTS + 1):
            field._ahead += unreadable_files.EXAMINE_SECONDS
            assert run.controller.turn()  # a folder can't be replaced: that is said, as trouble
        commands(run.paths.dir, *READING)
        found = CliRunner().invoke(app, ["audit", str(run.paths.dir)]).exception
        assert found is None or isinstance(found, (BadInput, SystemExit)), found
        if name.endswith(".log") and kind != "a sparse file":
            said = [line for line in run.said[before:] if line.startswith(f"{name} can't be read")]
            assert len(said) == 1, run.said[before:]
            assert name in unreadable(run.paths.dir)
    except Exception as error:
        raise AssertionError(f"{kind} as {name}: {error!r}") from error
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, earlier)
        hostile.removed(path)
        if sound is not None:
            path.write_bytes(sound)
    sys.stderr.write(f"{kind} as {name}: {time.monotonic() - began:.1f} s\n")
    field.step(unreadable_files.PERSISTS)
    field._ahead += 3 * unreadable_files.PAUSE_SECONDS[0]  # what comes and goes is said less often


def both_happened(field: Field, kind: str) -> None:
    """Files that the reader takes, and files that it rejects."""
    sys.stderr.write(f"{kind}: {field.seen[f'{kind} rejected']} of {field.seen[kind]} rejected\n")
    assert field.seen[f"{kind} rejected"] > 0
    assert field.seen[f"{kind} taken"] > 0


def recovers(field: Field) -> None:
    """With every file sound again, the loop closes as before."""
    if field.run is None:
        return
    beat = read_status(field.run.paths.status).value
    assert beat is not None
    field.run.settle()
    assert field.run.controller.observer.news.status == beat
