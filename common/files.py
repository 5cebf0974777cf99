"""Reading and writing the small files through which the rooms talk.

Writes are atomic and durable; reads open the file afresh, never wait for a FIFO, take nothing for a
file that is none, and never take in more than a bounded number of bytes. Links are followed only
where that is asked for: in what people lay out themselves, such as a model's folder.
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

from .types import parse_json

LARGEST = 2**20
"""Bytes of a small contract file worth reading."""
DISK_TROUBLES = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)
"""What a disk says that takes nothing now, and may later."""
LARGEST_JSON = 2**28
"""Bytes of any JSON that is read whole: a tokenizer, an index of weights, a job, scores."""


class NotRegularError(OSError):
    """What lies there is a link, a folder, a FIFO or a device; the message says which."""


class TooLargeError(OSError):
    """There is more in the file than it may hold; the message says how much that is."""


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
            It names the file.
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
    except BaseException as error:
        scratch.unlink(missing_ok=True)
        if isinstance(error, OSError):
            error.filename = str(target)  # a write by descriptor names none
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


def open_regular(
    path: str | os.PathLike[str], flags: int = os.O_RDONLY, *, follow: bool = False
) -> int:
    """A descriptor of a regular file; whatever else lies there is neither waited for nor used.

    Args:
        path: the file.
        flags: as for :func:`os.open`; what O_CREAT makes has mode 644.
        follow: whether a link is followed.

    Raises:
        NotRegularError: it is a link, a folder, a FIFO, ...
        OSError: missing, stale or not allowed.
    """
    flags |= os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY | (0 if follow else os.O_NOFOLLOW)
    try:
        handle = os.open(path, flags, 0o644)
    except OSError as error:
        kind = _REFUSALS.get(error.errno or 0)
        if kind is None or (follow and error.errno == errno.ELOOP):
            raise
        raise NotRegularError(error.errno, kind) from error
    try:
        mode = os.fstat(handle).st_mode
        if not stat.S_ISREG(mode):
            raise NotRegularError(errno.EINVAL, _kind(mode))
    except BaseException:
        os.close(handle)
        raise
    return handle


# what the kernel says of what is no file, before anybody could look at it
_REFUSALS = {
    errno.ELOOP: "a symbolic link",
    errno.EISDIR: "a folder",
    errno.ENXIO: "a FIFO, a socket or a device",
}


def why_no_file(path: str | os.PathLike[str]) -> str | None:
    """What lies there instead of a file; None for a file, and where nothing lies."""
    try:
        mode = os.lstat(path).st_mode
    except (OSError, ValueError):
        return None
    return None if stat.S_ISREG(mode) else _kind(mode)


def read_regular(
    path: str | os.PathLike[str], limit: int = LARGEST, *, start: int = 0, follow: bool = False
) -> Content:
    """The bytes of a regular file from ``start`` on, opened afresh, at most ``limit + 1`` of them.

    With ``follow``, a symbolic link to one will do: for files that a person names.

    Raises:
        NotRegularError: it is a link, a folder, a FIFO, ...
        OSError: missing, stale or not readable.
    """
    handle = open_regular(path, follow=follow)
    try:
        facts = os.fstat(handle)
        with os.fdopen(handle, "rb", closefd=False) as stream:
            if start:
                stream.seek(start)
            return Content(stream.read(limit + 1), facts.st_uid, facts.st_mode)
    finally:
        os.close(handle)


def read_whole(
    path: str | os.PathLike[str], limit: int = LARGEST, *, follow: bool = False
) -> bytes:
    """All that is in a regular file of at most ``limit`` bytes.

    Raises:
        TooLargeError: there is more.
        NotRegularError: it is a link, a folder, a FIFO, ...
        OSError: missing, stale or not readable.
    """
    data = read_regular(path, limit, follow=follow).data
    if len(data) > limit:
        raise TooLargeError(errno.EFBIG, f"larger than {limit:,} bytes")
    return data


def read_end(path: str | os.PathLike[str], size: int = 2**12, after: int = 0) -> str:
    """The last ``size`` bytes of a log, of what lies beyond ``after`` bytes; empty if it has none.

    Where the file is shorter than ``after`` it was begun anew since, and all of it counts.
    """
    try:
        handle = open_regular(path)
    except (OSError, ValueError):
        return ""
    try:
        whole = os.fstat(handle).st_size
        first = max(after if after <= whole else 0, whole - size)
        return os.pread(handle, size, first).decode("utf-8", "replace")
    except OSError:
        return ""
    finally:
        os.close(handle)


def data_end(handle: int, limit: int) -> int:
    """Bytes of an open file without the hole that it may end with; looked at up to ``limit``.

    A hole costs no disk, so a file can say that it has gigabytes and hold nothing: what a power
    loss leaves of an append, and what mischief makes.
    """
    size = os.fstat(handle).st_size
    end = 0
    try:
        while end < min(size, limit + 1):
            start = os.lseek(handle, end, os.SEEK_DATA)
            end = os.lseek(handle, start, os.SEEK_HOLE)
    except OSError as error:
        return end if error.errno == errno.ENXIO else size  # ENXIO: no data from here on
    return end


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


def read_json(path: str | os.PathLike[str], limit: int = LARGEST, *, follow: bool = False) -> Any:
    """The JSON in a small regular file.

    Raises:
        OSError: missing, no regular file, too large, or not readable.
        ValueError, RecursionError: it is no JSON, see :func:`parse_json`.
    """
    return parse_json(read_whole(path, limit, follow=follow).decode())
