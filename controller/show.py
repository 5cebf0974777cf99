"""What the command prints: tables and lines for people. No decisions, no I/O but the console."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mixloop.controller.pulse import duration
from mixloop.policies.units import format_tokens

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

Json = dict[str, Any]

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")  # halves of pairs too
MOVED = 5e-4  # a share that moved less than this is not shown


def clean(text: object) -> str:
    """Text from data without control characters, so that it can't drive the terminal."""
    return _CONTROL.sub("", str(text).replace("\n", " "))


def tokens(count: int | None) -> str:
    """``1.25M`` for 1,250,000."""
    return "-" if count is None else format_tokens(count)


def console() -> Console:
    """A console on stdout; wide enough for a table when stdout is no terminal."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 140, highlight=False, soft_wrap=False)


def table(title: str, columns: Iterable[str]) -> Table:
    """An empty table in the house style."""
    from rich import box
    from rich.table import Table

    made = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        made.add_column(column, overflow="fold")
    return made


def cell(text: object) -> str:
    """Text safe for a rich cell: no control characters, no markup."""
    from rich.markup import escape

    return escape(clean(text))


def moves(before: Mapping[str, float], after: Mapping[str, float]) -> str:
    """``code 0.05 → 0.15, prose 0.60 → 0.50``: what moved, largest first."""
    gone = [n for n in after if abs(after[n] - before.get(n, 0.0)) >= MOVED]
    gone.sort(key=lambda name: -abs(after[name] - before.get(name, 0.0)))
    return ", ".join(f"{n} {before.get(n, 0.0):.3f} → {after[n]:.3f}" for n in gone) or "-"


def mixture(weights: Mapping[str, float]) -> str:
    """``code 0.100, prose 0.900``."""
    return ", ".join(f"{clean(name)} {weight:.3f}" for name, weight in weights.items())


def plan_table(plan: Json) -> Table:
    """An evaluation plan: items of how many, what they cost and how much they tell."""
    title = f"Evaluations: {100 * plan['budget']:.3g}% of training time, on {clean(plan['device'])}"
    if plan["seconds"] is not None:
        title += (
            f", {_number(plan['seconds'])} s of every {_number(plan['training_seconds'])} s "
            f"at {_number(plan['tokens_per_second'])} tokens/s"
        )
    columns = ("benchmark", "items", "of", "generated", "seconds", "share", "± bits/byte")
    made = table(title, columns)
    for name, one in plan["benchmarks"].items():
        counts = (one["items"], one["available"], one["generate_items"])
        share = "-" if one["share"] is None else f"{one['share']:.2%}"
        shown = ("-" if count is None else str(count) for count in counts)
        made.add_row(cell(name), *shown, _number(one["seconds"]), share, _number(one["stderr"]))
    if plan["overhead"] is not None:
        share = f"{plan['overhead'] / plan['training_seconds']:.2%}"
        made.add_row("(starting)", "-", "-", "-", _number(plan["overhead"]), share, "-")
    return made


def outcome_lines(outcome: Json | None) -> list[str]:
    """One line per benchmark: its paired gain after an intervention, with the standard error."""
    if outcome is None:
        return []
    if not outcome["benchmarks"]:
        detail = f": {clean(outcome['detail'])}" if outcome.get("detail") else ""
        return [f"{outcome['state']}{detail}"]
    return [
        f"{name} {found['metric']} gain {found['gain']:+.4f} ± {found['stderr']:.4f} "
        f"(n={found['n']}, step {found['from_step']} → {found['to_step']}){_pace(found)}"
        for name, found in outcome["benchmarks"].items()
    ]


def _pace(found: Json) -> str:
    """What the same benchmark gained over the pair of checkpoints before the change."""
    if found.get("gain_before") is None:
        return ""
    return (
        f"; the {found['steps_before']} steps before: "
        f"{found['gain_before']:+.4f} ± {found['stderr_before']:.4f}"
    )


def history_table(entries: Iterable[Json]) -> Table:
    """The history as a table."""
    columns = ("id", "step", "tokens", "verdict", "policy", "what changed", "why", "applied")
    made = table("History", columns)
    for entry in entries:
        made.add_row(
            cell(entry["id"]),
            cell(entry["step"]),
            tokens(entry["tokens"]),
            cell(verdict(entry)),
            cell(entry["policy"]),
            cell(moves(entry["weights_before"], entry["weights_after"])),
            cell(_why(entry)),
            "-" if entry["applied_step"] is None else cell(f"step {entry['applied_step']}"),
        )
        headlines = {n: one for n, one in entry["steering"].items() if one["since"] is not None}
        made.caption = cell(f"Steered: {steering(headlines)}") if headlines else None
    return made


def _why(entry: Json) -> str:
    """The reason, and what people said of the decision since."""
    said = [f"[{assessment(one)}]" for one in entry.get("assessments", ())]
    return " ".join([entry["reason"], *said])


def verdict(entry: Json) -> str:
    """The verdict; of one that waited for a person, also what became of it."""
    approval = entry.get("approval")
    said = str(entry["verdict"])
    if approval is not None and approval["state"] != "waiting":
        said += f": {approval['state']}"
    left = entry.get("abandoned_by")
    return said if left is None else f"{said} (left behind by incarnation {left})"


def steering(chosen: Json) -> str:
    """``mmlu, math by bits_per_byte; gsm8k by exact_match since step 1200``."""
    groups: dict[str, list[str]] = {}
    for name, one in chosen.items():
        since = "" if one["since"] is None else f" since step {one['since']}"
        groups.setdefault(f"{clean(one['metric'])}{since}", []).append(clean(name))
    return "; ".join(f"{', '.join(names)} by {metric}" for metric, names in groups.items())


def explain_lines(entry: Json) -> list[str]:
    """One decision in full: what, when, why, on what evidence, the guards, and what came of it."""
    lines = [
        f"{entry['id']}  {verdict(entry)}  by {clean(entry['policy'])} ({entry['asked_by']})",
        "",
        f"Asked after  step {entry['step']} ({tokens(entry['tokens'])} tokens), "
        f"against generation {entry['against_generation']}",
        f"Times        scored {entry['scored_at'] or '-'}, decided {entry['decided_at']}, "
        f"in force {entry['applied_at'] or '-'}",
        f"Why          {clean(entry['reason'])}",
        f"Steered      {steering(entry['steering']) or '-'}",
        *evidence_lines(entry["evidence"]),
        "",
        f"Before       {mixture(entry['weights_before'])}",
    ]
    if entry["weights_proposed"] is not None:
        lines.append(f"Proposed     {mixture(entry['weights_proposed'])}")
    lines.append(f"After        {mixture(entry['weights_after'])}")
    lines += [f"Then         until {tokens(u)}: {mixture(w)}" for u, w in entry["plan"]]
    lines += ["", "Guards"]
    lines += [
        f"  {note['guard']:<14} {note['action']:<8} {clean(note['detail'])}"
        for note in entry["guards"]
    ] or ["  none asked: nothing was proposed"]
    lines += ["", f"Applied      {applied(entry)}"]
    if entry.get("approval") is not None:
        lines.append(f"Approval     {approval(entry['approval'])}")
    lines += [f"Assessed     {assessment(one)}" for one in entry.get("assessments", ())]
    found = outcome_lines(entry["outcome"])
    lines += [f"Outcome      {line}" for line in found]
    return lines


def approval(found: Json) -> str:
    """What became of a decision that waited for a person."""
    parts = [found["state"]]
    parts += [f"by {clean(found['by'])}"] if found["by"] else []
    parts += [f"in {found['made']}"] if found["made"] else []
    parts += [f"({clean(found['reason'] or found['why'])})"]
    return " ".join(parts)


def assessment(one: Json) -> str:
    """What a person said of a decision in MLflow: ``good idea: true, by ann (it helped)``."""
    value = "" if one["value"] is None else f": {clean(json.dumps(one['value']))}"
    why = f" ({clean(one['rationale'])})" if one["rationale"] else ""
    return f"{clean(one['name'])}{value}, by {clean(one['by'])}{why}"


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
    if isinstance(value, list):
        return " → ".join(_value(entry) for entry in value)
    return clean(value)


def _trouble(health: Json | None) -> list[str]:
    """Steps that went wrong, where a trainer tells and there are any."""
    if not health or not (health["nan_steps"] or health["spikes"]):
        return []
    return [
        f"Trouble    {health['nan_steps']} steps without a finite gradient, "
        f"{health['spikes']} loss spikes; the last: {clean(health['note'] or '-')}"
    ]


def status_lines(found: Json) -> list[str]:
    """How the run stands, in a few lines."""
    trainer, mix = found["trainer"], found["mixture"]
    lines = [f"Run        {clean(found['run'] or '-')}", f"Trainer    {_trainer_line(trainer)}"]
    if trainer["tokens"] is not None:
        lines.append(
            f"Progress   step {trainer['step']}, {tokens(trainer['tokens'])} of "
            f"{tokens(trainer['budget'])} tokens, {trainer['phase']}, "
            f"loss {_number(trainer['loss'])}, {_number(trainer['tokens_per_second'])} tokens/s"
        )
    lines += _trouble(trainer.get("health"))
    lines += [
        f"Unreadable {clean(one['file'])}: {clean(one['problem'])}; {one['mend']}"
        for one in found["unreadable"]
    ]
    for name in ("asked", "applied"):
        if mix[name] is not None:
            lines.append(
                f"{name.capitalize():<10} generation {mix[name]['generation']}: "
                f"{mixture(mix[name]['weights'])}"
            )
    lines += [f"Refused    {clean(entry['reason'])}" for entry in trainer.get("rejected", ())]
    lines += [
        f"Ledger     {name}: {tokens(entry['tokens'])} tokens, {entry['epochs']:.2f} epochs of "
        f"{tokens(entry['unique_tokens'])}"
        for name, entry in found["ledger"].items()
    ]
    lines += [_benchmark_line(name, score) for name, score in found["benchmarks"].items()]
    lines += _skipped_lines(found["skipped"])
    if found["steering"]:
        lines.append(f"Steered    {steering(found['steering'])}")
    lines += _pending_lines(found["pending"])
    lines += _operator_lines(found["operators"])
    tracking = found["tracking"]
    lines.append(f"MLflow     {tracking['sent']} entries sent, {tracking['waiting']} waiting")
    if tracking["last_error"]:
        lines.append(f"           last error: {clean(tracking['last_error'].get('error', ''))}")
    return lines


def _trainer_line(trainer: Json) -> str:
    if trainer["tokens"] is None:
        return trainer_state(trainer)
    begun = origin(trainer)
    where = f"process {trainer['pid']} on {clean(trainer['host'])}"
    return f"{trainer_state(trainer)}, {where}{', ' if begun else ''}{begun}"


def trainer_state(trainer: Json) -> str:
    """``stalled: no heartbeat for 3m``."""
    if trainer["state"] == "stalled":
        return f"stalled: no heartbeat for {duration(trainer['silent'])}"
    if trainer["state"] == "unknown" and trainer["tokens"] is None:
        return "not known: its heartbeat can't be read"
    if trainer["state"] == "unknown":
        return "on another machine, and no controller watches its heartbeat"
    return str(trainer["state"])


def origin(trainer: Json) -> str:
    """``incarnation 2, rewound to step 400``; empty for a trainer's first."""
    found = trainer["origin"]
    if found is None:
        return ""
    if found["how"] == "forked":
        return f"forked from {clean(found['run'])} at step {found['step']}"
    at = "to" if found["how"] == "rewound" else "at"
    return f"incarnation {trainer['incarnation']}, {found['how']} {at} step {found['step']}"


