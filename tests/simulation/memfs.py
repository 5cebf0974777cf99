"""A file system in memory that forgets, on a power loss, what was not fsynced.

It stands in for ``os`` and ``pathlib.Path`` in the modules under test, so that their own code
(temporary file, fsync, rename, fsync of the folder) runs as it is. Every call first passes
:attr:`MemFS.gate`, which may raise an ``OSError`` or end the process that makes it.
"""

from __future__ import annotations

import errno
import io
import os
import random
import stat
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from types import SimpleNamespace
from typing import Any

UID = 1000
REAL = "journal.db"  # SQLite's file is a real one


class Node:
    """One file: what it holds, and what of it has reached the disk (None: not even the file)."""

    __slots__ = ("data", "synced")

    def __init__(self) -> None:
        self.data = b""
        self.synced: bytes | None = None


class MemFS:
    """Folders of nodes, by absolute path."""

    def __init__(self) -> None:
        self.folders: dict[str, dict[str, Node]] = {}
        self.kept: dict[str, dict[str, Node]] = {}
        self.past: dict[str, list[bytes]] = {}  # what a file held before it was replaced
        self.gate: Callable[[str, str], None] = lambda op, path: None
        self.see: Callable[[str, bytes], bytes] = lambda path, data: data
        self._open: dict[int, tuple[str, Node | None]] = {}
        self._next = 1000

    # -- what processes call ------------------------------------------------------

    def find(self, path: str) -> Node | None:
        folder, _, name = path.rpartition("/")
        return self.folders.get(folder, {}).get(name)

    def open(self, path: str, flags: int) -> int:
        folder, _, name = path.rpartition("/")
        if flags & os.O_DIRECTORY:
            if path not in self.folders:
                raise _error(errno.ENOENT, path)
            return self._handle(path, None)
        here = self.folders.get(folder)
        node = None if here is None else here.get(name)
        writes = flags & (os.O_WRONLY | os.O_RDWR)
        self.gate("create" if flags & os.O_CREAT and node is None else "read", path)
        if here is None or (node is None and not flags & os.O_CREAT):
            raise _error(errno.ENOENT, path)
        if node is not None and flags & os.O_EXCL:
            raise _error(errno.EEXIST, path)
        if node is None:
            node = here[name] = Node()
        elif not writes:
            data = self.see(path, node.data)
            if data is not node.data:
                node = Node()
                node.data = data
        return self._handle(path, node)

    def _handle(self, path: str, node: Node | None) -> int:
        self._next += 1
        self._open[self._next] = (path, node)
        return self._next

    def dup(self, handle: int) -> int:
        return self._handle(*self._open[handle])

    def close(self, handle: int) -> None:
        del self._open[handle]

    def of(self, handle: int) -> tuple[str, Node | None]:
        return self._open[handle]

    def write(self, handle: int, data: bytes) -> int:
        path, node = self._open[handle]
        assert node is not None
        self.gate("write", path)
        node.data += bytes(data)
        return len(data)

    def truncate(self, handle: int, size: int) -> None:
        path, node = self._open[handle]
        assert node is not None
        self.gate("write", path)
        node.data = node.data[:size]

    def fsync(self, handle: int) -> None:
        path, node = self._open[handle]
        self.gate("fsync", path)
        if node is None:
            self.kept[path] = dict(self.folders[path])
        else:
            node.synced = node.data

    def replace(self, source: str, target: str) -> None:
        self.gate("rename", target)
        self.move(source, target)

    def move(self, source: str, target: str) -> None:
        if source in self.folders:
            self._move_folder(source, target)
            return
        old, _, name = source.rpartition("/")
        new, _, called = target.rpartition("/")
        if name not in self.folders.get(old, {}) or new not in self.folders:
            raise _error(errno.ENOENT, source)
        node = self.folders[old].pop(name)
        before = self.folders[new].get(called)
        if before is not None:
            self.past[target] = [*self.past.get(target, [])[-2:], before.data]
        self.folders[new][called] = node

    def _move_folder(self, source: str, target: str) -> None:
        for held in (self.folders, self.kept):
            if source in held:
                held[target] = held.pop(source)

    def unlink(self, path: str) -> None:
        folder, _, name = path.rpartition("/")
        if self.folders.get(folder, {}).pop(name, None) is None:
            raise _error(errno.ENOENT, path)

    def mkdir(self, path: str) -> None:
        while path and path not in self.folders:
            self.folders[path] = {}
            self.kept.setdefault(path, {})
            path = path.rpartition("/")[0]

    def listing(self, path: str) -> list[str]:
        self.gate("list", path)
        if path not in self.folders:
            raise _error(errno.ENOENT, path)
        prefix = path + "/"
        inside = [
            name.removeprefix(prefix)
            for name in self.folders
            if name.startswith(prefix) and "/" not in name.removeprefix(prefix)
        ]
        return sorted([*self.folders[path], *inside])

    def remove_folder(self, path: str) -> None:
        self.folders.pop(path, None)
        self.kept.pop(path, None)

    # -- what only the world can do ------------------------------------------------------

    def put(self, path: str, data: bytes) -> None:
        """A file that is simply there, durable."""
        folder, _, name = path.rpartition("/")
        self.mkdir(folder)
        before = self.folders[folder].get(name)
        if before is not None:
            self.past[path] = [*self.past.get(path, [])[-2:], before.data]
        node = self.folders[folder][name] = self.kept[folder][name] = Node()
        node.data = node.synced = data

    def lose_power(self, rng: random.Random) -> int:
        """Whatever was not fsynced is there, partly there, or gone. Returns how much was not."""
        lost = 0
        for folder, names in self.folders.items():
            kept = self.kept.setdefault(folder, {})
            for name in sorted({*names, *kept}):
                if names.get(name) is not kept.get(name):
                    lost += 1
                    if rng.random() < 0.7:
                        _set(names, name, kept.get(name))
            for name in list(names):
                node = names[name]
                if node.synced is node.data or node.synced == node.data:
                    continue
                lost += 1
                cut = rng.randrange(len(node.data) + 1)
                node.data = node.data[:cut] if node.synced is None else node.synced
            self.kept[folder] = dict(names)
            for node in names.values():
                node.synced = node.data
        self.past.clear()
        self._open.clear()
        return lost


