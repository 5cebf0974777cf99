"""Files in memory: mapped at their first use, a bounded number at once, no descriptor for each.

`numpy.memmap` holds a file descriptor as long as its map lives (Python's `mmap` duplicates the one
it is given), so that a thousand sources reach the usual limit of 1,024; and Linux gives a process
65,530 maps in all (`vm.max_map_count`), torch's and the libraries' included. Hence `mmap(2)`
itself, whose map outlives the descriptor, and one pool for all sources of the process.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import threading
import weakref
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]

_LINUX_MAPS = 65_530  # the kernel's own default of vm.max_map_count

_libc: Any = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = (
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_long,
)
_libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
_FAILED = ctypes.c_void_p(-1).value


class _Map:
    """Memory that numpy looks at; unmapped when the last array on it is gone."""

    def __init__(self, path: Path, size: int) -> None:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            held = os.fstat(handle).st_size
            if held < size:  # reading beyond the end would kill the process
                raise OSError(f"{path}: {held} bytes now, {size} when it was opened")
            address = _libc.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, handle, 0)
            if address == _FAILED:
                code = ctypes.get_errno()
                raise OSError(code, os.strerror(code), str(path))
        finally:
            os.close(handle)
        self.__array_interface__ = {
            "version": 3,
            "shape": (size,),
            "typestr": "|u1",
            "data": (address, True),
        }
        # Not at exit: threads that still read then would read what is gone.
        weakref.finalize(self, _libc.munmap, address, size).atexit = False


def map_file(path: Path, size: int) -> Bytes:
    """The first `size` bytes of a file, shape [size], read-only. No descriptor stays open.

    Raises:
        OSError: no such file, a shorter one, or no map to be had.
    """
    return np.asarray(_Map(path, size))


class Pool:
    """Keeps at most `most` files mapped; the next one takes the place of one long unused.

    By CLOCK (Corbató 1968): a hit costs a flag, no lock. What is read from a map keeps it alive, so
    a file that loses its place is never gone from under a reader. Files that nobody refers to any
    more lose theirs.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._lock = threading.RLock()  # collecting garbage inside may come back here
        self._held: deque[weakref.ref[MappedFile]] = deque()

    def __len__(self) -> int:
        """Files that are mapped now."""
        files = (ref() for ref in tuple(self._held))
        return sum(file is not None and file.mapped for file in files)

    def forked(self) -> None:
        """In a forked child: the parent's other threads, which may hold the lock, aren't here."""
        self._lock = threading.RLock()

    def admit(self, file: MappedFile) -> Bytes:
        """Map a file and let go of others, as far as the bound asks for it."""
        with self._lock:
            content = file.content
            if content is not None:  # another thread was faster
                return content
            while len(self._held) >= self.most:
                self._release(spare=True)
            while True:
                try:
                    content = file.map()
                    break
                except OSError as error:
                    if error.errno != errno.ENOMEM or not self._held:
                        raise
                    self._release(spare=False)  # others use up the maps, or the address space
            file.content, file.used = content, False
            self._held.append(weakref.ref(file))
            return content

    def _release(self, spare: bool) -> None:
        """Take the oldest file's place; with `spare`, one used since goes to the end instead."""
        oldest = self._held.popleft()
        file = oldest()
        if file is None:
            return
        if spare and file.used:
            file.used = False
            self._held.append(oldest)
        else:
            file.content = None


def _process_maps() -> int:
    """A quarter of the maps that the system gives a process."""
    try:
        limit = int(Path("/proc/sys/vm/max_map_count").read_text("ascii"))
    except (OSError, ValueError):
        limit = _LINUX_MAPS
    return max(64, min(limit, 2**20) // 4)


POOL = Pool(_process_maps())
"""Of all sources of this process."""
os.register_at_fork(after_in_child=POOL.forked)


class MappedFile:
    """A file of known size whose bytes are mapped when they are first asked for.

    Args:
        find: the folder that holds it now; None: where it was, and the same file as it was.
    """

    __slots__ = ("__weakref__", "_find", "_known", "content", "path", "pool", "size", "used")

    def __init__(
        self,
        path: Path,
        size: int,
        pool: Pool = POOL,
        find: Callable[[], Path] | None = None,
    ) -> None:
        self.path = path
        self.size = size
        self.pool = pool
        self.content: Bytes | None = None
        self.used = False
        self._find = find
        self._known = None if find else _identity(path)

    @property
    def mapped(self) -> bool:
        """Whether it is mapped now."""
        return self.content is not None

    def bytes(self) -> Bytes:
        """All of it, shape [size].

        Raises:
            OSError: it is gone, shorter than it was, or another file.
        """
        content = self.content
        if content is None:
            return self.pool.admit(self)
        self.used = True  # again: what is read once alone makes way first
        return content

    def map(self) -> Bytes:
        """A new map of it, see `bytes`."""
        if self._find is None:
            content = map_file(self.path, self.size)
            now = _identity(self.path)
            # one of the two may change alone: by a touch, or a network's numbering
            if self._known and now and all(a != b for a, b in zip(self._known, now, strict=True)):
                raise OSError(f"{self.path}: another file than when it was opened")
            return content
        while True:
            folder = self._find()
            try:
                content = map_file(folder / self.path.name, self.size)
            except FileNotFoundError:
                if self._find() == folder:
                    raise
                continue
            if self._find() == folder:  # it wasn't replaced in between
                return content


def _identity(path: Path) -> tuple[int, int] | None:
    """What tells a file from another one at its path; None where there is none."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns
