"""An MLflow in memory under the drain's real code: down, slow, refusing, or losing its answers."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

from .here import sim


class Killed(BaseException):
    """The drain's process ended here."""


class MlflowException(Exception):  # noqa: N818 - MLflow's own name
    """As MLflow raises it."""

    def __init__(self, message: str, error_code: str = "INTERNAL_ERROR") -> None:
        super().__init__(message)
        self.error_code = error_code


class Store:
    """What the server keeps. Points are a set, by MLflow's rule; so are spans."""

    def __init__(self) -> None:
        self.runs: dict[str, SimpleNamespace] = {}
        self.points: dict[tuple[str, int, int, float, str | None], int] = {}
        self.models: dict[str, SimpleNamespace] = {}
        self.traces: dict[str, SimpleNamespace] = {}
        self.spans: dict[str, dict[str, SimpleNamespace]] = {}
        self.reports = 0
        self.made = 0
        self.down = False
        self.refused: set[tuple[str, int]] = set()
        self._late: list[Callable[[], Any]] = []

    def call(self, effect: Callable[[], Any]) -> Any:
        """One request, and what becomes of it."""
        faults = sim().faults
        if self._late and (not faults.on or faults.rng.random() < 0.3):
            self.catch_up()
        if self.down:
            raise ConnectionError("connection refused")
        if faults.draw("tracker-slow", 0.5):
            raise Killed
        if faults.draw("tracker-page", 0.5):
            page = "API request to endpoint failed with error code 400 != 200. <html>no</html>"
            raise MlflowException(page, "INVALID_PARAMETER_VALUE")
        if faults.draw("tracker-late", 0.5):
            self._late.append(effect)
            raise ConnectionError("timed out")
        answer = effect()
        if faults.draw("tracker-duplicate"):
            raise ConnectionError("the answer was lost")
        return answer

    def catch_up(self) -> None:
        """What was given up takes effect after all."""
        late, self._late = self._late, []
        for effect in late:
            with contextlib.suppress(KeyError):  # of what is not there any more
                effect()

    def name(self, prefix: str) -> str:
        """The id of something new."""
        self.made += 1
        return f"{prefix}{self.made:06d}"


class Page(list[Any]):
    """A page of an answer, and the last one."""

    token = None


class Client:
    """``MlflowClient``: what of it the drain uses."""

    def __init__(self, tracking_uri: str = "") -> None:
        self._store: Store = sim().tracker

    def get_experiment_by_name(self, name: str) -> Any:
        return self._store.call(lambda: SimpleNamespace(experiment_id="1"))

    def search_runs(self, experiments: list[str], wanted: str) -> list[Any]:
        uid = wanted.split("'")[1]
        return list(
            self._store.call(
                lambda: [r for r in self._store.runs.values() if r.tags["mixloop.uid"] == uid]
            )
        )

    def create_run(self, experiment: str, ms: int, tags: Any, run_name: str) -> Any:
        def effect() -> Any:
            name = self._store.name("run")
            run = SimpleNamespace(
                info=SimpleNamespace(run_id=name), tags=dict(tags), models=set(), status="", note=""
            )
            run.data = SimpleNamespace(params={}, metrics={})
            self._store.runs[name] = run
            return run

        return self._store.call(effect)

    def log_batch(
        self, run: str, metrics: Any = (), params: Any = (), synchronous: bool = True
    ) -> None:
        def effect() -> None:
            self._store.runs[run].data.params.update({param.key: param.value for param in params})
            for metric in metrics:
                key = (metric.key, metric.timestamp, metric.step, metric.value, metric.model_id)
                self._store.points[key] = 1

        which = (metrics[0].key, metrics[0].step) if metrics else ("", 0)
        if metrics and sim().faults.draw("tracker-refuses", 0.2):
            self._store.refused.add(which)
        if which in self._store.refused and not self._store.down:
            raise MlflowException("a value too strange", "INVALID_PARAMETER_VALUE")
        self._store.call(effect)

    def set_terminated(self, run: str, status: str, ms: int = 0) -> None:
        self._store.call(lambda: setattr(self._store.runs[run], "status", status))

    def set_tag(self, run: str, key: str, value: str) -> None:
        kept = "note" if key == "mlflow.note.content" else "checked_at"
        self._store.call(lambda: setattr(self._store.runs[run], kept, value))

    def delete_run(self, run: str) -> None:
        self._store.call(lambda: self._store.runs.pop(run, None))

    def search_logged_models(
        self, experiments: list[str], wanted: str, page_token: str | None = None
    ) -> Page:
        name = wanted.split("'")[1] if wanted.startswith("name") else None

        def effect() -> Page:
            models = self._store.models.values()
            return Page(m for m in models if name is None or m.name == name)

        found: Page = self._store.call(effect)
        return found

    def delete_logged_model(self, model: str) -> None:
        self._store.call(lambda: self._store.models.pop(model, None))

    def create_logged_model(self, experiment: str, name: str, *rest: Any) -> Any:
        def effect() -> Any:
            key = self._store.name("m")
            params = dict(rest[2])
            self._store.models[key] = SimpleNamespace(
                model_id=key, name=name, params=params, ready=False
            )
            return self._store.models[key]

        return self._store.call(effect)

    def finalize_logged_model(self, model: str, status: str) -> None:
        self._store.call(lambda: setattr(self._store.models[model], "ready", True))

    def get_run(self, run: str) -> Any:
        models = [SimpleNamespace(model_id=m) for m in self._store.runs[run].models]
        return SimpleNamespace(outputs=SimpleNamespace(model_outputs=models))

    def log_outputs(self, run: str, outputs: list[Any]) -> None:
        self._store.call(lambda: self._store.runs[run].models.add(outputs[0].model_id))

    def log_inputs(self, run: str, inputs: Any, models: Any) -> None:
        self._store.call(lambda: None)

    def log_artifact(self, run: str, path: str, folder: str) -> None:
        self._store.call(lambda: None)

    def search_traces(self, experiments: list[str], wanted: str, **options: Any) -> list[Any]:
        """Of those with a record, the ones of a decision; nobody has said anything of any."""
        texts = wanted.split("'")
        decision = texts[3] if len(texts) > 3 else None

        def effect() -> list[Any]:
            found = self._store.traces.values() if decision is not None else ()
            return [
                SimpleNamespace(info=trace)
                for trace in found
                if trace.tags.get("mixloop.decision") == decision
            ]

        return list(self._store.call(effect))

    def set_trace_tag(self, trace: str, key: str, value: str) -> None:
        self._store.call(lambda: self._store.traces[trace].tags.__setitem__(key, value))


