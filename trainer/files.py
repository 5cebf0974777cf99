"""Files that other processes read while we write them. Light: standard library only.

Written to a unique temporary name in the same folder, fsynced, renamed, and the folder fsynced: a
reader sees the old file or the new one, on a local disk as on a shared file system.
"""

from __future__ import annotations

import errno
import json
import os
import secrets
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

LARGEST = 2**20
"""Bytes of a contract file worth reading: a larger one is no such file."""

_NO_NEWS = frozenset({errno.ENOENT, errno.ESTALE, errno.EACCES, errno.EPERM, errno.EIO})


class NotAFile(Exception):  # noqa: N818 (a finding about a path, which the caller reports)
    """Something other than a small plain file lies at the path; the message says what."""


class DuplicateKey(ValueError):  # noqa: N818 (as json.JSONDecodeError, a kind of ValueError)
    """A JSON object names a key twice, so readers could disagree on its value."""


def write_atomic(path: Path, data: bytes) -> None:
    """Replace the file at ``path`` by ``data``, durably and as one step.

    Raises:
        OSError: the disk did not take it; the old file is untouched.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(6)}.tmp")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(temporary, flags, 0o644)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    fsync_folder(path.parent)


def fsync_folder(folder: Path) -> None:
    """Make a rename inside ``folder`` durable. A file system that can't is left to its ways."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def read_small(path: Path) -> tuple[bytes, os.stat_result] | None:
    """The bytes of a small plain file and its status; None where there is no news.

    Never blocks on a pipe and never follows a link at the last step of the path.

    Raises:
        NotAFile: for a link, folder, pipe, device, or a file above :data:`LARGEST` bytes.
    """
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        descriptor = os.open(path, flags)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise NotAFile("a symbolic link, not a file") from None
        if error.errno in _NO_NEWS:
            return None
        raise NotAFile(f"can't be opened ({error.strerror})") from None
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise NotAFile("not a plain file")
        with os.fdopen(descriptor, "rb", closefd=False) as stream:
            data = stream.read(LARGEST + 1)
    except OSError:
        return None
    finally:
        os.close(descriptor)
    if len(data) > LARGEST:
        raise NotAFile(f"larger than {LARGEST} bytes")
    return data, found


def canonical(value: Mapping[str, Any]) -> bytes:
    """The one spelling of a JSON object that is hashed: keys sorted, no spaces, UTF-8.

    Raises:
        ValueError: for a number that is not finite.
    """
    text = json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )
    return text.encode("utf-8")


def decode(data: bytes) -> Any:
    """JSON with every key at most once per object and no NaN or infinity.

    Raises:
        ValueError: for anything else (also a RecursionError of deep nesting, as a ValueError).
    """
    try:
        return json.loads(data, object_pairs_hook=_once, parse_constant=_no_constant)
    except RecursionError:
        raise ValueError("nested too deep") from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise DuplicateKey(f"key {twice!r} is given twice")
    return made


def _no_constant(name: str) -> Any:
    raise DuplicateKey(f"{name} is no JSON number")
