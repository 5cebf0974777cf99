"""A branch by another trainer: a command template, started as a list of arguments, no shell.

``{checkpoint}`` is the folder to start from, ``{mixture}`` a JSON file (``mixloop/branch/1``:
``weights`` by source, and all the rest), ``{tokens}`` how long, ``{learning_rate}`` the run's at
the checkpoint, and ``{out}`` the folder to leave the model in, in Hugging Face format with
safetensors. If it leaves the weights at half of the tokens in ``half`` there, the error of a fit
can be told. Exit status 0 means that the model is there; the last line of the output is the reason
of any other.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from mixloop.common.files import write_json
from mixloop.trainer.branching import HALF
from mixloop.trainer.config import learning_rate

from .spec import ExperimentSpec

BRANCH_SCHEMA = "mixloop/branch/1"
_SHOWN = 300  # characters of a reason
# the command ends with us, however that is
_TETHERED = """
import os, sys
from mixloop.common.process import end_with_parent
end_with_parent(parent=int(sys.argv[1]))
os.execvp(sys.argv[2], sys.argv[2:])
"""


class BranchError(Exception):
    """A branch that could not be trained: one line with the reason."""


def train_by_command(
    spec: ExperimentSpec, weights: Mapping[str, float], out: Path, *, halfway: bool
) -> None:
    """Have the other trainer train one branch into an empty folder.

    Raises:
        BranchError: it failed, or left no model.
        OSError: the disk did not take what it is told.
    """
    assert spec.command is not None
    rate = rate_at_checkpoint(spec)
    mixture = out.parent / f"{out.name}.mixture.json"
    told = {
        "schema": BRANCH_SCHEMA,
        "run": spec.run,
        "step": spec.step,
        "run_tokens": spec.run_tokens,
        "weights": dict(weights),
        "tokens": spec.tokens,
        "schedule": spec.schedule,
        "learning_rate": rate,
        "seed": spec.job.seed,
        "halfway": halfway,
    }
    write_json(mixture, told)
    words = {
        "{checkpoint}": str(spec.checkpoint),
        "{mixture}": str(mixture),
        "{tokens}": str(spec.tokens),
        "{learning_rate}": repr(rate),
        "{out}": str(out),
    }
    command = [_filled(argument, words) for argument in spec.command]
    try:
        done = subprocess.run(
            [sys.executable, "-c", _TETHERED, str(os.getpid()), *command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            check=False,
        )
    finally:
        mixture.unlink(missing_ok=True)
    sys.stderr.write(done.stdout)
    if done.returncode:
        lines = done.stdout.strip().splitlines() or [""]
        raise BranchError(f"its command ended with status {done.returncode}: {lines[-1][:_SHOWN]}")
    for folder in (out, *([out / HALF] if (out / HALF).is_dir() else [])):
        if not any(folder.glob("*.safetensors")) or not (out / "config.json").is_file():
            raise BranchError(f"its command left no model in Hugging Face format in {folder.name}")


def rate_at_checkpoint(spec: ExperimentSpec) -> float:
    """The learning rate where the branches begin."""
    if spec.learning_rate is not None:
        return spec.learning_rate
    rates = learning_rate(spec.job.settings, spec.job.budget)
    return rates.rate(spec.run_tokens, spec.run_tokens)


def _filled(argument: str, words: Mapping[str, str]) -> str:
    for word, value in words.items():
        argument = argument.replace(word, value)
    return argument
