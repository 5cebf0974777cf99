"""Files that can't be read: said once they stay so, shown while they are, and with the reason."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import generate_latest
from typer.testing import CliRunner

from mixloop.cli.app import app
from mixloop.common.json_records import Problem
from mixloop.contract import read_holds, read_manifest, read_status, schedule_of
from mixloop.controller.config.checkpoint_layouts import Layout
from mixloop.controller.journal import queries, unreadable_files
from mixloop.controller.journal.unreadable_files import (
    EXAMINE_SECONDS,
    PAUSE_SECONDS,
    PERSISTS,
    Report,
    UnreadableFiles,
)
from mixloop.controller.views import Watcher
from mixloop.controller.watch import Timings, prometheus
from mixloop.controller.watch.screen import plain
from mixloop.controller.watch.view import build

FILE, OTHER = Path("/run/status.json"), Path("/run/schedule.jsonl")
BAD = {key: Problem(key, f"{key} is wrong") for key in "ab"}


def reports(
    files: UnreadableFiles, kinds: str, every: float = EXAMINE_SECONDS
) -> list[tuple[int, Report]]:
    """What is said of one file: ``a`` and ``b`` are problems, a dot is a sound look."""
    numbered = []
    for n, kind in enumerate(kinds):
        problems = {FILE: BAD[kind]} if kind in BAD else {}
        numbered += [(n, report) for report in files.examine(problems, n * every)]
    return numbered


@given(st.text("ab.", max_size=60))
def test_only_what_persists_is_said(kinds: str) -> None:
    numbered = reports(UnreadableFiles(), kinds)
    for n, report in numbered:
        state = kinds[n - PERSISTS + 1 : n + 1]
        assert (state.count(".") == PERSISTS) if report.problem is None else ("." not in state)
    problems = [report.problem for _, report in numbered]
    for before, problem in zip([None, *problems], problems, strict=False):
        assert problem is None or problem != before
        assert problem is not None or before is not None


@given(st.text("ab.", max_size=30), st.sampled_from("ab"))
def test_what_persists_is_said_in_the_end(before: str, kind: str) -> None:
    files = UnreadableFiles()
    earlier = [report for _, report in reports(files, before)]
    looks = PERSISTS + round(40 * PAUSE_SECONDS[0] / EXAMINE_SECONDS)  # the quiet before is over
    later = [
        report
        for n in range(looks)
        for report in files.examine({FILE: BAD[kind]}, (30 + n) * EXAMINE_SECONDS)
    ]
    assert files.reported == [FILE]
    assert len([report for report in later if report.problem is not None]) <= 1
    assert (later or earlier)[-1].problem == BAD[kind]


def test_a_file_that_comes_and_goes_is_spoken_of_less_and_less() -> None:
    files = UnreadableFiles()
    days, flap = 10, ["a"] * PERSISTS + ["."] * PERSISTS
    count = int(days * 86_400 / EXAMINE_SECONDS)
    kinds = "".join(flap[n % len(flap)] for n in range(count))
    numbered = reports(files, kinds)
    first = [report for n, report in numbered if n * EXAMINE_SECONDS < 86_400]
    last = [report for n, report in numbered if n * EXAMINE_SECONDS > (days - 2) * 86_400]
    assert 10 < len(first) < 30
    assert 2 <= len(last) <= 6  # of 2,880 times that it went bad in a day
    calm = [report for _ in range(3) for report in files.examine({}, 20 * 86_400)]
    assert [report for report in calm if report.problem is not None] == []
    assert files._states == {}, "nothing is kept of a file that is well again"


def test_files_do_not_mix() -> None:
    files = UnreadableFiles()
    for n in range(PERSISTS):
        found = files.examine({FILE: BAD["a"], OTHER: BAD["b"]}, n * EXAMINE_SECONDS)
    pairs = [(report.path, report.problem) for report in found]
    assert pairs == [(OTHER, BAD["b"]), (FILE, BAD["a"])]
    for n in range(PERSISTS):
        found = files.examine({FILE: BAD["a"]}, (10 + n) * EXAMINE_SECONDS)
    assert found == [Report(OTHER, None)]


# -- what is wrong, in words ---------------------------------------------------------------------


def changed(path: Path, key: str, value: Any) -> bytes:
    body = json.loads(path.read_bytes())
    here = body
    *most, last = key.split(".")
    for part in most:
        here = here[part]
    if value is KeyError:
        del here[last]
    else:
        here[last] = value
    return json.dumps(body).encode()


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("loss", "x", "loss is 'x': must be a number or null"),
        ("step", 1.5, "step is 1.5: must be a whole number"),
        ("step", True, "step is true: must be a whole number"),
        ("step", 2**63, "step is 9223372036854775808: must be a number of at most 62 bits"),
        ("phase", "late", "phase is 'late': must be one of 'warmup', 'stable', 'decay' or null"),
        ("sources.web.tokens", None, "sources.web.tokens is null: must be a whole number"),
        ("in_force", [], "in_force is []: must be an object"),
        ("in_force.weights", KeyError, "in_force.weights is missing: must be an object"),
        ("rejected", [{"reason": 1}], "rejected[0].reason is 1: must be a string"),
        ("schema", "mixloop/status/9", "schema is 'mixloop/status/9': must be 'mixloop/status/1'"),
        ("run", "\x1b]0;x\x07" * 50, None),
        ("sources", {"\x1b[2J\ud800": 1}, r"sources.'\x1b[2J\ud800' is 1: must be an object"),
    ],
)
def test_the_place_the_value_and_the_want_are_named(
    play: Any, key: str, value: Any, words: str | None
) -> None:
    path = play().paths.status
    path.write_bytes(changed(path, key, value))
    found = read_status(path).problem
    if words is None:  # a string is a string
        assert found is None
        return
    assert found is not None
    assert found.text == words
    assert found.text.isprintable()


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "not JSON: Expecting value (line 1, column 1)"),
        (b"[]", "it is []: must be an object"),
        (b"\xff", "not UTF-8 (at byte 0)"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a": NaN}', "NaN is not a JSON number"),
        (b'{"a": 1, "a": 2}', "key 'a' is given twice"),
        (b'{"schema": "mixloop/holds/1", "steps": [1e999]}', "steps[0] is inf: must be a finite"),
        (b" " * (2**20 + 1), "larger than 1,048,576 bytes"),
    ],
)
def test_what_is_no_record_at_all(tmp_path: Path, data: bytes, words: str) -> None:
    path = tmp_path / "holds.json"
    path.write_bytes(data)
    found = read_holds(path)
    assert found.problem is not None
    assert found.problem.text.startswith(words)
    assert read_holds(path).value is None


def test_a_file_that_is_not_there_is_no_problem(tmp_path: Path) -> None:
    for find in (read_status, read_holds, schedule_of, read_manifest):
        assert find(tmp_path / "none").problem is None  # type: ignore[operator]
    (tmp_path / "link").symlink_to(tmp_path / "none")
    found = read_status(tmp_path / "link").problem
    assert found is not None
    assert found.text == "a symbolic link"


def test_a_foreign_checkpoint_says_what_is_wrong_with_it(tmp_path: Path) -> None:
    layout = Layout("hf-trainer", tmp_path)
    (tmp_path / "checkpoint-7").mkdir()
    assert layout.find("checkpoint-7").problem is None
    layout.file("checkpoint-7").write_text('{"schema": "mixloop/saved/1"}')
    problem = layout.find("checkpoint-7").problem
    assert problem is not None
    assert problem.text == "run is missing: must be a string"


# -- the daemon, and those who look on ---------------------------------------------------------


class Ahead:
    """The played run's controller under a clock that can be moved on."""

    def __init__(self, run: Any) -> None:
        self.run, self.ahead = run, 0.0
        run.controller.clock = lambda: time.monotonic() + self.ahead

    def look(self, times: int = 1) -> list[str]:
        """What is said at so many looks, an examination apart."""
        before = len(self.run.said)
        for _ in range(times):
            self.ahead += EXAMINE_SECONDS
            assert self.run.controller.step()
        return list(self.run.said[before:])

    def events(self) -> list[tuple[str, Any]]:
        events = queries.events(self.run.journal, "unread", "read-again")
        return [(event.kind, event.detail) for event in events]


