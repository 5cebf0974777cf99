"""What MLflow is told. Pure: facts in, outbox entries out; entries in, calls of MLflow out.

An entry is a fact as it happened, under a key that names it, so a fact told twice is one entry.
What it comes to in MLflow (:func:`calls`) is worked out when it is sent: an order that came into
force is points, tags and a span there, and the outbox of a long run holds it once.

``bits_per_byte/gsm8k`` rather than the other way round: MLflow groups charts by the part before the
slash, and one metric over all benchmarks is what people compare. Metric names avoid the characters
that MLflow refuses. The step of every metric is training *tokens*.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TypeGuard

from mixloop.common.types import Json
from mixloop.common.units import format_tokens
from mixloop.contract import Status

from . import wording
from .decision_record import Weights
from .journal_rows import CheckpointRow, DecisionRow, ExperimentRow, OrderRow

LOWER, UPPER = "_lower", "_upper"  # one standard error off a score
NOTE_INTERVENTIONS = 40  # in a run's description


@dataclass(frozen=True)
class Entry:
    """One entry of the outbox."""

    key: str
    kind: str
    payload: Json


Call = tuple[str, Json]
"""One thing that MLflow is asked to keep: what it is, and its content."""

# -- facts -----------------------------------------------------------------------------------------

MOST_CHARTED = 1000
"""Sources that get curves of their own in MLflow: 10,000 would make twelve million points of a run,
in charts that nobody can look at. The traces of decisions have every weight."""


def run_entry(run: str, params: Mapping[str, object], ms: int) -> Entry:
    """The run itself, with its configuration as parameters."""
    sizes = [name for name in params if name.startswith("unique_tokens.")]
    left_out = set(sizes) if len(sizes) > MOST_CHARTED else set()
    told = {name: value for name, value in params.items() if name not in left_out}
    payload = {"name": run, "ms": ms, "params": told, "tags": {"mixloop.run": run}}
    return Entry("run", "run", payload)


def start_entry(weights: Weights, ms: int) -> Entry:
    """The mixture at the start of training."""
    return Entry("mixture:0", "metrics", _mixture_point(0, weights, 0, ms))


def published_entry(order: OrderRow, fence: int, ms: int) -> Entry:
    """An order lies in the shared state file for the first time."""
    payload = {
        "id": order.decision,
        "generation": order.generation,
        "weights": _rounded(order.weights),
        "fence": fence,
        "ms": ms,
    }
    return Entry(f"published:{order.decision}", "published", payload)


def applied_entry(order: OrderRow, before: Weights, ms: int) -> Entry:
    """An order came into force; ``before``: the mixture until then."""
    payload = {
        "id": order.decision,
        "generation": order.generation,
        "weights": _rounded(order.weights),
        "weights_before": _rounded(before),
        "step": order.applied_step,
        "tokens": order.applied_tokens,
        "ms": ms,
    }
    return Entry(f"applied:{order.generation}", "applied", payload)


def curves_entry(
    status: Status, ms: int, before: Status | None = None, max_epochs: float | None = None
) -> Entry:
    """The trainer's own curves at one heartbeat, and what its machine did, where it tells.

    With an earlier heartbeat, ``before``, also the mixture that was realised between the two; with
    the cap, ``max_epochs``, also every source's epochs in parts of it.
    """
    metrics: dict[str, object] = {
        "train/loss": status.loss,
        "train/learning_rate": status.lr,
        "train/grad_norm": status.grad_norm,
        "train/tokens_per_second": status.tokens_per_second,
    }
    if len(status.sources) <= MOST_CHARTED:
        for name, source in status.sources.items():
            metrics[f"epochs/{name}"] = source.epochs
            metrics[f"source_loss/{name}"] = source.loss
            if max_epochs is not None:
                metrics[f"epochs_of_cap/{name}"] = source.epochs / max_epochs
        metrics |= _realised(status, before)
    if status.system is not None:
        metrics |= {f"system/{name}": value for name, value in asdict(status.system).items()}
    if status.health is not None:
        metrics["train/nan_steps"] = status.health.nan_steps
        metrics["train/spikes"] = status.health.spikes
    points = {key: float(value) for key, value in metrics.items() if _is_number(value)}
    payload = {"metrics": points, "tokens": status.tokens, "ms": ms}
    return Entry(f"curves:{status.tokens}", "metrics", payload)


def _realised(status: Status, before: Status | None) -> dict[str, float]:
    """The mixture that was consumed between two heartbeats: each source's share of the tokens."""
    if before is None or before.incarnation != status.incarnation:
        return {}
    drawn = {
        name: source.tokens - (before.sources[name].tokens if name in before.sources else 0)
        for name, source in status.sources.items()
    }
    total = sum(drawn.values())
    if total <= 0 or min(drawn.values()) < 0:
        return {}
    return {f"mixture_realised/{name}": count / total for name, count in drawn.items()}


