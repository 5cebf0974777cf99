"""From the RUN that a person gives to its folder and journal, and damage in one line."""

from __future__ import annotations

import contextlib
import functools
import sqlite3
import traceback
from collections.abc import Iterator
from pathlib import Path

from mixloop.common.errors import BadInput
from mixloop.common.log import say
from mixloop.contract import KeyFileError, RunPaths, key_for, read_status
from mixloop.controller.journal import Journal, JournalError, damage

_STRANGE = (  # what values that nobody expected lead to
    *(ArithmeticError, AssertionError, AttributeError, LookupError),
    *(RecursionError, TypeError, ValueError),
)


def run_folder(run: Path) -> RunPaths:
    """The run folder that RUN names: a folder, or a run.yaml, whose folder may be still to come.

    A run goes on by the run.yaml that it was started with: what is wrong with the file now is said,
    and a folder that it names all the same is looked at.

    Raises:
        BadInput: when there is no such folder.
    """
    if not run.is_file():
        if not run.is_dir():
            raise _no_run(run)
        return RunPaths(run)
    from mixloop.controller.config import load_config, named_in

    try:
        return RunPaths(load_config(run).run.dir)
    except BadInput as error:
        folder, _ = named_in(run)
        if folder is None or not _is_run(RunPaths(folder)):
            raise BadInput(f"{error}; the run's folder can be given instead") from error
        _warn(str(error), folder)
        return RunPaths(folder)


def run_key(run: Path) -> bytes | None:
    """What requests to a run are signed with: as its run.yaml says, else as the environment does.

    Raises:
        BadInput: the key file is none.
    """
    from mixloop.controller.config import load_config, named_in

    try:
        if not run.is_file():
            return key_for(None)
        try:
            return load_config(run).key()
        except BadInput:
            folder, file = named_in(run)
            if folder is None:
                raise
            return key_for(file)
    except KeyFileError as error:
        raise BadInput(str(error)) from None


def _is_run(paths: RunPaths) -> bool:
    return any(path.is_file() for path in (paths.journal, paths.status, paths.schedule))


@functools.cache  # a command opens its run more than once
def _warn(problem: str, folder: Path) -> None:
    """To standard error, so that JSON stays JSON."""
    say(f"{problem}; this is the run in {folder} as it goes on", "mixloop")


def open_run(run: Path, *, new: bool = False) -> tuple[RunPaths, Journal | None]:
    """The run folder that RUN names (a folder, or a run.yaml) and its journal, if it has one.

    With ``new``, a run.yaml whose run was never started will do.

    Raises:
        BadInput: when there is no such run.
    """
    paths = run_folder(run)
    if paths.journal.exists():
        try:
            return paths, Journal(paths.journal)
        except JournalError as error:
            raise BadInput(str(error)) from None
    if new and run.is_file():
        return paths, None
    if not paths.dir.is_dir():
        raise _no_run(paths.dir)
    heartbeat = read_status(paths.status)
    if heartbeat.problem is not None:
        raise BadInput(
            f"{paths.status}: can't be read: {heartbeat.problem.text}; there is no journal either"
        )
    if heartbeat.value is None:
        raise BadInput(
            f"{paths.dir}: neither a journal nor a heartbeat here; is this a run folder?"
        )
    return paths, None


def _no_run(run: Path) -> BadInput:
    return BadInput(f"{run}: no run here; give a run folder or its run.yaml")


@contextlib.contextmanager
def reading(target: Path) -> Iterator[None]:
    """Rows that hold other things than a controller wrote are told in one line.

    Raises:
        BadInput: the journal is damaged, or, by the error alone, this program is wrong: the line
            names the place, and the error is its cause.
    """
    try:
        yield
    except JournalError as error:
        raise BadInput(str(error)) from error
    except sqlite3.Error as error:
        raise BadInput(damage(target, error)) from error
    except _STRANGE as error:
        raise BadInput(_unshown(target, error)) from error


def _unshown(target: Path, error: Exception) -> str:
    last = traceback.extract_tb(error.__traceback__)[-1]
    first = (str(error).splitlines() or [""])[0][:200]
    return (
        f"{target}: can't be shown whole ({type(error).__name__}: {first}, in {last.name} of "
        f"{Path(last.filename).name}): its journal holds what no controller writes, or mixloop is "
        "wrong here; compare with a backup, and report it if that shows the same"
    )
