"""What MLflow is told, as outbox entries. Pure: rows in, ``(key, kind, payload)`` out.

``bits_per_byte/gsm8k`` rather than the other way round: MLflow groups charts by the part before the
slash, and one metric over all benchmarks is what people compare.

A key names a fact, so a fact told twice is one entry. Metric names use ``/`` to group charts and
avoid the characters that MLflow refuses. The step of every metric is training *tokens*.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mixloop.common.types import Json
from mixloop.common.units import format_tokens

from . import wording

LOWER, UPPER = "_lower", "_upper"  # one standard error off a score
OUTCOME = "outcome."  # of a trace's tags: what a benchmark did after the decision
TOLD = 40  # interventions in a run's description


@dataclass(frozen=True)
class Entry:
    """One entry of the outbox."""

    key: str
    kind: str
    payload: Json


def run_entry(run: str, params: Mapping[str, object], ms: int) -> Entry:
    """The run itself, with its configuration as parameters."""
    payload = {"name": run, "ms": ms, "params": dict(params), "tags": {"mixloop.run": run}}
    return Entry("run", "run", payload)


def mixture_entry(generation: int, weights: Mapping[str, float], tokens: int, ms: int) -> Entry:
    """The weights in force from this token on."""
    metrics = {f"mixture/{name}": weight for name, weight in _rounded(weights).items()}
    metrics["order/generation"] = float(generation)
    return Entry(
        f"mixture:{generation}", "metrics", {"metrics": metrics, "tokens": tokens, "ms": ms}
    )


def applied_entries(order: Json, before: Mapping[str, float], ms: int) -> list[Entry]:
    """An order came into force: the step in the curves, and where, on its decision's trace.

    The weights before it are logged once more one token earlier, so that the chart shows a step
    where there was a step and not a slope from the last point.
    """
    generation, tokens = order["generation"], order["applied_tokens"]
    edge = mixture_entry(generation - 1, before, max(tokens - 1, 0), ms)
    entries = [
        Entry(f"mixture:{generation}:before", edge.kind, edge.payload),
        mixture_entry(generation, order["weights"], tokens, ms),
        Entry(
            f"applied-step:{generation}",
            "metrics",
            {
                "metrics": {"order/applied_step": float(order["applied_step"])},
                "tokens": tokens,
                "ms": ms,
            },
        ),
    ]
    if order["decision"]:
        tags = {
            "applied_step": order["applied_step"],
            "applied_tokens": tokens,
            "generation": generation,
        }
        entries.append(
            Entry(
                f"applied:{order['decision']}",
                "trace_tags",
                {"id": order["decision"], "tags": tags},
            )
        )
        inputs = {"generation": generation, "weights": _rounded(order["weights"])}
        outputs = tags | {"weights_before": _rounded(before)}
        entries.append(span_entry(order["decision"], "applied", inputs, outputs, ms))
    return entries


def published_entry(order: Json, fence: int, ms: int) -> Entry:
    """An order lies in the shared state file for the first time."""
    inputs = {"generation": order["generation"], "weights": _rounded(order["weights"])}
    outputs = {"file": "mixture.json", "fence": fence}
    return span_entry(order["decision"], "publish", inputs, outputs, ms)


def span_entry(decision: str, name: str, inputs: Json, outputs: Json, ms: int) -> Entry:
    """A later step of a decision, for its trace: publish, applied, outcome."""
    payload = {"id": decision, "name": name, "inputs": inputs, "outputs": outputs, "ms": ms}
    return Entry(f"span:{name}:{decision}", "span", payload)


def curves_entry(
    status: Json, ms: int, before: Json | None = None, max_epochs: float | None = None
) -> Entry:
    """The trainer's own curves at one heartbeat, and what its machine did, where it tells.

    Args:
        before: an earlier heartbeat, for the mixture that was realised between the two.
        max_epochs: the cap, which every source's epochs are also given in parts of.
    """
    metrics = {
        "train/loss": status["loss"],
        "train/learning_rate": status["lr"],
        "train/grad_norm": status["grad_norm"],
        "train/tokens_per_second": status["tokens_per_second"],
    }
    for name, source in status["sources"].items():
        metrics[f"epochs/{name}"] = source["epochs"]
        metrics[f"source_loss/{name}"] = source["loss"]
        if max_epochs is not None:
            metrics[f"epochs_of_cap/{name}"] = source["epochs"] / max_epochs
    metrics |= _realised(status, before)
    metrics |= {f"system/{name}": value for name, value in (status.get("system") or {}).items()}
    health = status.get("health") or {}
    metrics |= {f"train/{name}": health.get(name) for name in ("nan_steps", "spikes")}
    known = {key: float(value) for key, value in metrics.items() if _is_number(value)}
    payload = {"metrics": known, "tokens": status["tokens"], "ms": ms}
    return Entry(f"curves:{status['tokens']}", "metrics", payload)


def _realised(status: Json, before: Json | None) -> dict[str, float]:
    """The mixture that was consumed between two heartbeats: each source's share of the tokens."""
    if before is None or before["incarnation"] != status["incarnation"]:
        return {}
    gone = {
        name: source["tokens"] - before["sources"].get(name, {"tokens": 0})["tokens"]
        for name, source in status["sources"].items()
    }
    total = sum(gone.values())
    if total <= 0 or min(gone.values()) < 0:
        return {}
    return {f"mixture_realised/{name}": count / total for name, count in gone.items()}


