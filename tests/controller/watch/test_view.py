"""The live view: what it works out, how it fits, and the command on a terminal and elsewhere."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import select
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from mixloop.cli.app import app
from mixloop.common import text
from mixloop.contract import (
    AcceptedOrder,
    OrderInForce,
    SourceStatus,
    Status,
    read_status,
    write_status,
)
from mixloop.controller.core import heartbeat
from mixloop.controller.journal import queries
from mixloop.controller.views import RunSnapshot, RunStanding, TrainerStanding, Watcher
from mixloop.controller.watch.pending import Pending
from mixloop.controller.watch.screen import ASCII, plain, screen, share, sparkline
from mixloop.controller.watch.view import BenchmarkRow, DecisionRow, SourceRow, View, build

CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")

WORDS = (
    "",
    "web",
    "a" * 99,
    "\x1b[2J\x07\n\r\tx",
    "名前" * 30,
    "e\u0301" * 40,
    "[bold]x[/]",
    "\x9b31m",
)


def random_view(draw: Random) -> View:
    """A view of anything at all."""

    def word() -> str:
        return draw.choice(WORDS)

    def number() -> float | None:
        return draw.choice((None, 0.0, 1e-9, 0.5, 12.0, 1e15))

    def source() -> SourceRow:
        count = draw.choice((0, 999, 10**14))
        cap = draw.choice((None, 0.0, 5.0))
        return SourceRow(
            word(), number(), draw.random(), count, draw.random() * 9, cap,
            draw.choice((None, count)), number(), number(), number(),
        )  # fmt: skip

    def benchmark() -> BenchmarkRow:
        past = tuple(number() for _ in range(draw.randrange(60)))
        missing = draw.choice((None, word()))
        return BenchmarkRow(
            word(), word(), number(), number(), None, 5, "lower", number(), number(), past, missing
        )

    def some(make: Callable[[], Any], most: int) -> tuple[Any, ...]:
        return tuple(make() for _ in range(draw.randrange(most)))

    return View(
        run=word(), state=word(), word=draw.choice(("alive", "stalled", "never started")),
        origin=word(), step=draw.choice((None, 10**9)), tokens=draw.choice((0, 10**14)),
        budget=draw.choice((None, 10**14)), seconds_left=number(), tokens_per_second=number(),
        phase=draw.choice((None, "stable")), loss=number(), health=word(), generation_asked=5,
        generation_applied=draw.choice((None, 4, 5)), controller=word(), controller_well=True,
        sources=some(source, 50), benchmarks=some(benchmark, 12), steered=word(),
        pending=some(lambda: Pending(word(), number(), draw.random() < 0.5), 6),
        decisions=some(lambda: DecisionRow(word(), 5, word(), word(), word()), 9),
        tracker=word(), tracker_well=False, warnings=some(word, 5),
    )  # fmt: skip


@pytest.mark.parametrize("seed", range(12))
def test_any_view_fits_any_screen_and_drives_no_terminal(seed: int) -> None:
    draw = Random(seed)
    for _ in range(4):
        view = random_view(draw)
        width, height = draw.randint(20, 200), draw.randint(4, 70)
        lines = screen(view, width, height, draw.choice((ASCII, None)))
        assert len(lines) <= height
        assert all(line.cell_len <= width for line in lines)
        assert not any(CONTROL.search(line.plain) for line in lines)
        assert not any(CONTROL.search(line) for line in plain(view))
        json.dumps(view.to_json(), allow_nan=False)


@given(st.integers(-5, 60), st.lists(st.integers(0, 30), min_size=4, max_size=4))
def test_sections_share_the_room_and_no_more(room: int, wants: list[int]) -> None:
    given_ = share(room, wants, (3, 3, 2, 2))
    assert all(0 <= one <= want for one, want in zip(given_, wants, strict=True))
    assert sum(given_) == min(max(0, room), sum(wants))


def test_a_sparkline_shows_rise_fall_and_gap() -> None:
    assert sparkline([1, 2, None, 3], 9) == "▁▅·█"
    assert sparkline([1, 2, 3], 2) == "▁█"
    assert sparkline([None], 9) == ""
    assert sparkline([4, 4], 9) == "▅▅"


def test_everything_of_a_played_run_is_worked_out(play: Any) -> None:
    guards = {"max_change": 0.2, "max_epochs": 2}
    run = play(guards=guards, approval={"above": 0.01, "timeout": 4000})
    run.train(9)
    now = [0.0]
    watcher = Watcher(run.paths, lambda: now[0])
    watcher.look()
    now[0] = 1.0
    run.train(1)
    view = build(watcher.look())
    assert (view.word, view.step, view.tokens, view.budget) == ("alive", 50, 4000, 24_000)
    assert view.seconds_left == 20_000  # at its 1 token/s
    code = next(one for one in view.sources if one.name == "code")
    # 0.1 epochs of 10,000; a tenth of the tokens: 1.9 * 10,000 / 0.1 is beyond the budget
    assert (code.cap, code.cap_tokens) == (2, None)
    assert code.at_the_end == pytest.approx(0.1 + 0.1 * 20_000 / 10_000, abs=1e-6)
    web = next(one for one in view.sources if one.name == "web")
    assert web.cap_tokens is None
    (score,) = view.benchmarks
    assert (score.name, score.metric, score.better) == ("gsm8k", "bits_per_byte", "lower")
    assert score.change == pytest.approx(0.02)
    assert score.verdict == "better"
    assert score.past == pytest.approx((2.18, 2.16))
    waits = [one for one in view.pending if one.person]
    assert len(waits) == 1
    assert "waits for approve or reject" in waits[0].what
    # the first one: asked for again, it goes on waiting
    assert waits[0].seconds == 1600 + 4000 - 4000
    due = [one for one in view.pending if "next evaluation" in one.what]
    assert (due[0].what, due[0].seconds) == ("next evaluation at 4.8k", 800)
    assert [one.verdict for one in view.decisions] == ["hold", "awaiting-approval"]
    assert view.decisions[1].moved.startswith("asks for code 0.100 → 0.200")


def test_a_source_that_meets_its_cap_says_when() -> None:
    status = Status(
        run="r", incarnation=1, pid=1, host="h", step=10, sample=100, tokens=1000, budget=9000,
        lr=None, phase=None, loss=None, grad_norm=None, tokens_per_second=100.0,
        sources={"a": SourceStatus(900, 0.9, 1000)}, accepted=AcceptedOrder(0, 0),
        in_force=OrderInForce(0, 0, 0, 0, {"a": 0.5}),
    )  # fmt: skip
    trainer = TrainerStanding(status, "alive", alive=True, silent=1.0, origin=None)
    run = RunStanding("r", trainer, params={"guards": '{"max_epochs": 2.0}'})
    view = build(RunSnapshot(run))
    (row,) = view.sources
    assert row.cap_tokens == 2200  # 1.1 epochs of 1000 tokens at half of the tokens
    assert row.cap_seconds == 22
    assert "cap in 22s (2.2k)" in "\n".join(line.plain for line in screen(view, 80, 24))


def test_holds_for_the_same_reason_are_told_once(play: Any) -> None:
    run = play(policy={"use": "static"})
    run.train(17)
    (one,) = build(Watcher(run.paths, time.monotonic).look()).decisions
    assert (one.id, one.step, one.times) == ("d-000004", 80, 4)
    assert "step 80  hold, 4 times running" in "\n".join(
        line.plain for line in screen(build(Watcher(run.paths, time.monotonic).look()), 80, 24)
    )


def test_looking_never_holds_the_journal_and_outlives_its_trouble(play: Any) -> None:
    run = play()
    run.train(9)
    now = [0.0]
    watcher = Watcher(run.paths, lambda: now[0])
    first = build(watcher.look())
    assert first.warnings == ()
    with contextlib.closing(sqlite3.connect(run.paths.journal, timeout=0)) as other:
        other.execute("BEGIN EXCLUSIVE")  # at once: nobody holds it
        now[0] = 7.0
        locked = build(watcher.look())
        other.execute("ROLLBACK")
    assert "can't be read now (" in locked.warnings[0]
    assert "locked" in locked.warnings[0]
    assert "7s old" in locked.warnings[0]
    assert locked.benchmarks == first.benchmarks
    assert locked.step == first.step
    kept = run.paths.journal.read_bytes()
    run.paths.journal.write_bytes(b"no journal at all")
    assert "can't be read now" in build(watcher.look()).warnings[0]
    run.paths.journal.write_bytes(kept)
    assert build(watcher.look()).warnings == ()
    run.paths.journal.unlink()
    assert build(watcher.look()).controller == "never started"
    run.paths.status.write_text("{")
    assert build(watcher.look()).step == first.step, "no news is no change"


def test_a_locked_journal_from_the_start_shows_the_trainer(play: Any) -> None:
    run = play()
    run.train(5)
    with contextlib.closing(sqlite3.connect(run.paths.journal, timeout=0)) as other:
        other.execute("BEGIN EXCLUSIVE")
        view = build(Watcher(run.paths, time.monotonic).look())
        other.execute("ROLLBACK")
    assert view.step == 25
    assert {one.name for one in view.sources} == {"web", "code", "maths"}


# -- is it alive? ----------------------------------------------------------------------------------


def beat(run: Any, **changed: Any) -> None:
    status = read_status(run.paths.status).value
    assert status is not None
    write_status(run.paths.status, type(status)(**{**vars(status), **changed}))


def test_the_watchers_own_clock_tells_a_stall(play: Any) -> None:
    run = play()
    run.train(2)
    beat(run, tokens_per_second=1e6)
    now = [1000.0]
    watcher = Watcher(run.paths, lambda: now[0])
    watcher.look()
    now[0] += heartbeat.MIN_STALL_LIMIT + 200
    view = build(watcher.look())
    assert view.state == "stalled: no heartbeat for 4m"
    assert view.seconds_left is None
    beat(run, heartbeat=99)
    assert build(watcher.look()).word == "alive"
    beat(run, finished=True)
    assert build(watcher.look()).word == "finished"


def test_a_pulse_is_patient_with_slow_trainers_and_forgets_stalls() -> None:
    class Beat:
        incarnation, heartbeat, step, tokens, tokens_per_second = 1, 0, 10, 1000, 1e9

    status: Any = Beat()
    found = heartbeat.update(None, status, 0.0)
    for at in (50.0, 100.0, 150.0):
        status.heartbeat += 1
        found = heartbeat.update(found, status, at)
    assert heartbeat.stall_limit(found, status) == 150.0
    status.heartbeat += 1
    after = heartbeat.update(found, status, 5000.0)
    assert after is not None
    assert after.gap == 50.0, "a stall is no measure of what is usual"
    assert heartbeat.update(after, None, 9000.0) == after
    status.tokens_per_second = 10.0  # 10 s a step
    assert heartbeat.stall_limit(None, status) == 300.0


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0, "0s"), (59.9, "59s"), (60, "1m"), (195, "3m"), (7500, "2h 5m"), (360_000, "4d 4h")],
)
def test_durations(seconds: float, said: str) -> None:
    assert text.duration(seconds) == said


def test_the_controller_remembers_the_silence_for_those_who_ask_once(play: Any) -> None:
    run = play(policy={"use": "static"})
    now = [0.0]
    run.controller.clock = lambda: now[0]
    run.train(5)
    beat(run, tokens_per_second=1e6)
    for _ in range(3):
        now[0] += 95.0
        run.settle()
    told = CliRunner().invoke(app, ["status", str(run.path)]).output
    assert "Trainer    stalled: no heartbeat for 4m, process" in told
    assert "no heartbeat of the trainer for 1m" in run.said
    run.train(1)
    now[0] += 9.0
    run.settle()
    assert "Trainer    alive, process" in CliRunner().invoke(app, ["status", str(run.path)]).output
    assert run.said[-1] == "the trainer goes on"
    events = queries.events(run.journal, "trainer")
    assert [event.detail["stalled"] for event in events] == [True, False]


def test_a_run_that_was_never_started_says_so(tmp_path: Path, played_run: Any) -> None:
    path = played_run.make_run(tmp_path)
    told = CliRunner().invoke(app, ["status", str(path)])
    assert told.exit_code == 0
    assert "Trainer    never started" in told.output
    assert json.loads(CliRunner().invoke(app, ["status", str(path), "--json"]).output)["trainer"][
        "state"
    ] == ("never started")


def test_finished_and_stopped_trainers_are_told_apart(play: Any) -> None:
    import socket

    run = play(budget=8_000, policy={"use": "static"})
    run.train(3)
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    beat(run, host=socket.gethostname(), pid=gone.pid)
    assert "Trainer    stopped" in CliRunner().invoke(app, ["status", str(run.path)]).output
    run.train(25)
    assert "Trainer    finished" in CliRunner().invoke(app, ["status", str(run.path)]).output


# -- the command -----------------------------------------------------------------------------------


def command(run: Any, *more: str) -> list[str]:
    program = [sys.executable, "-m", "mixloop.cli.app", "status", str(run.paths.dir)]
    return [*program, "--watch", "--every", "0.2", *more]


def read_until(stream: Any, wanted: str, seconds: float = 60) -> str:
    got, deadline = "", time.monotonic() + seconds
    while wanted not in got:
        assert time.monotonic() < deadline, f"{wanted!r} never came: {got[-2000:]}"
        if select.select([stream], [], [], 0.2)[0]:
            got += os.read(stream if isinstance(stream, int) else stream.fileno(), 65536).decode()
    return got


def test_elsewhere_than_on_a_terminal_there_is_a_block_a_change_and_no_control_code(
    play: Any,
) -> None:
    run = play()
    run.train(5)
    with subprocess.Popen(command(run), stdout=subprocess.PIPE) as process:
        first = read_until(process.stdout, "MLflow")
        time.sleep(1)
        run.train(4)
        second = read_until(process.stdout, "MLflow")
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=20) == 130
    assert "step 25" in first
    assert first.count("MLflow") == 1, "nothing changed, nothing is told"
    assert "source code: asked 0.200, applied 0.100" in first
    assert "benchmark gsm8k  bits_per_byte  2.1800 ± 0.1000" in first
    assert "decision" in first
    assert "2.1600 ± 0.1000" in second
    assert not CONTROL.search((first + second).replace("\n", ""))


def test_as_json_it_is_one_object_a_line(play: Any) -> None:
    run = play()
    run.train(5)
    with subprocess.Popen(command(run, "--json"), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines = [json.loads(process.stdout.readline()) for _ in range(3)]
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=20) == 130
    assert all(line["step"] == 25 for line in lines)
    assert {one["name"] for one in lines[0]["sources"]} == {"web", "code", "maths"}
    assert lines[0]["benchmarks"][0]["value"] == pytest.approx(2.18)


def test_it_ends_with_the_run(play: Any) -> None:
    run = play(budget=4_000, policy={"use": "static"})
    run.train(12)
    while run.controller.step():
        pass
    run.journal._db.execute("UPDATE lease SET holder = 'elsewhere:1'")
    import socket

    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    run.journal._db.execute("UPDATE lease SET holder = ?", (f"{socket.gethostname()}:{gone.pid}",))
    done = subprocess.run(command(run), capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "finished" in done.stdout


def on_a_terminal(run: Any, rows: int, columns: int, **variables: str) -> str:
    """What a terminal of this size gets until Ctrl-C."""
    import fcntl
    import struct
    import termios

    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    env = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "COLUMNS", "LINES")}
    env |= {"TERM": "xterm-256color", "LANG": "C.UTF-8", **variables}
    with subprocess.Popen(command(run), stdout=follower, stderr=follower, env=env) as process:
        os.close(follower)
        got = read_until(leader, "MLflow")
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(OSError):  # the other end is closed
            while more := os.read(leader, 65536).decode():
                got += more
        assert process.wait(timeout=20) == 130
    os.close(leader)
    return got


def test_on_a_terminal_it_is_one_screen_that_is_given_back(play: Any) -> None:
    run = play()
    run.train(9)
    evil = "\x1b]0;title\x07\x1b[2J reason [bold]not markup[/bold]"
    run.journal._db.execute("UPDATE decisions SET reason = ?", (evil,))
    coloured = on_a_terminal(run, 24, 80)
    assert "\x1b[?1049h" in coloured
    assert "\x1b[?1049l" in coloured.partition("MLflow")[2], "the screen before is back"
    assert "\x1b]0;" not in coloured
    assert "\x07" not in coloured
    assert "[bold]not markup[/bold]" in coloured
    assert re.search(r"\x1b\[[0-9;]*3[0-9]", coloured)
    drawn = coloured.partition("\x1b[?1049l")[0].rpartition("\x1b[H")[2]
    shown = [re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", line) for line in drawn.split("\n")]
    assert len(shown) <= 24
    assert all(len(line.rstrip("\r")) <= 80 for line in shown)
    assert not re.search(r"\x1b\[[0-9;]*3[0-9]", on_a_terminal(run, 24, 80, NO_COLOR="1"))


def test_without_a_run_it_is_one_line() -> None:
    told = CliRunner().invoke(app, ["status", "/nowhere", "--watch"])
    assert told.exit_code != 0
    assert "no run here" in str(told.exception)
