"""The commands that run for hours: the controller in the foreground, or trainer and controller."""

from __future__ import annotations

import contextlib
import logging
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mixloop.common.errors import BadInput
from mixloop.common.text import clean
from mixloop.contract import RunPaths, read_status
from mixloop.controller.config import RunConfig, load_config
from mixloop.controller.journal import FenceLost
from mixloop.controller.watch import Timings, check_address

from . import launch
from .preflight import check_evals

if TYPE_CHECKING:
    from mixloop.controller.loop import Controller


Say = Callable[[str], None]

TERM_GRACE = 60.0  # seconds the controller gets to end by itself


def control_run(path: Path, say: Say, metrics_port: int | None = None) -> int:
    """Run the controller until the run has ended or someone stops it. Returns the exit code.

    Args:
        metrics_port: serve Prometheus' metrics there (0: at any free port), whatever run.yaml says.

    Raises:
        BadInput: before anything starts, when the configuration, the policy or the port is wrong.
    """
    config = load_config(path)
    check_evals(path, config)
    launch.check_policy(config, path.parent.resolve())
    logging.getLogger("mixloop").addHandler(logging.NullHandler())
    with contextlib.ExitStack() as stack:
        timings = Timings()
        # first of all: a controller that takes the run over and then ends would end two
        url = _serve_metrics(config, metrics_port, timings, stack)
        controller = start_controller(config, path.parent.resolve(), say, timings)
        return _control(controller, config, say, url)


def _serve_metrics(
    config: RunConfig, port: int | None, timings: Timings, stack: contextlib.ExitStack
) -> str | None:
    """Serve the metrics where that is asked for. Returns the address."""
    from mixloop.controller.watch import MetricsServer

    settings = config.controller.metrics
    wanted = settings.port if port is None else port
    if wanted is None:
        return None
    server = MetricsServer(RunPaths(config.run.dir), settings.host, wanted, timings)
    stack.callback(server.close)
    return server.url


def _control(controller: Any, config: RunConfig, say: Say, url: str | None) -> int:
    stopped_by: list[int] = []

    def stop(number: int, frame: object) -> None:
        stopped_by.append(number)
        controller.stop()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    say(f"controlling run '{config.run.id}' in {config.run.dir} (fence {controller.journal.fence})")
    if url is not None:
        say(f"metrics at {url}")
    try:
        controller.run()
    except FenceLost as error:
        say(f"another controller has taken this run over ({error}); stopping")
        return 1
    return 130 if stopped_by else 0


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
            raise BadInput(
                f"{place}: no controller can start here: {error}; nothing was lost, "
                "start it again when that is mended"
            ) from None


def run_both(
    path: Path, *, rewind: bool = False, say: Say | None = None, metrics_port: int | None = None
) -> int:
    """Train and control as two processes; returns the first failure's exit code, or 0.

    The trainer goes on if the controller dies, and the controller waits if the trainer dies: this
    command only starts them, shows how far they are, and passes a stop on to both.

    Raises:
        BadInput: before anything starts.
    """
    config = load_config(path)
    tell = say or (lambda line: print(line, flush=True))  # noqa: T201 - the command's output
    check_evals(path, config)
    launch.check_policy(config, path.parent.resolve())
    launch.check_training(config, rewind=rewind)
    port = config.controller.metrics.port if metrics_port is None else metrics_port
    if port is not None:
        check_address(config.controller.metrics.host, port)
    paths = RunPaths(config.run.dir)
    job = launch.write_job(config)
    logs = {name: paths.dir / f"{name}.log" for name in ("trainer", "controller")}
    told = logs["controller"].stat().st_size if logs["controller"].exists() else 0
    command = launch.trainer_command(job, rewind=rewind)
    mine = [sys.executable, "-m", "mixloop.cli.app", "control", str(path)]
    mine += ["--metrics-port", str(metrics_port)] if metrics_port is not None else []
    parts = {
        "trainer": launch.start(command, logs["trainer"]),
        "controller": launch.start(mine, logs["controller"]),
    }
    tell(f"trainer is process {parts['trainer'].pid}, log {logs['trainer']}")
    tell(f"controller is process {parts['controller'].pid}, log {logs['controller']}")
    with _passing_on_stops(parts):
        return _watch(config, parts, logs, tell, told)


@contextlib.contextmanager
def _passing_on_stops(parts: dict[str, subprocess.Popen[bytes]]) -> Iterator[None]:
    """Whatever ends this command ends both parts, gently first."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
        _end(parts)


def _end(parts: dict[str, subprocess.Popen[bytes]]) -> None:
    """Ask every part to end. The trainer gets all the time its last checkpoint takes."""
    for part in parts.values():
        if part.poll() is None:
            part.terminate()
    try:
        with contextlib.suppress(subprocess.TimeoutExpired):
            parts["controller"].wait(TERM_GRACE)
        parts["trainer"].wait()
    finally:  # also when the person insists with another Ctrl-C
        for part in parts.values():
            if part.poll() is None:
                part.kill()
                part.wait()


def _watch(
    config: RunConfig,
    parts: dict[str, subprocess.Popen[bytes]],
    logs: dict[str, Path],
    tell: Say,
    heard: int,
) -> int:
    """Follow both parts to their end, showing the controller's lines and the progress.

    ``heard``: bytes of the controller's log that an earlier start of this run has written.
    """
    told: set[str] = set()
    with logs["controller"].open("rb") as stream, _progress(config) as show:
        stream.seek(heard)
        while True:
            ended = {name: part.poll() for name, part in parts.items()}
            _relay(stream, tell)
            show()
            for name, code in ended.items():
                if code and name not in told:
                    told.add(name)
                    why = clean(launch.last_line(logs[name]))
                    tell(f"the {name} ended with status {code}: {why}")
            if ended["controller"] is not None and ended["trainer"] is not None:
                return ended["trainer"] or ended["controller"] or 0
            if ended["trainer"]:
                return int(ended["trainer"])  # nothing more to control; resume starts both again
            time.sleep(0.2)


def _relay(stream: Any, tell: Say) -> None:
    while line := stream.readline():
        if not line.endswith(b"\n"):
            stream.seek(-len(line), 1)
            return
        tell(clean(line.decode("utf-8", errors="replace").rstrip("\n")))


@contextlib.contextmanager
def _progress(config: RunConfig) -> Iterator[Callable[[], None]]:
    """A bar of the tokens trained, on a terminal; nothing elsewhere."""
    if not sys.stdout.isatty():
        yield lambda: None
        return
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("training"), BarColumn(), TextColumn("{task.fields[shown]}"))
    with Progress(*columns, TimeRemainingColumn()) as progress:
        task = progress.add_task("training", total=config.budget, shown="")

        def show() -> None:
            beat = read_status(RunPaths(config.run.dir).status).value
            if beat is not None:
                shown = f"step {beat.step}, {beat.tokens / config.budget:.0%}"
                progress.update(task, completed=beat.tokens, shown=shown)

        yield show