def _set(names: dict[str, Node], name: str, node: Node | None) -> None:
    if node is None:
        names.pop(name, None)
    else:
        names[name] = node


def _error(number: int, path: str) -> OSError:
    return OSError(number, os.strerror(number), path)


class MemOs:
    """The part of ``os`` that file code uses, over the file system of the running simulation."""

    def __init__(self, fs: Callable[[], MemFS]) -> None:
        self._fs = fs

    def __getattr__(self, name: str) -> Any:
        if name.startswith("O_") or name in ("PathLike", "fspath", "strerror"):
            return getattr(os, name)
        raise AttributeError(f"the simulation has no os.{name}")

    @staticmethod
    def getpid() -> int:
        return 1

    def open(self, path: Any, flags: int, mode: int = 0o644) -> int:
        return self._fs().open(os.fspath(path), flags)

    def close(self, handle: int) -> None:
        self._fs().close(handle)

    def dup(self, handle: int) -> int:
        return self._fs().dup(handle)

    def write(self, handle: int, data: Any) -> int:
        return self._fs().write(handle, data)

    def fsync(self, handle: int) -> None:
        self._fs().fsync(handle)

    def ftruncate(self, handle: int, size: int) -> None:
        self._fs().truncate(handle, size)

    def lstat(self, path: Any) -> Any:
        if self._fs().find(os.fspath(path)) is None:
            raise _error(errno.ENOENT, os.fspath(path))
        return SimpleNamespace(st_mode=stat.S_IFREG)

    def fstat(self, handle: int) -> Any:
        node = self._fs().of(handle)[1]
        assert node is not None
        return SimpleNamespace(st_mode=stat.S_IFREG, st_uid=UID, st_size=len(node.data))

    def fdopen(
        self, handle: int, mode: str, closefd: bool = True, encoding: str | None = None
    ) -> io.BytesIO:
        node = self._fs().of(handle)[1]
        assert node is not None
        if "w" in mode:
            return _Writing(self._fs(), handle, text="b" not in mode)
        return _Reading(self._fs(), handle, node.data, closefd)


