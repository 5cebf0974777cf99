"""How the worker is started: as a child, by a command template, or as the driver of Ray actors.

A template is a list of arguments, no shell, in which `{command}` stands for the worker's own
arguments: `[srun, -G1, "{command}"]`. Under one, the worker may run on another machine, so it
relies on nothing but its input and output and a shared file system. Its settings come as the
first line of its input, so its own arguments are plain words that `ssh` passes on as well. Light.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from collections.abc import Sequence

from mixloop.evals import COMMAND, EvalSettings, Launcher

_WORKER = ("-m", "mixloop.evals.workers.worker")


class LauncherError(Exception):
    """No worker can be started: one line with the reason and the mend."""


def worker_command(launcher: Launcher) -> list[str]:
    """The arguments that start a worker."""
    own = [sys.executable, *_WORKER]
    if isinstance(launcher, str):
        # a child of ours ends when we do, however that is
        return [*own, "--parent", str(os.getpid())]
    return spliced(launcher, own)


def spliced(template: Sequence[str], command: Sequence[str]) -> list[str]:
    """The template's arguments with the command's in the place of `{command}`."""
    place = template.index(COMMAND)
    return [*template[:place], *command, *template[place + 1 :]]


def worker_environment(settings: EvalSettings) -> dict[str, str]:
    """What a scoring process has in its environment: quiet, and off the hub unless it is asked.

    To be set before the numerical libraries are imported.
    """
    environment = {
        "TOKENIZERS_PARALLELISM": "false",
        "TQDM_DISABLE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        # threads that spin while they wait for one whose processor is taken by the trainer make
        # everything many times slower
        "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "PASSIVE"),
    }
    if settings.threads is not None:
        environment["OMP_NUM_THREADS"] = environment["MKL_NUM_THREADS"] = str(settings.threads)
    if all(one.data not in ("auto", "hub") for one in settings.asked.values()):
        environment["HF_HUB_OFFLINE"] = "1"
    return environment


def launcher_problem(launcher: Launcher) -> str | None:
    """Why no worker can be started this way on this machine, and the mend; None where one can."""
    if launcher == "ray":
        if importlib.util.find_spec("ray") is None:
            return "launcher: ray needs Ray: pip install 'mixloop[ray]'"
        return None
    if isinstance(launcher, str) or shutil.which(program := worker_command(launcher)[0]):
        return None
    return f"launcher: there is no program {program!r} here; give one on PATH or by its path"
