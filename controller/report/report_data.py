"""``mixloop report``: a run as one HTML page that loads nothing and runs nothing.

The facts come from the journal and the trainer's own files; this module gathers them, the page's
words and looks are in :mod:`mixloop.controller.report.page`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mixloop.common.errors import BadInput
from mixloop.common.files import write_atomic
from mixloop.common.types import Json
from mixloop.contract import RunPaths, ScheduleError, read_schedule, read_status
from mixloop.controller import views
from mixloop.controller.decisions import observation_builder
from mixloop.controller.journal import Journal
from mixloop.policies.interface import Evaluation

FOLLOWED = 2  # evaluations after an intervention whose paired effect is shown


def write_report(target: Path, out: Path | None) -> Path:
    """Write the report of a run; by default ``report.html`` in its folder.

    Raises:
        BadInput: no such run, nothing to tell of it yet, or a place that can't be written.
    """
    from .page import page

    found = gather(target)
    place = out or Path(found["folder"]) / "report.html"
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        if out is None:  # in the run folder, where no link is followed
            write_atomic(place, page(found).encode())
        else:
            place.write_text(page(found), encoding="utf-8")
    except OSError as error:
        raise BadInput(f"{place}: not writable: {error.strerror or error}") from None
    return place


def write_artifacts(target: Path, folder: Path) -> list[Path]:
    """``report.html`` and, once there is something to draw, ``run.png``, in ``folder``.

    Raises:
        BadInput: no such run, or nothing to tell of it yet.
    """
    from .page import draw_run, page

    found = gather(target)
    out = folder / "report.html"
    out.write_text(page(found), encoding="utf-8")
    return [out, *([draw_run(found, folder / "run.png")] if found["segments"] else [])]


def gather(target: Path) -> Json:
    """Everything the page shows, as plain JSON values.

    Raises:
        BadInput: no such run, or one in which neither trainer nor controller did anything yet.
    """
    paths, journal = views.open_run(target)
    beat = read_status(paths.status).value
    if journal is None or beat is None:
        missing = "controller has run" if journal is None else "trainer has started"
        raise BadInput(f"{target}: no {missing} here yet, so there is nothing to report")
    params = _params(journal)
    scored = observation_builder.evaluations(journal)
    limit = _max_epochs(params)
    decisions = views.history(journal)
    for entry in decisions:
        entry["followed"] = followed(entry, scored)
    try:
        opened = read_schedule(paths.schedule).latest_open
    except (OSError, ScheduleError):
        opened = None
    length = opened.sequence_length if opened is not None else 1
    return {
        "folder": str(paths.dir),
        "run": beat.run,
        "policy": params.get("policy", "-"),
        "budget": beat.budget,
        "max_epochs": limit,
        "status": views.status(paths, journal),
        "segments": views.segments(paths, length),
        "evaluations": views.benchmarks(journal),
        "decisions": decisions,
        "ledger": ledger(paths, journal, limit),
        "drawn": drawn(journal, params),
        "unscored": unscored(journal),
        "alarms": alarms(journal),
    }


def _params(journal: Journal) -> Json:
    row = journal.row("SELECT detail FROM events WHERE kind = 'started' ORDER BY seq DESC LIMIT 1")
    return dict(row["detail"].get("params", {})) if row is not None else {}


def _max_epochs(params: Mapping[str, Any]) -> float | None:
    guards = json.loads(params.get("guards", "{}"))
    found = guards.get("max_epochs")
    return None if found is None else float(found)


def followed(entry: Json, scored: Sequence[Evaluation]) -> list[Json]:
    """What the benchmarks did after an intervention: the last checkpoint before it came into force
    against each of the next two, paired over the items they share."""
    if entry["applied_tokens"] is None:
        return []
    before = [e for e in scored if e.tokens <= entry["applied_tokens"]]
    after = [e for e in scored if e.tokens > entry["applied_tokens"]][:FOLLOWED]
    if not before:
        return []
    found = []
    for new in after:
        effects = observation_builder.effects(before[-1], new)
        if effects:
            found.append({"step": new.step, "tokens": new.tokens, "benchmarks": effects})
    return found


def ledger(paths: RunPaths, journal: Journal, limit: float | None) -> list[Json]:
    """Each source now and projected: epochs so far, at the end of the budget on the mixture in
    force, and the tokens of the run at which it reaches the cap (None: not within the budget)."""
    beat = read_status(paths.status).value
    assert beat is not None
    left = max(0, beat.budget - beat.tokens)
    rows = []
    for name, source in beat.sources.items():
        share = beat.in_force.weights.get(name, 0.0)
        per_token = share / source.unique_tokens
        reach = None
        if limit is not None and per_token > 0:
            at = beat.tokens + max(0.0, limit - source.epochs) / per_token
            reach = int(at) if at <= beat.budget else None
        rows.append(
            {
                "source": name,
                "weight": share,
                "unique_tokens": source.unique_tokens,
                "tokens": source.tokens,
                "epochs": source.epochs,
                "at_the_end": source.epochs + per_token * left,
                "cap_at": reach,
                "loss": source.loss,
            }
        )
    return rows


def drawn(journal: Journal, params: Mapping[str, Any]) -> list[Json]:
    """Epochs of each source at every checkpoint."""
    prefix = "unique_tokens."
    sizes = {k.removeprefix(prefix): int(v) for k, v in params.items() if k.startswith(prefix)}
    return [
        {
            "tokens": row["tokens"],
            "epochs": {n: row["drawn"][n] / size for n, size in sizes.items() if n in row["drawn"]},
        }
        for row in journal.rows("SELECT tokens, drawn FROM checkpoints ORDER BY tokens")
        if row.get("drawn")
    ]


def unscored(journal: Journal) -> list[Json]:
    """Checkpoints without a score, and benchmarks missing from one, each with its reason."""
    rows = journal.rows(
        "SELECT c.step, c.tokens, e.state, e.reason, e.scorecard FROM checkpoints c "
        "LEFT JOIN evaluations e USING (step) ORDER BY c.step"
    )
    found = []
    for row in rows:
        at = {"step": row["step"], "tokens": row["tokens"]}
        if row["state"] is None:
            found.append({**at, "what": "checkpoint", "why": "not scored"})
        elif row["state"] != "scored":
            why = row["reason"] or "being scored"
            found.append({**at, "what": "checkpoint", "why": why})
        else:
            missing = row["scorecard"]["benchmarks"].items()
            found += [
                {**at, "what": name, "why": score["reason"]}
                for name, score in missing
                if score["status"] != "ok"
            ]
    return found


ALARMS = (
    *("stranger", "order-rejected", "trouble", "tracking-failed", "tracking-refused"),
    "journal-altered",
)


def alarms(journal: Journal) -> list[Json]:
    """What a reviewer has to know of besides decisions, equal ones counted, newest last."""
    marks = ", ".join("?" * len(ALARMS))
    rows = journal.rows(f"SELECT * FROM events WHERE kind IN ({marks}) ORDER BY seq", *ALARMS)
    counted: dict[tuple[str, str], Json] = {}
    for row in rows:
        detail = row["detail"]
        said = str(detail.get("reason") or detail.get("error") or detail.get("found") or "")
        one = counted.setdefault((row["kind"], said), {"kind": row["kind"], "what": said, "n": 0})
        one["n"] += 1
        one["at"] = row["at"]
    return list(counted.values())
