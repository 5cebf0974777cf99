"""Decisions as traces in MLflow: one each, whole, whatever happens while it is told.

MLflow's own exporter draws ids at random, sends a trace in a dozen requests and swallows their
errors. Here every id is made of what it names, the spans of a decision go in one request, which
the server takes whole or not at all, and nothing counts as arrived before MLflow's spans were read
back and counted. Telling a trace again therefore completes or repeats it, and never doubles it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from mixloop.common.types import Json

SPANS = {  # the icon of each step in MLflow's tree of a trace
    "decide": "AGENT",
    "guard": "GUARDRAIL",
    "outcome": "EVALUATOR",
    "receipt": "EVALUATOR",
}
PREVIEW = 1000  # characters that MLflow keeps of a preview
LOCATION, IN_STORE = "mlflow.trace.spansLocation", "TRACKING_STORE"  # a tag of MLflow's
MISSING = "RESOURCE_DOES_NOT_EXIST"
UNREADABLE = ("BAD_REQUEST", "INVALID_STATE")  # its spans are lost or damaged


class Traces:
    """The traces of one mixloop run.

    Args:
        uri: MLflow's address.
        client: Its client there.
        experiment: The id of the run's experiment.
        uid: The run's; every id is made of it.
    """

    def __init__(self, uri: str, client: Any, experiment: str, uid: str) -> None:
        self.uri, self.client, self.experiment, self.uid = uri, client, experiment, uid

    @property
    def _store(self) -> Any:
        from mlflow.tracking._tracking_service.utils import _get_store

        return _get_store(self.uri)

    def complete(self, payload: Json, run: str) -> tuple[str, str]:
        """See to it that MLflow has a decision's trace whole. Returns its id and its root span's.

        One that mixloop 0.1 told, under an id that MLflow's exporter drew, stays where it is; of
        one that was cut short there, what is missing is added.

        Raises:
            ConnectionError: it was sent, and is not there.
        """
        decision = payload["id"]
        number = _number(16, self.uid, decision)
        info = self._info(_name(number)) or self._told_before(decision)
        if info is not None:
            number = int(info.trace_id.removeprefix("tr-"), 16)
        spans = trace_spans(number, self.uid, payload)
        held = {} if info is None else self._held(info)
        if not _whole(info, held, spans):
            record = _record(_name(number), self.uid, self.experiment, run, payload)
            self._send(spans, record)
            info = self._info(_name(number))
            held = {} if info is None else self._held(info)
            if not _whole(info, held, spans):
                raise ConnectionError(f"the trace of {decision} did not arrive whole")
        root = next((name for name, parent in held.items() if parent is None), spans[0].span_id)
        return _name(number), root

    def add(self, trace: str, root: str, payload: Json) -> bool:
        """A later step on a decision's trace. False: this server (of before 3.4) takes none.

        Raises:
            ConnectionError: it was sent, and is not there.
        """
        number = int(trace.removeprefix("tr-"), 16)
        span = later_span(number, int(root, 16), self.uid, payload)
        if not self._log([span]):
            return False
        info = self._info(trace)
        countable = info is not None and info.tags.get(LOCATION) == IN_STORE
        if info is None or (countable and span.span_id not in self._held(info)):
            what = f"the {payload['name']} of {payload['id']}"
            raise ConnectionError(f"{what} did not arrive")
        return True

    def tag(self, trace: str, tags: Json) -> None:
        """Tags on a decision's trace."""
        for key, value in tags.items():
            self.client.set_trace_tag(trace, key, str(value)[:4000])

    def assessments(self) -> list[Json]:
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

    def _send(self, spans: Sequence[Any], record: Any) -> None:
        from mlflow.entities import TraceData
        from mlflow.tracing.client import TracingClient

        self._log(spans)  # else they go to the artifacts
        stored = self._store.start_trace(record)
        if stored.tags.get(LOCATION) != IN_STORE:  # a server of before 3.6, or one of files
            TracingClient(self.uri)._upload_trace_data(stored, TraceData(list(spans)))

    def _log(self, spans: Sequence[Any]) -> bool:
        """Send spans by themselves. False: this server keeps none so."""
        from mlflow.exceptions import MlflowException

        try:
            self._store.log_spans(self.experiment, list(spans))
        except NotImplementedError as error:  # MLflow's word for a server that is too old
            if "identify" in str(error):  # the request for its version failed
                raise ConnectionError(str(error)) from error
            return False
        except MlflowException as error:
            if "span logging is not supported" not in str(error):
                raise
            return False  # a server of files
        return True

    def _info(self, trace: str) -> Any:
        """MLflow's record of a trace, or None."""
        from mlflow.exceptions import MlflowException

        try:
            return self._store.get_trace_info(trace)
        except MlflowException as error:
            if error.error_code == MISSING:
                return None
            raise

    def _told_before(self, decision: str) -> Any:
        tags = f"tag.`mixloop.uid` = '{self.uid}' AND tag.`mixloop.decision` = '{decision}'"
        found = self.client.search_traces([self.experiment], tags, include_spans=False)
        return found[0].info if found else None

    def _held(self, info: Any) -> dict[str, str | None]:
        """The spans that MLflow has of a trace, each with its parent."""
        from mlflow.exceptions import MlflowException

        if info.tags.get(LOCATION) == IN_STORE:  # `get_trace` would refuse one in part
            traces = self._store.batch_get_traces([info.trace_id])
            spans = traces[0].data.spans if traces else []
        else:
            try:
                spans = self.client.get_trace(info.trace_id).data.spans
            except MlflowException as error:
                if error.error_code not in UNREADABLE:
                    raise
                spans = []
        return {span.span_id: span.parent_id for span in spans}


