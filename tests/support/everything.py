"""Everything at once, for hours: real parts throughout, and whatever may befall them.

``python everything.py FOLDER --seconds 7200 --disk``: ``mixloop train`` on two ranks (gloo),
``mixloop control`` with the real evaluation of HumanEval and GSM8K, a real MLflow server behind a
proxy. Every few seconds something happens: the daemon, a rank, their launcher, the evaluation
worker, the drain or the server is killed or stopped for a while, the proxy answers nonsense, the
run's disk is full (a tmpfs, which needs a mount namespace of its own), people ask for mixtures, a
stranger publishes an order. What has ended is started again, as a supervisor would. Then nothing
goes wrong any more until the run has ended, and everything that must hold is checked: what was
consumed is what the schedule says (``mixloop audit``), every checkpoint scored and decided on once,
every order and request carried out once, MLflow holding each fact once. Prints a JSON summary; the
exit code says whether it held.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import mlflow_storm  # beside this file, which is where Python looks first
import psutil
import yaml

from mixloop.contract import (
    Order,
    RunPaths,
    read_order,
    read_schedule,
    read_status,
    requests,
    write_order,
)
from mixloop.controller.config import load_config
from mixloop.controller.journal import Journal, queries
from mixloop.tools.demo import demo

lab, small_disk = mlflow_storm.lab, mlflow_storm.small_disk
crash_points, must = small_disk.crash_points, mlflow_storm.must
Broken = small_disk.random_kills.Broken
STORES = small_disk.random_kills.storm_trainers.STORES
EVERY = 40  # steps between checkpoints
SEQUENCE, BATCH, ACCUMULATE = 128, 4, 2
STEP_TOKENS = SEQUENCE * BATCH * ACCUMULATE * 2  # two ranks
WEIGHTS = {"web": 0.72, "code": 0.1, "maths": 0.18}
NO_ROOM = 60  # steps before the end in which an order may find no poll left


class Everything:
    """One run, its two jobs, the server, and what befalls them."""

    def __init__(self, folder: Path, seed: int, steps: int, disk: bool) -> None:
        self.chance = random.Random(seed)
        self.counts: Counter[str] = Counter()
        self.steps, self.disk = steps, disk
        server = folder / "server"
        server.mkdir(parents=True)
        self.server = lab.Server(server, log=folder / "server.log")
        self.proxy = lab.Proxy(self.server.port)
        self.path = write_run(folder, seed, steps, self.proxy.address)
        self.config = load_config(self.path)
        self.paths = RunPaths(self.config.run.dir)
        self.paths.dir.mkdir()
        if disk:
            mount = ["mount", "-t", "tmpfs", "-o", "size=256m,mode=755", "none"]
            subprocess.run([*mount, str(self.paths.dir)], check=True)
        self.folder = folder
        self.jobs: dict[str, subprocess.Popen[bytes] | None] = {"train": None, "control": None}
        self.asked: list[str] = []
        self.strangers: list[dict[str, Any]] = []
        self.late: set[str] = set()
        self.undone: list[tuple[float, Any]] = []  # what ends a trouble, and when
        self.ends: Counter[str] = Counter()

    # -- the two jobs, as a supervisor keeps them --------------------------------------------

    def start(self, name: str) -> None:
        command = [sys.executable, "-m", "mixloop.cli.app", name, str(self.path)]
        with (self.folder / f"{name}.log").open("ab") as log:
            self.jobs[name] = subprocess.Popen(
                command, stdout=log, stderr=log, start_new_session=True
            )

    def supervise(self) -> bool:
        """Start what has ended too early; whether all has ended well."""
        done = True
        for name, job in self.jobs.items():
            code = None if job is None else job.poll()
            if job is not None and code is None:
                done = False
                continue
            over = self.over if name == "train" else code == 0
            if job is not None and over and code == 0:
                continue
            done = False
            if job is not None:
                self.ends[f"{name} {code}"] += 1
                for left in self.family(job.pid):  # nothing of a job outlives it for long
                    must(self.gone(left), f"{name} has left {left.pid}: {left.cmdline()}")
            self.start(name)
        return done

    @property
    def over(self) -> bool:
        status = read_status(self.paths.status).value
        return status is not None and status.finished

    def family(self, session: int) -> list[psutil.Process]:
        """Whoever still lives in a session that its leader has left."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, ProcessLookupError):
                if os.getsid(process.pid) == session and process.pid != session:
                    found.append(process)
        return found

    def gone(self, process: psutil.Process, seconds: float = 60) -> bool:
        with contextlib.suppress(psutil.TimeoutExpired):
            process.wait(seconds)
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE

    def find(self, *words: str) -> list[psutil.Process]:
        """Processes of this run by the words of their command."""
        found = []
        ours = [job.pid for job in self.jobs.values() if job is not None]
        for root in ours:
            with contextlib.suppress(psutil.Error):
                parent = psutil.Process(root)
                for process in [parent, *parent.children(recursive=True)]:
                    with contextlib.suppress(psutil.Error):
                        line = " ".join(process.cmdline())
                        if all(word in line for word in words):
                            found.append(process)
        return found

    # -- troubles -----------------------------------------------------------------------------

    def trouble(self) -> None:
        """Something happens, now and then two things at a time."""
        troubles = [
            (4, self.strike, ("cli.app control",), "daemon"),
            (3, self.strike, ("mixloop.trainer.train",), "rank"),
            (1, self.strike, ("cli.app train",), "launcher"),
            (3, self.strike, ("mixloop.evals.workers.worker",), "evaluation"),
            (3, self.strike, ("drain_process",), "drain"),
            (2, self.kill_server),
            (3, self.lie),
            (2, self.fill),
            (2, self.ask),
            (1, self.strange),
        ]
        weights = [weight for weight, *_ in troubles]
        _, act, *arguments = self.chance.choices(troubles, weights)[0]
        act(*arguments)  # type: ignore[operator]

    def strike(self, words: tuple[str, ...], name: str) -> None:
        """Kill it, ask it to end, or stop it for a while."""
        found = self.find(*words)
        if not found:
            return
        victim = self.chance.choice(found)
        how = self.chance.choices(["KILL", "STOP", "TERM", "HUP"], [6, 3, 1, 1])[0]
        if name not in ("daemon", "launcher") and how in ("TERM", "HUP"):
            how = "KILL"
        with contextlib.suppress(psutil.Error):
            victim.send_signal(getattr(signal, f"SIG{how}"))
            self.counts[f"{name} {how}"] += 1
        if how == "STOP":
            self.undo(self.chance.uniform(1, 15), lambda: victim.send_signal(signal.SIGCONT))

    def kill_server(self) -> None:
        self.server.kill()
        self.counts["server KILL"] += 1
        self.undo(self.chance.uniform(0, 15), self.server.start)

    def lie(self) -> None:
        """A proxy's worst half minute."""
        fault, chance = self.chance.choice(mlflow_storm.FAULTS), random.Random(self.chance.random())
        share = self.chance.choice([0.1, 0.5, 1.0])
        self.proxy.fault = lambda request: fault if chance.random() < share else None
        self.counts["proxy"] += 1
        self.undo(self.chance.uniform(2, 30), self.honest)

    def honest(self) -> None:
        self.proxy.fault = lab.nothing_wrong

    def fill(self) -> None:
        if self.disk:
            filler = self.paths.dir / "filler"
            small_disk.fill(filler)
            self.counts["disk full"] += 1
            self.undo(self.chance.uniform(1, 12), lambda: filler.unlink(missing_ok=True))

    def ask(self) -> None:
        weights = {"code": round(self.chance.uniform(0.1, 0.3), 3)}
        request = requests.new_request("set", "2026-11-25T00:00:00Z", weights=weights)
        with contextlib.suppress(OSError):
            requests.submit(self.paths.requests, request)
            self.asked.append(request.id)
            self.counts["requests"] += 1

    def strange(self) -> None:
        status = read_status(self.paths.status).value
        if status is None:
            return
        names = dict.fromkeys(self.config.sources, 0.0) | {"web": 0.5, "code": 0.5}
        accepted = status.accepted
        order = Order("soak", accepted.fence + 5, accepted.generation + 3, names, decision="mine")
        with contextlib.suppress(OSError):
            scratch = self.paths.dir / "stranger"
            write_order(scratch, order)
            scratch.replace(self.paths.mixture)
            self.strangers.append({"generation": order.generation})
            self.counts["strangers"] += 1

    def undo(self, seconds: float, act: Any) -> None:
        self.undone.append((time.monotonic() + seconds, act))

    def settle(self, everything: bool = False) -> None:
        """End the troubles whose time is over."""
        now = time.monotonic()
        due = [act for at, act in self.undone if everything or at <= now]
        self.undone = [] if everything else [one for one in self.undone if one[0] > now]
        for act in due:
            with contextlib.suppress(psutil.Error, ProcessLookupError):
                act()

    # -- the run ------------------------------------------------------------------------------

    def run(self, seconds: float) -> None:
        """Troubles for so long, or until the trainer nears its end."""
        self.server.start()
        end = time.monotonic() + seconds
        next_trouble = time.monotonic() + 30
        while time.monotonic() < end and not self.near_the_end():
            self.supervise()
            self.settle()
            if time.monotonic() >= next_trouble:
                self.trouble()
                next_trouble = time.monotonic() + self.chance.choice([0.0, 2.0, 8.0, 25.0])
            self.look()
            time.sleep(0.2)
        self.settle(everything=True)
        calm = time.monotonic()
        while not self.supervise():
            must(time.monotonic() - calm < 3600, f"the run does not end: {self.tails()}")
            self.settle()
            self.look()
            time.sleep(0.5)

    def near_the_end(self) -> bool:
        status = read_status(self.paths.status).value
        return status is not None and status.step >= self.steps - 2 * EVERY

    def look(self) -> None:
        """The shared file is whole."""
        if self.paths.mixture.exists():
            names = list(self.config.sources)
            order = read_order(self.paths.mixture, run="soak", sources=names, after=(0, 0))
            must(isinstance(order, Order), f"mixture.json does not parse: {order}")

    def tails(self) -> dict[str, str]:
        return {
            n: (self.folder / f"{n}.log").read_text("utf-8", "replace")[-600:] for n in self.jobs
        }

    def check(self) -> dict[str, Any]:
        """Nothing lost, nothing doubled. Returns the figures."""
        status = read_status(self.paths.status).value
        must(status is not None and status.step == self.steps, f"it ended at {status}")
        assert status is not None
        journal = Journal(self.paths.journal)
        must(journal.value("PRAGMA integrity_check") == "ok", "the journal is damaged")
        play = crash_points.Play.__new__(crash_points.Play)
        play.paths, play.config, play.asked, play.said = self.paths, self.config, self.asked, []
        play.stranger, play.budget, play.refusals = False, self.config.budget, True
        play.unsent, play.starved = False, True
        play.strange = {one["generation"] for one in self.strangers}
        play.steps = [row.step for row in queries.checkpoints(journal)]
        play.excused = self.excused(journal)
        lost = "SELECT step FROM evaluations WHERE state = 'failed' AND reason LIKE '%died%'"
        play.given_up = frozenset(step for (step,) in journal.cells(lost))
        killed = self.counts["evaluation KILL"]
        must(len(play.given_up) <= killed / 2, f"{play.given_up} without scores, {killed} kills")
        should = range(EVERY, self.steps + 1, EVERY)
        must(len(set(should) - set(play.steps)) <= self.counts["disk full"], f"{play.steps}")
        crash_points.ForkedChild.mlflow = True
        # a start on a full disk says where it can't be, which doubts nothing
        lines = [line for line in self.own_log("control").splitlines() if " " in line]
        play.said = [line for line in lines if "no controller can start here" not in line]
        for part in ("work", "orders", "requests", "outbox", "said"):
            getattr(play, f"_check_{part}")(journal)
        scored = [step for step in play.steps if step not in play.given_up]
        mlflow = crash_points.check_mlflow(self.server.database, self.paths.journal, scored)
        audit = subprocess.run(
            [sys.executable, "-m", "mixloop.cli.app", "audit", str(self.path)],
            capture_output=True,
            text=True,
            check=False,
        )
        must(audit.returncode == 0, f"audit: {audit.stdout}{audit.stderr}")
        traces = [n for n in ("train", "control") if "Traceback" in self.own_log(n)]
        figures = {
            "steps": status.step,
            "incarnations": status.incarnation,
            "checkpoints": len(play.steps),
            "left out": len(set(should) - set(play.steps)),
            "given up": sorted(play.given_up),
            "decisions": journal.value("SELECT COUNT(*) FROM decisions"),
            "orders": journal.value("SELECT COUNT(*) FROM orders"),
            "applied": journal.value("SELECT COUNT(*) FROM orders WHERE applied_step NOT NULL"),
            "asked": len(self.asked),
            "controllers": journal.value("SELECT fence FROM lease"),
            "mlflow": mlflow,
            "tracebacks": traces,
            "audit": audit.stdout.strip().splitlines()[-1:],
        }
        journal.close()
        return figures

    def own_log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text("utf-8", "replace")

    def excused(self, journal: Journal) -> set[int]:
        """Generations that no batch was left for."""
        per_step = BATCH * ACCUMULATE * 2
        segments = read_schedule(self.paths.schedule).segments
        never = {line.generation for line in segments if line.sample >= self.steps * per_step}
        orders = {order.generation for order in queries.orders(journal)}
        done = {line.generation for line in segments}
        return never | {one for one in orders - done if one > max(done, default=0)}

    def close(self) -> None:
        for job in self.jobs.values():
            if job is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(job.pid, signal.SIGKILL)
                job.wait()
        self.server.kill()
        self.proxy.close()


