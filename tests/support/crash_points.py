"""The real daemon as a process beside a trainer made of files, struck down at a chosen step.

``python crash_points.py [--every K] [--first N] [--fate kill|stop|full|quota|…] …`` plays one
scripted run per step of the daemon that changes the disk (:mod:`crash_shim` numbers them): at step
N the fate comes, the trainer goes on meanwhile, the daemon is started again (or the disk mended, or
another controller takes over), the run ends, and everything that must hold is checked. The last
line printed is a JSON summary; the exit code says whether all of it held.

Each daemon is forked from this process, which has imported everything and has no threads: a trial
takes tenths of a second. So are the daemon's children, which run to their end before it goes on:
a run is then the same run every time, and step N the same step. What is real: controller, journal
and its SQLite, guards, publisher, operators' requests, policy code, the trainer's file contracts.
What is played: the trainer (:class:`FileTrainer`), the scores (a formula of the step) and, unless
``--mlflow`` is given, the sender, which writes down what it was to send.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import importlib.util
import json
import logging
import os
import random
import select
import shutil
import signal
import socket
import sqlite3
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np  # noqa: F401 - the policy's child would import it anew in every fork

from mixloop.contract import (
    Order,
    RunPaths,
    SegmentLine,
    VoidLine,
    read_order,
    read_schedule,
    read_status,
    requests,
    write_order,
)
from mixloop.controller import views
from mixloop.controller.config import RunConfig, load_config
from mixloop.controller.decisions import experiment_evidence, policy_process
from mixloop.controller.experiments import experiment_runner
from mixloop.controller.experiments.spec import ExperimentSpec
from mixloop.controller.journal import FenceLost, Journal, queries
from mixloop.controller.loop import daemon, policy_decisions, scoring
from mixloop.controller.tracking import drain_child, drain_process
from mixloop.evals.workers import Failure


def _support(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


crash_shim = _support("crash_shim")
played_run = _support("played_run")
KILL, STOP = "kill", "stop"

BUDGET = 8_000  # tokens: 100 steps of 80
STEPS = list(range(20, 101, 20))  # the checkpoints
STRANGER = Order(
    "r", 99, 50, {"web": 0.5, "code": 0.3, "maths": 0.2}, decision="mine", reason="by hand"
)
RUBBISH = b'{"schema": "mixloop/order/1", "run": "r", "gen'
TRIED = 320  # tokens of an experiment: three branches and a control of a step
TRIES = """

from mixloop.policies import Experiment


class Sway(Sway):
    def decide(self, observation):
        if observation.experiments:
            return super().decide(observation)
        experts = [{name: 1.0} for name in observation.sources]
        return Experiment(experts, 80, "who is worth what?")
"""
TROUBLES = 3  # failures that are waited for before the disk is mended
SENT = "sent.log"
_write, _read = os.write, os.read


# -- the daemon's side ---------------------------------------------------------------------------


class PlayedEvaluator(played_run.QuickEvaluator):  # type: ignore[misc,name-defined]
    """Scores by a formula; a disk that does not take the scorecard is that attempt's failure."""

    def poll(self) -> Any:
        try:
            return super().poll()
        except OSError as error:
            return Failure(str(error))


class NoWaitingChild:
    """Stands in for :class:`~mixloop.common.process.WaitingChild`: one that has ended already."""

    def __init__(self, module: str, *, log: Path, clock: Callable[[], float]) -> None:
        """Nothing is started."""

    def give(self, stdin: str, timeout: float) -> bool:
        return False

    def close(self) -> None:
        """It has ended."""


