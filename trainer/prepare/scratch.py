"""The folder that a store is made in, beside its place: whole under its name, or gone.

It is locked while its process lives. What a killed one left behind is removed by the next.
"""

from __future__ import annotations

import fcntl
import glob
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def scratch_folder(out: Path) -> Iterator[Path]:
    """A new folder on the file system of `out`, removed at the end unless it was renamed."""
    for stale in out.parent.glob(f".{glob.escape(out.name)}.tmp-*"):
        _remove_if_stale(stale)
    folder = out.parent / f".{out.name}.tmp-{os.getpid()}-{secrets.token_hex(4)}"
    folder.mkdir(parents=True)
    try:
        handle = _locked(folder)
    except OSError:
        handle = None  # a file system without locks
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if handle is not None:
            os.close(handle)


def _locked(folder: Path) -> int:
    """A descriptor of a folder; its lock ends with the process, however that ends.

    Raises:
        OSError: somebody holds it, or the file system has no locks.
    """
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        raise
    return handle


def _remove_if_stale(folder: Path) -> None:
    try:
        handle = _locked(folder)
    except OSError:
        return  # in use, gone, not ours, or nobody can tell
    shutil.rmtree(folder, ignore_errors=True)
    os.close(handle)
