"""``mixloop status``: how a run stands, as one JSON object."""

from __future__ import annotations

from dataclasses import asdict

from mixloop.common.types import Json
from mixloop.contract import RunPaths, read_status
from mixloop.controller.journal import Journal, queries, unreadable_files

from .decision_history import approval_json
from .run_standing import RunStanding, run_standing, scores_of


def look(paths: RunPaths, journal: Journal | None) -> RunStanding:
    """How a run stands, by one look, with the newest scores."""
    newest = queries.scored(journal, newest=1) if journal is not None else ()
    return run_standing(
        paths,
        journal,
        read_status(paths.status).value,
        unreadable=unreadable_files.find_unreadable(paths, journal),
        scores=[scores_of(row) for row in newest],
    )


def status(paths: RunPaths, journal: Journal | None) -> Json:
    """How a run stands, as ``mixloop status --json`` prints it."""
    return status_json(look(paths, journal))


def skipped(journal: Journal | None) -> list[Json]:
    """Checkpoints that were passed over, oldest first, each with its reason."""
    rows = queries.checkpoints_in(journal, "skipped") if journal is not None else ()
    return [_pick(row, "step", "tokens", "reason") for row in rows]


def status_json(standing: RunStanding) -> Json:
    """The JSON object of ``mixloop status --json``."""
    heartbeat, people = standing.status, standing.operators
    switch = heartbeat.pending if heartbeat is not None else None
    return {
        "run": standing.run,
        "trainer": standing.trainer.to_json(),
        "mixture": _mixtures(standing),
        "ledger": {
            source.name: _pick(source, "tokens", "epochs", "unique_tokens", "loss")
            for source in standing.sources
        },
        "benchmarks": _benchmarks(standing),
        "steering": {name: asdict(steering) for name, steering in standing.steering.items()},
        "skipped": [_pick(row, "step", "tokens", "reason") for row in standing.skipped],
        "unscored": None if standing.unscored is None else asdict(standing.unscored),
        "pending": {
            "orders": [
                _pick(order, "generation", "decision", "published_at") for order in standing.orders
            ],
            "switch": None if switch is None else asdict(switch),
            "scoring": list(standing.scoring),
        },
        "operators": {
            "paused": people.paused,
            "pins": dict(people.pins),
            "awaiting": [
                approval_json(decision, approval, standing.approval_timeout)
                | _pick(decision, "id", "tokens", "reason")
                for decision, approval in people.awaiting
            ],
            "requests": people.requests,
        },
        "experiments": standing.experiments.to_json(),
        "tracking": _pick(
            standing.tracking, "waiting", "sent", "refused", "last_error", "last_refusal"
        ),
        "controller": None if standing.controller is None else asdict(standing.controller),
        "unreadable": [asdict(file) for file in standing.unreadable],
    }


def _pick(record: object, *names: str) -> Json:
    return {name: getattr(record, name) for name in names}


def _mixtures(standing: RunStanding) -> Json:
    asked = applied = None
    if standing.asked is not None:
        asked = _pick(standing.asked, "generation", "weights")
        if standing.asked.decision is not None:
            asked["decision"] = standing.asked.decision
    if standing.status is not None:
        applied = asdict(standing.status.in_force)
    return {"asked": asked, "applied": applied}


def _benchmarks(standing: RunStanding) -> Json:
    """The newest score of every benchmark, and why the newest checkpoint lacks one."""
    if not standing.scores:
        return {}
    newest = standing.scores[-1]
    shown = {"status", "reason", "metrics", "data"}
    return {
        name: _pick(newest, "step", "tokens") | score.model_dump(mode="json", include=shown)
        for name, score in newest.benchmarks.items()
    }
