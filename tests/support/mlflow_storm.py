"""A real MLflow server killed again and again, starved of disk and lied about, beside real drains.

``python mlflow_storm.py FOLDER --kills 50``: decisions with all that follows from them enter a
journal one after the other. Each time the daemon's own drains tell of them while the server is
killed, its disk filled, or a proxy before it answers 400, 429, 500, pages or nothing, loses answers
or lets requests through late. In the end the journal is told once more to a store of its own that
nothing happens to, and both must hold the same facts, each once. With ``--disk`` the server lies on
a small tmpfs, which needs a mount namespace of its own. Prints a JSON summary; the exit code says
whether it held.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import mlflow_lab as lab  # beside this file, which is where Python looks first
import small_disk

from mixloop.contract import (
    AcceptedOrder,
    Manifest,
    OrderInForce,
    RunPaths,
    SourceStatus,
    Status,
    write_status,
)
from mixloop.controller.config import load_config
from mixloop.controller.core import Applied, DecisionRecord, OrderRecord
from mixloop.controller.journal import Journal, queries, records
from mixloop.controller.tracking import drain_child, drain_process
from mixloop.policies.guards import GuardNote

must = small_disk.must
DECISIONS = 40
INVALID = '{"error_code": "INVALID_PARAMETER_VALUE", "message": "no"}'
FAULTS = (
    lab.Fault("answer", 400, "<html>400 Bad Request</html>"),
    lab.Fault("answer", 400, INVALID, "application/json"),
    lab.Fault("answer", 403, "no"),
    lab.Fault("answer", 404, "not found"),
    lab.Fault("answer", 429, "slow down"),
    lab.Fault(
        "answer", 500, '{"error_code": "INTERNAL_ERROR", "message": "no"}', "application/json"
    ),
    lab.Fault("answer", 502),
    lab.Fault("answer", 200, "<html>Welcome</html>"),
    lab.Fault("hang", seconds=4),
    lab.Fault("reset"),
    lab.Fault("garbage"),
    lab.Fault("lost"),
    lab.Fault("late", seconds=4),
)


class Storm:
    """One journal, its drains, the server and what befalls it."""

    def __init__(self, folder: Path, seed: int, disk: bool) -> None:
        self.chance = random.Random(seed)
        self.counts: Counter[str] = Counter()
        self.disk = folder / "disk"
        self.disk.mkdir(parents=True)
        if disk:
            small_disk.subprocess.run(
                ["mount", "-t", "tmpfs", "-o", "size=16m", "none", str(self.disk)], check=True
            )
        self.filler = self.disk / "filler" if disk else None
        self.server = lab.Server(self.disk, log=folder / "server.log")
        self.proxy = lab.Proxy(self.server.port)
        make_run = small_disk.crash_points.played_run.make_run
        config = make_run(folder, tracking={"uri": self.proxy.address, "experiment": "storm"})
        self.config = load_config(config)
        self.paths = RunPaths(self.config.run.dir)
        self.paths.dir.mkdir()
        self.journal = Journal(self.paths.journal, create=True)
        self.journal.claim("r")
        write_status(self.paths.status, heartbeat(0))
        records.start(self.journal, "r", {"budget": 1000, "seed": seed}, weights(0))
        self.said: list[str] = []
        self.drain = drain_child.MlflowDrain(
            self.config, self.paths, self.journal, self.said.append, time.monotonic
        )

    def turn(self, seconds: float) -> None:
        """The daemon's part for so long: drains start when they are due and are heard."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if self.drain.child is None and self.waiting() and self.drain.due:
                self.drain.start(None)  # type: ignore[arg-type]  # it looks at no state
                self.counts["drains"] += 1
            self.drain.poll()
            time.sleep(0.05)

    def waiting(self) -> int:
        return queries.waiting_entries(self.journal)

    def settle(self, seconds: float) -> None:
        """Nothing goes wrong any more."""
        end = time.monotonic() + seconds
        while self.waiting() or self.drain.child is not None:
            must(time.monotonic() < end, f"{self.waiting()} entries wait: {self.said[-3:]}")
            self.turn(0.5)

    def round(self, number: int) -> None:
        """A stretch of the storm, which a kill of the server ends."""
        chance = self.chance
        share, fault = chance.choice([0.0, 0.05, 0.3]), chance.choice(FAULTS)
        which = chance.choice([None, fault])

        def of(request: str) -> Any:
            if chance.random() >= share:
                return None
            self.counts["faults"] += 1
            return which or chance.choice(FAULTS)

        self.proxy.fault = of
        self.turn(chance.uniform(0.5, 8.0))
        if self.filler is not None and number % 4 == 1:
            small_disk.fill(self.filler)
            self.counts["full"] += 1
            self.turn(chance.uniform(1.0, 6.0))
        self.server.kill()
        self.counts["kills"] += 1
        self.turn(chance.uniform(0.0, 3.0))
        if self.filler is not None:
            self.filler.unlink(missing_ok=True)
        self.server.start()
        self.proxy.fault = lab.nothing_wrong
        self.turn(chance.uniform(0.0, 2.0))
        self.server.wait()

    def check(self) -> dict[str, Any]:
        """What the server holds against what a store holds that nothing happened to."""
        uid = records.run_uid(self.journal)
        told = lab.facts(self.server.database, "storm")
        with self.journal.transaction() as tx:
            tx.execute("UPDATE outbox SET done_at = NULL")
        calm = self.paths.dir / "calm.db"
        request = {"journal": str(self.paths.journal), "uri": f"sqlite:///{calm}", "uid": uid}
        request |= {"experiment": "storm", "folder": str(self.paths.dir)}
        said: list[dict[str, Any]] = []
        drain_process.drain({**request, "artifacts": str(self.paths.dir / "art")}, said.append)
        wrong = [message for message in said if "done" not in message]
        must(not wrong, f"the calm store did not take it: {wrong}")
        should = lab.facts(calm, "storm")
        for what, facts in should.items():
            must(told[what] == facts, f"{what}: {difference(told[what], facts)}")
        must(len(told["traces"]) == DECISIONS, f"{len(told['traces'])} traces")
        return {key: len(f) if isinstance(f, list) else f for key, f in told.items()}

    def close(self) -> None:
        self.drain.close()
        self.server.kill()
        self.proxy.close()
        self.journal.close()


