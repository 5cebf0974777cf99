"""Facts into the journal: each function is one transaction, with what MLflow shall hear of it.

A fact and its outbox entries are written together, so MLflow can neither miss one nor hear of one
that did not happen.
"""

from __future__ import annotations

import sqlite3
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from mixloop.common.types import Json
from mixloop.contract import Request
from mixloop.controller.core import (
    TOLD,
    Applied,
    Entry,
    Heartbeat,
    RequestOutcome,
    Steering,
    applied_entries,
    approval_entry,
    checkpoint_entry,
    curves_entry,
    decision_entry,
    end_entry,
    mixture_entry,
    note_entry,
    outcome_entries,
    outcome_gains,
    outcome_key,
    published_entry,
    run_entry,
    run_note,
)
from mixloop.policies.interface import Observation

from .journal import Journal, add_event, insert, timestamp
from .packing import dumps, pack
from .unreadable_files import Report, name_of

Weights = Mapping[str, float]


def now_ms() -> int:
    """The wall clock in milliseconds, MLflow's unit."""
    return time.time_ns() // 1_000_000


def enqueue(tx: sqlite3.Connection, entries: Iterable[Entry]) -> None:
    """Put entries into the outbox; one whose key is already there is the same fact."""
    for entry in entries:
        tx.execute(
            "INSERT OR IGNORE INTO outbox (key, kind, payload, created_ms) VALUES (?, ?, ?, ?)",
            (entry.key, entry.kind, pack(entry.payload), now_ms()),
        )


def run_uid(journal: Journal) -> str:
    """The id that ties this journal to its run in MLflow, made once."""
    found = journal.value("SELECT value FROM meta WHERE key = 'uid'")
    if found is None:
        with journal.transaction() as tx:
            tx.execute("INSERT OR IGNORE INTO meta VALUES ('uid', ?)", (uuid.uuid4().hex,))
        found = journal.value("SELECT value FROM meta WHERE key = 'uid'")
    return str(found)


def start(journal: Journal, run: str, params: Json, initial: Weights) -> None:
    """This controller has taken the run over; the first start also records generation 0."""
    ms = now_ms()
    with journal.transaction() as tx:
        tx.execute("INSERT OR IGNORE INTO meta VALUES ('initial', ?)", (dumps(dict(initial)),))
        enqueue(
            tx,
            [
                run_entry(run, params, ms),
                mixture_entry(0, initial, 0, ms),
            ],
        )
        add_event(tx, journal.fence or 0, "started", {"params": params})


def beat(journal: Journal, pulse: Heartbeat | None, silent: float | None, limit: float) -> None:
    """Our own liveness counter moves; with it what we know of the trainer's.

    ``silent``: seconds on our monotonic clock since its heartbeat moved; above ``limit`` it has
    stalled.
    """
    with journal.transaction() as tx:
        tx.execute("UPDATE lease SET counter = counter + 1")
        if pulse is not None and silent is not None:
            known = {"incarnation": pulse.incarnation, "heartbeat": pulse.heartbeat}
            keep(tx, "pulse", known | {"silent": round(silent, 1), "limit": round(limit, 1)})


def checkpoint(
    journal: Journal, manifest: Any, path: str, losses: Mapping[str, float] | None = None
) -> None:
    """A complete checkpoint was seen; ``losses``: the training loss per source around it.

    One that has the step of another, made on a branch that the trainer has left, replaces it; the
    scores of that one are kept as an event.
    """
    with journal.transaction() as tx:
        _put_away(tx, journal, manifest.step)
        insert(
            tx,
            "checkpoints",
            step=manifest.step,
            tokens=manifest.tokens,
            sample=manifest.sample,
            path=path,
            phase=manifest.phase,
            generation=manifest.in_force.generation,
            weights=dict(manifest.in_force.weights),
            drawn={name: source.tokens for name, source in manifest.sources.items()},
            losses=dict(losses or {}),
            seen_at=timestamp(),
            incarnation=manifest.incarnation,
        )


