"""What a person asks: history, one decision explained, and how the run stands. Reads only.

Everything here comes from the journal and the trainer's own files; MLflow is not needed.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sqlite3
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mixloop.common.errors import BadInput
from mixloop.common.types import Json
from mixloop.contract import RunPaths, Schedule, Status, decision_id, read_status, schedule_of
from mixloop.contract import waiting as waiting_requests
from mixloop.controller.core import find_rewinds, heartbeat
from mixloop.controller.decisions import observation_builder
from mixloop.controller.journal import (
    Journal,
    JournalError,
    Row,
    damage,
    paused,
    pins,
    unreadable_files,
)

_COLUMNS = (
    *("id", "step", "tokens", "verdict", "policy", "reason", "evidence"),
    *("weights_before", "weights_proposed", "weights_after", "guards", "generation"),
)


def run_folder(run: Path) -> RunPaths:
    """The run folder that RUN names: a folder, or a run.yaml, whose folder may be still to come.

    Raises:
        BadInput: when there is no such folder.
    """
    if run.is_file():
        from mixloop.controller.config import load_config

        return RunPaths(load_config(run).run.dir)
    if not run.is_dir():
        raise BadInput(f"{run}: no run here; give a run folder or its run.yaml")
    return RunPaths(run)


def open_run(run: Path, *, new: bool = False) -> tuple[RunPaths, Journal | None]:
    """The run folder that RUN names (a folder, or a run.yaml) and its journal, if it has one.

    Args:
        new: a run.yaml whose run was never started will do.

    Raises:
        BadInput: when there is no such run.
    """
    paths = run_folder(run)
    if new and run.is_file() and not paths.journal.exists():
        return paths, None
    run = paths.dir
    if not run.is_dir():
        raise BadInput(f"{run}: no run here; give a run folder or its run.yaml")
    if not paths.journal.exists():
        beat = read_status(paths.status)
        if beat.problem is not None:
            raise BadInput(
                f"{paths.status}: can't be read: {beat.problem.text}; there is no journal either"
            )
        if beat.value is None:
            raise BadInput(f"{run}: neither a journal nor a heartbeat here; is this a run folder?")
        return paths, None
    try:
        return paths, Journal(paths.journal)
    except JournalError as error:
        raise BadInput(str(error)) from None


@contextlib.contextmanager
def reading(target: Path) -> Iterator[None]:
    """Rows that hold other things than a controller wrote are told in one line.

    Raises:
        BadInput: the journal is damaged, or, by the error alone, this program is wrong: the line
            names the place, and the error is its cause.
    """
    try:
        yield
    except JournalError as error:
        raise BadInput(str(error)) from error
    except sqlite3.Error as error:
        raise BadInput(damage(target, error)) from error
    except (ArithmeticError, LookupError, AttributeError) as error:
        raise BadInput(_unshown(target, error)) from error
    except (TypeError, ValueError, AssertionError, RecursionError) as error:
        raise BadInput(_unshown(target, error)) from error


def _unshown(target: Path, error: Exception) -> str:
    last = traceback.extract_tb(error.__traceback__)[-1]
    first = (str(error).splitlines() or [""])[0][:200]
    return (
        f"{target}: can't be shown whole ({type(error).__name__}: {first}, in {last.name} of "
        f"{Path(last.filename).name}): its journal holds what no controller writes, or mixloop is "
        "wrong here; compare with a backup, and report it if that shows the same"
    )


def history(journal: Journal) -> list[Json]:
    """Every decision, oldest first, as ``mixloop history --json`` prints it."""
    scored = observation_builder.evaluations(journal)
    orders = {row["generation"]: row for row in journal.rows("SELECT * FROM orders")}
    changes = steering(journal)
    approvals, said = _approvals(journal), assessments(journal)
    return [
        _entry(row, orders.get(row["generation"]), scored)
        | {"steering": _in_force(changes, row["step"]), "approval": approvals.get(row["id"])}
        | {"assessments": said.get(row["id"], [])}
        for row in journal.rows("SELECT * FROM decisions ORDER BY seq")
    ]


def _entry(row: Row, order: Row | None, scored: Any) -> Json:
    entry = {name: row[name] for name in _COLUMNS}
    entry["applied_step"] = order["applied_step"] if order else None
    entry["outcome"] = _outcome(row, order, scored)
    entry["applied_tokens"] = order["applied_tokens"] if order else None
    entry["applied_sample"] = order["applied_sample"] if order else None
    entry["asked_by"] = row["asked_by"]
    entry["plan"] = row["plan"]
    entry["fence"] = row["fence"]
    entry["against_generation"] = row["against_generation"]
    entry["policy_digest"] = row["policy_digest"]
    entry["observation_digest"] = row["observation_digest"]
    entry["scored_at"], entry["decided_at"] = row["scored_at"], row["decided_at"]
    entry["applied_at"] = order["applied_at"] if order else None
    entry["abandoned_by"] = row.get("abandoned_by")  # the incarnation that left its branch
    return entry


def _approvals(journal: Journal) -> dict[str, Json]:
    """What became of the decisions that waited for a person."""
    if not journal.knows_operators:
        return {}
    return {row.pop("decision"): row for row in journal.rows("SELECT * FROM approvals")}


def assessments(journal: Journal) -> dict[str, list[Json]]:
    """What people said of decisions in MLflow, by decision, oldest first."""
    found: dict[str, list[Json]] = {}
    if journal.knows_operators:
        for row in journal.rows("SELECT * FROM assessments ORDER BY at"):
            row["value"] = json.loads(row["value"]) if row["value"] else None
            found.setdefault(row["decision"], []).append(row)
    return found


def operators(paths: RunPaths, journal: Journal | None) -> Json:
    """What people asked for: ``paused``, ``pins``, decisions that wait for approval, and how many
    requests no controller has taken yet."""
    known = journal is not None and journal.knows_operators
    found: Json = {"paused": False, "pins": {}, "awaiting": []}
    if journal is not None and known:
        rows = journal.rows(
            "SELECT d.id, d.tokens, a.why FROM approvals a JOIN decisions d ON d.id = a.decision "
            "WHERE a.state = 'waiting' ORDER BY d.seq"
        )
        found = {"paused": paused(journal), "pins": pins(journal), "awaiting": rows}
    return found | {"requests": len(waiting_requests(paths.requests))}


def steering(journal: Journal) -> list[Json]:
    """Every change of what steers, oldest first: step, tokens, and per benchmark its metric.

    ``since`` is the step of the evaluation from which a headline steers, None for a metric that
    has steered from the start.
    """
    rows = journal.rows("SELECT detail FROM events WHERE kind = 'steering' ORDER BY seq")
    return [row["detail"] for row in rows]


def steering_at(journal: Journal, step: int) -> Json:
    """What steered each benchmark at a step; empty before the first decision."""
    return _in_force(steering(journal), step)


def _in_force(changes: list[Json], step: int) -> Json:
    known = [change["benchmarks"] for change in changes if change["step"] <= step]
    return dict(known[-1]) if known else {}


def _outcome(row: Row, order: Row | None, scored: Any) -> Json | None:
    """What became of an intervention; None for a decision that changed nothing."""
    if order is None:
        return None
    if order["rejected"]:
        return {"state": "never in force", "detail": order["rejected"], "benchmarks": {}}
    if order["applied_step"] is None:
        return {"state": "not in force yet", "benchmarks": {}}
    found = observation_builder.outcome(order, scored)
    if found is None:
        return {"state": "in force, not scored since", "benchmarks": {}}
    step, benchmarks = found
    return {"state": "scored", "step": step, "benchmarks": benchmarks}


def find_decision(journal: Journal, name: str) -> Json:
    """One decision of :func:`history` by its id (``d-000003``, or just ``3``).

    Raises:
        BadInput: when there is none.
    """
    wanted = decision_id(name)
    entries = history(journal)
    for entry in entries:
        if entry["id"] == wanted:
            return entry
    known = f"this run has d-000001 to {entries[-1]['id']}" if entries else "this run has none yet"
    raise BadInput(f"{name}: no such decision; {known}")


def segments(paths: RunPaths, sequence_length: int) -> list[Json]:
    """The mixtures as applied, each with its first token, from the trainer's own schedule."""
    from mixloop.contract import SCALE

    return [
        {
            "tokens": segment.sample * sequence_length,
            "sample": segment.sample,
            "step": segment.step,
            "generation": segment.generation,
            "weights": {name: units / SCALE for name, units in segment.weights.items()},
        }
        for segment in (schedule_of(paths.schedule).value or Schedule()).segments
    ]


