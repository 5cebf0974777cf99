"""A controller that is killed with SIGKILL at its n-th write, beside a trainer made of files.

``python kill_controller.py RUN.yaml N`` runs the real controller (journal, policy child, guards,
publisher) until the run has ended, or until N writes (journal transactions and order files) have
begun or ended, whichever comes first. The trainer is played by :class:`FileTrainer`, which keeps
the real file contracts and holds all its state in them; scoring is a formula, since what is under
test is what the controller remembers, and a real evaluation per restart would take minutes.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mixloop.contract import (
    SCALE,
    AcceptedOrder,
    Manifest,
    OpenLine,
    Order,
    OrderInForce,
    RunPaths,
    ScheduleWriter,
    SegmentLine,
    SourceEntry,
    SourceStatus,
    Status,
    quantise,
    read_order,
    read_schedule,
    read_status,
    write_manifest,
    write_status,
)
from mixloop.controller.config import RunConfig, load_config
from mixloop.controller.journal import records
from mixloop.controller.loop import daemon, eval_planner, publishing, scoring
from mixloop.evals import BenchmarkScore, Cost, EvalSettings, Metric, Scorecard

QUANTUM, LENGTH = 8, 10
STRIDE = 5  # steps between two looks of the played trainer
EVERY = 20  # steps between checkpoints


class QuickEvaluator:
    """Scores by a formula of the step; answers on the second poll, as a worker would."""

    writing = False

    def __init__(self, settings: EvalSettings, log: Path) -> None:
        self._job: tuple[Path, Path] | None = None
        self._polls = 0
        self._items = settings.benchmarks["gsm8k"].items or 5

    def start(self, checkpoint: Path, out: Path, earlier: object = ()) -> None:
        self._job, self._polls = (checkpoint, out), 0

    def poll(self) -> Scorecard | None:
        self._polls += 1
        if self._job is None or self._polls < 2:
            return None
        (checkpoint, out), self._job = self._job, None
        step = int(checkpoint.name.rpartition("-")[2])
        items = {
            f"i{n}": {"bits_per_byte": 2 - step / 1000 + n / 10, "bytes": 10}
            for n in range(self._items)
        }
        metric = Metric(
            value=1.95 + self._items / 20 - step / 1000,
            stderr=0.1,
            n=self._items,
            higher_is_better=False,
            asked=self._items,
            excluded=0,
        )
        score = BenchmarkScore(
            status="ok",
            metrics={"bits_per_byte": metric},
            items=items,
            data=f"packages: {self._items} of 1000 items (a formula)",
        )
        took = 1 + self._items / 10
        cost = Cost(seconds=took, cpu_seconds=took, items=self._items, tokens=1, asked_tokens=1)
        card = Scorecard(
            checkpoint=str(checkpoint),
            step=step,
            benchmarks={"gsm8k": score},
            seconds=took,
            cost={"gsm8k": cost},
            settings_digest="d",
        )
        card.write(out)
        return card

    def stop(self) -> None:
        self._job = None


class FileTrainer:
    """Plays a trainer through the real files; all its state is in them."""

    def __init__(self, config: RunConfig) -> None:
        self.paths = RunPaths(config.run.dir)
        self.run = config.run.id
        self.names = list(config.sources)
        self.budget = config.budget
        self.incarnation = 1
        self.paths.dir.mkdir(parents=True, exist_ok=True)
        self.writer = ScheduleWriter(self.paths.schedule)
        self.incarnation = max(1, read_schedule(self.paths.schedule).incarnation)
        if not read_schedule(self.paths.schedule).lines:
            self._begin(config)

    def _begin(self, config: RunConfig) -> None:
        start = {n: s.weight or 0.0 for n, s in config.sources.items()}
        entries = tuple(SourceEntry(name, 1000, "f") for name in config.sources)
        self.writer.append(OpenLine(1, None, 0, 0, 0, entries, LENGTH, QUANTUM, 1, QUANTUM, 1))
        self.writer.append(SegmentLine(1, 0, 0, quantise(start), 0, 0))

    def restart(self, config: RunConfig) -> None:
        """Begin another incarnation, with the sources that run.yaml has now."""
        before = read_status(self.paths.status).value
        assert before is not None
        self.names = list(config.sources)
        entries = tuple(SourceEntry(name, 1000, "f") for name in self.names)
        opened = read_schedule(self.paths.schedule).latest_open
        assert opened is not None
        number, parent = opened.incarnation + 1, f"step-{before.step:08d}"
        self.writer = ScheduleWriter(self.paths.schedule)
        place = (before.sample, before.step, 0, entries)
        self.writer.append(OpenLine(number, parent, *place, LENGTH, QUANTUM, 1, QUANTUM, 1))
        self.incarnation = number

    def advance(self) -> None:
        """A few steps: take a new order, move the heartbeat, leave a checkpoint when due."""
        before = read_status(self.paths.status).value
        step = 0 if before is None else min(before.step + STRIDE, self.budget // (QUANTUM * LENGTH))
        segments = read_schedule(self.paths.schedule).segments
        force = [s for s in segments if s.sample <= step * QUANTUM][-1]
        accepted = read_schedule(self.paths.schedule).accepted
        if before is not None:
            accepted = max(accepted, (before.accepted.fence, before.accepted.generation))
        news = read_order(self.paths.mixture, run=self.run, sources=self.names, after=accepted)
        if isinstance(news, Order):
            if news.generation > accepted[1]:
                at = step + 2 * STRIDE
                line = SegmentLine(
                    self.incarnation,
                    at * QUANTUM,
                    at,
                    quantise(news.weights),
                    news.fence,
                    news.generation,
                )
                self.writer.append(line)
            accepted = (news.fence, news.generation)
        self._report(step, force, accepted)
        if step and step % EVERY == 0:
            self._checkpoint(step, force)

    def _force(self, line: SegmentLine) -> OrderInForce:
        weights = {name: line.weights.get(name, 0) / SCALE for name in self.names}
        return OrderInForce(line.fence, line.generation, line.sample, line.step, weights)

    def _report(self, step: int, force: SegmentLine, accepted: tuple[int, int]) -> None:
        tokens = step * QUANTUM * LENGTH
        sources = {n: SourceStatus(tokens // len(self.names), 0.1, 10_000) for n in self.names}
        write_status(
            self.paths.status,
            Status(
                run=self.run,
                incarnation=self.incarnation,
                pid=os.getpid(),
                host="h",
                step=step,
                sample=step * QUANTUM,
                tokens=tokens,
                budget=self.budget,
                lr=0.1,
                phase="stable",
                loss=1.0,
                grad_norm=1.0,
                tokens_per_second=1.0,
                sources=sources,
                accepted=AcceptedOrder(*accepted),
                in_force=self._force(force),
                heartbeat=step,
                finished=tokens >= self.budget,
            ),
        )

    def _checkpoint(self, step: int, force: SegmentLine) -> None:
        folder = self.paths.checkpoints / f"step-{step:08d}"
        if folder.exists():
            return
        folder.mkdir(parents=True)
        sample = step * QUANTUM
        manifest = Manifest(
            self.run,
            step,
            sample,
            sample * LENGTH,
            "stable",
            self._force(force),
            {},
            self.incarnation,
            LENGTH,
            QUANTUM,
            {},
        )
        write_manifest(folder, manifest)


class Killer:
    """Counts the beginnings and ends of writes and kills this process at one of them."""

    def __init__(self, at: int) -> None:
        self.at, self.count = at, 0

    def tick(self) -> None:
        self.count += 1
        if self.count == self.at:
            os.kill(os.getpid(), signal.SIGKILL)

    def around(self, write: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            self.tick()
            written = write(*args, **kwargs)
            self.tick()
            return written

        return wrapped


WRITES = ("start", "checkpoint", "scoring_started", "scored", "decision", "published", "applied")


def main() -> None:
    path = Path(sys.argv[1])
    config = load_config(path)
    if sys.argv[2] == "advance":  # the trainer alone, while no controller runs
        trainer = FileTrainer(config)
        for _ in range(4):
            trainer.advance()
        return
    real = sys.argv[2] == "real"  # with evaluation workers, and nobody killed
    at = 0 if real else int(sys.argv[2])
    killer = Killer(at)
    for name in WRITES:
        setattr(records, name, killer.around(getattr(records, name)))
    publishing.write_order = killer.around(publishing.write_order)
    eval_planner.write_atomic = killer.around(eval_planner.write_atomic)
    if not real:
        scoring.Evaluator = QuickEvaluator  # type: ignore[assignment,misc]  # scoring by formula
    trainer = FileTrainer(config)
    controller = daemon.Controller(config, path.parent, lambda line: None)
    steps = 0
    step = controller.step

    def stepping() -> bool:
        nonlocal steps
        more = step()
        steps += 1
        # the trainer is patient while something is being worked out, so that every run has
        # the same checkpoints to decide on, however slow the machine
        busy = controller.job_state().working
        if steps % 3 == 0 and not busy:
            trainer.advance()
        return more

    controller.step = stepping  # type: ignore[method-assign]  # the two take turns
    controller.run()


if __name__ == "__main__":
    main()
