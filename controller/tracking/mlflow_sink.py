"""One mixloop run's place in MLflow: what each entry of the outbox does there.

Every effect may happen again: it is looked up first (by tag, by name), has an id made of what it
is, or is idempotent by MLflow's own rule (a point of equal key, timestamp, step and value is one
point). A request that seemed lost may also take effect late: what it doubles is put away.
"""

from __future__ import annotations

import contextlib
import hashlib
import tempfile
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mixloop.common.types import Json
from mixloop.controller.core import LOWER, UPPER, OutboxRow, calls
from mixloop.controller.journal import Journal, queries

from .decision_traces import Traces
from .mlflow_database import database_of

# What MLflow answers for good. Not BAD_REQUEST, which it also says when its database fails.
REFUSED = ("INVALID_PARAMETER_VALUE", "INVALID_STATE")


class Refused(Exception):  # noqa: N818 - the server refused, we did not err
    """MLflow itself, or this machine, says that an entry can't be taken."""


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
        _given(self.experiment, uri)
        self.traces = Traces(uri, self.client, self.experiment, uid)
        self._run: str | None = None
        self._trace: tuple[str, str] | None = None  # of the entry that is being sent

    @property
    def run(self) -> str:
        """The id of this run in MLflow, looked up by its tag once.

        Of several, made by requests that seemed lost and were only late, the one that has something
        is the run, and what is empty goes.

        Raises:
            LookupError: before the run's own entry was sent.
        """
        if self._run is None:
            runs = self.client.search_runs([self.experiment], f"tags.`mixloop.uid` = '{self.uid}'")
            if not runs:
                raise LookupError("the run is not in MLflow yet")
            first, *others = sorted(runs, key=lambda run: (not run.data.params, run.info.run_id))
            for other in others:
                if not other.data.params and not other.data.metrics:
                    self.client.delete_run(other.info.run_id)
            self._run = first.info.run_id
        return self._run

    def takes_writes(self) -> bool:
        """Whether MLflow takes what can't be wrong: a tag on the run."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        try:
            self.client.set_tag(self.run, "mixloop.checked_at", now)
        except Exception:
            return False
        return True

    def send(self, journal: Journal, entry: OutboxRow) -> None:
        """Carry over what one outbox entry comes to.

        Raises:
            Refused: when MLflow will not take it, or a part of it; the other parts it has.
            Exception: whatever the client raises when the server cannot be reached.
        """
        refusals = []
        self._trace = None
        for kind, payload in _calls(journal, entry):
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
            # the client calls what a proxy answers "API request to ... failed"
            if error.error_code in REFUSED and not str(error).startswith("API request to"):
                raise Refused(line(error)) from error
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
            run = self._run = _given(created.info.run_id, self.uri)
            self._keep_artifacts(run)
        params = [Param(key, str(value)[:6000]) for key, value in payload["params"].items()]
        self.client.log_batch(run, params=params, synchronous=True)

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
        if points:
            self.client.log_batch(self.run, metrics=points, synchronous=True)

    def _send_model(self, payload: Json) -> None:
        name = payload["name"]
        mine = f"name = '{name}' AND source_run_id = '{self.run}'"
        models = {model.model_id: model.params for model in self._models(mine)}
        if models:
            model = self._keep_one(list(models))
            # of many the client sends a hundred at first
            if missing := {k: v for k, v in payload["params"].items() if k not in models[model]}:
                self.client.log_model_params(model, missing)
        else:
            created = self.client.create_logged_model(
                self.experiment, name, self.run, payload["tags"], payload["params"], "checkpoint"
            )
            model = _given(created.model_id, self.uri)
        self.client.finalize_logged_model(model, "READY")
        if model not in self._outputs():
            self._list(model, payload["tokens"])
        data = {name: _dataset(name, text) for name, text in payload["datasets"].items()}
        if data:
            self._log_data(list(data.values()), model)
        self._log(payload["metrics"], payload["tokens"], payload["ms"], model, data)

    def _models(self, wanted: str) -> Iterator[Any]:
        token: str | None = None
        while True:
            page = self.client.search_logged_models([self.experiment], wanted, page_token=token)
            yield from page
            token = page.token
            if not token:
                return

    def _keep_one(self, models: list[str]) -> str:
        """One model of a checkpoint; others were made by requests that were only late."""
        if len(models) > 1:
            listed = self._outputs()
            models = sorted(models, key=lambda model: (model not in listed, model))
            for other in models[1:]:
                self.client.delete_logged_model(other)
        return models[0]

    def _outputs(self) -> set[str]:
        """The models that are listed among the run's outputs."""
        outputs = self.client.get_run(self.run).outputs
        return {output.model_id for output in (outputs.model_outputs if outputs else [])}

    def _list(self, model: str, tokens: int) -> None:
        from mlflow.entities import LoggedModelOutput

        self.client.log_outputs(self.run, [LoggedModelOutput(model_id=model, step=tokens)])

    def _log_data(self, data: list[Any], model: str) -> None:
        """The benchmarks' items as inputs of the run and of the checkpoint's model."""
        from mlflow.entities import DatasetInput, LoggedModelInput

        inputs = [DatasetInput(dataset, []) for dataset in data]
        self.client.log_inputs(self.run, inputs, [LoggedModelInput(model_id=model)])

    def _send_trace(self, payload: Json) -> None:
        self._trace = self.traces.complete(payload, self.run)

    def _send_span(self, payload: Json) -> None:
        """A later step on a decision's trace, under an id of its own: told twice it is one."""
        if not self.traces.add(*self._known_trace(), payload):  # the tags tell it too
            raise Refused("a server of before MLflow 3.4 takes no span after its trace")

    def _send_trace_tags(self, payload: Json) -> None:
        self.traces.tag(self._known_trace()[0], payload["tags"])

    def _known_trace(self) -> tuple[str, str]:
        if self._trace is None:
            raise Refused("its decision's trace was refused")
        return self._trace

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

    def _send_end(self, payload: Json) -> None:
        self._send_note(payload)
        self.client.set_terminated(self.run, payload["status"], payload["ms"])
        names: dict[str, list[str]] = {}
        for model in self._models(f"source_run_id = '{self.run}'"):
            names.setdefault(model.name, []).append(model.model_id)
        for models in names.values():
            self._keep_one(models)