@pytest.fixture
def ahead(play: Any) -> Ahead:
    run = play()
    run.train(4)
    return Ahead(run)


def test_the_daemon_says_it_once_and_journals_it(ahead: Ahead) -> None:
    paths = ahead.run.paths
    sound = paths.status.read_bytes()
    paths.status.write_bytes(changed(paths.status, "loss", "x"))
    words = "loss is 'x': must be a number or null"
    said = ahead.look(30)
    (line,) = [one for one in said if "status.json" in one]
    assert line.startswith(f"status.json can't be read: {words}; the last heartbeat")
    paths.status.write_bytes(sound)
    assert ahead.look(PERSISTS) == ["status.json can be read again"]
    assert ahead.events() == [
        ("unread", {"file": "status.json", "key": "loss", "problem": words}),
        ("read-again", {"file": "status.json"}),
    ]


def test_a_torn_look_is_nothing_to_say(ahead: Ahead) -> None:
    path = ahead.run.paths.status
    sound = path.read_bytes()
    for cut in (0, 10, 200, len(sound) - 5):
        path.write_bytes(sound[:cut])
        assert ahead.look(PERSISTS - 1) == []
        path.write_bytes(sound)
        assert ahead.look(1) == []
    path.unlink()
    assert [line for line in ahead.look(20) if "read" in line] == []


