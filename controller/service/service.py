"""The commands that run for hours: the controller in the foreground, or trainer and controller."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING

from mixloop.common.errors import BadInput
from mixloop.common.process import end_with_parent, handling, interrupt, stop_signals
from mixloop.common.text import clean
from mixloop.contract import RunPaths, read_status
from mixloop.controller.config import RunConfig, load_config
from mixloop.controller.journal import FenceLost
from mixloop.controller.watch import Timings, check_address

from . import launch
from .preflight import check_evals, check_feasible

if TYPE_CHECKING:
    from mixloop.controller.loop import Controller


Say = Callable[[str], None]
Show = Callable[[], None]
Processes = Mapping[str, subprocess.Popen[bytes]]

_LONGEST_LINE = 2**16  # bytes of one that is shown
TERM_GRACE = 60.0  # seconds the controller gets to end by itself
ASK_AGAIN = 5.0  # seconds after which it is asked once more


def control_run(path: Path, say: Say, metrics_port: int | None = None) -> int:
    """Run the controller until the run has ended or someone stops it. Returns the exit code.

    Args:
        path: the run.yaml.
        say: what shows a line.
        metrics_port: serve Prometheus' metrics there (0: at any free port), whatever run.yaml says.

    Raises:
        BadInput: before anything starts, when the configuration, the policy or the port is wrong.
    """
    config, base = load_config(path), path.parent.resolve()
    check_evals(path, config)
    check_feasible(path, config)
    logging.getLogger("mixloop").addHandler(logging.NullHandler())
    timings = Timings()
    # first of all: a controller that takes the run over and then ends would end two
    with _metrics_served(config, metrics_port, timings) as url:
        controller = start_controller(config, base, say, timings)
        return _control(controller, config, say, url)


@contextlib.contextmanager
def _metrics_served(config: RunConfig, port: int | None, timings: Timings) -> Iterator[str | None]:
    """Serve the metrics where that is asked for. Yields the address."""
    from mixloop.controller.watch import MetricsServer

    settings = config.controller.metrics
    port = settings.port if port is None else port
    if port is None:
        yield None
        return
    server = MetricsServer(RunPaths(config.run.dir), settings.host, port, timings)
    try:
        yield server.url
    finally:
        server.close()


def _control(controller: Controller, config: RunConfig, say: Say, url: str | None) -> int:
    signals: list[int] = []

    def stop(number: int, frame: object) -> None:
        signals.append(number)
        controller.stop()

    with handling(stop_signals(), stop):
        end_with_parent(signal.SIGTERM)
        say(
            f"controlling run '{config.run.id}' in {config.run.dir} "
            f"(fence {controller.journal.fence})"
        )
        if url is not None:
            say(f"metrics at {url}")
        try:
            controller.run()
        except FenceLost as error:
            say(f"another controller has taken this run over ({error}); stopping")
            return 1
    return 130 if signals else 0


def start_controller(
    config: RunConfig, base: Path, say: Say, timings: Timings | None = None
) -> Controller:
    """The controller of a run, which has taken it over.

    Raises:
        BadInput: a key file, a source or a journal that can't be used; one line says which.
    """
    from mixloop.controller.journal import damage
    from mixloop.controller.loop import Controller
    from mixloop.controller.views import reading

    paths = RunPaths(config.run.dir)
    with reading(paths.journal):
        try:
            return Controller(config, base, say, timings=timings or Timings())
        except (OSError, sqlite3.OperationalError) as error:
            if str(error).startswith("no such "):  # a table or column that a journal has
                raise BadInput(damage(paths.journal, error)) from None
            # a full disk, a folder that can't be written to
            place = paths.journal if isinstance(error, sqlite3.Error) else paths.dir
            # SQLite says the same of a mount that has no locks to give
            hint = " (by another process; if there is none, its file system has no locks: mount it "
            hint += "with them, or put run.dir elsewhere)"
            raise BadInput(
                f"{place}: no controller can start here: {error}"
                f"{hint if 'locked' in str(error) else ''}; nothing was lost, "
                "start it again when that is mended"
            ) from None


def run_both(path: Path, say: Say, *, rewind: bool = False, metrics_port: int | None = None) -> int:
    """Train and control as two processes; returns the first failure's exit code, or 0.

    The trainer goes on if the controller dies, and the controller waits if the trainer dies: this
    command only starts them, shows how far they are, and passes a stop on to both. They end with
    it, the trainer after a checkpoint, however it ends.

    Raises:
        BadInput: before anything starts.
    """
    config = load_config(path)
    check_evals(path, config)
    check_feasible(path, config)
    launch.check_training(config, rewind=rewind)
    port = config.controller.metrics.port if metrics_port is None else metrics_port
    if port is not None:
        check_address(config.controller.metrics.host, port)
    job = launch.write_job(config)
    control = [sys.executable, "-m", "mixloop.cli.app", "control", str(path)]
    control += ["--metrics-port", str(metrics_port)] if metrics_port is not None else []
    commands = {"trainer": launch.trainer_command(job, rewind=rewind), "controller": control}
    logs = {name: config.run.dir / f"{name}.log" for name in commands}
    for place in logs.values():
        launch.trim(place)
    # opened before either starts: nothing that lies in a log's place ends one without the other
    log = launch.opened(logs["controller"])
    log.seek(0, os.SEEK_END)
    launch.opened(logs["trainer"]).close()
    processes = {name: launch.start(command, logs[name]) for name, command in commands.items()}
    for name, process in processes.items():
        say(f"{name} is process {process.pid}, log {logs[name]}")
    with _ending_both(processes), log, _progress(config) as show:
        return _follow(processes, logs, log, say, show)


@contextlib.contextmanager
def _ending_both(processes: Processes) -> Iterator[None]:
    """Whatever ends this command ends both, gently first; only a Ctrl-C can insist."""
    polite = [number for number in stop_signals() if number != signal.SIGINT]
    try:
        with handling(polite, interrupt):
            yield
    finally:
        # a shell that goes sends SIGHUP twice, SLURM and systemd SIGTERM
        with handling(polite, lambda *_: None):
            _end(processes)


def _end(processes: Processes) -> None:
    """Ask both to end. The trainer gets all the time its last checkpoint takes."""
    running = [process for process in processes.values() if process.poll() is None]
    for process in running:
        process.terminate()
    try:
        _end_controller(processes["controller"])
        processes["trainer"].wait()
    finally:  # also when the person insists with another Ctrl-C
        for process in running:
            if process.poll() is None:
                process.kill()
                process.wait()


def _end_controller(process: subprocess.Popen[bytes]) -> None:
    """Ask until it hears: while it starts, an import may swallow the interrupt."""
    for _ in range(int(TERM_GRACE / ASK_AGAIN)):
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(ASK_AGAIN)
            return
        process.terminate()


def _follow(
    processes: Processes, logs: Mapping[str, Path], log: IO[bytes], say: Say, show: Show
) -> int:
    """Follow both to their end, showing the controller's lines and the progress."""
    failed: set[str] = set()
    while True:
        codes = {name: process.poll() for name, process in processes.items()}
        _relay(log, say)
        show()
        for path in logs.values():
            launch.trim(path)
        for name, code in codes.items():
            if code and name not in failed:
                failed.add(name)
                why = clean(launch.last_line(logs[name]))
                say(f"the {name} ended with status {code}: {why}")
        if codes["controller"] is not None and codes["trainer"] is not None:
            return codes["trainer"] or codes["controller"] or 0
        if codes["trainer"]:
            return codes["trainer"]  # nothing more to control; resume starts both again
        time.sleep(0.2)


def _relay(log: IO[bytes], say: Say) -> None:
    if log.tell() > os.fstat(log.fileno()).st_size:  # it was begun anew
        log.seek(0)
    while line := log.readline(_LONGEST_LINE):
        if not line.endswith(b"\n") and len(line) < _LONGEST_LINE:
            log.seek(-len(line), 1)
            return
        say(clean(line.decode("utf-8", errors="replace").rstrip("\n")))


@contextlib.contextmanager
def _progress(config: RunConfig) -> Iterator[Show]:
    """A bar of the tokens trained, on a terminal; nothing elsewhere."""
    if not sys.stdout.isatty():
        yield lambda: None
        return
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("training"), BarColumn(), TextColumn("{task.fields[shown]}"))
    with Progress(*columns, TimeRemainingColumn()) as progress:
        task = progress.add_task("training", total=config.budget, shown="")

        def show() -> None:
            status = read_status(RunPaths(config.run.dir).status).value
            if status is not None:
                shown = f"step {status.step}, {status.tokens / config.budget:.0%}"
                progress.update(task, completed=status.tokens, shown=shown)

        yield show
