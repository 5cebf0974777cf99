"""Facts into the journal: each function is one transaction, with what MLflow shall hear of it.

A fact and its outbox entries are written together, so MLflow can neither miss one nor hear of one
that did not happen.
"""

from __future__ import annotations

import sqlite3
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path

from mixloop.common.types import Json
from mixloop.contract import LARGEST_JUMP, Manifest, Request, Status
from mixloop.controller.core import (
    NOTE_INTERVENTIONS,
    Applied,
    CheckpointRow,
    DecisionRecord,
    Entry,
    ExperimentRecord,
    Heartbeat,
    RequestOutcome,
    Steering,
    Weights,
    applied_entry,
    approval_entry,
    checkpoint_entry,
    curves_entry,
    decision_entry,
    end_entry,
    note_entry,
    outcome_entries,
    outcome_gains,
    outcome_key,
    published_entry,
    receipt_entry,
    run_entry,
    run_note,
    start_entry,
)
from mixloop.policies.interface import Observation

from . import queries
from .journal import Journal, add_event, insert, timestamp
from .packing import dumps, pack, unpack
from .unreadable_files import UnreadableFiles, name_of

MOST_NAMED = 10  # of what ended by a distrusted journal
UNUSED = "training ended before it came into force"  # why an order never will

# An entry that MLflow calls invalid is let go when it has said so this often, at such distances.
DECLINES = 5
DECLINE_PAUSE = 120.0  # seconds


def now_ms() -> int:
    """The wall clock in milliseconds, MLflow's unit."""
    return time.time_ns() // 1_000_000


# -- inside a running transaction ------------------------------------------------------------------


def enqueue(tx: sqlite3.Connection, *entries: Entry) -> None:
    """Put entries into the outbox; one whose key is already there is the same fact."""
    for entry in entries:
        tx.execute(
            "INSERT OR IGNORE INTO outbox (key, kind, payload, created_ms) VALUES (?, ?, ?, ?)",
            (entry.key, entry.kind, pack(entry.payload), now_ms()),
        )


def set_meta(tx: sqlite3.Connection, key: str, value: object) -> None:
    """Keep a value under a key; None changes nothing."""
    if value is not None:
        tx.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, dumps(value)))


def skip(tx: sqlite3.Connection, journal: Journal, step: int, reason: str) -> None:
    """A checkpoint that will not be scored."""
    now = timestamp()
    tx.execute(
        "INSERT INTO evaluations (step, state, attempts, reason, started_at, finished_at) "
        "VALUES (?, 'skipped', 0, ?, ?, ?) ON CONFLICT (step) DO UPDATE SET "
        "state = 'skipped', reason = excluded.reason, finished_at = excluded.finished_at",
        (step, reason, now, now),
    )
    add_event(tx, journal.fence or 0, "skipped", {"step": step, "reason": reason})


# -- starts and heartbeats -------------------------------------------------------------------------


def run_uid(journal: Journal) -> str:
    """What ties this journal to its run in MLflow, and signed requests to it; made once."""
    if queries.uid(journal) is None:
        with journal.transaction() as tx:
            tx.execute("INSERT OR IGNORE INTO meta VALUES ('uid', ?)", (uuid.uuid4().hex,))
    return str(queries.uid(journal))


def forget_requests(journal: Journal) -> None:
    """The journal is new, or an older copy of itself: what was signed before counts no more."""
    with journal.transaction() as tx:
        set_meta(tx, "requests-since", journal.fence)
        add_event(tx, journal.fence or 0, "requests-forgotten", {})


