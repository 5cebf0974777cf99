"""Decisions, scores and the trainer's state in words: moves, verdicts, outcomes, evidence."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping

from mixloop.common.text import clean, tokens
from mixloop.common.types import Json
from mixloop.evals import Scorecard
from mixloop.policies.guards import GuardNote
from mixloop.policies.interface import Evaluation

from .steering_metric import CLEAR, HEADLINES, Steering

MIN_SHOWN = 5e-4  # a share that moved less than this is not shown
MOST_SHOWN = 6  # sources in one line, those that moved most


def moves(before: Mapping[str, float], after: Mapping[str, float]) -> str:
    """``code 0.05 → 0.15, prose 0.60 → 0.50, 3 more``: what moved, largest first."""
    changes = {name: abs(after[name] - before.get(name, 0.0)) for name in after}
    moved = sorted((n for n in after if changes[n] >= MIN_SHOWN), key=lambda name: -changes[name])
    told = [f"{n} {before.get(n, 0.0):.3f} → {after[n]:.3f}" for n in moved[:MOST_SHOWN]]
    told += [f"{len(moved) - MOST_SHOWN} more"] if len(moved) > MOST_SHOWN else []
    return ", ".join(told) or "-"


def mixture(weights: Mapping[str, float]) -> str:
    """``code 0.100, prose 0.900``."""
    return ", ".join(f"{clean(name)} {weight:.3f}" for name, weight in weights.items())


def changes(entry: Json) -> str:
    """What a decision moves: by its order, or, where a person has to approve it, by that."""
    if entry["verdict"] != "awaiting-approval":
        return moves(entry["weights_before"], entry["weights_after"])
    return f"asks for {moves(entry['weights_before'], would_order(entry))}"


def would_order(entry: Json) -> Mapping[str, float]:
    """The mixture that approving a decision would order, as the guards left it when it was made."""
    trimmed = [note["after"] for note in entry["guards"] if note["after"] is not None]
    asked: Mapping[str, float] = (trimmed or [entry["weights_proposed"]])[-1]
    return asked


def outcome_lines(outcome: Json | None) -> list[str]:
    """One line per benchmark: its paired gain after an intervention, with the standard error."""
    if outcome is None:
        return []
    if not outcome["benchmarks"]:
        detail = f": {clean(outcome['detail'])}" if outcome.get("detail") else ""
        return [f"{outcome['state']}{detail}"]
    return [
        f"{name} {effect['metric']} gain {effect['gain']:+.4f} {error_of(effect)} "
        f"(n={effect['n']}, step {effect['from_step']} → {effect['to_step']})"
        f"{shared(outcome)}{_doubt(effect)}{_pace(effect)}"
        for name, effect in outcome["benchmarks"].items()
    ] + receipt_lines(outcome.get("receipt"))


def receipt_lines(receipt: Json | None) -> list[str]:
    """What a twin that went on without the change says of it."""
    if receipt is None:
        return []
    sure = "" if receipt["low"] > 0 or receipt["high"] < 0 else ", not distinguishable from noise"
    return [
        f"receipt: {receipt['effect']:+.4f} {receipt['metric']} against {receipt['n']} twin "
        f"point{'s' if receipt['n'] != 1 else ''} without it, {receipt['low']:+.4f} to "
        f"{receipt['high']:+.4f} at any time{shared(receipt)}{sure}"
    ]


def error_of(effect: Json) -> str:
    """``± 0.0040 items, ± 0.0210 trajectory``, or, where only items are known, ``± 0.0040``."""
    trajectory = effect.get("stderr_trajectory")  # none in what older versions told
    if not trajectory:
        return f"± {effect['stderr']:.4f}"
    return f"± {effect['stderr_items']:.4f} items, ± {trajectory:.4f} trajectory"


def shared(outcome: Json) -> str:
    """`` (shared with d-000004)``: other orders' windows tell of the same gain."""
    others = outcome.get("shared_with")
    return f" (shared with {', '.join(map(clean, others))})" if others else ""


