"""What the commands share: the options that many of them have, and how they print.

No decisions, and no I/O but the console.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mixloop.common.text import clean, number, tokens, visible_json
from mixloop.common.types import Json
from mixloop.controller import core, views
from mixloop.controller.views import cell, table

if TYPE_CHECKING:
    from rich.table import Table

    from mixloop.contract import Status
    from mixloop.controller.core import CheckpointState
    from mixloop.controller.views import (
        CheckpointScores,
        OperatorStanding,
        RunStanding,
        TrainerStanding,
    )

RunFile = Annotated[Path, typer.Argument(metavar="RUN.yaml", help="the run's configuration")]
Run = Annotated[Path, typer.Argument(metavar="RUN", help="a run folder, or its run.yaml")]
AsJson = Annotated[bool, typer.Option("--json", help="print JSON instead of text")]

Show = Callable[[float, float, str], None]


def print_json(value: Any) -> None:
    """Print a value as JSON; half of a surrogate pair, which is no text, as a question mark."""
    text = json.dumps(value, indent=2, ensure_ascii=False).encode("utf-8", "replace").decode()
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:  # a terminal of less than Unicode: escapes say the same
        text = json.dumps(json.loads(text), indent=2)
    typer.echo(visible_json(text))


def print_lines(lines: Iterable[object]) -> None:
    """Print lines that can't drive the terminal, whatever data is in them."""
    for line in lines:
        typer.echo(clean(line))


@contextmanager
def progress_bar(title: str) -> Iterator[Show]:
    """A bar on standard error where that is a terminal; nothing elsewhere.

    Yields:
        What moves the bar: how much is done, of how much, and the text behind the bar.
    """
    if not sys.stderr.isatty():
        yield lambda done, total, text: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    columns = (TextColumn(title), BarColumn(), TextColumn("{task.fields[text]}"))
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(title, total=None, text="")
        yield lambda done, total, text: bar.update(task, completed=done, total=total, text=text)


# -- history and explain -----------------------------------------------------------------------


def history_table(entries: Sequence[Json]) -> Table:
    """The history as a table."""
    columns = ("id", "step", "tokens", "verdict", "policy", "what changed", "why", "applied")
    rows = (
        (
            *(entry["id"], entry["step"], tokens(entry["tokens"])),
            *(core.verdict(entry), entry["policy"]),
            _changed(entry),
            _why(entry),
            "-" if entry["applied_step"] is None else f"step {entry['applied_step']}",
        )
        for entry in entries
    )
    shown = table("History", columns, rows)
    newest = _steering(entries[-1]) if entries else {}
    headlines = {name: metric for name, metric in newest.items() if metric.since is not None}
    shown.caption = cell(f"Steered: {core.steering(headlines)}") if headlines else None
    return shown


def _changed(entry: Json) -> str:
    """What a decision moves, or how the experiment that it asks for stands."""
    made = entry.get("experiment")
    if made is None or made["receipt"]:
        return core.changes(entry)
    return f"{made['id']} {made['state']}"


def _steering(entry: Json) -> dict[str, core.Steering]:
    return {name: core.Steering(**metric) for name, metric in entry["steering"].items()}


def _why(entry: Json) -> str:
    """The reason, and what people said of the decision since."""
    assessments = [f"[{core.assessment(said)}]" for said in entry.get("assessments", ())]
    return " ".join([entry["reason"], *assessments])