def distrust(journal: Journal, followed: int, *, paused: bool | None = None) -> list[str]:
    """Somebody without the key may have written any row: none of them is a person's word any more.

    Orders above ``followed``, the generation that the trainer accepted, come to nothing; pins end;
    what waits for approval has expired; requests signed before are refused; nobody goes back to a
    mixture of before. Checkpoints, scores and past decisions stay: they are evidence, as a
    heartbeat is.

    Args:
        journal: Whose rows are sealed as they are.
        followed: A generation.
        paused: What is known to hold; None: what the rows say.

    Returns:
        What ended, in words.
    """
    lost = "the journal was changed by something else before it was published"
    with journal.transaction() as tx:
        waiting = tx.execute(
            "SELECT generation FROM orders WHERE generation > ? AND rejected IS NULL "
            "ORDER BY generation", (followed,),
        ).fetchall()  # fmt: skip
        tx.execute("UPDATE orders SET rejected = ? WHERE generation > ?", (lost, followed))
        far = followed + LARGEST_JUMP // 2  # no number above it was given by a controller
        tx.execute("UPDATE decisions SET generation = NULL WHERE generation > ?", (far,))
        tx.execute("DELETE FROM orders WHERE generation > ?", (far,))
        pins = queries.pins(journal)
        ended = [row.decision for row in queries.approvals(journal) if row.state == "waiting"]
        for name in ended:
            _end_approval(tx, name, "expired", reason="the journal was changed by something else")
        set_meta(tx, "pins", {})
        set_meta(tx, "paused", paused)
        set_meta(tx, "requests-since", journal.fence)
        set_meta(tx, "orders-since", followed)
        detail = {"orders": [row[0] for row in waiting[:MOST_NAMED]], "pins": pins}
        add_event(tx, journal.fence or 0, "distrusted", detail | {"approvals": ended[:MOST_NAMED]})
    words = [f"generation {row[0]} comes to nothing" for row in waiting[:MOST_NAMED]]
    words += [f"{name} is pinned no more" for name in list(pins)[:MOST_NAMED]]
    return words + [f"{name} waits for approval no more" for name in ended[:MOST_NAMED]]


def start(journal: Journal, run: str, params: Json, initial: Weights) -> None:
    """This controller has taken the run over; the first start also records generation 0."""
    ms = now_ms()
    with journal.transaction() as tx:
        tx.execute("INSERT OR IGNORE INTO meta VALUES ('initial', ?)", (dumps(dict(initial)),))
        enqueue(tx, run_entry(run, params, ms), start_entry(initial, ms))
        add_event(tx, journal.fence or 0, "started", {"params": params})


def beat(journal: Journal, trainer: Heartbeat | None, silent: float | None, limit: float) -> None:
    """Our own liveness counter moves; with it what we know of the trainer's.

    ``silent`` are the seconds on our monotonic clock since its heartbeat moved; above ``limit`` it
    has stalled.
    """
    with journal.transaction() as tx:
        tx.execute("UPDATE lease SET counter = counter + 1")
        if trainer is not None and silent is not None:
            pulse: Json = {"incarnation": trainer.incarnation, "heartbeat": trainer.heartbeat}
            pulse |= {"silent": round(silent, 1), "limit": round(limit, 1)}
            set_meta(tx, "pulse", pulse)


def unread(journal: Journal, files: UnreadableFiles, folder: Path) -> None:
    """Files that can't be read, or can again, as events; and which they are now."""
    with journal.transaction() as tx:
        set_meta(tx, "unread", [name_of(path, folder) for path in files.reported])
        for report in files.pending:
            problem = report.problem
            detail = {"file": name_of(report.path, folder)}
            if problem is not None:
                detail |= {"key": problem.key, "problem": problem.text}
            add_event(tx, journal.fence or 0, "unread" if problem else "read-again", detail)


# -- checkpoints and their scores ------------------------------------------------------------------


def checkpoint(journal: Journal, manifest: Manifest, path: str, losses: Weights) -> None:
    """A complete checkpoint was seen.

    One that has the step of another, made on a branch that the trainer has left, replaces it; the
    scores of that one are kept as an event. ``losses`` are the training losses per source around
    it.
    """
    with journal.transaction() as tx:
        _archive(tx, journal, manifest.step)
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
            losses=dict(losses),
            seen_at=timestamp(),
            incarnation=manifest.incarnation,
        )