def checkpoint_entry(
    checkpoint: Json, benchmarks: Mapping[str, Json], mixture: Mapping[str, float], ms: int
) -> Entry:
    """A scored checkpoint: a logged model that carries its scores, and points on the curves.

    The mixture it was taken under is among them, so that its curves reach the end of the run.
    """
    metrics = {f"mixture/{name}": weight for name, weight in _rounded(mixture).items()}
    for benchmark, score in benchmarks.items():
        for metric, found in score["metrics"].items():
            value, error = found["value"], found["stderr"]
            if not _is_number(value):
                continue
            metrics[f"{metric}/{benchmark}"] = float(value)
            if _is_number(error):  # the band's edges, beside the curve in one group of charts
                metrics[f"{metric}/{benchmark}{LOWER}"] = value - error
                metrics[f"{metric}/{benchmark}{UPPER}"] = value + error
    params = {"step": str(checkpoint["step"]), "tokens": str(checkpoint["tokens"])}
    params |= {"path": checkpoint["path"], "generation": str(checkpoint["generation"])}
    params |= {f"weight.{name}": f"{weight:.6g}" for name, weight in mixture.items()}
    missing = {
        f"missing.{name}": str(score["reason"])
        for name, score in benchmarks.items()
        if score["status"] != "ok"
    }
    payload = {
        "name": f"step-{checkpoint['step']:08d}",
        "tags": missing,
        "params": params,
        "metrics": metrics,
        "datasets": {
            name: score["data"] for name, score in benchmarks.items() if score.get("data")
        },
        "tokens": checkpoint["tokens"],
        "ms": ms,
    }
    return Entry(f"model:{checkpoint['step']}", "model", payload)


def decision_entry(decision: Json, scores: Json, start_ms: int, end_ms: int) -> Entry:
    """A decision as a trace: what was observed, what the policy answered, what each guard did.

    What follows (publish, applied, outcome) is added when it happens, by :func:`span_entry`.
    """
    request = {
        "scores": _readable(scores),
        "step": decision["step"],
        "tokens": decision["tokens"],
        "weights": _rounded(decision["weights_before"]),
    }
    response = {
        "verdict": decision["verdict"],
        "reason": decision["reason"],
        "weights_before": _rounded(decision["weights_before"]),
        "weights_after": _rounded(decision["weights_after"]),
        "generation": decision["generation"],
    }
    proposal = {
        "weights_proposed": decision["weights_proposed"],
        "reason": decision["reason"],
        "evidence": decision["evidence"],
    }
    guarded = {"verdict": decision["verdict"], "weights": response["weights_after"]}
    spans: Sequence[tuple[str, str | None, object, object]] = [
        ("observe", None, {"step": decision["step"], "tokens": decision["tokens"]}, request),
        ("decide", None, {"policy": decision["policy"], **request}, proposal),
        ("guard", None, {"weights_proposed": decision["weights_proposed"]}, guarded),
        *(
            (f"guard {note['guard']}", "guard", note.get("before"), note)
            for note in decision["guards"]
        ),
    ]
    payload = {
        "id": decision["id"],
        "name": f"{decision['id']} {decision['verdict']}",
        "start_ms": start_ms,
        "end_ms": end_ms,
        "request": request,
        "response": response,
        "previews": _previews(decision, request["scores"]),
        "spans": [list(span) for span in spans],
        "tags": {
            "verdict": decision["verdict"],
            "policy": decision["policy"],
            "step": str(decision["step"]),
            "tokens": str(decision["tokens"]),
        },
    }
    return Entry(f"decision:{decision['id']}", "trace", payload)


def _previews(decision: Json, scores: Mapping[str, str]) -> list[str]:
    """What a list of traces shows of a decision: what it looked at, and what came of it."""
    shown = [f"{name} {value}" for name, value in scores.items()]
    steering = [one for one in shown if " bits_per_byte " in one] or shown
    at = f"step {decision['step']}, {format_tokens(decision['tokens'])} tokens"
    before, after = decision["weights_before"], decision["weights_after"]
    asked = [at, wording.mixture(before), *steering]
    moved = wording.moves(before, after)
    came = f"{decision['id']} {decision['verdict']}" + (f": {moved}" if moved != "-" else "")
    return ["; ".join(asked), f"{came}; {' '.join(decision['reason'].split())}"]