def _put_away(tx: sqlite3.Connection, journal: Journal, step: int) -> None:
    row = journal.row(
        "SELECT c.*, e.state, e.reason, e.scorecard FROM checkpoints c "
        "LEFT JOIN evaluations e USING (step) WHERE c.step = ?",
        step,
    )
    if row is None:
        return
    scored = (row.pop("scorecard") or {}).get("benchmarks", {})
    row["metrics"] = {name: one["metrics"] for name, one in scored.items()}
    add_event(tx, journal.fence or 0, "checkpoint-repeated", row)
    tx.execute("DELETE FROM evaluations WHERE step = ?", (step,))
    tx.execute("DELETE FROM checkpoints WHERE step = ?", (step,))


def skipped(journal: Journal, reasons: Mapping[int, str]) -> None:
    """Checkpoints that will not be scored, each with the reason."""
    with journal.transaction() as tx:
        for step, reason in reasons.items():
            skip(tx, journal, step, reason)


def skip(tx: sqlite3.Connection, journal: Journal, step: int, reason: str) -> None:
    """One of them, inside a running transaction."""
    now = timestamp()
    tx.execute(
        "INSERT INTO evaluations (step, state, attempts, reason, started_at, finished_at) "
        "VALUES (?, 'skipped', 0, ?, ?, ?) ON CONFLICT (step) DO UPDATE SET "
        "state = 'skipped', reason = excluded.reason, finished_at = excluded.finished_at",
        (step, reason, now, now),
    )
    add_event(tx, journal.fence or 0, "skipped", {"step": step, "reason": reason})


def scoring_started(journal: Journal, step: int) -> None:
    """An evaluation begins; a second attempt at the same checkpoint counts."""
    with journal.transaction() as tx:
        tx.execute(
            "INSERT INTO evaluations (step, state, attempts, started_at) "
            "VALUES (?, 'running', 1, ?) ON CONFLICT (step) DO UPDATE SET "
            "state = 'running', attempts = attempts + 1, started_at = excluded.started_at",
            (step, timestamp()),
        )


def scored(journal: Journal, step: int, scorecard: Json) -> None:
    """An evaluation ended with a scorecard."""
    found = journal.row("SELECT * FROM checkpoints WHERE step = ?", step)
    assert found is not None, "scored a checkpoint that was never recorded"
    entry = checkpoint_entry(found, scorecard["benchmarks"], found["weights"], now_ms())
    if (number := found["incarnation"]) > 1:
        entry = _of_branch(journal, entry, number)
    with journal.transaction() as tx:
        tx.execute(
            "UPDATE evaluations SET state = 'scored', scorecard = ?, reason = NULL, "
            "finished_at = ? WHERE step = ?",
            (pack(scorecard), timestamp(), step),
        )
        enqueue(tx, [entry])


def _of_branch(journal: Journal, entry: Entry, incarnation: int) -> Entry:
    """A checkpoint's entry under a name of its own, if one of its step was told already: of a
    branch that the trainer has left."""
    told = "SELECT 1 FROM outbox WHERE key = ? OR key LIKE ?"
    payload = entry.payload
    if journal.value(told, entry.key, f"{entry.key}:%"):
        payload = payload | {"name": f"{payload['name']}.{incarnation}"}
    return replace(entry, key=f"{entry.key}:{incarnation}", payload=payload)


def scoring_failed(journal: Journal, step: int, reason: str, *, final: bool) -> None:
    """An evaluation ended without a scorecard; not final: it will be tried again."""
    state = "failed" if final else "running"
    with journal.transaction() as tx:
        tx.execute(
            "UPDATE evaluations SET state = ?, reason = ?, finished_at = ? WHERE step = ?",
            (state, reason, timestamp(), step),
        )
        add_event(tx, journal.fence or 0, "scoring-failed", {"step": step, "reason": reason})


