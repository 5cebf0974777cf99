"""The sandbox's fork server: a bare interpreter that runs programs in locked-down children.

Started by `sandbox` as a script (`python -I -S`), so it imports nothing of mixloop and nothing
outside the standard library. One JSON line in (`program`), one out (`passed`, `why`).
A child is a fork: it never executes a file, so an interpreter that lies in a folder the child may
not enter is no obstacle. Nor is a library there: as root the server has read all of it, and it has
loaded what is no Python, which may need libraries from elsewhere, for every user.

What a child is under, in this order: rlimits (CPU, memory, processes, file size, open files),
landlock (reads of the standard library without installed packages, reads and writes of one
private folder, no TCP, no signals to or sockets of others), an unprivileged user when the server
is root, and a seccomp list of allowed system calls (no fork, exec, sockets, signals, links,
ptrace or mounts). Its output goes to /dev/null. The private folder is looked at every 20 ms while
a program runs, which ends when it holds too much, and is emptied after each.

What that does not cover is `restrictions.NOT_COVERED`.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import importlib
import json
import marshal
import os
import select
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from importlib.machinery import EXTENSION_SUFFIXES, ModuleSpec
from importlib.util import MAGIC_NUMBER, cache_from_source
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

if __package__:
    from . import restrictions as locks
else:
    # isolated mode leaves a script's own folder out of the path
    sys.path.insert(0, str(Path(__file__).parent))
    import restrictions as locks  # type: ignore[import-not-found,no-redef]

    del sys.path[0]

# what most programs want, imported once for all of them
PRELOADED = (
    "abc array base64 bisect calendar cmath collections collections.abc contextlib copy datetime "
    "decimal enum fractions functools hashlib heapq inspect io itertools json math numbers "
    "operator queue random re shutil socket statistics string struct tempfile textwrap threading "
    "time traceback types typing unicodedata unittest uuid encodings.ascii encodings.base64_codec "
    "encodings.cp1252 encodings.hex_codec encodings.idna encodings.latin_1 encodings.rot_13 "
    "encodings.utf_16 encodings.utf_32"
)

# parts of the library that no program is about; installed packages hold benchmarks' answers
_LEFT_OUT = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}
_NO_EXTENSION = ("_test", "_xx", "xx")

_OUTPUT, _NONCE = 3, 4


class Library:
    """The standard library's Python modules from memory: a finder and loader for `sys.meta_path`.

    Args:
        folder: Where they are read from, once.
    """

    def __init__(self, folder: Path) -> None:
        self._modules: dict[str, tuple[Path, bytes]] = {}
        for here, folders, files in os.walk(folder):
            folders[:] = [name for name in folders if name not in _LEFT_OUT and name.isidentifier()]
            package = Path(here).relative_to(folder).parts
            for name in files:
                if name.endswith(".py"):
                    parts = package if name == "__init__.py" else (*package, name[:-3])
                    with contextlib.suppress(OSError):
                        path = Path(here, name)
                        self._modules[".".join(parts)] = (path, _compiled_or_source(path))

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The module by this name; None where it is none of these."""
        if name not in self._modules:
            return None
        file = self._modules[name][0]
        spec = ModuleSpec(name, self, origin=str(file))  # type: ignore[arg-type]
        spec.has_location = True
        if file.name == "__init__.py":
            spec.submodule_search_locations = [str(file.parent)]
        return spec

    def create_module(self, spec: ModuleSpec) -> None:
        """Modules are made as usual."""

    def exec_module(self, module: ModuleType) -> None:
        """Run it."""
        exec(self.get_code(module.__name__), module.__dict__)

    def get_code(self, name: str) -> Any:
        """Its code, as `runpy` asks too."""
        file, text = self._modules[name]
        if text[:4] == MAGIC_NUMBER:
            return marshal.loads(text[16:])
        return compile(text, str(file), "exec", dont_inherit=True)


def _compiled_or_source(path: Path) -> bytes:
    """A module's compiled file if that is of its source (PEP 552), else the source."""
    with contextlib.suppress(OSError):
        compiled, of = Path(cache_from_source(str(path))).read_bytes(), path.stat()
        told = [int.from_bytes(compiled[at : at + 4], "little") for at in (4, 8, 12)]
        made_of = [0, int(of.st_mtime) & 0xFFFFFFFF, of.st_size & 0xFFFFFFFF]
        if compiled[:4] == MAGIC_NUMBER and told == made_of:
            return compiled
    return path.read_bytes()


def _load_extensions() -> None:
    """Import every module that is no Python: a child can't open its file, or what that needs."""
    for folder in map(Path, sys.path):
        for file in sorted(folder.iterdir() if folder.name == "lib-dynload" else ()):
            name = file.name.partition(".")[0]
            if file.name.endswith(tuple(EXTENSION_SUFFIXES)) and not name.startswith(_NO_EXTENSION):
                # of another system, or without a library that it wants: nobody can import it here
                with contextlib.suppress(Exception):
                    importlib.import_module(name)


