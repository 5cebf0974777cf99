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
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mixloop.common.types import Json
from mixloop.controller.core import LOWER, UPPER, OutboxRow, calls
from mixloop.controller.journal import Journal, queries

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
    "receipt": "EVALUATOR",
}
PREVIEW = 1000  # characters that MLflow keeps of a preview
JOURNAL_TIMEOUT = 30.0  # seconds that a journal which is being written is waited for
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
        self.artifacts = artifacts  # of this run, where MLflow keeps none by itself
        mlflow.set_tracking_uri(uri)
        self.uid = uid
        self.client = mlflow.MlflowClient(tracking_uri=uri)
        existing = self.client.get_experiment_by_name(experiment)
        if existing is None:
            # other runs may join the experiment: what is nobody's alone lies beside the database
            beside = artifacts and (database_of(uri) or artifacts).with_name("mlartifacts")
            location = beside.as_uri() if beside is not None else None
            self.experiment = self.client.create_experiment(experiment, artifact_location=location)
        else:
            self.experiment = existing.experiment_id
        mlflow.set_experiment(experiment_id=self.experiment)
        self._run: str | None = None

    @property
    def run(self) -> str:
        """The id of this run in MLflow, looked up by its tag once.

        Raises:
            LookupError: before the run's own entry was sent.
        """
        if self._run is None:
            runs = self.client.search_runs([self.experiment], f"tags.`mixloop.uid` = '{self.uid}'")
            if not runs:
                raise LookupError("the run is not in MLflow yet")
            self._run = runs[0].info.run_id
        return self._run

    def send(self, journal: Journal, entry: OutboxRow) -> None:
        """Carry over what one outbox entry comes to.

        Raises:
            Refused: when MLflow will never take it, or a part of it; the other parts it has.
            Exception: whatever the client raises when the server cannot be reached.
        """
        refusals = []
        decision = None
        if entry.kind == "decision":
            decision = queries.decision(journal, entry.payload["id"])
        for kind, payload in calls(entry.kind, entry.payload, decision):
            try:
                self._call(kind, payload)
            except Refused as refusal:
                refusals.append(refusal)
        if refusals:
            raise refusals[0]

    def _call(self, kind: str, payload: Json) -> None:
        from mlflow.exceptions import MlflowException

        methods: dict[str, Callable[[Json], None]] = {
            "run": self._send_run,
            "metrics": self._send_metrics,
            "model": self._send_model,
            "trace": self._send_trace,
            "span": self._send_span,
            "trace_tags": self._send_trace_tags,
            "note": self._send_note,
            "report": self._send_report,
            "end": self._send_end,
        }
        try:
            methods[kind](payload)
        except MlflowException as error:
            if error.error_code in REFUSED:
                raise Refused(str(error).splitlines()[0]) from error
            raise

    def _send_run(self, payload: Json) -> None:
        from mlflow.entities import Param

        try:
            run = self.run
        except LookupError:
            tags = {**payload["tags"], "mixloop.uid": self.uid}
            created = self.client.create_run(
                self.experiment, payload["ms"], tags=tags, run_name=payload["name"]
            )
            run = self._run = created.info.run_id
            self._keep_artifacts(run)
        params = [Param(key, str(value)[:6000]) for key, value in payload["params"].items()]
        self.client.log_batch(run, params=params, synchronous=True)
        self.client.set_terminated(run, status="RUNNING")

    def _keep_artifacts(self, run: str) -> None:
        """This run's artifacts in its own folder, whoever made the experiment.

        The client has no word for it, so the database is told; where another MLflow has it
        otherwise, they lie with the experiment's.
        """
        from mlflow.tracking._tracking_service.utils import _get_store
        from sqlalchemy import exc, text

        if self.artifacts is None:
            return
        change = text("UPDATE runs SET artifact_uri = :uri WHERE run_uuid = :run")
        place = f"{self.artifacts.as_uri()}/{run}/artifacts"
        unknown = contextlib.suppress(AttributeError, exc.DatabaseError)
        with unknown, _get_store(self.uri).engine.begin() as connection:
            connection.execute(change, {"uri": place, "run": run})

    def _send_metrics(self, payload: Json) -> None:
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

    def _send_model(self, payload: Json) -> None:
        name = payload["name"]
        models = self.client.search_logged_models(
            [self.experiment], f"name = '{name}' AND source_run_id = '{self.run}'"
        )
        if models:
            model = models[0]
        else:
            model = self.client.create_logged_model(
                self.experiment, name, self.run, payload["tags"], payload["params"], "checkpoint"
            )
        self.client.finalize_logged_model(model.model_id, "READY")
        self._show_on_run(model.model_id, payload["tokens"])
        data = {name: _dataset(name, text) for name, text in payload["datasets"].items()}
        if data:
            self._log_data(list(data.values()), model.model_id)
        self._log(payload["metrics"], payload["tokens"], payload["ms"], model.model_id, data)

    def _log_data(self, data: list[Any], model: str) -> None:
        """The benchmarks' items as inputs of the run and of the checkpoint's model."""
        from mlflow.entities import DatasetInput, LoggedModelInput

        inputs = [DatasetInput(dataset, []) for dataset in data]
        self.client.log_inputs(self.run, inputs, [LoggedModelInput(model_id=model)])

    def _show_on_run(self, model: str, tokens: int) -> None:
        """List the model among the run's outputs, once."""
        from mlflow.entities import LoggedModelOutput

        outputs = self.client.get_run(self.run).outputs
        listed = {output.model_id for output in (outputs.model_outputs if outputs else [])}
        if model not in listed:
            self.client.log_outputs(self.run, [LoggedModelOutput(model_id=model, step=tokens)])

    def _trace(self, decision: str) -> str | None:
        traces = self.client.search_traces(
            [self.experiment],
            f"tag.`mixloop.uid` = '{self.uid}' AND tag.`mixloop.decision` = '{decision}'",
            include_spans=False,
        )
        return traces[0].info.trace_id if traces else None

    def _known_trace(self, decision: str) -> str:
        """The trace, which was sent before anything that is added to it."""
        trace = self._trace(decision)
        if trace is None:  # somebody has deleted it
            raise Refused(f"the trace of {decision} is not in MLflow any more")
        return trace

    def _send_trace(self, payload: Json) -> None:
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
            _preview(root, payload["previews"])
            parents: dict[str | None, Any] = {None: root}
            spans = []  # a guard may say two things: names are not unique
            for name, parent, inputs, outputs in payload["spans"]:
                span = mlflow.start_span_no_context(
                    name,
                    span_type=_span_type(name),
                    parent_span=parents[parent],
                    inputs=inputs,
                    start_time_ns=start,
                )
                span.set_outputs(outputs)
                parents[name] = span
                spans.append(span)
            for span in spans:
                span.end(end_time_ns=end)
            root.end(outputs=payload["response"], end_time_ns=end)
        # The exporter swallows its errors, so the trace is looked up before it counts as sent.
        if self._trace(decision) is None:
            raise ConnectionError(f"the trace of {decision} did not arrive")

    def _send_span(self, payload: Json) -> None:
        """A later step on a decision's trace, under an id of its own: told twice it is one."""
        from mlflow.tracking._tracking_service.utils import _get_store

        spans = self.client.get_trace(self._known_trace(payload["id"])).data.spans
        root = next(span for span in spans if span.parent_id is None)
        try:
            _get_store(self.uri).log_spans(self.experiment, [_span(self.uid, root, payload)])
        except NotImplementedError as error:  # a server of before 3.4: the tags tell it too
            raise Refused(str(error)) from error

    def _send_note(self, payload: Json) -> None:
        self.client.set_tag(self.run, "mlflow.note.content", payload["note"])

    def _send_report(self, payload: Json) -> None:
        """The report and the picture as they stand, as artifacts of the run."""
        from mixloop.common.errors import BadInput
        from mixloop.controller.report import write_artifacts

        with tempfile.TemporaryDirectory() as folder:
            try:
                files = write_artifacts(self.folder, Path(folder))
            except BadInput:
                return  # neither trainer nor controller has anything to tell
            except Exception as error:  # a page less must not keep everything behind it waiting
                raise Refused(f"report: {type(error).__name__}: {error}") from error
            try:
                for file in files:
                    self.client.log_artifact(self.run, str(file), "report")
            except (PermissionError, NotADirectoryError) as error:
                # no place for artifacts that this machine can write to: the rest still goes
                raise Refused(f"report: {error}") from error

    def assessments(self) -> list[dict[str, Any]]:
        """What people said of this run's latest decisions."""
        traces = self.client.search_traces(
            [self.experiment],
            f"tag.`mixloop.uid` = '{self.uid}'",
            max_results=100,
            order_by=["timestamp_ms DESC"],
            include_spans=False,
        )
        return [
            _assessment(trace.info.tags["mixloop.decision"], assessment)
            for trace in traces
            for assessment in trace.info.assessments or ()
            if "mixloop.decision" in trace.info.tags
        ]

    def _send_trace_tags(self, payload: Json) -> None:
        trace = self._known_trace(payload["id"])
        for key, value in payload["tags"].items():
            self.client.set_trace_tag(trace, key, str(value)[:4000])

    def _send_end(self, payload: Json) -> None:
        self.client.set_tag(self.run, "mlflow.note.content", payload["note"])
        self.client.set_terminated(self.run, payload["status"], payload["ms"])


