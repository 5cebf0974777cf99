"""Every step at which this process changes the disk, numbered, and what may befall it there.

Under our own code lie ``os.open`` (where it may make a file), ``os.write``, ``os.fsync``,
``os.rename``, ``os.replace``, ``os.mkdir`` and ``os.unlink``; under the journal lie SQLite's own
system calls, which its unix VFS lets be replaced (``xSetSystemCall``). Each call is one step, a
write two: nothing of it done, and half of it done. Where SQLite is linked so that its library can't
be found, its statements are the steps instead (:attr:`Shim.depth` says which).
"""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

KILL, STOP, FULL, READONLY = "kill", "stop", "full", "readonly"
QUOTA, LIMIT, FILES = "quota", "limit", "files"
_ERRORS = {
    FULL: errno.ENOSPC,
    READONLY: errno.EROFS,
    QUOTA: errno.EDQUOT,
    LIMIT: errno.EFBIG,
    FILES: errno.EMFILE,
}
ILLS = frozenset(_ERRORS)
_WRITES = frozenset({"write", "pwrite", "pwrite64"})
_REFUSED = {FULL: _WRITES | {"mkdir"}, QUOTA: _WRITES | {"mkdir"}, LIMIT: _WRITES, FILES: {"open"}}


class Shim:
    """Counts steps; at number ``at`` the fate comes.

    ``kill``: SIGKILL, at once. ``stop``: SIGSTOP, at once; whoever sends SIGCONT sets it going.
    ``full``, ``readonly``: every step from there on that needs room (or changes anything) fails
    with ENOSPC (EROFS), until :meth:`mend`. ``quota``, ``limit``, ``files``: likewise with EDQUOT,
    EFBIG (RLIMIT_FSIZE) and EMFILE (where a file is made).

    Args:
        at: The step; 0 is never.
        fate: What happens.
        outside: Count only what lies outside of SQLite's transactions: a process that stops inside
            of one keeps the file locked, and nobody can take over.
    """

    def __init__(self, at: int, fate: str, *, outside: bool = False) -> None:
        self.at, self.fate, self.outside = at, fate, outside
        self.count = 0
        self.names: list[str] = []
        self.action = "start"  # that is under way
        self.ailing = False
        self.depth = "statements"
        self.off = False
        self._kept: list[Any] = []

    def mend(self) -> None:
        """There is room again."""
        self.ailing, self.at = False, 0

    def tick(self, name: str, *, inside: bool = False) -> int:
        """A step begins. Returns the errno it has to fail with, or 0."""
        if self.off or (inside and self.outside):
            return 0
        self.count += 1
        self.names.append(f"{name} in {self.action}")
        if self.count == self.at:
            if self.fate == KILL:
                os.kill(os.getpid(), signal.SIGKILL)
            elif self.fate == STOP:
                os.kill(os.getpid(), signal.SIGSTOP)
            else:
                self.ailing = True
        return self._refusal(name.partition(" ")[0])

    def _refusal(self, call: str) -> int:
        if not self.ailing or call not in _REFUSED.get(self.fate, {call}):
            return 0
        return 0 if call == "fsync" else _ERRORS[self.fate]

    # -- our own layer -----------------------------------------------------------------------

    def install(self) -> None:
        """From here on every step of this process counts."""
        for name in ("fsync", "rename", "replace", "mkdir", "unlink"):
            setattr(os, name, self._around(name, getattr(os, name)))
        real_open, real_write = os.open, os.write

        def opening(path: Any, flags: int, *args: Any, **kwargs: Any) -> int:
            if flags & (os.O_CREAT | os.O_TRUNC):
                self._check("open", path)
            return real_open(path, flags, *args, **kwargs)

        def writing(handle: int, data: Any) -> int:
            self._check("write", None)
            if self._halves():
                real_write(handle, bytes(data)[: len(data) // 2])
            self._check("write half", None)
            return real_write(handle, data)

        os.open, os.write = opening, writing
        if not self._install_sqlite():
            self._install_statements()

    def _halves(self) -> bool:
        return self.fate == KILL and self.count + 1 == self.at and not self.off

    def _check(self, name: str, path: Any) -> None:
        code = self.tick(f"{name} {Path(path).name}" if path is not None else name)
        if code:
            raise OSError(code, os.strerror(code), str(path or ""))

    def _around(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(path: Any, *args: Any, **kwargs: Any) -> Any:
            self._check(name, None if isinstance(path, int) else path)
            return call(path, *args, **kwargs)

        return wrapped

    # -- SQLite's ----------------------------------------------------------------------------

    def _install_statements(self) -> None:
        shim = self

        class Watched(sqlite3.Connection):
            def execute(self, sql: str, *args: Any) -> sqlite3.Cursor:  # type: ignore[override]
                word = sql.split(None, 1)[0].upper()
                writes = word not in ("SELECT", "PRAGMA")
                if writes and (code := shim.tick(f"write {word}", inside=word != "BEGIN")):
                    raise sqlite3.OperationalError(os.strerror(code))
                return super().execute(sql, *args)

        connect = sqlite3.connect
        sqlite3.connect = lambda *a, **k: connect(*a, factory=Watched, **k)  # type: ignore[assignment,misc]

    def _install_sqlite(self) -> bool:
        library = _library()
        if library is None:
            return False
        found = library.sqlite3_vfs_find
        found.restype = ctypes.POINTER(_Vfs)
        vfs = found(None)
        if not vfs or vfs.contents.iVersion < 3 or not vfs.contents.xSetSystemCall:
            return False
        int_, size, ssize, offset = ctypes.c_int, ctypes.c_size_t, ctypes.c_ssize_t, ctypes.c_int64
        text, void = ctypes.c_char_p, ctypes.c_void_p
        calls = {
            "open": (int_, text, int_, int_),
            "write": (ssize, int_, void, size),
            "pwrite": (ssize, int_, void, size, offset),
            "pwrite64": (ssize, int_, void, size, offset),
            "ftruncate": (int_, int_, offset),
            "unlink": (int_, text),
        }
        replaced = [self._replace(vfs, name, types) for name, types in calls.items()]
        self.depth = "system calls" if any(replaced) else self.depth
        return any(replaced)

    def _replace(self, vfs: Any, name: str, types: tuple[Any, ...]) -> bool:
        prototype = ctypes.CFUNCTYPE(*types, use_errno=True)
        pointer = ctypes.c_void_p
        get = ctypes.CFUNCTYPE(pointer, pointer, ctypes.c_char_p)(vfs.contents.xGetSystemCall)
        set_ = ctypes.CFUNCTYPE(ctypes.c_int, pointer, ctypes.c_char_p, pointer)(
            vfs.contents.xSetSystemCall
        )
        itself = ctypes.cast(vfs, pointer)
        address = get(itself, name.encode())
        if not address:
            return False
        real = prototype(address)

        def call(*args: Any) -> Any:
            if name == "open" and not args[1] & os.O_CREAT:
                return real(*args)
            if code := self.tick(f"{name} (SQLite)", inside=True):
                ctypes.set_errno(code)
                return -1
            if "write" in name:
                if self._halves():
                    handle, buffer, size, *rest = args
                    real(handle, buffer, size // 2, *rest)
                self.tick(f"{name} half (SQLite)", inside=True)
            return real(*args)

        replacement = prototype(call)
        self._kept += [replacement, real, get, set_]
        done = set_(itself, name.encode(), ctypes.cast(replacement, pointer))
        return bool(done == 0)


_CALLS = """
xOpen xDelete xAccess xFullPathname xDlOpen xDlError xDlSym xDlClose xRandomness xSleep
xCurrentTime xGetLastError xCurrentTimeInt64 xSetSystemCall xGetSystemCall xNextSystemCall
""".split()  # noqa: SIM905


class _Vfs(ctypes.Structure):
    """``sqlite3_vfs``, version 3."""

    _fields_ = (
        ("iVersion", ctypes.c_int),
        ("szOsFile", ctypes.c_int),
        ("mxPathname", ctypes.c_int),
        ("pNext", ctypes.c_void_p),
        ("zName", ctypes.c_char_p),
        ("pAppData", ctypes.c_void_p),
        *((name, ctypes.c_void_p) for name in _CALLS),
    )


def _library() -> Any:
    """The SQLite library that Python's own module uses, or None where it hides it."""
    try:
        mapped = Path("/proc/self/maps").read_text().splitlines()
    except OSError:
        return None
    paths = [line.split()[-1] for line in mapped if "libsqlite3" in line]
    return ctypes.CDLL(paths[0]) if paths else None
