"""What must hold at the end, when everything has calmed down."""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING, Any

from mixloop.contract import read_schedule
from mixloop.controller.core import mlflow_entries
from mixloop.controller.journal import tamper_seal
from mixloop.controller.journal.packing import unpack
from mixloop.controller.journal.schema import TABLES

from .invariants import OPEN, Violation, is_receipt

if TYPE_CHECKING:
    from .runner import Simulation


def at_end(world: Simulation) -> None:
    """Compare journal, files, trainer and tracker once the run has ended."""
    db = world._look_db()
    _sealed(world, db)
    _file(world, db)
    _acknowledged(world, db)
    _scored(world, db)
    _experiments(world, db)
    _requests(world, db)
    _replay(world, db)
    _tracker(world, db)
    _again(world, db)


def _sealed(world: Simulation, db: Any) -> None:
    alterations = db.execute(
        "SELECT at, fence FROM events WHERE kind = 'journal-altered'"
    ).fetchall()
    if alterations:
        raise Violation(
            "sealed", f"a start found other rows than were sealed: {list(map(tuple, alterations))}"
        )
    seal, rows = db.execute("SELECT seal FROM lease").fetchone()[0], tamper_seal.whole(db, TABLES)
    if seal != rows or tamper_seal.counters(db) is not None:
        raise Violation("sealed", f"the seal is {seal}, that of the rows {rows}")


def _file(world: Simulation, db: Any) -> None:
    node = world.fs.find(str(world.paths.mixture))
    newest = db.execute(
        "SELECT generation, weights FROM orders WHERE rejected IS NULL "
        "ORDER BY generation DESC LIMIT 1"
    ).fetchone()
    if newest is None:
        return
    held = json.loads(node.data) if node is not None else None
    if held is None or held["generation"] != newest[0] or held["weights"] != unpack(newest[1]):
        raise Violation("converges", f"mixture.json is not generation {newest[0]}: {held}")
    if held["fence"] != world._lease():
        raise Violation("fence-obeyed", f"the file is of fence {held['fence']}")


def _acknowledged(world: Simulation, db: Any) -> None:
    """Every order that was ever drawn from is in the journal, with where it came into force."""
    rows = {row["generation"]: row for row in db.execute("SELECT * FROM orders")}
    reached = world.trainer.step * 8
    for segment in read_schedule(world.paths.schedule).segments:
        g = segment.generation
        if g == 0 or g in world.strangers or segment.sample >= reached:
            continue
        row = rows.get(g)
        if row is None:
            raise Violation("applied-is-journaled", f"segment of generation {g}")
        if row["applied_step"] is None:
            raise Violation("acknowledged", f"generation {g} was drawn from step {segment.step} on")


def _scored(world: Simulation, db: Any) -> None:
    for step in world.trainer.made:
        row = db.execute("SELECT state FROM evaluations WHERE step = ?", (step,)).fetchone()
        recorded = db.execute("SELECT 1 FROM checkpoints WHERE step = ?", (step,)).fetchone()
        if recorded is None:
            raise Violation("converges", f"the checkpoint of step {step} was never recorded")
        if (
            row is None
            and not world.config.evals.every
            and not world.faults.counts["config-changed"]
        ):
            raise Violation("converges", f"the checkpoint of step {step} was never scored")
        if row is not None and row[0] == "running":
            raise Violation("converges", f"the checkpoint of step {step} is still being scored")
    paused = db.execute("SELECT value FROM meta WHERE key = 'paused'").fetchone()
    if paused is not None and paused[0] == "true":
        return  # the last word: a clock that went back has put a pause behind the resume
    newest = db.execute("SELECT MAX(step) FROM evaluations WHERE state = 'scored'").fetchone()[0]
    decided = db.execute("SELECT MAX(step) FROM decisions WHERE asked_by = 'policy'").fetchone()[0]
    meta = dict(db.execute("SELECT key, value FROM meta").fetchall())
    rests = meta.get("paused") == "true"  # a request that waited, behind the one to go on
    if newest is not None and not rests and (decided is None or decided < newest):
        raise Violation("converges", f"step {newest} was scored and not decided on ({decided})")


def _experiments(world: Simulation, db: Any) -> None:
    """None is still to be made, and the policy has been told of all that ended."""
    for row in db.execute("SELECT id, state FROM experiments"):
        if row["state"] in OPEN:
            raise Violation("experiment-ends", f"{row['id']} is {row['state']} at the end")
    meta = dict(db.execute("SELECT key, value FROM meta").fetchall())
    newest = db.execute("SELECT MAX(step) FROM evaluations WHERE state = 'scored'").fetchone()[0]
    known = db.execute(
        "SELECT MAX(experiments_known) FROM decisions "
        "WHERE asked_by = 'policy' AND abandoned_by IS NULL AND step = ?",
        (newest,),
    ).fetchone()[0]
    rows = db.execute("SELECT ended, asked FROM experiments WHERE abandoned_by IS NULL").fetchall()
    ended = max((row["ended"] or 0 for row in rows if not is_receipt(row)), default=0)
    if meta.get("paused") != "true" and ended > (known or 0):
        raise Violation("experiment-told", f"{ended} have ended, the policy knows of {known}")


