"""The evaluation worker: scores checkpoints one after another, keeping imports and tasks warm.

`python -m mixloop.evals.worker SETTINGS --parent PID` (settings as JSON text) reads one JSON line
per checkpoint on its standard input (`checkpoint`, `out`) and answers with JSON lines (`event`:
ready, progress, done, failed). The scorecard itself goes to the file `out`, per-item outcomes to
a parquet file beside it. It ends when its input ends, its parent dies, or nothing came for
`idle_seconds`. Scoring runs in the main thread because lm-eval's MATH scorer uses `signal.alarm`.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import logging
import os
import select
import signal
import sys
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from .outcomes import keep_outcomes
from .settings import EvalSettings

if TYPE_CHECKING:
    from .scorer import Progress, Scorer

_PR_SET_PDEATHSIG = 1


class Channel:
    """JSON lines on the real standard output, which nobody else can write to."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream

    @classmethod
    def take_stdout(cls) -> Channel:
        """Keeps standard output for itself and sends everything else printed to the log."""
        private = os.dup(sys.stdout.fileno())
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
        return cls(os.fdopen(private, "w", encoding="utf-8"))

    def send(self, event: str, **content: Any) -> None:
        """One event. A parent that is gone raises BrokenPipeError."""
        self._stream.write(json.dumps({"event": event, **content}) + "\n")
        self._stream.flush()


def die_with(parent: int) -> None:
    """Has the kernel end this process when its parent does (Linux; elsewhere input's end does)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    # the parent may have died before the kernel was asked
    if os.getppid() != parent:
        sys.exit(0)


def _requests(idle_seconds: float) -> Any:
    """Request lines as they come; ends at end of input or after `idle_seconds` of silence."""
    waiting = b""
    while True:
        while b"\n" in waiting:
            line, waiting = waiting.split(b"\n", 1)
            yield json.loads(line)
        if not select.select([0], [], [], idle_seconds)[0]:
            return
        part = os.read(0, 65536)
        if not part:
            return
        waiting += part


def serve(settings: EvalSettings, channel: Channel) -> None:
    """Answers requests until there are no more."""
    from .scorer import Scorer

    _quieten(settings)
    scorer = Scorer(settings)
    channel.send("ready")
    try:
        for request in _requests(settings.idle_seconds):
            _answer(scorer, request, channel)
    finally:
        scorer.close()


def _answer(scorer: Scorer, request: dict[str, str], channel: Channel) -> None:
    def progress(name: str, state: str) -> None:
        channel.send("progress", benchmark=name, state=state)

    checkpoint, out = Path(request["checkpoint"]), Path(request["out"])
    try:
        card = scorer.score(checkpoint, progress)
        card.write(out)
        keep_outcomes(card, out)
        _keep_samples(scorer, checkpoint, out, progress)
    except OSError as error:
        channel.send("failed", reason=f"{request['out']}: {error}")
        return
    # whatever else fails is this checkpoint's failure; the worker takes the next one
    except Exception as error:
        logging.getLogger(__name__).exception("scoring failed")
        channel.send("failed", reason=f"{type(error).__name__}: {error}".splitlines()[0])
        return
    finally:
        scorer.release()
    channel.send("done", out=request["out"])


def _keep_samples(scorer: Scorer, checkpoint: Path, out: Path, progress: Progress) -> None:
    """Texts for a person; whatever becomes of them, the scorecard is there."""
    progress("samples", "running")
    try:
        scorer.samples(checkpoint, out)
    except OSError as error:
        logging.getLogger(__name__).warning("no samples are kept: %s", error)


def _quieten(settings: EvalSettings) -> None:
    """Threads and log levels; the imports here are the worker's slow start."""
    import datasets
    import torch
    import transformers

    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    logging.getLogger("lm_eval").setLevel(logging.ERROR)


def main() -> None:
    """Entry of `python -m mixloop.evals.worker`."""
    parser = argparse.ArgumentParser(prog="python -m mixloop.evals.worker")
    parser.add_argument("settings", help="EvalSettings as JSON")
    parser.add_argument("--parent", type=int, required=True, help="process to die with")
    options = parser.parse_args()
    die_with(options.parent)
    channel = Channel.take_stdout()
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(name)s %(message)s")
    try:
        serve(EvalSettings.model_validate_json(options.settings), channel)
    except BrokenPipeError:
        # the controller is gone; there is nobody to tell
        os._exit(0)


if __name__ == "__main__":
    main()