def checkpoint_entry(checkpoint: CheckpointRow, benchmarks: Mapping[str, Json], ms: int) -> Entry:
    """A scored checkpoint: a logged model that carries its scores, and points on the curves.

    The mixture it was taken under is among them, so that its curves reach the end of the run.
    ``benchmarks`` are those of its scorecard.
    """
    mixture = checkpoint.weights
    charted = mixture if len(mixture) <= MOST_CHARTED else {}
    metrics = {f"mixture/{name}": weight for name, weight in _rounded(charted).items()}
    for benchmark, score in benchmarks.items():
        for metric, measured in score["metrics"].items():
            value, error = measured["value"], measured["stderr"]
            if not _is_number(value):
                continue
            metrics[f"{metric}/{benchmark}"] = float(value)
            if _is_number(error):  # the band's edges, beside the curve in one group of charts
                metrics[f"{metric}/{benchmark}{LOWER}"] = value - error
                metrics[f"{metric}/{benchmark}{UPPER}"] = value + error
    params = {"step": str(checkpoint.step), "tokens": str(checkpoint.tokens)}
    params |= {"path": checkpoint.path, "generation": str(checkpoint.generation)}
    params |= {f"weight.{name}": f"{weight:.6g}" for name, weight in charted.items()}
    missing = {
        f"missing.{name}": str(score["reason"])
        for name, score in benchmarks.items()
        if score["status"] != "ok"
    }
    payload = {
        "name": f"step-{checkpoint.step:08d}",
        "tags": missing,
        "params": params,
        "metrics": metrics,
        "datasets": {
            name: score["data"] for name, score in benchmarks.items() if score.get("data")
        },
        "tokens": checkpoint.tokens,
        "ms": ms,
    }
    return Entry(f"model:{checkpoint.step}", "model", payload)


def decision_entry(decision_id: str, scores: Json, start_ms: int, end_ms: int) -> Entry:
    """A decision; the rest of it is in the journal's row, which never changes.

    ``scores`` are the checkpoint's, by benchmark and metric.
    """
    times = {"start_ms": start_ms, "end_ms": end_ms}
    payload = {"id": decision_id, "scores": _readable(scores), **times}
    return Entry(f"decision:{decision_id}", "decision", payload)


def approval_entry(decision_id: str, state: str, by: str | None) -> Entry:
    """A decision that waited for a person: what became of it, as tags on its trace."""
    tags = {"approval": state} | ({"approval.by": by} if by else {})
    return Entry(f"approval:{decision_id}", "trace_tags", {"id": decision_id, "tags": tags})


def outcome_entries(decision_id: str, found: Json, ms: int) -> list[Entry]:
    """What the benchmarks did over the window of an intervention, and a new report."""
    payload = {"id": decision_id, **found, "ms": ms}
    return [
        Entry(outcome_key(decision_id), "outcome", payload),
        Entry(f"report:{decision_id}", "report", {}),
    ]


def receipt_entry(decision_id: str, told: Json, ms: int) -> Entry:
    """What an intervention's twin says of it, once for each number of points."""
    key = f"receipt:{decision_id}:{told['n']}"
    return Entry(key, "receipt", {"id": decision_id, "receipt": told, "ms": ms})