def explain_lines(entry: Json) -> list[str]:
    """One decision in full: what, when, why, on what evidence, the guards, and what came of it."""
    lines = [
        f"{entry['id']}  {core.verdict(entry)}  by {clean(entry['policy'])} ({entry['asked_by']})",
        "",
        f"Asked after  step {entry['step']} ({tokens(entry['tokens'])} tokens), "
        f"against generation {entry['against_generation']}",
        f"Times        scored {entry['scored_at'] or '-'}, decided {entry['decided_at']}, "
        f"in force {entry['applied_at'] or '-'}",
        f"Why          {clean(entry['reason'])}",
        f"Steered      {core.steering(_steering(entry)) or '-'}",
        *core.evidence_lines(entry["evidence"]),
        "",
        f"Before       {core.mixture(entry['weights_before'])}",
    ]
    if entry["weights_proposed"] is not None:
        lines.append(f"Proposed     {core.mixture(entry['weights_proposed'])}")
    lines.append(f"After        {core.mixture(entry['weights_after'])}")
    lines += [f"Then         until {tokens(u)}: {core.mixture(w)}" for u, w in entry["plan"]]
    lines += ["", "Guards"]
    lines += [
        f"  {note['guard']:<14} {note['action']:<8} {clean(note['detail'])}"
        for note in entry["guards"]
    ] or ["  none asked: nothing was proposed"]
    lines += ["", f"Applied      {core.applied(entry)}"]
    if entry.get("approval") is not None:
        lines.append(f"Approval     {core.approval(entry['approval'])}")
    lines += [f"Assessed     {core.assessment(said)}" for said in entry.get("assessments", ())]
    lines += [f"Outcome      {line}" for line in core.outcome_lines(entry["outcome"])]
    if (made := entry.get("experiment")) is not None:
        lines.append(f"Experiment   {core.experiment(made)}")
        side = "twin" if made["receipt"] else "control"
        lines.append(f"             {side}: {core.mixture(made['weights'])}")
        lines += [f"             {line}" for line in core.experiment_limits(made)]
    return lines


def experiment_table(made: Json) -> Table | None:
    """What came of an experiment, by branch and benchmark; None before there is anything."""
    rows = core.experiment_rows(made)
    if not rows:
        return None
    benchmarks = list(dict.fromkeys(name for _, _, gains in rows for name in gains))
    columns = ("what", "mixture moved", *(f"{name}, gain" for name in benchmarks))
    cells = ((what, moved, *(gains.get(n, "-") for n in benchmarks)) for what, moved, gains in rows)
    return table(f"{made['id']}: bits per byte, paired; positive is better", columns, cells)


def skipped_lines(rows: Iterable[Json]) -> list[str]:
    """``not scored: steps 200, 400: evaluation is behind: …``, one line per reason."""
    reasons: dict[str, list[str]] = {}
    for row in rows:
        reasons.setdefault(clean(row["reason"]), []).append(str(row["step"]))
    return [
        f"not scored: step{'s' if len(steps) > 1 else ''} {', '.join(steps)}: {why}"
        for why, steps in reasons.items()
    ]


# -- status ------------------------------------------------------------------------------------


def status_lines(run: RunStanding) -> list[str]:
    """How the run stands, in a few lines."""
    lines = [f"Run        {clean(run.run or '-')}", f"Trainer    {_trainer_line(run.trainer)}"]
    if run.status is not None:
        lines += _progress_lines(run.status)
    lines += [
        f"Unreadable {clean(file.file)}: {clean(file.problem)}; {file.mend}"
        for file in run.unreadable
    ]
    mixtures = {"Asked": run.asked, "Applied": run.status.in_force if run.status else None}
    lines += [
        f"{name:<10} generation {order.generation}: {core.mixture(order.weights)}"
        for name, order in mixtures.items()
        if order is not None
    ]
    if run.status is not None:
        lines += [f"Refused    {clean(order.reason)}" for order in run.status.rejected]
    lines += [
        f"Ledger     {source.name}: {tokens(source.tokens)} tokens, {source.epochs:.2f} epochs of "
        f"{tokens(source.unique_tokens)}"
        for source in run.sources
    ]
    if run.scores:
        lines += _benchmark_lines(run.scores[-1])
    if run.unscored is not None:
        lines.append(f"Unscored   {clean(run.unscored.in_words)}")
    lines += _skipped_line(run.skipped)
    if run.steering:
        lines.append(f"Steered    {core.steering(run.steering)}")
    lines += _pending_lines(run)
    if run.decisions and (standing := core.regression(run.decisions[0][0].guards)):
        lines.append(f"Guard      the policy: {standing}")
    lines += _operator_lines(run.operators, run.approval_timeout)
    tracking = run.tracking
    refused = f", {tracking.refused} refused" if tracking.refused else ""
    lines.append(f"MLflow     {tracking.sent} entries sent, {tracking.waiting} waiting{refused}")
    for what, of in (("error", tracking.last_error), ("refused", tracking.last_refusal)):
        if of is not None:
            entry = f"{of['entry']}: " if of.get("entry") else ""
            lines.append(f"           last {what}: {clean(entry + of.get('error', ''))}")
    return lines