def _calls(journal: Journal, entry: OutboxRow) -> list[tuple[str, Json]]:
    """What an entry comes to in MLflow; where it is on a decision's trace, first the trace.

    Of descriptions of the run the newest is told, whichever entry's turn it is.
    """
    kind, payload = entry.kind, entry.payload
    if kind in ("note", "end"):
        newest = queries.newest_description(journal)
        payload = {**payload, "note": newest.payload["note"]} if newest is not None else payload
    decision = None if payload.get("id") is None else queries.decision(journal, payload["id"])
    if decision is None:
        return calls(kind, payload)
    if kind == "decision":
        return calls(kind, payload, decision)
    told = queries.entry(journal, f"decision:{decision.id}")
    assert told is not None, f"{decision.id} is told nobody"
    return [*calls("decision", told.payload, decision), *calls(kind, payload)]


def _given(identity: Any, uri: str) -> str:
    """An id that a server gave; one that gives none, and says well, is something else."""
    if not identity:
        raise ConnectionError(f"what answers at {uri} is not MLflow")
    return str(identity)


def line(error: Exception) -> str:
    """The first line of what an error says."""
    return next(iter(str(error).splitlines()), "") or type(error).__name__


def _dataset(name: str, text: str) -> Any:
    """A benchmark's items as MLflow knows data: told apart by where they come from."""
    from mlflow.entities import Dataset

    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    return Dataset(name=name, digest=digest, source_type="mixloop", source=text[:1000])
