"""The child that carries the outbox to MLflow, in order, and ends when it is empty.

A process of its own because the MLflow client weighs 240 MB, and because a call to a server that
is down may block. It only reads the journal; it says on stdout which entries arrived, and the
controller marks them. Killed between an effect and that word, it does the effect again: every one
is looked up first (by tag, by name) or is idempotent by MLflow's own rule (a point of equal key,
timestamp, step and value is one point).
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import sqlite3
import sys
import tempfile
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mixloop.common.process import end_with_parent
from mixloop.controller.core import LOWER, UPPER
from mixloop.controller.journal import unpack

# The client's defaults retry for minutes; ours is the loop that retries, from the journal.
LIMITS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_ENABLE_ASYNC_TRACE_LOGGING": "false",
    "MLFLOW_ENABLE_ASYNC_LOGGING": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_TRACKING_URI": "",  # never another server's because of the caller's environment
    "GIT_PYTHON_REFRESH": "quiet",
}
SPANS = {  # the icon of each step in MLflow's tree of a trace
    "decide": "AGENT",
    "guard": "GUARDRAIL",
    "outcome": "EVALUATOR",
}
PREVIEW = 1000  # characters that MLflow keeps of a preview
REFUSED = ("INVALID_PARAMETER_VALUE", "BAD_REQUEST")


class Refused(Exception):  # noqa: N818 - the server refused, we did not err
    """MLflow answered that this entry can never be taken; the others still can."""


class Sink:
    """One mixloop run's place in MLflow: its experiment, its run, its models and traces."""

    def __init__(
        self, uri: str, experiment: str, uid: str, artifacts: Path | None, folder: Path
    ) -> None:
        import mlflow

        self.uri = uri
        self.folder = folder
        mlflow.set_tracking_uri(uri)
        self.uid = uid
        self.client = mlflow.MlflowClient(tracking_uri=uri)
        found = self.client.get_experiment_by_name(experiment)
        if found is None:
            location = artifacts.as_uri() if artifacts is not None else None
            self.experiment = self.client.create_experiment(experiment, artifact_location=location)
        else:
            self.experiment = found.experiment_id
        mlflow.set_experiment(experiment_id=self.experiment)
        self._run: str | None = None

    @property
    def run(self) -> str:
        """The id of this run in MLflow, looked up by its tag once.

        Raises:
            LookupError: before the run's own entry was sent.
        """
        if self._run is None:
            found = self.client.search_runs([self.experiment], f"tags.`mixloop.uid` = '{self.uid}'")
            if not found:
                raise LookupError("the run is not in MLflow yet")
            self._run = found[0].info.run_id
        return self._run

    def send(self, kind: str, payload: dict[str, Any]) -> None:
        """Carry one outbox entry over.

        Raises:
            Refused: when MLflow will never take it.
            Exception: whatever the client raises when the server cannot be reached.
        """
        from mlflow.exceptions import MlflowException

        try:
            getattr(self, f"_send_{kind}")(payload)
        except MlflowException as error:
            if error.error_code in REFUSED:
                raise Refused(str(error).splitlines()[0]) from error
            raise

    def _send_run(self, payload: dict[str, Any]) -> None:
        from mlflow.entities import Param

        try:
            run = self.run
        except LookupError:
            tags = {**payload["tags"], "mixloop.uid": self.uid}
            created = self.client.create_run(
                self.experiment, payload["ms"], tags=tags, run_name=payload["name"]
            )
            run = self._run = created.info.run_id
        params = [Param(key, str(value)[:6000]) for key, value in payload["params"].items()]
        self.client.log_batch(run, params=params, synchronous=True)
        self.client.set_terminated(run, status="RUNNING")

    def _send_metrics(self, payload: dict[str, Any]) -> None:
        self._log(payload["metrics"], payload["tokens"], payload["ms"], None)

    def _log(
        self,
        metrics: dict[str, float],
        tokens: int,
        ms: int,
        model: str | None,
        data: Mapping[str, Any] | None = None,
    ) -> None:
        from mlflow.entities import Metric

        points = []
        for key, value in metrics.items():
            name = key.partition("/")[2]
            items = (data or {}).get(name.removesuffix(LOWER).removesuffix(UPPER))
            of = (items.name, items.digest) if items is not None else (None, None)
            run = self.run if model else None
            points.append(Metric(key, value, ms, tokens, model, *of, run))
        self.client.log_batch(self.run, metrics=points, synchronous=True)

    def _send_model(self, payload: dict[str, Any]) -> None:
        name = payload["name"]
        found = self.client.search_logged_models(
            [self.experiment], f"name = '{name}' AND source_run_id = '{self.run}'"
        )
        if found:
            model = found[0]
        else:
            model = self.client.create_logged_model(
                self.experiment, name, self.run, payload["tags"], payload["params"], "checkpoint"
            )
        self.client.finalize_logged_model(model.model_id, "READY")
        self._show_on_run(model.model_id, payload["tokens"])
        data = {name: _dataset(name, text) for name, text in payload.get("datasets", {}).items()}
        if data:
            self._log_data(list(data.values()), model.model_id)
        self._log(payload["metrics"], payload["tokens"], payload["ms"], model.model_id, data)

    def _log_data(self, data: list[Any], model: str) -> None:
        """The benchmarks' items as inputs of the run and of the checkpoint's model."""
        from mlflow.entities import DatasetInput, LoggedModelInput

        inputs = [DatasetInput(one, []) for one in data]
        self.client.log_inputs(self.run, inputs, [LoggedModelInput(model_id=model)])

    def _show_on_run(self, model: str, tokens: int) -> None:
        """List the model among the run's outputs, once."""
        from mlflow.entities import LoggedModelOutput

        outputs = self.client.get_run(self.run).outputs
        known = {output.model_id for output in (outputs.model_outputs if outputs else [])}
        if model not in known:
            self.client.log_outputs(self.run, [LoggedModelOutput(model_id=model, step=tokens)])

    def _trace(self, decision: str) -> str | None:
        found = self.client.search_traces(
            [self.experiment],
            f"tag.`mixloop.uid` = '{self.uid}' AND tag.`mixloop.decision` = '{decision}'",
            include_spans=False,
        )
        return found[0].info.trace_id if found else None

    def _send_trace(self, payload: dict[str, Any]) -> None:
        import mlflow

        decision = payload["id"]
        if self._trace(decision) is None:
            tags = {"mixloop.uid": self.uid, "mixloop.decision": decision, **payload["tags"]}
            start, end = payload["start_ms"] * 1_000_000, payload["end_ms"] * 1_000_000
            root = mlflow.start_span_no_context(
                payload["name"],
                span_type="WORKFLOW",
                inputs=payload["request"],
                tags=tags,
                metadata={"mlflow.sourceRun": self.run},
                experiment_id=self.experiment,
                start_time_ns=start,
            )
            _preview(root, payload.get("previews"))
            made: dict[str | None, Any] = {None: root}
            for name, parent, inputs, outputs in payload["spans"]:
                made[name] = mlflow.start_span_no_context(
                    name,
                    span_type=_span_type(name),
                    parent_span=made[parent],
                    inputs=inputs,
                    start_time_ns=start,
                )
                made[name].set_outputs(outputs)
            for name, span in made.items():
                if name is not None:
                    span.end(end_time_ns=end)
            root.end(outputs=payload["response"], end_time_ns=end)
        # The exporter swallows its errors, so the trace is looked up before it counts as sent.
        if self._trace(decision) is None:
            raise ConnectionError(f"the trace of {decision} did not arrive")

    def _send_span(self, payload: dict[str, Any]) -> None:
        """A later step on a decision's trace, under an id of its own: told twice it is one."""
        from mlflow.tracking._tracking_service.utils import _get_store

        found = self._trace(payload["id"])
        if found is None:
            raise Refused(f"the trace of {payload['id']} is not in MLflow any more")
        root = next(s for s in self.client.get_trace(found).data.spans if s.parent_id is None)
        try:
            _get_store(self.uri).log_spans(self.experiment, [_span(self.uid, root, payload)])
        except NotImplementedError as error:  # a server of before 3.4: the tags tell it too
            raise Refused(str(error)) from error

    def _send_note(self, payload: dict[str, Any]) -> None:
        self.client.set_tag(self.run, "mlflow.note.content", payload["note"])

    def _send_report(self, payload: dict[str, Any]) -> None:
        """The report and the picture as they stand, as artifacts of the run."""
        from mixloop.common.errors import BadInput
        from mixloop.controller.report import write_artifacts

        with tempfile.TemporaryDirectory() as folder:
            try:
                made = write_artifacts(self.folder, Path(folder))
            except BadInput:
                return  # neither trainer nor controller has anything to tell
            except Exception as error:  # a page less must not keep everything behind it waiting
                raise Refused(f"report: {type(error).__name__}: {error}") from error
            try:
                for one in made:
                    self.client.log_artifact(self.run, str(one), "report")
            except (PermissionError, NotADirectoryError) as error:
                # no place for artifacts that this machine can write to: the rest still goes
                raise Refused(f"report: {error}") from error

    def assessments(self) -> list[dict[str, Any]]:
        """What people said of this run's latest decisions."""
        found = self.client.search_traces(
            [self.experiment],
            f"tag.`mixloop.uid` = '{self.uid}'",
            max_results=100,
            order_by=["timestamp_ms DESC"],
            include_spans=False,
        )
        return [
            _assessment(trace.info.tags["mixloop.decision"], one)
            for trace in found
            for one in trace.info.assessments or ()
            if "mixloop.decision" in trace.info.tags
        ]

    def _send_trace_tags(self, payload: dict[str, Any]) -> None:
        trace = self._trace(payload["id"])
        if trace is None:  # the trace was sent before its tags: somebody has deleted it
            raise Refused(f"the trace of {payload['id']} is not in MLflow any more")
        for key, value in payload["tags"].items():
            self.client.set_trace_tag(trace, key, str(value)[:4000])

    def _send_end(self, payload: dict[str, Any]) -> None:
        self.client.set_tag(self.run, "mlflow.note.content", payload["note"])
        self.client.set_terminated(self.run, payload["status"], payload["ms"])


