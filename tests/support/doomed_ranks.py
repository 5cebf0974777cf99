"""Two real ranks over gloo, of which one meets its fate at a given point of the trainer.

``python doomed_ranks.py FOLDER TRIALS.json``, a list of ``{"job", "trace", "at", "nth", "rank",
"fate"}``: the job file; where samples are traced; a name of `POINTS`, or null; at which call of it;
whose; ``kill``, ``stop``, or ``pause`` (stopped, and continued after `PAUSE` seconds). Once a rank
has ended with an error, the others are given `GRACE` seconds, as torchrun would. A line of JSON
for each trial: exit codes, seconds until the first has ended, what each rank said. All are forked
from one warm interpreter.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mixloop.trainer import train as loop
from mixloop.trainer.batches import RankBatches
from mixloop.trainer.reference import Session, Trainer
from mixloop.trainer.run import LiveMixture

POINTS: dict[str, tuple[Any, str, bool]] = {  # what is called; whether it is done by then
    "start": (loop, "connect", False),
    "model": (Trainer, "__init__", False),
    "first-batch": (loop, "open_batches", False),
    "draw": (RankBatches, "batch", False),
    "step": (Trainer, "step", False),
    "order": (LiveMixture, "poll", False),
    "order-heard": (LiveMixture, "poll", True),
    "checkpoint": (Trainer, "state", False),
    "checkpoint-gathered": (Trainer, "state", True),
    "checkpoint-written": (Trainer, "release", False),
    "end": (Session, "close", False),
    "goodbye": (loop, "disconnect", False),
}
PAUSE, GRACE = 2.0, 30.0


def doom(at: str, nth: int, fate: Callable[[], None]) -> None:
    owner, name, after = POINTS[at]
    real, calls = getattr(owner, name), [0]

    def call(*given: Any, **named: Any) -> Any:
        calls[0] += 1
        mine = calls[0] == nth
        if mine and not after:
            fate()
        result = real(*given, **named)
        if mine and after:
            fate()
        return result

    setattr(owner, name, call)


def meet(fate: str) -> None:
    if fate == "pause":
        me = os.getpid()
        if os.fork() == 0:  # somebody who can wake us
            time.sleep(PAUSE)
            os.kill(me, signal.SIGCONT)
            os._exit(0)
    os.kill(os.getpid(), signal.SIGKILL if fate == "kill" else signal.SIGSTOP)


def fork(folder: Path, trial: dict[str, Any], rank: int, port: int) -> int:
    child = os.fork()
    if child:
        return child
    said = os.open(folder / f"said.{rank}", os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
    os.dup2(said, 1)
    os.dup2(said, 2)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    if trial["at"] is not None and trial["rank"] == rank:
        doom(trial["at"], trial["nth"], lambda: meet(trial["fate"]))
    code = loop.main([trial["job"], "--trace", trial["trace"]])
    sys.stderr.flush()
    os._exit(code)


def carry_out(folder: Path, trial: dict[str, Any]) -> dict[str, Any]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    began = time.monotonic()
    ranks = [fork(folder, trial, rank, port) for rank in range(2)]
    codes: dict[int, int] = {}
    first, deadline = None, float("inf")
    while len(codes) < 2:
        for rank in (0, 1):
            if rank not in codes and (ended := os.waitpid(ranks[rank], os.WNOHANG))[0]:
                codes[rank] = os.waitstatus_to_exitcode(ended[1])
                if first is None and (trial["at"] is None or rank != trial["rank"]):
                    first = time.monotonic() - began
                if codes[rank] > 0:
                    grace = 0.0 if trial["fate"] == "stop" else GRACE
                    deadline = time.monotonic() + grace
            elif rank not in codes and time.monotonic() > deadline:
                os.kill(ranks[rank], signal.SIGKILL)
        time.sleep(0.02)
    said = [(folder / f"said.{rank}").read_text(errors="replace") for rank in range(2)]
    return {"codes": [codes[0], codes[1]], "seconds": first, "said": said}


if __name__ == "__main__":
    # what the ranks share; no thread is started before they fork
    import torch.distributed.checkpoint
    import torch.distributed.fsdp  # noqa: F401
    import transformers.models.llama.modeling_llama  # noqa: F401

    folder = Path(sys.argv[1])
    for trial in json.loads(Path(sys.argv[2]).read_text()):
        print(json.dumps(carry_out(folder, trial)), flush=True)  # noqa: T201
