"""``mixloop report``: a run as one HTML page, in words, tables and pictures.

Self-contained under ``default-src 'none'``: no script, no font, no request. Everything from data is
escaped and stripped of control characters. Tables and pictures scroll inside themselves on a phone;
in print every decision is open.
"""

from __future__ import annotations

import base64
import math
import tempfile
from collections.abc import Iterator
from pathlib import Path

from mixloop.common.errors import BadInput
from mixloop.common.files import write_atomic
from mixloop.common.types import Json
from mixloop.common.units import format_tokens
from mixloop.controller import core

from .html import render
from .report_data import Report, gather

TEMPLATE = Path(__file__).with_name("page.html")


def write_report(target: Path, out: Path | None) -> Path:
    """Write the report of a run; by default ``report.html`` in its folder.

    Raises:
        BadInput: no such run, nothing to tell of it yet, or a place that can't be written.
    """
    report = gather(target)
    place = out or report.folder / "report.html"
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        if out is None:  # in the run folder, where no link is followed
            write_atomic(place, page(report).encode())
        else:
            place.write_text(page(report), encoding="utf-8")
    except OSError as error:
        raise BadInput(f"{place}: not writable: {error.strerror or error}") from None
    return place


def write_artifacts(target: Path, folder: Path) -> list[Path]:
    """``report.html`` and, once there is something to draw, ``run.png``, in ``folder``.

    Raises:
        BadInput: no such run, or nothing to tell of it yet.
    """
    report = gather(target)
    out = folder / "report.html"
    out.write_text(page(report), encoding="utf-8")
    return [out, *([draw_run(report, folder / "run.png")] if report.segments else [])]


def page(report: Report) -> str:
    """The page of a gathered run."""
    return render(
        TEMPLATE,
        f"Run {report.status.run}",
        report=report,
        standing=report.standing,
        story=story(report),
        facts=_facts(report),
        figures=_figures(report),
        decisions=[_decision(entry) for entry in report.decisions],
        experiments=[_experiment(entry["experiment"]) for entry in _tried(report)],
        tokens=format_tokens,
    )


def story(report: Report) -> str:
    """The run in a few sentences."""
    status, decisions = report.status, report.decisions
    changed = [entry for entry in decisions if entry["applied_step"] is not None]
    by_people = sum(entry["asked_by"] == "operator" for entry in changed)
    state = "has ended after" if status.finished else "is at"
    count = f"{len(decisions)} decision{'' if len(decisions) == 1 else 's'}"
    first = (
        f"Training {state} {format_tokens(status.tokens)} of {format_tokens(status.budget)} tokens "
        f"under the policy {report.policy}; {len(report.evaluations)} checkpoints were scored and "
        f"{count} taken, of which {len(changed)} came into force as a new mixture"
    )
    first += f" ({by_people} asked for by people)." if by_people else "."
    effects = filter(None, map(_strongest, changed))
    return " ".join([first, *list(effects)[:3]])


def _strongest(entry: Json) -> str:
    """The clearest effect of an intervention, in a sentence; empty before there is one."""
    outcome = entry["outcome"]
    effects = {name: effect for name, effect in outcome["benchmarks"].items() if effect["gain"]}
    if not effects:
        return ""
    sizes = {n: math.inf if e["z"] is None else abs(e["z"]) for n, e in effects.items()}
    name = max(sizes, key=lambda name: sizes[name])
    effect = effects[name]
    word = "better" if effect["gain"] > 0 else "worse"
    moved = core.moves(entry["weights_before"], entry["weights_after"])
    return (
        f"After {entry['id']} ({moved}) {name} was {abs(effect['gain']):.3g} "
        f"{word} ({core.error_of(effect)}; {effect['metric']}){core.shared(outcome)}."
    )


def _facts(report: Report) -> dict[str, str]:
    status, trainer = report.status, report.standing.trainer
    tracking = report.standing.tracking
    waiting = f"{tracking.waiting} entries wait" if tracking.waiting else ""
    refused = f"{tracking.refused} were refused" if tracking.refused else ""
    return {
        "trainer": ", ".join(filter(None, (trainer.in_words, trainer.origin_in_words))),
        "step": f"{status.step:,}",
        "tokens": format_tokens(status.tokens),
        "learning-rate phase": status.phase or "-",
        "training loss": "-" if status.loss is None else f"{status.loss:.4f}",
        "MLflow": ", ".join(filter(None, (waiting, refused))) or "all told",
    }


def _figures(report: Report) -> Iterator[tuple[str, str]]:
    """What each picture shows, and the SVG in base64."""
    from .figures import draw_epochs

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "figure.svg"
        if report.segments:
            what = "benchmarks in bits per byte, and the mixture, by tokens"
            yield what, _base64(draw_run(report, file))
        if len(report.drawn) > 1:
            cap = report.standing.max_epochs
            draw_epochs(report.drawn, file, report.status.budget, cap)
            yield "epochs of every source by tokens, and the cap", _base64(file)


def _base64(file: Path) -> str:
    return base64.b64encode(file.read_bytes()).decode("ascii")


def draw_run(report: Report, out: Path) -> Path:
    """The run's picture, PNG or SVG by ``out``'s suffix; it needs a segment to draw."""
    from .figures import draw

    return draw(
        report.decisions,
        report.evaluations,
        report.segments,
        out,
        title=report.status.run,
        budget=report.status.budget,
    )


def _tried(report: Report) -> list[Json]:
    """Decisions whose experiment was begun."""
    return [e for e in report.decisions if e.get("experiment") and e["experiment"]["attempts"]]


def _experiment(made: Json) -> Json:
    """An experiment in words: ``head``, ``benchmarks``, ``rows`` of a table, and its ``limits``."""
    rows = core.experiment_rows(made)
    benchmarks = list(dict.fromkeys(name for _, _, gains in rows for name in gains))
    return {
        "head": core.experiment(made)
        + ("" if made["receipt"] else f" (asked for by {made['decision']})"),
        "benchmarks": benchmarks,
        "rows": [(what, moved, [g.get(n, "-") for n in benchmarks]) for what, moved, g in rows],
        "limits": "; ".join(core.experiment_limits(made)),
    }


def _decision(entry: Json) -> Json:
    """A decision in words.

    ``id``, ``head``, whether it ``changed`` the mixture, and ``rows``, each a line or several.
    """
    changed = entry["generation"] is not None
    head = f"{core.verdict(entry)} at {format_tokens(entry['tokens'])} tokens"
    if changed or entry["approval"]:
        head += f": {core.changes(entry)}"
    evidence = (
        line.removeprefix("Evidence").strip() for line in core.evidence_lines(entry["evidence"])
    )
    rows = {
        "why": entry["reason"],
        "asked by": f"{entry['asked_by']} ({entry['policy']})",
        "approval": core.approval(entry["approval"]) if entry.get("approval") else "",
        "assessed": [core.assessment(said) for said in entry.get("assessments", ())],
        "evidence": [line for line in evidence if line != "-"],
        "before": core.mixture(entry["weights_before"]),
        "after": core.mixture(entry["weights_after"]),
        "guards": [f"{n['guard']} {n['action']}: {n['detail']}" for n in entry["guards"]],
        "applied": core.applied(entry),
        "what followed": core.outcome_lines(entry["outcome"]),
        "experiment": core.experiment(entry["experiment"]) if entry.get("experiment") else "",
    }
    return {"id": entry["id"], "head": head, "changed": changed, "rows": rows}