class ForkedChild:
    """Stands in for :class:`~mixloop.common.process.Child`: forked, and ended on return."""

    shim: Any = None
    mlflow = False

    def __init__(
        self,
        module: str,
        *,
        argument: str | None = None,
        stdin: str | None = None,
        log: Path,
        timeout: float,
        launcher: Any = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.killed: str | None = None
        source, sink = os.pipe()
        process = os.fork()
        if process == 0:
            self.shim.off = True
            with contextlib.suppress(BaseException):
                os.close(source)
                self._work(module, argument, stdin, sink, log)
            os._exit(0)
        os.close(sink)
        said = b""
        while part := _read(source, 65536):
            said += part
        os.close(source)
        self.exit_code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        self._said = [json.loads(line) for line in said.splitlines()]

    def _work(
        self, module: str, argument: str | None, stdin: str | None, sink: int, log: Path
    ) -> None:
        def say(message: dict[str, Any]) -> None:
            _write(sink, json.dumps(message).encode() + b"\n")

        if module.endswith("policy_process"):
            say(policy_process.decide(json.loads(stdin or ""), say))
            return
        if module.endswith("experiments.runner"):
            spec = ExperimentSpec.model_validate_json(Path(argument or "").read_bytes())
            written = spec.out / ".writing-result"
            written.write_text(played_run.result_of(spec).model_dump_json())
            written.rename(spec.out / "result.json")
            return
        request = json.loads(argument or "")
        if self.mlflow:
            with log.open("ab") as stream:
                os.dup2(stream.fileno(), 1)
                os.dup2(stream.fileno(), 2)
            drain_process.drain(request, say)
            return
        journal = Path(request["journal"])
        with journal.with_name(SENT).open("a") as sent:
            box = Journal(journal, read_only=True)
            for seq in drain_process.waiting(box):
                entry = queries.numbered_entry(box, seq)
                sent.write(f"{entry.key if entry else None}\n")
                sent.flush()
                say({"done": seq})

    @property
    def running(self) -> bool:
        return False

    def messages(self) -> list[dict[str, Any]]:
        said, self._said = self._said, []
        return said

    def close(self) -> None:
        """It has ended."""


class Link:
    """JSON lines between a daemon and whoever conducts the play."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end
        self._waiting = b""

    def send(self, message: dict[str, Any]) -> None:
        with contextlib.suppress(OSError):
            self._end.sendall(json.dumps(message).encode() + b"\n")

    def receive(self) -> dict[str, Any] | None:
        """The next message; None when the other side is gone."""
        while b"\n" not in self._waiting:
            try:
                part = self._end.recv(65536)
            except OSError:
                return None
            if not part:
                return None
            self._waiting += part
        line, self._waiting = self._waiting.split(b"\n", 1)
        message: dict[str, Any] = json.loads(line)
        return message

    def ready(self, seconds: float) -> bool:
        return b"\n" in self._waiting or bool(select.select([self._end], [], [], seconds)[0])

    def close(self) -> None:
        self._end.close()


def serve(config: RunConfig, base: Path, shim: Any, link: Link) -> int:
    """One controller's life, step by step as the conductor lets it. Returns the exit code."""
    ticks = iter(range(10**9))
    scoring.Evaluator = PlayedEvaluator  # type: ignore[misc]
    for asks in (policy_decisions, drain_child, experiment_runner):
        asks.Child = ForkedChild  # type: ignore[misc,assignment]
    policy_decisions.WaitingChild = NoWaitingChild  # type: ignore[misc,assignment]
    daemon.RETRY = (0.001, 0.002)
    logging.getLogger("mixloop").addHandler(logging.NullHandler())
    ForkedChild.shim = shim
    gc.disable()  # a collection inside of a call from SQLite could come back to SQLite
    shim.install()

    def say(line: str) -> None:
        link.send({"said": line})

    def ask(message: dict[str, Any]) -> None:
        link.send({**message, "steps": shim.count})
        answer = link.receive()
        if answer is None:
            os._exit(9)
        if answer.get("mend"):
            shim.mend()

    controller = daemon.Controller(config, base, say, clock=lambda: next(ticks) * 0.1)
    step, look = controller.step, controller.look

    def looking() -> Any:
        state = look()
        shim.action = daemon.next_action(state).value
        return state

    def stepping() -> bool:
        shim.tick("step")
        try:
            more = step()
        except FenceLost:
            raise
        except Exception as error:
            ask({"trouble": f"{type(error).__name__}: {error}"})
            raise
        busy = controller.job_state().working
        ask({"action": shim.action, "busy": busy})
        return more

    controller.look = looking  # type: ignore[method-assign]
    controller.step = stepping  # type: ignore[method-assign]
    ask({"action": "start", "busy": True})
    controller.run()
    return 0


@dataclass
class Daemon:
    """A daemon's process, seen from outside."""

    pid: int
    link: Link
    said: list[str] = field(default_factory=list)
    steps: int = 0
    ended: str | None = None
    code: int | None = None

    @classmethod
    def start(cls, config: RunConfig, base: Path, at: int, fate: str) -> Daemon:
        ours, theirs = socket.socketpair()
        sys.stdout.flush()
        pid = os.fork()
        if pid:
            theirs.close()
            return cls(pid, Link(ours))
        code = 3
        try:
            ours.close()
            link = Link(theirs)
            shim = crash_shim.Shim(at, fate, outside=fate == STOP)
            try:
                code = serve(config, base, shim, link)
                link.send({"names": shim.names, "depth": shim.depth, "steps": shim.count})
            except FenceLost as error:
                link.send({"ended": f"FenceLost: {error}", "steps": shim.count})
            except Exception as error:
                text = f"{type(error).__name__}: {error}"
                trace = traceback.format_exc()
                link.send({"ended": text, "traceback": trace, "steps": shim.count})
        finally:
            os._exit(code)

    def hear(self) -> dict[str, Any] | None:
        """Its next report; None once it has ended or was stopped (see :attr:`code`)."""
        while True:
            while not self.link.ready(0.005):
                if self._gone():
                    return None
            report = self.link.receive()
            if report is None:
                self._gone(wait=True)
                return None
            self.steps = report.get("steps", self.steps)
            if "said" in report:
                self.said.append(report["said"])
            elif "ended" in report:
                self.ended = report["ended"]
            else:
                return report

    def _gone(self, *, wait: bool = False) -> bool:
        options = os.WUNTRACED if wait else os.WUNTRACED | os.WNOHANG
        pid, status = os.waitpid(self.pid, options)
        if pid == 0:
            return False
        if os.WIFSTOPPED(status):
            self.code = None
            return True
        if self.link.ready(0):
            while (report := self.link.receive()) is not None:
                self.ended = report.get("ended", self.ended)
        self.code = os.waitstatus_to_exitcode(status)
        return True

    @property
    def stopped(self) -> bool:
        return self.code is None


# -- the play ------------------------------------------------------------------------------------


class Broken(AssertionError):  # noqa: N818 - what the play found, not an error of its own
    """Something that must hold does not."""


def must(holds: object, what: str) -> None:
    """Raises :class:`Broken` unless it holds; ``assert`` would depend on how Python was started."""
    if not holds:
        raise Broken(what)


class Play:
    """One run from its first start to its end, whatever befalls the daemon on the way."""

    steps, budget = STEPS, BUDGET
    allowed: ClassVar[dict[str, Any]] = {"budget": TRIED}  # run.yaml's section "experiments"
    experiments = 0  # that the policy asks for
    starved = False  # whether the disk had no room
    given_up: frozenset[int] = frozenset()  # steps whose evaluation was killed at each attempt

    def __init__(self, config: RunConfig, base: Path, folder: Path) -> None:
        run = config.run.model_copy(update={"dir": folder})
        self.config = config.model_copy(update={"run": run})
        self.base = base
        self.paths = RunPaths(folder)
        self.trainer = played_run.FileTrainer(self.config)
        self.beats: list[int] = []
        self.asked: list[str] = []
        self.said: list[str] = []
        self.stranger = self.rubbish = False
        self.strange = {STRANGER.generation}
        self.refusals = False  # whether a request may be refused
        self.excused: set[int] = set()  # generations that had no time left to come into force
        self.unsent = False  # whether nothing is sent to MLflow
        self.deaths = self.starts = self.troubles = 0
        self.ends: Counter[str] = Counter()  # of receipts, by how they ended
        self.script = self.acts()
        self.turn()

    def acts(self) -> list[tuple[int, Callable[[], None]]]:
        """Who else acts, and from which step of the trainer's on."""
        return [
            (5, lambda: self._ask("set", weights={"code": 0.2}, reason="more code")),
            (30, lambda: self._ask("pin", weights={"maths": 0.18}, reason="keep maths")),
            (50, self._strange),
            (65, lambda: self._ask("unpin")),
            (75, self._litter),
        ]

    def _ask(self, verb: Any, **fields: Any) -> None:
        request = requests.new_request(verb, "2026-11-25T00:00:00Z", **fields)
        requests.submit(self.paths.requests, request)
        self.asked.append(request.id)

    def _strange(self) -> None:
        write_order(self.paths.mixture, STRANGER)
        self.stranger = True

    def _litter(self) -> None:
        self.paths.mixture.write_bytes(RUBBISH)
        self.rubbish = True

    def turn(self) -> None:
        """The trainer goes on a few steps, and who else acts at this point does so."""
        self.trainer.advance()
        status = read_status(self.paths.status).value
        assert status is not None
        self.beats.append(status.heartbeat)
        while self.script and status.step >= self.script[0][0]:
            self.script.pop(0)[1]()

    def _look(self) -> None:
        """What the shared file holds is always a whole order, or what we threw into it."""
        try:
            data = self.paths.mixture.read_bytes()
        except FileNotFoundError:
            return
        if data == RUBBISH:
            must(self.rubbish, "mixture.json is torn")
            return
        names = list(self.config.sources)
        order = read_order(self.paths.mixture, run="r", sources=names, after=(0, 0))
        must(isinstance(order, Order), f"mixture.json does not parse: {order}")

    def start(self, at: int = 0, fate: str = KILL) -> Daemon:
        self.starts += 1
        self.starved |= fate in crash_shim.ILLS and at > 0
        return Daemon.start(self.config, self.base, at, fate)

    def drive(self, process: Daemon, until: Callable[[], bool] = lambda: False) -> None:
        """Let a daemon live until it ends, is stopped, or ``until``."""
        self.said += process.said
        process.said = []
        failed = 0
        while (report := process.hear()) is not None:
            self._look()
            answer: dict[str, Any] = {}
            if "trouble" in report:
                failed += 1
                self.troubles += 1
                answer = {"mend": failed >= TROUBLES}
            elif report.get("action") == "wait" and not report["busy"]:
                self.turn()
            if "names" in report:
                self.names, self.depth = report["names"], report["depth"]
                continue
            process.link.send(answer or {"go": True})
            if until():
                break
        self.said += process.said
        process.said = []
        self._look()

    def die_and_return(self, steps: list[int], fate: str) -> None:
        """Each start meets its fate at its step; the one after the last has none."""
        for at in [*steps, 0]:
            process = self.start(at, fate)
            self.drive(process)
            process.link.close()
            if process.code == 0:
                return
            if process.code == -signal.SIGKILL:
                self.deaths += 1
            else:
                starved = fate in crash_shim.ILLS and process.ended is not None
                must(starved and at, f"the daemon ended with {process.code}: {process.ended}")
                self.refused = process.ended
            for _ in range(2):  # nobody is there, and the trainer trains
                self.turn()
        raise Broken("the daemon never came to the run's end")

    def replace_while_stopped(self, at: int) -> bool:
        """A is stopped at a step, B takes over, A goes on. Returns whether it came to that."""
        a = self.start(at, STOP)
        self.drive(a)
        if not a.stopped:
            must(a.code == 0, f"the daemon ended with {a.code}: {a.ended}")
            return False
        # as where locks are not shared: B's lock is another file
        self.paths.dir.joinpath("controller.lock").unlink(missing_ok=True)
        self.turn()
        b = self.start()
        turns = len(self.beats) + 2
        self.drive(b, until=lambda: len(self.beats) >= turns)
        os.kill(a.pid, signal.SIGCONT)
        self._settle(a, b, at)
        return True

    def _settle(self, a: Daemon, b: Daemon, at: int) -> None:
        """Both go on: the one of the lower fence finds out and ends, the other ends the run."""
        loser, winner = a, b
        lives = 400
        while b.code is None:
            must(lives := lives - 1, "both controllers go on and on")
            if not self._once(b):
                loser, winner = b, a
                break
            if not self._once(a):
                break
        else:  # B had come to the run's end before A went on
            self.drive(a)
        self.said += [*a.said, *b.said]
        a.said, b.said = [], []
        ended = loser.ended or ""
        # before it had the lock; or with the lock and no fence yet, so that its fence is the higher
        late = at == 1 and "another controller is running here" in ended
        first = loser is b or (b.code == 0 and a.code == 0)
        must(not first or at <= 2, f"B, which took over, ended with {b.code}: {b.ended}")
        must(ended.startswith("FenceLost") or late or first, f"A ended with {a.code}: {ended}")
        if winner.code is None:
            self.drive(winner)
        must(winner.code == 0, f"the winner ended with {winner.code}: {winner.ended}")

    def _once(self, process: Daemon) -> bool:
        report = process.hear()
        if report is None:
            return False
        must("trouble" not in report, f"a controller of two has trouble: {report}")
        if report.get("action") == "wait" and not report["busy"]:
            self.turn()
        if "names" not in report:
            process.link.send({"go": True})
        return True

    # -- what must hold ----------------------------------------------------------------------

    def check(self) -> None:
        """Nothing lost, nothing doubled, nothing gone back; raises :class:`Broken`."""
        journal = Journal(self.paths.journal)
        try:
            must(journal.value("PRAGMA integrity_check") == "ok", "the journal is damaged")
            self._check_work(journal)
            self._check_orders(journal)
            self._check_requests(journal)
            self._check_outbox(journal)
            self._check_said(journal)
        finally:
            journal.close()
        must(self.beats == sorted(self.beats), "the trainer's heartbeat went back")
        must(len(set(self.beats)) >= self.budget // 80 // 5, "the trainer stood still")
        must(
            not (self.paths.dir / "requests").exists() or not requests.waiting(self.paths.requests),
            "a request waits for ever",
        )

    def _check_work(self, journal: Journal) -> None:
        steps = [row.step for row in queries.checkpoints(journal)]
        must(steps == self.steps, f"checkpoints {steps}")
        scored = [row.step for row in queries.scored(journal) if row.scorecard]
        should = [step for step in self.steps if step not in self.given_up]
        must(scored == should, f"a checkpoint without scores: {scored}")
        entries = views.history(journal)
        ids = [entry["id"] for entry in entries]
        must(ids == [f"d-{n:06d}" for n in range(1, len(ids) + 1)], f"decisions {ids}")
        known = "SELECT step, experiments_known FROM decisions WHERE asked_by = 'policy'"
        decided = journal.cells(f"{known} ORDER BY seq")
        must(decided == sorted(set(decided)), f"decided twice: {decided}")
        last = [step for step, _ in decided][-1:]
        must(last == self.steps[-1:], f"not decided on the last checkpoint: {decided}")
        self._check_experiments(journal, decided)
        steering = journal.value("SELECT COUNT(*) FROM events WHERE kind = 'steering'")
        must(steering == 1, f"the steering metric was told {steering} times")

    def _check_experiments(self, journal: Journal, decided: list[Any]) -> None:
        """Each has ended, with its result unless the disk was in the way, and been told of."""
        rows = queries.experiments(journal)
        own = [row for row in rows if not row.receipt]
        must(len(own) == self.experiments, f"{len(own)} experiments")
        for row in own:
            failed = row.state == "failed" and self.starved
            must(row.state == "done" or failed, f"{row.id} is {row.state}: {row.reason}")
            seen = experiment_evidence.experiments(journal, before=queries.ALL, known=queries.ALL)
            must(failed or seen[0].control is not None, f"{row.id} has no scores")
        ended = sum(row.ended is not None for row in rows)
        must(decided[-1][1] == ended, f"{ended} ended, the policy knows of {decided}")
        folder = self.paths.dir / "experiments"
        left = list(folder.iterdir()) if folder.exists() else []
        must(not left or self.starved, f"left on the disk: {left}")

    def _check_orders(self, journal: Journal) -> None:
        orders = {order.generation: order for order in queries.orders(journal)}
        asked = journal.cells("SELECT id, generation FROM decisions WHERE generation IS NOT NULL")
        by_order = Counter(generation for _, generation in asked)
        must(set(by_order.values()) <= {1}, "two decisions of one generation")
        must(set(by_order) == set(orders), "an order without its decision")
        for name, generation in asked:
            must(orders[generation].decision == name, "an order of another decision")
        lines = read_schedule(self.paths.schedule).lines
        void = {(v.sample, v.generation) for v in lines if isinstance(v, VoidLine)}
        segments = [s for s in lines if isinstance(s, SegmentLine)]
        segments = [s for s in segments if (s.sample, s.generation) not in void]
        generations = [s.generation for s in segments]
        must(generations == sorted(set(generations)), f"generations went back: {generations}")
        fences = [s.fence for s in segments]
        must(fences == sorted(fences), f"fences went back: {fences}")
        status = read_status(self.paths.status).value
        assert status is not None
        for line in segments:
            if line.generation in {0, *self.strange, *self.excused} or line.sample > status.sample:
                continue
            must(line.generation in orders, f"generation {line.generation} was nobody's")
            order = orders[line.generation]
            must(
                (order.applied_sample, order.applied_step) == (line.sample, line.step),
                f"generation {line.generation} applied at {line.step}: {order.applied_step}",
            )
        applied = {line.generation for line in segments}
        for generation, order in orders.items():
            lost = generation not in applied and order.rejected is None
            late = generation < max(applied) or generation in self.excused
            must(not lost or late, f"generation {generation} was lost")
        if self.stranger:
            must(
                any("not write" in s or "not ours" in s for s in self.said)
                or journal.value("SELECT 1 FROM decisions WHERE asked_by = 'controller'")
                or journal.value("SELECT 1 FROM events WHERE kind = 'stranger'"),
                "the stranger was not told of",
            )

    def _check_requests(self, journal: Journal) -> None:
        taken = journal.cells("SELECT id, state, decision FROM requests ORDER BY taken_at, rowid")
        must([name for name, _, _ in taken] == self.asked, f"requests {taken}")
        done = all(state == "done" for _, state, _ in taken)
        must(done or self.refusals, f"requests {taken}")
        asked = [decision for _, _, decision in taken if decision]
        must(len(asked) == len(set(asked)), "a request was carried out twice")
        operator = journal.value("SELECT COUNT(*) FROM decisions WHERE asked_by = 'operator'")
        must(operator == len(asked), "a decision of nobody's request")
        events = journal.value("SELECT COUNT(*) FROM events WHERE kind = 'request'")
        must(events == len(self.asked), "a request was told twice")

    def _check_outbox(self, journal: Journal) -> None:
        rows = journal.cells("SELECT key, done_at FROM outbox ORDER BY seq")
        keys = [key for key, _ in rows]
        must(len(keys) == len(set(keys)), "an outbox key twice")
        orders = queries.orders(journal)
        decisions = queries.decisions(journal)
        wanted = {
            "run",
            "mixture:0",
            f"end:{self.budget}",
            *(f"model:{step}" for step in self.steps if step not in self.given_up),
        }
        wanted |= {f"decision:{decision.id}" for decision in decisions}
        wanted |= {f"applied:{o.generation}" for o in orders if o.applied_step is not None}
        # a trainer that began again has its number in the keys of its checkpoints
        told = {":".join(key.split(":")[:2]) if key.startswith("model:") else key for key in keys}
        must(wanted <= told, f"not in the outbox: {sorted(wanted - told)}")
        traces = sum(key.startswith("decision:") for key in keys)
        must(traces == len(decisions), "a trace of no decision")
        late = [key for key, done_at in rows if done_at is None]
        must(not late or self.unsent, f"not sent: {late}")
        if not ForkedChild.mlflow and not self.unsent:
            sent = set((self.paths.dir / SENT).read_text().split())
            must(set(keys) <= sent, f"marked as sent and was not: {sorted(set(keys) - sent)}")

    def _check_said(self, journal: Journal) -> None:
        """What the daemon has told a person is in the journal, with the same verdict; and it took
        no row that it had written for another's."""
        altered = journal.value("SELECT COUNT(*) FROM events WHERE kind = 'journal-altered'")
        must(altered == 0, "a start found other rows than were sealed")
        doubted = [line for line in self.said if str(self.paths.journal) in line]
        must(not doubted, f"its own journal was doubted: {doubted}")
        verdicts = {decision.id: decision.verdict for decision in queries.decisions(journal)}
        for line in self.said:
            words = line.split()
            if words and words[0].startswith("d-") and words[1].endswith(":"):
                must(verdicts.get(words[0]) == words[1][:-1], f"told and lost: {line}")
            if line.startswith("published generation"):
                published_at = journal.value(
                    "SELECT published_at FROM orders WHERE generation = ?", int(words[2])
                )
                must(published_at is not None, f"told and lost: {line}")


def check_mlflow(database: Path, journal: Path, steps: list[int]) -> dict[str, int]:
    """In MLflow's own tables every fact is there once. Returns how many of each."""
    theirs = sqlite3.connect(database)
    ours = sqlite3.connect(journal)
    runs = theirs.execute("SELECT COUNT(*) FROM runs").fetchone()[0]
    must(runs == 1, f"{runs} runs in MLflow")
    tags = theirs.execute(
        "SELECT value FROM trace_tags WHERE key = 'mixloop.decision' ORDER BY value"
    ).fetchall()
    decisions = ours.execute("SELECT id FROM decisions ORDER BY id").fetchall()
    must(tags == decisions, f"traces {tags} of decisions {decisions}")
    traces = theirs.execute("SELECT COUNT(*) FROM trace_info").fetchone()[0]
    must(traces == len(decisions), f"{traces} traces of {len(decisions)} decisions")
    models = theirs.execute("SELECT name FROM logged_models ORDER BY name").fetchall()
    must([m[0] for m in models] == [f"step-{s:08d}" for s in steps], f"models {models}")
    spans = theirs.execute(
        "SELECT trace_id, name, COUNT(*) FROM spans GROUP BY trace_id, name HAVING COUNT(*) > 1"
    ).fetchall()
    must(not spans, f"spans twice: {spans}")
    doubled = theirs.execute(
        "SELECT key, step, COUNT(DISTINCT value) FROM metrics GROUP BY key, step "
        "HAVING COUNT(DISTINCT value) > 1 AND key NOT LIKE 'system%'"
    ).fetchall()
    must(not doubled, f"two values of one metric at one step: {doubled}")
    metrics = theirs.execute("SELECT COUNT(*) FROM metrics").fetchone()[0]
    return {"runs": runs, "traces": len(tags), "models": len(models), "metrics": metrics}


# -- all of it -----------------------------------------------------------------------------------


class Theatre:
    """Plays the run again and again, each in a folder of its own that goes when all held."""

    def __init__(self, folder: Path, scene: type[Play] = Play, **changed: Any) -> None:
        self.folder, self.scene = folder, scene
        tracking = {"enabled": True, "uri": f"sqlite:///{folder}/none.db"}
        settings = {"budget": scene.budget, "tracking": tracking, "experiments": scene.allowed}
        path = played_run.make_run(folder / "template", **settings, **changed)
        (path.parent / "sway.py").write_text(played_run.POLICY + TRIES)
        self.base = path.parent
        self.config = load_config(path)
        self.played = 0

    def play(self, act: Callable[[Play], Any], label: str) -> Play:
        """One run. Raises :class:`Broken`, leaving the folder, when something does not hold."""
        self.played += 1
        target = self.folder / f"play-{label}"
        play = self.scene(self.config, self.base, target)
        play.experiments = 1
        try:
            act(play)
            play.check()
        except Broken as error:
            raise Broken(f"{label}: {error} (left in {target})") from None
        shutil.rmtree(target)
        return play


def measure(theatre: Theatre) -> Play:
    """The undisturbed run, which says how many steps there are."""
    return theatre.play(lambda play: play.die_and_return([0], KILL), "undisturbed")


def outside_steps(theatre: Theatre) -> Play:
    return theatre.play(lambda play: play.replace_while_stopped(10**9), "undisturbed")


def main(scene: type[Play] = Play) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--every", type=int, default=1, help="try every K-th step")
    parser.add_argument("--first", type=int, default=1)
    parser.add_argument("--last", type=int, default=10**9)
    parser.add_argument("--only", default="", help="only steps whose name begins so")
    parser.add_argument("--during", default="", help="only in actions named so, in part: a,b")
    parser.add_argument("--fate", choices=(KILL, STOP, *sorted(crash_shim.ILLS)), default=KILL)
    parser.add_argument("--chains", type=int, default=0, help="random chains of several deaths")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dir", type=Path, help="where the runs lie")
    parser.add_argument("--names", action="store_true", help="print the steps and end")
    options = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory(dir=options.dir, ignore_cleanup_errors=True) as name:
        theatre = Theatre(Path(name), scene)
        calm = outside_steps(theatre) if options.fate == STOP else measure(theatre)
        if options.names:
            print("\n".join(calm.names))  # noqa: T201
            return
        broken: list[str] = []
        counts: Counter[str] = Counter()
        for label, act in acts(options, calm.names):
            try:
                play = theatre.play(act, label)
            except Broken as error:
                broken.append(str(error))
                shutil.rmtree(Path(name) / f"play-{label}", ignore_errors=True)
                continue
            counts["deaths"] += play.deaths
            counts["troubles"] += play.troubles
            counts["starts"] += play.starts
            counts.update({f"receipts {state}": n for state, n in play.ends.items()})
        summary = {
            "fate": options.fate,
            "steps": len(calm.names),
            "depth": calm.depth,
            "kinds": dict(
                Counter(
                    " ".join(n.split()[:1]) + (" (SQLite)" if "SQLite" in n else "")
                    for n in calm.names
                )
            ),
            "trials": theatre.played - 1,
            **counts,
            "broken": broken,
            "seconds": round(time.monotonic() - began, 1),
        }
    print(json.dumps(summary))  # noqa: T201
    sys.exit(1 if broken else 0)


def acts(options: Any, names: list[str]) -> list[tuple[str, Callable[[Play], Any]]]:
    """What to try: every K-th step, or random chains of deaths."""
    if options.chains:
        chance = random.Random(options.seed)
        chains = [
            [chance.randint(1, len(names) // (1 + k)) for k in range(chance.randint(2, 6))]
            for _ in range(options.chains)
        ]
        return [
            (f"chain-{n}", lambda play, c=chain: play.die_and_return(c, KILL))
            for n, chain in enumerate(chains)
        ]
    last = min(options.last, len(names))
    during = options.during.split(",")
    named = [
        n
        for n, name in enumerate(names, 1)
        if name.startswith(options.only)
        and any(part in name.rpartition(" in ")[2] for part in during)
    ]
    points = [n for n in named if options.first <= n <= last][:: options.every]
    if options.fate == STOP:
        return [(f"stop-{n}", lambda play, n=n: play.replace_while_stopped(n)) for n in points]
    return [
        (f"{options.fate}-{n}", lambda play, n=n: play.die_and_return([n], options.fate))
        for n in points
    ]


if __name__ == "__main__":
    main()
