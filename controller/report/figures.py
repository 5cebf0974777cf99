"""A run as one picture: benchmarks above, the mixture below, interventions through both.

The upper panel holds one curve per benchmark, in bits per byte, with a band of one standard error;
a control run's curves are dashed in the same colours. The lower panel stacks the sources' shares
over training tokens, changing exactly where an order came into force. Vertical lines mark the
interventions by their ids. Another picture shows epochs of every source over the run, against the
cap. Colours and hatches stay apart in the common forms of colour blindness (Okabe & Ito 2008).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mixloop.common.text import clean
from mixloop.common.types import Json
from mixloop.common.units import format_tokens
from mixloop.policies.interface import BITS_PER_BYTE

BLUE, ORANGE, GREEN, PINK = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
SKY, GOLD, BLACK = "#56B4E9", "#E69F00", "#000000"
CURVES = (BLUE, ORANGE, GREEN, PINK, BLACK, SKY, GOLD)
MARKERS = "osD^vPX"
# the same hues mixed with white: quieter than the curves, and black figures are legible on them
AREAS = ["#9AD3F2", "#F3C866", "#7FCDB4", "#E5BAD2", "#F7F0A0", "#7AB3D6", "#EAA576", "#CFCFCF"]
HATCHES = ("", "///", "...", "\\\\\\")  # a new one per round of colours
DOTTED = (0, (2, 2))
LABEL_ROWS = 3
EPOCH_CURVES = 12  # sources whose epochs are drawn: the ones repeated most
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


@contextmanager
def canvas(out: Path, width: float, height: float, dpi: int = 140) -> Iterator[Any]:
    """A figure of so many inches in the house style, saved when left; no display, no global state.

    The same content gives the same file.
    """
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    out.parent.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(figure)
        yield figure
        metadata = {"Date": None} if out.suffix.lower() == ".svg" else {}
        figure.savefig(out, dpi=dpi, metadata=metadata)


def plain(text: str) -> str:
    """Text that reaches matplotlib as text, not as mathematics or control characters."""
    return clean(text).replace("$", r"\$")


def token_axis(axes: Any, budget: int) -> None:
    """Training tokens from left to right, to the end of the budget."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axes.set_xlim(0, max(budget, 1))
    axes.xaxis.set_major_locator(MaxNLocator(nbins=9, steps=[1, 2, 2.5, 5, 10]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda tokens, _: format_tokens(tokens)))
    axes.set_xlabel("training tokens")


