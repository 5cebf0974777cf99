"""A training loop that is not ours, on one rank of any number: adopts a mixture, writes a trace.

``python loader_loop.py RUN.yaml OUT [--stop STEP] [--kill STEP] [--orders]`` resumes from OUT's
newest state, appends one JSON line a micro-batch to OUT/trace-RANK.jsonl, saves a state every 7
steps, and ends with the budget, before STEP, or by SIGKILL at STEP. With ``--orders`` rank 0 also
plays the controller.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import torch.distributed as dist

from mixloop.common.files import write_atomic
from mixloop.contract import Order, RunPaths, read_schedule, write_order
from mixloop.trainer.loader import MixtureLoader


class Controller:
    """Writes the next order as soon as the last one is recorded."""

    def __init__(self, paths: RunPaths, names: list[str]) -> None:
        self.paths, self.names = paths, names

    def act(self) -> None:
        made = read_schedule(self.paths.schedule).accepted[1] + 1
        share = (made * 37 % 89 + 1) / 100
        first, second, *_ = self.names
        if made > 6:
            return
        weights = {first: share, second: 1 - share}
        write_order(self.paths.mixture, Order("r", 1, made, weights))
        deadline = time.monotonic() + 0.3
        while read_schedule(self.paths.schedule).accepted[1] < made:
            if time.monotonic() > deadline:
                return  # one is pending: the next comes later
            time.sleep(0.002)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("config", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--stop", type=int)
    parser.add_argument("--kill", type=int)
    parser.add_argument("--orders", action="store_true")
    parser.add_argument("--micro-batch", type=int, default=4)
    parser.add_argument("--accumulation", type=int, default=2)
    arguments = parser.parse_args()
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    if world > 1:
        dist.init_process_group("gloo")
    changes: list[Any] = []
    loader = MixtureLoader.from_config(
        arguments.config,
        micro_batch=arguments.micro_batch,
        accumulation=arguments.accumulation,
        on_change=lambda change: changes.append((change.step, change.sample, change.generation)),
    )
    state = arguments.out / "state.json"
    if state.exists():
        loader.load_state_dict(json.loads(state.read_text()))
    controller = Controller(RunPaths(loader.job.dir), list(loader.names))
    with (arguments.out / f"trace-{rank}.jsonl").open("a") as trace, loader:
        micro = 0
        for batch in loader:
            step = loader.step if micro + 1 < arguments.accumulation else loader.step - 1
            line = {
                "step": step,
                "micro": micro,
                "world": world,
                "first": batch["input_ids"][:, 0].tolist(),
                "changes": changes,
            }
            trace.write(json.dumps(line) + "\n")
            trace.flush()
            micro = (micro + 1) % arguments.accumulation
            if micro:
                continue
            loader.report(loss=2.0, lr=0.1)
            done = loader.step
            if arguments.orders and rank == 0 and done % 5 == 1:
                controller.act()
            if done % 7 == 0 and rank == 0:
                write_atomic(state, json.dumps(loader.state_dict()).encode())
            if done == arguments.kill:
                os.kill(os.getpid(), signal.SIGKILL)
            if done == arguments.stop:
                break
    if world > 1:
        dist.barrier()
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
