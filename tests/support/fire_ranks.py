"""Ranks that can be killed: a process that forks jobs of real gloo ranks, as told on its stdin.

    python fire_ranks.py FOLDER

Each line of the standard input is a job, `{"job": 3, "world": 4, "micro_batch": 2,
"accumulation": 2, ...}`. Its ranks consume a `MixtureLoader`, record what they were given, and
save the loader's state now and then; like a training loop they meet once a step. The answer is a
line with their process ids, and one more with their exit codes once all have ended. torch is
imported once, before the forks.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
import traceback
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from mixloop.common.process import PARENT, end_with_parent
from mixloop.trainer.loader import MixtureLoader

Json = dict[str, Any]


def newest(checkpoints: Path) -> Path | None:
    """The newest folder that is complete."""
    found = sorted(checkpoints.glob("step-*/mixloop.json"))
    return found[-1].parent if found else None


class Recorder:
    """Writes down what a rank was given; a killed rank leaves all it had written."""

    def __init__(self, folder: Path, job: Json, rank: int) -> None:
        name = f"trace-{job['job']:03d}"
        self._batches = (folder / (f"{name}.rank{rank}" if rank else name)).open("a")
        self._changes = (folder / f"changes-{job['job']:03d}.rank{rank}").open("a")
        self._rank, self._world = rank, job["world"]

    def step(self, step: int, sample: int, incarnation: int, micros: list[torch.Tensor]) -> None:
        """A step's token ids, [rows, L] by micro-batch; they tell source and sample themselves."""
        ids = torch.stack(micros).numpy()
        line = {
            "step": step,
            "sample": sample,
            "rank": self._rank,
            "world": self._world,
            "source": ids[..., 0].tolist(),
            "index": (ids[..., 1] * 4096 + ids[..., 2]).tolist(),
            "sha256": hashlib.sha256(ids.astype("<u4").tobytes()).hexdigest(),
            "incarnation": incarnation,
        }
        self._batches.write(json.dumps(line) + "\n")
        self._batches.flush()

    def change(self, told: Any) -> None:
        """A switch, as `on_change` tells it."""
        line = {"step": told.step, "sample": told.sample, "generation": told.generation}
        self._changes.write(json.dumps(line) + "\n")
        self._changes.flush()


def consume(folder: Path, job: Json, rank: int) -> None:
    """One rank's life."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder / ('rendezvous-' + str(job['job']))}",
        rank=rank,
        world_size=job["world"],
        timeout=timedelta(seconds=60),
    )
    recorder = Recorder(folder, job, rank)
    run = folder / "run"
    loader = MixtureLoader(
        run,
        run="fire",
        sources={name: str(folder / name) for name in job["sources"]},
        weights=job["weights"],
        budget="1T",
        seed=job["seed"],
        sequence_length=job["sequence_length"],
        micro_batch=job["micro_batch"],
        accumulation=job["accumulation"],
        prefetch=job["prefetch"],
        poll_every=job["poll_every"],
        status_every=4,
        on_change=recorder.change,
        from_scratch=True,  # where it is killed before its first checkpoint
    )
    parent = newest(run / "checkpoints")
    if parent is not None:
        loader.restore(parent)
    quantum = job["world"] * job["micro_batch"] * job["accumulation"]
    incarnation, micros = 0, []
    for batch in loader:
        incarnation = incarnation or loader.state_dict()["incarnation"]
        ids = batch["input_ids"].clone()
        assert torch.equal(ids[:, 0], batch["source"]), "ids of another source than told"
        micros.append(ids)
        if len(micros) < job["accumulation"]:
            continue
        recorder.step(loader.step - 1, loader.sample - quantum, incarnation, micros)
        micros = []
        # where a training loop would exchange gradients; and all hear of the wish to stop
        stop = torch.tensor([float((folder / f"stop-{job['job']}").exists())])
        dist.all_reduce(stop)
        if loader.step % job["save_every"] == 0 or stop.item():
            if rank == 0:
                place = run / "checkpoints" / f"step-{loader.step:08d}"
                place.mkdir(parents=True, exist_ok=True)
                assert loader.mark_checkpoint(place)
            if stop.item():
                break
    loader.close()
    dist.destroy_process_group()


def fork(folder: Path, job: Json, rank: int) -> int:
    """Start a rank; its process id."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        end_with_parent(signal.SIGTERM)
        with (folder / f"log-{job['job']:03d}.rank{rank}").open("w") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
            try:
                consume(folder, job, rank)
                code = 0
            except BaseException:
                traceback.print_exc()
                sys.stderr.flush()
    finally:
        os._exit(code)


def main() -> None:
    """Carry out jobs, one after another, until the standard input ends."""
    folder = Path(sys.argv[1])
    end_with_parent(signal.SIGTERM)
    os.environ[PARENT] = str(os.getpid())
    for text in sys.stdin:
        job = json.loads(text)
        ranks = [fork(folder, job, rank) for rank in range(job["world"])]
        print(json.dumps(ranks), flush=True)  # noqa: T201
        codes = {}
        while len(codes) < len(ranks):
            pid, status = os.wait()
            codes[pid] = os.waitstatus_to_exitcode(status)
            if codes[pid] != 0:  # as torchrun does: with one rank gone the others go
                for other in set(ranks) - set(codes):
                    os.kill(other, signal.SIGKILL)
        print(json.dumps([codes[pid] for pid in ranks]), flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
