"""Starting the parts of a run: the trainer's job file and process, and the policy's check."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from mixloop.common.children import LARGEST_LOG, Child
from mixloop.common.errors import BadInput
from mixloop.common.files import NotRegularError, open_regular, read_end, write_atomic
from mixloop.common.process import PARENT
from mixloop.contract import RunPaths
from mixloop.controller.config import RunConfig, job_of
from mixloop.controller.decisions import read_answer
from mixloop.trainer.config import JobError


def check_training(config: RunConfig, *, rewind: bool = False) -> None:
    """What the reference trainer would refuse, found before it starts.

    Raises:
        BadInput: one line naming the key and the mend.
    """
    from mixloop.trainer.run import check_job

    try:
        check_job(job_of(config), rewind=rewind)
    except JobError as error:
        raise BadInput(str(error)) from None


def write_job(config: RunConfig) -> Path:
    """Write ``job.json`` into the run folder and return its path."""
    paths = RunPaths(config.run.dir)
    paths.dir.mkdir(parents=True, exist_ok=True)
    write_atomic(paths.job, job_of(config).model_dump_json(indent=1).encode())
    return paths.job


def trainer_command(job: Path, *, rewind: bool = False) -> list[str]:
    """The command that carries the job out; the trainer starts its ranks by itself."""
    return [
        *(sys.executable, "-m", "mixloop.trainer.train", str(job)),
        *(["--rewind"] if rewind else []),
    ]


def start(command: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
    """Start a part of the run with its output appended to a log file; it ends when we do.

    Raises:
        BadInput: something that is no file lies in the log's place.
    """
    environment = os.environ | {PARENT: str(os.getpid())}
    with opened(log) as stream:
        return subprocess.Popen(list(command), stdout=stream, stderr=stream, env=environment)


def opened(log: Path) -> IO[bytes]:
    """A log to append to and to read.

    Raises:
        BadInput: something that is no file lies in its place.
    """
    try:
        return os.fdopen(open_regular(log, os.O_RDWR | os.O_APPEND | os.O_CREAT), "a+b")
    except NotRegularError as error:
        raise BadInput(f"{log}: {error.strerror}, where the log belongs; move it away") from None


def trim(log: Path) -> None:
    """Put a log that has become large aside, as ``….1``, while the part that writes it goes on.

    That part has it open, so the log is copied and emptied (logrotate's `copytruncate`); a line
    that it writes at that moment may be lost.
    """
    with contextlib.suppress(OSError):
        handle = open_regular(log, os.O_RDWR)
        try:
            size = os.fstat(handle).st_size
            if size > LARGEST_LOG:
                write_atomic(log.with_name(f"{log.name}.1"), _end_of(handle, size))
                os.ftruncate(handle, 0)
        finally:
            os.close(handle)


def _end_of(handle: int, size: int) -> bytes:
    return os.pread(handle, LARGEST_LOG, max(0, size - LARGEST_LOG))


def last_line(log: Path) -> str:
    """The last line of a log, which is where a part that failed says why."""
    lines = read_end(log).strip().splitlines()
    return lines[-1] if lines else ""


def check_policy(config: RunConfig, base: Path) -> dict[str, int]:
    """Load the policy in a child, as the daemon will, and let it check names and options.

    Returns:
        By what the policy may do, the evaluations it needs before; empty where it doesn't tell.

    Raises:
        BadInput: one line saying what is wrong with ``policy.use`` or ``policy.with``.
    """
    request = {
        "check": True,
        "ref": config.policy.use,
        "options": config.policy.options,
        "base": str(base),
        "memory": config.policy.memory,
        "sources": {name: list(source.tags) for name, source in config.sources.items()},
        "benchmarks": list(config.evals.benchmarks),
    }
    child = Child(
        "mixloop.controller.decisions.policy_process",
        stdin=json.dumps(request),
        log=Path(os.devnull),
        timeout=config.policy.timeout,
    )
    try:
        while child.running:
            time.sleep(0.02)
        answer = read_answer(child)
    finally:
        child.close()
    if answer.kind == "failed":
        raise BadInput(str(answer.payload["reason"]))
    return {str(name): int(count) for name, count in answer.payload.get("needs", {}).items()}