def _span_type(name: str) -> str:
    """MLflow's type of a step: ``guard dwell`` is a guard."""
    return SPANS.get(name.partition(" ")[0], "TASK")


def _preview(root: Any, previews: tuple[str, str]) -> None:
    """What the list of traces shows, where this client lets us say it without a global context."""
    with contextlib.suppress(ImportError, AttributeError):
        from mlflow.tracing.trace_manager import InMemoryTraceManager

        with InMemoryTraceManager.get_instance().get_trace(root.trace_id) as trace:
            if trace is not None:
                trace.info.request_preview, trace.info.response_preview = (
                    preview[:PREVIEW] for preview in previews
                )


def _span(uid: str, root: Any, payload: Json) -> Any:
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


def _assessment(decision: str, assessment: Any) -> Json:
    source = assessment.source
    at = datetime.fromtimestamp((assessment.create_time_ms or 0) / 1000, UTC)
    return {
        "id": assessment.assessment_id,
        "decision": decision,
        "name": assessment.name,
        "value": json.dumps(getattr(assessment, "value", None), default=str),
        "rationale": assessment.rationale or "",
        "by": source.source_id if source is not None else "",
        "at": at.isoformat(timespec="seconds").replace("+00:00", "Z"),
    }


def make_database(uri: str, uid: str) -> None:
    """Make an SQLite store that is not there yet, so that it appears whole or not at all.

    MLflow makes its tables in dozens of steps; killed between two of them it leaves a file that
    it can neither use nor mend ("table _alembic_tmp_experiments already exists").
    """
    from sqlalchemy.engine import make_url

    path = database_of(uri)
    if path is None or path.exists():
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