def _whole(info: Any, held: dict[str, str | None], spans: Sequence[Any]) -> bool:
    """Whether a trace has its record and all its first spans (mixloop 0.1's had drawn ids)."""
    if info is None or "mixloop.decision" not in info.tags:
        return False
    ours = {span.span_id for span in spans}
    return ours <= held.keys() or (
        not ours & held.keys() and len(held) >= len(ours) and None in held.values()
    )


def trace_spans(trace: int, uid: str, payload: Json) -> list[Any]:
    """The first spans of a decision's trace, the root before all others."""
    decision, start, end = payload["id"], payload["start_ms"], payload["end_ms"]
    root = _number(8, uid, decision, 0)
    whole = (payload["request"], payload["response"])
    spans = [_span(trace, root, None, payload["name"], "WORKFLOW", *whole, start, end)]
    parents: dict[str | None, int] = {None: root}
    # a guard may say two things: names are not unique
    for place, (name, parent, inputs, outputs) in enumerate(payload["spans"], 1):
        number = parents[name] = _number(8, uid, decision, place)
        step = (trace, number, parents[parent], name, _span_type(name))
        spans.append(_span(*step, inputs, outputs, start, end))
    return spans


def later_span(trace: int, root: int, uid: str, payload: Json) -> Any:
    """A step that followed a decision, below the root of its trace."""
    name, at = payload["name"], payload["ms"]
    key = f"{uid} {payload['id']} {name}"  # as mixloop 0.1 made it
    number = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big")
    both = (payload["inputs"], payload["outputs"])
    return _span(trace, number, root, name, _span_type(name), *both, at, at)


def _number(size: int, *of: object) -> int:
    """An id of so many bytes, made of what it names."""
    text = json.dumps(of, separators=(",", ":"))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:size], "big")


def _name(trace: int) -> str:
    """MLflow's name of a trace."""
    return f"tr-{trace:032x}"


def _span_type(name: str) -> str:
    """MLflow's type of a step: ``guard dwell`` is a guard."""
    return SPANS.get(name.partition(" ")[0], "TASK")


def _span(
    trace: int,
    number: int,
    parent: int | None,
    name: str,
    kind: str,
    inputs: object,
    outputs: object,
    start_ms: int,
    end_ms: int,
) -> Any:
    from mlflow.entities import Span
    from mlflow.tracing.constant import SpanAttributeKey
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.trace import SpanContext, SpanKind, TraceFlags
    from opentelemetry.trace.status import Status, StatusCode

    def context(of: int) -> Any:
        return SpanContext(trace, of, False, TraceFlags(1))

    attributes = {
        SpanAttributeKey.REQUEST_ID: json.dumps(_name(trace)),
        SpanAttributeKey.INPUTS: json.dumps(inputs),
        SpanAttributeKey.OUTPUTS: json.dumps(outputs),
        SpanAttributeKey.SPAN_TYPE: json.dumps(kind),
    }
    return Span(
        ReadableSpan(
            name=name,
            context=context(number),
            parent=None if parent is None else context(parent),
            attributes=attributes,
            resource=Resource({}),
            start_time=start_ms * 1_000_000,
            end_time=end_ms * 1_000_000,
            status=Status(StatusCode.OK),
            kind=SpanKind.INTERNAL,
        )
    )


def _record(trace: str, uid: str, experiment: str, run: str, payload: Json) -> Any:
    """MLflow's record of a decision's trace: what its list of traces shows."""
    from mlflow.entities import TraceInfo, TraceLocation, TraceState

    asked, came = (preview[:PREVIEW] for preview in payload["previews"])
    own = {"mlflow.traceName": payload["name"]}
    return TraceInfo(
        trace_id=trace,
        trace_location=TraceLocation.from_experiment_id(experiment),
        request_time=payload["start_ms"],
        state=TraceState.OK,
        request_preview=asked,
        response_preview=came,
        execution_duration=payload["end_ms"] - payload["start_ms"],
        trace_metadata={"mlflow.sourceRun": run, "mlflow.trace_schema.version": "3"},
        tags={**own, "mixloop.uid": uid, "mixloop.decision": payload["id"], **payload["tags"]},
    )


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
