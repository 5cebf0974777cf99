"""``mixloop compare``: two scorecards side by side, paired over the items they share."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mixloop.common.errors import BadInput
from mixloop.common.types import Json
from mixloop.controller.decisions import benchmark_scores, observation_builder
from mixloop.controller.journal import queries
from mixloop.evals import BenchmarkScore, Scorecard
from mixloop.policies.evidence import RECENT, Comparison, compare, trajectory_noise
from mixloop.policies.interface import Evaluation, MissingScore, Observation

from . import tables
from .opening import open_run

if TYPE_CHECKING:
    from rich.table import Table


_ITEMS_ALONE = (
    "the errors are the items' alone; by how much a checkpoint jitters around the run's course "
    "takes three scored checkpoints of the run (give the run and --steps)"
)
# what may differ between two benchmarks of equal settings: the run's context and item sources
_ASKED = {"shots": "shots", "max_new_tokens": "max_new_tokens", "data": "items from"}


def read_cards(paths: tuple[Path, Path]) -> tuple[Scorecard, Scorecard]:
    """Two scorecard files.

    Raises:
        BadInput: for a file that can't be read or is no scorecard.
    """
    cards = []
    for path in paths:
        try:
            cards.append(Scorecard.read(path))
        except OSError as error:
            hint = "give the file that `mixloop eval --out` writes, or a run with --steps"
            raise BadInput(f"{path}: no scorecard here ({error.strerror}); {hint}") from None
        except ValueError as error:
            raise BadInput(str(error).splitlines()[0]) from None
    return cards[0], cards[1]


def run_cards(run: Path, steps: str) -> tuple[tuple[Scorecard, Scorecard], tuple[Evaluation, ...]]:
    """The scorecards of two checkpoints of a run, and the evaluations around that tell its jitter.

    ``steps`` such as ``1200,2400``.

    Raises:
        BadInput: when there is no such run, or no scored checkpoint at a step.
    """
    try:
        first, second = (int(step) for step in steps.split(","))
    except ValueError:
        raise BadInput(f"--steps: {steps!r} is not two steps; give them as 1200,2400") from None
    _, journal = open_run(run)
    rows = queries.checkpoints_in(journal, "scored") if journal is not None else []
    scored = [row.step for row in rows]
    for step in (first, second):
        if step not in scored:
            names = ", ".join(map(str, scored)) or "none"
            raise BadInput(f"{run}: no scorecard at step {step}; scored steps: {names}")
    assert journal is not None
    cards = (next(queries.scored(journal, since=s, until=s)).scorecard for s in (first, second))
    a, b = map(Scorecard.model_validate, cards)
    last = max(scored.index(max(first, second)) + 1, RECENT)
    around = scored[max(0, last - RECENT) : last]
    course = observation_builder.evaluations(journal, since=around[0], until=around[-1])
    return (a, b), course


def compare_cards(
    a: Scorecard, b: Scorecard, *, course: Sequence[Evaluation] = (), force: bool = False
) -> Json:
    """What ``mixloop compare --json`` prints: one row per benchmark and metric that both have.

    ``a`` and ``b`` of a row are the values over the shared items; ``gain`` is positive where B is
    better, ``low`` and ``high`` its 95% interval. Its ``stderr`` holds ``stderr_items`` and, where
    both are of one run and ``course`` are evaluations of it, ``stderr_trajectory``. Numbers that
    are not finite (the standard error of one item) are null, and so is the interval where all
    items moved alike, or not at all: no
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
    rows, lens = [], Observation(sources={}, weights={}, evaluations=tuple(course))
    for name in dict.fromkeys((*a.benchmarks, *b.benchmarks)):
        notes.extend(_gaps(name, a.benchmarks.get(name), b.benchmarks.get(name)))
        for metric in _common(name, a, b):
            try:
                jitter = trajectory_noise(lens, name, metric)
                comparison = compare(name, metric, scores[0][name], scores[1][name], jitter)
            except MissingScore as error:
                notes.append(str(error))
                continue
            rows.append(_row(comparison))
            notes.extend(_unshared(comparison))
    return {"a": _side(a), "b": _side(b), "rows": rows, "notes": notes}