def outcome_key(decision_id: str) -> str:
    """The key under which a decision's outcome was told."""
    return f"outcome:{decision_id}"


def outcome_gains(payload: Json) -> dict[str, str]:
    """By benchmark, the gain that an outcome's entry tells: ``+0.1000 ± 0.0200 bits_per_byte``."""
    shared = wording.shared(payload)
    return {
        name: f"{effect['gain']:+.4f} {wording.error_of(effect)} {effect['metric']}{shared}"
        for name, effect in payload["benchmarks"].items()
    }


def experiment_entry(
    row: ExperimentRow, state: str, reason: str | None, cost: int, effects: Json, ms: int
) -> Entry:
    """An experiment has ended, ``cost`` tokens later; ``effects``: what came of it, in figures."""
    payload = {
        "id": row.decision,
        "experiment": row.id,
        "state": state,
        "reason": reason,
        "step": row.step,
        "tokens": row.tokens,
        "cost": cost,
        "weights": _rounded(row.asked["weights"]),
        "effects": effects,
        "ms": ms,
    }
    return Entry(f"experiment:{row.id}", "experiment", payload)


def note_entry(key: str, note: str) -> Entry:
    """The run's description as it stands."""
    return Entry(f"note:{key}", "note", {"note": note})


def end_entry(tokens: int, note: str, ms: int) -> Entry:
    """The run has ended after ``tokens``; ``note`` (markdown) becomes its description."""
    return Entry(f"end:{tokens}", "end", {"status": "FINISHED", "ms": ms, "note": note})


# -- what they come to in MLflow -------------------------------------------------------------------


def calls(kind: str, payload: Json, decision: DecisionRow | None = None) -> list[Call]:
    """What an entry of the outbox comes to in MLflow, in order.

    An entry of the kind ``decision`` needs the decision that it is of.
    """
    if kind == "decision":
        assert decision is not None, "an entry of no decision"
        return [_trace(decision, payload)]
    spread = _SPREAD.get(kind)
    return [(kind, payload)] if spread is None else spread(payload)


def _trace(decision: DecisionRow, entry: Json) -> Call:
    """What was observed, what the policy answered, what each guard did.

    What follows (publish, applied, outcome) is added when it happens.
    """
    before, after = _rounded(decision.weights_before), _rounded(decision.weights_after)
    waits: Json = {}
    if decision.verdict == "awaiting-approval":
        waits = {"weights_if_approved": _rounded(wording.would_order(decision.to_json()))}
    at = {"step": decision.step, "tokens": decision.tokens}
    verdict = {"verdict": decision.verdict}
    reason = {"reason": decision.reason}
    request = {"scores": entry["scores"], **at, "weights": before}
    proposed = {"weights_proposed": decision.weights_proposed}
    proposal = {**proposed, **reason, "evidence": decision.evidence}
    spans: list[tuple[str, str | None, object, object]] = [
        ("observe", None, at, request),
        ("decide", None, {"policy": decision.policy, **request}, proposal),
        ("guard", None, proposed, {**verdict, "weights": after}),
        *((f"guard {n.guard}", "guard", n.before, n.to_json()) for n in decision.guards),
    ]
    payload = {
        "id": decision.id,
        "name": f"{decision.id} {decision.verdict}",
        "start_ms": entry["start_ms"],
        "end_ms": entry["end_ms"],
        "request": request,
        "response": {
            **(verdict | reason),
            "weights_before": before,
            "weights_after": after,
            "generation": decision.generation,
            **waits,
        },
        "previews": _previews(decision, entry["scores"]),
        "spans": spans,
        "tags": {
            **verdict,
            "policy": decision.policy,
            "step": str(decision.step),
            "tokens": str(decision.tokens),
            **({"approval": "waiting"} if waits else {}),
        },
    }
    return "trace", payload


