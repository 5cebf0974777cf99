"""Runs generated programs where they can do no harm; says so when it can't.

A fork server (`server`) runs each program in a child locked down by landlock, seccomp,
rlimits and, as root, a change of user: about 4 ms a program, no namespaces, no packages. Where
the kernel has no landlock the whole server runs inside bubblewrap instead. A program may write to
one private folder, emptied after it. Before the first program a self-test tries what must be
impossible; if anything of it succeeds, nothing is run. What is not covered is
`restrictions.NOT_COVERED`. Programs find the standard library, wherever this Python lives, but no
installed package; where they don't, no program is run.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mixloop.evals import SandboxMode

from . import imports
from .server import empty

MEMORY = 512 * 2**20

_NAMED = 8  # modules in a reason
_LIBRARIES = "LD_LIBRARY_PATH"

_SERVER = Path(__file__).with_name("server.py")
_LOCKS = Path(__file__).with_name("restrictions.py")

# passes only if none of it is possible
_SELF_TEST = """
import os, socket
def attempt(what):
    try:
        what()
    except (OSError, RuntimeError):
        return
    raise AssertionError("possible")
attempt(lambda: open("/etc/passwd").read(1))
attempt(lambda: open("/usr/mixloop-self-test", "w"))
attempt(lambda: open("/mixloop-self-test", "w"))
attempt(lambda: socket.socket())
attempt(lambda: os.fork())
attempt(lambda: os.kill(os.getppid(), 0))
attempt(lambda: os.execv("/bin/true", ["true"]))
"""


class SandboxError(Exception):
    """The sandbox failed; nothing can be said about the program."""


@dataclass(frozen=True)
class Result:
    """Whether a program came to its end without an error, and if not, what it met."""

    passed: bool
    why: str = ""


class Sandbox:
    """A sandbox of the given mode, started when first needed.

    `auto` is landlock, else bubblewrap, else nothing: programs are then not run. `off` runs them
    with limits on time and memory only, which is the user's explicit choice. `timeout` is CPU
    seconds per program; twice as much and a second in wall time.
    """

    def __init__(self, mode: SandboxMode = "auto", timeout: float = 3.0) -> None:
        self._mode = mode
        self._timeout = timeout
        self._server: subprocess.Popen[str] | None = None
        self._tmp: tempfile.TemporaryDirectory[str] | None = None
        self._kind = ""
        self._reason: str | None = None

    @property
    def kind(self) -> str:
        """landlock, bwrap, off; `none` when nothing is usable; empty before the first use."""
        return self._kind

    def unusable(self) -> str | None:
        """Starts the sandbox if need be; why no program can be run, or None."""
        if not self._kind:
            self._choose()
        return self._reason

    def run(self, programs: Sequence[str]) -> list[Result]:
        """Runs the programs one after another.

        Raises:
            SandboxError: nothing can be said about them.
        """
        reason = self.unusable()
        if reason is not None:
            raise SandboxError(reason)
        return [self._one(program) for program in programs]

    def not_imported(self) -> list[str]:
        """The modules of this Python's library that programs can't import, after trying each.

        Raises:
            SandboxError: nothing can be said about them.
        """
        return imports.not_imported(lambda program: self.run([program])[0].passed)

    def close(self) -> None:
        """Ends the server."""
        server, self._server = self._server, None
        if server is not None:
            server.kill()
            server.wait()
            for pipe in (server.stdin, server.stdout):
                if pipe is not None:
                    pipe.close()
        folder, self._tmp = self._tmp, None
        if folder is not None:
            # a program that dies with its server may still be writing
            with contextlib.suppress(OSError):
                empty(Path(folder.name))
            folder.cleanup()

    def _choose(self) -> None:
        kinds = ("landlock", "bwrap") if self._mode == "auto" else (self._mode,)
        reasons: list[str] = []
        for kind in kinds:
            self._kind = kind
            reason = self._probe(kind)
            if reason is None:
                return
            reasons.append(f"{kind}: {reason}")
            self.close()
        self._kind, self._reason = "none", "no usable sandbox (" + "; ".join(reasons) + ")"

    def _probe(self, kind: str) -> str | None:
        if kind == "bwrap" and shutil.which("bwrap") is None:
            return "bubblewrap is not installed"
        try:
            if not self._one("assert 1 + 1 == 2").passed:
                return "a harmless program does not run"
            if kind != "off" and not self._one(_SELF_TEST).passed:
                return "its self-test got through"
            lost = imports.not_found(lambda program: self._one(program).passed)
            if lost:
                return f"programs can't import {_shortened(lost)}, which this Python has"
        except SandboxError as error:
            return str(error)
        return None

    def _one(self, program: str) -> Result:
        # a lone surrogate can't be written in any source file
        text = program.encode("utf-8", "replace").decode()
        request = json.dumps({"program": text})
        try:
            server = self._serving()
            assert server.stdin is not None
            assert server.stdout is not None
            server.stdin.write(request + "\n")
            server.stdin.flush()
            answer = json.loads(server.stdout.readline())
        except (OSError, ValueError) as error:
            self.close()
            raise SandboxError(f"its server failed: {error}") from error
        if not answer["locked"]:
            raise SandboxError(answer["why"])
        return Result(answer["passed"], answer["why"])

    def _serving(self) -> subprocess.Popen[str]:
        if self._server is None or self._server.poll() is not None:
            self.close()
            self._tmp = tempfile.TemporaryDirectory(
                prefix="mixloop-sandbox-", ignore_cleanup_errors=True
            )
            self._server = subprocess.Popen(
                _command(self._kind, self._timeout, os.path.realpath(self._tmp.name)),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                # the interpreter may need it for its own libraries; programs don't see it
                env={name: os.environ[name] for name in (_LIBRARIES,) if name in os.environ},
                cwd="/",
                text=True,
            )
        return self._server


def _shortened(names: Sequence[str]) -> str:
    """The names for a person, the first few of many."""
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def _command(kind: str, timeout: float, private: str) -> list[str]:
    config = {
        "tmp": private,
        "timeout": timeout,
        "memory": MEMORY,
        "locked": kind != "off",
        "landlock": kind == "landlock",
        "drop": kind == "landlock",
    }
    # the interpreter itself: a virtual environment's link would want its pyvenv.cfg
    python = os.path.realpath(sys.executable)
    server = [python, "-I", "-S", "-B", str(_SERVER), json.dumps(config)]
    return [*_bubblewrap(private), *server] if kind == "bwrap" else server


def _bubblewrap(private: str) -> list[str]:
    """Bubblewrap with its own namespaces, no network and a read-only view of the interpreter."""
    command = [shutil.which("bwrap") or "bwrap", "--unshare-all", "--die-with-parent"]
    command += ["--new-session", "--cap-drop", "ALL", "--dev", "/dev"]
    for folder in ("/usr", "/lib", "/lib64", "/bin"):
        command += ["--ro-bind-try", folder, folder]
    for path in (os.path.realpath(sys.base_prefix), str(_SERVER), str(_LOCKS)):
        command += ["--ro-bind", path, path]
    command += ["--bind", private, private]
    return [*command, "--remount-ro", "/dev", "--remount-ro", "/", "--chdir", "/", "--"]