def benchmarks(journal: Journal) -> list[Json]:
    """Every scored checkpoint's metrics, oldest first, without the items."""
    return [
        {
            "step": seen.step,
            "tokens": seen.tokens,
            "benchmarks": {
                name: {metric: found.model_dump() for metric, found in score.metrics.items()}
                for name, score in seen.benchmarks.items()
            },
        }
        for seen in observation_builder.evaluations(journal)
    ]


def status(paths: RunPaths, journal: Journal | None) -> Json:
    """How the run stands, as ``mixloop status --json`` prints it."""
    found = overview(
        paths,
        journal,
        read_status(paths.status).value,
        unreadable=unreadable_files.unread(paths, journal),
    )
    order = ("run", "trainer", "mixture", "ledger", "benchmarks")
    found["benchmarks"] = _latest(journal)
    return {name: found[name] for name in order} | found


def overview(
    paths: RunPaths,
    journal: Journal | None,
    beat: Status | None,
    watched: tuple[float, float] | None = None,
    unreadable: Sequence[Json] = (),
) -> Json:
    """The same without the benchmarks; ``watched`` as :func:`trainer` takes it, ``unreadable`` as
    :func:`~mixloop.controller.journal.unreadable_files.listed` gives it."""
    shown = trainer(paths, beat, journal, watched)
    if beat is None and any(one["file"] == paths.status.name for one in unreadable):
        shown["state"] = "unknown"  # and not "never started"
    return {
        "run": beat.run if beat else None,
        "trainer": shown,
        "mixture": _mixture(beat, journal),
        "ledger": _ledger(beat),
        "steering": steering_at(journal, 2**62) if journal is not None else {},
        "skipped": skipped(journal),
        "pending": _pending(beat, journal),
        "operators": operators(paths, journal),
        "tracking": _tracking(journal),
        "controller": controller(journal),
        "unreadable": list(unreadable),
    }