def _archive(tx: sqlite3.Connection, journal: Journal, step: int) -> None:
    """Keep the checkpoint that has this step, and its scores, as an event in place of rows."""
    earlier = queries.checkpoint(journal, step)
    if earlier is None:
        return
    detail = earlier.to_json() | {"state": None, "reason": None, "metrics": {}}
    if (evaluation := queries.evaluation(journal, step)) is not None:
        scores = (evaluation.scorecard or {}).get("benchmarks", {}).items()
        detail |= {"state": evaluation.state, "reason": evaluation.reason}
        detail["metrics"] = {name: score["metrics"] for name, score in scores}
    add_event(tx, journal.fence or 0, "checkpoint-repeated", detail)
    tx.execute("DELETE FROM evaluations WHERE step = ?", (step,))
    tx.execute("DELETE FROM checkpoints WHERE step = ?", (step,))


def skipped(journal: Journal, reasons: Mapping[int, str]) -> None:
    """Checkpoints that will not be scored, each with the reason."""
    with journal.transaction() as tx:
        for step, reason in reasons.items():
            skip(tx, journal, step, reason)


def scoring_started(journal: Journal, step: int) -> None:
    """An evaluation begins; one anew after a failure counts.

    One anew after a controller's end does not, which says nothing of the checkpoint.
    """
    with journal.transaction() as tx:
        tx.execute(
            "INSERT INTO evaluations (step, state, attempts, started_at) "
            "VALUES (?, 'running', 1, ?) ON CONFLICT (step) DO UPDATE SET "
            "state = 'running', attempts = attempts + (reason IS NOT NULL), reason = NULL, "
            "started_at = excluded.started_at",
            (step, timestamp()),
        )


def scored(journal: Journal, step: int, scorecard: Json) -> None:
    """An evaluation ended with a scorecard."""
    row = queries.checkpoint(journal, step)
    assert row is not None, "scored a checkpoint that was never recorded"
    entry = checkpoint_entry(row, scorecard["benchmarks"], now_ms())
    if row.incarnation > 1:
        entry = _of_branch(journal, entry, row.incarnation)
    with journal.transaction() as tx:
        tx.execute(
            "UPDATE evaluations SET state = 'scored', scorecard = ?, reason = NULL, "
            "finished_at = ? WHERE step = ?",
            (pack(scorecard), timestamp(), step),
        )
        enqueue(tx, entry)


def _of_branch(journal: Journal, entry: Entry, incarnation: int) -> Entry:
    """A checkpoint's entry, under a name of its own if there is one of its step already.

    That one is of a branch that the trainer has left.
    """
    payload = entry.payload
    if queries.has_entry(journal, entry.key):
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


def unscored(journal: Journal, stretch: queries.UnscoredStretch | None) -> None:
    """The policy sees no scores from here on, or (None) sees them again."""
    if stretch is None:
        journal.event("scored-again")
    else:
        journal.event("unscored", steps=list(stretch.steps), reason=stretch.why)


def steering(
    journal: Journal, step: int, tokens: int, chosen: Mapping[str, Steering]
) -> dict[str, Steering]:
    """What steers from the evaluation at ``step`` on; the same as before is not written again.

    Returns:
        The benchmarks whose metric changed; none at the first time.
    """
    before = queries.steering(journal)
    metrics = {name: steering.metric for name, steering in before.items()}
    if metrics == {name: steering.metric for name, steering in chosen.items()}:
        return {}
    benchmarks = {name: asdict(steering) for name, steering in chosen.items()}
    journal.event("steering", step=step, tokens=tokens, benchmarks=benchmarks)
    return {
        name: steering
        for name, steering in chosen.items()
        if metrics.get(name, steering.metric) != steering.metric
    }


# -- decisions, requests, approvals ----------------------------------------------------------------