def _previews(decision: DecisionRow, scores: Mapping[str, str]) -> tuple[str, str]:
    """What a list of traces shows of a decision: what it looked at, and what came of it."""
    shown = [f"{name} {value}" for name, value in scores.items()]
    steering = [score for score in shown if " bits_per_byte " in score] or shown
    at = f"step {decision.step}, {format_tokens(decision.tokens)} tokens"
    moved = wording.changes(decision.to_json())
    came = f"{decision.id} {decision.verdict}" + (f": {moved}" if moved != "-" else "")
    asked = "; ".join([at, wording.mixture(decision.weights_before), *steering])
    return asked, f"{came}; {' '.join(decision.reason.split())}"


def _published_calls(order: Json) -> list[Call]:
    inputs = {"generation": order["generation"], "weights": order["weights"]}
    outputs = {"file": "mixture.json", "fence": order["fence"]}
    return [_span(order, "publish", inputs, outputs)]


def _applied_calls(order: Json) -> list[Call]:
    """The step in the curves, and where it is, on the decision's trace.

    The weights before it are logged once more one token earlier, so that the chart shows a step
    where there was a step and not a slope from the last point.
    """
    generation, before, tokens = order["generation"], order["weights_before"], order["tokens"]
    edge = _mixture_point(generation - 1, before, max(tokens - 1, 0), order["ms"])
    point = _mixture_point(generation, order["weights"], tokens, order["ms"])
    point["metrics"]["order/applied_step"] = float(order["step"])
    tags = {"applied_step": order["step"], "applied_tokens": tokens, "generation": generation}
    inputs = {"generation": generation, "weights": order["weights"]}
    return [
        ("metrics", edge),
        ("metrics", point),
        ("trace_tags", {"id": order["id"], "tags": tags}),
        _span(order, "applied", inputs, tags | {"weights_before": before}),
    ]


def _outcome_calls(outcome: Json) -> list[Call]:
    """Tags and a step on the decision's trace."""
    tags = {f"outcome.{name}": gain for name, gain in outcome_gains(outcome).items()}
    tags["outcome_step"] = outcome["step"]
    if outcome.get("shared_with"):
        tags["outcome_shared_with"] = ", ".join(outcome["shared_with"])
    return [
        ("trace_tags", {"id": outcome["id"], "tags": tags}),
        _span(outcome, "outcome", {"step": outcome["step"]}, outcome["benchmarks"]),
    ]


def _receipt_calls(entry: Json) -> list[Call]:
    """A tag and a step on the decision's trace."""
    told = entry["receipt"]
    (line,) = wording.receipt_lines(told)
    tags = {"outcome.receipt": line.removeprefix("receipt: ")}
    return [
        ("trace_tags", {"id": entry["id"], "tags": tags}),
        _span(entry, "receipt", {"points": told["n"]}, told),
    ]


def _experiment_calls(experiment: Json) -> list[Call]:
    """Tags and a step on the trace of the decision that asked for it, and its gains as points."""
    tags = {"experiment": experiment["experiment"], "experiment.state": experiment["state"]}
    tags["experiment.cost"] = format_tokens(experiment["cost"])
    if experiment["reason"]:
        tags["experiment.reason"] = experiment["reason"]
    points = {"experiment/cost": float(experiment["cost"])}
    for fit in experiment["effects"].get("fits", ()):
        if fit["part"] == "whole":
            for name, found in fit["gains"].items():
                tags[f"experiment.{name}"] = f"{found['gain']:+.4f} ± {found['stderr']:.4f}"
                points[f"experiment_gain/{name}"] = found["gain"]
    inputs = {"step": experiment["step"], "weights": experiment["weights"]}
    at = {"tokens": experiment["tokens"], "ms": experiment["ms"]}
    return [
        ("trace_tags", {"id": experiment["id"], "tags": tags}),
        _span(experiment, "experiment", inputs, tags | experiment["effects"]),
        ("metrics", {"metrics": points, **at}),
    ]


_SPREAD: dict[str, Callable[[Json], list[Call]]] = {
    "published": _published_calls,
    "applied": _applied_calls,
    "outcome": _outcome_calls,
    "receipt": _receipt_calls,
    "experiment": _experiment_calls,
}