def steering(
    journal: Journal, step: int, tokens: int, chosen: Mapping[str, Steering]
) -> dict[str, Steering]:
    """What steers from the evaluation at ``step`` on; the same as before is not written again.

    Returns:
        The benchmarks whose metric changed; none at the first time.
    """
    last = journal.row(
        "SELECT detail FROM events WHERE kind = 'steering' ORDER BY seq DESC LIMIT 1"
    )
    before = (
        {name: one["metric"] for name, one in last["detail"]["benchmarks"].items()} if last else {}
    )
    if before == {name: one.metric for name, one in chosen.items()}:
        return {}
    benchmarks = {name: asdict(one) for name, one in chosen.items()}
    journal.event("steering", step=step, tokens=tokens, benchmarks=benchmarks)
    return {n: one for n, one in chosen.items() if before.get(n, one.metric) != one.metric}


def decision(
    journal: Journal,
    fields: Json,
    *,
    order: Json | None,
    scores: Json,
    started_ms: int,
    seen: Observation | None = None,
    approval: str | None = None,
) -> str:
    """A decision, and with it the order it asks for (intent before effect). Returns its id.

    Of what a policy had seen, the trainer's state is kept too: nothing else tells it later, and a
    back-test needs it. ``approval``: why a person has to approve it first. One that asks for a
    change supersedes an earlier one that still waits for approval.
    """
    with journal.transaction() as tx:
        name = _insert_decision(tx, journal, fields, order)
        row = {**fields, "id": name, "generation": order["generation"] if order else None}
        if order or approval is not None:
            _supersede(tx, name)
        if approval is not None:
            insert(tx, "approvals", decision=name, state="waiting", why=approval)
        if seen is not None:
            add_event(tx, journal.fence or 0, "observed", {"decision": name, **observed(seen)})
        enqueue(tx, [decision_entry(row, scores, started_ms, now_ms())])
    return name


def _insert_decision(
    tx: sqlite3.Connection, journal: Journal, fields: Json, order: Json | None
) -> str:
    last = tx.execute("SELECT COALESCE(MAX(seq), 0) FROM decisions").fetchone()[0]
    name = f"d-{last + 1:06d}"
    row = {**fields, "id": name, "fence": journal.fence, "decided_at": timestamp()}
    row["generation"] = order["generation"] if order else None
    insert(tx, "decisions", **row)
    if order:
        insert(tx, "orders", **order, decision=name, issued_at=timestamp())
    return name


def _supersede(tx: sqlite3.Connection, by: str) -> None:
    tx.execute(
        "UPDATE approvals SET state = 'superseded', reason = ?, at = ?, made = ? "
        "WHERE state = 'waiting'",
        (f"{by} came after it", timestamp(), by),
    )


def resolve(journal: Journal, decision_id: str, state: str, *, reason: str) -> None:
    """An approval ends without anybody's word."""
    with journal.transaction() as tx:
        tx.execute(
            "UPDATE approvals SET state = ?, reason = ?, at = ? "
            "WHERE decision = ? AND state = 'waiting'",
            (state, reason, timestamp(), decision_id),
        )
        add_event(tx, journal.fence or 0, "approval", {"decision": decision_id, "state": state})
        enqueue(tx, [approval_entry(decision_id, state, None)])


