"""People, and what lies in ``requests/``."""

from __future__ import annotations

import json
import sqlite3
from typing import TYPE_CHECKING, Any

from mixloop.contract import requests

if TYPE_CHECKING:
    from .runner import Simulation


class Operators:
    """Requests at any time, of all kinds, some of them rubbish."""

    def __init__(self, world: Simulation) -> None:
        self._world = world
        self.sent: dict[str, str] = {}  # id: verb
        self.rubbish = 0

    def act(self) -> None:
        world = self._world
        rng, faults = world.rng, world.faults
        if rng.random() < 0.03:
            self._send(*self._draw())
        if rng.random() < 0.2:
            self._answer()
        if faults.draw("request-rubbish"):
            self._rubbish()
        if faults.draw("request-again"):
            self._again()

    def _answer(self) -> None:
        """Somebody looks whether a proposal waits for them."""
        waiting = self._row("SELECT decision FROM approvals WHERE state = 'waiting'")
        if waiting is not None:
            slow = self._world.seed % 4 == 3  # people who answer late, when others were faster
            often = ["approve", "set"] if slow else ["approve"] * 3 + ["reject", "set"]
            verb = self._world.rng.choice(often)
            pending = "SELECT 1 FROM orders WHERE applied_step IS NULL AND rejected IS NULL"
            if slow and self._row(pending) is not None:
                return
            if verb == "set":  # somebody else is faster
                self._send("set", {"weights": {"code": 0.15}, "force": True})
            else:
                self._send(verb, {"decision": waiting[0]})

    def _row(self, query: str, *values: object) -> Any:
        try:
            return self._world._look_db().execute(query, values).fetchone()
        except sqlite3.Error:  # there is no journal yet
            return None

    def resume(self) -> None:
        self._send("resume", {})

    def _draw(self) -> tuple[Any, dict[str, Any]]:
        rng = self._world.rng
        verb = rng.choice(
            [
                "pause",
                "resume",
                "resume",
                "set",
                "set",
                "set",
                "pin",
                "unpin",
                "rollback",
                "rollback",
                "approve",
                "approve",
                "reject",
                "sync",
            ]
        )
        fields: dict[str, Any] = {"force": rng.random() < 0.2, "reason": "because"}
        if verb in ("set", "pin"):
            name = rng.choice(list(self._world.config.sources))
            fields["weights"] = {name: round(rng.uniform(0, 0.6), 3)}
        if verb in ("approve", "reject", "rollback"):
            fields["decision"] = self._decision(verb)
        return verb, fields

    def _decision(self, verb: str) -> str:
        world = self._world
        if verb == "rollback":
            query = "SELECT id FROM decisions ORDER BY seq DESC LIMIT 1 OFFSET ?"
            decision = self._row(query, world.rng.randrange(4))
        else:
            decision = self._row("SELECT decision FROM approvals ORDER BY decision DESC LIMIT 1")
        return decision[0] if decision else f"d-{world.rng.randrange(1, 9):06d}"

    def _send(self, verb: Any, fields: dict[str, Any]) -> None:
        world = self._world
        world.actor = "operator"
        request = requests.new_request(verb, "now", **fields)
        requests.submit(world.paths.requests, request)
        world.actor = ""
        self.sent[request.id] = verb
        if world.faults.on:
            world.faults.happened("operator")
        world.tell(f"a person asks: {verb} {fields} as {request.id}")

    def _name(self) -> str:
        world = self._world
        folder, at = world.paths.requests, int(world.wall() * 1000)
        return f"{folder}/{at:013d}-r-{world.token(6)}.json"

    def _rubbish(self) -> None:
        world = self._world
        good = {"schema": requests.SCHEMA, "id": "r-00000000ffff", "verb": "set", "by": "x"}
        junk = [
            b"",
            b"{",
            b"\xff\xfe",
            b"[" * 5000,
            json.dumps({**good, "weights": {"web": -1}}).encode(),
            json.dumps({**good, "verb": "explode"}).encode(),
            json.dumps({**good, "force": "yes"}).encode(),
            b'{"schema": "mixloop/request/1", "weights": {"web": NaN}}',
        ]
        world.fs.put(self._name(), world.rng.choice(junk))
        self.rubbish += 1

    def _again(self) -> None:
        """A file that was taken is back: a restored backup, a rename that the disk forgot."""
        world = self._world
        taken = world.fs.folders.get(f"{world.paths.requests}/taken", {})
        if taken:
            name = world.rng.choice(sorted(taken))
            world.fs.put(f"{world.paths.requests}/{name}", taken[name].data)
