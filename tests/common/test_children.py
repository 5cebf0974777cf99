"""Whatever a child of ours has started ends with it, and with us."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mixloop.common.children import LARGEST_LOG, Child, end_kept, start_kept

# three: in its group, in a session of its own (as a daemon makes itself), and one deaf to SIGTERM
STARTS = """
sleep 60 & echo $! > {told}/group
setsid sh -c 'echo $$ > {told}/session; exec sleep 60' &
(trap '' TERM HUP; echo > {told}/deaf; exec setsid sh -c 'echo $$ > {told}/deaf; exec sleep 60') &
while ! [ -s {told}/group -a -s {told}/session -a $(cat {told}/deaf | wc -w) = 1 ]; do
    sleep 0.01
done
echo > {told}/ready
{then}
"""
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Linux alone knows subreapers")


@pytest.fixture
def started(tmp_path: Path) -> Iterator[Path]:
    """Where the processes that :data:`STARTS` has started tell their ids."""
    yield tmp_path
    for name in ("group", "session", "deaf"):
        with contextlib.suppress(OSError, ValueError):
            os.kill(int((tmp_path / name).read_text()), signal.SIGKILL)


def shell(told: Path, then: str) -> list[str]:
    return ["sh", "-c", STARTS.format(told=told, then=then)]


def wait_until_ready(told: Path) -> None:
    deadline = time.monotonic() + 30
    while not (told / "ready").exists():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def runs(process: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{process}/stat").read_text().split()[2] != "Z"
    return False


def assert_ends(process: int) -> None:
    deadline = time.monotonic() + 30
    while runs(process):
        assert time.monotonic() < deadline
        time.sleep(0.005)


def left(told: Path) -> list[str]:
    """The names of those that run."""
    return [name for name in ("group", "session", "deaf") if runs(int((told / name).read_text()))]


@pytest.mark.parametrize(
    ("then", "status"),
    [("exit 0", 0), ("exit 7", 7), ("kill -KILL $$", -9), ("kill -SEGV $$", -11)],
)
def test_what_a_command_has_started_ends_with_it(started: Path, then: str, status: int) -> None:
    process = start_kept(shell(started, then))
    assert process.wait(30) == status
    assert left(started) == []


def test_what_a_command_has_started_is_ended_with_it(started: Path) -> None:
    process = start_kept(shell(started, "sleep 60"))
    wait_until_ready(started)
    assert left(started) == ["group", "session", "deaf"]
    end_kept(process)
    assert left(started) == []


def test_a_keeper_that_was_stopped_ends_them_all_the_same(started: Path) -> None:
    process = start_kept(shell(started, "kill -STOP $PPID; sleep 60"))
    wait_until_ready(started)
    end_kept(process)
    assert left(started) == []


US = """
import os, sys
from mixloop.common.children import start_kept
process = start_kept(sys.argv[2:], tied=sys.argv[1] == "tied")
print(process.pid, flush=True)
process.wait()
"""


@pytest.mark.parametrize("tied", [True, False])
def test_they_end_with_us_unless_they_are_to_outlive_us(started: Path, tied: bool) -> None:
    command = [sys.executable, "-c", US, "tied" if tied else "free", *shell(started, "sleep 60")]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as us:
        assert us.stdout is not None
        keeper = int(us.stdout.readline())
        wait_until_ready(started)
        us.kill()
    if tied:
        assert_ends(keeper)
        assert left(started) == []
    else:
        time.sleep(0.1)
        assert left(started) == ["group", "session", "deaf"]
        os.kill(keeper, signal.SIGTERM)


def test_a_command_does_not_outlive_a_keeper_that_somebody_killed(started: Path) -> None:
    then = f"echo $$ > {started}/itself; kill -KILL $PPID; sleep 60"
    process = start_kept(shell(started, then))
    assert process.wait(30) == -signal.SIGKILL
    assert_ends(int((started / "itself").read_text()))


def test_a_program_that_is_none_is_told() -> None:
    with pytest.raises(FileNotFoundError, match="no-such-program"):
        start_kept(["no-such-program"])


POLICY = """
import os, subprocess
from mixloop.policies import Hold
class P:
    def decide(self, seen):
        return Hold("")
    def check(self, sources, benchmarks):
        started = subprocess.Popen({command}, start_new_session=True)
        while not os.path.exists({ready}):
            pass
