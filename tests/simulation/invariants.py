"""What must hold, whatever happens; looked at after every commit, acceptance and cycle."""

from __future__ import annotations

import json
import math
import sqlite3
from typing import TYPE_CHECKING, Any

from mixloop.contract import SCALE, quantise
from mixloop.controller.core import guard_context
from mixloop.controller.journal import Journal
from mixloop.controller.journal.packing import unpack

if TYPE_CHECKING:
    from .runner import Simulation

NAMES = {
    "simplex": "every ordered mixture is on the simplex over the run's sources",
    "guards": "what a policy moved lies inside cap, floor and max_change; pins hold",
    "ledger": "what a policy moved fits the epoch limit until the next decision",
    "one-fence": "every commit is made under the highest fence",
    "fence-obeyed": "the trainer's accepted fence never falls, nor exceeds the journal's",
    "generations-grow": "generations grow, in the journal and as accepted by the trainer",
    "numbers-last": "no fence and no generation is taken from what was forged",
    "one-decision": "decisions are numbered without gap, one per checkpoint and experiment that "
    "ended, one per order",
    "experiment-budget": "experiments never take more tokens than their budget",
    "experiment-ends": "each experiment ends once, in one state, and stays so; nothing of it is "
    "left on the disk",
    "experiment-keeps": "a decision for an experiment leaves the mixture as it is",
    "receipt-twin": "a receipt starts before its order, once that is in force, after all others",
    "one-experiment": "one at a time, and one receipt, begun on record, none after the run's end",
    "experiment-told": "a policy sees what has ended when it is asked, and is asked again for it",
    "small": "what is kept of a decision is no more than every later look can read",
    "nothing-lost": "what was committed stays: decisions, orders, applications, scores, replies",
    "journal-first": "an order is in the journal before it is in mixture.json",
    "applied-is-journaled": "what the trainer draws by is in the journal, decision and all",
    "acknowledged": "the journal says of every applied order where it came into force",
    "published-survives": "a published order survives a power loss whole",
    "way-back": "the mixture goes back to one that was in force, and a held policy moves nothing",
    "requests-once": "every request is answered once and does what it does once",
    "approval-current": "an approval that comes after another order changes nothing",
    "approval-kept": "a proposal waits on when it is asked for again within the dead-band",
    "replay": "state is what the requests made of it; a fresh controller has nothing to redo",
    "tracker-unique": "MLflow has one run, one model per checkpoint, one trace per decision",
    "tracker-complete": "MLflow has everything once it can be reached",
    "sealed": "the journal's seal is that of its rows at every start and at the end",
    "survives": "the controller goes on: no error ends it but a lost fence",
    "converges": "without faults the run ends in bounded time, all scored, decided and told",
}

STABLE = ("decision", "policy", "reason", "weights", "plan", "issued_at")
OPEN = ("planned", "running")
TOLERANCE = 1e-6
MOST_KEPT = 2**20 + 10_000  # characters of a decision's evidence and reason
FAR = 10**5  # above every fence and generation of a run of some hundred looks


class Violation(BaseException):  # so that no handler of the product takes it for trouble
    """An invariant that did not hold."""

    def __init__(self, name: str, detail: str) -> None:
        assert name in NAMES, name
        super().__init__(f"{name}: {detail}")
        self.name = name


def _charged(row: dict[str, Any]) -> int:
    if row["state"] == "failed" and row["cost"]:
        return int(row["cost"])
    begun = row["state"] in OPEN or row["attempts"]
    return int(row["planned"]) if begun and row["state"] != "refused" else 0


def _ended(row: sqlite3.Row, known: int) -> bool:
    return row["state"] == "refused" or (row["ended"] is not None and row["ended"] <= known)


def is_receipt(row: Any) -> bool:
    return bool(unpack(row["asked"]).get("receipt"))