def write_run(folder: Path, seed: int, steps: int, mlflow: str) -> Path:
    """The demo's text under a model of a few hundred thousand parameters, and its run.yaml."""
    stores = folder / "stores"
    prepared = demo.prepare_sources(stores, seed)
    trainer = demo.demo_config("run", prepared, seed, steps * STEP_TOKENS)["trainer"]
    model = {"hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": 2}
    trainer["model"] |= model
    trainer |= {
        "tokenizer": str(stores / "tokenizer"),
        "sequence_length": SEQUENCE,
        "micro_batch": BATCH,
        "accumulation": ACCUMULATE,
        "processes": 2,
        "keep": 4,
        "checkpoint_every": EVERY * STEP_TOKENS,
    }
    settings = {"data": "packages", "generate_items": 0}
    sway = folder / "sway.py"
    sway.write_text(crash_points.played_run.POLICY)
    config = {
        "run": {"id": "soak", "dir": "run", "seed": seed},
        "budget": steps * STEP_TOKENS,
        "sources": {
            name: {"path": str(prepared[STORES[name]].resolve()), "weight": weight}
            for name, weight in WEIGHTS.items()
        },
        "evals": {
            "threads": 1,
            "backlog": "all",
            "benchmarks": {
                "humaneval": {**settings, "items": 12},
                "gsm8k": {**settings, "items": 12},
            },
        },
        "policy": {"use": str(sway) + ":Sway"},
        "guards": {"max_change": 0.2, "max_epochs": None},
        "tracking": {"uri": mlflow, "experiment": "soak"},
        "controller": {"poll": 0.2, "patience": 600},
        "trainer": trainer,
    }
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seconds", type=float, default=7200, help="of troubles, about")
    parser.add_argument("--pace", type=float, default=4.0, help="the trainer's steps per second")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--disk", action="store_true", help="fill the run's disk now and then")
    options = parser.parse_args()
    os.environ |= {"MLFLOW_DISABLE_TELEMETRY": "true", "GIT_PYTHON_REFRESH": "quiet"}
    os.environ |= {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    began = time.monotonic()
    steps = max(3, round(options.seconds * options.pace / EVERY)) * EVERY
    summary: dict[str, Any] = {"seed": options.seed, "seconds asked": options.seconds}
    soak = Everything(options.folder.resolve(), options.seed, steps, options.disk)
    try:
        soak.run(options.seconds)
        summary |= soak.check()
    except Broken as error:
        summary["broken"] = f"{error} (left in {options.folder})"
    finally:
        soak.close()
    summary |= {"befell": dict(sorted(soak.counts.items())), "ended": dict(soak.ends)}
    summary |= {"seconds": round(time.monotonic() - began)}
    print(json.dumps(summary))  # noqa: T201
    sys.exit("broken" in summary)


if __name__ == "__main__":
    main()
