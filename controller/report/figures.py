"""A run as one picture: benchmarks above, the mixture below, interventions through both.

The upper panel holds one curve per benchmark (bits per byte by default) with a band of one standard
error; a control run's curves are dashed in the same colours. The lower panel stacks the sources'
shares over training tokens, changing exactly where an order came into force. Vertical lines mark
the interventions by their ids. Colours and hatches stay apart in the common forms of colour
blindness (Okabe & Ito 2008).


Epochs of every source over the run, against the cap.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mixloop.common.text import clean
from mixloop.common.units import format_tokens

BLUE, ORANGE, GREEN, PINK = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
SKY, GOLD, BLACK = "#56B4E9", "#E69F00", "#000000"
CURVES = (BLUE, ORANGE, GREEN, PINK, BLACK, SKY, GOLD)
MARKERS = "osD^vPX"
# the same hues mixed with white: quieter than the curves, and black figures are legible on them
AREAS = ["#9AD3F2", "#F3C866", "#7FCDB4", "#E5BAD2", "#F7F0A0", "#7AB3D6", "#EAA576", "#CFCFCF"]
LABEL_ROWS = 3
HATCHES = ("", "///", "...", "\\\\\\")  # a new one per round of colours
DOTTED = (0, (2, 2))
STYLE: dict[str, Any] = {
    "font.family": "DejaVu Sans",  # ships with matplotlib, so there is no font to look for
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#555555",
    "axes.titlesize": 12,
    "hatch.linewidth": 0.6,
    "hatch.color": "#FFFFFF",
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "mixloop",  # the same run gives the same file
}


@dataclass(frozen=True)
class _Curve:
    tokens: list[float]
    values: list[float]
    errors: list[float]  # one standard error each; 0 where unknown


def draw(
    history: Sequence[Mapping[str, Any]],
    evaluations: Sequence[Mapping[str, Any]],
    segments: Sequence[Mapping[str, Any]],
    out: Path,
    *,
    title: str,
    budget: int,
    control: Sequence[Mapping[str, Any]] | None = None,
    metric: str = "bits_per_byte",
) -> Path:
    """Draw a run; PNG or SVG by `out`'s suffix.

    Args:
        history: decisions as `mixloop history --json` lists them; those with an applied step that
            changed the mixture are marked. Their place is `applied_tokens` where given, else that
            of the segment that brought `weights_after` in.
        evaluations: `{"tokens", "benchmarks": {name: {metric: {"value", "stderr", ...}}}}`; a
            benchmark or metric that is missing leaves a gap in nobody else's curve.
        segments: `{"tokens": first token of the segment, "weights": {source: share}}`.
        out: the file to write; its folder is made.
        title: above the picture.
        budget: tokens of the whole run, the right end of the axis.
        control: evaluations of a run with the mixture left alone, drawn dashed.
        metric: which metric's curves to draw.

    Returns:
        `out`.

    Raises:
        ValueError: the suffix is neither .png nor .svg, or there is no segment.
    """
    if out.suffix.lower() not in {".png", ".svg"}:
        raise ValueError(
            f"{out}: a picture is .png or .svg, not {out.suffix or 'without suffix'!r}"
        )
    if not segments:
        raise ValueError(f"{out}: no segments, so there is no mixture to draw")
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    out.parent.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(10, 7.2), layout="constrained")
        FigureCanvasAgg(figure)  # its own canvas: no global state, no display
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
        _benchmarks(upper, _curves(evaluations, metric), _curves(control or (), metric), metric)
        _mixture(lower, sorted(segments, key=lambda segment: segment["tokens"]), budget)
        _interventions(upper, lower, _marks(history, segments), budget)
        token_axis(lower, budget)
        figure.suptitle(plain(title), fontsize=13)
        metadata = {"Date": None} if out.suffix.lower() == ".svg" else {}
        figure.savefig(out, dpi=140, metadata=metadata)
    return out


def plain(text: str) -> str:
    """Text that reaches matplotlib as text, not as mathematics or control characters."""
    return clean(text).replace("$", r"\$")


def _curves(evaluations: Iterable[Mapping[str, Any]], metric: str) -> dict[str, _Curve]:
    """One curve per benchmark that has the metric at least once, in order of first appearance."""
    curves: dict[str, _Curve] = {}
    for evaluation in sorted(evaluations, key=lambda one: one["tokens"]):
        for name, metrics in evaluation["benchmarks"].items():
            value = _number(metrics.get(metric, {}).get("value"))
            if math.isnan(value):
                continue
            curve = curves.setdefault(name, _Curve([], [], []))
            error = _number(metrics[metric].get("stderr"))
            curve.tokens.append(evaluation["tokens"])
            curve.values.append(value)
            curve.errors.append(0.0 if math.isnan(error) else error)
    return curves


def _number(value: Any) -> float:
    number = math.nan if value is None else float(value)
    return number if math.isfinite(number) else math.nan


def _benchmarks(
    axes: Any, curves: Mapping[str, _Curve], control: Mapping[str, _Curve], metric: str
) -> None:
    names = list(dict.fromkeys((*curves, *control)))
    for number, name in enumerate(names):
        colour, marker = CURVES[number % len(CURVES)], MARKERS[number % len(MARKERS)]
        if name in curves:
            curve = curves[name]
            low = [v - e for v, e in zip(curve.values, curve.errors, strict=True)]
            high = [v + e for v, e in zip(curve.values, curve.errors, strict=True)]
            axes.fill_between(curve.tokens, low, high, color=colour, alpha=0.14, linewidth=0)
            axes.plot(curve.tokens, curve.values, f"{marker}-", color=colour, markersize=4.5)
        if name in control:
            dashed = control[name]
            axes.plot(dashed.tokens, dashed.values, "--", color=colour, linewidth=1.3, alpha=0.85)
    axes.set_ylabel(f"{metric.replace('_', ' ')} (band: ± 1 standard error)")
    axes.grid(axis="y", color="#E5E5E5", linewidth=0.8)
    axes.set_axisbelow(True)
    _curve_legend(axes, names, bool(control))
    if not names:
        axes.text(0.5, 0.5, "no evaluation yet", ha="center", color="#555555", **_inside(axes))


def _inside(axes: Any) -> dict[str, Any]:
    return {"transform": axes.transAxes, "va": "center"}


def _curve_legend(axes: Any, names: Sequence[str], control: bool) -> None:
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], color=CURVES[n % len(CURVES)], marker=MARKERS[n % len(MARKERS)], label=name)
        for n, name in enumerate(map(plain, names))
    ]
    if control:
        handles.append(Line2D([], [], color="#555555", linestyle="--", label="left alone"))
    handles.append(Line2D([], [], color="#333333", linestyle=DOTTED, label="order in force"))
    if names:
        axes.legend(handles=handles, **_beside("benchmark"))


def _beside(title: str) -> dict[str, Any]:
    """A legend to the right of the axes, where it hides nothing."""
    return {
        "loc": "upper left",
        "bbox_to_anchor": (1.01, 1.0),
        "frameon": False,
        "title": title,
        "alignment": "left",
        "borderaxespad": 0.0,
    }


def _mixture(axes: Any, segments: Sequence[Mapping[str, Any]], budget: int) -> None:
    """Stacked shares, each segment a rectangle from its first token to the next one's."""
    names = list(dict.fromkeys(name for segment in segments for name in segment["weights"]))
    starts = [float(segment["tokens"]) for segment in segments]
    edges = [*starts, max(float(budget), starts[-1])]
    base = [0.0] * len(edges)
    for number, name in enumerate(names):
        shares = [float(segment["weights"].get(name, 0.0)) for segment in segments]
        top = [b + s for b, s in zip(base, [*shares, shares[-1]], strict=True)]
        axes.fill_between(
            edges,
            base,
            top,
            step="post",
            facecolor=AREAS[number % len(AREAS)],
            hatch=HATCHES[number // len(AREAS) % len(HATCHES)],
            edgecolor="white",
            linewidth=0.6,
            label=plain(name),
        )
        _share_labels(axes, edges, base, shares, budget)
        base = top
    axes.set_ylim(0, 1)
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0%", "25%", "50%", "75%", "100%"])
    axes.set_ylabel("mixture (share of tokens)")
    handles, labels = axes.get_legend_handles_labels()
    axes.legend(handles[::-1], labels[::-1], **_beside("source"))  # top of the stack first


def _share_labels(
    axes: Any, edges: Sequence[float], base: Sequence[float], shares: Sequence[float], budget: int
) -> None:
    """The share in percent inside every rectangle that has room for it."""
    for n, share in enumerate(shares):
        width = edges[n + 1] - edges[n]
        if share >= 0.06 and width >= 0.055 * budget:
            middle = edges[n] + width / 2
            axes.text(
                middle, base[n] + share / 2, f"{share:.0%}", ha="center", va="center", fontsize=8
            )


def _marks(
    history: Iterable[Mapping[str, Any]], segments: Sequence[Mapping[str, Any]]
) -> list[tuple[float, str]]:
    """(tokens, id) of every decision that changed the mixture and came into force."""
    marks = []
    for entry in history:
        if entry.get("applied_step") is None or not entry.get("weights_after"):
            continue
        place = entry.get("applied_tokens")
        place = _segment_start(entry, segments) if place is None else float(place)
        if place is not None:
            marks.append((place, str(entry["id"])))
    return sorted(marks)


def _segment_start(entry: Mapping[str, Any], segments: Sequence[Mapping[str, Any]]) -> float | None:
    """First token of the segment an entry's order became: after it was decided, same weights."""
    after = entry["weights_after"]
    decided = float(entry.get("tokens") or 0)
    for segment in sorted(segments, key=lambda one: one["tokens"]):
        names = {*after, *segment["weights"]}
        same = all(
            abs(after.get(name, 0.0) - segment["weights"].get(name, 0.0)) < 1e-5 for name in names
        )
        if same and segment["tokens"] >= max(decided, 1.0):
            return float(segment["tokens"])
    return None


def _interventions(upper: Any, lower: Any, marks: Sequence[tuple[float, str]], budget: int) -> None:
    """A line through both panels per intervention; crowded labels get shorter and take turns."""
    for place, _ in marks:
        for axes in (upper, lower):
            axes.axvline(place, color="#333333", linewidth=1.0, linestyle=DOTTED, zorder=3)
    full = _rows(marks, 0.085 * budget)
    crowded = None in full
    rows = _rows(marks, 0.05 * budget) if crowded else full
    for (place, name), row in zip(marks, rows, strict=True):
        if row is None:
            continue  # its line is there; three rows of labels are enough
        upper.annotate(
            plain(re.sub(r"-0+(?=\d)", "-", name) if crowded else name),
            (place, 1.0),
            xycoords=("data", "axes fraction"),
            xytext=(0, 3 + 12 * row),
            textcoords="offset points",
            ha="center",
            fontsize=8.5,
            color="#333333",
        )


def _rows(marks: Sequence[tuple[float, str]], width: float) -> list[int | None]:
    """The lowest row in which each label has `width` to itself; None where none is free."""
    ends = [-math.inf] * LABEL_ROWS
    rows: list[int | None] = []
    for place, _ in marks:
        row = next((n for n, end in enumerate(ends) if place >= end), None)
        if row is not None:
            ends[row] = place + width
        rows.append(row)
    return rows


def token_axis(axes: Any, budget: int) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axes.set_xlim(0, max(budget, 1))
    axes.xaxis.set_major_locator(MaxNLocator(nbins=9, steps=[1, 2, 2.5, 5, 10]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda tokens, _: format_tokens(tokens)))
    axes.set_xlabel("training tokens")


MOST = 12  # sources that are drawn: the ones repeated most


def draw_epochs(
    drawn: Sequence[dict[str, Any]], out: Path, budget: int, limit: float | None
) -> Path:
    """Draw it.

    Args:
        drawn: ``{"tokens", "epochs": {source: epochs}}`` at each checkpoint, oldest first.
        out: an SVG or PNG file.
        budget: tokens of the whole run, the right end of the axis.
        limit: the cap on epochs, or None.
    """
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    last = drawn[-1]["epochs"]
    names = sorted(last, key=lambda name: -last[name])[:MOST]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(10, 3.4), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots()
        for place, name in enumerate(names):
            points = [(one["tokens"], one["epochs"].get(name, 0.0)) for one in drawn]
            style = ("-", "--", ":")[place // len(CURVES) % 3]
            x, y = zip((0, 0.0), *points, strict=True)
            axes.plot(x, y, style, color=CURVES[place % len(CURVES)], label=plain(name), lw=1.6)
        if limit is not None:
            axes.axhline(limit, color=BLACK, lw=1, ls=(0, (4, 3)))
            axes.annotate(f"cap {limit:g}", (0, limit), xytext=(4, 3), textcoords="offset points")
        axes.set_ylabel("epochs")
        axes.set_ylim(bottom=0)
        axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
        token_axis(axes, budget)
        metadata = {"Date": None} if out.suffix == ".svg" else {}
        figure.savefig(out, metadata=metadata)
    return out
