"""What people see: MLflow's own pages of a run, and our report, in a real browser."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from typer.testing import CliRunner

from mixloop.cli.app import app

_spec = importlib.util.spec_from_file_location(
    "browser", Path(__file__).parents[2] / "support" / "browser.py"
)
assert _spec is not None
assert _spec.loader is not None
browser: ModuleType = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(browser)

EXPERIMENT = "pages"
# MLflow's own page asks for the user of a server that has none, and measures itself while it grows
THEIRS = ("/mlflow/users/current", "ResizeObserver loop")
COMMAND = browser.chromium()
needs_chromium = pytest.mark.skipif(
    COMMAND is None, reason="no chromium here (Debian: apt-get install chromium)"
)


@pytest.fixture
def chromium() -> Iterator[Any]:
    with browser.Browser(COMMAND) as running:
        yield running


@pytest.fixture
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real ``mlflow server`` that also keeps the artifacts, as one on another machine would."""
    folder = tmp_path_factory.mktemp("server")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1"]
    command += ["--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}"]
    command += ["--artifacts-destination", str(folder / "artifacts")]
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=log, env=environment, start_new_session=True
        )
    address = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 300
        while True:
            try:
                with urllib.request.urlopen(f"{address}/health", timeout=5):
                    break
            except OSError:
                assert process.poll() is None, (folder / "server.log").read_text()
                assert time.monotonic() < deadline, (folder / "server.log").read_text()
                time.sleep(0.2)
        yield address
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def ask(address: str, call: str, **body: Any) -> dict[str, Any]:
    request = urllib.request.Request(
        f"{address}/api/{call}", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        return dict(json.load(answer))


def traces(address: str, experiment: str, wanted: str) -> list[dict[str, Any]]:
    place = {
        "type": "MLFLOW_EXPERIMENT",
        "mlflow_experiment": {"experiment_id": experiment},
    }
    found = ask(
        address, "3.0/mlflow/traces/search", locations=[place], filter=wanted, max_results=100
    )
    return list(found.get("traces", []))


def end(run: Any) -> None:
    """The controller ends, and its process with it; in truth that process is this one."""
    gone = subprocess.Popen(["true"])
    gone.wait()
    with run.journal.transaction() as tx:
        tx.execute("UPDATE lease SET holder = ?", (f"{socket.gethostname()}:{gone.pid}",))
    run.controller.close()


def ours(errors: list[str]) -> list[str]:
    return [one for one in errors if not any(known in one for known in THEIRS)]


def shares(weights: dict[str, float]) -> list[str]:
    """As MLflow prints a JSON object's entries."""
    return [f"{name}: {round(weight, 6):g}" for name, weight in weights.items()]


@needs_chromium
@pytest.mark.soak  # the server alone takes 20 seconds to start
def test_mlflows_pages_tell_the_run(play: Any, server: str, chromium: Any) -> None:
    run = play(tracking={"uri": server, "experiment": EXPERIMENT})
    run.controller.mlflow.not_before = float("inf")  # `mixloop sync` does it, below
    run.train(10)
    run.tell("set", "code=0.18", "--reason", "a person looked")
    run.train(50)
    entries = run.history()
    end(run)
    told = CliRunner().invoke(app, ["sync", str(run.path), "--json"])
    assert told.exit_code == 0, told.output
    assert json.loads(told.stdout)["waiting"] == 0, told.output

    with urllib.request.urlopen(
        f"{server}/api/2.0/mlflow/experiments/get-by-name?experiment_name={EXPERIMENT}"
    ) as answer:
        experiment = json.load(answer)["experiment"]["experiment_id"]
    search = {"experiment_ids": [experiment], "filter": "tags.`mixloop.run` = 'r'"}
    (recorded,) = ask(server, "2.0/mlflow/runs/search", **search)["runs"]
    home = f"{server}/#/experiments/{experiment}"
    place = f"{home}/runs/{recorded['info']['run_id']}"

    # the curves
    page = chromium.page(1500, 1100)
    page.open(f"{place}/model-metrics")
    groups = ("bits_per_byte", "mixture", "mixture_realised", "epochs", "train")
    page.shows(*groups, "gsm8k_lower", "gsm8k_upper")
    page.until(
        lambda: page.run("document.querySelectorAll('.js-plotly-plot .scatterlayer path').length"),
        "a curve is drawn",
    )
    assert ours(page.errors) == []

    # the story
    page = chromium.page(1500, 1100)
    page.open(place)
    page.shows("Description", f"in {len(entries)} decisions", "Show more", "mixture/code")
    page.click("a,button,span,div", "Show more")
    last = [one for one in entries if one["verdict"] == "intervene"][-1]
    page.shows("what followed", "a person looked", last["id"], "Datasets", "gsm8k (")
    assert ours(page.errors) == []

    # the report and the picture, as the server gives them back
    page = chromium.page(1500, 1100)
    page.open(f"{place}/artifacts/report/run.png")
    page.shows("report.html", "run.png")
    page.until(
        lambda: page.run("[...document.images].some(i => i.naturalWidth > 900)"), "the picture"
    )
    assert ours(page.errors) == []

    # the list of decisions, newest first, each with what it looked at and what came of it
    page = chromium.page(1900, 1200)
    page.open(f"{place}/traces")
    for entry in entries:
        looked = f"step {entry['step']}, "
        page.shows(f"{entry['id']} {entry['verdict']}", looked)
    assert ours(page.errors) == []

    # one decision
    seen = {one["id"]: one for one in entries}
    decided = next(e for e in entries[1:] if e["outcome"] and e["asked_by"] == "policy")
    name = "tags.`mixloop.decision` = '{}'"
    (trace,) = traces(server, experiment, name.format(decided["id"]))
    page = chromium.page(1500, 1300)
    page.open(f"{place}/traces?selectedEvaluationId={trace['trace_id']}")
    text = page.shows(
        *("observe", "decide", "guard", "guard trust region", "publish", "applied", "outcome"),
        *("reason", decided["reason"], "weights_before", "weights_after"),
    )
    before, after = (decided[f"weights_{when}"] for when in ("before", "after"))
    assert before != after
    head, changed = text.partition("weights_after")[::2]
    old = head.rpartition("weights_before")[2]
    assert [one for one in shares(before) if one not in old] == []
    assert [one for one in shares(after) if one not in changed] == []
    page.click("span,div,button", "outcome")
    page.shows("gain", "bits_per_byte")
    assert ours(page.errors) == []

    # searched by what it was; a person's decision has a trace as well
    operators = [one for one in seen.values() if one["asked_by"] == "operator"]
    assert len(operators) == 1
    found = traces(server, experiment, "tags.verdict = 'intervene'")
    assert len(found) == sum(one["verdict"] == "intervene" for one in entries)
    assert len(traces(server, experiment, name.format(operators[0]["id"]))) == 1

    # a checkpoint with its scores and the items they are of
    models = ask(server, "2.0/mlflow/logged-models/search", experiment_ids=[experiment])["models"]
    model = models[-1]["info"]
    page = chromium.page(1500, 1100)
    page.open(f"{home}/models/{model['model_id']}")
    page.shows(model["name"], "bits_per_byte/gsm8k", "Datasets used", "gsm8k (#", "weight.code")
    assert ours(page.errors) == []


@needs_chromium
def test_the_report_opens_clean_on_a_desk_and_on_a_phone(play: Any, chromium: Any) -> None:
    run = play()
    run.train(4)
    reason = f"<script>alert(1)</script> {'unbroken' * 40}"
    run.tell("set", "code=0.15", "--reason", reason)
    run.train(6)
    done = CliRunner().invoke(app, ["report", str(run.path)])
    assert done.exit_code == 0, done.output
    file = run.paths.dir / "report.html"
    for width in (1280, 390):
        page = chromium.page(width, 844, phone=width < 600)
        page.open(file.as_uri())
        page.settle(0.5)
        text = page.text
        assert "Benchmarks and mixture" in text
        assert "alert(1)" in text
        assert all(entry["id"] in text for entry in run.history())
        assert page.run("[...document.images].every(i => i.complete && i.naturalWidth > 100)")
        assert page.run("document.documentElement.scrollWidth") == width
        assert page.run("document.body.scrollWidth") <= width
        asked = [url for url in page.requests if not url.startswith("data:")]
        assert asked == [file.as_uri()]
        assert page.pdf().startswith(b"%PDF")
        assert page.errors == []


@needs_chromium
def test_the_check_for_errors_would_find_them(chromium: Any, tmp_path: Path) -> None:
    """A page with each kind of mistake; a check that hears nothing proves nothing."""
    policy = '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'">'
    mistakes = {
        "<script>throw new Error('thrown here')</script>": "thrown here",
        "<script>console.error('said here')</script>": "said here",
        "<img src='nowhere.png'>": "ERR_FILE_NOT_FOUND",
        f"{policy}<script>document.title = 'x'</script>": "Content Security Policy",
        f"{policy}<p style='color: red'>": "Content Security Policy",
    }
    file = tmp_path / "page.html"
    head = "<!doctype html><html><head><link rel=icon href='data:,'>"
    for body, complaint in mistakes.items():
        file.write_text(head + body)
        page = chromium.page()
        page.open(file.as_uri())
        page.settle(0.3)
        assert complaint in " ".join(page.errors), body
    wide = "<meta name=viewport content='width=device-width'><p style='width: 500px'>wide"
    file.write_text(head + wide)
    page = chromium.page(390, 844, phone=True)
    page.open(file.as_uri())
    assert page.errors == []
    assert page.run("document.documentElement.scrollWidth") > 390