def _span(entry: Json, name: str, inputs: Json, outputs: Json) -> Call:
    """A later step of a decision, for its trace."""
    payload = {"id": entry["id"], "name": name, "inputs": inputs, "outputs": outputs}
    return "span", payload | {"ms": entry["ms"]}


def _mixture_point(generation: int, weights: Weights, tokens: int, ms: int) -> Json:
    """The weights in force from this token on."""
    charted = weights if len(weights) <= MOST_CHARTED else {}
    metrics = {f"mixture/{name}": weight for name, weight in _rounded(charted).items()}
    metrics["order/generation"] = float(generation)
    return {"metrics": metrics, "tokens": tokens, "ms": ms}


# -- the run's description -------------------------------------------------------------------------


Intervention = tuple[DecisionRow, OrderRow | None, Mapping[str, str]]
"""A decision, its order, and what each benchmark did after it."""


def run_note(interventions: Sequence[Intervention], changed: int, decisions: int) -> str:
    """The run's story in Markdown: a paragraph, then its last interventions as a table.

    Args:
        interventions: the last ones, oldest first.
        changed: how many there were.
        decisions: how many decisions there were.
    """
    lines = [_story(interventions, changed, decisions), ""]
    if changed > len(interventions):
        lines += [f"The last {len(interventions)}; `mixloop history` has all.", ""]
    if interventions:
        lines += [
            "| decision | tokens | in force at step | mixture | why | what followed |",
            "|---|---|---|---|---|---|",
        ]
    for decision, order, gains in interventions:
        applied = order.applied_step if order is not None else None
        weights = ", ".join(f"{name} {w:.3g}" for name, w in decision.weights_after.items())
        cells = [decision.id, f"{decision.tokens:,}", "-" if applied is None else applied, weights]
        cells += [_cell(decision.reason), _cell(_gains(gains))]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    lines += [
        "",
        "Every decision is a trace (tab *Traces*) with its evidence, its guards and what followed; "
        "the whole run on one page is the artifact `report/report.html`.",
    ]
    return "\n".join(lines)


def _story(interventions: Sequence[Intervention], changed: int, decisions: int) -> str:
    """The first lines of the description, all that MLflow shows before *Show more*."""
    sentences = [f"{_count(changed, 'intervention')} in {_count(decisions, 'decision')}."]
    if not interventions:
        return sentences[0]
    last = interventions[-1][0]
    moved = wording.moves(last.weights_before, last.weights_after)
    sentences.append(
        f"The last, **{last.id}** at {format_tokens(last.tokens)} tokens, moved "
        f"{_cell(moved)}: {_cell(last.reason)}."
    )
    followed = [(decision.id, gains) for decision, _, gains in interventions if gains]
    if followed:
        decision_id, gains = followed[-1]
        sentences.append(f"After {decision_id}: {_cell(_gains(gains))} (positive is better).")
    return " ".join(sentences)


def _gains(gains: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {gain}" for name, gain in gains.items())


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _cell(value: str) -> str:
    """Text for a cell of a table in Markdown: one line, no bars."""
    return " ".join(value.replace("|", "/").split())


def _rounded(weights: Mapping[str, float]) -> dict[str, float]:
    """Shares for reading: the exact ones are integers over 2^24 and look like noise."""
    return {name: round(weight, 6) for name, weight in weights.items()}


def _readable(scores: Json) -> dict[str, str]:
    """``{"gsm8k bits_per_byte": "2.709 ± 0.13 (n=8)"}``, steering metrics first."""
    shown: dict[str, str] = {}
    for first in (True, False):
        for benchmark, metrics in scores.items():
            for metric, measured in metrics.items():
                if (metric == "bits_per_byte") == first:
                    stderr = measured["stderr"]
                    error = f" ± {stderr:.3g}" if _is_number(stderr) else ""
                    value = f"{measured['value']:.4g}{error} (n={measured['n']})"
                    shown[f"{benchmark} {metric}"] = value
    return shown


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and math.isfinite(value)