def decision(
    journal: Journal,
    record: DecisionRecord,
    *,
    scores: Json,
    started_ms: int,
    seen: Observation | None = None,
) -> str:
    """A decision, and with it the order it asks for (intent before effect). Returns its id.

    Of what a policy had seen, the trainer's state is kept too: nothing else tells it later, and a
    back-test needs it. One that orders a change, or waits for approval itself, supersedes an
    earlier one that still waits.
    """
    with journal.transaction() as tx:
        name = _insert_decision(tx, journal, record, scores, started_ms)
        if record.order is not None or record.approval is not None:
            _supersede(tx, name)
        if record.approval is not None:
            insert(tx, "approvals", decision=name, state="waiting", why=record.approval)
        if seen is not None:
            add_event(tx, journal.fence or 0, "observed", {"decision": name, **_observed(seen)})
    return name


_DECISION_COLUMNS = [
    field.name
    for field in fields(DecisionRecord)
    if field.name not in ("order", "approval", "experiment")
]


def _insert_decision(
    tx: sqlite3.Connection, journal: Journal, record: DecisionRecord, scores: Json, started_ms: int
) -> str:
    name = f"d-{queries.newest_decision_number(journal) + 1:06d}"
    order = record.order
    columns = {column: getattr(record, column) for column in _DECISION_COLUMNS}
    columns["guards"] = [note.to_json() for note in record.guards]
    insert(
        tx,
        "decisions",
        **columns,
        id=name,
        generation=None if order is None else order.generation,
        fence=journal.fence,
        decided_at=timestamp(),
    )
    if order is not None:
        insert(
            tx,
            "orders",
            generation=order.generation,
            decision=name,
            policy=order.policy,
            reason=record.reason,
            weights=record.weights_after,
            plan=record.plan,
            issued_at=timestamp(),
        )
    if record.experiment is not None:
        _insert_experiment(tx, name, record.experiment)
    enqueue(tx, decision_entry(name, scores, started_ms, now_ms()))
    return name


def _insert_experiment(tx: sqlite3.Connection, decision: str, experiment: ExperimentRecord) -> None:
    number = tx.execute("SELECT COUNT(*) FROM experiments").fetchone()[0] + 1
    refused, now = experiment.refused, timestamp()
    insert(
        tx,
        "experiments",
        id=f"e-{number:06d}",
        decision=decision,
        step=experiment.step,
        tokens=experiment.tokens,
        asked=experiment.asked,
        planned=experiment.planned,
        state="planned" if refused is None else "refused",
        attempts=0,
        reason=refused,
        cost=0,
        asked_at=now,
        finished_at=None if refused is None else now,
    )


def _supersede(tx: sqlite3.Connection, by: str) -> None:
    waiting = tx.execute("SELECT decision FROM approvals WHERE state = 'waiting'").fetchall()
    for (decision_id,) in waiting:
        _end_approval(tx, decision_id, "superseded", reason=f"{by} came after it", made=by)


def _observed(seen: Observation) -> Json:
    """Where the trainer was when an observation was made."""
    names = ("step", "tokens", "phase", "generation", "in_force", "weights")
    return {name: getattr(seen, name) for name in names} | {
        "drawn": {name: source.drawn for name, source in seen.sources.items()},
        "epochs": {name: source.epochs for name, source in seen.sources.items()},
        "unique": {name: source.unique_tokens for name, source in seen.sources.items()},
    }


_ASKED = ("weights", "sources", "decision", "reason", "force")  # of a request


def operated(
    journal: Journal, request: Request, reply: RequestOutcome, *, scores: Json
) -> str | None:
    """A request was dealt with: it, its answer and all that it does, at once.

    Returns:
        The id of the decision it made, if it made one.
    """
    record, name = reply.decision, None
    answer: Json = {"text": reply.text}
    if reply.nearest is not None:
        answer["nearest"] = reply.nearest
    with journal.transaction() as tx:
        if record is not None:
            name = _insert_decision(tx, journal, record, scores, now_ms())
        insert(
            tx,
            "requests",
            id=request.id,
            verb=request.verb,
            asked={name: getattr(request, name) for name in _ASKED},
            by=request.by,
            asked_at=request.at,
            taken_at=timestamp(),
            state="done" if reply.done else "refused",
            answer=answer,
            decision=name,
        )
        if reply.approval is not None:
            end = {"by": request.by, "reason": request.reason, "made": name}
            _end_approval(tx, request.decision, reply.approval, **end)
        if name is not None and record is not None and record.order is not None:
            _supersede(tx, name)
        set_meta(tx, "pins", reply.pins)
        set_meta(tx, "paused", reply.paused)
        detail = {"verb": request.verb, "by": request.by, "answer": reply.text, "decision": name}
        add_event(tx, journal.fence or 0, "request", detail)
    return name


