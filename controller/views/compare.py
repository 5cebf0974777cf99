"""``mixloop compare``: two scorecards side by side, paired over the items they share."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from mixloop.common.errors import BadInput
from mixloop.common.types import Json
from mixloop.controller.decisions import benchmark_scores
from mixloop.evals import BenchmarkScore, Scorecard
from mixloop.policies.evidence import Comparison, compare
from mixloop.policies.interface import MissingScore

from . import tables

if TYPE_CHECKING:
    from rich.table import Table


# what may differ between two benchmarks of equal settings: the run's context and item sources
_ASKED = {"shots": "shots", "max_new_tokens": "max_new_tokens", "data": "items from"}


def read_cards(paths: tuple[Path, Path]) -> tuple[Scorecard, Scorecard]:
    """Two scorecard files.

    Raises:
        BadInput: for a file that can't be read or is no scorecard.
    """
    found = []
    for path in paths:
        try:
            found.append(Scorecard.read(path))
        except OSError as error:
            hint = "give the file that `mixloop eval --out` writes, or a run with --steps"
            raise BadInput(f"{path}: no scorecard here ({error.strerror}); {hint}") from None
        except ValueError as error:
            raise BadInput(str(error).splitlines()[0]) from None
    return found[0], found[1]


def run_cards(run: Path, steps: str) -> tuple[Scorecard, Scorecard]:
    """The scorecards of two checkpoints of a run; ``steps`` such as ``1200,2400``.

    Raises:
        BadInput: when there is no such run, or no scored checkpoint at a step.
    """
    from .opening import open_run

    try:
        first, second = (int(step) for step in steps.split(","))
    except ValueError:
        raise BadInput(f"--steps: {steps!r} is not two steps; give them as 1200,2400") from None
    _, journal = open_run(run)
    query = "SELECT step, scorecard FROM evaluations WHERE state = 'scored' ORDER BY step"
    scored = {row["step"]: row for row in journal.rows(query)} if journal is not None else {}
    for step in (first, second):
        if step not in scored:
            known = ", ".join(map(str, scored)) or "none"
            raise BadInput(f"{run}: no scorecard at step {step}; scored steps: {known}")
    cards = [Scorecard.model_validate(scored[step]["scorecard"]) for step in (first, second)]
    return cards[0], cards[1]


def compare_cards(a: Scorecard, b: Scorecard, *, force: bool = False) -> Json:
    """What ``mixloop compare --json`` prints: one row per benchmark and metric that both have.

    ``a`` and ``b`` of a row are the values over the shared items; ``gain`` is positive where B is
    better, ``low`` and ``high`` its 95% interval. Numbers that are not finite (the standard error
    of one item) are null, and so is the interval where all items moved alike, or not at all: no
    spread is no certainty. ``notes`` say what is missing on a side and why, and what was not asked
    alike.

    Raises:
        BadInput: when the settings differ, unless ``force``.
    """
    notes = []
    if a.settings_digest != b.settings_digest:
        differ = f"A has settings {a.settings_digest}, B {b.settings_digest}"
        if not force:
            raise BadInput(
                f"{a.checkpoint} and {b.checkpoint} were asked differently: {differ}; score both "
                "under the same evals section, or --force to compare the items they share"
            )
        notes.append(f"asked differently: {differ}")
    scores = [benchmark_scores(card.model_dump(mode="json")) for card in (a, b)]
    rows = []
    for name in dict.fromkeys((*a.benchmarks, *b.benchmarks)):
        notes.extend(_gaps(name, a.benchmarks.get(name), b.benchmarks.get(name)))
        for metric in _common(name, a, b):
            try:
                found = compare(name, metric, scores[0][name], scores[1][name])
            except MissingScore as error:
                notes.append(str(error))
                continue
            rows.append(_row(found))
            notes.extend(_unshared(found))
    return {"a": _side(a), "b": _side(b), "rows": rows, "notes": notes}


def _common(name: str, a: Scorecard, b: Scorecard) -> list[str]:
    both = [card.benchmarks[name].metrics for card in (a, b) if name in card.benchmarks]
    return [metric for metric in both[0] if metric in both[-1]] if len(both) == 2 else []


def _gaps(name: str, a: BenchmarkScore | None, b: BenchmarkScore | None) -> Iterator[str]:
    """Why a benchmark or a metric is not compared, and what differs in how it was asked."""
    for label, one in (("A", a), ("B", b)):
        if one is None:
            yield f"{name}: not asked in {label}"
        elif one.status == "missing":
            yield f"{name}: missing in {label}: {one.reason or 'no reason is given'}"
        elif one.reason:
            yield f"{name}: in {label}: {one.reason}"
    if a is None or b is None or "missing" in (a.status, b.status):
        return
    for label, one, other in (("A", a, b), ("B", b, a)):
        lacking = [metric for metric in other.metrics if metric not in one.metrics]
        if lacking and not one.reason:
            yield f"{name} {', '.join(lacking)}: not measured in {label}"
    for key, words in _ASKED.items():
        ours, theirs = getattr(a, key), getattr(b, key)
        if ours != theirs:
            yield f"{name}: {words} {ours} in A, {theirs} in B"


def _unshared(found: Comparison) -> Iterator[str]:
    one = found.difference
    if one.n < max(found.items_a, found.items_b):
        counts = f"of {found.items_a} in A and {found.items_b} in B"
        yield f"{one.benchmark} {one.metric}: compared over {one.n} shared items {counts}"


def _side(card: Scorecard) -> Json:
    kept = ("checkpoint", "step", "tokens", "settings_digest")
    return {key: getattr(card, key) for key in kept}


def _row(found: Comparison) -> Json:
    one = found.difference
    low, high = one.interval() if one.stderr else (math.nan, math.nan)
    return {
        "benchmark": one.benchmark,
        "metric": one.metric,
        "a": found.a,
        "b": found.b,
        "gain": one.gain,
        "stderr": _finite(one.stderr),
        "low": _finite(low),
        "high": _finite(high),
        "z": _finite(one.z),
        "df": one.df,
        "items": one.n,
        "mcnemar": found.mcnemar,
    }


def _finite(value: float) -> float | None:
    # JSON has no infinity
    return value if math.isfinite(value) else None


def comparison_table(report: Json) -> Table:
    """The rows for a person."""
    names = (f"{label} = {_name(report[label.lower()])}" for label in "AB")
    columns = ("benchmark", "metric", "A", "B", "gain", "± s.e.", "z", "df", "items", "McNemar p")
    made = tables.table("   ".join(names), columns)
    for row in report["rows"]:
        made.add_row(
            tables.cell(row["benchmark"]),
            tables.cell(row["metric"]),
            *(_shown(row[key], form) for key, form in _FORMS.items()),
        )
    return made


_FORMS = {
    **{"a": ".4f", "b": ".4f", "gain": "+.4f", "stderr": ".4f", "z": "+.2f"},
    **{"df": "d", "items": "d", "mcnemar": ".3g"},
}


def _shown(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _name(side: Json) -> str:
    step = f" at step {side['step']}" if side["step"] is not None else ""
    return tables.cell(f"{side['checkpoint']}{step}")
