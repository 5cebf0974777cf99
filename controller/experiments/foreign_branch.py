"""A branch by another trainer: a command template, started as a list of arguments, no shell.

``{checkpoint}`` is the folder to start from, ``{mixture}`` a JSON file (``mixloop/branch/1``:
``weights`` by source, and all the rest), ``{tokens}`` how long, ``{learning_rate}`` the run's at
the checkpoint, and ``{out}`` the folder to leave the model in, in Hugging Face format with
safetensors. If it leaves the weights at half of the tokens in ``half`` there, the error of a fit
can be told. Exit status 0 means that the model is there; the last line of the output is the reason
of any other.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import IO

from mixloop.common.children import end_kept, start_kept
from mixloop.common.files import write_json
from mixloop.trainer.branching import HALF
from mixloop.trainer.config import learning_rate

from .spec import ExperimentSpec

BRANCH_SCHEMA = "mixloop/branch/1"
_SHOWN = 300  # characters of a reason
_LOGGED = 2**20  # bytes of one branch's output that the log takes
_LINGER = 0.5  # seconds for the rest of its output, which a process that it left may hold open


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
        status, last = run_kept(command, spec.command_timeout)
    finally:
        mixture.unlink(missing_ok=True)
    if status != 0:
        ended = f"ended with status {status}"
        if status is None:
            ended = f"took more than experiments.timeout, {spec.command_timeout:g} s, and was ended"
        told_why = f": {last[:_SHOWN]}" if last else " and said nothing"
        raise BranchError(f"its command {ended}{told_why}")
    for folder in (out, *([out / HALF] if (out / HALF).is_dir() else [])):
        if not any(folder.glob("*.safetensors")) or not (out / "config.json").is_file():
            where = "{out}" if folder == out else f"{{out}}/{HALF}"
            raise BranchError(
                f"its command left no model in Hugging Face format (config.json, *.safetensors) "
                f"in {where}"
            )
    if _untouched(spec.checkpoint, out):
        raise BranchError("its command left the weights that it was to start from: nothing changed")


def _untouched(checkpoint: Path, out: Path) -> bool:
    from mixloop.evals.checkpoints import same_weights

    with contextlib.suppress(OSError, ValueError):  # scoring says what is wrong with them
        return same_weights(checkpoint, out)
    return False


def run_kept(command: list[str], limit: float) -> tuple[int | None, str]:
    """Its exit status and the last line of its output, which goes to the log as it comes.

    However much it prints, little is kept: this machine has a run to train. It and what it has
    started end with us, and after ``limit`` seconds, when the status is None.
    """
    kept = bytearray()
    with start_kept(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        assert process.stdout is not None
        reader = threading.Thread(target=_follow, args=(process.stdout, kept), daemon=True)
        reader.start()
        status = _waited(process, limit)
        reader.join(_LINGER)
        if reader.is_alive():  # what holds it open has to be let go of, not waited for
            process.stdout = None
    lines = bytes(kept).decode("utf-8", "replace").strip().splitlines() or [""]
    return status, lines[-1]


def _waited(process: subprocess.Popen[bytes], limit: float) -> int | None:
    try:
        return process.wait(limit)
    except subprocess.TimeoutExpired:
        return None
    finally:
        end_kept(process)


def _follow(output: IO[bytes], kept: bytearray) -> None:
    logged = 0
    with output:
        while chunk := os.read(output.fileno(), 2**16):
            kept += chunk
            del kept[:-4096]
            if logged < _LOGGED:
                sys.stderr.write(chunk[: _LOGGED - logged].decode("utf-8", "replace"))
                sys.stderr.flush()
                logged += len(chunk)
                if logged >= _LOGGED:
                    sys.stderr.write("\n[what this branch prints further is left out]\n")


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