def _span_type(name: str) -> str:
    """MLflow's type of a step: ``guard dwell`` is a guard."""
    return SPANS.get(name.partition(" ")[0], "TASK")


def _preview(root: Any, previews: list[str] | None) -> None:
    """What the list of traces shows, where this client lets us say it without a global context."""
    if previews is None:  # an entry of an older journal: the list shows its JSON
        return
    with contextlib.suppress(ImportError, AttributeError):
        from mlflow.tracing.trace_manager import InMemoryTraceManager

        with InMemoryTraceManager.get_instance().get_trace(root.trace_id) as trace:
            if trace is not None:
                trace.info.request_preview, trace.info.response_preview = (
                    one[:PREVIEW] for one in previews
                )


def _span(uid: str, root: Any, payload: dict[str, Any]) -> Any:
    """A span below ``root`` that MLflow has already, with an id made of what it is."""
    from mlflow.entities import Span
    from mlflow.tracing.constant import SpanAttributeKey
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.trace import SpanContext, SpanKind, TraceFlags
    from opentelemetry.trace.status import Status, StatusCode

    above, at = root._span.context, payload["ms"] * 1_000_000
    key = f"{uid} {payload['id']} {payload['name']}"
    number = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big")
    attributes = {
        SpanAttributeKey.REQUEST_ID: json.dumps(root.trace_id),
        SpanAttributeKey.INPUTS: json.dumps(payload["inputs"]),
        SpanAttributeKey.OUTPUTS: json.dumps(payload["outputs"]),
        SpanAttributeKey.SPAN_TYPE: json.dumps(_span_type(payload["name"])),
    }
    return Span(
        ReadableSpan(
            name=payload["name"],
            context=SpanContext(above.trace_id, number, False, TraceFlags(1)),
            parent=above,
            attributes=attributes,
            resource=Resource({}),
            start_time=at,
            end_time=at,
            status=Status(StatusCode.OK),
            kind=SpanKind.INTERNAL,
        )
    )


