"""`bench/gpu.py`, train: the reference trainer on a device; a new mixture, a kill, a resume."""

from __future__ import annotations

import argparse
import math
import os
import re
import signal
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from gpu_common import COMMAND, audit, make_corpus, own_environment, unless

from mixloop.contract import Order, RunPaths, Status, read_schedule, read_status, write_order

FULL = {"steps": 300, "order": 80, "kill": 130, "resumed": 180, "save": 100, "length": 1024,
        "rows": 16}  # fmt: skip
QUICK = {"steps": 60, "order": 20, "kill": 30, "resumed": 45, "save": 10, "length": 64,
         "rows": 4}  # fmt: skip
SHAPE = {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 12,
         "num_attention_heads": 12}  # fmt: skip
SMALL = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
         "num_attention_heads": 2}  # fmt: skip
START = {"code": 0.7, "prose": 0.25, "sums": 0.05}
THEN = {"code": 0.3, "prose": 0.2, "sums": 0.5}
LINE = re.compile(r"step (\d+) tokens .* loss ([\d.]+) lr \S+ ([\d,]+) tokens/s")


def write_run(folder: Path, stores: dict[str, Path], steps: int, options: Any) -> Path:
    """A run.yaml of so many steps."""
    size, shape = (QUICK, SMALL) if options.quick else (FULL, SHAPE)
    step = size["rows"] * size["length"]
    cuda = options.device == "cuda"
    folder.mkdir(parents=True)
    run = {
        "run": {"id": folder.name, "dir": str(folder / "run"), "seed": 7},
        "budget": steps * step,
        "sources": {n: {"path": str(p), "weight": START[n]} for n, p in stores.items()},
        "evals": {"benchmarks": {"gsm8k": {"data": "packages"}}},
        "guards": {"max_epochs": None},
        "tracking": {"enabled": False},
        "trainer": {
            "model": shape, "sequence_length": size["length"], "micro_batch": size["rows"],
            "learning_rate": 6e-4 if cuda else 3e-3, "warmup": 20 * step, "device": options.device,
            "precision": "bf16" if cuda else "fp32", "poll_every": 5, "status_every": 5,
            "log_every": 5, "checkpoint_every": size["save"] * step, "keep": 2,
            **({} if cuda else {"threads": 1}),
        },
    }  # fmt: skip
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(run))
    return path


class Running:
    """`mixloop train` as a process, and what its status has said."""

    def __init__(self, config: Path) -> None:
        self.config = config
        self.paths = RunPaths(config.parent / "run")
        self.log = config.parent / "train.log"
        self.heard: list[Status] = []
        self._from = self.log.stat().st_size if self.log.exists() else 0
        with self.log.open("ab") as log:
            command = [*COMMAND, "train", str(config)]
            self.process = subprocess.Popen(
                command, stdout=log, stderr=log, env=own_environment()
            )  # it becomes the trainer itself: the process id stays

    def until(self, there: Callable[[Status], bool]) -> Status:
        """Wait for a status of this process. AssertionError: it ended before."""
        while True:
            status = read_status(self.paths.status).value
            if status is not None and status.pid == self.process.pid:
                if not self.heard or self.heard[-1].heartbeat != status.heartbeat:
                    self.heard.append(status)
                if there(status):
                    return status
            if self.process.poll() is not None:
                raise AssertionError(f"mixloop train ended early: {self.said()[-300:]}")
            time.sleep(0.01)

    def said(self) -> str:
        """What this process has printed."""
        return self.log.read_bytes()[self._from :].decode(errors="replace")

    def end(self) -> int:
        """Follow it to its end; its exit code. The last of `heard` is then its last status."""
        while True:
            code = self.process.poll()
            status = read_status(self.paths.status).value  # after the end once more
            if status is not None and (not self.heard or self.heard[-1] != status):
                self.heard.append(status)
            if code is not None:
                return code
            time.sleep(0.01)

    def order(self) -> None:
        """Publish another mixture, as the controller does."""
        order = Order(self.config.parent.name, 1, 1, THEN, reason="bench")
        write_order(self.paths.mixture, order)


