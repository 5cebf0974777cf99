"""The sandbox: honest programs pass, and none of the attacks gets anywhere."""

from __future__ import annotations

import ctypes
import json
import os
import platform
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from mixloop.evals.benchmarks import load_items
from mixloop.evals.sandbox import Sandbox, imports, restrictions, server
from mixloop.evals.sandbox.sandbox import MEMORY, SandboxError

CONFIG = {"timeout": 1.0, "memory": MEMORY, "locked": True, "landlock": True, "drop": True}

OWN_ROOT = "/proc/self/root"  # the kernel's link to the root that a process sees


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
    stubborn = (
        "import signal\nsignal.signal(signal.SIGXCPU, signal.SIG_IGN)\n"
        "while True:\n try:\n  while True: pass\n except BaseException: pass"
    )
    assert why(sandbox, "while True: pass") in {"ended by SIGXCPU", "timeout"}
    hasty = Sandbox("auto", timeout=0.1)
    began = time.monotonic()
    try:
        assert why(hasty, "import time\nwhile True: time.sleep(9)") == "timeout"
        assert why(hasty, stubborn) == "timeout"
    finally:
        hasty.close()
    assert time.monotonic() - began < 10


def test_memory_is_bounded(sandbox: Sandbox) -> None:
    # zeroed by the kernel, untouched: filling a gigabyte can cost more than the CPU time allowed
    assert why(sandbox, "x = bytearray(4 << 30)") == "MemoryError"
    assert why(sandbox, "x = []\nwhile True: x.append(bytes(1 << 26))") == "MemoryError"


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


def test_installed_packages_and_their_answers_are_out_of_reach(sandbox: Sandbox) -> None:
    library = Path(os.__file__).parent
    packages = [library / "site-packages", library / "dist-packages"]
    files = [path for folder in packages for path in folder.glob("*/*") if path.is_file()]
    if not files:
        pytest.skip("no package is installed inside the standard library's folder")
    assert why(sandbox, f"open({str(files[0])!r}).read()") in {
        "PermissionError",
        "FileNotFoundError",
    }


def test_programs_import_the_standard_library_wherever_this_python_lives(sandbox: Sandbox) -> None:
    assert len(imports.standard_modules()) > 150
    assert sandbox.not_imported() == []
    for program in (
        "import xml.etree.ElementTree as E; assert E.fromstring('<a>1</a>').text == '1'",
        "import sqlite3; assert [*sqlite3.connect(':memory:').execute('select 1')] == [(1,)]",
        "import bz2, lzma, zlib, gzip; assert lzma.decompress(lzma.compress(b'a')) == b'a'",
        "from unittest.mock import Mock; from concurrent.futures import Future; Mock()()",
        "import email.mime.text, importlib.metadata, json.tool, urllib.parse, wsgiref.util",
        "assert 'é'.encode('cp437') == b'\\x82'",
        "import runpy; assert runpy.run_module('colorsys')['rgb_to_hsv'](0, 0, 0) == (0, 0, 0)",
        "import colorsys, os; assert os.path.basename(colorsys.__file__) == 'colorsys.py'",
    ):
        assert sandbox.run([program])[0].why == ""