def operated(
    journal: Journal,
    request: Request,
    reply: RequestOutcome,
    fields: Json | None,
    order: Json | None,
    *,
    scores: Json,
) -> str | None:
    """A request was dealt with: it, its answer and all that it does, at once.

    Returns:
        The id of the decision it made, if it made one.
    """
    name: str | None = None
    asked = {
        "weights": dict(request.weights),
        "sources": list(request.sources),
        "decision": request.decision,
        "reason": request.reason,
        "force": request.force,
    }
    answer: Json = {"text": reply.text}
    if reply.nearest is not None:
        answer["nearest"] = reply.nearest
    with journal.transaction() as tx:
        if fields is not None:
            name = _insert_decision(tx, journal, fields, order)
            row = {**fields, "id": name, "generation": order["generation"] if order else None}
            enqueue(tx, [decision_entry(row, scores, now_ms(), now_ms())])
        insert(
            tx,
            "requests",
            id=request.id,
            verb=request.verb,
            asked=asked,
            by=request.by,
            asked_at=request.at,
            taken_at=timestamp(),
            state="done" if reply.done else "refused",
            answer=dumps(answer),
            decision=name,
        )
        if reply.approval is not None:
            _resolve(tx, request, reply.approval, name)
        if order is not None:
            _supersede(tx, name or "")
        keep(tx, "pins", reply.pins)
        keep(tx, "paused", reply.paused)
        detail = {"verb": request.verb, "by": request.by, "answer": reply.text, "decision": name}
        add_event(tx, journal.fence or 0, "request", detail)
    return name


def _resolve(tx: sqlite3.Connection, request: Request, state: str, made: str | None) -> None:
    wanted = request.decision
    tx.execute(
        "UPDATE approvals SET state = ?, by = ?, reason = ?, at = ?, made = ? "
        "WHERE decision = ? AND state = 'waiting'",
        (state, request.by, request.reason, timestamp(), made, wanted),
    )
    enqueue(tx, [approval_entry(wanted, state, request.by)])


def unread(journal: Journal, words: Sequence[Report], told: Sequence[Path], folder: Path) -> None:
    """Files that can't be read, or can again, as events; and which they are now."""
    with journal.transaction() as tx:
        keep(tx, "unread", [name_of(path, folder) for path in told])
        for word in words:
            fault = word.problem and {"key": word.problem.key, "problem": word.problem.text}
            detail = {"file": name_of(word.path, folder), **(fault or {})}
            add_event(tx, journal.fence or 0, "unread" if fault else "read-again", detail)


def keep(tx: sqlite3.Connection, key: str, value: object) -> None:
    """A value under a key, inside a running transaction; None changes nothing."""
    if value is not None:
        tx.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, dumps(value)))


def observed(seen: Observation) -> Json:
    """Where the trainer was when an observation was made."""
    return {
        "step": seen.step,
        "tokens": seen.tokens,
        "phase": seen.phase,
        "generation": seen.generation,
        "in_force": seen.in_force,
        "weights": seen.weights,
        "drawn": {name: source.drawn for name, source in seen.sources.items()},
        "epochs": {name: source.epochs for name, source in seen.sources.items()},
        "unique": {name: source.unique_tokens for name, source in seen.sources.items()},
    }


def published(journal: Journal, generation: int) -> None:
    """The order lies in ``mixture.json`` under this controller's fence."""
    with journal.transaction() as tx:
        tx.execute(
            "UPDATE orders SET published_fence = ?, published_at = COALESCE(published_at, ?) "
            "WHERE generation = ?",
            (journal.fence, timestamp(), generation),
        )
        order = journal.row("SELECT * FROM orders WHERE generation = ?", generation)
        if order is not None and order["decision"]:
            enqueue(tx, [published_entry(order, journal.fence or 0, now_ms())])


def applied(journal: Journal, found: Applied, tokens: int, before: Weights) -> None:
    """The trainer has consumed the first sample under this order."""
    with journal.transaction() as tx:
        tx.execute(
            "UPDATE orders SET applied_sample = ?, applied_step = ?, applied_tokens = ?, "
            "applied_at = ?, rejected = NULL WHERE generation = ?",
            (found.sample, found.step, tokens, timestamp(), found.generation),
        )
        order = journal.row("SELECT * FROM orders WHERE generation = ?", found.generation)
        assert order is not None
        enqueue(tx, applied_entries(order, before, now_ms()))


def rejected(journal: Journal, reasons: Mapping[int, str]) -> None:
    """The trainer refused orders; the mixture in force stays."""
    with journal.transaction() as tx:
        for generation, reason in reasons.items():
            tx.execute("UPDATE orders SET rejected = ? WHERE generation = ?", (reason, generation))
            detail = {"generation": generation, "reason": reason}
            add_event(tx, journal.fence or 0, "order-rejected", detail)