def difference(told: Any, should: Any) -> str:
    if not isinstance(told, list):
        return f"{told}, and should be {should}"
    more, less = Counter(map(repr, told)), Counter(map(repr, should))
    return f"too many: {list(more - less)[:5]}, missing: {list(less - more)[:5]}"


def weights(generation: int) -> dict[str, float]:
    return {"web": 0.9 - generation / 100, "code": 0.1 + generation / 100}


def heartbeat(tokens: int) -> Status:
    """The trainer's heartbeat at a token count."""
    drawn = {"web": tokens * 3 // 4, "code": tokens // 4}
    return Status(
        run="r",
        incarnation=1,
        pid=1,
        host="h",
        step=tokens // 80,
        sample=tokens // 10,
        tokens=tokens,
        budget=10**6,
        lr=0.1,
        phase="stable",
        loss=1.5,
        grad_norm=1.0,
        tokens_per_second=100.0,
        sources={name: SourceStatus(n, n / 1000, 1000, 1.5) for name, n in drawn.items()},
        accepted=AcceptedOrder(1, 0),
        in_force=OrderInForce(1, 0, 0, 0, {"web": 0.75, "code": 0.25}),
    )


def live(journal: Journal, number: int) -> None:
    """A scored checkpoint, its decision, and all that follows: as the daemon records them."""
    step = 10 * number
    tokens, before, after = step * 80, weights(number - 1), weights(number)
    force = OrderInForce(0, 0, 0, 0, before)
    manifest = Manifest("r", step, step * 8, tokens, "stable", force, {}, 1, 10, 8, {})
    records.checkpoint(journal, manifest, f"/run/checkpoints/step-{step:08d}", {})
    records.scoring_started(journal, step)
    counts = {"n": 8, "asked": 8, "excluded": 0, "higher_is_better": False}
    metrics = {"bits_per_byte": {"value": 2 - number / 100, "stderr": 0.1, **counts}}
    score = {"status": "ok", "reason": None, "metrics": metrics, "items": {}}
    score |= {"data": "packages: 8 of 1000 items", "data_kind": "packages"}
    records.scored(journal, step, {"benchmarks": {"gsm8k": score}, "step": step})
    decided = records.decision(
        journal,
        DecisionRecord(
            verdict="intervene",
            reason="gsm8k is flat",
            evidence={"rule": "flat"},
            weights_before=before,
            weights_proposed=after,
            weights_after=after,
            guards=(GuardNote("dwell", "passed", "fine"), GuardNote("dwell", "flagged", "so so")),
            against_generation=number - 1,
            order=OrderRecord(number, "rules"),
            policy="rules",
            step=step,
            tokens=tokens,
        ),
        scores={},
        started_ms=records.now_ms(),
    )
    records.published(journal, number)
    records.curves(journal, heartbeat(tokens), None, 5.0)
    records.applied(journal, Applied(number, step * 8 + 16, step + 2), tokens + 160, before)
    gain = {"gain": 0.1, "stderr": 0.02, "metric": "bits_per_byte"}
    found = {"step": step + 10, "from_step": step, "shared_with": []}
    records.outcome(journal, decided, {**found, "benchmarks": {"gsm8k": gain}})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--disk", action="store_true")
    options = parser.parse_args()
    drain_child.DRAIN_PAUSE, drain_child.BACKOFF = 0.5, (0.5, 5.0)
    drain_process.LIMITS["MLFLOW_HTTP_REQUEST_TIMEOUT"] = "3"
    os.environ |= {"MLFLOW_DISABLE_TELEMETRY": "true", "GIT_PYTHON_REFRESH": "quiet"}
    began = time.monotonic()
    summary: dict[str, Any] = {"seed": options.seed}
    storm = Storm(options.folder, options.seed, options.disk)
    try:
        storm.server.start()
        storm.turn(1.0)
        storm.server.wait()
        for number in range(1, DECISIONS + 1):
            live(storm.journal, number)
            # so many kills in all, evenly
            for _ in range(number * options.kills // DECISIONS - storm.counts["kills"]):
                storm.round(storm.counts["kills"])
        storm.proxy.fault = lab.nothing_wrong
        records.closed(storm.journal, 10**6)
        storm.drain.soon()
        storm.settle(300)
        entries = queries.newest_entry_number(storm.journal)
        declined = len(queries.events(storm.journal, "tracking-declined"))
        refused = queries.refused_entries(storm.journal)
        must(not refused, f"{refused} entries were refused for good")
        summary |= {**storm.check(), "entries": entries, "declined": declined}
    except small_disk.random_kills.Broken as error:
        summary["broken"] = str(error)
    finally:
        storm.close()
    summary |= {**storm.counts, "seconds": round(time.monotonic() - began)}
    print(json.dumps(summary))  # noqa: T201
    sys.exit("broken" in summary)


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):
        main()
