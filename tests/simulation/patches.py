"""Where the product meets its simulated surroundings. Nothing else of it is changed."""

from __future__ import annotations

import contextlib
import logging
import sqlite3
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from mixloop.common import files
from mixloop.contract import (
    accepted_orders,
    manifest,
    order_acceptance,
    requests,
    schedule,
    schedule_writer,
)
from mixloop.controller import report
from mixloop.controller.journal import journal, records
from mixloop.controller.loop import (
    eval_planner,
    experiment_jobs,
    policy_decisions,
    publishing,
    scoring,
    takeover,
)
from mixloop.controller.tracking import decision_traces, drain_child
from mixloop.trainer.run import order_inbox

from . import experimenter, here, tracker
from .children import Child, NoWaitingChild
from .evaluator import Evaluator
from .faults import JOURNAL_ERRORS
from .here import sim
from .memfs import MemOs, MemPath


class _Datetime:
    """``datetime.now`` of the simulation's wall clock."""

    @staticmethod
    def now(zone: Any = UTC) -> datetime:
        return datetime.fromtimestamp(sim().wall(), zone)


def _prepare(self: journal.Journal, create: bool) -> None:
    _real_prepare(self, create)
    # what a simulated crash loses is what was not committed; the file needs no disk
    self._db.execute("PRAGMA synchronous=OFF")
    self._db.execute("PRAGMA journal_mode=MEMORY")
    self._db.row_factory = sqlite3.Row  # for the invariants, which look through this connection


@contextlib.contextmanager
def _transaction(self: journal.Journal) -> Iterator[sqlite3.Connection]:
    world = sim()
    world.journal_point(self, "crash-before-transaction")
    for kind, text in JOURNAL_ERRORS.items():
        if world.journal_fails(self, kind):
            raise sqlite3.OperationalError(text)
    with _real_transaction(self) as tx:
        lease = tx.execute("SELECT fence FROM lease").fetchone()[0]
        yield tx
        world.journal_point(self, "crash-before-commit")
        if world.journal_fails(self, "journal-enospc"):
            raise sqlite3.OperationalError(JOURNAL_ERRORS["journal-enospc"])
    world.committed(self, lease)
    world.journal_point(self, "crash-after-commit")


def _stream(self: journal.Journal, kind: Any, clause: str = "", *values: object) -> Iterator[Any]:
    # a child's, which reads and writes nothing, is not the controller's
    if self.fence is not None and sim().journal_fails(self, "journal-read-eio", 0.02):
        raise sqlite3.OperationalError("disk I/O error")
    return _real_stream(self, kind, clause, *values)


_real_prepare = journal.Journal._prepare
_real_transaction = journal.Journal.transaction
_real_stream = journal.Journal.stream


def _connect(path: Any, **options: Any) -> sqlite3.Connection:
    # one thread, and no transaction is left open between two turns: locks would only cost time
    place = f"{path}&" if options.pop("uri", False) else f"file:{path}?"
    return sqlite3.connect(f"{place}vfs=unix-none", uri=True, **options)


class _Sqlite:
    """The module ``sqlite3`` with another ``connect``."""

    connect = staticmethod(_connect)

    def __getattr__(self, name: str) -> Any:
        return getattr(sqlite3, name)


def _lock(path: Any) -> Any:
    return SimpleNamespace(close=lambda: None)


def _report(folder: Any, target: Path) -> list[Path]:
    sim().tracker.reports += 1
    return [target / "report.html"]


@contextlib.contextmanager
def installed() -> Iterator[None]:
    """The product runs in the simulation that :func:`here.sim` names while this lasts."""
    memory = MemOs(lambda: sim().fs)
    MemPath.fs = staticmethod(lambda: sim().fs)  # type: ignore[assignment]
    changes: list[tuple[Any, str, Any]] = [
        *((module, "Child", Child) for module in (drain_child, policy_decisions)),
        (policy_decisions, "WaitingChild", NoWaitingChild),
        (scoring, "Evaluator", Evaluator),
        *((module, "Path", MemPath) for module in (scoring, experiment_jobs)),
        (experiment_jobs, "ExperimentRunner", experimenter.ExperimentRunner),
        (experiment_jobs, "spec_of", experimenter.spec_of),
        (experiment_jobs, "discard", experimenter.discard),
        (takeover, "take_lock", _lock),
        (publishing, "write_order", lambda path, order, key=None: sim().publish(path, order)),
        (decision_traces, "_span", tracker.span),
        (decision_traces, "_record", tracker.record),
        (records, "DECLINE_PAUSE", 2.0),  # a run of the simulation lasts minutes
        (report, "write_artifacts", _report),
        (journal, "datetime", _Datetime),
        (journal, "sqlite3", _Sqlite()),
        (journal, "os", memory),
        (journal, "socket", SimpleNamespace(gethostname=lambda: "host")),
        (journal.Journal, "_prepare", _prepare),
        (journal.Journal, "transaction", _transaction),
        (journal.Journal, "stream", _stream),
        (records, "time", SimpleNamespace(time_ns=lambda: int(sim().wall() * 1000) * 1_000_000)),
        (records, "uuid", SimpleNamespace(uuid4=lambda: SimpleNamespace(hex=sim().token(16)))),
        (eval_planner, "shutil", SimpleNamespace(rmtree=lambda path, ignore_errors=False: None)),
        (order_inbox, "say", lambda *said: None),
        (schedule_writer, "lock", lambda handle, wait=False: True),
        (requests, "secrets", SimpleNamespace(token_hex=lambda n: sim().token(n))),
        (requests, "time", SimpleNamespace(time_ns=lambda: int(sim().wall() * 1e9))),
        (requests, "who", lambda: "anna@host"),
        (files, "secrets", SimpleNamespace(token_hex=lambda n: sim().token(n))),
        *((module, "os", memory) for module in (files, accepted_orders, schedule, schedule_writer)),
        *(
            (module, "Path", MemPath)
            for module in (files, manifest, order_acceptance, schedule, schedule_writer)
        ),
    ]
    before = [(owner, name, getattr(owner, name)) for owner, name, _ in changes]
    imported = tracker.install()
    logger = logging.getLogger("mixloop.controller")
    quiet = logger.disabled
    logger.disabled = True
    try:
        for owner, name, value in changes:
            setattr(owner, name, value)
        yield
    finally:
        here.leave()
        for owner, name, value in before:
            setattr(owner, name, value)
        tracker.restore(imported)
        logger.disabled = quiet
