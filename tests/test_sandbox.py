"""The sandbox: honest programs pass, and none of the attacks gets anywhere."""

from __future__ import annotations

import os
import platform
import shutil
import signal
import socket
import struct
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mixloop.evals import sandbox_server
from mixloop.evals.items import load_items
from mixloop.evals.sandbox import MEMORY, Sandbox, SandboxError

CONFIG = {"timeout": 1.0, "memory": MEMORY, "locked": True, "landlock": True, "drop": True}


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    box = Sandbox("auto", timeout=1.0)
    if box.unusable() is not None:
        pytest.skip(f"this machine offers no sandbox: {box.unusable()}")
    yield box
    box.close()


def why(sandbox: Sandbox, program: str) -> str:
    """What stopped a program that must not pass."""
    (result,) = sandbox.run([program])
    assert not result.passed
    return result.why


def test_every_canonical_solution_passes(sandbox: Sandbox) -> None:
    rows = load_items("humaneval", "packages").rows
    programs = [
        f"{row['prompt']}{row['canonical_solution']}\n{row['test']}\ncheck({row['entry_point']})"
        for row in rows
    ]
    assert all(result.passed for result in sandbox.run(programs))


def test_a_wrong_answer_fails(sandbox: Sandbox) -> None:
    assert why(sandbox, "assert 1 + 1 == 3") == "AssertionError"
    assert why(sandbox, "def broken(:") == "SyntaxError"


@pytest.mark.parametrize(
    "leave",
    [
        "import os; os._exit(0)",
        "import sys; sys.exit(0)",
        "raise SystemExit",
        "import os; os.write(1, b'passed'); os._exit(0)",
        "import os; os.write(3, b'0' * 32); os._exit(0)",
        "import os, signal; os.kill(os.getpid(), signal.SIGTERM)",
    ],
)
def test_leaving_early_is_no_success(sandbox: Sandbox, leave: str) -> None:
    assert why(sandbox, leave)


def test_endless_programs_end(sandbox: Sandbox) -> None:
    began = time.monotonic()
    assert why(sandbox, "while True: pass") == "ended by SIGXCPU"
    assert why(sandbox, "import time\nwhile True: time.sleep(9)") == "timeout"
    stubborn = (
        "import signal\nsignal.signal(signal.SIGXCPU, signal.SIG_IGN)\n"
        "while True:\n try:\n  while True: pass\n except BaseException: pass"
    )
    assert why(sandbox, stubborn)
    assert time.monotonic() - began < 15


def test_memory_is_bounded(sandbox: Sandbox) -> None:
    assert why(sandbox, "x = bytearray(4 << 30)") == "MemoryError"
    assert why(sandbox, "x = []\nwhile True: x.append(bytearray(1 << 20))") == "MemoryError"


def test_no_process_is_started(sandbox: Sandbox) -> None:
    bomb = "import os\nwhile True:\n os.fork()"
    assert why(sandbox, bomb) == "PermissionError"
    assert why(sandbox, "import subprocess; subprocess.run(['/bin/true'])")
    assert why(sandbox, "import os; os.execv('/bin/true', ['true'])") == "PermissionError"
    thread = "import threading; threading.Thread(target=print).start()"
    assert why(sandbox, thread) == "RuntimeError"
    raw = "import ctypes\nlibc = ctypes.CDLL(None)\nassert libc.fork() >= 0 or libc.vfork() >= 0"
    assert why(sandbox, raw)