class Watch:
    """Remembers what was committed and accepted, and compares."""

    def __init__(self, world: Simulation) -> None:
        self._world = world
        self._decided = 0
        self._steps: set[tuple[int, int]] = set()  # of policies' decisions, experiments known
        self._experiments: dict[str, dict[str, Any]] = {}
        self._orders: dict[int, dict[str, Any]] = {}
        self._scored: set[int] = set()
        self._rewinds = 0
        self._taken_back: set[tuple[int, int, int]] = set()
        self._requests: dict[str, tuple[Any, ...]] = {}
        self._acted: set[str] = set()
        self._outbox = 0
        self._accepted = (0, 0)
        self.published: set[bytes] = set()
        self.last_published = (0, 0)

    # -- the journal ------------------------------------------------------

    def committed(self, journal: Journal, lease: int) -> None:
        """After a commit that began under ``lease``, seen through the connection that made it."""
        db = journal._db
        if lease != journal.fence:
            raise Violation("one-fence", f"fence {journal.fence} wrote under the lease of {lease}")
        if lease > FAR:
            raise Violation("numbers-last", f"the lease is {lease}")
        cut = self._new_cut(db)
        self._see_orders(db, cut)
        self._see_experiments(db, journal.fence or 0)
        self._see_decisions(db, journal.fence or 0)
        self._see_scores(db, cut)
        self._see_requests(db)
        self._see_outbox(db)

    def _new_cut(self, db: sqlite3.Connection) -> int | None:
        """The first sample of the branch that a rewind, noted in this commit, set apart."""
        incarnations = [
            unpack(row[0])
            for row in db.execute(
                "SELECT detail FROM events WHERE kind = 'incarnation' ORDER BY seq"
            )
        ]
        rewound = [incarnation for incarnation in incarnations if incarnation["rewound"]]
        fresh, self._rewinds = rewound[self._rewinds :], len(rewound)
        if not fresh:
            return None
        rows = db.execute(
            "SELECT step, experiments_known FROM decisions "
            "WHERE asked_by = 'policy' AND abandoned_by IS NULL"
        )
        self._steps = {tuple(row) for row in rows}
        self._taken_back = {
            (order["generation"], order["step"], order["sample"])
            for cut in fresh
            for order in cut["applied_before"]
        }
        return int(min(cut["sample"] for cut in fresh))

    def _see_orders(self, db: sqlite3.Connection, cut: int | None) -> None:
        rows = {row["generation"]: row for row in db.execute("SELECT * FROM orders")}
        for generation, before in self._orders.items():
            row = rows.get(generation)
            if row is None:
                raise Violation("nothing-lost", f"order {generation} is gone from the journal")
            changed = [name for name in STABLE if row[name] != before[name]]
            kept = ["published_at"]
            place = (generation, before["applied_step"], before["applied_sample"])
            if cut is None or place not in self._taken_back:
                kept += ["applied_step", "applied_sample"]
            changed += [n for n in kept if before[n] is not None and row[n] != before[n]]
            if changed:
                raise Violation("nothing-lost", f"order {generation} changed its {changed}")
        newest = max(self._orders, default=0)
        for generation, row in rows.items():
            if generation not in self._orders:
                if generation <= newest:
                    raise Violation("generations-grow", f"{generation} came after {newest}")
                if generation > FAR:
                    raise Violation("numbers-last", f"{generation} came after {newest}")
                self._simplex(unpack(row["weights"]), f"order {generation}")
            self._orders[generation] = dict(row)

    def _see_decisions(self, db: sqlite3.Connection, fence: int) -> None:
        for row in db.execute(
            "SELECT * FROM decisions WHERE seq > ? ORDER BY seq", (self._decided,)
        ):
            if row["seq"] != self._decided + 1 or row["id"] != f"d-{row['seq']:06d}":
                raise Violation("one-decision", f"{row['id']} follows {self._decided}")
            self._decided = row["seq"]
            kept = len(json.dumps(unpack(row["evidence"]))) + len(row["reason"])
            if kept > MOST_KEPT:
                raise Violation("small", f"{row['id']} keeps {kept:,} characters")
            if row["fence"] != fence:
                raise Violation("one-fence", f"{row['id']} is of fence {row['fence']}, not {fence}")
            if row["asked_by"] == "policy":
                place = (row["step"], row["experiments_known"])
                if place in self._steps:
                    raise Violation("one-decision", f"step {row['step']} was decided on twice")
                self._steps.add(place)
                self._told(db, row)
            self._one_order(row)
            self._guarded(db, row)
            self._went_back(db, row)
            self._operated(db, row)
            self._kept_waiting(db, row)
        count = db.execute("SELECT COUNT(*) FROM decisions").fetchone()[0]
        if count != self._decided:
            raise Violation("nothing-lost", f"{count} decisions of {self._decided}")

    def _one_order(self, row: sqlite3.Row) -> None:
        ordered = [g for g, order in self._orders.items() if order["decision"] == row["id"]]
        wanted = [] if row["generation"] is None else [row["generation"]]
        if ordered != wanted:
            raise Violation(
                "one-decision", f"{row['id']} orders {wanted}, the journal has {ordered}"
            )
        if ordered and unpack(row["weights_after"]) != unpack(self._orders[ordered[0]]["weights"]):
            raise Violation("one-decision", f"{row['id']} and its order differ in their weights")

    # -- experiments ------------------------------------------------------

    def _see_experiments(self, db: sqlite3.Connection, fence: int) -> None:
        rows = {row["id"]: dict(row) for row in db.execute("SELECT * FROM experiments")}
        ended = sorted(row["ended"] for row in rows.values() if row["ended"] is not None)
        if ended != list(range(1, len(ended) + 1)):
            raise Violation("experiment-ends", f"they ended as {ended}")
        for name, before in self._experiments.items():
            self._went_on(before, rows.get(name), db)
        taken = sum(_charged(row) for row in rows.values())
        for name, row in rows.items():
            if name in self._experiments:
                continue
            if row["state"] not in ("planned", "refused"):
                raise Violation("experiment-ends", f"{name} begins as {row['state']}")
            budget = self._world.config_of(fence).experiment_tokens
            if row["state"] == "planned" and taken > budget:
                raise Violation("experiment-budget", f"{name}: {taken} of {budget} tokens")
            self._kept_mixture(db, row)
        made = [is_receipt(row) for row in rows.values() if row["state"] in OPEN]
        if len(made) > len(set(made)):
            raise Violation("one-experiment", "two are to be made")
        self._experiments = rows

    def _went_on(
        self, before: dict[str, Any], now: dict[str, Any] | None, db: sqlite3.Connection
    ) -> None:
        if now is None:
            raise Violation("nothing-lost", f"{before['id']} is gone from the journal")
        name, was, state = now["id"], before["state"], now["state"]
        if was not in OPEN:
            changed = [k for k in now if now[k] != before[k] and k != "abandoned_by"]
            if changed:
                raise Violation("experiment-ends", f"{name}, {was}, changed its {changed}")
            return
        if state == "planned" and was == "running":
            raise Violation("experiment-ends", f"{name} was begun and is planned")
        if (state == "done") != (now["result"] is not None):
            raise Violation("experiment-ends", f"{name} is {state}, its result {now['result']}")
        if (state in ("done", "failed")) != (now["ended"] is not None):
            raise Violation("experiment-ends", f"{name} is {state}, ended {now['ended']}")
        if state == "done" and now["cost"] > now["planned"]:
            raise Violation("experiment-budget", f"{name} took {now['cost']} of {now['planned']}")
        if now["attempts"] > before["attempts"]:
            over = db.execute("SELECT 1 FROM events WHERE kind = 'ended'").fetchone()
            if over is not None:
                raise Violation("one-experiment", f"{name} begins after the run's end")

    def _kept_mixture(self, db: sqlite3.Connection, row: dict[str, Any]) -> None:
        query = "SELECT * FROM decisions WHERE id = ?"
        decision = db.execute(query, (row["decision"],)).fetchone()
        before, after = unpack(decision["weights_before"]), unpack(decision["weights_after"])
        if is_receipt(row):
            twin = unpack(row["asked"])["branches"]
            if decision["generation"] is None or decision["asked_by"] == "controller":
                raise Violation("receipt-twin", f"{row['id']} is of no change of anybody's")
            if twin != [before]:
                raise Violation("receipt-twin", f"{row['id']} goes on as {twin}, not {before}")
            return
        if decision["generation"] is not None or before != after:
            raise Violation("experiment-keeps", f"{decision['id']}: {before} became {after}")
        verdict = "refused" if row["state"] == "refused" else "experiment"
        if decision["verdict"] != verdict:
            raise Violation("experiment-keeps", f"{decision['id']} is {decision['verdict']}")
        asked = unpack(row["asked"])
        if row["state"] == "planned":
            for weights in asked["branches"]:
                self._simplex(weights, f"a branch of {row['id']}")
            if asked["weights"] != before:
                raise Violation("experiment-keeps", f"{row['id']}: the control is {asked}")

    def experiment_starts(self, spec: Any, db: sqlite3.Connection) -> None:
        """Just before its process is started."""
        row = db.execute("SELECT * FROM experiments WHERE id = ?", (spec.id,)).fetchone()
        if row is None or row["state"] != "running" or not row["attempts"]:
            raise Violation("one-experiment", f"{spec.id} begins without being on record")
        if spec.checkpoint.step != row["step"]:
            raise Violation("one-experiment", f"{spec.id} begins at step {spec.checkpoint.step}")
        if is_receipt(row):
            self._begins_as_twin(row, spec.checkpoint, db)

    def _begins_as_twin(self, row: Any, checkpoint: Any, db: sqlite3.Connection) -> None:
        order = db.execute("SELECT * FROM orders WHERE decision = ?", (row["decision"],)).fetchone()
        if order["applied_tokens"] is None or order["applied_tokens"] < checkpoint.tokens:
            raise Violation("receipt-twin", f"{row['id']} begins at {checkpoint.tokens} tokens")
        twin = unpack(row["asked"])["weights"]
        if any(abs(twin[name] - checkpoint.weights.get(name, 0.0)) > 1e-3 for name in twin):
            raise Violation("receipt-twin", f"{row['id']} begins on {checkpoint.weights}")
        rows = db.execute("SELECT * FROM experiments").fetchall()
        first = [e["id"] for e in rows if e["state"] in OPEN and not is_receipt(e)]
        if first:
            raise Violation("receipt-twin", f"{row['id']} begins before {first}")

    def _told(self, db: sqlite3.Connection, row: sqlite3.Row) -> None:
        """What the policy says that it saw is what had ended, and that what hadn't still ran."""
        seen = unpack(row["evidence"]).get("experiments")
        if seen is None:  # a policy that saw nothing, or that was not heard
            return
        known = db.execute(
            "SELECT e.id, e.state, e.ended, e.asked, d.seq FROM experiments e JOIN decisions d "
            "ON d.id = e.decision WHERE e.abandoned_by IS NULL AND e.state <> 'abandoned'"
        ).fetchall()
        wanted = [
            [e["id"], e["state"] if _ended(e, row["experiments_known"]) else "running"]
            for e in known
            if e["seq"] < row["seq"] and not is_receipt(e)
        ]
        done = [
            e["id"]
            for e in known
            if is_receipt(e) and e["state"] == "done" and _ended(e, row["experiments_known"])
        ]
        receipts = unpack(row["evidence"])["receipts"]
        if receipts != done:
            raise Violation("experiment-told", f"{row['id']} saw {receipts}, there were {done}")
        left = {e[0] for e in db.execute("SELECT id FROM experiments WHERE state = 'abandoned'")}
        if [one for one in seen if one[0] not in left] != wanted:
            raise Violation("experiment-told", f"{row['id']} saw {seen}, there were {wanted}")

    def _see_scores(self, db: sqlite3.Connection, cut: int | None) -> None:
        rows = db.execute("SELECT step FROM evaluations WHERE state = 'scored'")
        scored = {row[0] for row in rows}
        gone = self._scored - scored
        if gone and cut is not None:  # of a branch that was left: set apart, and kept
            apart = db.execute(
                "SELECT e.step FROM evaluations e JOIN checkpoints c USING (step) "
                "WHERE e.state = 'skipped' AND e.scorecard IS NOT NULL AND c.sample > ?",
                (cut,),
            )
            gone -= {row[0] for row in apart}
        if gone:
            raise Violation("nothing-lost", f"scores of {sorted(gone)} are gone")
        self._scored = scored

    def _see_requests(self, db: sqlite3.Connection) -> None:
        rows = db.execute("SELECT id, state, answer, decision FROM requests")
        answers = {row["id"]: tuple(row)[1:] for row in rows}
        for name, before in self._requests.items():
            if answers.get(name) != before:
                raise Violation("nothing-lost", f"the answer to {name} changed")
        self._requests = answers

    def _see_outbox(self, db: sqlite3.Connection) -> None:
        count = db.execute("SELECT COUNT(*) FROM outbox").fetchone()[0]
        if count < self._outbox:
            raise Violation("nothing-lost", f"the outbox shrank from {self._outbox} to {count}")
        self._outbox = count

    # -- mixtures ------------------------------------------------------

    def _simplex(self, weights: dict[str, float], what: str) -> None:
        sound = all(math.isfinite(w) and 0 <= w <= 1 + TOLERANCE for w in weights.values())
        if not sound or abs(math.fsum(weights.values()) - 1) > TOLERANCE:
            raise Violation("simplex", f"{what}: {weights}")
        if not set(weights) <= set(self._world.config.sources):
            raise Violation("simplex", f"{what} names {sorted(weights)}")

    def _guarded(self, db: sqlite3.Connection, row: sqlite3.Row) -> None:
        evidence = unpack(row["evidence"])
        by_policy = row["asked_by"] == "policy" or evidence.get("approves")
        if row["verdict"] != "intervene" or not by_policy:
            return
        config = self._world.config_of(row["fence"])
        guards, limits = config.guards, config.trainer.limits
        after, before = unpack(row["weights_after"]), unpack(row["weights_before"])
        notes = unpack(row["guards"])
        pinned = db.execute("SELECT value FROM meta WHERE key = 'pins'").fetchone()
        pins = json.loads(pinned[0]) if pinned else {}
        ledger = guards.max_epochs is not None
        for name, share in pins.items():
            if name in after and abs(after[name] - share) > 1e-6 and not ledger:
                raise Violation("guards", f"{row['id']}: {name} is pinned at {share}: {after}")
        for name, share in after.items():
            if name in pins:
                continue
            if share > min(guards.cap, limits.cap) + TOLERANCE:
                raise Violation("guards", f"{row['id']}: {name} at {share}, cap {guards.cap}")
            if 0 < share < max(guards.floor, limits.floor) - TOLERANCE and not ledger:
                raise Violation("guards", f"{row['id']}: {name} at {share}, floor {guards.floor}")
        change = sum(abs(after.get(n, 0) - before.get(n, 0)) for n in {*after, *before}) / 2
        most = min(guards.max_change, limits.max_change)
        flagged = any(n["guard"] == "trust region" and n["action"] == "flagged" for n in notes)
        moving = len(unpack(row["plan"])) > 1 or self._planned(row["against_generation"])
        by_guards = self._orders[row["generation"]]["policy"] == "guards"
        if change > most + 1e-4 and not (flagged or moving or pins or by_guards):
            raise Violation("guards", f"{row['id']} changes {change:.4f}, max_change {most}")
        if ledger:
            self._ledger(row, config, after)

    def _went_back(self, db: sqlite3.Connection, row: sqlite3.Row) -> None:
        evidence = unpack(row["evidence"])
        if evidence.get("rule") == "regression":
            scored = db.execute("SELECT weights FROM checkpoints").fetchall()
            target = unpack(row["weights_proposed"])
            known = [unpack(each[0]) for each in scored]
            apart = min(sum(abs(each.get(n, 0) - target[n]) for n in target) for each in known)
            if row["asked_by"] != "controller" or apart > TOLERANCE:
                raise Violation("way-back", f"{row['id']} goes to {target}, never in force")
        elif row["asked_by"] == "policy" and row["generation"] is not None:
            held = self._held(db, row["seq"])
            if held and self._orders[row["generation"]]["policy"] != "guards":
                raise Violation("way-back", f"{row['id']} moves what is held since {held}")

    def _held(self, db: sqlite3.Connection, before: int) -> str:
        """The decision that the policy is held since, as the journal has it; empty for none."""
        held = ""
        query = "SELECT * FROM decisions WHERE seq < ? AND abandoned_by IS NULL ORDER BY seq"
        for row in db.execute(query, (before,)).fetchall():
            evidence = unpack(row["evidence"])
            if evidence.get("rule") == "regression":
                held = row["id"] if evidence["state"] == "held" else ""
            elif "operator" in evidence and row["verdict"] in ("intervene", "hold"):
                held = ""
        return held

    def _planned(self, generation: int) -> bool:
        order = self._orders.get(generation)
        return order is not None and len(unpack(order["plan"])) > 1

    def _ledger(self, row: sqlite3.Row, config: Any, after: dict[str, float]) -> None:
        """Against what was really drawn, less what the controller could not know yet."""
        world = self._world
        drawn, tokens = world.seen_ledger(row["fence"])
        lead = min(guard_context.switching_lead(config, tokens), max(0, config.budget - tokens))
        every = config.evals.every or config.trainer.checkpoint_every or config.budget
        ahead = min(every, config.budget - tokens - lead)
        before = unpack(row["weights_before"])
        for name, share in after.items():
            drawn_then = drawn[name] + lead * before.get(name, 0.0)
            room = config.guards.max_epochs * world.sizes[name] - drawn_then
            slack = 200.0  # tokens: rounding
            if self._planned(row["against_generation"]):
                slack += lead  # which may be drawn by the plan's next mixture already
            if share > TOLERANCE and share * ahead > max(room, 0) + slack:
                raise Violation("ledger", f"{row['id']}: {name} at {share:.3f} has room {room:.0f}")

    # -- operators ------------------------------------------------------

    def _operated(self, db: sqlite3.Connection, row: sqlite3.Row) -> None:
        evidence = unpack(row["evidence"])
        request = evidence.get("operator", {}).get("request")
        if request is None:
            return
        if request in self._acted:
            raise Violation("requests-once", f"{request} made a second decision, {row['id']}")
        self._acted.add(request)
        approves = evidence.get("approves")
        if approves is None:
            return
        asked = db.execute(
            "SELECT against_generation FROM decisions WHERE id = ?", (approves,)
        ).fetchone()[0]
        between = [
            g
            for g, order in self._orders.items()
            if asked < g != row["generation"] and order["rejected"] is None
        ]
        if between:
            text = f"{approves}, proposed against {asked}, was approved over {between}"
            raise Violation("approval-current", text)

    def _kept_waiting(self, db: sqlite3.Connection, row: sqlite3.Row) -> None:
        if row["verdict"] != "awaiting-approval":
            return
        for (ended,) in db.execute(
            "SELECT decision FROM approvals WHERE state = 'superseded' AND made = ?", (row["id"],)
        ).fetchall():
            earlier = db.execute("SELECT * FROM decisions WHERE id = ?", (ended,)).fetchone()
            rules = self._world.config_of(row["fence"])
            both = [unpack(one["weights_proposed"]) for one in (earlier, row)]
            names = {*both[0], *both[1]}
            apart = sum(abs(both[0].get(n, 0) - both[1].get(n, 0)) for n in names) / 2
            same = earlier["against_generation"] == row["against_generation"]
            planned = unpack(earlier["plan"]) or unpack(row["plan"])
            left = earlier["abandoned_by"] is not None
            if same and not planned and not left and apart <= rules.guards.dead_band:
                raise Violation("approval-kept", f"{row['id']} ended {ended}, {apart:.2g} away")

    # -- files and trainer ------------------------------------------------------

    def publishing(self, order: Any, db: sqlite3.Connection) -> None:
        """Just before the file is written."""
        row = db.execute(
            "SELECT weights, decision FROM orders WHERE generation = ?", (order.generation,)
        ).fetchone()
        if row is None or unpack(row[0]) != dict(order.weights) or row[1] != order.decision:
            raise Violation("journal-first", f"generation {order.generation} is not in the journal")

    def accepted(self, view: Any, db: sqlite3.Connection, *, rewound: bool) -> None:
        """After the trainer looked: what it accepted and what it will draw by."""
        fence, generation = view.accepted
        if max(view.accepted) > FAR:
            raise Violation("numbers-last", f"the trainer follows {view.accepted}")
        before, self._accepted = self._accepted, view.accepted
        if rewound:
            return
        if fence < before[0]:
            raise Violation("fence-obeyed", f"fence fell from {before[0]} to {fence}")
        if generation < before[1]:
            raise Violation("generations-grow", f"accepted {generation} after {before[1]}")
        if (fence, generation) == before or generation in self._world.strangers:
            return
        lease = db.execute("SELECT fence FROM lease").fetchone()
        if lease is None or fence > lease[0]:
            raise Violation("fence-obeyed", f"the trainer follows {fence}, the lease is {lease}")
        row = db.execute("SELECT * FROM orders WHERE generation = ?", (generation,)).fetchone()
        if row is None:
            raise Violation(
                "applied-is-journaled", f"generation {generation} is not in the journal"
            )
        decisions = db.execute(
            "SELECT COUNT(*) FROM decisions WHERE id = ? AND generation = ?",
            (row["decision"], generation),
        ).fetchone()[0]
        if decisions != 1:
            raise Violation(
                "applied-is-journaled", f"generation {generation} has {decisions} decisions"
            )
        switch = view.pending or view.in_force
        if switch.generation == generation:
            self._drawn_by(row, switch.weights)

    def _drawn_by(self, row: sqlite3.Row, units: tuple[int, ...]) -> None:
        """What is drawn by is the order's mixture, or a later one of its plan."""
        names = list(self._world.config.sources)
        asked = [unpack(row["weights"]), *(w for _, w in unpack(row["plan"]))]
        for weights in asked:
            wanted = quantise({n: weights.get(n, 0.0) for n in names})
            if all(abs(wanted[n] - u) <= 2 for n, u in zip(names, units, strict=True)):
                return
        shown = {n: u / SCALE for n, u in zip(names, units, strict=True)}
        raise Violation("applied-is-journaled", f"{row['generation']}: {asked}, drawn by {shown}")

    def after_power_loss(self, held: bytes | None, *, foreign: bool) -> None:
        """What ``mixture.json`` holds once power is back."""
        if foreign:
            return
        if held is None:
            if self.last_published != (0, 0):
                raise Violation("published-survives", "mixture.json is gone")
            return
        if held not in self.published:
            raise Violation("published-survives", f"{len(held)} bytes that nobody published whole")
        order = json.loads(held)
        if (order["fence"], order["generation"]) < self.last_published:
            raise Violation("published-survives", f"{order['generation']} < {self.last_published}")

    def newest(self) -> int:
        """The newest generation in the journal."""
        return max(self._orders, default=0)
