"""Reading and writing the small files through which the rooms talk.

Writes are atomic and durable; reads open the file afresh, never follow a link, never block on a
FIFO and never take in more than a bounded number of bytes.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import secrets
import stat
from pathlib import Path
from typing import Any, NamedTuple

LARGEST = 2**20
"""Bytes of a small contract file worth reading."""


class NotRegularError(OSError):
    """What lies there is a link, a folder, a FIFO or a device; the message says which."""


class Content(NamedTuple):
    """Bytes of a file (at most one above the limit asked for), the uid that owns it, its mode."""

    data: bytes
    uid: int
    mode: int


def lock(handle: int, *, wait: bool = False) -> bool:
    """Take a file's advisory lock; False where its file system has none (some NFS mounts).

    Raises:
        BlockingIOError: another has it, and it is not waited for.
    """
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError as error:
        if error.errno in (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EINVAL):
            return False
        raise
    return True


def fsync_folder(folder: str | os.PathLike[str]) -> None:
    """Make a folder's entries durable; a file system that can't is left alone."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise
    finally:
        os.close(handle)


def unwritable(path: Path, *, parents: bool = False) -> str | None:
    """Why no file can be written there, and the mend; None where nothing speaks against it.

    ``parents``: the folders above it are made where they are missing.
    """
    if path.is_dir():
        return "is a folder; name a file in it"
    folder = path.parent
    while parents and not folder.exists():
        folder = folder.parent
    if not folder.is_dir():
        return f"there is no folder {folder}; make it first"
    return None if os.access(folder, os.W_OK) else f"{folder} can't be written to"


def write_all(handle: int, data: bytes) -> None:
    """Write every byte and fsync."""
    view = memoryview(data)
    while view:
        view = view[os.write(handle, view) :]
    os.fsync(handle)


def write_atomic(path: str | os.PathLike[str], data: bytes) -> None:
    """Replace a file so that a reader sees the old bytes or the new, whatever crashes when.

    A unique temporary file in the same folder, fsynced, renamed; then the folder is fsynced.

    Raises:
        OSError: the disk did not take it; the old file is untouched and nothing is left behind.
    """
    target = Path(path)
    scratch = target.with_name(f".{target.name}.{os.getpid()}.{secrets.token_hex(6)}.tmp")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    handle = os.open(scratch, flags, 0o644)
    try:
        try:
            write_all(handle, data)
        finally:
            os.close(handle)
        scratch.replace(target)
    except BaseException:
        scratch.unlink(missing_ok=True)
        raise
    fsync_folder(target.parent)


def _kind(mode: int) -> str:
    names = {
        stat.S_IFDIR: "a folder",
        stat.S_IFLNK: "a symbolic link",
        stat.S_IFIFO: "a FIFO",
        stat.S_IFSOCK: "a socket",
    }
    return names.get(stat.S_IFMT(mode), "a device")


def read_regular(path: str | os.PathLike[str], limit: int = LARGEST) -> Content:
    """The bytes of a regular file, opened afresh, at most ``limit + 1`` of them.

    Raises:
        NotRegularError: it is a link, a folder, a FIFO, ...
        OSError: missing, stale or not readable.
    """
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
    try:
        handle = os.open(path, flags)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise NotRegularError(errno.ELOOP, "a symbolic link") from error
        raise
    try:
        facts = os.fstat(handle)
        if not stat.S_ISREG(facts.st_mode):
            raise NotRegularError(errno.EINVAL, _kind(facts.st_mode))
        with os.fdopen(handle, "rb", closefd=False) as stream:
            return Content(stream.read(limit + 1), facts.st_uid, facts.st_mode)
    finally:
        os.close(handle)


def writable_by_others(path: str | os.PathLike[str]) -> str | None:
    """A warning when group or others may write a run's file or folder; None when all is well.

    The owner of an order is checked, but whoever may write the file can change what it says.
    """
    try:
        mode = Path(path).stat().st_mode
    except OSError:
        return None
    if not mode & (stat.S_IWGRP | stat.S_IWOTH):
        return None
    return (
        f"{path}: mode {stat.S_IMODE(mode):o} lets others than its owner change the mixture; "
        f"chmod go-w {path}"
    )


def digest(data: bytes) -> str:
    """``sha256:`` and the hexadecimal digest."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def canonical(value: object) -> bytes:
    """Canonical JSON: keys sorted, no spaces, ASCII (other characters as JSON's escapes).

    Raises:
        ValueError: NaN or an infinity is in it.
    """
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return text.encode("ascii")


def json_bytes(value: object) -> bytes:
    """JSON that people can read.

    Raises:
        ValueError: NaN or an infinity is in it.
    """
    return (json.dumps(value, indent=1, allow_nan=False) + "\n").encode()


def write_json(path: str | os.PathLike[str], value: object) -> None:
    """Replace a file by JSON that people can read, as :func:`write_atomic` does.

    Raises:
        ValueError: NaN or an infinity is in it.
        OSError: the disk did not take it; the old file is untouched.
    """
    write_atomic(path, json_bytes(value))


def read_json(path: str | os.PathLike[str], limit: int = LARGEST) -> Any:
    """The JSON in a small regular file.

    Raises:
        OSError: missing, no regular file, or not readable.
        ValueError, RecursionError: it is no JSON, see :func:`parse_json`.
    """
    return parse_json(read_regular(path, limit).data.decode())


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not a JSON number")


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members: dict[str, Any] = {}
    for key, value in pairs:
        if key in members:
            raise ValueError(f"key {key[:60]!r} is given twice")
        members[key] = value
    return members


def parse_json(text: str) -> Any:
    """JSON as the standard has it: no NaN, no infinities, no key twice.

    Raises:
        json.JSONDecodeError: it is not JSON.
        ValueError: NaN, Infinity, a duplicate key, or an integer of thousands of digits.
        RecursionError: nested too deeply.
    """
    return json.loads(text, parse_constant=_no_constant, object_pairs_hook=_no_duplicates)