def curves(
    journal: Journal, status: Json, before: Json | None = None, max_epochs: float | None = None
) -> None:
    """The trainer's curves, for MLflow only; ``before``: those told last."""
    with journal.transaction() as tx:
        enqueue(tx, [curves_entry(status, now_ms(), before, max_epochs)])


def outcome(journal: Journal, decision_id: str, step: int, found: Mapping[str, Json]) -> None:
    """What the benchmarks did after an intervention, for MLflow (the journal can recompute it)."""
    with journal.transaction() as tx:
        for older in ("note:", "report:d-"):  # the newest says all that an older one said
            tx.execute("DELETE FROM outbox WHERE key BETWEEN ? AND ?", (older, f"{older}~"))
        enqueue(tx, outcome_entries(decision_id, step, found, now_ms()))
        enqueue(tx, [note_entry(decision_id, _note(journal))])


UNUSED = "training ended before it came into force"


def closed(journal: Journal, tokens: int) -> None:
    """The run has reached its end, ``tokens``, and every checkpoint is scored."""
    note = _note(journal)
    with journal.transaction() as tx:
        tx.execute(
            "UPDATE orders SET rejected = ? WHERE applied_step IS NULL AND rejected IS NULL",
            (UNUSED,),
        )
        enqueue(tx, [end_entry(tokens, note, now_ms())])
        enqueue(tx, [Entry(f"report:end:{tokens}", "report", {})])
        add_event(tx, journal.fence or 0, "ended", {})


def _note(journal: Journal) -> str:
    """The run's description: what it costs doesn't grow with the run."""
    count = "SELECT COUNT(*) FROM decisions"
    shown = journal.rows(
        "SELECT d.*, o.applied_step FROM decisions d LEFT JOIN orders o USING (generation) "
        "WHERE d.verdict = 'intervene' ORDER BY d.seq DESC LIMIT ?",
        TOLD,
    )
    changed = journal.value(f"{count} WHERE verdict = 'intervene'")
    followed = {one["id"]: _told_outcome(journal, one["id"]) for one in shown}
    return run_note(shown[::-1], changed, journal.value(count), followed)


def _told_outcome(journal: Journal, decision_id: str) -> dict[str, str]:
    """What each benchmark did after a decision, in the words MLflow was told it in."""
    key = outcome_key(decision_id)
    row = journal.row("SELECT payload FROM outbox WHERE key = ?", key)
    tags = row["payload"]["tags"] if row is not None else {}
    return outcome_gains(tags)


def drained(journal: Journal, messages: Sequence[Json]) -> str | None:
    """Mark what arrived in MLflow. Returns the last failure, if the drain ended on one."""
    failure: str | None = None
    if not messages:
        return None
    with journal.transaction() as tx:
        for message in messages:
            if "failed" in message:
                failure = message["error"]
                continue
            if "assessments" in message:
                _assessed(tx, message["assessments"])
                continue
            seq = message.get("done", message.get("refused"))
            tx.execute("UPDATE outbox SET done_at = ? WHERE seq = ?", (timestamp(), seq))
            if "refused" in message:
                add_event(tx, journal.fence or 0, "tracking-refused", dict(message))
    return failure


def _assessed(tx: sqlite3.Connection, found: Sequence[Json]) -> None:
    """What people said of decisions in MLflow; the newest word of an assessment counts."""
    for one in found:
        tx.execute(
            "INSERT INTO assessments (id, decision, name, value, rationale, by, at) "
            "VALUES (:id, :decision, :name, :value, :rationale, :by, :at) "
            "ON CONFLICT (id) DO UPDATE SET name = excluded.name, value = excluded.value, "
            "rationale = excluded.rationale, by = excluded.by, at = excluded.at",
            one,
        )
