"""Whatever an MLflow server, or what stands before it, answers: each fact arrives, and once."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mixloop.cli.output import status_lines
from mixloop.contract import RunPaths
from mixloop.controller import views
from mixloop.controller.core import Entry
from mixloop.controller.journal import Journal, queries, records
from mixloop.controller.tracking import (
    CERTIFICATES,
    decision_traces,
    drain_process,
    why_not_trusted,
)

_SPEC = importlib.util.spec_from_file_location(
    "whole_run", Path(__file__).with_name("test_mlflow_sink.py")
)
assert _SPEC is not None
assert _SPEC.loader is not None
whole_run = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(whole_run)

INVALID = '{"error_code": "INVALID_PARAMETER_VALUE", "message": "no"}'


@pytest.fixture
def proxy(mlflow_server: Any, lab: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A proxy before the real server."""
    for name, value in drain_process.LIMITS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    proxy = lab.Proxy(mlflow_server.port)
    yield proxy
    proxy.close()


class Teller:
    """A run's journal, and its drains in this process, as the daemon makes them."""

    def __init__(self, folder: Path, proxy: Any, server: Any, lab: Any) -> None:
        self.journal: Journal = whole_run.a_whole_run(folder / "journal.db")
        self.uid = records.run_uid(self.journal)
        self.proxy, self.database, self.lab = proxy, server.database, lab

    def drain(self) -> list[dict[str, Any]]:
        said: list[dict[str, Any]] = []
        request = {"journal": str(self.journal.path), "uri": self.proxy.address}
        request |= {"experiment": self.uid, "uid": self.uid, "artifacts": None}
        drain_process.drain({**request, "folder": str(self.journal.path.parent)}, said.append)
        records.drained(self.journal, said)
        return said

    def told(self) -> dict[str, Any]:
        found: dict[str, Any] = self.lab.facts(self.database, self.uid)
        return found

    def waiting(self) -> int:
        return queries.waiting_entries(self.journal)

    def all_there(self) -> None:
        """Everything is, and once."""
        assert self.waiting() == 0
        told = self.told()
        assert told["runs"] == 1
        assert told["status"] == [("FINISHED",)]
        assert told["models"] == [("step-00000010",), ("step-00000020",)]
        assert told["outputs"] == 2
        ((trace, status, preview, decision),) = told["traces"]
        assert (status, decision) == ("OK", "d-000001")
        assert preview.startswith("step 10")
        names = ["applied", "d-000001 intervene", "decide", *2 * ["guard dwell"], "guard"]
        assert sorted(told["spans"]) == sorted(
            (trace, name) for name in [*names, "observe", "outcome", "publish"]
        )
        tags = {key: value for _, key, value in told["tags"]}
        assert tags["applied_step"] == "12"
        points = [(key, step) for key, step, _ in told["points"]]
        assert len(points) == len(set(points)) == 48


@pytest.fixture
def teller(tmp_path: Path, proxy: Any, mlflow_server: Any, lab: Any) -> Iterator[Teller]:
    teller = Teller(tmp_path, proxy, mlflow_server, lab)
    yield teller
    teller.journal.close()


@pytest.mark.parametrize(
    "request_of", ["POST /v1/traces", "POST .*log-batch", "POST .*3.0/mlflow/t"]
)
def test_one_failed_request_delays_one_entry_and_nothing_else(
    teller: Teller, lab: Any, request_of: str
) -> None:
    teller.proxy.fault = lab.once(request_of, lab.Fault("answer", 500))
    said = teller.drain()
    assert sum("failed" in one for one in said) == teller.waiting() == 1
    (entry,) = [one for one in said if "failed" in one]
    failure = records.drained(teller.journal, [entry])
    assert failure is not None
    assert failure["entry"] == queries.numbered_entry(teller.journal, entry["failed"]).key
    teller.drain()
    teller.all_there()


