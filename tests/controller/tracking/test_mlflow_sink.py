"""MLflow is a view: it may be away for a whole run, and is caught up once, without duplicates."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from mixloop.cli.output import explain_lines
from mixloop.contract import (
    AcceptedOrder,
    Manifest,
    OrderInForce,
    RunPaths,
    SourceStatus,
    Status,
    write_status,
)
from mixloop.controller import views
from mixloop.controller.core import Applied, DecisionRecord, OrderRecord
from mixloop.controller.journal import Journal, records
from mixloop.policies.guards import GuardNote

EXPERIMENT = "tests"
pytestmark = pytest.mark.filterwarnings("ignore")  # MLflow's client, used in this process, has some


def a_whole_run(path: Path) -> Journal:
    """A journal as a run leaves it: two scored checkpoints, one intervention, its outcome."""
    journal = Journal(path, create=True)
    journal.claim("r")
    write_status(RunPaths(path.parent).status, heartbeat(0))
    records.run_uid(journal)
    initial = {"web": 0.9, "code": 0.1}
    records.start(journal, "r", {"budget": 1000, "seed": 1}, initial)
    for number, step in enumerate((10, 20)):
        force = OrderInForce(0, 0, 0, 0, initial)
        manifest = Manifest("r", step, step * 8, step * 80, "stable", force, {}, 1, 10, 8, {})
        records.checkpoint(journal, manifest, f"/run/checkpoints/step-{step:08d}", {})
        records.scoring_started(journal, step)
        metrics = {"bits_per_byte": metric(2.0 - number / 10), "exact_match": metric(0.0)}
        score = {"status": "ok", "reason": None, "metrics": metrics, "items": {}}
        score |= {"data": "packages: 8 of 1000 items", "data_kind": "packages"}
        missing = {"status": "missing", "reason": "no sandbox", "metrics": {}, "items": {}}
        missing["data"] = ""
        records.scored(
            journal, step, {"benchmarks": {"gsm8k": score, "humaneval": missing}, "step": step}
        )
    after = {"web": 0.8, "code": 0.2}
    made = DecisionRecord(
        verdict="intervene",
        reason="gsm8k is flat",
        evidence={"rule": "flat"},
        weights_before=initial,
        weights_proposed=after,
        weights_after=after,
        # a guard may say two things, and both are told
        guards=(GuardNote("dwell", "passed", "fine"), GuardNote("dwell", "flagged", "just so")),
        against_generation=0,
        order=OrderRecord(1, "rules"),
        policy="rules",
        step=10,
        tokens=800,
    )
    records.decision(journal, made, scores={}, started_ms=records.now_ms())
    records.published(journal, 1)
    records.published(journal, 1)  # by the next controller: the first time counts
    records.curves(journal, heartbeat(800), None, 5.0)
    records.curves(journal, heartbeat(1600), heartbeat(800), 5.0)
    records.applied(journal, Applied(1, 96, 12), 960, initial)
    gain = {"gain": 0.1, "stderr": 0.02, "metric": "bits_per_byte"}
    found = {"step": 20, "from_step": 10, "shared_with": [], "benchmarks": {"gsm8k": gain}}
    records.outcome(journal, "d-000001", found)
    records.closed(journal, 2000)
    return journal


def heartbeat(tokens: int) -> Status:
    """The trainer's heartbeat at a token count: 3 of 4 tokens are web's."""
    drawn = {"web": tokens * 3 // 4, "code": tokens // 4}
    return Status(
        run="r",
        incarnation=1,
        pid=1,
        host="h",
        step=tokens // 80,
        sample=tokens // 10,
        tokens=tokens,
        budget=2000,
        lr=0.1,
        phase="stable",
        loss=1.5,
        grad_norm=1.0,
        tokens_per_second=100.0,
        sources={name: SourceStatus(n, n / 1000, 1000, 1.5) for name, n in drawn.items()},
        accepted=AcceptedOrder(1, 0),
        in_force=OrderInForce(1, 0, 0, 0, {"web": 0.75, "code": 0.25}),
    )


def metric(value: float) -> dict[str, Any]:
    counts = {"n": 8, "asked": 8, "excluded": 0}
    return {"value": value, "stderr": 0.1, "higher_is_better": False, **counts}


def drain(
    journal: Journal, uri: str, *, kill_after: int | None = None, artifacts: Path | None = None
) -> list[dict[str, Any]]:
    """Run the drain child as the daemon does; optionally kill it after so many answers."""
    request = {"journal": str(journal.path), "uri": uri, "experiment": EXPERIMENT}
    request |= {"uid": records.run_uid(journal), "artifacts": artifacts and str(artifacts)}
    request["folder"] = str(journal.path.parent)
    process = subprocess.Popen(
        [sys.executable, "-m", "mixloop.controller.tracking.drain_process", json.dumps(request)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    said = []
    assert process.stdout is not None
    for line in process.stdout:
        said.append(json.loads(line))
        if kill_after is not None and len(said) >= kill_after:
            process.kill()
            break
    process.communicate()
    records.drained(journal, said)
    return said


def what_is_there(uri: str, uid: str) -> dict[str, Any]:
    """Everything MLflow holds of one run, counted."""
    import mlflow

    client = mlflow.MlflowClient(uri)
    experiment = client.get_experiment_by_name(EXPERIMENT).experiment_id
    runs = client.search_runs([experiment], f"tags.`mixloop.uid` = '{uid}'")
    run = runs[0]
    models = client.search_logged_models([experiment], f"source_run_id = '{run.info.run_id}'")
    traces = client.search_traces([experiment], f"tag.`mixloop.uid` = '{uid}'")
    history = {key: client.get_metric_history(run.info.run_id, key) for key in run.data.metrics}
    return {
        "runs": len(runs),
        "status": run.info.status,
        "history": {key: [[p.step, p.value] for p in points] for key, points in history.items()},
        "outputs": len(run.outputs.model_outputs),
        "params": run.data.params,
        "note": run.data.tags.get("mlflow.note.content", ""),
        "models": [[m.name, {p.key: p.value for p in m.metrics}, m.tags] for m in models],
        "traces": [[t.info.tags, t.info.request_preview, t.info.response_preview] for t in traces],
        "spans": [[[s.name, s.outputs] for s in trace.data.spans] for trace in traces],
        "inputs": sorted(one.dataset.name for one in run.inputs.dataset_inputs),
        "artifacts": [one.path for one in client.list_artifacts(run.info.run_id, "report")],
    }


def pending(journal: Journal) -> int:
    return int(journal.value("SELECT COUNT(*) FROM outbox WHERE done_at IS NULL"))


def test_unreachable_for_a_whole_run_then_caught_up_without_duplicates(
    server: str, lab: Any, tmp_path: Path
) -> None:
    journal = a_whole_run(tmp_path / "journal.db")
    total = pending(journal)
    # nobody answers: quick to say so, nothing marked as sent
    began = time.monotonic()
    said = drain(journal, f"http://127.0.0.1:{lab.free_port()}")
    assert time.monotonic() - began < 60
    assert "failed" in said[-1]
    assert pending(journal) == total
    # the server is there, but the child dies in the middle: it goes on where it was
    drain(journal, server, kill_after=4)
    said = drain(journal, server)
    assert pending(journal) == 0, said[-1]
    uid = records.run_uid(journal)
    first = what_is_there(server, uid)
    # told everything once more (a journal restored from a backup): nothing is doubled
    with journal.transaction() as tx:
        tx.execute("UPDATE outbox SET done_at = NULL")
    drain(journal, server)
    assert what_is_there(server, uid) == first
    assert first["runs"] == 1
    assert first["outputs"] == 2
    assert first["status"] == "FINISHED"
    assert first["params"]["budget"] == "1000"
    assert first["history"]["bits_per_byte/gsm8k"] == [[800, 2.0], [1600, 1.9]]
    assert [0, 0.1] in first["history"]["mixture/code"]
    assert [959, 0.1] in first["history"]["mixture/code"]
    assert [960, 0.2] in first["history"]["mixture/code"]
    assert first["history"]["order/applied_step"] == [[960, 12.0]]
    models = {name: (metrics, tags) for name, metrics, tags in first["models"]}
    assert sorted(models) == ["step-00000010", "step-00000020"]
    assert models["step-00000020"][0]["bits_per_byte/gsm8k"] == 1.9
    assert models["step-00000020"][1]["missing.humaneval"] == "no sandbox"
    ((tags, request, response),) = first["traces"]
    assert tags["mixloop.decision"] == "d-000001"
    assert tags["applied_step"] == "12"
    assert "+0.1000 ± 0.0200" in tags["outcome.gsm8k"]
    assert "0.9" in request
    assert first["note"].startswith("1 intervention in 1 decision. The last, **d-000001**")
    assert "After d-000001: gsm8k +0.1000 ± 0.0200 bits_per_byte" in first["note"]
    assert (
        "| d-000001 | 800 | 12 | web 0.8, code 0.2 | gsm8k is flat | gsm8k +0.1000" in first["note"]
    )
    assert request.startswith("step 10, 800 tokens; web 0.900, code 0.100")
    assert response.startswith("d-000001 intervene: code 0.100 → 0.200, web 0.900 → 0.800; gsm8k")
    (spans,) = first["spans"]
    names = [name for name, _ in spans]
    assert sorted(names) == sorted(
        [
            "d-000001 intervene",
            *("observe", "decide", "guard", *2 * ["guard dwell"], "publish", "applied", "outcome"),
        ]
    )
    told = dict(spans)
    assert told["publish"] == {"file": "mixture.json", "fence": 1}
    assert told["applied"]["applied_step"] == 12
    assert told["outcome"]["gsm8k"]["gain"] == 0.1
    for edge, at in (("lower", [1.9, 1.8]), ("upper", [2.1, 2.0])):
        curve = first["history"][f"bits_per_byte/gsm8k_{edge}"]
        assert [tokens for tokens, _ in curve] == [800, 1600]
        assert [value for _, value in curve] == pytest.approx(at)
    assert first["history"]["mixture_realised/web"] == [[1600, 0.75]]
    assert first["history"]["epochs_of_cap/code"] == [[800, 0.04], [1600, 0.08]]
    assert first["inputs"] == ["gsm8k"]
    assert first["artifacts"] == ["report/report.html"]
    check_assessments_come_back(server, journal)
    journal.close()


def check_assessments_come_back(server: str, journal: Journal) -> None:
    """A person rates a decision in MLflow; the history shows it, and only once."""
    import mlflow

    mlflow.set_tracking_uri(server)
    client = mlflow.MlflowClient(server)
    experiment = client.get_experiment_by_name(EXPERIMENT).experiment_id
    uid = records.run_uid(journal)
    (trace,) = client.search_traces([experiment], f"tag.`mixloop.uid` = '{uid}'")
    source = mlflow.entities.AssessmentSource("HUMAN", "ann")
    mlflow.log_feedback(
        trace_id=trace.info.trace_id,
        name="good call",
        value=True,
        rationale="it helped",
        source=source,
    )
    for _ in range(2):
        drain(journal, server)
    (entry,) = views.history(journal)
    (said,) = entry["assessments"]
    assert (said["name"], said["value"], said["by"]) == ("good call", True, "ann")
    assert any("good call: true, by ann (it helped)" in line for line in explain_lines(entry))


def test_each_run_of_one_store_keeps_its_artifacts_in_its_own_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    uri = f"sqlite:///{tmp_path / 'first' / 'mlflow.db'}"  # as a second run might name the first's
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        journal = a_whole_run(tmp_path / name / "journal.db")
        said = drain(journal, uri, artifacts=tmp_path / name / "mlartifacts")
        assert not [one for one in said if "failed" in one or "refused" in one], said
        found = what_is_there(uri, records.run_uid(journal))
        assert found["artifacts"], "MLflow finds them there"
        (report,) = (tmp_path / name).glob("mlartifacts/*/artifacts/report/report.html")
        journal.close()
        del report
    assert len(list(tmp_path.rglob("report.html"))) == 2
    assert not (tmp_path / "mlruns").exists()