def _dataset(name: str, text: str) -> Any:
    """A benchmark's items as MLflow knows data: told apart by where they come from."""
    from mlflow.entities import Dataset

    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    return Dataset(name=name, digest=digest, source_type="mixloop", source=text[:1000])


def _assessment(decision: str, one: Any) -> dict[str, Any]:
    source = one.source
    at = datetime.fromtimestamp((one.create_time_ms or 0) / 1000, UTC)
    return {
        "id": one.assessment_id,
        "decision": decision,
        "name": one.name,
        "value": json.dumps(getattr(one, "value", None), default=str),
        "rationale": one.rationale or "",
        "by": source.source_id if source is not None else "",
        "at": at.isoformat(timespec="seconds").replace("+00:00", "Z"),
    }


def make_database(uri: str, uid: str) -> None:
    """Make an SQLite store that is not there yet, so that it appears whole or not at all.

    MLflow makes its tables in dozens of steps; killed between two of them it leaves a file that
    it can neither use nor mend ("table _alembic_tmp_experiments already exists").
    """
    from sqlalchemy.engine import make_url

    if not uri.startswith("sqlite:") or not (name := make_url(uri).database):
        return
    path = Path(name)
    if name == ":memory:" or path.exists():
        return
    # one per run: what lies there is what an earlier drain of ours was killed over
    scratch = path.with_name(f".{path.name}.{uid}.new")
    journal = scratch.with_name(f"{scratch.name}-journal")
    for left in (scratch, journal):
        left.unlink(missing_ok=True)
    _make_tables(make_url(uri).set(database=str(scratch)).render_as_string(hide_password=False))
    with contextlib.suppress(FileExistsError):  # another run's, made meanwhile
        path.hardlink_to(scratch)
    scratch.unlink()


