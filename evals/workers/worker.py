"""The evaluation worker: scores checkpoints one after another, keeping imports and tasks warm.

`python -m mixloop.evals.workers.worker` reads JSON lines on its standard input:
first the settings, then one request per checkpoint (`checkpoint`, `out`, and the folders `earlier`
whose weights are averaged with its own). It answers with JSON lines (`event`: ready, progress,
warning, scored, done, failed, and dying when it can't go on). The scorecard goes to the file `out`,
per-item outcomes to a parquet file beside it; between `scored` and `done` it writes samples for a
person. It ends when nobody holds the other end of its input, its parent dies, it holds more memory
than it may, or nothing came for `idle_seconds`. Scoring runs in the main thread: lm-eval's MATH
scorer uses `signal.alarm`.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import select
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from mixloop.common.errors import one_line
from mixloop.common.text import clean
from mixloop.evals import EvalSettings, Scorecard
from mixloop.evals.scoring import Scorer, keep_outcomes

from .launchers import LauncherError
from .ray_scorer import RayScorer
from .supervision import end_on_request, end_process, set_up_process, watch_input

log = logging.getLogger(__name__)

# seconds in which whoever starts a worker says what it is to do
_SETTINGS_TIMEOUT = 60.0


class Channel:
    """JSON lines on the real standard output, which nobody else can write to."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream
        self._lock = threading.Lock()

    @classmethod
    def take_stdout(cls) -> Channel:
        """Keeps standard output for itself and sends everything else printed to the log."""
        private = os.dup(sys.stdout.fileno())
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
        return cls(os.fdopen(private, "w", encoding="utf-8"))

    def send(self, event: str, **content: Any) -> None:
        """One event, from any thread.

        Raises:
            BrokenPipeError: nobody is left to hear it.
        """
        with self._lock:
            self._stream.write(json.dumps({"event": event, **content}) + "\n")
            self._stream.flush()


class _Warnings(logging.Handler):
    """Tells whoever asked what is logged: the log itself may be read by nobody."""

    def __init__(self, channel: Channel) -> None:
        super().__init__(logging.WARNING)
        self._channel = channel

    def emit(self, record: logging.LogRecord) -> None:
        """One record, without its traceback."""
        # nobody left to hear it: the next answer finds that out
        with contextlib.suppress(OSError):
            self._channel.send("warning", text=clean(record.getMessage()))


class _Lines:
    """JSON lines of the standard input as they come."""

    def __init__(self) -> None:
        self._waiting = b""

    def until_idle(self, seconds: float) -> Iterator[Any]:
        """Ends at end of input or after so many seconds of silence."""
        while True:
            while b"\n" in self._waiting:
                line, self._waiting = self._waiting.split(b"\n", 1)
                yield json.loads(line)
            if not select.select([0], [], [], seconds)[0]:
                return
            part = os.read(0, 65536)
            if not part:
                return
            self._waiting += part


def _serve(settings: EvalSettings, requests: Iterator[dict[str, Any]], channel: Channel) -> None:
    """Answers requests until there are no more."""
    try:
        scorer = RayScorer(settings) if settings.launcher == "ray" else Scorer(settings)
    except LauncherError as error:
        channel.send("dying", reason=str(error))
        return
    channel.send("ready")
    try:
        for request in requests:
            _answer(scorer, request, channel)
    finally:
        scorer.close()


def _answer(scorer: Scorer | RayScorer, request: dict[str, Any], channel: Channel) -> None:
    def progress(name: str, state: str) -> None:
        channel.send("progress", benchmark=name, state=state)

    out = Path(request["out"])
    try:
        earlier = [Path(folder) for folder in request.get("earlier", ())]
        card = scorer.score(Path(request["checkpoint"]), progress, earlier)
        card.write(out)
        keep_outcomes(card, out)
        channel.send("scored", out=request["out"])
        progress("samples", "running")
        _write_samples(scorer, card, out)
        channel.send("done", out=request["out"])
    except BrokenPipeError:
        raise
    except OSError as error:
        channel.send("failed", reason=f"{out}: {error}")
        return
    # whatever else fails is this checkpoint's failure; the worker takes the next one
    except Exception as error:
        log.exception("scoring failed")
        channel.send("failed", reason=one_line(error))
        return
    finally:
        scorer.release()


def _write_samples(scorer: Scorer | RayScorer, card: Scorecard, out: Path) -> None:
    """Texts for a person, which no decision waits for; the scorecard is there without them."""
    try:
        scorer.samples(card, out)
    except OSError as error:
        log.warning("no samples are kept: %s", error)
    except Exception as error:  # of a checkpoint that is scored: the worker takes the next one
        log.exception("no samples are kept: %s", one_line(error))


def _begin(channel: Channel) -> None:
    lines = _Lines()
    first = next(lines.until_idle(_SETTINGS_TIMEOUT), None)
    if first is None:
        return
    settings = EvalSettings.model_validate(first)

    def give_up(reason: str) -> None:
        with contextlib.suppress(OSError):
            channel.send("dying", reason=reason)
        end_process()

    set_up_process(settings, give_up)
    _serve(settings, lines.until_idle(settings.idle_seconds), channel)


def main() -> None:
    """Entry of `python -m mixloop.evals.workers.worker`."""
    channel = Channel.take_stdout()
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(name)s %(message)s")
    logging.getLogger().addHandler(_Warnings(channel))
    end_on_request()
    watch_input(0)
    try:
        _begin(channel)
    except BrokenPipeError:
        # the controller is gone; there is nobody to tell
        os._exit(0)


if __name__ == "__main__":
    main()
