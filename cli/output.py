"""What the command prints: tables and lines for people. No decisions, no I/O but the console."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from mixloop.common.text import clean, number, tokens
from mixloop.common.types import Json
from mixloop.controller.core import (
    applied,
    approval,
    assessment,
    evidence_lines,
    mixture,
    moves,
    origin,
    outcome_lines,
    steering,
    trainer_in_words,
    verdict,
)
from mixloop.controller.views import cell, table

if TYPE_CHECKING:
    from rich.table import Table


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
            f"loss {number(trainer['loss'])}, {number(trainer['tokens_per_second'])} tokens/s"
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
        return trainer_in_words(trainer)
    begun = origin(trainer)
    where = f"process {trainer['pid']} on {clean(trainer['host'])}"
    return f"{trainer_in_words(trainer)}, {where}{', ' if begun else ''}{begun}"


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
        f"{metric} {number(m['value'])} ± {number(m['stderr'])} (n={m['n']})"
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