def database_of(uri: str) -> Path | None:
    """The file of an SQLite store; None for another kind, or one without a file."""
    from sqlalchemy.engine import make_url

    name = make_url(uri).database if uri.startswith("sqlite:") else None
    return None if name in (None, "", ":memory:") else Path(name)


def _make_tables(uri: str) -> None:
    from mlflow.tracking._tracking_service.utils import _get_store

    store = _get_store(uri)
    store.search_experiments(max_results=1)
    store.engine.dispose()


def _sink(request: Json) -> Sink:
    make_database(request["uri"], request["uid"])
    artifacts = Path(request["artifacts"]) if request["artifacts"] else None
    folder = Path(request["folder"])
    return Sink(request["uri"], request["experiment"], request["uid"], artifacts, folder)


def waiting(journal: Journal) -> Iterator[OutboxRow]:
    """Outbox entries that have not arrived yet, in the order they were written."""
    entry = queries.next_entry(journal, after=0)
    while entry is not None:
        yield entry
        entry = queries.next_entry(journal, after=entry.seq)


def _send(sink: Sink, journal: Journal, entry: OutboxRow) -> None:
    """Carry an entry over; a run that is not there (another server, deleted) is made again."""
    try:
        sink.send(journal, entry)
    except LookupError:
        run = queries.entry(journal, "run")
        if run is None or entry.kind == "run":
            raise
        sink.send(journal, run)
        sink.send(journal, entry)


def drain(request: Json, say: Callable[[Json], object]) -> int:
    """Carry over everything pending; ``say`` is told of each entry. Returns the exit code."""
    seq = 0
    sink: Sink | None = None
    path = Path(request["journal"])
    try:
        with closing(Journal(path, read_only=True, timeout=JOURNAL_TIMEOUT)) as journal:
            for entry in waiting(journal):
                seq, sink = entry.seq, sink or _sink(request)
                try:
                    _send(sink, journal, entry)
                except Refused as refusal:
                    say({"refused": seq, "error": str(refusal)})
                else:
                    say({"done": seq})
        seq = 0
        if assessments := (sink or _sink(request)).assessments():
            say({"assessments": assessments})
    except Exception as error:
        say({"failed": seq, "error": f"{type(error).__name__}: {error}".splitlines()[0][:500]})
        return 3
    return 0


def main() -> None:
    """Entry of ``python -m mixloop.controller.tracking.mlflow_sink REQUEST`` (a JSON object)."""
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