class _Reading(io.BytesIO):
    """An open file; ``fileno`` is one that ``MemOs.fstat`` takes."""

    def __init__(self, fs: MemFS, handle: int, data: bytes, closefd: bool) -> None:
        super().__init__(data)
        self._at, self._handle, self._owned = fs, handle, closefd

    def fileno(self) -> int:
        return self._handle

    def close(self) -> None:
        if self._owned and not self.closed and self._handle in self._at._open:
            self._at.close(self._handle)
        super().close()


class _Writing(io.BytesIO):
    """A file opened for writing through its path; ``fileno`` is one that ``MemOs.fsync`` takes."""

    def __init__(self, fs: MemFS, handle: int, text: bool) -> None:
        super().__init__()
        self._at, self._handle, self._text = fs, handle, text

    def write(self, data: Any) -> int:
        self._at.write(self._handle, data.encode() if self._text else data)
        return len(data)

    def fileno(self) -> int:
        return self._handle

    def close(self) -> None:
        if not self.closed and self._handle in self._at._open:
            self._at.close(self._handle)
        super().close()


class MemPath(PurePosixPath):
    """``pathlib.Path`` over the file system of the running simulation."""

    fs: Callable[[], MemFS]

    def _here(self) -> MemFS:
        return type(self).fs()

    def exists(self) -> bool:
        if self.name == REAL:
            return Path(self).exists()
        text = str(self)
        return text in self._here().folders or self._here().find(text) is not None

    def is_dir(self) -> bool:
        return str(self) in self._here().folders

    def is_file(self) -> bool:
        if self.name == REAL:
            return Path(self).is_file()
        return self._here().find(str(self)) is not None

    def resolve(self) -> MemPath:
        return self

    def as_uri(self) -> str:
        return f"file://{self}"

    def stat(self) -> Any:
        if not self.exists():
            raise _error(errno.ENOENT, str(self))
        return SimpleNamespace(st_uid=UID, st_mode=0o755)

    def mkdir(self, mode: int = 0o777, parents: bool = False, exist_ok: bool = False) -> None:
        self._here().mkdir(str(self))

    def iterdir(self) -> Iterator[MemPath]:
        return iter([self / name for name in self._here().listing(str(self))])

    def glob(self, pattern: str) -> list[MemPath]:
        if not self.is_dir():
            return []  # as pathlib has it
        return [path for path in self.iterdir() if path.match(pattern)]

    def replace(self, target: Any) -> None:
        self._here().replace(str(self), str(target))

    def rename(self, target: Any) -> None:
        self._here().replace(str(self), str(target))

    def unlink(self, missing_ok: bool = False) -> None:
        if not missing_ok or self._here().find(str(self)) is not None:
            self._here().gate("unlink", str(self))
            self._here().unlink(str(self))

    def read_bytes(self) -> bytes:
        handle = self._here().open(str(self), os.O_RDONLY)
        node = self._here().of(handle)[1]
        self._here().close(handle)
        assert node is not None
        return node.data

    def read_text(self, encoding: str = "utf-8") -> str:
        return self.read_bytes().decode(encoding)

    def open(self, mode: str = "r", encoding: str | None = None) -> Any:
        if mode in ("r", "rb"):
            data = self.read_bytes()
            return io.BytesIO(data) if mode == "rb" else io.StringIO(data.decode())
        flags = os.O_CREAT | os.O_WRONLY
        if mode.startswith("w") and self.is_file():
            self._here().unlink(str(self))
        return _Writing(self._here(), self._here().open(str(self), flags), "b" not in mode)