def distinct(effect: Json) -> bool:
    """Whether a gain is more than noise. No z: every item moved alike."""
    return effect["z"] is None or abs(effect["z"]) >= CLEAR


def _doubt(effect: Json) -> str:
    return "" if distinct(effect) else ", not distinguishable from noise"


def _pace(effect: Json) -> str:
    """What the same benchmark gained over the pair of checkpoints before the change."""
    if effect.get("gain_before") is None:
        return ""
    return (
        f"; the {effect['steps_before']} steps before: "
        f"{effect['gain_before']:+.4f} ± {effect['stderr_before']:.4f}"
    )


def verdict(entry: Json) -> str:
    """The verdict; of one that waited for a person, also what became of it."""
    approval = entry.get("approval")
    words = str(entry["verdict"])
    if approval is not None and approval["state"] != "waiting":
        words += f": {approval['state']}"
    left = entry.get("abandoned_by")
    return words if left is None else f"{words} (left behind by incarnation {left})"


def regression(guards: Iterable[GuardNote]) -> str:
    """How the policy stands with the regression guard, as a decision's notes say; or empty."""
    told = (note for note in guards if note.guard == "regression" and note.action != "passed")
    return "; ".join(clean(note.detail) for note in told)


def steering(chosen: Mapping[str, Steering]) -> str:
    """``mmlu, math by bits_per_byte; gsm8k by exact_match since step 1200``."""
    groups: dict[str, list[str]] = {}
    for name, metric in chosen.items():
        since = "" if metric.since is None else f" since step {metric.since}"
        groups.setdefault(f"{clean(metric.metric)}{since}", []).append(clean(name))
    return "; ".join(f"{', '.join(names)} by {metric}" for metric, names in groups.items())


def approval(row: Json) -> str:
    """What became of a decision that waited for a person."""
    parts = [row["state"]]
    if row["state"] == "waiting":
        parts = [f"waiting: would order {moves(row['before'], row['after'])},", until(row)]
    parts += [f"by {clean(row['by'])}"] if row["by"] else []
    parts += [f"in {row['made']}"] if row["made"] else []
    parts += [f"({clean(row['reason'] or row['why'])})"]
    return " ".join(parts)


def until(approval: Json) -> str:
    """How long a proposal waits for a person."""
    end = approval["until_tokens"]
    return "until a person answers" if end is None else f"until {tokens(end)} tokens"


def assessment(row: Json) -> str:
    """What a person said of a decision in MLflow: ``good idea: true, by ann (it helped)``."""
    value = "" if row["value"] is None else f": {clean(json.dumps(row['value']))}"
    why = f" ({clean(row['rationale'])})" if row["rationale"] else ""
    return f"{clean(row['name'])}{value}, by {clean(row['by'])}{why}"


def applied(entry: Json) -> str:
    """Where a decision's mixture came into force."""
    if entry["generation"] is None:
        return "nothing: the mixture stayed"
    if entry["applied_step"] is None:
        return f"generation {entry['generation']}, not in force"
    return (
        f"generation {entry['generation']} from step {entry['applied_step']} "
        f"(sample {entry['applied_sample']:,}, {tokens(entry['applied_tokens'])} tokens)"
    )


def experiment(made: Json) -> str:
    """An experiment in a line: ``e-000002 done: 14 branches and a control of 2M tokens from …``."""
    count = len(made["branches"])
    what = f"{count} branch{'es' * (count != 1)} and a control"
    if made["receipt"]:
        what = f"receipt of {made['decision']}, a twin without it"
    told = (
        f"{made['id']} {made['state']}: {what} of {tokens(made['branch_tokens'])} tokens "
        f"from step {made['step']}, learning rate {made['schedule']}"
    )
    if made["cost"]:
        told += f"; {tokens(made['cost'])} tokens spent"
    return told + (f"; {clean(made['reason'])}" if made["reason"] else "")


