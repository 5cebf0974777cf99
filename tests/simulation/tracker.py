"""An MLflow in memory under the drain's real code: down, slow, refusing, or losing its answers."""

from __future__ import annotations

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
    """What the server keeps. Points are a set, by MLflow's rule."""

    def __init__(self) -> None:
        self.runs: dict[str, SimpleNamespace] = {}
        self.points: dict[tuple[str, int, int, float, str | None], int] = {}
        self.models: dict[str, SimpleNamespace] = {}
        self.traces: dict[str, SimpleNamespace] = {}
        self.spans: dict[tuple[str, int], str] = {}
        self.reports = 0
        self.down = False
        self.refused: set[str] = set()

    def call(self, effect: Callable[[], Any]) -> Any:
        """One request, and what becomes of it."""
        faults = sim().faults
        if self.down:
            raise ConnectionError("connection refused")
        if faults.draw("tracker-slow", 0.5):
            raise Killed
        answer = effect()
        if faults.draw("tracker-duplicate"):
            raise ConnectionError("the answer was lost")
        return answer


def _named(prefix: str, count: int) -> str:
    return f"{prefix}{count + 1:06d}"


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
            name = _named("run", len(self._store.runs))
            run = SimpleNamespace(
                info=SimpleNamespace(run_id=name), tags=dict(tags), models=set(), status="", note=""
            )
            self._store.runs[name] = run
            return run

        return self._store.call(effect)

    def log_batch(
        self, run: str, metrics: Any = (), params: Any = (), synchronous: bool = True
    ) -> None:
        def effect() -> None:
            for metric in metrics:
                key = (metric.key, metric.timestamp, metric.step, metric.value, metric.model_id)
                self._store.points[key] = 1

        if metrics and sim().faults.draw("tracker-refuses", 0.2):
            self._store.refused.add(f"{metrics[0].key} {metrics[0].step}")
            raise MlflowException("a value too strange", "INVALID_PARAMETER_VALUE")
        self._store.call(effect)

    def set_terminated(self, run: str, status: str, ms: int = 0) -> None:
        self._store.call(lambda: setattr(self._store.runs[run], "status", status))

    def set_tag(self, run: str, key: str, value: str) -> None:
        self._store.call(lambda: setattr(self._store.runs[run], "note", value))

    def search_logged_models(self, experiments: list[str], wanted: str) -> list[Any]:
        name = wanted.split("'")[1]
        return list(
            self._store.call(lambda: [m for m in self._store.models.values() if m.name == name])
        )

    def create_logged_model(self, experiment: str, name: str, *rest: Any) -> Any:
        def effect() -> Any:
            key = _named("m", len(self._store.models))
            self._store.models[key] = SimpleNamespace(model_id=key, name=name, ready=False)
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
        texts = wanted.split("'")
        decision = texts[3] if len(texts) > 3 else None

        def effect() -> list[Any]:
            if decision is None:
                return []
            traces = [t for t in self._store.traces.values() if t.decision == decision]
            return [SimpleNamespace(info=SimpleNamespace(trace_id=t.trace_id)) for t in traces]

        return list(self._store.call(effect))

    def get_trace(self, trace: str) -> Any:
        root = SimpleNamespace(parent_id=None, trace_id=trace)
        return SimpleNamespace(data=SimpleNamespace(spans=[root]))

    def set_trace_tag(self, trace: str, key: str, value: str) -> None:
        self._store.call(lambda: self._store.traces[trace].tags.__setitem__(key, value))


class _Span:
    """A span being made; the root's end exports the trace."""

    def __init__(self, root: Any = None) -> None:
        self._root = root

    def set_outputs(self, outputs: Any) -> None:
        pass

    def end(self, outputs: Any = None, end_time_ns: int = 0) -> None:
        if self._root is None:
            return
        store: Store = sim().tracker

        def effect() -> None:
            key = _named("t", len(store.traces))
            decision = self._root["mixloop.decision"]
            store.traces[key] = SimpleNamespace(trace_id=key, decision=decision, tags={})

        try:
            store.call(effect)
        except ConnectionError:
            return  # MLflow's exporter swallows its errors


def _start_span(name: str, tags: Any = None, parent_span: Any = None, **rest: Any) -> _Span:
    return _Span(tags if parent_span is None else None)


class _SpanStore:
    def log_spans(self, experiment: str, spans: list[Any]) -> None:
        store: Store = sim().tracker
        span = spans[0]
        store.call(lambda: store.spans.__setitem__((span.trace_id, span.number), span.name))


def span(uid: str, root: Any, payload: dict[str, Any]) -> Any:
    """``drain._span`` without OpenTelemetry's classes: the same identity."""
    key = f"{uid} {payload['id']} {payload['name']}"
    return SimpleNamespace(trace_id=root.trace_id, number=key, name=payload["name"])


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
        start_span_no_context=_start_span,
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
    )
    exceptions = ModuleType("mlflow.exceptions")
    exceptions.__dict__["MlflowException"] = MlflowException
    utils = ModuleType("mlflow.tracking._tracking_service.utils")
    utils.__dict__["_get_store"] = lambda uri: _SpanStore()
    names = {"mlflow": mlflow, "mlflow.entities": entities, "mlflow.exceptions": exceptions}
    return names | {
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