class _Traces:
    """MLflow's tracking store: what of it the traces use. Each request is taken whole."""

    def __init__(self, uri: str = "") -> None:
        self._store: Store = sim().tracker

    def _known(self, trace: str) -> Any:
        empty = SimpleNamespace(trace_id=trace, tags={})
        return self._store.traces.setdefault(trace, empty)

    def log_spans(self, experiment: str, spans: list[Any]) -> None:
        def effect() -> None:
            for one in spans:
                self._known(one.trace_id).tags["mlflow.trace.spansLocation"] = "TRACKING_STORE"
                self._store.spans.setdefault(one.trace_id, {})[one.span_id] = one

        self._store.call(effect)

    def start_trace(self, record: Any) -> Any:
        def effect() -> Any:
            self._known(record.trace_id).tags.update(record.tags)
            return self._store.traces[record.trace_id]

        return self._store.call(effect)

    def get_trace_info(self, trace: str) -> Any:
        found = self._store.call(lambda: self._store.traces.get(trace))
        if found is None:
            raise MlflowException("no such trace", "RESOURCE_DOES_NOT_EXIST")
        return found

    def batch_get_traces(self, traces: list[str]) -> list[Any]:
        spans = self._store.call(
            lambda: [list(self._store.spans[trace].values()) for trace in traces]
        )
        return [SimpleNamespace(data=SimpleNamespace(spans=one)) for one in spans]


def span(trace: int, number: int, parent: int | None, name: str, *rest: Any) -> Any:
    """``decision_traces._span`` without OpenTelemetry's classes: the same identity."""
    above = None if parent is None else f"{parent:016x}"
    named = {"trace_id": f"tr-{trace:032x}", "span_id": f"{number:016x}"}
    return SimpleNamespace(**named, parent_id=above, name=name)


def record(trace: str, uid: str, experiment: str, run: str, payload: dict[str, Any]) -> Any:
    """``decision_traces._record`` without MLflow's classes."""
    tags = {"mixloop.uid": uid, "mixloop.decision": payload["id"], **payload["tags"]}
    return SimpleNamespace(trace_id=trace, tags=tags)


def _entity(*names: str) -> Callable[..., SimpleNamespace]:
    def made(*values: Any, **named: Any) -> SimpleNamespace:
        return SimpleNamespace(**dict(zip(names, values, strict=False)), **named)

    return made


def modules() -> dict[str, ModuleType]:
    """Stand-ins for the modules that the drain imports."""
    mlflow = ModuleType("mlflow")
    nothing = lambda *given, **named: None  # noqa: E731
    mlflow.__dict__.update(
        set_tracking_uri=nothing,
        set_experiment=nothing,
        MlflowClient=Client,
    )
    entities = ModuleType("mlflow.entities")
    entities.__dict__.update(
        Param=_entity("key", "value"),
        Metric=_entity(
            "key", "value", "timestamp", "step", "model_id", "dataset_name", "dataset_digest", "run"
        ),
        Dataset=_entity(),
        DatasetInput=_entity("dataset", "tags"),
        LoggedModelInput=_entity("model_id"),
        LoggedModelOutput=_entity("model_id", "step"),
        TraceData=_entity("spans"),
    )
    exceptions = ModuleType("mlflow.exceptions")
    exceptions.__dict__["MlflowException"] = MlflowException
    client = ModuleType("mlflow.tracing.client")
    client.__dict__["TracingClient"] = None  # of servers that keep spans as artifacts
    utils = ModuleType("mlflow.tracking._tracking_service.utils")
    utils.__dict__["_get_store"] = _Traces
    names = {"mlflow": mlflow, "mlflow.entities": entities, "mlflow.exceptions": exceptions}
    return names | {
        "mlflow.tracing": ModuleType("mlflow.tracing"),
        "mlflow.tracing.client": client,
        "mlflow.tracking": ModuleType("mlflow.tracking"),
        "mlflow.tracking._tracking_service": ModuleType("mlflow.tracking._tracking_service"),
        "mlflow.tracking._tracking_service.utils": utils,
    }


def install() -> dict[str, ModuleType | None]:
    """Put the stand-ins in place. Returns what was there, for :func:`restore`."""
    stand_ins = modules()
    before = {name: sys.modules.get(name) for name in stand_ins}
    sys.modules.update(stand_ins)
    return before


def restore(before: dict[str, ModuleType | None]) -> None:
    """Undo :func:`install`."""
    for name, module in before.items():
        if module is None:
            sys.modules.pop(name, None)
        else:
            sys.modules[name] = module