def resolve(journal: Journal, decision_id: str, state: str, *, reason: str) -> None:
    """An approval ends without anybody's word."""
    with journal.transaction() as tx:
        _end_approval(tx, decision_id, state, reason=reason)
        add_event(tx, journal.fence or 0, "approval", {"decision": decision_id, "state": state})


def _end_approval(
    tx: sqlite3.Connection,
    decision_id: str,
    state: str,
    *,
    reason: str | None,
    by: str | None = None,
    made: str | None = None,
) -> None:
    tx.execute(
        "UPDATE approvals SET state = ?, by = ?, reason = ?, at = ?, made = ? "
        "WHERE decision = ? AND state = 'waiting'",
        (state, by, reason, timestamp(), made, decision_id),
    )
    enqueue(tx, approval_entry(decision_id, state, by))


# -- orders ----------------------------------------------------------------------------------------


def published(journal: Journal, generation: int) -> None:
    """The order lies in ``mixture.json`` under this controller's fence."""
    with journal.transaction() as tx:
        tx.execute(
            "UPDATE orders SET published_fence = ?, published_at = COALESCE(published_at, ?) "
            "WHERE generation = ?",
            (journal.fence, timestamp(), generation),
        )
        order = queries.order(journal, generation)
        if order is not None:
            enqueue(tx, published_entry(order, journal.fence or 0, now_ms()))


def applied(
    journal: Journal,
    at: Applied,
    tokens: int,
    before: Weights,
    receipt_from: CheckpointRow | None = None,
) -> None:
    """The trainer has consumed the first sample under this order, and ``before`` until then.

    A receipt of its, if one waits, starts at the checkpoint ``receipt_from``.
    """
    with journal.transaction() as tx:
        tx.execute(
            "UPDATE orders SET applied_sample = ?, applied_step = ?, applied_tokens = ?, "
            "applied_at = ?, rejected = NULL WHERE generation = ?",
            (at.sample, at.step, tokens, timestamp(), at.generation),
        )
        order = queries.order(journal, at.generation)
        assert order is not None
        if receipt_from is not None:
            tx.execute(
                "UPDATE experiments SET step = ?, tokens = ? "
                "WHERE decision = ? AND state = 'planned'",
                (receipt_from.step, receipt_from.tokens, order.decision),
            )
        enqueue(tx, applied_entry(order, before, now_ms()))


def rejected(journal: Journal, reasons: Mapping[int, str]) -> None:
    """The trainer refused orders; the mixture in force stays."""
    with journal.transaction() as tx:
        for generation, reason in reasons.items():
            tx.execute("UPDATE orders SET rejected = ? WHERE generation = ?", (reason, generation))
            detail = {"generation": generation, "reason": reason}
            add_event(tx, journal.fence or 0, "order-rejected", detail)


# -- for MLflow ------------------------------------------------------------------------------------


def curves(
    journal: Journal,
    status: Status,
    before: Status | None = None,
    max_epochs: float | None = None,
) -> None:
    """The trainer's curves, for MLflow only; ``before``: those sent last."""
    with journal.transaction() as tx:
        enqueue(tx, curves_entry(status, now_ms(), before, max_epochs))


def outcome(journal: Journal, decision_id: str, found: Json) -> None:
    """What followed an intervention (``Outcomes.of``), for MLflow: the journal can recompute it."""
    with journal.transaction() as tx:
        for older in ("note:", "report:d-"):  # the newest says all that an older one said
            tx.execute("DELETE FROM outbox WHERE key BETWEEN ? AND ?", (older, f"{older}~"))
        enqueue(tx, *outcome_entries(decision_id, found, now_ms()))
        enqueue(tx, note_entry(decision_id, _note(journal)))