def test_a_sandbox_without_the_library_is_none(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [*imports.standard_modules(), "absent_module", *(f"absent_{n}" for n in range(9))]
    monkeypatch.setattr(imports, "standard_modules", lambda: names)
    box = Sandbox(sandbox.kind)
    reason = box.unusable()
    box.close()
    assert reason is not None
    assert "programs can't import absent_module, absent_0, " in reason
    assert "absent_6 and 2 more, which this Python has" in reason


def test_the_object_graph_holds_no_key(sandbox: Sandbox) -> None:
    walk = (
        "found = {c.__name__: c for c in object.__subclasses__()}\n"
        "doors = found['_wrap_close'].__init__.__globals__\n"
    )
    for call in ("'fork']()", "'execv']('/bin/true', ['true'])", "'open']('/etc/passwd', 0)"):
        assert why(sandbox, f"{walk}doors[{call}") == "PermissionError"
    # the nonce is made after the fork: no frame and no object of the child holds it
    search = (
        "import gc, os, sys\n"
        "frame, seen = sys._getframe(), []\n"
        "while frame: seen += frame.f_locals.values(); frame = frame.f_back\n"
        "seen += [o for o in gc.get_objects() if type(o) is dict]\n"
        "flat = [x for o in seen for x in (o.values() if type(o) is dict else [o])]\n"
        "keys = {x for x in flat if type(x) in (str, bytes) and len(x) == 32}\n"
        "mine = os.read(4, 64)\n"
        "assert mine not in keys and mine.decode() not in keys\n"
        "assert len(mine) == 32"
    )
    # it came to its end, but spent the nonce on the way
    assert why(sandbox, search) != "AssertionError"


def test_the_private_folder_serves_and_is_emptied(sandbox: Sandbox) -> None:
    honest = (
        "import os, shutil, tempfile\n"
        "assert os.listdir('.') == []\n"
        "with tempfile.TemporaryDirectory() as d, open(f'{d}/a', 'w+') as f:\n"
        "    f.write('x'); f.seek(0); assert f.read() == 'x'\n"
        "with tempfile.NamedTemporaryFile() as f: f.write(b'x')\n"
        "os.makedirs('a/b/c'); os.rename('a/b', 'd'); shutil.rmtree('a')\n"
        "open('left', 'w').write('secret')"
    )
    results = sandbox.run([honest, honest])
    sandbox.run(["import os; os.mkdir('locked', 0)", "import os; os.makedirs('a/b/c/d')"])
    assert sandbox.run(["import os; assert os.listdir('.') == []"])[0].passed
    assert [result.why for result in results] == ["", ""]


def test_the_disk_is_not_filled(sandbox: Sandbox) -> None:
    assert why(sandbox, "open('a', 'wb').write(bytes(8 << 20))") == "OSError"
    many = "x = bytes(1 << 20)\nfor i in range(9999): open(f'{i}', 'wb').write(x)"
    assert why(sandbox, many) in {"disk limit", "OSError"}
    assert why(sandbox, "for i in range(10**7): open(f'{i}', 'w')") == "disk limit"
    deep = (
        "import os\nat = os.open('.', 0)\nwhile True:\n os.mkdir('d' * 200, dir_fd=at)\n"
        " below = os.open('d' * 200, 0, dir_fd=at); os.close(at); at = below"
    )
    assert why(sandbox, deep) == "disk limit"
    assert sandbox.run(["import os; assert os.listdir('.') == []"])[0].passed


def test_links_lead_nowhere(sandbox: Sandbox, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_text("untouched")
    outside.chmod(0o666)
    tmp_path.chmod(0o777)
    for attack in (
        f"os.symlink({str(outside)!r}, 'link')",
        f"os.link({str(outside)!r}, 'link')",
        f"os.rename({str(outside)!r}, 'mine')",
        f"open('mine', 'w'); os.rename('mine', {str(tmp_path / 'out')!r})",
        "os.mkfifo('fifo')",
        f"open('{OWN_ROOT}/etc/passwd')",
        "open('/proc/self/fd/4').read()",
        "open('/dev/fd/4').read()",
        "open('../../../../../../../../etc/passwd')",
        "os.chdir('/etc'); open('passwd')",
    ):
        assert why(sandbox, f"import os; {attack}") in {"PermissionError", "FileNotFoundError"}
    # a link that was there before, put into the private folder from outside
    assert sandbox._tmp is not None
    (Path(sandbox._tmp.name) / "link").symlink_to(outside)
    for attack in (
        "open('link').read()",
        "open('link', 'w')",
        "__import__('os').listdir('link/..')",
    ):
        (Path(sandbox._tmp.name) / "link").unlink(missing_ok=True)
        (Path(sandbox._tmp.name) / "link").symlink_to(outside)
        assert why(sandbox, attack) in {"PermissionError", "NotADirectoryError"}
    assert outside.read_text() == "untouched"
    assert [path.name for path in tmp_path.iterdir()] == ["outside"]


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
    for kind in (
        "AF_INET, socket.SOCK_DGRAM",
        "AF_INET6",
        "AF_UNIX",
        "AF_NETLINK, socket.SOCK_RAW",
    ):
        assert why(sandbox, f"import socket; socket.socket(socket.{kind})") == "PermissionError"
    abstract = "import socket; socket.socketpair()[0].connect('\\0mixloop')"
    assert why(sandbox, abstract) == "PermissionError"


def test_nobody_else_is_signalled(sandbox: Sandbox) -> None:
    sleeper = subprocess.Popen(["sleep", "30"])
    try:
        for target in ("os.getppid()", str(sleeper.pid), str(os.getpid()), "-1"):
            attack = f"import os; os.kill({target}, 9)"
            assert why(sandbox, attack) == "PermissionError"
        owned = f"import fcntl; fcntl.fcntl(3, fcntl.F_SETOWN, {sleeper.pid})"
        assert why(sandbox, owned) == "PermissionError"
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


def test_without_landlock_and_bubblewrap_the_reasons_are_named() -> None:
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        # no code of pytest's may run in the copy, whatever happens
        try:
            refuse(LANDLOCK)
            os.environ["PATH"] = ""
            box = Sandbox("auto")
            os.write(writing, f"{box.unusable()} {box.kind}".encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        said = pipe.read()
    os.waitpid(child, 0)
    assert "landlock: can't start programs: landlock is not available" in said
    assert "bwrap: bubblewrap is not installed" in said
    assert said.endswith(" none")


@pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed")
def test_bubblewrap_is_the_alternative() -> None:
    box = Sandbox("bwrap", timeout=1.0)
    if box.unusable() is not None:
        pytest.skip(f"this machine lets nobody use bubblewrap: {box.unusable()}")
    try:
        assert box.run(["assert 1 + 1 == 2"])[0].passed
        assert box.run(["open('a', 'w').write('x'); assert open('a').read() == 'x'"])[0].passed
        assert box.run(["import os; assert os.listdir('.') == []"])[0].passed
        for attack in (
            "open('/etc/passwd')",
            "open('/usr/new', 'w')",
            "open('/dev/shm/new', 'w')",
            "open('/dev/new', 'w')",
            "open('/tmp/new', 'w')",
            "import os; os.kill(os.getppid(), 9)",
            "for i in range(10**7): open(f'{i}', 'w')",
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


# each must fail, whoever runs it; {outside} is a file that everyone may read and write
ATTACKS = (
    "open('/etc/passwd')",
    "open('{outside}')",
    "open('{outside}', 'a')",
    "open('{outside}-new', 'w')",
    f"open('{OWN_ROOT}/etc/passwd')",
    "import os; open(f'/proc/{os.getppid()}/fd/0', 'w')",
    "import os; open(f'/proc/{os.getppid()}/fd/1', 'w')",
    "import os; open(f'/proc/{os.getppid()}/mem')",
    "open('../' * 9 + 'etc/passwd')",
    "import os; os.fork()",
    "import os; os.execv('/bin/true', ['true'])",
    "import os; os.kill(os.getppid(), 9)",
    "import os, fcntl; fcntl.fcntl(3, fcntl.F_SETOWN, os.getppid())",
    "import socket; socket.socket(socket.AF_INET, socket.SOCK_STREAM)",
    "import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM)",
    "import socket; socket.socket(socket.AF_UNIX)",
    "import os; os.symlink('{outside}', 'link')",
    "import os; os.link('{outside}', 'link')",
    "import os; os.rename('{outside}', 'mine')",
    "x = bytearray(4 << 30)",
    "open('big', 'wb').write(bytes(32 << 20))",
    "import ctypes; ctypes.CDLL(None, use_errno=True).unshare(0x10000000) and 1 / 0",
)


UNSHARE = {"x86_64": 272, "aarch64": 97}.get(platform.machine(), -1)
LANDLOCK = 444


def refuse(number: int) -> None:
    """Has this process and its children refused one system call from here on."""
    steps = [(0x20, 0, 0, 0), (0x15, 0, 1, number), (0x06, 0, 0, 0x50001), (0x06, 0, 0, 0x7FFF0000)]
    code = b"".join(struct.pack("<HBBI", *step) for step in steps)
    buffer = ctypes.create_string_buffer(code, len(code))
    program = ctypes.create_string_buffer(
        struct.pack("@HxxxxxxQ", len(steps), ctypes.addressof(buffer))
    )
    libc = ctypes.CDLL(None)
    nothing = ctypes.c_ulong(0)
    assert libc.prctl(38, ctypes.c_ulong(1), nothing, nothing, nothing) == 0
    assert libc.prctl(22, ctypes.c_ulong(2), program, nothing, nothing) == 0
    assert libc.syscall(ctypes.c_long(number), nothing, nothing, nothing) == -1


def attack_as(user: int, namespaces: bool, tmp: Path, programs: Sequence[str]) -> list[str]:
    """What stopped each program, run from a process of that user; empty where it passed."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        # no code of pytest's may run in the copy, whatever happens
        try:
            restrictions.give_away(str(tmp)) if user == 0 else os.chown(tmp, user, user)
            if user:
                os.setgroups([])
                os.setresgid(user, user, user)
                os.setresuid(user, user, user)
            if not namespaces:
                refuse(UNSHARE)
            answers = [
                server.run_program(program, {**CONFIG, "tmp": str(tmp)}) for program in programs
            ]
            said = [
                program["why"] if program["locked"] else f"not locked: {program['why']}"
                for program in answers
            ]
        except BaseException as error:
            said = [repr(error)]
        os.write(writing, json.dumps(said).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        said = json.loads(pipe.read())
    os.waitpid(child, 0)
    return list(said)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become someone else")
@pytest.mark.parametrize("namespaces", [True, False], ids=["namespaces", "no-namespaces"])
@pytest.mark.parametrize("user", [0, 12345], ids=["root", "ordinary"])
def test_whoever_runs_it_every_attack_is_stopped(
    sandbox: Sandbox, user: int, namespaces: bool
) -> None:
    if sandbox.kind != "landlock":
        pytest.skip("landlock is not available")
    # pytest's own temporary folder is one that an ordinary user can't enter
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        outside, private = Path(folder) / "outside", Path(folder) / "private"
        outside.write_text("untouched")
        outside.chmod(0o666)
        private.mkdir()
        attacks = [attack.replace("{outside}", str(outside)) for attack in ATTACKS]
        honest, *stopped = attack_as(user, namespaces, private, ["open('a', 'w')", *attacks])
        assert honest == ""
        results = dict(zip(attacks, stopped, strict=True))
        assert {a: r for a, r in results.items() if not r or r.startswith("not locked")} == {}
        assert outside.read_text() == "untouched"
        assert {path.name for path in Path(folder).iterdir()} == {"outside", "private"}
        assert list(private.iterdir()) == []


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become someone else")
def test_an_ordinary_user_serves_programs_from_its_own_interpreter(sandbox: Sandbox) -> None:
    if sandbox.kind != "landlock":
        pytest.skip("landlock is not available")
    user: dict[str, Any] = {"user": 12345, "group": 12345, "extra_groups": [], "cwd": "/"}
    python = next(
        (p for p in (os.path.realpath(sys.executable), "/usr/bin/python3") if opens(p, user)), None
    )
    if python is None:
        pytest.skip("no interpreter that another user can start")
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        for module in (restrictions, server):
            shutil.copy(str(module.__file__), folder)
        private = Path(folder) / "private"
        private.mkdir()
        os.chown(private, 12345, 12345)
        command = [python, "-I", "-S", "-B", f"{folder}/server.py"]
        programs = [
            "import wave, os; open('a', 'w'); assert os.getuid() == 12345",
            f"import os; open({folder + '/server.py'!r})",
            "import os; os.listdir('/tmp')",
            "import os; open(f'/proc/{os.getppid()}/fd/0', 'w')",
            "import os; os.kill(os.getppid(), 9)",
            "import os; assert os.listdir('.') == []",
        ]
        lines = "".join(json.dumps({"program": program}) + "\n" for program in programs)
        done = subprocess.run(
            [*command, json.dumps({**CONFIG, "tmp": str(private)})],
            input=lines,
            capture_output=True,
            text=True,
            check=True,
            env={},
            **user,
        )
    said = [json.loads(line)["why"] for line in done.stdout.splitlines()]
    assert said == ["", *["PermissionError"] * 4, ""]


def opens(python: str, user: dict[str, Any]) -> bool:
    """Whether that user can start the interpreter."""
    try:
        return subprocess.run([python, "-I", "-c", ""], check=False, **user).returncode == 0
    except OSError:
        return False


def judge(program: bytes, audit: int, number: int, second: int = 0) -> int:
    """Runs a seccomp filter on one call, as the kernel would: what it returns."""
    accumulator = position = 0
    words = {0: number, 4: audit, 24: second}
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
# truncate chmod link symlink mknod
FORBIDDEN = {
    "x86_64": (
        56,
        57,
        58,
        59,
        41,
        42,
        62,
        101,
        165,
        272,
        304,
        322,
        425,
        321,
        435,
        200,
        234,
        76,
        90,
        91,
        86,
        88,
        133,
    ),
    "aarch64": (
        220,
        97,
        221,
        198,
        203,
        129,
        117,
        40,
        265,
        281,
        425,
        280,
        435,
        130,
        131,
        45,
        52,
        53,
        36,
        37,
        33,
    ),
}


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_the_filter_allows_the_list_and_nothing_else(machine: str) -> None:
    audit, allowed = restrictions.ARCHITECTURES[machine]
    narrowed = restrictions.NARROWED[machine]
    program = restrictions.seccomp_filter(machine)
    verdicts = {number: judge(program, audit, number, 0xFFFF) for number in range(600)}
    assert {n for n, verdict in verdicts.items() if verdict == 0x7FFF0000} == set(allowed)
    assert {v for n, v in verdicts.items() if n not in allowed} == {0x00050001}
    for number, commands in narrowed.items():
        passing = {
            c
            for c in (*range(2048), *range(0x5400, 0x5460))
            if judge(program, audit, number, c) == 0x7FFF0000
        }
        assert passing == set(commands)
    assert not set(FORBIDDEN[machine]) & set(allowed)
    assert judge(program, audit ^ 1, 0) == 0x80000000
    assert judge(program, audit, 0x40000000) == 0x80000000


def test_this_machine_is_known() -> None:
    assert platform.machine() in restrictions.ARCHITECTURES