def _requests(world: Simulation, db: Any) -> None:
    answered = {row[0]: row[1] for row in db.execute("SELECT id, verb FROM requests")}
    for name, verb in world.operators.sent.items():
        if answered.get(name) != verb:
            raise Violation("requests-once", f"{verb} {name} was never answered")
    left = [n for n in world.fs.folders.get(str(world.paths.requests), {}) if n.endswith(".json")]
    left = [n for n in left if not n.startswith(".")]
    if left:
        raise Violation("requests-once", f"{left} still wait")


def _replay(world: Simulation, db: Any) -> None:
    """State that is kept is what the requests, one after another, made of it."""
    paused, pins = False, {}
    for row in db.execute("SELECT verb, asked, state, answer FROM requests ORDER BY rowid"):
        if row["state"] != "done":
            continue
        asked = unpack(row["asked"])
        if row["verb"] in ("pause", "resume"):
            paused = row["verb"] == "pause"
        elif row["verb"] == "pin":
            pins |= asked["weights"]
        elif row["verb"] == "unpin":
            gone = asked["sources"] or list(pins)
            pins = {n: w for n, w in pins.items() if n not in gone}
    meta = dict(db.execute("SELECT key, value FROM meta").fetchall())
    if (meta.get("paused") == "true") != paused:
        raise Violation("replay", f"paused is {meta.get('paused')}, the requests say {paused}")
    kept = json.loads(meta.get("pins", "{}"))
    if kept != pins:
        raise Violation("replay", f"pinned is {kept}, the requests say {pins}")


def _again(world: Simulation, db: Any) -> None:
    """A fresh controller finds nothing to do but to put its fence on the file."""
    tables = ("decisions", "orders", "requests", "checkpoints", "evaluations", "outbox")
    tables += ("experiments",)

    def counts() -> list[int]:
        return [db.execute(f"SELECT COUNT(*) FROM {name}").fetchone()[0] for name in tables]

    before = counts()
    world.actor = "controller"
    fresh = world._start()
    if fresh is None:
        raise Violation("replay", "a fresh controller does not start")
    states = [world._turn(fresh)]
    while states[-1] == "on" and len(states) < 8:
        states.append(world._turn(fresh))
    world.actor = ""
    if states[-1] != "ended" or counts() != before:
        raise Violation("replay", f"a fresh controller: {states}, {before} became {counts()}")
    left = world.fs.folders.keys() & {
        f"{world.paths.dir}/experiments/{name}" for name in world.disk
    }
    if left or world.disk:
        raise Violation("experiment-ends", f"{sorted(world.disk)} still lie on the disk")
    world._discard(fresh)


def _tracker(world: Simulation, db: Any) -> None:
    store = world.tracker
    store.catch_up()
    if len(store.runs) != 1:
        raise Violation("tracker-unique", f"{len(store.runs)} runs")
    pending = db.execute("SELECT COUNT(*) FROM outbox WHERE done_at IS NULL").fetchone()[0]
    if pending:
        raise Violation("tracker-complete", f"{pending} entries were never sent")
    _unique("model", [model.name for model in store.models.values()])
    _unique("trace", [trace.tags.get("mixloop.decision") for trace in store.traces.values()])
    for row in db.execute("SELECT key, kind, payload FROM outbox"):
        if row["kind"] != "decision":  # each has its trace: see below
            for kind, payload in mlflow_entries.calls(row["kind"], unpack(row["payload"])):
                _arrived(store, kind, payload)
    decided = {row[0] for row in db.execute("SELECT id FROM decisions")}
    if {trace.tags.get("mixloop.decision") for trace in store.traces.values()} != decided:
        raise Violation("tracker-complete", "traces and decisions differ")
    for trace in store.traces:
        names = {span.name for span in store.spans.get(trace, {}).values()}
        if not names >= {"observe", "decide", "guard"}:
            raise Violation("tracker-complete", f"of the trace {trace} there is only {names}")
    _points_once(store, db)


def _arrived(store: Any, kind: str, payload: Any) -> None:
    """One of the things that an entry comes to."""
    if kind == "model":
        if payload["name"] not in {model.name for model in store.models.values()}:
            raise Violation("tracker-complete", f"the model {payload['name']} is missing")
    elif kind == "metrics":
        if (next(iter(payload["metrics"])), payload["tokens"]) in store.refused:
            return
        for key, value in payload["metrics"].items():
            point = (key, payload["ms"], payload["tokens"], value, None)
            if point not in store.points:
                raise Violation("tracker-complete", f"{key} at {payload['tokens']} is missing")


def _points_once(store: Any, db: Any) -> None:
    """As many points as facts: a step that was scored again after a rewind has two."""
    scored: Counter[int] = Counter()
    for row in db.execute("SELECT payload FROM outbox WHERE kind = 'model'"):
        scored[unpack(row["payload"])["tokens"]] += 1
    points: Counter[tuple[Any, ...]] = Counter()
    for key, _, step, value, model in store.points:
        if key in ("train/loss", "bits_per_byte/gsm8k"):
            points[key, step, model] += 1
        elif key == "order/generation":
            points[key, step, value] += 1
    for (key, step, which), count in points.items():
        if count > (scored[step] if key.startswith("bits") else 1):
            text = f"point {key} at {step} ({which}) is there {count} times"
            raise Violation("tracker-unique", text)


def _unique(what: str, names: list[Any]) -> None:
    doubled = sorted({name for name in names if names.count(name) > 1}, key=repr)
    if doubled:
        raise Violation("tracker-unique", f"{what} {doubled[0]} is there more than once")