def _child(program: str, config: Mapping[str, Any], output: int, nonce: int) -> NoReturn:
    # a program may replace the modules' own
    give, take, leave = os.write, os.read, os._exit
    try:
        # both above the numbers they are about to take
        output, nonce = locks.lifted(output), locks.lifted(nonce)
        os.dup2(output, _OUTPUT)
        os.dup2(nonce, _NONCE)
        nothing = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(nothing, stream)
        os.setsid()
        os.chdir(config["tmp"])
        os.environ["TMPDIR"] = config["tmp"]
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        locks.lock_down(config)
    except BaseException as error:
        give(_OUTPUT, f"{error}".encode()[:200])
        leave(1)
    give(_OUTPUT, b"S")
    try:
        exec(compile(program, "<program>", "exec"), {})
        give(_OUTPUT, take(_NONCE, 64))
    except BaseException as error:
        give(_OUTPUT, b"!" + type(error).__name__.encode()[:60])
    finally:
        leave(0)


def run_program(program: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """Runs one program in a child and says whether it came to its end without an error.

    The child writes back a nonce that is made after the fork, so that it is nowhere in its
    memory, and waits in a pipe the harness reads after the program: exiting early, however
    cleanly, is a failure. `locked` is false when the child could not be locked down; then the
    program was not run.
    """
    result, output = os.pipe()
    waiting, key = os.pipe()
    try:
        locks.prepare(config)
        child = os.fork()
    except OSError as error:
        for end in (result, output, waiting, key):
            os.close(end)
        return {"locked": False, "passed": False, "why": f"can't start programs: {error}"}
    if child == 0:
        _child(program, config, output, waiting)
    nonce = os.urandom(16).hex().encode()
    os.write(key, nonce)
    for end in (output, waiting, key):
        os.close(end)
    deadline = time.monotonic() + 2 * config["timeout"] + 1
    written, stopped = _read(result, deadline, config["tmp"])
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    os.close(result)
    empty(Path(config["tmp"]))
    if not written.startswith(b"S"):
        why = written.decode("ascii", "replace") or f"child ended with status {status}"
        return {"locked": False, "passed": False, "why": why}
    passed = written[1:] == nonce
    return {"locked": True, "passed": passed, "why": _why(written, status, stopped, passed)}


def _read(pipe: int, deadline: float, private: str) -> tuple[bytes, str]:
    """What the child wrote (at most 256 bytes) until it closed its end, or why it must stop."""
    written = b""
    while len(written) < 256:
        if time.monotonic() >= deadline:
            return written, "timeout"
        if not select.select([pipe], [], [], 0.02)[0]:
            if _overfull(private):
                return written, "disk limit"
            continue
        part = os.read(pipe, 256 - len(written))
        if not part:
            break
        written += part
    return written, ""


def _overfull(private: str) -> bool:
    """Whether the folder holds more than it may, or more than can be looked at."""
    folders, count, held = [private], 0, 0
    try:
        while folders:
            with os.scandir(folders.pop()) as entries:
                for entry in entries:
                    count += 1
                    held += 512 * entry.stat(follow_symlinks=False).st_blocks
                    if count > locks.DISK_ENTRIES or held > locks.DISK_BYTES:
                        return True
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(entry.path)
    except OSError as error:
        # a folder the program has just removed is no offence; one that is locked or too deep is
        return error.errno != errno.ENOENT
    return False


def empty(private: Path) -> None:
    """Removes what is in the folder. Folders in folders are lifted to the top, however deep."""
    while entries := list(private.iterdir()):
        for entry in entries:
            if entry.is_symlink() or not entry.is_dir():
                entry.unlink()
                continue
            entry.chmod(0o700)
            for inner in entry.iterdir():
                if not inner.is_symlink() and inner.is_dir():
                    inner.chmod(0o700)
                inner.rename(private / os.urandom(16).hex())
            entry.rmdir()


def _why(written: bytes, status: int, stopped: str, passed: bool) -> str:
    if passed or stopped:
        return "" if passed else stopped
    if written[1:2] == b"!":
        name = written[2:].decode("ascii", "replace")
        return "".join(c for c in name if c.isalnum() or c == "_")
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) != signal.SIGKILL:
        return f"ended by {signal.Signals(os.WTERMSIG(status)).name}"
    return "ended before its end"


def main() -> None:
    """Serves until its input ends."""
    config = json.loads(sys.argv[1])
    locks.die_with_parent()
    os.environ.clear()
    # what is imported may print
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    if config["drop"] and os.getuid() == 0:
        locks.give_away(config["tmp"])
        sys.meta_path.insert(0, Library(Path(os.__file__).parent))
    _load_extensions()
    for name in PRELOADED.split():
        importlib.import_module(name)
    # a child's collections would copy what it shares with the server
    gc.freeze()
    # program texts and answers go over descriptors a child closes first
    for line in sys.stdin.buffer:
        request = json.loads(line)
        answer = run_program(request["program"], config)
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