def _common(name: str, a: Scorecard, b: Scorecard) -> list[str]:
    both = [card.benchmarks[name].metrics for card in (a, b) if name in card.benchmarks]
    return [metric for metric in both[0] if metric in both[-1]] if len(both) == 2 else []


def _gaps(name: str, a: BenchmarkScore | None, b: BenchmarkScore | None) -> Iterator[str]:
    """Why a benchmark or a metric is not compared, and what differs in how it was asked."""
    for label, score in (("A", a), ("B", b)):
        if score is None:
            yield f"{name}: not asked in {label}"
        elif score.status == "missing":
            yield f"{name}: missing in {label}: {score.reason or 'no reason is given'}"
        elif score.reason:
            yield f"{name}: in {label}: {score.reason}"
    if a is None or b is None or "missing" in (a.status, b.status):
        return
    for label, score, other in (("A", a, b), ("B", b, a)):
        lacking = [metric for metric in other.metrics if metric not in score.metrics]
        if lacking and not score.reason:
            yield f"{name} {', '.join(lacking)}: not measured in {label}"
    for key, words in _ASKED.items():
        in_a, in_b = getattr(a, key), getattr(b, key)
        if in_a != in_b:
            yield f"{name}: {words} {in_a} in A, {in_b} in B"


def _unshared(comparison: Comparison) -> Iterator[str]:
    shared, items_a, items_b = comparison.difference, comparison.items_a, comparison.items_b
    if shared.n < max(items_a, items_b):
        counts = f"of {items_a} in A and {items_b} in B"
        yield f"{shared.benchmark} {shared.metric}: compared over {shared.n} shared items {counts}"


def _side(card: Scorecard) -> Json:
    kept = ("checkpoint", "step", "tokens", "settings_digest")
    return {key: getattr(card, key) for key in kept}


def _row(comparison: Comparison) -> Json:
    difference = comparison.difference
    low, high = difference.interval() if difference.stderr else (math.nan, math.nan)
    return {
        "benchmark": difference.benchmark,
        "metric": difference.metric,
        "a": comparison.a,
        "b": comparison.b,
        "gain": difference.gain,
        "stderr": _finite(difference.stderr),
        "stderr_items": _finite(difference.items),
        "stderr_trajectory": difference.trajectory,
        "low": _finite(low),
        "high": _finite(high),
        "z": _finite(difference.z),
        "df": difference.df,
        "items": difference.n,
        "mcnemar": comparison.mcnemar,
    }


def _finite(value: float) -> float | None:
    # JSON has no infinity
    return value if math.isfinite(value) else None


def comparison_table(report: Json) -> Table:
    """The rows for a person."""
    names = (f"{label} = {_name(report[label.lower()])}" for label in "AB")
    columns = (
        "benchmark",
        "metric",
        "A",
        "B",
        "gain",
        "± items",
        "± trajectory",
        "z",
        "df",
        "items",
        "McNemar p",
    )
    table = tables.table("   ".join(names), columns)
    if not any(row["stderr_trajectory"] for row in report["rows"]):
        table.caption = _ITEMS_ALONE
    for row in report["rows"]:
        table.add_row(
            tables.cell(row["benchmark"]),
            tables.cell(row["metric"]),
            *(_shown(row[key], form) for key, form in _FORMS.items()),
        )
    return table


_FORMS = {
    **{"a": ".4f", "b": ".4f", "gain": "+.4f"},
    **{"stderr_items": ".4f", "stderr_trajectory": ".4f", "z": "+.2f"},
    **{"df": ".0f", "items": "d", "mcnemar": ".3g"},
}


def _shown(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _name(side: Json) -> str:
    step = f" at step {side['step']}" if side["step"] is not None else ""
    return tables.cell(f"{side['checkpoint']}{step}")