def _skipped_lines(rows: Sequence[Json]) -> list[str]:
    if not rows:
        return []
    count = "1 checkpoint" if len(rows) == 1 else f"{len(rows)} checkpoints"
    last = rows[-1]
    return [
        f"Skipped    {count} not scored; the last, at step {last['step']}: {clean(last['reason'])}"
    ]


def skipped_lines(rows: Iterable[Json]) -> list[str]:
    """``not scored: steps 200, 400: evaluation is behind: …``, one line per reason."""
    reasons: dict[str, list[str]] = {}
    for row in rows:
        reasons.setdefault(clean(row["reason"]), []).append(str(row["step"]))
    return [
        f"not scored: step{'s' if len(steps) > 1 else ''} {', '.join(steps)}: {why}"
        for why, steps in reasons.items()
    ]


def _benchmark_line(name: str, score: Json) -> str:
    if score["status"] != "ok":
        return f"Benchmark  {name}: missing ({clean(score['reason'])})"
    shown = ", ".join(
        f"{metric} {_number(m['value'])} ± {_number(m['stderr'])} (n={m['n']})"
        for metric, m in score["metrics"].items()
    )
    return f"Benchmark  {name} at step {score['step']}: {shown}"


def _pending_lines(pending: Json) -> list[str]:
    lines = [
        f"Pending    generation {order['generation']} ({order['decision']}) is not in force yet"
        for order in pending["orders"]
    ]
    if pending["switch"]:
        lines.append(f"Pending    switch at sample {pending['switch']['sample']:,}")
    return lines + [f"Pending    scoring the checkpoint at step {s}" for s in pending["scoring"]]


def _operator_lines(found: Json) -> list[str]:
    lines = ["Paused     nothing is decided until `mixloop resume`"] if found["paused"] else []
    if found["pins"]:
        lines.append(f"Pinned     {mixture(found['pins'])}")
    lines += [
        f"Approval   {one['id']} waits for `mixloop approve` or `reject`: {clean(one['why'])}"
        for one in found["awaiting"]
    ]
    if found["requests"]:
        lines.append(f"Requests   {found['requests']} not taken by a controller yet")
    return lines


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