def test_holds_are_the_controllers_own_and_written_anew(ahead: Ahead) -> None:
    holds = ahead.run.paths.holds
    holds.write_text("rubbish")
    said = ahead.look(PERSISTS)
    assert [line.split(":")[0] for line in said] == ["holds.json can't be read"]
    assert read_holds(holds).value == frozenset(ahead.run.controller.look().waiting)


def test_everybody_who_looks_on_sees_it(ahead: Ahead) -> None:
    paths = ahead.run.paths
    manifest = paths.checkpoints / "step-00009000" / "manifest.json"
    manifest.parent.mkdir()
    manifest.write_text("{}")
    lines = paths.schedule.read_bytes().splitlines(keepends=True)
    paths.schedule.write_bytes(b"x" + b"".join(lines) + lines[-1])
    assert len(ahead.look(PERSISTS)) == 2
    found = json.loads(CliRunner().invoke(app, ["status", str(paths.dir), "--json"]).output)
    files = ["checkpoints/step-00009000/manifest.json", "schedule.jsonl"]
    assert [one["file"] for one in found["unreadable"]] == files
    assert found["unreadable"][0]["key"] == "schema"
    assert found["unreadable"][0]["mend"] == unreadable_files.remedy(manifest)
    table = CliRunner().invoke(app, ["status", str(paths.dir)]).output
    assert "Unreadable schedule.jsonl: line 1: not JSON" in table
    watcher = Watcher(paths, time.monotonic)
    watcher.look()
    look = watcher.look()
    shown = "\n".join(plain(build(look)))
    assert all(f"! {name} can't be read: " in shown for name in files)
    told = generate_latest(prometheus.RunMetrics(look.standing, Timings())).decode()
    assert 'mixloop_unreadable_files{file="checkpoint"} 1.0' in told
    assert 'mixloop_unreadable_files{file="schedule.jsonl"} 1.0' in told
    assert 'mixloop_unreadable_files{file="status.json"} 0.0' in told


def test_a_trainer_whose_heartbeat_is_broken_was_not_never_started(ahead: Ahead) -> None:
    paths = ahead.run.paths
    paths.status.write_text("{}")
    done = CliRunner().invoke(app, ["status", str(paths.dir)])
    assert "Trainer    not known: its heartbeat can't be read" in done.output
    assert "Unreadable status.json: schema is null" in done.output
    paths.status.unlink()
    done = CliRunner().invoke(app, ["status", str(paths.dir)])
    assert "never started" in done.output
    assert "Unreadable" not in done.output


def test_a_folder_with_nothing_but_a_broken_heartbeat_is_told(tmp_path: Path) -> None:
    (tmp_path / "status.json").write_text("{}")
    done = CliRunner().invoke(app, ["status", str(tmp_path)])
    assert "status.json: can't be read: schema is null" in str(done.exception)
