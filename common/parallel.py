"""The same function over many tasks, in processes: results as they come, Ctrl-C clean."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from typing import Any

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def cores() -> int:
    """Processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def each(
    work: Callable[[Any], Any], tasks: Sequence[Any], jobs: int, done: Callable[[], None]
) -> list[Any]:
    """``work`` of every task, in the tasks' order; ``done`` is called after each.

    With one job, in this process. Otherwise in fresh ones that inherit nothing but the environment,
    with one thread of linear algebra each. An exception of a task ends the others.
    """
    jobs = min(jobs, len(tasks))
    if jobs <= 1:
        return [_counted(work(task), done) for task in tasks]
    for name in THREADS:
        os.environ.setdefault(name, "1")
    with _pool(jobs) as pool:
        futures: dict[Future[Any], int] = {
            pool.submit(work, task): index for index, task in enumerate(tasks)
        }
        results: list[Any] = [None] * len(tasks)
        for future in as_completed(futures):
            results[futures[future]] = _counted(future.result(), done)
    return results


def _counted(result: Any, done: Callable[[], None]) -> Any:
    done()
    return result


@contextmanager
def _pool(jobs: int) -> Iterator[ProcessPoolExecutor]:
    before = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), _ignore_interrupt)
    try:
        yield pool
    except BaseException:
        # a task may be deep in a policy: it isn't waited for
        for child in set(multiprocessing.active_children()) - before:
            child.terminate()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _ignore_interrupt() -> None:
    # Ctrl-C reaches the whole group of processes; the parent alone answers it
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@contextmanager
def progress(title: str, total: int) -> Iterator[Callable[[], None]]:
    """A bar on a terminal, a plain line at each tenth elsewhere; both on stderr."""
    if not sys.stderr.isatty():
        yield _lines(title, total)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    columns = (title, BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(title, total=total)
        yield lambda: bar.advance(task)


def _lines(title: str, total: int) -> Callable[[], None]:
    count = 0

    def advance() -> None:
        nonlocal count
        count += 1
        if count * 10 // total > (count - 1) * 10 // total:
            sys.stderr.write(f"{title}: {count} of {total}\n")
            sys.stderr.flush()

    return advance