def trainer(
    paths: RunPaths,
    beat: Status | None,
    journal: Journal | None,
    watched: tuple[float, float] | None = None,
) -> Json:
    """The trainer's heartbeat, what to call its ``state``, and where its incarnation began.

    Args:
        watched: seconds the heartbeat has stood still as the caller saw it, and from when on that
            is a stall; otherwise what the controller saw.
    """
    process = _alive(beat) if beat is not None else False
    silent, limit = watched or _silence(beat, journal)
    word = heartbeat.trainer_state(beat, silent=silent, limit=limit, process=process)
    found = {"alive": process, "state": word, "silent": silent, "origin": _origin(paths, beat)}
    if beat is None:
        return found | {"pid": None, "step": None, "tokens": None}
    shown = asdict(beat)
    for name in ("sources", "in_force", "pending"):
        shown.pop(name)
    return found | shown


def _silence(beat: Status | None, journal: Journal | None) -> tuple[float | None, float]:
    """How long the controller has seen the heartbeat stand still, and its patience.

    What a controller knew that is no longer there says nothing of now.
    """
    row = journal.row("SELECT value FROM meta WHERE key = 'pulse'") if journal is not None else None
    lease = controller(journal)
    if beat is None or row is None or lease is None or lease["alive"] is False:
        return None, heartbeat.LEAST
    known = json.loads(row["value"])
    same = (known["incarnation"], known["heartbeat"]) == (beat.incarnation, beat.heartbeat)
    return (known["silent"] if same else 0.0), known["limit"]


def _origin(paths: RunPaths, beat: Status | None) -> Json | None:
    """Where the trainer's incarnation began; None for the first, which began at the start."""
    schedule = schedule_of(paths.schedule).value or Schedule()
    opened = schedule.latest_open
    if beat is None or opened is None or opened.incarnation != beat.incarnation:
        return None
    fork = paths.dir / "fork.json"
    try:
        forked = json.loads(fork.read_text("utf-8")) if fork.is_file() else {}
    except (OSError, ValueError):
        forked = {}
    if isinstance(forked, dict) and forked.get("step") == opened.step and opened.step:
        return {"how": "forked", "step": opened.step, "run": str(forked.get("parent", ""))}
    if opened.incarnation == 1:
        return None
    cut = any(cut.incarnation == opened.incarnation for cut in find_rewinds(schedule))
    return {"how": "rewound" if cut else "resumed", "step": opened.step, "run": None}