def receipt(journal: Journal, decision_id: str, told: Json) -> None:
    """What an intervention's twin says of it (``Outcomes.receipt``), for MLflow."""
    with journal.transaction() as tx:
        enqueue(tx, receipt_entry(decision_id, told, now_ms()))


def closed(journal: Journal, tokens: int) -> None:
    """The run has reached its end, ``tokens``, and no checkpoint is to be scored any more."""
    note = _note(journal)
    with journal.transaction() as tx:
        tx.execute(
            "UPDATE orders SET rejected = ? WHERE applied_step IS NULL AND rejected IS NULL",
            (UNUSED,),
        )
        enqueue(tx, end_entry(tokens, note, now_ms()), Entry(f"report:end:{tokens}", "report", {}))
        add_event(tx, journal.fence or 0, "ended", {})


def _note(journal: Journal) -> str:
    """The run's description: what it costs doesn't grow with the run."""
    last = queries.last_decisions(journal, NOTE_INTERVENTIONS, verdict="intervene")[::-1]
    interventions = []
    for row in last:
        order = None if row.generation is None else queries.order(journal, row.generation)
        sent = queries.entry(journal, outcome_key(row.id))
        interventions.append((row, order, {} if sent is None else outcome_gains(sent.payload)))
    changed = queries.decision_counts(journal).get("intervene", 0)
    return run_note(interventions, changed, queries.newest_decision_number(journal))


def drained(journal: Journal, messages: Sequence[Json]) -> Json | None:
    """Mark what became of entries that were sent to MLflow.

    Returns:
        The last failure: its ``error``, and the key of its ``entry``, None where all failed.
    """
    failure: Json | None = None
    if not messages:
        return None
    with journal.transaction() as tx:
        for message in messages:
            if "assessments" in message:
                _assessed(tx, message["assessments"])
            elif "done" in message:
                _done(tx, message["done"])
                set_meta(tx, "sent-after-event", queries.newest_event_number(journal))
            elif "declined" in message:
                failure = _failure(tx, message["declined"], message["error"])
                _declined(tx, journal, message["declined"], failure)
            elif "failed" in message:
                failure = _failure(tx, message["failed"], message["error"])
    return failure


def _done(tx: sqlite3.Connection, seq: int) -> None:
    tx.execute("UPDATE outbox SET done_at = ? WHERE seq = ?", (timestamp(), seq))


def _failure(tx: sqlite3.Connection, seq: int, error: str) -> Json:
    row = tx.execute("SELECT key FROM outbox WHERE seq = ?", (seq,)).fetchone()
    return {"entry": None, "error": error} if row is None else {"entry": row[0], "error": error}


def _declined(tx: sqlite3.Connection, journal: Journal, seq: int, failure: Json) -> None:
    """MLflow calls an entry invalid; said often enough, over long enough, it is let go."""
    rows = tx.execute("SELECT detail FROM events WHERE kind = 'tracking-declined'").fetchall()
    times = [detail["ms"] for row in rows if (detail := unpack(row[0]))["seq"] == seq]
    now, fence = now_ms(), journal.fence or 0
    if times and abs(now - times[-1]) < DECLINE_PAUSE * 1000:  # the clock may step
        return
    add_event(tx, fence, "tracking-declined", {"seq": seq, "ms": now, **failure})
    if len(times) + 1 >= DECLINES:
        _done(tx, seq)
        add_event(tx, fence, "tracking-refused", {"refused": seq, **failure})


def _assessed(tx: sqlite3.Connection, assessments: Sequence[Json]) -> None:
    """What people said of decisions in MLflow; the newest word of an assessment counts."""
    for assessment in assessments:
        tx.execute(
            "INSERT INTO assessments (id, decision, name, value, rationale, by, at) "
            "VALUES (:id, :decision, :name, :value, :rationale, :by, :at) "
            "ON CONFLICT (id) DO UPDATE SET name = excluded.name, value = excluded.value, "
            "rationale = excluded.rationale, by = excluded.by, at = excluded.at",
            assessment,
        )
