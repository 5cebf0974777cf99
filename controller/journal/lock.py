"""One controller a machine: the lock of a run folder."""

from __future__ import annotations

import os
from pathlib import Path
from typing import IO

from mixloop.common.errors import BadInput
from mixloop.common.files import NotRegularError, lock, open_regular

from .journal import timestamp


def take_lock(path: Path) -> IO[str]:
    """The run's lock on this machine, held while the process lives.

    Machines that share no locks are told apart by the journal's fence; so are two controllers of
    one machine where the file system has no locks at all.

    Raises:
        BadInput: when another controller of this machine holds the run.
    """
    try:  # a link planted there would have another file emptied below
        handle = open_regular(path, os.O_RDWR | os.O_CREAT | os.O_APPEND)
    except NotRegularError as error:
        raise BadInput(f"{path}: {error.strerror}, not a file: remove it") from None
    stream = os.fdopen(handle, "a+")
    try:
        lock(stream.fileno())
    except BlockingIOError:
        stream.seek(0)
        holder = stream.read(200).strip() or "unknown"
        stream.close()
        raise BadInput(
            f"{path.parent}: another controller is running here (process {holder}); stop it first"
        ) from None
    stream.truncate(0)
    stream.write(f"{os.getpid()} since {timestamp()}")
    stream.flush()
    return stream