def skipped(journal: Journal | None) -> list[Json]:
    """Checkpoints that were passed over, oldest first, each with its reason."""
    if journal is None:
        return []
    return journal.rows(
        "SELECT c.step, c.tokens, e.reason FROM evaluations e JOIN checkpoints c USING (step) "
        "WHERE e.state = 'skipped' ORDER BY c.step"
    )


def _alive(beat: Status) -> bool | None:
    """Whether the trainer's process lives; None when it runs on another machine."""
    if beat.finished:
        return False
    if beat.host != socket.gethostname():
        return None
    return pid_alive(beat.pid)


def pid_alive(pid: int) -> bool:
    """Whether a process of this machine lives (a zombie does not)."""
    try:
        os.kill(pid, 0)
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return state != "Z"


def _mixture(beat: Status | None, journal: Journal | None) -> Json:
    asked: Json | None = None
    if journal is not None:
        row = journal.row(
            "SELECT generation, weights, decision FROM orders WHERE rejected IS NULL "
            "ORDER BY generation DESC LIMIT 1"
        )
        initial = journal.row("SELECT value FROM meta WHERE key = 'initial'")
        asked = row or (
            {"generation": 0, "weights": json.loads(initial["value"])} if initial else None
        )
    applied = None
    if beat is not None:
        force = beat.in_force
        applied = {
            "generation": force.generation,
            "fence": force.fence,
            "sample": force.sample,
            "step": force.step,
            "weights": dict(force.weights),
        }
    return {"asked": asked, "applied": applied}


def _ledger(beat: Status | None) -> Json:
    if beat is None:
        return {}
    return {
        name: {
            "tokens": source.tokens,
            "epochs": source.epochs,
            "unique_tokens": source.unique_tokens,
            "loss": source.loss,
        }
        for name, source in beat.sources.items()
    }


def _latest(journal: Journal | None) -> Json:
    """The newest score of every benchmark, and why the newest checkpoint lacks one."""
    if journal is None:
        return {}
    rows = journal.rows(
        "SELECT c.step, c.tokens, e.scorecard FROM checkpoints c JOIN evaluations e USING (step) "
        "WHERE e.state = 'scored' ORDER BY c.step DESC LIMIT 1"
    )
    if not rows:
        return {}
    row = rows[0]
    return {
        name: {
            "step": row["step"],
            "tokens": row["tokens"],
            "status": score["status"],
            "reason": score["reason"],
            "metrics": score["metrics"],
            "data": score["data"],
        }
        for name, score in row["scorecard"]["benchmarks"].items()
    }


def _pending(beat: Status | None, journal: Journal | None) -> Json:
    waiting: list[Row] = []
    scoring: list[int] = []
    if journal is not None:
        waiting = journal.rows(
            "SELECT generation, decision, published_at FROM orders "
            "WHERE applied_step IS NULL AND rejected IS NULL ORDER BY generation"
        )
        scoring = [
            row["step"]
            for row in journal.rows("SELECT step FROM evaluations WHERE state = 'running'")
        ]
    switch = None if beat is None or beat.pending is None else asdict(beat.pending)
    return {"orders": waiting, "switch": switch, "scoring": scoring}


def _tracking(journal: Journal | None) -> Json:
    if journal is None:
        return {"waiting": 0, "sent": 0, "last_error": None}
    last = journal.row(
        "SELECT at, kind, detail FROM events WHERE kind IN ('tracking-failed', 'tracking-refused') "
        "ORDER BY seq DESC LIMIT 1"
    )
    sent_after = journal.value("SELECT MAX(done_at) FROM outbox")
    error: Mapping[str, Any] | None = None
    if last is not None and (sent_after is None or last["at"] > sent_after):
        error = {"at": last["at"], **last["detail"]}
    return {
        "waiting": journal.value("SELECT COUNT(*) FROM outbox WHERE done_at IS NULL"),
        "sent": journal.value("SELECT COUNT(*) FROM outbox WHERE done_at IS NOT NULL"),
        "last_error": error,
    }


def controller(journal: Journal | None) -> Json | None:
    """Who holds the run; ``alive`` is None where that can't be known from this machine."""
    if journal is None:
        return None
    lease = journal.row("SELECT fence, holder, counter, started_at FROM lease")
    if lease is None:
        return None
    host, _, pid = lease["holder"].rpartition(":")
    alive = pid_alive(int(pid)) if host == socket.gethostname() else None
    return {**lease, "alive": alive}