def machine_figures(heard: list[Status]) -> dict[str, Any]:
    """Speed and memory as the trainer tells them, from the second half of a run on."""
    late = [one.system for one in heard[len(heard) // 2 :] if one.system is not None]

    def middle(name: str) -> float | None:
        values = [getattr(one, name) for one in late if getattr(one, name) is not None]
        return statistics.median(values) if values else None

    memory = [one.gpu_memory_gb for one in late if one.gpu_memory_gb is not None]
    return {
        "device": late[-1].device if late else None,
        "tokens_per_second": middle("tokens_per_second"),
        "mfu": middle("mfu"),
        "gpu_utilisation": middle("gpu_utilisation"),
        "gpu_memory_gb": max(memory, default=None),
        "rss_gb": middle("rss_gb"),
        "statuses": len(heard),
    }


def reloaded(options: Any, stores: dict[str, Path], folder: Path) -> dict[str, Any]:
    """A run whose mixture changes in the middle."""
    size = QUICK if options.quick else FULL
    began = time.monotonic()
    running = Running(write_run(folder, stores, size["steps"], options))
    first = running.until(lambda status: status.step > 0)
    started = time.monotonic() - began
    asked = running.until(lambda status: status.step >= size["order"])
    running.order()
    published = time.monotonic()
    told = running.until(lambda status: status.in_force.generation == 1)
    heard_after = time.monotonic() - published
    code = running.end()
    seconds = time.monotonic() - began
    last = running.heard[-1]
    segments = read_schedule(running.paths.schedule).segments
    applied = next((one.step for one in segments if one.generation == 1), -1)
    losses = [(int(m[1]), float(m[2])) for m in LINE.finditer(running.said())] or [(0, math.nan)]
    audited = audit(running.config)
    return {
        "problems": unless(
            exit_code_0=code == 0,
            all_steps_were_done=last.finished and last.step == size["steps"],
            applied_later_than_asked=applied > asked.step,
            in_force_at_the_end=last.in_force.generation == 1,
            the_loss_fell=losses[-1][1] < losses[0][1],
            the_audit_is_consistent=audited["consistent"],
        ),
        "exit_code": code,
        "audit": audited,
        "asked_at_step": asked.step,
        "applied_at_step": applied,
        "status_after_s": heard_after,
        "said_in_force_at_step": told.step,
        "loss_first": losses[0],
        "loss_last": losses[-1],
        "shares_at_end": {n: s.tokens / last.tokens for n, s in last.sources.items()},
        "seconds_to_first_status": started,
        "first_status_step": first.step,
        "seconds": seconds,
        "said": running.said()[-200:],
    } | machine_figures(running.heard)


def killed(options: Any, stores: dict[str, Path], folder: Path) -> dict[str, Any]:
    """A run that is killed after a change and goes on from its checkpoint."""
    size = QUICK if options.quick else FULL
    config = write_run(folder, stores, size["resumed"], options)
    running = Running(config)
    running.until(lambda status: status.step >= size["order"] // 2)
    running.order()
    running.until(lambda status: status.in_force.generation == 1)
    at = running.until(lambda status: status.step >= size["kill"])
    os.kill(running.process.pid, signal.SIGKILL)
    code = running.process.wait()
    again = Running(config)
    ended = again.end()
    resumed = re.search(r"resumed from (\S+)", again.said())
    last = again.heard[-1]
    audited = audit(config)
    return {
        "problems": unless(
            killed_at_once=code == -signal.SIGKILL,
            exit_code_0=ended == 0,
            it_resumed=resumed is not None,
            all_steps_were_done=last.finished and last.step == size["resumed"],
            the_order_stayed_in_force=last.in_force.generation == 1,
            one_incarnation_more=last.incarnation == at.incarnation + 1,
            the_audit_is_consistent=audited["consistent"],
        ),
        "exit_codes": [code, ended],
        "audit": audited,
        "killed_at_step": at.step,
        "resumed_from": resumed[1] if resumed else None,
        "loss_last": last.loss,
        "said": again.said()[-200:],
    }


def run(options: argparse.Namespace) -> dict[str, Callable[[], Any]]:
    """The part's steps."""
    corpus, folder = options.scratch / "corpus", options.scratch / "train"

    def sizes() -> dict[str, int]:
        stores = make_corpus(corpus, options.quick)
        return {name: (path / "tokens.bin").stat().st_size // 2 for name, path in stores.items()}

    return {
        "corpus_tokens": sizes,
        "reloaded": lambda: reloaded(
            options, make_corpus(corpus, options.quick), folder / "reloaded"
        ),
        "killed": lambda: killed(options, make_corpus(corpus, options.quick), folder / "killed"),
    }