def stack_shares(
    axes: Any,
    edges: Sequence[float],
    shares: Mapping[str, Sequence[float]],
    *,
    unused: bool = True,
    linewidth: float = 0.6,
    **legend: Any,
) -> None:
    """Stacked shares of the sources, each span a rectangle from one edge to the next.

    Args:
        axes: of matplotlib.
        edges: tokens at which spans begin, and at which the last one ends.
        shares: per source its share in every span.
        unused: whether the legend has sources whose share is always 0.
        linewidth: of the white lines between areas.
        legend: how the legend is set; the top of the stack comes first in it.
    """
    base = [0.0] * len(edges)
    for number, (name, values) in enumerate(shares.items()):
        top = [low + share for low, share in zip(base, [*values, values[-1]], strict=True)]
        axes.fill_between(
            edges,
            base,
            top,
            step="post",
            facecolor=AREAS[number % len(AREAS)],
            hatch=HATCHES[number // len(AREAS) % len(HATCHES)],
            edgecolor="white",
            linewidth=linewidth,
            label=plain(name) if unused or any(values) else None,
        )
        base = top
    axes.set_ylim(0, 1)
    handles, labels = axes.get_legend_handles_labels()
    axes.legend(handles[::-1], labels[::-1], loc="upper left", frameon=False, **legend)


# -- a run -----------------------------------------------------------------------------------------


def draw(
    history: Sequence[Json],
    evaluations: Sequence[Json],
    segments: Sequence[Json],
    out: Path,
    *,
    title: str,
    budget: int,
    control: Sequence[Json] | None = None,
) -> Path:
    """Draw a run; PNG or SVG by `out`'s suffix.

    Args:
        history: decisions as `mixloop history --json` lists them; those that changed the mixture
            are marked where they came into force.
        evaluations: `{"tokens", "benchmarks": {name: {metric: {"value", "stderr", ...}}}}`; a
            benchmark or metric that is missing leaves a gap in nobody else's curve.
        segments: `{"tokens": first token of the segment, "weights": {source: share}}`.
        out: the file to write; its folder is made.
        title: above the picture.
        budget: tokens of the whole run, the right end of the axis.
        control: evaluations of a run with the mixture left alone, drawn dashed.

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
    with canvas(out, 10, 7.2) as figure:
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
        _benchmarks(upper, _curves(evaluations), _curves(control or ()))
        _mixture(lower, sorted(segments, key=lambda segment: segment["tokens"]), budget)
        _interventions(upper, lower, _marks(history), budget)
        token_axis(lower, budget)
        figure.suptitle(plain(title), fontsize=13)
    return out


@dataclass(frozen=True)
class _Curve:
    tokens: list[float] = field(default_factory=list)
    values: list[float] = field(default_factory=list)
    errors: list[float] = field(default_factory=list)  # one standard error each; 0 where unknown


def _curves(evaluations: Iterable[Json]) -> dict[str, _Curve]:
    """One curve per benchmark with bits per byte at least once, in order of first appearance."""
    curves: dict[str, _Curve] = {}
    for evaluation in sorted(evaluations, key=lambda evaluation: evaluation["tokens"]):
        for name, metrics in evaluation["benchmarks"].items():
            score = metrics.get(BITS_PER_BYTE, {})
            value, error = _finite(score.get("value")), _finite(score.get("stderr"))
            if value is not None:
                curve = curves.setdefault(name, _Curve())
                curve.tokens.append(evaluation["tokens"])
                curve.values.append(value)
                curve.errors.append(error or 0.0)
    return curves


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _benchmarks(axes: Any, curves: Mapping[str, _Curve], control: Mapping[str, _Curve]) -> None:
    from matplotlib.lines import Line2D

    handles = []
    for number, name in enumerate(dict.fromkeys((*curves, *control))):
        colour, marker = CURVES[number % len(CURVES)], MARKERS[number % len(MARKERS)]
        handles.append(Line2D([], [], color=colour, marker=marker, label=plain(name)))
        if name in curves:
            curve = curves[name]
            low = [v - e for v, e in zip(curve.values, curve.errors, strict=True)]
            high = [v + e for v, e in zip(curve.values, curve.errors, strict=True)]
            axes.fill_between(curve.tokens, low, high, color=colour, alpha=0.14, linewidth=0)
            axes.plot(curve.tokens, curve.values, f"{marker}-", color=colour, markersize=4.5)
        if name in control:
            dashed = control[name]
            axes.plot(dashed.tokens, dashed.values, "--", color=colour, linewidth=1.3, alpha=0.85)
    axes.set_ylabel("bits per byte (band: ± 1 standard error)")
    axes.grid(axis="y", color="#E5E5E5", linewidth=0.8)
    axes.set_axisbelow(True)
    if not handles:
        place = {"transform": axes.transAxes, "ha": "center", "va": "center"}
        axes.text(0.5, 0.5, "no evaluation yet", color="#555555", **place)
        return
    if control:
        handles.append(Line2D([], [], color="#555555", linestyle="--", label="left alone"))
    handles.append(Line2D([], [], color="#333333", linestyle=DOTTED, label="order in force"))
    axes.legend(handles=handles, loc="upper left", frameon=False, **_beside("benchmark"))


def _beside(title: str) -> Json:
    """A legend to the right of the axes, where it hides nothing."""
    place = {"bbox_to_anchor": (1.01, 1.0), "borderaxespad": 0.0}
    return {**place, "title": title, "alignment": "left"}


def _mixture(axes: Any, segments: Sequence[Json], budget: int) -> None:
    """Stacked shares, each segment from its first token to the next one's, with the percentages."""
    names = list(dict.fromkeys(name for segment in segments for name in segment["weights"]))
    starts = [float(segment["tokens"]) for segment in segments]
    edges = [*starts, max(float(budget), starts[-1])]
    shares = {
        name: [float(segment["weights"].get(name, 0.0)) for segment in segments] for name in names
    }
    stack_shares(axes, edges, shares, **_beside("source"))
    for number, start in enumerate(starts):
        width, base = edges[number + 1] - start, 0.0
        for values in shares.values():
            share = values[number]
            if share >= 0.06 and width >= 0.055 * budget:  # there is room for it
                place = (start + width / 2, base + share / 2)
                axes.text(*place, f"{share:.0%}", ha="center", va="center", fontsize=8)
            base += share
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0%", "25%", "50%", "75%", "100%"])
    axes.set_ylabel("mixture (share of tokens)")


def _marks(history: Iterable[Json]) -> list[tuple[float, str]]:
    """(tokens, id) of every decision that changed the mixture and came into force."""
    return sorted(
        (float(entry["applied_tokens"]), str(entry["id"]))
        for entry in history
        if entry["applied_tokens"] is not None
    )


def _interventions(upper: Any, lower: Any, marks: Sequence[tuple[float, str]], budget: int) -> None:
    """A line through both panels per intervention; crowded labels get shorter and take turns."""
    for place, _ in marks:
        for axes in (upper, lower):
            axes.axvline(place, color="#333333", linewidth=1.0, linestyle=DOTTED, zorder=3)
    rows = _rows(marks, 0.085 * budget)
    crowded = None in rows
    if crowded:
        rows = _rows(marks, 0.05 * budget)
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


# -- epochs ----------------------------------------------------------------------------------------


def draw_epochs(drawn: Sequence[Json], out: Path, budget: int, cap: float | None) -> None:
    """Draw the epochs of every source over tokens.

    Args:
        drawn: ``{"tokens", "epochs": {source: epochs}}`` at each checkpoint, oldest first.
        out: an SVG or PNG file.
        budget: tokens of the whole run, the right end of the axis.
        cap: on epochs, or None.
    """
    last = drawn[-1]["epochs"]
    names = sorted(last, key=lambda name: -last[name])[:EPOCH_CURVES]
    x = [0, *(point["tokens"] for point in drawn)]
    with canvas(out, 10, 3.4) as figure:
        axes = figure.subplots()
        for number, name in enumerate(names):
            y = [0.0, *(point["epochs"].get(name, 0.0) for point in drawn)]
            style = ("-", "--", ":")[number // len(CURVES) % 3]
            axes.plot(x, y, style, color=CURVES[number % len(CURVES)], label=plain(name), lw=1.6)
        if cap is not None:
            axes.axhline(cap, color=BLACK, lw=1, ls=(0, (4, 3)))
            axes.annotate(f"cap {cap:g}", (0, cap), xytext=(4, 3), textcoords="offset points")
        axes.set_ylabel("epochs")
        axes.set_ylim(bottom=0)
        axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
        token_axis(axes, budget)