def test_a_certificate_that_cant_be_trusted_is_told_and_the_queue_waits(
    teller: Teller, lab: Any, mlflow_server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    everything, plain = teller.waiting(), teller.proxy

    def told(trusted: Path | None, context: Any, said: str) -> None:
        teller.proxy = lab.Proxy(mlflow_server.port, context)
        monkeypatch.delenv(CERTIFICATES, raising=False)
        if trusted is not None:
            monkeypatch.setenv(CERTIFICATES, str(trusted))
        failed, *rest = teller.drain()
        problem = why_not_trusted(teller.proxy.address)
        teller.proxy.close()
        assert failed == {"failed": 0, "error": problem}
        assert problem is not None
        assert re.fullmatch(said, problem), problem
        assert [one for one in rest if "done" in one] == []
        assert teller.waiting() == everything

    try:
        right, good = lab.certificate(tmp_path)
        where = r"https://127\.0\.0\.1:\d+: its certificate can't be trusted: "
        told(None, good, where + f"self-signed certificate; give its .* by {CERTIFICATES}")
        told(*lab.certificate(tmp_path, days=-1), where + r"certificate has expired; renew it .*")
        told(*lab.certificate(tmp_path, address="10.1.2.3"), where + r"IP address mismatch, .*")
        told(tmp_path / "none.pem", good, f"{CERTIFICATES}: '.*none.pem' is no file of cert.*")
        teller.proxy = lab.Proxy(mlflow_server.port, good)
        monkeypatch.setenv(CERTIFICATES, str(right))
        assert why_not_trusted(teller.proxy.address) is None
        teller.drain()
        teller.all_there()
        teller.proxy.close()
    finally:
        teller.proxy = plain


def test_what_stands_before_the_server_refuses_nothing_for_good(
    teller: Teller, lab: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not the page of a proxy, nor MLflow's own words when it says them of everything."""
    monkeypatch.setattr(records, "DECLINES", 1)
    page = lab.Fault("answer", 400, "<html>400 Bad Request</html>")
    invalid = lab.Fault("answer", 400, INVALID, "application/json")
    portal = lab.Fault("answer", 200, "<html>Welcome</html>")
    proxied = lab.Fault("answer", 200, "{}", "application/json")
    everything = teller.waiting()
    for fault, where in (
        *((page, where) for where in (".", "POST")),
        *((invalid, where) for where in (".", "POST .*(create|set-tag)")),
        *((one, where) for one in (portal, proxied) for where in (".", "POST")),
        (lab.Fault("garbage"), "."),
        (lab.Fault("reset"), "POST"),
        (lab.Fault("answer", 429, "slow down"), "POST"),
        (lab.Fault("answer", 403, "no"), "POST"),
        (lab.Fault("answer", 404, "not found"), "."),
    ):
        teller.proxy.fault = lab.always(where, fault)
        said = teller.drain()
        assert said[0].get("failed") == 0, (fault, where)
    assert teller.waiting() == everything
    teller.proxy.fault = lab.always("log-batch", page)  # the rest arrives
    teller.drain()
    assert 0 < teller.waiting() < everything
    assert queries.refused_entries(teller.journal) == 0
    teller.proxy.fault = lab.nothing_wrong
    teller.drain()
    teller.all_there()


def test_an_entry_that_mlflow_calls_invalid_is_let_go_in_the_end(
    teller: Teller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(records, "DECLINES", 2)
    with teller.journal.transaction() as tx:
        bad = {"metrics": {"a|b@c": 1.0}, "tokens": 1, "ms": 1}
        records.enqueue(tx, Entry("bad", "metrics", bad))
    for _ in range(2):  # the second comes too soon to count
        teller.drain()
        assert teller.waiting() == 1
        assert len(queries.events(teller.journal, "tracking-declined")) == 1
    monkeypatch.setattr(records, "DECLINE_PAUSE", 0.0)
    teller.drain()
    teller.all_there()
    standing = views.look(RunPaths(teller.journal.path.parent), teller.journal)
    said = status_lines(standing)
    assert any(line.endswith("14 entries sent, 0 waiting, 1 refused") for line in said), said
    assert any("last refused: bad: " in line and "a|b@c" in line for line in said), said


def test_a_trace_that_an_older_mixloop_left_in_part_is_completed(teller: Teller) -> None:
    """MLflow's exporter lost spans of it, and whatever was to be added waited for ever."""
    import mlflow

    sent = "UPDATE outbox SET done_at = 'then' WHERE kind NOT IN ('run', 'outcome')"
    with teller.journal.transaction() as tx:
        tx.execute(sent)
    client = mlflow.MlflowClient(teller.proxy.address)
    experiment = client.create_experiment(teller.uid)
    traces = decision_traces.Traces(teller.proxy.address, client, experiment, teller.uid)
    payload = {"id": "d-000001", "name": "d-000001 intervene", "start_ms": 1, "end_ms": 2}
    payload |= {"previews": ("", ""), "tags": {}}
    number = 0x1234  # as good as drawn
    record = decision_traces._record(
        decision_traces._name(number), teller.uid, experiment, "", payload
    )
    record.trace_metadata["mlflow.trace.sizeStats"] = '{"num_spans": 6}'
    step = decision_traces._span(number, 7, 8, "observe", "TASK", {}, {}, 1, 2)  # of no root
    traces._store.log_spans(experiment, [step])
    traces._store.start_trace(record)
    teller.drain()
    assert teller.waiting() == 0
    told = teller.told()
    assert [trace for trace, *_ in told["traces"]] == [record.trace_id]
    assert {"outcome", "observe", "decide", "guard"} <= {name for _, name in told["spans"]}
    assert len(client.get_trace(record.trace_id).data.spans) == len(told["spans"]) == 8


def test_what_takes_effect_late_is_there_once(
    teller: Teller, lab: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each request that makes something is given up, made again, and then comes through."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    late = lab.Fault("late", seconds=3.0)
    for making in ("runs/create", "POST .*logged-models$", "POST /v1/traces"):
        teller.proxy.fault = lab.once(making, late)
        teller.drain()
    teller.proxy.fault = lab.nothing_wrong
    time.sleep(3.0)
    with teller.journal.transaction() as tx:
        tx.execute("UPDATE outbox SET done_at = NULL WHERE kind = 'end'")
    teller.drain()
    teller.all_there()


def test_an_entry_that_cannot_be_read_stops_no_other(teller: Teller) -> None:
    with teller.journal.transaction() as tx:
        tx.execute("UPDATE outbox SET payload = x'00ff' WHERE key = 'curves:800'")
    said = teller.drain()
    assert teller.waiting() == sum("failed" in one for one in said) == 1
    assert teller.told()["status"] == [("FINISHED",)]


@pytest.mark.soak
def test_a_server_killed_fifty_times_holds_each_fact_once(tmp_path: Path) -> None:
    """Its disk filled, its answers lost or forged: see ``tests/support/mlflow_storm.py``."""
    script = Path(__file__).parents[2] / "support" / "mlflow_storm.py"
    command = [sys.executable, str(script), str(tmp_path), "--kills", "50"]
    mounting = ["unshare", "-Um", "--map-root-user"]
    probe = [*mounting, "mount", "-t", "tmpfs", "none", "/mnt"]
    if shutil.which("unshare") and not subprocess.call(probe, stderr=subprocess.DEVNULL):
        command = [*mounting, *command, "--disk"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    summary = json.loads(done.stdout.splitlines()[-1])
    assert summary["kills"] == 50
    assert summary["traces"] == summary["models"] == 40


@pytest.mark.soak
def test_a_drain_killed_at_every_request_tells_each_fact_once(
    teller: Teller, mlflow_server: Any
) -> None:
    """Nothing is marked in between: each drain tells everything again from the beginning."""
    script = Path(__file__).parents[2] / "support" / "doomed_drain.py"
    request = {"journal": str(teller.journal.path), "uri": mlflow_server.address, "after": 0}
    request |= {"experiment": teller.uid, "uid": teller.uid, "artifacts": None}
    request |= {"folder": str(teller.journal.path.parent)}
    with subprocess.Popen(
        [sys.executable, str(script), json.dumps(request)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as drains:
        assert drains.stdin is not None
        assert drains.stdout is not None
        killed = 0
        for nth in range(1, 1000):
            drains.stdin.write(f"{nth}\n")
            drains.stdin.flush()
            ended = json.loads(drains.stdout.readline())
            if ended["status"] == 0:
                break
            killed += 1
            assert ended["status"] == -signal.SIGKILL
            assert [one for one in ended["said"] if "failed" in one] == []
        drains.stdin.close()
    assert killed > 36
    records.drained(teller.journal, ended["said"])
    teller.all_there()