def _trainer_line(trainer: TrainerStanding) -> str:
    status = trainer.status
    if status is None:
        return trainer.in_words
    process = f"process {status.pid} on {clean(status.host)}"
    return ", ".join(filter(None, (trainer.in_words, process, trainer.origin_in_words)))


def _progress_lines(status: Status) -> list[str]:
    phase = f"{status.phase}, " if status.phase else ""  # a loop may not tell
    lines = [
        f"Progress   step {status.step}, {tokens(status.tokens)} of {tokens(status.budget)} "
        f"tokens, {phase}loss {number(status.loss)}, "
        f"{number(status.tokens_per_second)} tokens/s"
    ]
    if status.failed_checkpoint is not None:
        lines.append(f"Unsaved    {clean(status.failed_checkpoint.in_words)}")
    health = status.health
    if health is not None and (health.nan_steps or health.spikes):
        lines.append(
            f"Trouble    {health.nan_steps} steps without a finite gradient, "
            f"{health.spikes} loss spikes; the last: {clean(health.note or '-')}"
        )
    return lines


def _skipped_line(rows: Sequence[CheckpointState]) -> list[str]:
    if not rows:
        return []
    count = "1 checkpoint" if len(rows) == 1 else f"{len(rows)} checkpoints"
    why = clean(rows[-1].reason)
    return [f"Skipped    {count} not scored; the last, at step {rows[-1].step}: {why}"]


def _benchmark_lines(card: CheckpointScores) -> Iterator[str]:
    for name, score in card.benchmarks.items():
        if score.status != "ok":
            yield f"Benchmark  {name}: missing ({clean(score.reason)})"
            continue
        values = ", ".join(
            f"{metric} {number(m.value)} ± {number(m.stderr)} (n={m.n})"
            for metric, m in score.metrics.items()
        )
        yield f"Benchmark  {name} at step {card.step}: {values}"


def _pending_lines(run: RunStanding) -> Iterator[str]:
    for order in run.orders:
        yield f"Pending    generation {order.generation} ({order.decision}) is not in force yet"
    if run.status is not None and run.status.pending is not None:
        yield f"Pending    switch at sample {run.status.pending.sample:,}"
    for step in run.scoring:
        yield f"Pending    scoring the checkpoint at step {step}"
    made = run.experiments
    if made.open is not None:
        yield f"Experiment {clean(made.in_words)}"
    if made.budget:
        spent = f"{tokens(made.charged)} of {tokens(made.budget)} tokens"
        yield f"Tried      {_experiments(made.states)}; {spent}, {tokens(made.left)} left"


def _experiments(states: Mapping[str, int]) -> str:
    told = ", ".join(f"{count} {state}" for state, count in states.items())
    return f"experiments: {told or 'none yet'}"


def _operator_lines(operators: OperatorStanding, timeout: int | None) -> Iterator[str]:
    if operators.paused:
        yield "Paused     nothing is decided until `mixloop resume`"
    if operators.pins:
        yield f"Pinned     {core.mixture(operators.pins)}"
    for decision, approval in operators.awaiting:
        asks = views.approval_json(decision, approval, timeout)
        moved = core.moves(asks["before"], asks["after"])
        yield (
            f"Approval   {decision.id} waits for `mixloop approve` or `reject` {core.until(asks)}: "
            f"{moved}; {clean(decision.reason)}"
        )
    if operators.requests:
        yield f"Requests   {operators.requests} not taken by a controller yet"
