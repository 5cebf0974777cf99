"""Thousands of decisions through the real controller, and what they cost at the end.

``python long_run.py --decisions 5000`` runs the controller in this process (journal on disk,
guards, publisher, acknowledgements, outbox; the policy in a forked child of its own, the drain one
that writes nothing and says that all arrived) beside a played trainer that keeps its last three
checkpoints. Every fifth hundred decisions it notes resident memory, the journal's size and the
median times of a look (with ``next_action``) and of what grows with the history. Prints a table and
a JSON summary.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import json
import shutil
import sqlite3
import sys
import tempfile
import time
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import psutil

from mixloop.contract import (
    Order,
    RunPaths,
    SegmentLine,
    encode_line,
    quantise,
    read_holds,
    read_order,
    read_schedule,
)
from mixloop.controller.config import load_config
from mixloop.controller.core import Action, next_action
from mixloop.controller.loop import daemon, policy_decisions, scoring
from mixloop.controller.tracking import drain_child

crash_points: Any = importlib.import_module(
    "crash_points"
)  # beside this script, which is on the path
played = crash_points.played_run.played

QUANTUM, LENGTH = played.QUANTUM, played.LENGTH
BASE = 100  # decisions that a copied history is made of
KEPT = 3  # checkpoints the trainer keeps
TIMED = (
    Action.START_DECIDING,
    Action.TAKE_DECISION,
    Action.TAKE_SCORES,
    Action.ACKNOWLEDGE,
    Action.PUBLISH,
)
STEPS = 20  # between two looks of the trainer, and between two checkpoints


class LongTrainer(played.FileTrainer):  # type: ignore[misc,name-defined]
    """The played trainer with its state in memory: nothing it does grows with the run."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.step = 0
        self.accepted = (0, 0)
        start = {n: s.weight or 0.0 for n, s in config.sources.items()}
        self.force = SegmentLine(1, 0, 0, quantise(start), 0, 0)

    def advance(self) -> None:
        self.step += STEPS
        news = read_order(self.paths.mixture, run=self.run, sources=self.names, after=self.accepted)
        if isinstance(news, Order):
            if news.generation > self.accepted[1]:
                at = self.step
                self.force = SegmentLine(
                    1, at * QUANTUM, at, quantise(news.weights), news.fence, news.generation
                )
                with self.paths.schedule.open("ab") as stream:
                    stream.write(encode_line(self.force))
            self.accepted = (news.fence, news.generation)
        self._report(self.step, self.force, self.accepted)
        self._checkpoint(self.step, self.force)
        self._retire()

    def leap(self, times: int) -> None:
        """Go on where a history ends that was made as long as ``times`` of it."""
        lines = read_schedule(self.paths.schedule).lines
        segments = [line for line in lines if isinstance(line, SegmentLine) and line.generation]
        steps, generations = self.step, segments[-1].generation
        with self.paths.schedule.open("ab") as stream:
            for turn in range(1, times):
                for line in segments:
                    at = line.step + turn * steps
                    number = line.generation + turn * generations
                    moved = replace(line, step=at, sample=at * QUANTUM, generation=number)
                    self.force = moved
                    stream.write(encode_line(moved))
        self.step *= times
        self.accepted = (self.accepted[0], self.force.generation)
        self._report(self.step, self.force, self.accepted)

    def _retire(self) -> None:
        held = read_holds(self.paths.holds).value
        for folder in sorted(self.paths.checkpoints.iterdir())[:-KEPT]:
            if int(folder.name.rpartition("-")[2]) not in held:
                shutil.rmtree(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--decisions", type=int, default=5000)
    parser.add_argument("--every", type=int, default=500, help="decisions between two notes")
    parser.add_argument("--dir", type=Path)
    parser.add_argument(
        "--copied",
        type=int,
        default=0,
        help="a history of so many decisions is made by copying the first hundred; only the "
        "decisions after it are made",
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.dir) as name:
        summary = soak(Path(name), options.decisions, options.every, options.copied)
        print(json.dumps(summary))  # noqa: T201


def multiply(journal: Path, times: int) -> None:
    """Make the history of a journal as long as ``times`` of it, by copies of its rows."""
    database = sqlite3.connect(journal)
    database.row_factory = sqlite3.Row

    def top(what: str, table: str) -> int:
        return int(database.execute(f"SELECT MAX({what}) FROM {table}").fetchone()[0])

    steps, generations, decisions = top("step", "checkpoints"), top("generation", "orders"), 0
    decisions = top("seq", "decisions")
    tokens = steps * QUANTUM * LENGTH
    kept = {
        table: database.execute(f"SELECT * FROM {table}").fetchall()
        for table in ("checkpoints", "evaluations", "decisions", "orders", "events", "outbox")
    }
    for turn in range(1, times):
        add = {
            "step": turn * steps,
            "applied_step": turn * steps,
            "tokens": turn * tokens,
            "applied_tokens": turn * tokens,
            "sample": turn * steps * QUANTUM,
            "applied_sample": turn * steps * QUANTUM,
            "generation": turn * generations,
            "against_generation": turn * generations,
        }

        def renamed(text: str, turn: int = turn) -> str:
            number = int(text.rpartition("d-")[2]) + turn * decisions
            return f"{text.rpartition('d-')[0]}d-{number:06d}"

        for table, rows in kept.items():
            for row in rows:
                new = {
                    k: v + add[k] if k in add and v is not None else v for k, v in dict(row).items()
                }
                new.pop("seq", None)
                for column in ("id", "decision"):
                    if column in new:
                        new[column] = renamed(new[column])
                if "key" in new:
                    key = new["key"]
                    new["key"] = renamed(key) if "d-0" in key else f"{key}:{turn}"
                    if key.startswith(("note:", "report:")):
                        continue  # superseded
                columns = ", ".join(new)
                marks = ", ".join("?" * len(new))
                database.execute(
                    f"INSERT INTO {table} ({columns}) VALUES ({marks})", tuple(new.values())
                )
    database.commit()
    database.close()


def soak(folder: Path, decisions: int, every: int, copied: int = 0) -> dict[str, Any]:
    """Run it. Returns the notes, and the slope of memory over them in bytes per decision."""
    steps = (decisions + copied + 10) * STEPS
    path = crash_points.played_run.make_run(
        folder,
        budget=steps * QUANTUM * LENGTH * 2,
        tracking={"enabled": True, "uri": f"sqlite:///{folder}/none.db"},
    )
    config = load_config(path)
    scoring.Evaluator = played.QuickEvaluator  # type: ignore[misc]
    for asks in (policy_decisions, drain_child):
        asks.Child = crash_points.ForkedChild  # type: ignore[misc,assignment]
    policy_decisions.WaitingChild = crash_points.NoWaitingChild  # type: ignore[misc,assignment]
    crash_points.ForkedChild.shim = crash_points.crash_shim.Shim(0, "kill")
    trainer = LongTrainer(config)
    trainer.advance()
    controller = _controller(config, path)
    done = 0
    if copied:
        while controller.journal.value("SELECT COUNT(*) FROM decisions") < BASE:
            _advance(controller, trainer)
        controller.close()
        multiply(RunPaths(config.run.dir).journal, copied // BASE)
        trainer.leap(copied // BASE)
        controller = _controller(config, path)
        done = copied
    times: dict[str, list[float]] = defaultdict(list)
    look = controller.look

    def looking() -> Any:
        began = time.perf_counter()
        state = look()
        next_action(state)
        times["look"].append(time.perf_counter() - began)
        return state

    controller.look = looking  # type: ignore[method-assign]
    for action in TIMED:
        _time(controller, action, times[action.name.lower()])
    journal, process = controller.journal, psutil.Process()
    notes: list[dict[str, Any]] = []
    began = time.monotonic()
    while done < copied + decisions:
        _advance(controller, trainer)
        now = int(journal.value("SELECT COALESCE(MAX(seq), 0) FROM decisions"))
        if now >= done + every:
            done = now
            gc.collect()
            size = RunPaths(config.run.dir).journal.stat().st_size
            note = {
                "decisions": done,
                "rss_mb": round(process.memory_info().rss / 2**20, 2),
                "journal_mb": round(size / 2**20, 2),
                **{f"{k}_ms": round(1000 * median(v), 2) for k, v in times.items() if v},
                "seconds": round(time.monotonic() - began),
            }
            notes.append(note)
            print(json.dumps(note), file=sys.stderr, flush=True)  # noqa: T201
            for measured in times.values():
                measured.clear()
    interventions = journal.value("SELECT COUNT(*) FROM decisions WHERE verdict = 'intervene'")
    sizes = {}
    try:
        sizes = dict(
            journal._db.execute(
                "SELECT name, SUM(pgsize) FROM dbstat GROUP BY name ORDER BY 2 DESC LIMIT 12"
            ).fetchall()
        )
    except Exception:  # a build without dbstat
        sizes = {}
    controller.close()
    half = notes[len(notes) // 2 :] if len(notes) > 3 else notes
    slope = _slope([(n["decisions"], n["rss_mb"] * 2**20) for n in half])
    return {"notes": notes, "rss_slope": slope, "interventions": interventions, "tables": sizes}


def _controller(config: Any, path: Path) -> Any:
    ticks = iter(range(10**12))
    return daemon.Controller(
        config, path.parent, lambda line: None, clock=lambda: next(ticks) * 0.1
    )


def _advance(controller: Any, trainer: LongTrainer) -> None:
    """A step of the controller, and of the trainer when the other is at rest."""
    assert controller.step(), "the run has ended too early"
    busy = controller.job_state().working
    if not busy and not controller._busy:
        trainer.advance()


def _time(controller: Any, action: Action, into: list[float]) -> None:
    act = controller.actions[action]

    def timed(state: Any) -> None:
        began = time.perf_counter()
        act(state)
        into.append(time.perf_counter() - began)

    controller.actions[action] = timed


def _slope(points: list[tuple[float, float]]) -> float:
    """Least squares."""
    n = len(points)
    if n < 2:
        return 0.0
    mean_x, mean_y = sum(x for x, _ in points) / n, sum(y for _, y in points) / n
    over = sum((x - mean_x) * (y - mean_y) for x, y in points)
    return round(over / sum((x - mean_x) ** 2 for x, _ in points), 1)


if __name__ == "__main__":
    main()