"""


def test_what_a_policy_has_started_ends_with_its_decision(started: Path) -> None:
    command, ready = shell(started, "sleep 60"), str(started / "ready")
    (started / "p.py").write_text(POLICY.format(command=command, ready=repr(ready)))
    request = {"check": True, "ref": "./p.py:P", "options": {}, "base": str(started)}
    request |= {"memory": 4096, "sources": {"a": []}, "benchmarks": []}
    child = Child(
        "mixloop.controller.decisions.policy_process",
        stdin=json.dumps(request),
        log=started / "log",
        timeout=30,
    )
    try:
        while child.running:
            time.sleep(0.01)
        assert [message["kind"] for message in child.messages()] == ["hold"]
        assert left(started) == []
    finally:
        child.close()


LOUD = """
import os, sys
line = b"x" * 999 + b"\\n"
for _ in range(30_000):
    os.write(2, line)
os.write(2, b"the last word\\n")
"""


def test_what_a_command_prints_is_capped(tmp_path: Path) -> None:
    log = tmp_path / "log"
    for _ in range(3):
        assert start_kept([sys.executable, "-c", LOUD], log=log).wait(60) == 0
    kept = sorted(path.name for path in tmp_path.iterdir())
    assert kept == ["log", "log.1"]
    assert all((tmp_path / name).stat().st_size <= LARGEST_LOG for name in kept)
    assert log.read_text().endswith("the last word\n")
    assert " bytes are left out here]" in log.read_text()


@pytest.mark.parametrize("kind", ["a FIFO", "a folder", "/dev/full", "a link to a log"])
def test_what_can_not_be_logged_costs_a_command_nothing(tmp_path: Path, kind: str) -> None:
    log = tmp_path / "log"
    if kind == "a FIFO":
        os.mkfifo(log)
    elif kind == "a folder":
        log.mkdir()
    else:
        log.symlink_to(kind if kind.startswith("/") else tmp_path / "other")
    process = start_kept(["sh", "-c", "echo loud >&2; exit 3"], log=log)
    assert process.wait(30) == 3
    assert not (tmp_path / "other").exists()


ANSWERS = """
import sys
part = "{start}" + "{part}" * {count} + "{end}"
sys.stdout.write(part)
sys.stdout.flush()
import time
time.sleep({sleep})
"""


@pytest.mark.parametrize(
    ("start", "part", "count", "end", "why"),
    [
        ("", "x", 2**24, "", "it said more than 8 MiB"),
        ("", "x" * 1000 + r"\n", 2**14, "", "it said more than 8 MiB"),
        ("[", "[],", 2**20, r"[]]\n", "it holds more than 524,288 values"),
        ("", "[", 200, "]" * 200 + r"\n", "it is nested more than 64 deep"),
        ("", "[", 20_000, "]" * 20_000 + r"\n", "it is nested more than 64 deep"),
        ("5", "", 0, r"\n", "it is no JSON object"),
        ("{", "", 0, r"\n", "Expecting property name"),
    ],
)
def test_an_answer_is_bounded(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    start: str,
    part: str,
    count: int,
    end: str,
    why: str,
) -> None:
    sleep = 60 if "MiB" in why else 0
    code = ANSWERS.format(start=start, part=part, count=count, end=end, sleep=sleep)
    (tmp_path / "answers.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}")
    child = Child("answers", log=tmp_path / "log", timeout=60)
    try:
        while child.running:
            time.sleep(0.01)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        assert child.messages() == []
        assert why in str(child.killed or child.strange)
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        assert grown < 64 * 1024  # kilobytes
    finally:
        child.close()