def test_the_host_is_not_written(sandbox: Sandbox, tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    open_to_all = tmp_path / "open"
    open_to_all.write_text("untouched")
    open_to_all.chmod(0o666)
    for attack in (
        f"open({str(tmp_path / 'new')!r}, 'w')",
        f"open({str(open_to_all)!r}, 'a').write('x')",
        f"import os; os.truncate({str(open_to_all)!r}, 0)",
        f"import os; os.unlink({str(open_to_all)!r})",
        f"import os; os.symlink('/etc/shadow', {str(tmp_path / 'link')!r})",
        f"import os; os.rename({str(open_to_all)!r}, {str(tmp_path / 'moved')!r})",
        f"import os; os.chmod({str(open_to_all)!r}, 0)",
        f"import os; os.mkdir({str(tmp_path / 'folder')!r})",
    ):
        assert why(sandbox, attack) == "PermissionError"
    assert open_to_all.read_text() == "untouched"
    assert [path.name for path in tmp_path.iterdir()] == ["open"]


def test_secrets_stay_secret(sandbox: Sandbox, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("key")
    secret.chmod(0o600)
    readable = tmp_path / "readable"
    readable.write_text("key")
    readable.chmod(0o644)
    link = tmp_path / "link"
    link.symlink_to(secret)
    for path in ("/etc/shadow", "/etc/passwd", secret, readable, link, "/proc/self/environ"):
        assert why(sandbox, f"open({str(path)!r}).read()") in {
            "PermissionError",
            "FileNotFoundError",
        }
    assert why(sandbox, "import os; os.listdir('/root')") == "PermissionError"
    # walking the object graph finds classes, but none that opens a door
    walk = (
        "found = [c for c in ().__class__.__base__.__subclasses__() if c.__name__ == 'FileIO']\n"
        "io = __import__('io'); io.FileIO('/etc/passwd').read()"
    )
    assert why(sandbox, walk) == "PermissionError"


def test_the_environment_is_clean(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_TOKEN", "secret")
    fresh = Sandbox("auto", timeout=1.0)
    try:
        (result,) = fresh.run(["import os; assert 'A_TOKEN' not in os.environ, os.environ"])
    finally:
        fresh.close()
    assert result.passed


def test_there_is_no_network(sandbox: Sandbox) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        port = server.getsockname()[1]
        attack = f"import socket; socket.create_connection(('127.0.0.1', {port}), 1)"
        assert why(sandbox, attack) == "PermissionError"
        with pytest.raises(BlockingIOError):
            server.accept()
    assert why(sandbox, "import socket; socket.socket(socket.AF_UNIX)") == "PermissionError"


def test_nobody_else_is_signalled(sandbox: Sandbox) -> None:
    sleeper = subprocess.Popen(["sleep", "30"])
    try:
        for target in ("os.getppid()", str(sleeper.pid), str(os.getpid()), "-1"):
            attack = f"import os; os.kill({target}, 9)"
            assert why(sandbox, attack) == "PermissionError"
        assert sleeper.poll() is None
    finally:
        sleeper.kill()
        sleeper.wait()
    assert sandbox.run(["pass"])[0].passed


def test_output_floods_drown_nobody(sandbox: Sandbox) -> None:
    assert sandbox.run(["for _ in range(200): print('x' * 100_000)"])[0].passed
    assert why(sandbox, "import os\nwhile True: os.write(3, b'x' * 65536)")
    assert why(sandbox, "import sys\nsys.setrecursionlimit(10**9)\ndef f(): f()\nf()")
    assert sandbox.run(["pass"])[0].passed


def test_a_program_of_any_text_is_taken(sandbox: Sandbox) -> None:
    assert sandbox.run(["assert 'é\u2028\\n' == 'é\\u2028\\n'"])[0].passed
    assert why(sandbox, "\ud800") == "SyntaxError"
    assert why(sandbox, "x = 1\x00") in {"SyntaxError", "ValueError"}


def test_the_server_is_replaced_when_it_dies() -> None:
    box = Sandbox("auto", timeout=1.0)
    if box.unusable() is not None:
        pytest.skip("this machine offers no sandbox")
    assert box._server is not None
    box._server.send_signal(signal.SIGKILL)
    box._server.wait()
    try:
        assert box.run(["pass"])[0].passed
    finally:
        box.close()


def test_no_usable_sandbox_runs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    box = Sandbox("bwrap")
    reason = box.unusable()
    assert reason == "no usable sandbox (bwrap: bubblewrap is not installed)"
    assert box.kind == "none"
    with pytest.raises(SandboxError, match="no usable sandbox"):
        box.run(["pass"])


@pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed")
def test_bubblewrap_is_the_alternative() -> None:
    box = Sandbox("bwrap", timeout=1.0)
    if box.unusable() is not None:
        pytest.skip(f"this machine lets nobody use bubblewrap: {box.unusable()}")
    try:
        assert box.run(["assert 1 + 1 == 2"])[0].passed
        for attack in (
            "open('/etc/passwd')",
            "open('/usr/new', 'w')",
            "import socket; socket.socket()",
            "import os; os.fork()",
            "x = bytearray(4 << 30)",
            "while True: pass",
        ):
            assert why(box, attack)
    finally:
        box.close()


def test_off_still_bounds_time_and_memory() -> None:
    box = Sandbox("off", timeout=1.0)
    try:
        assert box.unusable() is None
        assert box.run(["assert open('/etc/passwd').read()"])[0].passed
        assert why(box, "while True: pass") == "ended by SIGXCPU"
        assert why(box, "x = bytearray(4 << 30)") == "MemoryError"
    finally:
        box.close()


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become someone else")
def test_an_ordinary_user_is_as_safe(sandbox: Sandbox) -> None:
    attacks = [
        "open('/etc/passwd')",
        "open('/tmp/mixloop-attack', 'w')",
        "import os; os.fork()",
        "import socket; socket.socket()",
        "import os; os.kill(os.getppid(), 9)",
        "x = bytearray(4 << 30)",
    ]
    child = os.fork()
    if child == 0:
        # no code of pytest's may run in the copy, whatever happens
        try:
            os.setgroups([])
            os.setresgid(12345, 12345, 12345)
            os.setresuid(12345, 12345, 12345)
            honest = sandbox_server.run_program("assert 2 > 1", b"n", CONFIG)
            found = [sandbox_server.run_program(attack, b"n", CONFIG) for attack in attacks]
            good = honest["passed"] and all(r["locked"] and not r["passed"] for r in found)
        except BaseException:
            good = False
        os._exit(0 if good else 1)
    assert os.waitpid(child, 0)[1] == 0


def judge(program: bytes, audit: int, number: int) -> int:
    """Runs a seccomp filter on one call, as the kernel would: what it returns."""
    accumulator = position = 0
    words = {0: number, 4: audit}
    while True:
        code, yes, no, constant = struct.unpack_from("<HBBI", program, 8 * position)
        position += 1
        if code == 0x06:
            return int(constant)
        if code == 0x20:
            accumulator = words[constant]
        elif code == 0x15:
            position += yes if accumulator == constant else no
        elif code == 0x35:
            position += yes if accumulator >= constant else no
        else:
            raise AssertionError(f"unknown instruction {code:#x}")


# clone fork/unshare execve socket connect kill ptrace mount open_by_handle_at io_uring_setup bpf
FORBIDDEN = {
    "x86_64": (56, 57, 58, 59, 41, 42, 62, 101, 165, 272, 304, 322, 425, 321, 435, 200, 234),
    "aarch64": (220, 97, 221, 198, 203, 129, 117, 40, 265, 281, 425, 280, 435, 130, 131),
}


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_the_filter_allows_the_list_and_nothing_else(machine: str) -> None:
    audit, allowed = sandbox_server.ARCHITECTURES[machine]
    program = sandbox_server.seccomp_filter(machine)
    verdicts = {number: judge(program, audit, number) for number in range(600)}
    assert {n for n, verdict in verdicts.items() if verdict == 0x7FFF0000} == set(allowed)
    assert {v for n, v in verdicts.items() if n not in allowed} == {0x00050001}
    assert not set(FORBIDDEN[machine]) & set(allowed)
    assert judge(program, audit ^ 1, 0) == 0x80000000
    assert judge(program, audit, 0x40000000) == 0x80000000


def test_this_machine_is_known() -> None:
    assert platform.machine() in sandbox_server.ARCHITECTURES