def approval_entry(decision: str, state: str, by: str | None) -> Entry:
    """A decision that waited for a person: what became of it, as tags on its trace."""
    tags = {"approval": state} | ({"approval.by": by} if by else {})
    return Entry(f"approval:{decision}", "trace_tags", {"id": decision, "tags": tags})


def outcome_entries(decision: str, step: int, outcome: Mapping[str, Json], ms: int) -> list[Entry]:
    """What the benchmarks did after an intervention: tags and a step on its trace, a new report."""
    tags = {
        f"{OUTCOME}{name}": f"{found['gain']:+.4f} ± {found['stderr']:.4f} {found['metric']}"
        for name, found in outcome.items()
    }
    payload = {"id": decision, "tags": {**tags, "outcome_step": step}}
    return [
        Entry(outcome_key(decision), "trace_tags", payload),
        span_entry(decision, "outcome", {"step": step}, dict(outcome), ms),
        Entry(f"report:{decision}", "report", {}),
    ]


def outcome_key(decision: str) -> str:
    """The key under which a decision's outcome was told."""
    return f"outcome:{decision}"


def outcome_gains(tags: Mapping[str, Any]) -> dict[str, str]:
    """By benchmark, the gain that an outcome's tags tell of: ``+0.1000 ± 0.0200 bits_per_byte``."""
    return {
        key.removeprefix(OUTCOME): str(value)
        for key, value in tags.items()
        if key.startswith(OUTCOME)
    }


def note_entry(key: str, note: str) -> Entry:
    """The run's description as it stands."""
    return Entry(f"note:{key}", "note", {"note": note})


def end_entry(tokens: int, note: str, ms: int) -> Entry:
    """The run has ended after ``tokens``; ``note`` (markdown) becomes its description."""
    return Entry(f"end:{tokens}", "end", {"status": "FINISHED", "ms": ms, "note": note})


def run_note(
    shown: Sequence[Json],
    changed: int,
    decisions: int,
    followed: Mapping[str, Mapping[str, str]] | None = None,
) -> str:
    """The run's story in Markdown: a paragraph, then its last interventions as a table.

    Args:
        shown: the last interventions, oldest first, each with the step it was applied at.
        changed: how many interventions there were, ``decisions`` how many decisions.
        followed: by a decision's id, what each benchmark did after it.
    """
    followed = followed or {}
    lines = [_story(shown, changed, decisions, followed), ""]
    if changed > len(shown):
        lines += [f"The last {len(shown)}; `mixloop history` has all.", ""]
    if shown:
        lines += [
            "| decision | tokens | in force at step | mixture | why | what followed |",
            "|---|---|---|---|---|---|",
        ]
    for row in shown:
        weights = ", ".join(f"{name} {w:.3g}" for name, w in row["weights_after"].items())
        step = "-" if row["applied_step"] is None else row["applied_step"]
        after = ", ".join(f"{name} {gain}" for name, gain in followed.get(row["id"], {}).items())
        cells = [row["id"], f"{row['tokens']:,}", step, weights, _cell(row["reason"]), _cell(after)]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    lines += [
        "",
        "Every decision is a trace (tab *Traces*) with its evidence, its guards and what followed; "
        "the whole run on one page is the artifact `report/report.html`.",
    ]
    return "\n".join(lines)


def _story(
    shown: Sequence[Json], changed: int, decisions: int, followed: Mapping[str, Mapping[str, str]]
) -> str:
    """The first lines of the description, all that MLflow shows before *Show more*."""
    words = [f"{_count(changed, 'intervention')} in {_count(decisions, 'decision')}."]
    if not shown:
        return words[0]
    last = shown[-1]
    moved = wording.moves(last["weights_before"], last["weights_after"])
    words.append(
        f"The last, **{last['id']}** at {format_tokens(last['tokens'])} tokens, moved "
        f"{_cell(moved)}: {_cell(last['reason'])}."
    )
    told = [one for one in shown if followed.get(one["id"])]
    if told:
        gains = ", ".join(f"{name} {gain}" for name, gain in followed[told[-1]["id"]].items())
        words.append(f"After {told[-1]['id']}: {_cell(gains)} (positive is better).")
    return " ".join(words)


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
            for metric, found in metrics.items():
                if (metric == "bits_per_byte") == first:
                    error = f" ± {found['stderr']:.3g}" if _is_number(found["stderr"]) else ""
                    value = f"{found['value']:.4g}{error} (n={found['n']})"
                    shown[f"{benchmark} {metric}"] = value
    return shown


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