def _make_tables(uri: str) -> None:
    from mlflow.tracking._tracking_service.utils import _get_store

    store = _get_store(uri)
    store.search_experiments(max_results=1)
    store.engine.dispose()


def _sink(request: dict[str, Any]) -> Sink:
    make_database(request["uri"], request["uid"])
    artifacts = Path(request["artifacts"]) if request["artifacts"] else None
    folder = Path(request.get("folder") or Path(request["journal"]).parent)
    return Sink(request["uri"], request["experiment"], request["uid"], artifacts, folder)


def pending(journal: Path) -> Iterator[tuple[int, str, dict[str, Any]]]:
    """Outbox entries that have not arrived yet, in the order they were written."""
    database = sqlite3.connect(f"{journal.as_uri()}?mode=ro", uri=True, timeout=30.0)
    last = 0
    while True:
        row = database.execute(
            "SELECT seq, kind, payload FROM outbox WHERE done_at IS NULL AND seq > ? "
            "ORDER BY seq LIMIT 1",
            (last,),
        ).fetchone()
        if row is None:
            return
        last = row[0]
        yield last, row[1], unpack(row[2])


def _send(sink: Sink, journal: Path, kind: str, payload: dict[str, Any]) -> None:
    """Carry an entry over; a run that is not there (another server, deleted) is made again."""
    try:
        sink.send(kind, payload)
    except LookupError:
        database = sqlite3.connect(f"{journal.as_uri()}?mode=ro", uri=True, timeout=30.0)
        first = database.execute("SELECT payload FROM outbox WHERE key = 'run'").fetchone()
        database.close()
        if first is None or kind == "run":
            raise
        sink.send("run", unpack(first[0]))
        sink.send(kind, payload)


def drain(request: dict[str, Any], say: Any) -> int:
    """Carry over everything pending; ``say(dict)`` is told of each entry. Returns the exit code."""
    sink: Sink | None = None
    for seq, kind, payload in pending(Path(request["journal"])):
        try:
            if sink is None:
                sink = _sink(request)
            _send(sink, Path(request["journal"]), kind, payload)
        except Refused as refusal:
            say({"refused": seq, "error": str(refusal)})
            continue
        except Exception as error:
            say({"failed": seq, "error": f"{type(error).__name__}: {error}".splitlines()[0][:500]})
            return 3
        say({"done": seq})
    try:
        found = (sink or _sink(request)).assessments()
    except Exception as error:
        say({"failed": 0, "error": f"{type(error).__name__}: {error}".splitlines()[0][:500]})
        return 3
    if found:
        say({"assessments": found})
    return 0


def main() -> None:
    """Entry of ``python -m mixloop.controller.tracking.mlflow_sink REQUEST`` (a JSON object)."""
    end_with_parent()
    os.environ.update(LIMITS)
    del os.environ["MLFLOW_TRACKING_URI"]
    channel = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever the client prints belongs in the log, not in our answers

    def say(message: dict[str, object]) -> None:
        channel.write(json.dumps(message) + "\n")

    request = json.loads(sys.argv[1])
    with Path(request["journal"]).with_name("mlflow.lock").open("a") as lock:
        # two drains at once would both look, find nothing, and make everything twice
        fcntl.flock(lock, fcntl.LOCK_EX)
        code = drain(request, say)
    sys.exit(code)


if __name__ == "__main__":
    main()