def experiment_rows(made: Json) -> list[tuple[str, str, dict[str, str]]]:
    """What came of it: what was scored, what its mixture moves, and the gain by benchmark.

    Gains of branches are against the control, those of merges and fits against the merge at the
    mixture in force; positive is better.
    """
    found: Json = {} if made["receipt"] else made["effects"] or {}
    rows = []
    fitted = [fit["weights"] for fit in found.get("fits", ())]
    for kind in ("branches", "merges"):
        for number, side in enumerate(found.get(kind, ()), start=1):
            if kind == "merges" and side["weights"] in fitted:
                continue  # it is told as the best merge
            what = f"branch {number}" if kind == "branches" else f"merge {number}"
            rows.append((what, side["weights"], side["benchmarks"]))
    for fit in found.get("fits", ()):
        part = "" if fit["part"] == "whole" else f" ({fit['part']} half)"
        rows.append((f"best merge{part}", fit["weights"], fit["gains"]))
    if found.get("mixmin"):
        rows.append(("MixMin", found["mixmin"], {}))
    return [(what, _of_branch(made["weights"], weights), _gains(of)) for what, weights, of in rows]


def _of_branch(control: Mapping[str, float], weights: Mapping[str, float]) -> str:
    """What a branch's mixture moves; of an expert, its one source."""
    alone = [name for name, share in weights.items() if share >= 1 - MIN_SHOWN]
    return f"{alone[0]} alone" if alone and len(control) > 1 else moves(control, weights)


def _gains(benchmarks: Json) -> dict[str, str]:
    return {n: f"{found['gain']:+.4f} ± {found['stderr']:.4f}" for n, found in benchmarks.items()}


def experiment_limits(made: Json) -> list[str]:
    """What its figures can't say."""
    if made["state"] != "done" or made["receipt"]:
        return []
    span = tokens(made["branch_tokens"])
    limits = [
        f"a branch of {span} tokens can't show what pays off later, and its own few windows add "
        "noise that the items' errors don't hold"
    ]
    if made["merge"] is not None:
        limits.append(
            "a merge knows no epochs: what repeats in the run is bounded by the ledger alone, not "
            "by how little a source is worth the second time"
        )
    return limits


def evidence_lines(evidence: Json) -> list[str]:
    """The evidence, one condition per line where a policy gives a list of them."""
    conditions = evidence.get("conditions")
    parts = conditions if isinstance(conditions, list) and conditions else [evidence]
    shown = [_pairs(part) for part in parts if isinstance(part, dict)]
    lines = [f"Evidence     {text}" for text in shown if text]
    return lines or ["Evidence     -"]


def _pairs(part: Json) -> str:
    return ", ".join(
        f"{clean(key)} {_value(value)}"
        for key, value in part.items()
        if key not in ("conditions", "moves", "rules") and value is not None
    )


def _value(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        return f"({_pairs(value)})"
    if isinstance(value, list):
        return " → ".join(_value(entry) for entry in value)
    return clean(value)


def scores(scored: Evaluation) -> Json:
    """The metrics of one checkpoint without its items, to show beside a decision."""
    return {
        name: {
            key: {"value": metric.value, "stderr": metric.stderr, "n": metric.n}
            for key, metric in score.metrics.items()
        }
        for name, score in scored.benchmarks.items()
    }


def headline(card: Scorecard) -> str:
    """A scorecard in one line: each benchmark, or why it is missing."""
    parts = []
    for name, score in card.benchmarks.items():
        if score.status != "ok":
            parts.append(f"{name} missing ({score.reason})")
            continue
        shown = []
        if "bits_per_byte" in score.metrics:
            shown.append(f"{score.metrics['bits_per_byte'].value:.3f} bits/byte")
        for metric in dict.fromkeys(HEADLINES.values()):
            if metric in score.metrics:
                shown.append(f"{metric} {score.metrics[metric].value:.2f}")
        parts.append(f"{name} {', '.join(shown)}")
    return " | ".join(parts)
