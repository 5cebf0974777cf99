"""``mixloop status``: how a run stands, as one JSON object."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from mixloop.common.types import Json
from mixloop.contract import RunPaths, read_status
from mixloop.controller.journal import CheckpointState, Journal, queries, unreadable_files

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


def status_json(standing: RunStanding) -> Json:
    """The JSON object of ``mixloop status --json``."""
    return {
        "run": standing.run,
        "trainer": standing.trainer.to_json(),
        "mixture": _mixture(standing),
        "ledger": _ledger(standing),
        "benchmarks": _benchmarks(standing),
        "steering": {name: asdict(steering) for name, steering in standing.steering.items()},
        "skipped": _skipped(standing.skipped),
        "pending": _pending(standing),
        "operators": _operators(standing),
        "tracking": _tracking(standing),
        "controller": None if standing.controller is None else asdict(standing.controller),
        "unreadable": [asdict(file) for file in standing.unreadable],
    }


def _mixture(standing: RunStanding) -> Json:
    asked, applied = standing.asked, None
    if standing.status is not None:
        in_force = standing.status.in_force
        applied = {**asdict(in_force), "weights": dict(in_force.weights)}
    return {
        "asked": None if asked is None else _without_none(asdict(asked)),
        "applied": applied,
    }


def _without_none(values: Json) -> Json:
    return {key: value for key, value in values.items() if value is not None}


def _ledger(standing: RunStanding) -> Json:
    shown = ("tokens", "epochs", "unique_tokens", "loss")
    return {
        source.name: {key: getattr(source, key) for key in shown} for source in standing.sources
    }


def _benchmarks(standing: RunStanding) -> Json:
    """The newest score of every benchmark, and why the newest checkpoint lacks one."""
    if not standing.scores:
        return {}
    newest = standing.scores[-1]
    at = {"step": newest.step, "tokens": newest.tokens}
    shown = {"status", "reason", "metrics", "data"}
    return {
        name: at | score.model_dump(mode="json", include=shown)
        for name, score in newest.benchmarks.items()
    }


def skipped(journal: Journal | None) -> list[Json]:
    """Checkpoints that were passed over, oldest first, each with its reason."""
    return [] if journal is None else _skipped(queries.checkpoints_in(journal, "skipped"))


def _skipped(rows: Sequence[CheckpointState]) -> list[Json]:
    return [{"step": row.step, "tokens": row.tokens, "reason": row.reason} for row in rows]


def _pending(standing: RunStanding) -> Json:
    switch = standing.status.pending if standing.status is not None else None
    return {
        "orders": [
            {
                "generation": order.generation,
                "decision": order.decision,
                "published_at": order.published_at,
            }
            for order in standing.orders
        ],
        "switch": None if switch is None else asdict(switch),
        "scoring": list(standing.scoring),
    }


def _operators(standing: RunStanding) -> Json:
    people = standing.operators
    awaiting = [
        {"id": decision.id, "tokens": decision.tokens, "why": approval.why}
        for decision, approval in people.awaiting
    ]
    return {
        "paused": people.paused,
        "pins": dict(people.pins),
        "awaiting": awaiting,
        "requests": people.requests,
    }


def _tracking(standing: RunStanding) -> Json:
    tracking = standing.tracking
    return {
        "waiting": tracking.waiting,
        "sent": tracking.sent,
        "last_error": tracking.last_error,
    }
