"""How the worker is started: as a child, by a command template, or as the driver of Ray actors.

A template is a list of arguments, no shell, in which `{command}` stands for the worker's own
arguments: `[srun, -G1, "{command}"]`. Under one, the worker may run on another machine, so it
relies on nothing but its input and output and a shared file system. Its settings come as the
first line of its input, so its own arguments are plain words that `ssh` passes on as well. Light.
"""

from __future__ import annotations

import importlib.util
import shutil
import sys

from mixloop.evals import COMMAND, Launcher

_WORKER = ("-m", "mixloop.evals.workers.worker")


class LauncherError(Exception):
    """No worker can be started: one line with the reason and the remedy."""


def worker_command(launcher: Launcher) -> list[str]:
    """The arguments that start a worker."""
    command = [sys.executable, *_WORKER]
    if isinstance(launcher, str):
        return command
    place = launcher.index(COMMAND)
    return [*launcher[:place], *command, *launcher[place + 1 :]]


def launcher_problem(launcher: Launcher) -> str | None:
    """Why no worker can be started so on this machine, and the remedy; None where one can."""
    if launcher == "ray":
        if importlib.util.find_spec("ray") is None:
            return "launcher: ray needs Ray: pip install 'mixloop[ray]'"
        return None
    if isinstance(launcher, str) or shutil.which(program := worker_command(launcher)[0]):
        return None
    return f"launcher: there is no program {program!r} here; give one on PATH or by its path"
