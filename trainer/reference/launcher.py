"""Start a job's ranks on this machine: what `torchrun --standalone` does, with our exit codes.

`torchrun -m mixloop.trainer.train JOB.json` serves as well, and is the way over several machines.
"""

from __future__ import annotations

import math
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence

from mixloop.common.log import say
from mixloop.common.process import PARENT, end_with_parent, handling, stop_signals

_END_SECONDS = 30.0
"""Seconds the other ranks have to end once one has failed, or somebody insists on the end."""
_ECHO_SECONDS = 2.0
"""Within which another signal is the same wish."""


def run_ranks(processes: int, arguments: Sequence[str]) -> int:
    """Run the trainer on `processes` ranks; signals that ask to stop go on to all of them.

    Returns:
        0 when all ranks are done, else the exit code of the first that failed.
    """
    common = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(_free_port()),
        "WORLD_SIZE": str(processes),
        PARENT: str(os.getpid()),
    }
    shared = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // processes))}
    command = [sys.executable, "-m", "mixloop.trainer.train", *arguments]
    ranks: list[subprocess.Popen[bytes]] = []

    asked: list[float] = []

    def pass_on(number: int, frame: object) -> None:
        asked.append(time.monotonic())
        for rank in ranks:
            if rank.poll() is None:
                rank.send_signal(number)

    with handling(stop_signals(), pass_on):
        end_with_parent(signal.SIGTERM)
        try:
            for number in range(processes):
                # sessions of their own: a Ctrl-C reaches each rank once, through us
                place = {"RANK": str(number), "LOCAL_RANK": str(number)}
                environment = shared | os.environ | common | place
                ranks.append(subprocess.Popen(command, env=environment, start_new_session=True))
            if asked:  # by what came before the last of them was there
                pass_on(signal.SIGTERM, None)
            return _wait(ranks, asked)
        finally:
            for rank in ranks:
                rank.kill()
                rank.wait()


def _wait(ranks: Sequence[subprocess.Popen[bytes]], asked: Sequence[float]) -> int:
    failed = 0
    deadline = math.inf
    while any(rank.poll() is None for rank in ranks) and time.monotonic() < deadline:
        codes = {number: rank.returncode for number, rank in enumerate(ranks) if rank.returncode}
        if codes and not failed:
            number, failed = next(iter(codes.items()))
            deadline = time.monotonic() + _END_SECONDS
            if failed < 0:
                say(f"rank {number} was killed by {signal.Signals(-failed).name}")
            if failed != 130:  # those that were asked to stop are writing their checkpoint
                for rank in ranks:
                    rank.terminate()
        if asked and asked[-1] - asked[0] > _ECHO_SECONDS:
            # somebody insists: what waits for a rank that is stopped hears no signal itself
            deadline = min(deadline, asked[-1] + _END_SECONDS)
        time.sleep(0.1)
    failed = failed or next((rank.returncode for rank in ranks if rank.returncode), 0)
    return 1 if failed < 0 else failed


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port
